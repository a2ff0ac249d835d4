"""Sizes by a discounted linear bandit with upper confidence bounds: a stand-in for DESS (arXiv 2308.07760).

DESS chooses each entity's size at each step by a non-stationary LinUCB that forgets; its indicators, candidate sizes
and reward are not public in full. What stands in for them here is our own: the indicators of `entities`, sizes of the
family DESS compares with, and as reward what a probe's sizes changed for an entity against uniform ones (or, where
rewards are relative to the last fit, how well the entity is served). The bandit itself is D-LinUCB (arXiv 1909.09146),
one for users and one for items. DESS knows no budget; here a price per parameter, the same for all, makes the sizes
fit it exactly.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import sizes
from scall_jax.config import Config
from scall_jax.methods.allocators import entities_order
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import SizePlanner, no_action
from scall_jax.methods.rivals.entity_features import INDICATORS, by_entity, indicators
from scall_jax.methods.rivals.probe_loop import Search, probing_planner
from scall_jax.policies import discounted_regression as discounted
from scall_jax.streams.segments import active_mask, sides

SIZES = (2, 4, 8, 16, 64, 128)
"""Candidate sizes, besides the least size and within the bounds."""

_FORGET = 0.99  # per probe
_RIDGE = 1.0
_NORM, _NOISE, _CHANCE = 1.0, 1.0, 0.1  # of the confidence bound
_MOST_GAIN = 4.0  # early references may be next to nothing
_POWERS = 3  # of the log size, from 0
FEATURES = _POWERS * (1 + len(INDICATORS))


class DucbState(NamedTuple):
    """Sums of both bandits: two matrices and a vector of FEATURES a side."""

    users: discounted.Ridge
    items: discounted.Ridge
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


def candidate_sizes(config: Config) -> tuple[int, ...]:
    """Sizes to choose from."""
    low, high = config.sizes.minimum, config.sizes.maximum
    return tuple(sorted({low, *(size for size in SIZES if low <= size <= high)}))


def features(context: jax.Array, size: jax.Array, maximum: int) -> jax.Array:
    """Products of (1, indicators f32[n, 5]) and powers of the log size of i32[n], of length 1 at most; f32[n, k]."""
    scaled = jnp.log(jnp.maximum(size, 1).astype(jnp.float32)) / np.log(max(maximum, 2))
    powers = jnp.stack([scaled**i for i in range(_POWERS)], axis=1)
    context = jnp.concatenate([jnp.ones_like(context[:, :1]), context], axis=1)
    return (context[:, :, None] * powers[:, None, :]).reshape(context.shape[0], -1) / np.sqrt(FEATURES)


def worth(state: discounted.Ridge, context: jax.Array, choices: tuple[int, ...], maximum: int, optimism) -> jax.Array:
    """Estimated reward of each size, plus `optimism` x its confidence width; f32[n, K]."""
    vector = discounted.estimate(state)
    reach = optimism * discounted.radius(state, _RIDGE, _NORM, _NOISE, _CHANCE)

    def one(size):
        x = features(context, jnp.full(context.shape[0], size), maximum)
        return jnp.matmul(x, vector, precision="highest") + reach * discounted.width(state, x)

    return jax.lax.map(one, jnp.asarray(choices, jnp.int32)).T


def sizes_by_worth(config: Config, segment, total, context, users, items, optimism: float) -> jax.Array:
    """Own sizes i32[N] of both sides' bandits at one price."""
    choices, (capacity, _) = candidate_sizes(config), sides(segment)
    value = jnp.concatenate(
        [
            worth(users, context[:capacity], choices, config.sizes.maximum, optimism),
            worth(items, context[capacity:], choices, config.sizes.maximum, optimism),
        ]
    )
    bounds = (config.sizes.minimum, config.sizes.maximum)
    return sizes.by_price(value, choices, total, *bounds, active_mask(segment), entities_order(config.sizes, segment))


class _DucbCarry(NamedTuple):
    users: discounted.Ridge
    items: discounted.Ridge
    by_user: jax.Array  # f32[Q], of the reference
    scale: jax.Array  # f32[], fitness of the reference


def ducb_search(context: SegmentContext) -> Search:
    """The search of a segment."""
    config, segment = context.config, context.segment
    capacity, _ = sides(segment)
    total, _ = context.budget()
    bandit_context = indicators(context)

    def begin(kept, reference):
        return _DucbCarry(kept.users, kept.items, reference.by_user.mean(1), reference.fitness)

    def propose(carry, number, key):
        del number, key
        own = sizes_by_worth(config, segment, total, bandit_context, carry.users, carry.items, 1.0)
        return own, no_action(config)

    def learn(carry, number, key, trial):
        del number, key
        gain, seen = by_entity(segment, trial.by_user.mean(1) - carry.by_user)
        scale = jnp.where(carry.scale > 0, carry.scale, 1.0)
        gain = jnp.clip(gain / scale, -_MOST_GAIN, _MOST_GAIN)
        x = features(bandit_context, trial.sizes, config.sizes.maximum)
        # an entity without parameters had no size to learn about
        seen &= trial.sizes > 0

        def side(kept, part):
            return discounted.observe(kept, x[part], gain[part], seen[part], _FORGET, _RIDGE)

        return carry._replace(
            users=side(carry.users, slice(None, capacity)), items=side(carry.items, slice(capacity, None))
        )

    def end(kept, carry):
        return kept._replace(users=carry.users, items=carry.items)

    return Search(begin, propose, learn, end)


def ducb_planner(config: Config, progress: Callable | None = None) -> SizePlanner:
    """The chooser; works on f32[N, width] and f32[N, FEATURES] arrays while it chooses."""

    def init(key, storage):
        del key, storage
        nothing = discounted.empty(FEATURES, _RIDGE)
        return DucbState(nothing, nothing, jnp.float32(0))

    def sizes_of(context):
        total, _ = context.budget()
        bandit_context, kept = indicators(context), context.state.planner
        own = sizes_by_worth(config, context.segment, total, bandit_context, kept.users, kept.items, 0.0)
        return own, no_action(config)

    return probing_planner(init, ducb_search, sizes_of, config, progress)
