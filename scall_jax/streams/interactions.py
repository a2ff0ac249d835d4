"""Interactions: who met which item when, as dense codes with their vocabularies."""

import dataclasses
from typing import Any

import chex
import numpy as np
import polars as pl

from scall_jax.streams.ids import encode, whole_numbers
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.times import LAST_MILLISECOND, shown


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Rows of (user, item, time) in source order, with raw ids kept apart."""

    user: np.ndarray
    """i32[rows], codes of users: places in `user_ids`."""
    item: np.ndarray
    """i32[rows], codes of items: places in `item_ids`."""
    time: np.ndarray
    """i64[rows], milliseconds since 1970-01-01 UTC."""
    user_ids: pl.Series
    """Raw user ids by code, integers or strings, in order of first appearance in the source."""
    item_ids: pl.Series
    """Raw item ids by code."""
    source: str
    """Name used in messages."""
    notes: tuple[str, ...] = ()
    """What reading a file took for granted, such as columns without a header, in words."""
    read_options: ReadOptions | None = None
    """What the caller said about the file; None for rows that were not read from one."""

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        span = f", {shown(self.time.min())} to {shown(self.time.max())}" if len(self) else ""
        sizes = f"{len(self):,} rows, {len(self.user_ids):,} users, {len(self.item_ids):,} items"
        return "\n".join([f"Interactions({self.source}: {sizes}{span})", *self.notes])

    def take(self, rows: np.ndarray) -> "Interactions":
        """Some of the rows, with unchanged vocabularies.

        Args:
          rows: indices i64[n] or a mask bool[rows].
        """
        chex.assert_rank(rows, 1)
        return dataclasses.replace(self, user=self.user[rows], item=self.item[rows], time=self.time[rows])


def from_arrays(user: Any, item: Any, time_ms: Any, source: str = "arrays") -> Interactions:
    """Interactions from equally long columns.

    Args:
      user: raw user ids [rows], integers or strings, as anything that makes a polars Series. Floats that are whole
        numbers are these integers, as in files.
      item: raw item ids [rows].
      time_ms: times [rows] in milliseconds since 1970-01-01 UTC, or datetime64.
      source: name used in messages.

    Returns:
      The rows in the given order.

    Raises:
      ValueError: lengths differ, an id is null, NaN or no whole number, a time is missing, or it is after the year
        9999, as microseconds and nanoseconds are that are taken for milliseconds.

    >>> rows = from_arrays(["ann", "bob", "ann"], [10, 10, 20], [1000, 2000, 3000])
    >>> rows.user.tolist(), rows.item.tolist(), rows.item_ids.to_list()
    ([0, 1, 0], [0, 0, 1], [10, 20])
    """
    users, items = pl.Series("user", user), pl.Series("item", item)
    time = np.asarray(time_ms)
    time = time if time.dtype.kind in "iufM" else np.asarray(time_ms, np.int64)
    if np.isnat(time).any() if time.dtype.kind == "M" else not np.isfinite(time).all():
        raise ValueError(f"{source}: a time is missing")
    late = np.flatnonzero(time > LAST_MILLISECOND) if time.dtype.kind != "M" else np.zeros(0, int)
    if len(late):
        raise ValueError(
            f"{source}, row {late[0]}: {time[late[0]]} milliseconds since 1970 is after the year 9999: give dates, or "
            "integers in milliseconds"
        )
    time = time.astype("datetime64[ms]" if time.dtype.kind == "M" else np.int64).astype(np.int64)
    for ids in (users, items):
        missing = ids.is_null() | ids.is_nan() if ids.dtype.is_float() else ids.is_null()
        if missing.any():
            raise ValueError(f"{source}, row {missing.arg_true()[0]}, column {ids.name!r}: the id is missing")
    if not len(users) == len(items) == len(time):
        raise ValueError(f"{source}: {len(users)} users, {len(items)} items, {len(time)} times: lengths must agree")
    user_codes, user_ids = encode(whole_numbers(users, source))
    item_codes, item_ids = encode(whole_numbers(items, source))
    return Interactions(user_codes, item_codes, time, user_ids, item_ids, source)
