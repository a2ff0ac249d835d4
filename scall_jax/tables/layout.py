"""Where the coordinates of every entity lie: a pure function of the sizes, O(N) integers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

WIDTHS = (64, 32, 16)
"""Columns worked on at once. A sparse product 32 wide costs no more than one 16 wide, and 64 wide half of four."""


class Layout(NamedTuple):
    """Jagged-diagonal layout of M vectors: sorted by size, coordinate k of the first m_k vectors lies together.

    The M vectors are the N nodes (users, then items) and the shared vectors of users and of items.
    """

    sizes: jax.Array  # i32[M]
    order: jax.Array  # i32[M], vectors from the largest to the smallest
    source: jax.Array  # i32[N], place in `order` of the vector that a node reads: its own, or its side's shared one
    starts: jax.Array  # i32[width + 1], where column k begins in the pool; starts[k + 1] - starts[k] vectors have it
    largest: jax.Array  # i32[2], the largest size of a user and of an item, shared vectors included


def block_widths(maximum: int) -> tuple[int, ...]:
    """Of `WIDTHS`, those that sizes up to `maximum` can use; `maximum` itself where it is below all."""
    fitting = tuple(w for w in WIDTHS if w < 2 * maximum)
    return fitting if maximum > WIDTHS[-1] else (maximum,)


def padded_width(maximum: int) -> int:
    """`maximum` rounded up to whole strips of the widest kind."""
    widest = block_widths(maximum)[0]
    return -(-maximum // widest) * widest


def make_layout(sizes: jax.Array, users: int, maximum: int) -> Layout:
    """Layout of sizes i32[N + 2], the last two being those of the shared vectors; `users` is the users' capacity."""
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
