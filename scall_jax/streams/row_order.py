"""Rows before they are cut: which are kept, in which order, and ids by first appearance."""

import numpy as np
import polars as pl

from scall_jax.streams.interactions import Interactions


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
    raise ValueError(f"{rows.source}: nothing is left of the {k}-core: lower k_core")


def in_order(rows: Interactions, shuffle_ties: bool, rng: np.random.Generator) -> Interactions:
    """Rows sorted by time.

    Args:
      rows: interactions in source order.
      shuffle_ties: order rows of equal time at random instead of in source order.
      rng: source of that order.
    """
    if shuffle_ties:
        return rows.take(np.lexsort((rng.permutation(len(rows)), rows.time)))
    if (rows.time[1:] >= rows.time[:-1]).all():
        return rows
    return rows.take(np.argsort(rows.time, kind="stable"))


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
