"""What answers requests: vectors whose inner products, plus the items' bias, are the scores that a run evaluates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import take
from scall_jax.ops.sums import padded_sum
from scall_jax.recommenders.graph import propagate, with_chunks
from scall_jax.recommenders.lightgcn import LightGcn, embed
from scall_jax.streams import Segment
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params


class Served(NamedTuple):
    """Arrays of a fitted recommender, decoded from what is stored. D columns, U users and V items of capacity."""

    users: jax.Array
    """f32[U, D]; f32[0, D] where a user's vector is always folded in from the user's items."""
    items: jax.Array
    """f32[V, D]."""
    bias: jax.Array
    """f32[V], added to inner products."""
    fold: Any = ()
    """What `FoldIn` reads beside these."""


FoldIn = Callable[[Served, jax.Array, jax.Array], jax.Array]
"""(served, distinct known items i32[m], how many of them are in use i32[]) -> the vector f32[D] of a user who has met
them and whom training has not seen. Traced."""


class Neighbours(NamedTuple):
    """`Served.fold` of LightGCN and of matrix factorisation."""

    reach: jax.Array
    """f32[V, D], what each item adds to a user whose one item it is."""


def serve_vectors(
    storage: Storage,
    params: Params,
    layout: StorageLayout,
    segment: Segment,
    item_bias: jax.Array,
    remembered: Any,
    width: int,
) -> Served:
    """`ServeParams` of recommenders that rank by the vectors of their storage as they are."""
    del segment, remembered, width
    users = storage.nodes - item_bias.shape[0]
    vectors = storage.vectors(params, layout)
    return Served(vectors[:users], vectors[users:], item_bias)


def serve_propagated(
    model: LightGcn, params: Params, layout: StorageLayout, segment: Segment, bias: jax.Array, width: int
) -> Served:
    """Final vectors of LightGCN, and what folding in needs.

    A new user has no embedding of its own. With L layers the rule is LightGCN's, the items as they are: the mean over
    layers 0 to L of what propagation brings, of which layer 0 is zero and layer l + 1 the sum of the items' layer l by
    1 / sqrt(user's items x item's users). Without layers (matrix factorisation) it is one such propagation of the
    items' vectors, scaled so that known users folded in are as long as their own vectors, in the root mean square.

    Args:
      model: static.
      params: of its storage.
      layout: of the storage.
      segment: the data, of which the graph is read.
      bias: f32[V], of the items.
      width: columns in use; static.

    Returns:
      Served of `width` columns.
    """
    chex.assert_rank(bias, 1)
    graph, items = with_chunks(segment.graph), bias.shape[0]
    users, layers = model.storage.nodes - items, model.layers
    nodes = jnp.arange(model.storage.nodes, dtype=jnp.int32)
    final = embed(model, params, layout, graph, nodes).final[:, :width]
    degree = jnp.maximum(jnp.diff(graph.indptr)[users:], 1).astype(jnp.float32)
    if layers:
        before = embed(model._replace(layers=layers - 1), params, layout, graph, nodes[users:]).final[:, :width]
        scale = jnp.float32(layers / (layers + 1))
    else:
        before, own = final[users:], final[:users]
        folded = propagate(graph, final)[:users]
        squares, of_folded = padded_sum((own**2).sum(1)), padded_sum((folded**2).sum(1))
        scale = jnp.sqrt(squares / jnp.maximum(of_folded, 1e-30))
    return Served(final[:users], final[users:], bias, Neighbours(scale * before / jnp.sqrt(degree)[:, None]))


def fold_neighbours(served: Served, items: jax.Array, count: jax.Array) -> jax.Array:
    """`FoldIn` of LightGCN and of matrix factorisation.

    Args:
      served: of `serve_propagated`.
      items: i32[m], distinct known items.
      count: i32[], how many of them are in use, the first ones.

    Returns:
      f32[D].

    >>> served = Served(jnp.zeros((0, 1)), jnp.zeros((2, 1)), jnp.zeros(2), Neighbours(jnp.array([[2.0], [6.0]])))
    >>> fold_neighbours(served, jnp.array([0, 1, 0, 0]), jnp.int32(1)).tolist()
    [2.0]
    """
    chex.assert_rank([items, count], [1, 0])
    used = jnp.arange(items.shape[0]) < count
    total = jnp.where(used[:, None], take(served.fold.reach, items), 0.0).sum(0)
    return total / jnp.sqrt(jnp.maximum(count, 1).astype(jnp.float32))
