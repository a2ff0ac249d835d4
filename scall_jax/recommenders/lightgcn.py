"""LightGCN (He et al., SIGIR 2020): mean of the embeddings propagated 0 to L times; with L = 0, matrix
factorisation."""

import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.indexing import dynamic_update_slice, take
from scall_jax.recommenders.graph import propagate
from scall_jax.streams import Graph
from scall_jax.tables.column_blocks import gather, over_sided_column_blocks
from scall_jax.tables.storage import Storage
from scall_jax.tables.table import Table


def smooth(graph: Graph, x: jax.Array, layers: int) -> jax.Array:
    """Mean of x, A x, ..., A^layers x; f32[N, C]."""
    total = x
    for _ in range(layers):
        x = propagate(graph, x)
        total = total + x
    return total / (layers + 1)


def smooth_side(graph: Graph, x: jax.Array, layers: int, users: int, side: jax.Array) -> jax.Array:
    """`smooth` where one side's rows of x may be zero; f32[N, C].

    The graph has two sides, so what starts from one of them is on the other after a product, and half of each product
    is zero: rows that nothing reaches are left out.

    Args:
      graph: of N nodes, the first `users` of them users.
      x: f32[N, C].
      layers, users: static.
      side: i32[], 1 if users alone have rows that are not zero, 2 if items alone have; 0 for both.
    """
    total = x
    for layer in range(layers):
        x = propagate(rows_from(graph, users, side, layer % 2 == 0), x)
        total = total + x
    return total / (layers + 1)


def smooth_to_side(
    graph: Graph, rows: jax.Array, values: jax.Array, layers: int, users: int, side: jax.Array
) -> jax.Array:
    """The transpose of `smooth_side` for what some rows hold; f32[N, C].

    Right in the rows of `side`, all of them where it is 0.

    Args:
      graph: of N nodes.
      rows: i32[R], nodes; what one of them holds is the sum over its places here.
      values: f32[R, C].
      layers, users: static.
      side: i32[], as in `smooth_side`.
    """
    values = values / (layers + 1)

    def add_to(x):
        return x.at[rows].add(values, wrap_negative_indices=False)

    total = given = add_to(jnp.zeros((graph.indptr.shape[0] - 1, values.shape[1])))
    for layer in reversed(range(layers)):
        product = propagate(rows_from(graph, users, side, layer % 2 == 1), total)
        # On a CPU a second scatter-add is cheaper than adding a dense array.
        total = by_backend(add_to, lambda x: x + given)(product)
    return total


def rows_from(graph: Graph, users: int, side, other: bool) -> Graph:
    """The rows that a product from `side` fills, or its own rows; all if it is 0. The others are empty."""
    rows = 3 - side if other else side  # 1 and 2 are one side's, 0 and 3 are all
    middle = graph.indptr[users]
    low, high = jnp.where(rows == 2, middle, 0), jnp.where(rows == 1, middle, graph.indptr[-1])
    return graph._replace(indptr=jnp.clip(graph.indptr, low, high))


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
    return take(smooth(graph, vectors, layers), rows), take(vectors, rows)


def blank(table: Table, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Arrays for `embed_strips` to write to."""
    return (jnp.zeros((rows.shape[0], table.width)),) * 2


def embed_strips(table: Table, layers: int, buffer, layout, graph: Graph, rows: jax.Array, outputs):
    """`embed` from the buffer of a table; `outputs` are overwritten as far as columns are in use.

    Works through strips of columns up to the largest size in use, so that no array of N x width exists.
    """

    def block(first, count, side, outputs):
        columns = embed_block(table, layers, buffer, layout, graph, rows, first, count, side)
        return tuple(dynamic_update_slice(o, new, (0, first)) for o, new in zip(outputs, columns, strict=True))

    return over_sided_column_blocks(table, layout, block, outputs)


def embed_block(table: Table, layers: int, buffer, layout, graph: Graph, rows: jax.Array, first, count: int, side):
    """Columns first, ..., first + count - 1 of `embed`, which one `side` alone has if it is not 0."""
    x = gather(table, buffer, layout, first, count)
    return take(smooth_side(graph, x, layers, table.users, side), rows), take(x, rows)
