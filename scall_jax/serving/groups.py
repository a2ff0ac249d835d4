"""Vectors by width, for search engines whose indexes hold vectors of one width each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Group(NamedTuple):
    """The vectors of one width."""

    width: int
    """Columns d; the model's beyond are 0 in all of these vectors, and those beyond the model's are 0 here."""
    rows: np.ndarray
    """i64[n], rows of the model's ids of the side, ascending."""
    vectors: np.ndarray
    """f32[n, d]."""


def by_width(vectors: np.ndarray, widths: Sequence[int] | None = None) -> list[Group]:
    """Vectors in groups of equal width; see `Model.groups`.

    Args:
      vectors: f32[n, D].
      widths: that are wanted; None for those that there are.

    Returns:
      Groups by ascending width, without empty ones.

    Raises:
      ValueError: a width below 1, or no width holds the longest vector.

    >>> found = by_width(np.array([[1.0, 0.0, 0.0], [1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]))
    >>> [(group.width, group.rows.tolist()) for group in found]
    [(1, [0, 2]), (3, [1])]
    >>> by_width(np.array([[1.0, 2.0]]), widths=(4,))[0].vectors.tolist()
    [[1.0, 2.0, 0.0, 0.0]]
    """
    used = vectors != 0
    lengths = np.where(used.any(axis=1), vectors.shape[1] - used[:, ::-1].argmax(axis=1), 1)
    wanted = np.unique(lengths) if widths is None else np.unique(np.array(widths, int))
    if len(lengths) and (wanted[:1] < 1).any():
        raise ValueError(f"widths={widths}: must be at least 1")
    if lengths.max(initial=0) > wanted.max(initial=0):
        raise ValueError(f"widths={widths}: the longest vector has {lengths.max()} columns; name a width that holds it")
    place = wanted[np.searchsorted(wanted, lengths)]
    groups = []
    for width in np.unique(place).tolist():
        rows = np.flatnonzero(place == width)
        padded = np.zeros((len(rows), width), vectors.dtype)
        padded[:, : vectors.shape[1]] = vectors[rows, :width]
        groups.append(Group(width, rows, padded))
    return groups
