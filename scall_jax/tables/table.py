"""The interface of embedding storage: pure functions over parameters and a layout."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any


class Table(NamedTuple):
    """Storage of N node vectors and two shared vectors, read and written in blocks of `columns` coordinates.

    A linear map leads from parameters to embeddings; `gather` applies it and `write` and `scatter` go the other way.
    Blocks are written in ascending order, each exactly once.
    """

    layout: Callable[[jax.Array], Any]  # sizes i32[N + 2] -> layout
    zeros: Callable[[], Params]  # empty parameters
    open: Callable[[Params], Any]  # parameters -> buffer for the functions below
    close: Callable[[Any], Params]  # and back
    gather: Callable[[Any, Any, jax.Array], jax.Array]  # buffer, layout, block -> f32[N, columns]
    write: Callable[[Any, Any, jax.Array, jax.Array], Any]  # buffer, layout, block, f32[N + 2, columns] -> buffer
    scatter: Callable[[Any, Any, jax.Array, jax.Array], Any]  # same for f32[N, columns]: the transpose of gather
    lookup: Callable[[Params, Any, jax.Array], jax.Array]  # parameters, layout, rows i32[R] -> f32[R, width]
    columns: int  # coordinates in a block
    width: int  # the largest size, rounded up to whole blocks
    nodes: int  # N


def nbytes(tree) -> int:
    """Bytes of all arrays of a pytree: what the account of a table is checked against."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def own_and_shared(values: jax.Array, sizes: jax.Array, users: int) -> jax.Array:
    """f32[N, C] by node to f32[N + 2, C] by vector: nodes of size 0 add to their side's shared vector."""
    nodes = values.shape[0]
    own = (sizes[:nodes] > 0)[:, None]
    to_shared = jax.numpy.where(own, 0.0, values)
    shared = jax.numpy.stack([to_shared[:users].sum(0), to_shared[users:].sum(0)])
    return jax.numpy.concatenate([jax.numpy.where(own, values, 0.0), shared])
