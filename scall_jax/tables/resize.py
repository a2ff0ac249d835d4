"""Parameters for new sizes: initial values, and what survives from the sizes before."""

import jax
import jax.numpy as jnp

from scall_jax.tables.table import Params, Table


def init(table: Table, key: jax.Array, layout, std: float) -> Params:
    """Independent normal parameters of standard deviation `std` for a layout."""
    return _fill(table, layout, lambda block: std * _noise(table, key, block))


def _noise(table, key, block):
    return jax.random.normal(jax.random.fold_in(key, block), (table.nodes + 2, table.columns))


def _fill(table, layout, values):
    def step(block, buffer):
        return table.write(buffer, layout, block, values(block))

    buffer = jax.lax.fori_loop(0, layout.blocks, step, table.open(table.zeros()))
    return table.close(buffer)


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
      are the
        important ones (see `principal_axes`); inner products do not change.
      std: of the vectors of new nodes.
      grow_std: of noise on coordinates that a node did not have before.

    Returns:
      Parameters of the new layout. A node keeps its leading min(old, new) coordinates; one that read its side's shared
      vector starts from that. What was cut off is gone.
    """
    buffer = table.open(params)
    shared_known = jnp.ones(2, bool)
    exists = jnp.concatenate([known, shared_known])[:, None]
    had = jnp.concatenate([jnp.where(known, old.sizes[:-2], 0), old.sizes[-2:]])[:, None]

    def turned(block):
        if axes is None:
            return jax.lax.cond(
                block < old.blocks,
                lambda: table.gather(buffer, old, block),
                lambda: jnp.zeros((table.nodes, table.columns)),
            )

        def add(source, total):
            part = jax.lax.dynamic_slice(
                axes, (source * table.columns, block * table.columns), (table.columns, table.columns)
            )
            return total + table.gather(buffer, old, source) @ part

        return jax.lax.fori_loop(0, old.blocks, add, jnp.zeros((table.nodes, table.columns)))

    def values(block):
        coordinate = block * table.columns + jnp.arange(table.columns, dtype=jnp.int32)
        noise = _noise(table, key, block)
        kept = jnp.concatenate([shrink * turned(block), jnp.zeros((2, table.columns))])
        grown = jnp.where(coordinate[None, :] >= had, grow_std * noise, 0.0)
        return jnp.where(exists, kept + grown, std * noise)

    return _fill(table, new, values)


def principal_axes(table: Table, params: Params, layout, weight: jax.Array) -> jax.Array:
    """Orthogonal f32[width, width] to the principal axes of the embeddings' weighted second moment, largest first.

    `weight` f32[N]: interactions of each node, 0 for nodes that do not exist. The moment is added up block by block of
    columns; coordinates beyond the largest size stay in place.
    """
    buffer, columns, width = table.open(params), table.columns, table.width
    weight = (weight / jnp.maximum(weight.sum(), 1e-30))[:, None]

    def row(i, moment):
        left = table.gather(buffer, layout, i) * weight

        def cell(j, moment):
            part = left.T @ table.gather(buffer, layout, j)
            return jax.lax.dynamic_update_slice(moment, part, (i * columns, j * columns))

        return jax.lax.fori_loop(0, layout.blocks, cell, moment)

    moment = jax.lax.fori_loop(0, layout.blocks, row, jnp.zeros((width, width)))
    _, vectors = jnp.linalg.eigh((moment + moment.T) / 2)  # ascending eigenvalues
    return vectors[:, ::-1]
