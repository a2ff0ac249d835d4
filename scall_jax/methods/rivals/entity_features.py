"""What rivals that decide for each entity observe of it: indicators of its behaviour, and how well it is served."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.config import SizesConfig
from scall_jax.methods.allocators import allocate_by_order, entities_order, ranking_frequency
from scall_jax.methods.context import SegmentContext
from scall_jax.recommenders.graph import propagate
from scall_jax.streams import Graph, Segment, active_mask, sides

INDICATORS = ("activity", "history", "freshness", "niche", "diversity")
"""Names of the indicators.

Activity and history are the log frequency in the segment and before the cut, each relative to the side's largest.
Freshness is the segment's part of the entity's interactions. Niche is one minus the mean activity of the entities it
interacted with, and diversity one minus the squared length of the mean of their unit vectors.
"""


def indicators(context: SegmentContext) -> jax.Array:
    """The indicators of each entity, from the segment and the vectors that the state has stored.

    The computation needs an f32[N, width] array.

    Args:
      context: the segment.

    Returns:
      f32[N, 5] in the order of `INDICATORS`, each in [0, 1]; 0 for entities without interactions.
    """
    segment = context.segment
    users, _ = sides(segment)
    activity, history = (_by_side(jnp.log1p(x.astype(jnp.float32)), users) for x in (segment.frequency, segment.total))
    freshness = jnp.minimum(segment.frequency / jnp.maximum(segment.total, 1), 1.0)
    storage = context.storage
    layout = storage.layout(context.state.plan)
    vectors = storage.vectors(storage.load(context.state.params, layout), layout)
    length = jnp.sqrt((vectors**2).sum(1, keepdims=True))
    unit = jnp.where(length > 0, vectors / jnp.where(length > 0, length, 1.0), 0.0)
    around = mean_of_neighbours(segment.graph, jnp.concatenate([activity[:, None], unit], axis=1))
    touched = jnp.diff(segment.graph.indptr) > 0
    niche, diversity = 1 - around[:, 0], 1 - (around[:, 1:] ** 2).sum(1)
    columns = jnp.stack([activity, history, freshness, niche, diversity], axis=1)
    return jnp.where(touched[:, None], jnp.clip(columns, 0.0, 1.0), 0.0)


def scaled_frequency(config: SizesConfig, segment: Segment) -> jax.Array:
    """Frequencies relative to the largest of their side.

    Args:
      config: `ranking` says which frequency counts.
      segment: data of the segment.

    Returns:
      f32[N] in [0, 1].
    """
    chex.assert_equal_shape([segment.frequency, segment.total])
    users, _ = sides(segment)
    return _by_side(ranking_frequency(config, segment).astype(jnp.float32), users)


def mean_of_neighbours(graph: Graph, x: jax.Array) -> jax.Array:
    """Mean over the neighbours of each node.

    Args:
      graph: of N nodes.
      x: f32[N, C].

    Returns:
      f32[N, C], 0 for nodes without neighbours.
    """
    chex.assert_shape(x, (graph.indptr.shape[0] - 1, None))
    root = jnp.sqrt(jnp.diff(graph.indptr).astype(jnp.float32))[:, None]
    return propagate(graph, root * x) / jnp.maximum(root, 1.0)


def _by_side(values, users):
    return jnp.concatenate([side / jnp.maximum(side.max(), 1e-6) for side in (values[:users], values[users:])])


class EntityValues(NamedTuple):
    """A value for each entity that has one."""

    value: jax.Array  # f32[N], 0 for those without
    has_value: jax.Array  # bool[N]


def by_entity(segment: Segment, by_user: jax.Array) -> EntityValues:
    """Hand a value of users on to their items.

    Args:
      segment: its positives say which users an item has.
      by_user: f32[Q], values of the first Q users of the validation part.

    Returns:
      EntityValues: each user's own value, and for each item the mean over its users that have one.
    """
    chex.assert_rank(by_user, 1)
    users, items = sides(segment)
    queries = by_user.shape[0]
    at = jnp.where(jnp.arange(queries) < segment.valid.count, segment.valid.users[:queries], users)
    known = jnp.zeros(users + 1).at[at].set(1.0)[:users]
    value = jnp.zeros(users + 1).at[at].set(by_user)[:users] * known
    positives = segment.positives
    pair = jnp.arange(positives.items.shape[0], dtype=jnp.int32)
    row = jnp.searchsorted(positives.indptr, pair, side="right").astype(jnp.int32) - 1
    user = positives.users[jnp.minimum(row, positives.users.shape[0] - 1)]
    item = jnp.where(pair < positives.indptr[-1], positives.items, items)
    count = jnp.zeros(items + 1).at[item].add(known[user])[:items]
    total = jnp.zeros(items + 1).at[item].add(value[user])[:items]
    values = jnp.concatenate([value, total / jnp.maximum(count, 1.0)])
    return EntityValues(values, jnp.concatenate([known, count]) > 0)


def fill(config: SizesConfig, segment: Segment, total: jax.Array, wanted: jax.Array) -> jax.Array:
    """Scale wanted sizes by one factor, so that they spend the whole budget within their bounds.

    Args:
      config: has the bounds, and the ranking by which ties are broken.
      segment: data of the segment.
      total: i32[], coordinates to give out.
      wanted: f32[N], sizes; those of nodes that do not exist do not matter.

    Returns:
      i32[N], sizes of the nodes' own vectors, adding up to min(total, entities x maximum).
    """
    chex.assert_rank(total, 0)
    chex.assert_equal_shape([wanted, segment.frequency])
    order = entities_order(config, segment)
    num_active = segment.users + segment.items
    shares = jnp.where(active_mask(segment), wanted, 0.0)[order]
    return allocate_by_order(config, shares, total, num_active, order)
