"""Numpy operations on columns of rows, in chunks where numpy would need 64-bit copies of whole columns."""

from collections.abc import Iterator

import chex
import numpy as np

CHUNK = 2**16
"""Rows worked on together."""


def chunks(start: int, stop: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices of at most so many rows that cover the rows [start, stop).

    Args:
      start: first row.
      stop: the row after the last one.
      size: of a slice.

    Returns:
      An iterator of slices with start and stop, in order.
    """
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def pad(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """Extend a vector.

    Args:
      values: [n], any dtype.
      length: length of the result, at least n.
      fill: value of the added entries.

    Returns:
      [length], of the dtype of `values`.
    """
    chex.assert_rank(values, 1)
    out = np.full(length, fill, values.dtype)
    out[: len(values)] = values
    return out


def counts(values: np.ndarray, length: int) -> np.ndarray:
    """How often each of 0, ..., length - 1 occurs.

    Args:
      values: integers in [0, length), [n].
      length: length of the result.

    Returns:
      i32[length].
    """
    chex.assert_rank(values, 1)
    chex.assert_type(values, int)
    total = np.zeros(length, np.int32)
    # Each chunk takes a pass over all places, too.
    for rows in chunks(0, len(values), max(CHUNK, length)):
        total += np.bincount(values[rows], minlength=length).astype(np.int32)
    return total


def distinct(values: np.ndarray) -> np.ndarray:
    """The distinct values, ascending: `np.unique` by a sort, which is many times as fast as by a table of hashes.

    Args:
      values: [n].

    Returns:
      [m], of the dtype of `values`.

    >>> distinct(np.array([3, 1, 3])).tolist()
    [1, 3]
    """
    chex.assert_rank(values, 1)
    ordered = np.sort(values)
    new = np.ones(len(ordered), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new]


def sorted_rows(major: np.ndarray, minor: np.ndarray) -> np.ndarray:
    """Positions in the order of (major, minor, position).

    Args:
      major: integers >= 0, [rows].
      minor: integers >= 0, [rows].

    Returns:
      i32[rows].
    """
    chex.assert_rank([major, minor], 1)
    chex.assert_equal_shape([major, minor])
    chex.assert_type([major, minor], int)
    rows = len(major)
    bits, minor_bits = max(rows - 1, 0).bit_length(), int(minor.max(initial=0)).bit_length()
    if int(major.max(initial=0)).bit_length() + minor_bits + bits > 63:
        return np.lexsort((minor, major)).astype(np.int32)
    # One 64-bit number per row is sorted in place, which needs no second array and is faster than an indirect sort.
    key = major.astype(np.int64)
    for shift, low in ((minor_bits, minor), (bits, np.arange(rows, dtype=np.int32))):
        key <<= shift
        key |= low
    key.sort()
    key &= (1 << bits) - 1
    return key.astype(np.int32)
