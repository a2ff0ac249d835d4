"""Raw ids of users and items: which are missing, how they are written, and their dense codes."""

import numpy as np
import polars as pl


def missing(values: pl.Series) -> pl.Series:
    """Mask of values that are null, NaN, or empty text.

    Args:
      values: ids or timestamps, [rows].

    Returns:
      bool[rows].
    """
    if values.dtype == pl.String:
        return values.is_null() | (values.str.strip_chars() == "")
    return values.is_null() | values.is_nan() if values.dtype.is_float() else values.is_null()


def tidy(ids: pl.Series) -> pl.Series:
    """Ids as integers where all of them are canonical integers, else as strings.

    Args:
      ids: raw ids, [rows], none missing.

    Returns:
      Integers or stripped strings, [rows].

    >>> import polars as pl
    >>> tidy(pl.Series([" 7", "12"])).to_list(), tidy(pl.Series(["007", "12"])).to_list()
    ([7, 12], ['007', '12'])
    """
    if ids.dtype.is_integer():
        return ids
    text = ids.cast(pl.String).str.strip_chars()
    numbers = text.cast(pl.Int64, strict=False)
    canonical = numbers.null_count() == 0 and (numbers.cast(pl.String) == text).all()
    return numbers if canonical else text


def encode(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Dense codes by first appearance.

    Args:
      ids: raw ids, [rows].

    Returns:
      (i32[rows], ids by code): the code of each row, and the vocabulary that the codes index.

    >>> import polars as pl
    >>> codes, vocabulary = encode(pl.Series(["b", "a", "b"]))
    >>> codes.tolist(), vocabulary.to_list()
    ([0, 1, 0], ['b', 'a'])
    """
    vocabulary = ids.unique(maintain_order=True)
    codes = pl.DataFrame({"id": ids}).join(
        pl.DataFrame({"id": vocabulary, "code": np.arange(len(vocabulary), dtype=np.int32)}),
        on="id",
        how="left",
        maintain_order="left",
    )
    return codes["code"].to_numpy(), vocabulary
