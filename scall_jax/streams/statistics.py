"""Statistics of the rows before a cut: counts, recency and popularity of users and items."""

import chex
import numpy as np

from scall_jax.streams.numpy_ops import chunks, counts

HALF_LIVES = (250, 500, 1000, 2000, 4000, 8000, 16000, 32000)
"""Half-lives of the decayed counts, in interactions."""

POPULARITY = ("all", "segment", *(f"decayed-{h}" for h in HALF_LIVES))
"""Names of the rows of `Segment.popularity`."""

_HALF_LIVES_BACK = 40  # rows further back weigh less than 2^-40 and are left out


def recency(user: np.ndarray, item: np.ndarray, users: int, items: int) -> np.ndarray:
    """One plus the position of each entity's last row.

    Args:
      user: i32[rows], users of the rows before the cut.
      item: i32[rows], their items.
      users: capacity of the user side, U.
      items: capacity of the item side, V.

    Returns:
      i32[U + V], 0 for entities without a row.
    """
    chex.assert_rank([user, item], 1)
    chex.assert_equal_shape([user, item])
    chex.assert_type([user, item], int)
    last = np.zeros(users + items, np.int32)
    last_of_users, last_of_items = last[:users], last[users:]
    for rows in chunks(0, len(user)):
        position = np.arange(rows.start + 1, rows.stop + 1, dtype=np.int32)
        # Of the assignments to a repeated index, the last one stays.
        last_of_users[user[rows]] = position
        last_of_items[item[rows]] = position
    return last


def popularity(item: np.ndarray, start: int, total: np.ndarray) -> np.ndarray:
    """Popularity of the items by each statistic of `POPULARITY`.

    Args:
      item: i32[rows], items of the rows before the cut.
      start: first row of the segment.
      total: i32[V], rows of each item before the cut.

    Returns:
      f32[H, V]: all-time counts, counts in the segment's training part, then decayed counts by half-life.
    """
    chex.assert_rank([item, total], 1)
    chex.assert_type([item, total], int)
    items = len(total)
    rows = [total, counts(item[start:], items), *(decayed_counts(item, items, half_life) for half_life in HALF_LIVES)]
    return np.stack([row.astype(np.float32) for row in rows])


def decayed_counts(item: np.ndarray, items: int, half_life: int) -> np.ndarray:
    """How often each item appears, where a row weighs half as much as one so many rows later.

    Args:
      item: i32[rows], items.
      items: of them, V.
      half_life: in rows.

    Returns:
      f64[V].
    """
    cut, decayed = len(item), np.zeros(items)
    for part in chunks(max(0, cut - _HALF_LIVES_BACK * half_life), cut):
        weight = np.exp2(np.arange(part.start - cut + 1, part.stop - cut + 1) / half_life)
        # `add.at` adds row by row, so that the sums do not depend on the chunks.
        np.add.at(decayed, item[part], weight)
    return decayed
