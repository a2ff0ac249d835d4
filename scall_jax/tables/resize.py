"""Parameters of a table for new sizes: initial values, and what survives from the sizes before."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.keys import Purpose, by_side, derive
from scall_jax.ops.sums import padded_product, padded_sum_by_side
from scall_jax.tables.column_blocks import gather, gather_all, over_column_blocks, write
from scall_jax.tables.layout import Layout
from scall_jax.tables.table import Table

ROTATIONS = ("none", "blocks", "full")
"""What embeddings are turned by before they are resized; see `principal_axes`."""

_EXACT = jax.lax.Precision.HIGHEST
"""Without it an accelerator rounds products to fewer bits than float32 has, and a rotation changes inner products."""


class ResizeScales(NamedTuple):
    """Factors of `resize`; static."""

    shrink: float = 1.0
    """Factor on coordinates that are kept. Below 1 it lets the next fit move away from the old optimum."""
    init_std: float = 0.1
    """Standard deviation of the vectors of new nodes, and of a shared vector that had no coordinates."""
    grow_std: float = 0.01
    """Standard deviation of coordinates that a known vector did not have before."""


_SCALES = ResizeScales()
_FILLED_AT_ONCE = 4
"""Columns that parameters are filled by."""


def init(table: Table, key: jax.Array, layout: Layout, std: float) -> jax.Array:
    """Random parameters for a layout.

    Args:
      table: static.
      key: random key.
      layout: of the table.
      std: standard deviation.

    Returns:
      Parameters of the table, independent and normal wherever a vector has a coordinate, 0 elsewhere.
    """
    chex.assert_shape(layout.sizes, (table.nodes + 2,))
    return _fill(table, layout, lambda first, count: std * _noise(table, key, first, count))


def _noise(table, key, first, count):
    """f32[M, count], drawn by column, so that a column's noise does not depend on the block that it is written in."""

    def noise(column):
        column_key = derive(key, Purpose.COLUMN, column)
        of_nodes = by_side(jax.random.normal, column_key, table.users, table.nodes - table.users)
        return jnp.concatenate([of_nodes, jax.random.normal(derive(column_key, Purpose.SHARED), (2,))])

    return jax.vmap(noise)(first + jnp.arange(count, dtype=jnp.int32)).T


def _fill(
    table: Table, layout: Layout, values: Callable[[jax.Array, int], jax.Array], widths: tuple[int, ...] | None = None
) -> jax.Array:
    """Parameters by values(first column, columns) -> f32[M, columns].

    One width of blocks, because this runs once a segment and each width is compiled by itself; a narrow one, because
    what a block draws is many times as large as the table where most vectors are short.
    """

    def block(first, count, buffer):
        return write(table, buffer, layout, first, values(first, count))

    narrow = (_FILLED_AT_ONCE,) if table.width % _FILLED_AT_ONCE == 0 else table.widths[-1:]
    return table.from_buffer(over_column_blocks(table, layout, block, table.to_buffer(table.zeros()), widths or narrow))


def resize(
    table: Table,
    key: jax.Array,
    params: jax.Array,
    old: Layout,
    new: Layout,
    known: jax.Array,
    *,
    axes: jax.Array | None = None,
    scales: ResizeScales = _SCALES,
) -> jax.Array:
    """Carry parameters from one layout to the next.

    Args:
      table: static; both layouts are its own.
      key: random key, for what is new.
      params: parameters of the old layout.
      old: layout of `params`.
      new: layout of the result.
      known: bool[N], nodes that existed under the old layout.
      axes: optional f32[width, width], orthogonal: embeddings are turned by it first, so that leading coordinates are
        the important ones (see `principal_axes`). Inner products of whole vectors do not change. Those of vectors that
        are then cut do, and with axes that mix coordinates across one of the old sizes, this includes every vector of
        that size, also where its new size is the same.
      scales: factors on what is kept and what is new; static, `ResizeScales()` if not given.

    Returns:
      Parameters of the new layout. A node keeps its leading min(old, new) coordinates; one that read its side's shared
      vector starts from that. The shared vectors keep theirs. What was cut off is gone.

    A user grows from one coordinate to two, an item shrinks from two to one:

    >>> from scall_jax.tables import packed
    >>> table = packed(3, users=1, items=1, maximum=2)
    >>> old, new = table.layout(jnp.array([1, 2, 0, 0])), table.layout(jnp.array([2, 1, 0, 0]))
    >>> exact = ResizeScales(shrink=0.5, grow_std=0.0)
    >>> params = resize(table, jax.random.key(0), jnp.array([4.0, 6.0, 8.0]), old, new, jnp.ones(2, bool), scales=exact)
    >>> table.lookup(params, new, jnp.arange(2)).tolist()
    [[3.0, 0.0], [2.0, 0.0]]
    """
    chex.assert_shape(known, (table.nodes,))
    chex.assert_type(known, bool)
    chex.assert_shape([old.sizes, new.sizes], (table.nodes + 2,))
    if axes is not None:
        chex.assert_shape(axes, (table.width, table.width))
    buffer = table.to_buffer(params)
    exists = jnp.concatenate([known, old.sizes[-2:] > 0])[:, None]
    had = jnp.concatenate([jnp.where(known, old.sizes[:-2], 0), old.sizes[-2:]])[:, None]

    def values(first, count):
        coordinate = first + jnp.arange(count, dtype=jnp.int32)
        noise = _noise(table, key, first, count)
        kept = scales.shrink * _rotated(table, buffer, old, axes, first, count)
        grown = jnp.where(coordinate[None, :] >= had, scales.grow_std * noise, 0.0)
        return jnp.where(exists, kept + grown, scales.init_std * noise)

    # A rotation reads all columns for each block, so that few wide ones are better.
    return _fill(table, new, values, None if axes is None else table.widths[-1:])


def _rotated(table: Table, buffer, layout: Layout, axes: jax.Array | None, first, count: int) -> jax.Array:
    """Columns of all embeddings x `axes`, f32[M, count]; of the embeddings themselves without axes."""
    if axes is None:
        return gather_all(table, buffer, layout, first, count)
    rotation = axes

    def add(source, width, total):
        part = jax.lax.dynamic_slice(rotation, (source, first), (width, count))
        return total + jnp.matmul(gather_all(table, buffer, layout, source, width), part, precision=_EXACT)

    return over_column_blocks(table, layout, add, jnp.zeros((table.nodes + 2, count)), table.widths[:1])


def principal_axes(
    table: Table, params: jax.Array, layout: Layout, weight: jax.Array, rotation: str = "full"
) -> jax.Array:
    """Principal axes of the embeddings' weighted second moment, largest first.

    The moment is added up block by block of columns, so that no array of nodes x width exists.

    Args:
      table: static.
      params: parameters of the table.
      layout: of the parameters.
      weight: f32[N], interactions of each node; 0 for nodes that do not exist.
      rotation: static. `full`: axes of all coordinates together, in whose order a prefix keeps the most energy; vectors
        of size m are turned out of their first m coordinates, so that those shorter than the longest lose a part even
        where they keep their size. `blocks`: axes of the coordinates from one size in use to the next, block by block,
        so that each prefix of such a size stays a prefix, and vectors that keep their size lose nothing.

    Returns:
      f32[width, width], orthogonal: column k is the k-th axis. Embeddings x axes have uncorrelated coordinates of
      descending energy, within each block for `blocks`; coordinates beyond the largest size come last.

    Raises:
      ValueError: another rotation.
    """
    if rotation not in ("blocks", "full"):
        raise ValueError(f"rotation={rotation!r} has no axes: choose blocks or full")
    chex.assert_shape(weight, (table.nodes,))
    chex.assert_type(weight, jnp.float32)
    moment = _second_moment(
        table, table.to_buffer(params), layout, weight / jnp.maximum(padded_sum_by_side(weight, table.users), 1e-30)
    )
    if rotation == "blocks":
        return axes_by_block(moment, size_blocks(layout))
    _, vectors = jnp.linalg.eigh(moment)  # ascending eigenvalues
    return vectors[:, ::-1]


def _second_moment(table: Table, buffer: jax.Array, layout: Layout, weight: jax.Array) -> jax.Array:
    """Sum of weight x outer product over the nodes' embeddings, f32[width, width], symmetric."""
    widest, width = table.widths[:1], table.width
    sides = slice(None, table.users), slice(table.users, None)

    def row(i, count, moment):
        left = gather(table, buffer, layout, i, count) * weight[:, None]

        def cell(j, count, moment):
            right = gather(table, buffer, layout, j, count)
            part = sum(padded_product(left[side], right[side]) for side in sides)
            return jax.lax.dynamic_update_slice(moment, part, (i, j))

        return over_column_blocks(table, layout, cell, moment, widest)

    moment = over_column_blocks(table, layout, row, jnp.zeros((width, width)), widest)
    return (moment + moment.T) / 2


def size_blocks(layout: Layout) -> jax.Array:
    """Number of the block of each coordinate, where a block ends at each size in use.

    Args:
      layout: of a table.

    Returns:
      i32[width], from 0, never falling.

    >>> from scall_jax.tables.layout import make_layout
    >>> size_blocks(make_layout(jnp.array([4, 1, 4, 3, 0, 0]), users=2, maximum=5)).tolist()
    [0, 1, 1, 2, 3]
    """
    vectors_with = jnp.diff(layout.starts)
    ends = jnp.concatenate([jnp.zeros(1, bool), jnp.diff(vectors_with) != 0])
    return jnp.cumsum(ends.astype(jnp.int32))


def axes_by_block(moment: jax.Array, block: jax.Array) -> jax.Array:
    """Principal axes of a second moment within blocks of coordinates.

    One eigendecomposition serves for all blocks: moments between blocks are left out, and each block is scaled to
    trace 1 and moved by 2 to a level of its own, so that its eigenvalues lie in a range that no other block's do. The
    error of float32 grows with the number of blocks. It leaves traces of other blocks in the axes, which are removed.

    Args:
      moment: f32[width, width], symmetric, no negative eigenvalues.
      block: i32[width], number of the block of each coordinate, from 0, never falling.

    Returns:
      f32[width, width], orthogonal, 0 between coordinates of different blocks; descending eigenvalues within each.

    >>> moment = jnp.array([[1.0, 0.9, 0.0], [0.9, 2.0, 0.0], [0.0, 0.0, 3.0]])
    >>> jnp.abs(axes_by_block(moment, jnp.array([0, 1, 1]))).round(3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    chex.assert_rank([moment, block], [2, 1])
    chex.assert_shape(moment, (block.shape[0], block.shape[0]))
    together = block[:, None] == block[None, :]
    trace = jnp.where(together, jnp.diag(moment)[None, :], 0.0).sum(1)  # of each coordinate's block
    level = block[-1] / 2 - block.astype(jnp.float32)  # descending, about 0
    scaled = jnp.where(together, moment / jnp.maximum(trace, 1e-30)[:, None], 0.0)
    _, vectors = jnp.linalg.eigh(scaled + jnp.diag(2 * level))
    axes = jnp.where(together, vectors[:, ::-1], 0.0)
    # A step of Newton's iteration for the nearest orthogonal matrix (Higham, Functions of Matrices, 2008, chapter 8).
    return 1.5 * axes - 0.5 * jnp.matmul(axes, jnp.matmul(axes.T, axes, precision=_EXACT), precision=_EXACT)
