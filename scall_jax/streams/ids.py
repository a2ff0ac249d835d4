"""Raw ids of users and items: which are missing, how they are written, and their dense codes."""

import warnings
from collections.abc import Iterable

import numpy as np
import polars as pl

from scall_jax.streams.wording import DataWarning

MISSING = (
    "-",
    "\\N",
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "<NA>",
    "NaN",
    "nan",
    "NaT",
    "None",
    "none",
    "NULL",
    "Null",
    "null",
    "nil",
    "undefined",
)
"""Texts that stand for a missing value in published files, apart from the empty one."""

_WHOLE = r"^(0|-?[1-9]\d*)(\.0+)?$"
_EXACT = {pl.Float32: 2.0**24, pl.Float64: 2.0**53}  # Up to these, floats keep whole numbers apart.


def as_text(values: pl.Series, bare_quotes: bool = False) -> pl.Series:
    """Values as text, without the spaces around them.

    Args:
      values: a column, [rows].
      bare_quotes: whether quotes around a value are no part of it.

    Returns:
      String[rows].

    >>> as_text(pl.Series([' a ', '"b"']), bare_quotes=True).to_list()
    ['a', 'b']
    """
    text = values.cast(pl.String).str.strip_chars()
    if bare_quotes and text.str.starts_with('"').any():
        inner = text.str.extract(r'^"(.*)"$').str.replace_all('""', '"', literal=True).str.strip_chars()
        text = inner.zip_with(inner.is_not_null(), text)
    return text


def as_ids(values: pl.Series, bare_quotes: bool = False) -> pl.Series:
    """Ids as integers where they are, or write, nothing but whole numbers in their shortest form; else as text.

    Args:
      values: a column, [rows].
      bare_quotes: whether quotes around a value are no part of it.

    Returns:
      Integers as they are, Int64[rows], or String[rows] without the spaces around ids.

    >>> as_ids(pl.Series(["7", "12"])).to_list(), as_ids(pl.Series(["7", "012"])).to_list()
    ([7, 12], ['7', '012'])
    """
    if values.dtype.is_integer():
        return values
    if values.dtype == pl.String:
        numbers = values.cast(pl.Int64, strict=False)
        if numbers.null_count() == values.null_count() < len(values):
            long = values.str.starts_with("0") | values.str.starts_with("+") | values.str.starts_with("-0")
            if not long.any() or (numbers.cast(pl.String) == values).all():
                return numbers
    return as_text(values, bare_quotes)


def is_missing(ids: pl.Series, missing: Iterable[str]) -> pl.Series:
    """Mask of values that stand for none.

    Args:
      ids: text without spaces around it, or numbers, [rows].
      missing: texts that do, besides the empty one.

    Returns:
      bool[rows].

    >>> is_missing(pl.Series(["NA", "", None, "ann"]), ["NA"]).to_list()
    [True, True, True, False]
    """
    if ids.dtype == pl.String:
        return ids.is_null() | ids.is_in(["", *missing])
    numbers = pl.Series(list(missing), dtype=pl.String).cast(pl.Float64, strict=False)
    unset = ids.is_null() | (ids.is_nan().fill_null(True) if ids.dtype.is_float() else False)
    finite = numbers.filter(numbers.is_finite().fill_null(False))
    return unset | ids.cast(pl.Float64, strict=False).is_in(finite.implode()) if len(finite) else unset


def runs_together(ids: pl.Series) -> pl.Series:
    """Mask of ids that are floating-point numbers too large to tell neighbours apart.

    Args:
      ids: raw ids, [rows].

    Returns:
      bool[rows]; null counts as false.
    """
    limit = _EXACT.get(type(ids.dtype))
    if limit is None:
        return pl.Series([False]).new_from_index(0, len(ids))
    return (ids.is_finite() & (ids.abs() > limit)).fill_null(False) | ids.is_infinite().fill_null(False)


def whole_numbers(ids: pl.Series, source: str) -> pl.Series:
    """Ids that a program gives as floats, as the integers that they are; others as they are.

    Args:
      ids: raw ids, [rows], none missing.
      source: name used in messages.

    Raises:
      ValueError: a float that is no whole number, or too large to be told from its neighbours.

    >>> whole_numbers(pl.Series([7.0, 12.0]), "rows").to_list()
    [7, 12]
    """
    if not ids.dtype.is_float():
        return ids
    other = runs_together(ids) | (ids != ids.round())
    if other.any():
        row = other.arg_true()[0]
        raise ValueError(
            f"{source}, row {row}, column {ids.name!r}: {ids[row]} is no whole number that floats keep apart: give "
            "integers or text"
        )
    return ids.cast(pl.Int64)


def tidy(ids: pl.Series) -> pl.Series:
    """Distinct ids as integers where all of them are whole numbers, else as text.

    Args:
      ids: distinct raw ids as text, [n], none missing.

    Returns:
      Integers or text, [n]. Two ids are equal here if they write the same whole number in a column of numbers, such as
      `7` and `7.0`.

    Warns:
      DataWarning: two texts that write the same number in a column of text, where they stay two ids; ids with line
        breaks, which quotes that are not closed make.

    >>> import polars as pl
    >>> tidy(pl.Series(["7.0", "12"])).to_list(), tidy(pl.Series(["007", "12"])).to_list()
    ([7, 12], ['007', '12'])
    """
    warn_of_breaks(ids)
    whole = ids.str.contains(_WHOLE)
    if not whole.any():
        return ids
    number = ids.str.replace(r"\.0+$", "")
    if whole.all():
        for dtype in (pl.Int64, pl.UInt64):
            integers = number.cast(dtype, strict=False)
            if integers.null_count() == 0:
                return integers
        return number
    if ids.cast(pl.Float64, strict=False).null_count() == 0:
        return number.zip_with(whole, ids)
    again = ids.filter(whole & (number != ids) & number.is_in(ids.implode()))
    if len(again):
        warnings.warn(
            f"{again[0]!r} and {number.filter(ids == again[0])[0]!r} are two ids ({len(again):,} such pair(s)), "
            "because the column holds text as well as numbers",
            DataWarning,
            stacklevel=6,
        )
    return ids


def warn_of_breaks(ids: pl.Series) -> None:
    """Warn of ids with line breaks, which quotes that are not closed make.

    Args:
      ids: raw ids as text, [n].

    Warns:
      DataWarning: there are some.
    """
    broken = ids.filter(ids.str.contains("\n", literal=True))
    if len(broken):
        text = f"{broken[0]!r} is an id with a line break ({len(broken):,} such id(s)): a quote that is not closed?"
        warnings.warn(text, DataWarning, stacklevel=7)


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


def encode_column(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Dense codes of a whole column, by first appearance; the text of a categorical column is tidied first.

    Args:
      ids: integers or categories, [rows], without nulls.

    Returns:
      (i32[rows], ids by code): as `encode` of the ids that `tidy` gives.
    """
    if ids.dtype.is_integer():
        return _encode_integers(ids)
    distinct = ids.unique(maintain_order=True)
    text = distinct.cast(pl.String)
    vocabulary = tidy(text)
    if vocabulary is text:
        codes = np.arange(len(text), dtype=np.int32)
    else:
        codes, vocabulary = encode(vocabulary)
    physical = ids.to_physical().to_numpy()
    code_of = np.zeros(int(physical.max(initial=0)) + 1, np.int32)
    code_of[distinct.to_physical().to_numpy()] = codes
    return code_of[physical], vocabulary


def _encode_integers(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """As `encode`, by a table over the range of the ids where that is small."""
    least, most = ids.min(), ids.max()
    low, high = int(least), int(most)  # pyright: ignore[reportArgumentType]
    if high - low >= 4 * len(ids) + 2**16 or high >= 2**62:
        return encode(ids)
    values = ids.cast(pl.Int64).to_numpy()
    first = np.full(high - low + 1, len(values), np.int32)
    places = (values - low).astype(np.int32)
    # Write backwards: of the assignments to a repeated id, the last one stays.
    first[places[::-1]] = np.arange(len(values) - 1, -1, -1, dtype=np.int32)
    found = np.flatnonzero(first < len(values))
    found = found[np.argsort(first[found])]
    first[found] = np.arange(len(found), dtype=np.int32)
    return first[places], pl.Series(found + low).cast(ids.dtype)
