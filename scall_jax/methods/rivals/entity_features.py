"""What rivals that decide for each entity see of it: indicators of its behaviour, and how well it is served."""

import jax
import jax.numpy as jnp

from scall_jax import sizes
from scall_jax.config import SizesConfig
from scall_jax.methods.allocators import entities_order
from scall_jax.methods.context import SegmentContext
from scall_jax.recommenders.graph import propagate
from scall_jax.streams import Graph, Segment, active_mask, sides

INDICATORS = ("activity", "history", "freshness", "niche", "diversity")
"""Log frequency in the segment and before the cut, each relative to the side's largest; part of the interactions that
is the segment's; one minus the mean activity of what the entity touched; one minus the mean cosine of its vectors."""


def indicators(context: SegmentContext) -> jax.Array:
    """The indicators of `INDICATORS`, each in [0, 1]; f32[N, 5], 0 for who does not exist.

    Works on an f32[N, width] array, the vectors that the state holds.
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
    found = jnp.stack([activity, history, freshness, niche, diversity], axis=1)
    return jnp.where(touched[:, None], jnp.clip(found, 0.0, 1.0), 0.0)


def scaled_frequency(config: SizesConfig, segment: Segment) -> jax.Array:
    """Frequencies, as `SizesConfig.ranking` says, relative to the largest of the side; f32[N]."""
    users, _ = sides(segment)
    count = segment.frequency if config.ranking == "segment" else segment.total
    return _by_side(count.astype(jnp.float32), users)


def mean_of_neighbours(graph: Graph, x: jax.Array) -> jax.Array:
    """Mean of f32[N, C] over the neighbours of each node, 0 where there are none."""
    root = jnp.sqrt(jnp.diff(graph.indptr).astype(jnp.float32))[:, None]
    return propagate(graph, root * x) / jnp.maximum(root, 1.0)


def _by_side(values, users):
    return jnp.concatenate([side / jnp.maximum(side.max(), 1e-6) for side in (values[:users], values[users:])])


def by_entity(segment: Segment, by_user: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A value of users handed on to items.

    Args:
      segment: whose positives say which users an item has.
      by_user: f32[Q], of the first Q users of valid.

    Returns:
      f32[N]: of each user its own value, of each item the mean over its users that have one; 0 without any.
      bool[N]: who has a value.
    """
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
    return jnp.concatenate([value, total / jnp.maximum(count, 1.0)]), jnp.concatenate([known, count]) > 0


def fill(config: SizesConfig, segment: Segment, total: jax.Array, wanted: jax.Array) -> jax.Array:
    """Wanted sizes f32[N] scaled by one factor to own sizes i32[N] of the whole budget."""
    order = entities_order(config, segment)
    num_active = segment.users + segment.items
    shares = jnp.where(active_mask(segment), wanted, 0.0)[order]
    return sizes.assign(sizes.allocate(shares, total, config.minimum, config.maximum, num_active=num_active), order)
