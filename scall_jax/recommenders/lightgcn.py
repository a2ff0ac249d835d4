"""LightGCN (He et al., SIGIR 2020): mean of the embeddings propagated 0 to L times; with L = 0, matrix
factorisation."""

import functools

import jax
import jax.numpy as jnp

from scall_jax.recommenders.graph import propagate
from scall_jax.streams import Graph
from scall_jax.tables.storage import Storage
from scall_jax.tables.table import Params, Table


def smooth(graph: Graph, x: jax.Array, layers: int) -> jax.Array:
    """Mean of x, A x, ..., A^layers x; f32[N, C]."""
    total = x
    for _ in range(layers):
        x = propagate(graph, x)
        total = total + x
    return total / (layers + 1)


def embed(storage: Storage, layers: int, params: Params, layout, graph: Graph, rows: jax.Array):
    """Final and own embeddings of some nodes, differentiable in the parameters.

    Args:
      storage, layers: static.
      params, layout: of the storage.
      graph: of N nodes.
      rows: i32[R], nodes.

    Returns:
      (f32[R, width] after propagation, f32[R, width] before it).
    """
    if storage.blocks is not None:
        return embed_blocks(storage.blocks, layers, params, layout, graph, rows)
    vectors = storage.vectors(params, layout)
    return smooth(graph, vectors, layers)[rows], vectors[rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def embed_blocks(table: Table, layers: int, params: Params, layout, graph: Graph, rows: jax.Array):
    """`embed` for tables, of whose parameters embeddings are a linear function.

    Works through blocks of columns up to the largest size in use, forward and backward, so that no array of
    N x width exists.
    """
    buffer = table.open(params)

    def block_of(block, outputs):
        x = table.gather(buffer, layout, block)
        at = (0, block * table.columns)
        final = jax.lax.dynamic_update_slice(outputs[0], smooth(graph, x, layers)[rows], at)
        return final, jax.lax.dynamic_update_slice(outputs[1], x[rows], at)

    empty = jnp.zeros((rows.shape[0], table.width))
    return jax.lax.fori_loop(0, layout.blocks, block_of, (empty, empty))


def _embed_fwd(table, layers, params, layout, graph, rows):
    return embed_blocks(table, layers, params, layout, graph, rows), (layout, graph, rows)


def _embed_bwd(table, layers, residuals, cotangents):
    layout, graph, rows = residuals

    def block_of(block, buffer):
        def spread(g):
            part = jax.lax.dynamic_slice_in_dim(g, block * table.columns, table.columns, axis=1)
            return jnp.zeros((table.nodes, table.columns)).at[rows].add(part)

        final, own = map(spread, cotangents)
        # A is symmetric, so the transpose of `smooth` is `smooth`
        return table.scatter(buffer, layout, block, smooth(graph, final, layers) + own)

    buffer = jax.lax.fori_loop(0, layout.blocks, block_of, table.open(table.zeros()))
    return table.close(buffer), None, None, None


embed_blocks.defvjp(_embed_fwd, _embed_bwd)
