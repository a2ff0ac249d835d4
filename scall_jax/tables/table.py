"""The interface of embedding storage: pure functions over parameters and a layout."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any


class Table(NamedTuple):
    """Storage of N node vectors and two shared vectors, M = N + 2, whose columns can be read and written by themselves.

    A linear map leads from parameters to embeddings. Each column of the M vectors lies in one piece, in an order of the
    table's own; not all vectors have all columns, and what a vector does not have reads as 0. A *buffer* is parameters
    with room for reading past their end; training keeps parameters and moments as buffers.

    `update` changes some columns of a pytree of buffers by values of each vector: rule(old, value) -> new acts on each
    coordinate, old and new having the structure of the buffers. For the arrays to be changed in place a new leaf must
    be made of its own old leaf and the value alone. With `held`, a weight f32[M] of each vector and a buffer, values
    are weight x what that buffer holds more.
    """

    layout: Callable[[jax.Array], Any]  # sizes i32[M] -> layout
    zeros: Callable[[], Params]  # empty parameters
    to_buffer: Callable[[Params], Any]  # parameters -> buffer
    from_buffer: Callable[[Any], Params]  # and back
    read: Callable[[Any, Any, jax.Array, int], jax.Array]  # buffer, layout, first, count -> f32[count, M] columns
    update: Callable[..., Any]  # buffers, layout, first, f32[M, count], rule, held=None -> buffers
    order: Callable[[Any], jax.Array]  # layout -> i32[M], the vector at each place of a column
    source: Callable[[Any, jax.Array], jax.Array]  # layout, first -> i32[N], where a node reads columns from `first` on
    pull: Callable[[jax.Array, Any], jax.Array]  # f32[N, C] by node, layout -> f32[M, C] by vector: reading transposed
    lookup: Callable[[Params, Any, jax.Array], jax.Array]  # parameters, layout, rows i32[R] -> f32[R, width]
    widths: tuple[int, ...]  # numbers of columns that are worked on at once, descending
    width: int  # the largest size, rounded up to whole strips
    users: int  # of the N nodes, the first
    nodes: int  # N


def nbytes(tree) -> int:
    """Bytes of all arrays of a pytree: what the account of a table is checked against."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def own_and_shared(values: jax.Array, sizes: jax.Array, users: int) -> jax.Array:
    """f32[N, C] by node to f32[N + 2, C] by vector: nodes of size 0 add to their side's shared vector.

    What stands where a vector has no columns, a node's of size 0 among them, is of no meaning.
    """
    nodes = values.shape[0]

    def sums():
        to_shared = jnp.where((sizes[:nodes] > 0)[:, None], 0.0, values)
        return jnp.stack([to_shared[:users].sum(0), to_shared[users:].sum(0)])

    shared = jax.lax.cond((sizes[nodes:] > 0).any(), sums, lambda: jnp.zeros((2, values.shape[1])))
    return jnp.concatenate([values, shared])
