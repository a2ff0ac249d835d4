"""Interactions: who met which item when, as dense codes with their vocabularies."""

import dataclasses

import numpy as np
import polars as pl


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Rows of (user, item, time) in source order, with raw ids kept apart.

    Attributes:
      user, item: i32[rows], codes into the vocabularies.
      time: i64[rows], milliseconds since 1970-01-01 UTC.
      user_ids, item_ids: raw ids by code, integers or strings, in order of first appearance in the source.
      source: name used in messages.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    source: str

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> "Interactions":
        """The given rows (indices or mask), vocabularies unchanged."""
        return dataclasses.replace(self, user=self.user[rows], item=self.item[rows], time=self.time[rows])


def encode(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Dense codes i32[rows] by first appearance, and the ids by code."""
    vocabulary = ids.unique(maintain_order=True)
    codes = pl.DataFrame({"id": ids}).join(
        pl.DataFrame({"id": vocabulary, "code": np.arange(len(vocabulary), dtype=np.int32)}),
        on="id",
        how="left",
        maintain_order="left",
    )
    return codes["code"].to_numpy(), vocabulary


def from_arrays(user, item, time_ms, source: str = "arrays") -> Interactions:
    """Interactions from equally long columns; `time_ms` in milliseconds since 1970, or datetime64.

    Raises:
      ValueError: lengths differ, an id is null or NaN, or a time is no time.
    """
    user, item = pl.Series("user", user), pl.Series("item", item)
    time = np.asarray(time_ms)
    time = time if time.dtype.kind in "iufM" else np.asarray(time_ms, np.int64)
    if np.isnat(time).any() if time.dtype.kind == "M" else not np.isfinite(time).all():
        raise ValueError(f"{source}: a time is missing")
    time = time.astype("datetime64[ms]" if time.dtype.kind == "M" else np.int64).astype(np.int64)
    for ids in (user, item):
        missing = ids.is_null() | ids.is_nan() if ids.dtype.is_float() else ids.is_null()
        if missing.any():
            raise ValueError(f"{source}, row {missing.arg_true()[0]}, column {ids.name!r}: the id is missing")
    if not len(user) == len(item) == len(time):
        raise ValueError(f"{source}: {len(user)} users, {len(item)} items, {len(time)} times: lengths must agree")
    user_codes, user_ids = encode(user)
    item_codes, item_ids = encode(item)
    return Interactions(user_codes, item_codes, time, user_ids, item_ids, source)
