"""The interface of tables: pure functions that read and write columns of parameters by a layout.

A table is the part of a `Storage` that lets training work a block of columns at a time, so that no array of nodes x
width exists. A storage without one is trained through `Storage.vectors` instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scall_jax.ops.sums import padded_sum
from scall_jax.tables.layout import Layout

Params = Any
"""What training changes: a pytree of f32 arrays. A table's parameters are a single array."""

WeightedBuffer = tuple[jax.Array, jax.Array]
"""A weight f32[M] of each vector, and a buffer of the table."""


class UpdateColumns(Protocol):
    """Signature of `Table.update`."""

    def __call__(
        self,
        buffers: Any,
        layout: Layout,
        first: ArrayLike,
        values: jax.Array,
        rule: Callable[[Any, jax.Array], Any],
        weighted_buffer: WeightedBuffer | None = None,
        /,
    ) -> Any:
        """Change columns first, ..., first + count - 1 of a pytree of buffers by a value for each coordinate.

        Args:
          buffers: pytree of buffers of the table, such as the two moments of Adam.
          layout: of all of them.
          first: i32[] or int, the first column.
          values: f32[M, count], by vector; what stands where a vector has no coordinate is ignored.
          rule: (old, value) -> new, coordinate by coordinate; old and new have the structure of `buffers`. Arrays are
            changed in place if each new leaf is made of its own old leaf and the value alone.
          weighted_buffer: optional weight f32[M] and buffer; weight x the buffer's columns is added to `values`.

        Returns:
          The buffers, the other columns as they were.
        """
        ...


class Table(NamedTuple):
    """Pure functions over the M = N + 2 vectors of N nodes (users, then items) and of the two sides' shared vectors.

    A linear map leads from parameters to embeddings. Each column of the M vectors lies in one piece, in an order of the
    table's own. A vector of size m has columns 0 to m - 1; the columns that it does not have read as 0. All functions
    are traced; none keeps state. `packed` and `masked` are the two implementations; tests hold one to the other.
    """

    layout: Callable[[jax.Array], Layout]
    """sizes i32[M] -> layout. Called once a plan; every other function takes the layout that the parameters have."""
    zeros: Callable[[], jax.Array]
    """Parameters of zeros, f32[...]; the shape is the table's capacity, the same for all layouts."""
    to_buffer: Callable[[jax.Array], jax.Array]
    """Parameters -> buffer: the parameters with room for reading past their end. Training keeps parameters and the
    optimiser's state as buffers, so that this is called once before a fit."""
    from_buffer: Callable[[jax.Array], jax.Array]
    """Buffer -> parameters, the inverse of `to_buffer`."""
    read: Callable[[jax.Array, Layout, ArrayLike, int], jax.Array]
    """(buffer, layout, first i32[], count) -> f32[count, M], columns first, ..., first + count - 1, each by place;
    `count` is static, `first` may be traced, and first + count is at most `width`."""
    update: UpdateColumns
    """(buffers, layout, first, values f32[M, count], rule, weighted_buffer=None) -> buffers: see `UpdateColumns`."""
    order: Callable[[Layout], jax.Array]
    """layout -> i32[M], the vector at each place of a column that `read` returns."""
    source: Callable[[Layout, ArrayLike], jax.Array]
    """(layout, first) -> i32[N], the place at which each node reads columns from `first` on: its own vector's, or its
    side's shared one's."""
    pull: Callable[[jax.Array, Layout], jax.Array]
    """(f32[N, C] by node, layout) -> f32[M, C] by vector: the transpose of reading, which turns gradients of embeddings
    into gradients of vectors."""
    lookup: Callable[[jax.Array, Layout, jax.Array], jax.Array]
    """(parameters, layout, rows i32[R]) -> f32[R, width], the embeddings of a few nodes, all columns."""
    add: Callable[[jax.Array, Layout, jax.Array, jax.Array], jax.Array]
    """(parameters, layout, rows i32[R], values f32[R, width]) -> parameters with these values added to what the rows
    read, and nothing else touched: a step for a few nodes costs no more in a large table. Rows that read the same
    vector add to it in turn."""
    widths: tuple[int, ...]
    """Numbers of columns of a block, descending; `width` is a multiple of the first."""
    width: int
    """The largest size, rounded up to whole column blocks."""
    users: int
    """Capacity of the users' side: the first `users` of the N nodes."""
    nodes: int
    """N, capacity of both sides."""


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree, which the account of a table is checked against.

    >>> nbytes({"codes": jnp.zeros(3, jnp.int8), "steps": jnp.zeros(2)})
    11
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def own_and_shared(values: jax.Array, sizes: jax.Array, users: int) -> jax.Array:
    """Sums over the nodes that read each vector: `Table.pull` of every table.

    Args:
      values: f32[N, C], by node.
      sizes: i32[N + 2], coordinates of each vector.
      users: capacity of the users' side; static.

    Returns:
      f32[N + 2, C], by vector: nodes of size 0 add to their side's shared vector. What stands where a vector has no
      columns, a node's of size 0 among them, has no meaning.
    """
    chex.assert_shape(values, (sizes.shape[0] - 2, None))
    chex.assert_rank(sizes, 1)
    nodes = values.shape[0]

    def sums():
        to_shared = jnp.where((sizes[:nodes] > 0)[:, None], 0.0, values)
        return jnp.stack([padded_sum(to_shared[:users]), padded_sum(to_shared[users:])])

    shared = jax.lax.cond((sizes[nodes:] > 0).any(), sums, lambda: jnp.zeros((2, values.shape[1])))
    return jnp.concatenate([values, shared])
