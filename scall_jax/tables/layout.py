"""Where the coordinates of every vector lie: a pure function of the sizes, O(N) integers."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import take

WIDTHS = (64, 32, 16)
"""Columns of a block. A sparse product 32 columns wide costs no more than one 16 wide, and one 64 wide half of four."""


class Layout(NamedTuple):
    """Jagged-diagonal layout of M vectors: sorted by size, coordinate k of the first m_k vectors lies together.

    The M = N + 2 vectors are those of the N nodes (users, then items) and the shared vectors of users and of items.
    """

    sizes: jax.Array
    """i32[M], coordinates of each vector."""
    order: jax.Array
    """i32[M], vectors from the largest to the smallest."""
    source: jax.Array
    """i32[N], place in `order` of the vector that a node reads: its own, or its side's shared one if its size is 0."""
    starts: jax.Array
    """i32[width + 1], where column k begins in the pool; starts[k + 1] - starts[k] vectors have it."""
    largest: jax.Array
    """i32[2], the largest size of a user and of an item, shared vectors included."""


def block_widths(maximum: int) -> tuple[int, ...]:
    """Widths of the column blocks of a table, descending.

    Args:
      maximum: the largest size of an entity, in coordinates.

    Returns:
      Those of `WIDTHS` that sizes up to `maximum` can fill by more than half; `maximum` itself if it is below all.

    >>> block_widths(128), block_widths(40), block_widths(5)
    ((64, 32, 16), (64, 32, 16), (5,))
    """
    fitting = tuple(w for w in WIDTHS if w < 2 * maximum)
    return fitting if maximum > WIDTHS[-1] else (maximum,)


def padded_width(maximum: int) -> int:
    """`maximum` rounded up to whole column blocks of the largest width.

    >>> padded_width(128), padded_width(70), padded_width(5)
    (128, 128, 5)
    """
    widest = block_widths(maximum)[0]
    return -(-maximum // widest) * widest


def make_layout(sizes: jax.Array, users: int, maximum: int) -> Layout:
    """Layout of vectors by their sizes.

    Args:
      sizes: i32[N + 2], coordinates of each vector, 0 to `maximum`; the last two are the shared vectors'.
      users: capacity of the users' side: nodes 0 to users - 1 are users, the others items.
      maximum: the largest size of an entity; static.

    Returns:
      Layout of the N + 2 vectors. The pool that it describes is `sizes.sum()` coordinates long.

    Two users of sizes 3 and 0, one item of size 2, and a shared user vector of size 1, which the second user reads:

    >>> layout = make_layout(jnp.array([3, 0, 2, 1, 0]), users=2, maximum=3)
    >>> layout.order.tolist(), layout.source.tolist()
    ([0, 2, 3, 1, 4], [0, 2, 1])
    >>> layout.starts.tolist(), layout.largest.tolist()
    ([0, 3, 5, 6], [3, 2])
    """
    chex.assert_rank(sizes, 1)
    chex.assert_type(sizes, jnp.int32)
    width = padded_width(maximum)
    index = jnp.arange(sizes.shape[0], dtype=jnp.int32)
    order = jax.lax.sort((-sizes, index), num_keys=2)[1]
    position = jnp.zeros_like(index).at[order].set(index, unique_indices=True, wrap_negative_indices=False)
    nodes = sizes.shape[0] - 2
    shared = jnp.where(index[:nodes] < users, position[nodes], position[nodes + 1])
    histogram = jnp.zeros(width + 1, jnp.int32).at[sizes].add(1, wrap_negative_indices=False)
    at_least = jnp.cumsum(histogram[::-1])[::-1]  # vectors of size k or more
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(at_least[1:])])
    sides = sizes[:users], sizes[users:nodes]
    largest = jnp.stack([side.max(initial=own) for side, own in zip(sides, sizes[nodes:], strict=True)])
    return Layout(sizes, order, jnp.where(sizes[:nodes] > 0, position[:nodes], shared), starts, largest)


def column_and_rank(starts: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which column each coordinate of the pool is in, and which of the column's vectors it belongs to.

    Args:
      starts: i32[K + 1], where K adjacent columns begin, and where the last of them ends: `Layout.starts`, or a part of
        it.
      at: i32[...] >= 0, places in the pool.

    Returns:
      bool[...], whether a coordinate of these columns lies there; i32[...], its column, from 0 for the first of the K;
      i32[...], the place of its vector in `Layout.order`. Where none lies, the last two are 0.

    The first column has three vectors, the second two and the third one:

    >>> exists, column, rank = column_and_rank(jnp.array([0, 3, 5, 6]), jnp.array([2, 3, 5, 6]))
    >>> exists.tolist(), column.tolist(), rank.tolist()
    ([True, True, True, False], [0, 1, 2, 0], [2, 0, 0, 0])
    """
    chex.assert_rank(starts, 1)
    chex.assert_type([starts, at], jnp.int32)
    exists = (at >= starts[0]) & (at < starts[-1])
    # Of columns that begin at one place, the last one alone may have vectors.
    found = jnp.searchsorted(starts, jnp.where(exists, at, starts[0]), side="right").astype(jnp.int32) - 1
    column = jnp.where(exists, found, 0)
    return exists, column, jnp.where(exists, at - take(starts, column), 0)
