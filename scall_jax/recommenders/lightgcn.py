"""LightGCN (He et al., SIGIR 2020, arXiv 2002.02126): mean of the embeddings propagated 0 to L times.

With L = 0 it is matrix factorisation.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.ops.indexing import dynamic_update_slice, take
from scall_jax.recommenders.graph import propagate
from scall_jax.streams import Graph
from scall_jax.tables.column_blocks import gather, over_sided_column_blocks
from scall_jax.tables.layout import Layout
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params, Table


class LightGcn(NamedTuple):
    """The model, static: where embeddings come from, and how often they are propagated."""

    storage: Storage
    layers: int  # propagations; 0 is matrix factorisation
    mesh: MeshConfig = ONE
    """Devices that a function is called on together, each with its parts of the table and its rows of the graph."""

    @property
    def table(self) -> Table:
        """The table of a storage that has one.

        Raises:
          ValueError: the storage has no table.
        """
        if self.storage.table is None:
            raise ValueError("this storage has no table: use `embed`, which takes any storage")
        return self.storage.table


class Embeddings(NamedTuple):
    """Embeddings of R nodes, all columns or a block of C columns."""

    final: jax.Array  # f32[R, C], after propagation
    own: jax.Array  # f32[R, C], before propagation


class ColumnBlock(NamedTuple):
    """Columns first, ..., first + count - 1 of a table."""

    first: jax.Array  # i32[]
    count: int  # static
    side: jax.Array  # i32[], 1 if users alone have these columns, 2 if items alone have, 0 for both


def smooth(graph: Graph, x: jax.Array, layers: int) -> jax.Array:
    """Mean of x, A x, ..., A^layers x, where A is the normalised adjacency.

    Args:
      graph: of N nodes.
      x: f32[N, C].
      layers: number of propagations; static.

    Returns:
      f32[N, C].

    A user and an item that are each other's only neighbour share their mean after one layer:

    >>> graph = Graph(jnp.array([0, 1, 2]), jnp.array([1, 0]), jnp.ones(2))
    >>> smooth(graph, jnp.array([[4.0], [2.0]]), layers=1).tolist()
    [[3.0], [3.0]]
    """
    chex.assert_rank(x, 2)
    chex.assert_type(x, float)
    total = x
    for _ in range(layers):
        x = propagate(graph, x)
        total = total + x
    return total / (layers + 1)


def smooth_side(
    graph: Graph, x: jax.Array, layers: int, users: int, side: jax.Array, mesh: MeshConfig = ONE
) -> jax.Array:
    """`smooth` where one side's rows of x may be zero.

    The graph is bipartite: a product moves values from one side to the other. So if one side's rows are zero, half of
    the rows of each product are zero, and these are left out.

    Args:
      graph: of N nodes, the first `users` of them users.
      x: f32[N, C].
      layers: number of propagations; static.
      users: capacity of the user side; static.
      side: i32[], 1 if users alone have rows that are not zero, 2 if items alone have; 0 for both.
      mesh: as in `propagate`; static.

    Returns:
      f32[N, C].
    """
    chex.assert_rank([x, side], [2, 0])
    chex.assert_type([x, side], [float, int])
    total = x
    for layer in range(layers):
        x = propagate(rows_from(graph, users, side, layer % 2 == 0), x, mesh=mesh)
        total = total + x
    return total / (layers + 1)


def smooth_to_side(
    graph: Graph,
    rows: jax.Array,
    values: jax.Array,
    layers: int,
    users: int,
    side: jax.Array,
    mesh: MeshConfig = ONE,
) -> jax.Array:
    """The transpose of `smooth_side`, applied to an array of which only some rows are not zero.

    Args:
      graph: of N nodes.
      rows: i32[R], nodes; one that stands here several times has the sum of its values.
      values: f32[R, C], of these rows.
      layers: number of propagations; static.
      users: capacity of the user side; static.
      side: i32[], as in `smooth_side`.
      mesh: as in `propagate`; static.

    Returns:
      f32[N, C], correct in the rows of `side` alone, in all of them where it is 0.
    """
    chex.assert_rank([rows, values, side], [1, 2, 0])
    chex.assert_type([rows, values, side], [int, float, int])
    chex.assert_equal_shape_prefix([rows, values], 1)
    values = values / (layers + 1)

    def add_to(x):
        return x.at[rows].add(values, wrap_negative_indices=False)

    total = scattered = add_to(jnp.zeros((graph.indptr.shape[0] - 1, values.shape[1])))
    for layer in reversed(range(layers)):
        product = propagate(rows_from(graph, users, side, layer % 2 == 1), total, mesh=mesh)
        # On a CPU a second scatter-add is cheaper than adding a dense array.
        total = by_backend(add_to, lambda x: x + scattered)(product)
    return total


def rows_from(graph: Graph, users: int, side: jax.Array, other: bool) -> Graph:
    """The graph with the rows of one side alone; the others are empty.

    Args:
      graph: of N nodes.
      users: capacity of the user side; static.
      side: i32[], 1 for users, 2 for items, 0 for both.
      other: take the rows of the other side, which a product from `side` fills; static.

    Returns:
      Graph, whole where `side` is 0.
    """
    chex.assert_rank([graph.indptr, side], [1, 0])
    rows = 3 - side if other else side  # 1 and 2 stand for one side, 0 and 3 for both
    middle = graph.indptr[users]
    low, high = jnp.where(rows == 2, middle, 0), jnp.where(rows == 1, middle, graph.indptr[-1])
    return graph._replace(indptr=jnp.clip(graph.indptr, low, high))


def embed(model: LightGcn, params: Params, layout: StorageLayout, graph: Graph, rows: jax.Array) -> Embeddings:
    """Final and own embeddings of some nodes.

    Args:
      model: static.
      params: of the storage; a buffer where it has a table.
      layout: of the storage.
      graph: of N nodes.
      rows: i32[R], nodes.

    Returns:
      Embeddings f32[R, width], differentiable in the parameters of a storage without a table.
    """
    chex.assert_rank(rows, 1)
    chex.assert_type(rows, int)
    chex.assert_shape(graph.indptr, (model.storage.nodes + 1,))
    if model.storage.table is not None:
        return embed_column_blocks(model, params, layout, graph, rows, empty_outputs(model.table, rows))
    vectors = model.storage.vectors(params, layout)
    return Embeddings(take(smooth(graph, vectors, model.layers), rows), take(vectors, rows))


def empty_outputs(table: Table, rows: jax.Array) -> Embeddings:
    """Arrays of zeros, f32[R, width], that `embed_column_blocks` writes the embeddings of rows i32[R] to."""
    chex.assert_rank(rows, 1)
    zeros = jnp.zeros((rows.shape[0], table.width))
    return Embeddings(zeros, zeros)


def embed_column_blocks(
    model: LightGcn, buffer: jax.Array, layout: Layout, graph: Graph, rows: jax.Array, outputs: Embeddings
) -> Embeddings:
    """`embed` from the buffer of a table, one column block at a time up to the largest size in use.

    No array of N x width exists.

    Args:
      model: with a table; static.
      buffer: of the table.
      layout: of the table.
      graph: of N nodes.
      rows: i32[R], nodes.
      outputs: f32[R, width] each, overwritten as far as columns are in use.

    Returns:
      The outputs.
    """
    chex.assert_shape(list(outputs), (rows.shape[0], model.table.width))

    def block(first, count, side, outputs):
        columns = embed_block(model, buffer, layout, graph, rows, ColumnBlock(first, count, side))
        return Embeddings(*(dynamic_update_slice(o, new, (0, first)) for o, new in zip(outputs, columns, strict=True)))

    return over_sided_column_blocks(model.table, layout, block, outputs)


def embed_block(
    model: LightGcn, buffer: jax.Array, layout: Layout, graph: Graph, rows: jax.Array, block: ColumnBlock
) -> Embeddings:
    """The columns of one block of `embed_column_blocks`; f32[R, block.count] each."""
    chex.assert_rank(rows, 1)
    x = gather(model.table, buffer, layout, block.first, block.count)
    final = smooth_side(graph, x, model.layers, model.table.users, block.side, model.mesh)
    return Embeddings(take(final, rows), take(x, rows))
