"""Parameters of a table for new sizes: initial values, and what survives from the sizes before."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.tables.column_blocks import gather, gather_all, over_column_blocks, write
from scall_jax.tables.layout import Layout
from scall_jax.tables.table import Table

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
    keys = jax.vmap(lambda column: jax.random.fold_in(key, column))(first + jnp.arange(count, dtype=jnp.int32))
    return jax.vmap(lambda k: jax.random.normal(k, (table.nodes + 2,)))(keys).T


def _fill(table: Table, layout: Layout, values: Callable[[jax.Array, int], jax.Array]) -> jax.Array:
    def block(first, count, buffer):
        return write(table, buffer, layout, first, values(first, count))

    # One width of blocks, because this runs once a segment and each width is compiled by itself.
    return table.from_buffer(
        over_column_blocks(table, layout, block, table.to_buffer(table.zeros()), table.widths[-1:])
    )


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
        the important ones (see `principal_axes`); inner products do not change.
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

    return _fill(table, new, values)


def _rotated(table: Table, buffer, layout: Layout, axes: jax.Array | None, first, count: int) -> jax.Array:
    """Columns of all embeddings x `axes`, f32[M, count]; of the embeddings themselves without axes."""
    if axes is None:
        return gather_all(table, buffer, layout, first, count)
    rotation = axes

    def add(source, width, total):
        part = jax.lax.dynamic_slice(rotation, (source, first), (width, count))
        return total + jnp.matmul(gather_all(table, buffer, layout, source, width), part, precision=_EXACT)

    return over_column_blocks(table, layout, add, jnp.zeros((table.nodes + 2, count)), table.widths[:1])


def principal_axes(table: Table, params: jax.Array, layout: Layout, weight: jax.Array) -> jax.Array:
    """Principal axes of the embeddings' weighted second moment, largest first.

    The moment is added up block by block of columns, so that no array of nodes x width exists.

    Args:
      table: static.
      params: parameters of the table.
      layout: of the parameters.
      weight: f32[N], interactions of each node; 0 for nodes that do not exist.

    Returns:
      f32[width, width], orthogonal: column k is the k-th axis. Embeddings x axes have uncorrelated coordinates of
      descending energy; coordinates beyond the largest size come last.
    """
    chex.assert_shape(weight, (table.nodes,))
    chex.assert_type(weight, jnp.float32)
    buffer, width = table.to_buffer(params), table.width
    weight = (weight / jnp.maximum(weight.sum(), 1e-30))[:, None]
    widest = table.widths[:1]

    def row(i, count, moment):
        left = gather(table, buffer, layout, i, count) * weight

        def cell(j, count, moment):
            part = jnp.matmul(left.T, gather(table, buffer, layout, j, count), precision=_EXACT)
            return jax.lax.dynamic_update_slice(moment, part, (i, j))

        return over_column_blocks(table, layout, cell, moment, widest)

    moment = over_column_blocks(table, layout, row, jnp.zeros((width, width)), widest)
    _, vectors = jnp.linalg.eigh((moment + moment.T) / 2)  # ascending eigenvalues
    return vectors[:, ::-1]
