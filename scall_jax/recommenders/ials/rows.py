"""The coordinates of a table laid out vector after vector, as solving for one vector after another needs them.

The packed table keeps column after column, which suits gradients: all vectors change at once. A solve reads the vectors
of a few neighbours, whole. Laid out by vector, each is one contiguous piece, and the pool is as long as the table: no
coordinate is padded and none is kept twice.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.tables.column_blocks import gather_all, over_column_blocks, write
from scall_jax.tables.layout import Layout
from scall_jax.tables.table import Params, Table


class RowLayout(NamedTuple):
    """Where each node's vector lies in a pool of rows; a node of size 0 has its side's shared vector."""

    first: jax.Array
    """i32[N + 2], first coordinate of each vector, by vector."""
    sizes: jax.Array
    """i32[N + 2], coordinates of each vector; the last two are the shared ones."""
    source: jax.Array
    """i32[N], the vector that each node reads."""


def row_layout(layout: Layout, users: int) -> RowLayout:
    """The row layout of a table's layout.

    Args:
      layout: of the table.
      users: capacity of the users' side; static.

    Returns:
      RowLayout.

    >>> from scall_jax.tables.layout import make_layout
    >>> rows = row_layout(make_layout(jnp.array([3, 0, 2, 1, 0]), users=2, maximum=3), users=2)
    >>> rows.first.tolist(), rows.source.tolist()
    ([0, 3, 3, 5, 6], [0, 3, 2])
    """
    sizes = layout.sizes
    chex.assert_rank(sizes, 1)
    node = jnp.arange(sizes.shape[0] - 2, dtype=jnp.int32)
    shared = jnp.where(node < users, sizes.shape[0] - 2, sizes.shape[0] - 1)
    return RowLayout(jnp.cumsum(sizes) - sizes, sizes, jnp.where(sizes[:-2] > 0, node, shared))


def to_rows(table: Table, buffer: Params, layout: Layout, capacity: int) -> jax.Array:
    """Lay coordinates out by vector.

    Args:
      table: static.
      buffer: of the table.
      layout: of the buffer.
      capacity: coordinates that the table has room for; static.

    Returns:
      f32[capacity + width], zeros beyond the coordinates in use, so that a window may reach beyond the last vector.
    """
    rows = row_layout(layout, table.users)

    def block(first, count, pool):
        at, has = _places(rows, first, count)
        values = gather_all(table, buffer, layout, first, count)
        return pool.at[jnp.where(has, at, pool.shape[0])].set(values, mode="drop")

    return over_column_blocks(table, layout, block, jnp.zeros(capacity + table.width), table.widths[-1:])


def from_rows(table: Table, pool: jax.Array, layout: Layout) -> Params:
    """The inverse of `to_rows`.

    Args:
      table: static.
      pool: f32[capacity + width].
      layout: of the table.

    Returns:
      A buffer of the table.
    """
    chex.assert_rank(pool, 1)
    rows = row_layout(layout, table.users)

    def block(first, count, buffer):
        at, has = _places(rows, first, count)
        return write(table, buffer, layout, first, pool.at[jnp.where(has, at, 0)].get(mode="promise_in_bounds"))

    return over_column_blocks(table, layout, block, table.to_buffer(table.zeros()), table.widths[-1:])


def _places(rows: RowLayout, first: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Places i32[N + 2, count] of the columns first, ..., first + count - 1, and whether a vector has them."""
    column = first + jnp.arange(count, dtype=jnp.int32)
    return rows.first[:, None] + column[None, :], column[None, :] < rows.sizes[:, None]


def windows(pool: jax.Array, first: jax.Array, sizes: jax.Array, width: int) -> jax.Array:
    """Read vectors.

    Args:
      pool: f32[...] with room for `width` coordinates after each place in `first`.
      first: i32[...], first coordinates.
      sizes: i32[...], coordinates.
      width: coordinates to read; static.

    Returns:
      f32[..., width], 0 beyond a vector's size.

    >>> windows(jnp.array([1.0, 2.0, 3.0, 0.0]), jnp.array([0, 2]), jnp.array([2, 1]), 2).tolist()
    [[1.0, 2.0], [3.0, 0.0]]
    """
    chex.assert_equal_shape([first, sizes])
    chex.assert_type([first, sizes], int)
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(first.ndim,), collapsed_slice_dims=(), start_index_map=(0,))
    found = jax.lax.gather(pool, first[..., None], numbers, (width,), mode="promise_in_bounds")
    column = jnp.arange(width).reshape(*[1] * first.ndim, width)
    return jnp.where(column < sizes[..., None], found, 0.0)


def write_windows(pool: jax.Array, first: jax.Array, sizes: jax.Array, values: jax.Array) -> jax.Array:
    """Overwrite vectors.

    Args:
      pool: f32[...].
      first: i32[B], first coordinates.
      sizes: i32[B], coordinates; 0 leaves the pool as it is.
      values: f32[B, width]; what lies beyond a vector's size is dropped.

    Returns:
      The pool.
    """
    chex.assert_equal_shape([first, sizes])
    column = jnp.arange(values.shape[1], dtype=jnp.int32)
    at = jnp.where(column[None, :] < sizes[:, None], first[:, None] + column[None, :], pool.shape[0])
    return pool.at[at].set(values, mode="drop")
