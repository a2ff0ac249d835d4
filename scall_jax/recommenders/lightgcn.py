"""LightGCN (He et al., SIGIR 2020): mean of the embeddings propagated 0 to L times; with L = 0, matrix
factorisation."""

import jax
import jax.numpy as jnp

from scall_jax.recommenders.graph import propagate
from scall_jax.streams import Graph
from scall_jax.tables.storage import Storage
from scall_jax.tables.strips import gather, over_strips
from scall_jax.tables.table import Table


def smooth(graph: Graph, x: jax.Array, layers: int) -> jax.Array:
    """Mean of x, A x, ..., A^layers x; f32[N, C]."""
    total = x
    for _ in range(layers):
        x = propagate(graph, x)
        total = total + x
    return total / (layers + 1)


def embed(storage: Storage, layers: int, params, layout, graph: Graph, rows: jax.Array):
    """Final and own embeddings of some nodes.

    Args:
      storage, layers: static.
      params: of the storage, opened where it has a table.
      layout: of the storage.
      graph: of N nodes.
      rows: i32[R], nodes.

    Returns:
      (f32[R, width] after propagation, f32[R, width] before it), differentiable in the parameters of a storage without
      a table.
    """
    if storage.table is not None:
        return embed_strips(storage.table, layers, params, layout, graph, rows, blank(storage.table, rows))
    vectors = storage.vectors(params, layout)
    return smooth(graph, vectors, layers)[rows], vectors[rows]


def blank(table: Table, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Arrays for `embed_strips` to write to."""
    return (jnp.zeros((rows.shape[0], table.width)),) * 2


def embed_strips(table: Table, layers: int, buffer, layout, graph: Graph, rows: jax.Array, outputs):
    """`embed` from the buffer of a table; `outputs` are overwritten as far as columns are in use.

    Works through strips of columns up to the largest size in use, so that no array of N x width exists.
    """

    def strip(first, count, outputs):
        x = gather(table, buffer, layout, first, count)
        parts = smooth(graph, x, layers)[rows], x[rows]
        return tuple(jax.lax.dynamic_update_slice(o, part, (0, first)) for o, part in zip(outputs, parts, strict=True))

    return over_strips(table, layout, strip, outputs)
