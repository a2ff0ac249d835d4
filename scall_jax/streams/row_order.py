"""Rows before they are cut: which are kept, in which order, and ids by first appearance."""

import warnings

import numpy as np
import polars as pl

from scall_jax.streams.interactions import Interactions
from scall_jax.streams.wording import DataWarning, option

_DAY = 86_400_000


def k_core(rows: Interactions, k: int) -> Interactions:
    """Rows of users and items that have at least `k` rows, removed repeatedly until all of them do.

    Args:
      rows: interactions in any order.
      k: least number of rows of each user and of each item.

    Raises:
      ValueError: nothing is left.
    """
    while len(rows):
        keep = np.bincount(rows.user)[rows.user] >= k
        keep &= np.bincount(rows.item)[rows.item] >= k
        if keep.all():
            return rows
        rows = rows.take(keep)
    raise ValueError(f"{rows.source}: nothing is left of the {k}-core: lower {option('k_core')}")


def in_order(rows: Interactions, ties: np.random.Generator | None = None) -> Interactions:
    """Rows sorted by time.

    Args:
      rows: interactions in source order.
      ties: source of a random order of rows of equal time; None for the source's order.
    """
    if not (rows.time[1:] >= rows.time[:-1]).all():
        rows = rows.take(np.argsort(rows.time, kind="stable"))
    if ties is None:
        return rows
    # Each row of the sorted stream draws a number of its own, which no later row changes.
    return rows.take(np.lexsort((ties.random(len(rows)), rows.time)))


def warn_of_ties(rows: Interactions) -> None:
    """Warn where times hardly order the rows, so that the order of the source decides what is later.

    Args:
      rows: sorted by time.

    Warns:
      DataWarning: all rows are at one time, or times are whole days with several rows on each.
    """
    if len(rows) < 2:
        return
    first, last, way = int(rows.time[0]), int(rows.time[-1]), f"{option('shuffle_ties')} orders them at random"
    if first == last:
        text = f"all {len(rows):,} rows are at one time, so that their order is that of the source: {way}"
        warnings.warn(f"{rows.source}: {text}", DataWarning, stacklevel=4)
        return
    granular = all(not ((rows.time[part] - first) % _DAY).any() for part in (slice(1000), slice(None)))
    days = int((np.diff(rows.time) > 0).sum()) + 1 if granular else len(rows)
    if 2 * days <= len(rows):
        text = f"times are whole days of {len(rows) / days:,.1f} rows, whose order is that of the source: {way}"
        warnings.warn(f"{rows.source}: {text}", DataWarning, stacklevel=4)


def by_appearance(codes: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Number the codes of one side by their first appearance.

    Args:
      codes: i32[rows], places in `ids`.
      ids: raw ids by code; some may not appear.

    Returns:
      (i32[rows], ids by new code), without the ids that do not appear.
    """
    rows = len(codes)
    first = np.full(len(ids), rows, np.int32)
    # Write backwards: of the assignments to a repeated code, the last one stays.
    first[codes[::-1]] = np.arange(rows - 1, -1, -1, dtype=np.int32)
    old = np.argsort(first, kind="stable")[: int((first < rows).sum())].astype(np.int32)
    if np.array_equal(old, np.arange(len(ids))):
        return codes, ids
    new = np.full(len(ids), -1, np.int32)
    new[old] = np.arange(len(old), dtype=np.int32)
    return new[codes], ids.gather(old)
