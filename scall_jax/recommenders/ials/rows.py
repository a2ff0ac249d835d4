"""The coordinates of a table laid out vector after vector, as solving for one vector after another needs them.

The packed table keeps column after column, which suits gradients: all vectors change at once. A solve reads the vectors
of a few neighbours, whole. Laid out by vector, each is one contiguous piece, and the pool is as long as the table: no
coordinate is padded and none is kept twice. On several devices each has an equal part of the pool, whatever vectors end
there.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.devices import ONE, MeshConfig, ask, number, part_of, places
from scall_jax.ops.indexing import dynamic_slice, dynamic_update_slice, take
from scall_jax.tables.column_blocks import gather_all, shared_max, write
from scall_jax.tables.layout import Layout, column_and_rank
from scall_jax.tables.table import Params, Table

_AT_ONCE = 2**14
"""Coordinates that a device asks the others for at once."""


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


def to_rows(table: Table, buffer: Params, layout: Layout, capacity: int, mesh: MeshConfig = ONE) -> jax.Array:
    """Lay coordinates out by vector.

    Args:
      table: static; on several devices a packed one.
      buffer: of the table, or this device's part of it.
      layout: of the buffer.
      capacity: coordinates that the table has room for; static.
      mesh: devices that have a part of the buffer each; static.

    Returns:
      f32[capacity + width], zeros beyond the coordinates in use, so that a window may reach beyond the last vector; or
      this device's part of it.
    """
    rows = row_layout(layout, table.users)
    if mesh.devices > 1:
        return _moved(mesh, buffer, pool_part(table, capacity, mesh), _in_columns(rows, layout))

    def one(column, pool):
        has = column < rows.sizes
        values = gather_all(table, buffer, layout, column, 1)[:, 0]
        return pool.at[jnp.where(has, rows.first + column, pool.shape[0])].set(values, mode="drop")

    # A column at a time: more of them would be as many arrays as long as there are vectors.
    return jax.lax.fori_loop(0, _used(layout), one, jnp.zeros(capacity + table.width))


def _used(layout: Layout) -> jax.Array:
    """Columns that some vector has, i32[]."""
    return shared_max(layout.largest).max()


def pool_part(table: Table, capacity: int, mesh: MeshConfig) -> int:
    """Coordinates of a device's part of a pool f32[capacity + width]."""
    return -(-(capacity + table.width) // mesh.devices)


def from_rows(table: Table, pool: jax.Array, layout: Layout, mesh: MeshConfig = ONE, length: int = 0) -> Params:
    """The inverse of `to_rows`.

    Args:
      table: static.
      pool: f32[capacity + width], or this device's part of it.
      layout: of the table.
      mesh: devices that have a part of the pool each; static.
      length: of this device's part of the buffer, where there are several; static.

    Returns:
      A buffer of the table, or this device's part of it.
    """
    chex.assert_rank(pool, 1)
    rows = row_layout(layout, table.users)
    if mesh.devices > 1:
        return _moved(mesh, pool, length, _in_rows(rows, layout))

    def one(column, buffer):
        at = jnp.where(column < rows.sizes, rows.first + column, 0)
        return write(table, buffer, layout, column, take(pool, at)[:, None])

    return jax.lax.fori_loop(0, _used(layout), one, table.to_buffer(table.zeros()))


_VECTORS_AT_ONCE = 8192
"""Vectors that are changed together: their coordinates stay in the caches."""

Change = Callable[[jax.Array, jax.Array], jax.Array]
"""From vectors f32[B, width] and their sizes i32[B] to vectors."""
_Source = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Places i32[n] of coordinates in one array -> their places in the other one, and whether there are such ones."""


def _moved(mesh: MeshConfig, part: jax.Array, length: int, source: _Source) -> jax.Array:
    """This device's part f32[length] of an array whose coordinates lie in another order, `part` being of that."""
    count = min(_AT_ONCE, length)
    own = places(mesh, length)

    def block(index: jax.Array, moved: jax.Array) -> jax.Array:
        # A last block that would end beyond the part is moved back.
        first = jnp.minimum(index * count, length - count)
        at, exists = source(dynamic_slice(own, (first,), (count,)))
        found = ask(mesh, jnp.where(exists, at, 0), functools.partial(part_of, mesh, part))
        return dynamic_update_slice(moved, jnp.where(exists, found, 0.0), (first,))

    return jax.lax.fori_loop(0, -(-length // count), block, jnp.zeros(length))


def _in_columns(rows: RowLayout, layout: Layout) -> _Source:
    """Where the coordinates at places of the pool lie in a packed table."""
    rank = jnp.zeros_like(layout.order).at[layout.order].set(jnp.arange(layout.order.shape[0], dtype=jnp.int32))

    def source(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Of vectors that begin at one place, the last one alone may have coordinates.
        vector = jnp.searchsorted(rows.first, at, side="right").astype(jnp.int32) - 1
        column = at - take(rows.first, vector)
        exists = column < take(rows.sizes, vector)
        return take(layout.starts, jnp.where(exists, column, 0)) + take(rank, vector), exists

    return source


def _in_rows(rows: RowLayout, layout: Layout) -> _Source:
    """Where the coordinates at places of a packed table lie in the pool."""

    def source(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        exists, column, rank = column_and_rank(layout.starts, at)
        return take(rows.first, take(layout.order, rank)) + column, exists

    return source


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


def own_windows(mesh: MeshConfig, pool: jax.Array, first: jax.Array, sizes: jax.Array, width: int) -> jax.Array:
    """What this device's part of a pool has of some vectors; zeros for coordinates in other parts.

    Args:
      mesh: static.
      pool: f32[...], this device's part.
      first, sizes, width: as in `windows`; places in the whole pool.

    Returns:
      f32[..., width].
    """
    if mesh.devices == 1:
        return windows(pool, first, sizes, width)
    column = jnp.arange(width, dtype=jnp.int32).reshape(*[1] * first.ndim, width)
    has = column < sizes[..., None]
    return jnp.where(has, part_of(mesh, pool, jnp.where(has, first[..., None] + column, 0)), 0.0)


def changed(
    mesh: MeshConfig, pool: jax.Array, rows: RowLayout, which: jax.Array, change: Change, width: int
) -> jax.Array:
    """Change vectors one by one. On several devices each reads the ends of the parts beside its own, and no more.

    Args:
      mesh: static.
      pool: f32[...] of `to_rows`, or this device's part of it.
      rows: where vectors lie.
      which: bool[N + 2], vectors to change.
      change: from vectors f32[B, width] and their sizes i32[B] to vectors.
      width: the largest size; static.

    Returns:
      The pool, or this device's part of it.
    """
    begin, sizes = number(mesh) * pool.shape[0], jnp.where(which, rows.sizes, 0)
    vectors, count = sizes.shape[0], min(_VECTORS_AT_ONCE, sizes.shape[0])
    # A vector may begin before this part and end after it.
    beside = jnp.arange(width, dtype=jnp.int32)
    around = begin + jnp.concatenate([beside - width, beside + pool.shape[0]])
    left, right = jnp.split(ask(mesh, around, functools.partial(part_of, mesh, pool)), 2)
    extended = jnp.concatenate([left, pool, right])
    first_own = jnp.searchsorted(rows.first + rows.sizes, begin, side="right").astype(jnp.int32)
    end_own = jnp.searchsorted(rows.first, begin + pool.shape[0], side="left").astype(jnp.int32)

    def block(index: jax.Array, pool: jax.Array) -> jax.Array:
        vector = first_own + index * count + jnp.arange(count, dtype=jnp.int32)
        own, vector = vector < end_own, jnp.minimum(vector, vectors - 1)
        first, size = take(rows.first, vector), jnp.where(own, take(sizes, vector), 0)
        found = windows(extended, jnp.where(own, first - begin + width, 0), size, width)
        return write_windows(pool, first, size, change(found, size), mesh)

    # Devices have different numbers of blocks: nothing is exchanged in them.
    return jax.lax.fori_loop(0, -(-(end_own - first_own) // count), block, pool)


def write_windows(
    pool: jax.Array, first: jax.Array, sizes: jax.Array, values: jax.Array, mesh: MeshConfig = ONE
) -> jax.Array:
    """Overwrite vectors.

    Args:
      pool: f32[...], or this device's part of it.
      first: i32[B], first coordinates.
      sizes: i32[B], coordinates; 0 leaves the pool as it is.
      values: f32[B, width]; what lies beyond a vector's size, or in another part, is dropped.
      mesh: devices that have a part of the pool each; static.

    Returns:
      The pool.
    """
    chex.assert_equal_shape([first, sizes])
    column = jnp.arange(values.shape[1], dtype=jnp.int32)
    has = column[None, :] < sizes[:, None]
    if mesh.devices > 1:
        first = first - number(mesh) * pool.shape[0]
        has &= first[:, None] + column[None, :] >= 0
    at = jnp.where(has, first[:, None] + column[None, :], pool.shape[0])
    return pool.at[at].set(values, mode="drop")
