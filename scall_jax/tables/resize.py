"""Parameters for new sizes: initial values, and what survives from the sizes before."""

import jax
import jax.numpy as jnp

from scall_jax.tables.column_blocks import gather, gather_all, over_column_blocks, write
from scall_jax.tables.table import Params, Table

_EXACT = jax.lax.Precision.HIGHEST  # inner products survive a rotation to float32's accuracy on any device


def init(table: Table, key: jax.Array, layout, std: float) -> Params:
    """Independent normal parameters of standard deviation `std` for a layout."""
    return _fill(table, layout, lambda first, count: std * _noise(table, key, first, count))


def _noise(table, key, first, count):
    """f32[M, count], by column, so that a column's noise does not depend on the strip that it is written in."""
    keys = jax.vmap(lambda column: jax.random.fold_in(key, column))(first + jnp.arange(count, dtype=jnp.int32))
    return jax.vmap(lambda k: jax.random.normal(k, (table.nodes + 2,)))(keys).T


def _fill(table, layout, values):
    def block(first, count, buffer):
        return write(table, buffer, layout, first, values(first, count))

    # one kind of strip: this runs once a segment, and each kind is compiled by itself
    return table.from_buffer(
        over_column_blocks(table, layout, block, table.to_buffer(table.zeros()), table.widths[-1:])
    )


def resize(
    table: Table,
    key: jax.Array,
    params: Params,
    old,
    new,
    known: jax.Array,
    *,
    shrink: float = 1.0,
    axes: jax.Array | None = None,
    std: float = 0.1,
    grow_std: float = 0.01,
) -> Params:
    """Carry parameters from one layout to the next.

    Args:
      table: both layouts are its own.
      key: for what is new.
      params, old, new: parameters of the old layout, both layouts.
      known: bool[N], nodes that existed under the old layout.
      shrink: factor on what is kept. Below 1 it lets the next fit move away from the old optimum.
      axes: optional f32[width, width], orthogonal: embeddings are turned by it first, so that leading coordinates
        are the important ones (see `principal_axes`); inner products do not change.
      std: of the vectors of new nodes, and of a shared vector that had no coordinates.
      grow_std: of noise on coordinates that a vector did not have before.

    Returns:
      Parameters of the new layout. A node keeps its leading min(old, new) coordinates; one that read its side's shared
      vector starts from that. The shared vectors keep theirs. What was cut off is gone.
    """
    buffer = table.to_buffer(params)
    exists = jnp.concatenate([known, old.sizes[-2:] > 0])[:, None]
    had = jnp.concatenate([jnp.where(known, old.sizes[:-2], 0), old.sizes[-2:]])[:, None]

    def turned(first, count):
        if axes is None:
            return gather_all(table, buffer, old, first, count)

        def add(source, width, total):
            part = jax.lax.dynamic_slice(axes, (source, first), (width, count))
            return total + jnp.matmul(gather_all(table, buffer, old, source, width), part, precision=_EXACT)

        return over_column_blocks(table, old, add, jnp.zeros((table.nodes + 2, count)), table.widths[:1])

    def values(first, count):
        coordinate = first + jnp.arange(count, dtype=jnp.int32)
        noise = _noise(table, key, first, count)
        kept = shrink * turned(first, count)
        grown = jnp.where(coordinate[None, :] >= had, grow_std * noise, 0.0)
        return jnp.where(exists, kept + grown, std * noise)

    return _fill(table, new, values)


def principal_axes(table: Table, params: Params, layout, weight: jax.Array) -> jax.Array:
    """Orthogonal f32[width, width] to the principal axes of the embeddings' weighted second moment, largest first.

    `weight` f32[N]: interactions of each node, 0 for nodes that do not exist. The moment is added up strip by strip of
    columns; coordinates beyond the largest size come last.
    """
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
