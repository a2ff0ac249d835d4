"""Sizes by a discounted linear bandit with upper confidence bounds: a stand-in for DESS (arXiv 2308.07760).

DESS chooses each entity's size at each step by a non-stationary LinUCB that forgets; its indicators, candidate sizes
and reward are not public in full. The replacements here are our own: the indicators of `entity_features`, sizes of the
family that DESS compares with, and as reward what a probe's sizes changed for an entity against uniform ones (or, where
rewards are relative to the last fit, how well the entity is served). The bandit itself is D-LinUCB (arXiv 1909.09146),
one for users and one for items. DESS knows no budget; here a price per parameter, the same for all, makes the sizes fit
it exactly.
"""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import sizes
from scall_jax.config import Config, SizesConfig
from scall_jax.methods.allocators import entities_order
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, SizePlanner, no_action
from scall_jax.methods.rivals.entity_features import INDICATORS, by_entity, indicators
from scall_jax.methods.rivals.probe_loop import ProbeSearch, ReferenceProbe, Trial, probing_planner
from scall_jax.policies import discounted_regression as discounted
from scall_jax.streams import Segment, active_mask, sides

CANDIDATE_SIZES = (2, 4, 8, 16, 64, 128)
"""Candidate sizes within the bounds, besides the smallest size."""

_FORGET = 0.99  # weight of what earlier probes showed, per probe
_RIDGE = 1.0
_NORM, _NOISE, _CHANCE = 1.0, 1.0, 0.1  # parameters of the confidence bound
_MOST_GAIN = 4.0  # bounds gains relative to early references, which may be close to 0
_POWERS = 3  # powers of the log size, from 0

FEATURES = _POWERS * (1 + len(INDICATORS))
"""Length of a feature vector."""


class DucbState(NamedTuple):
    """State of the planner: the sums of both bandits, two matrices and a vector of FEATURES a side."""

    users: discounted.Ridge
    items: discounted.Ridge
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


def candidate_sizes(config: SizesConfig) -> tuple[int, ...]:
    """The sizes to choose from, ascending.

    >>> candidate_sizes(SizesConfig(minimum=1, maximum=20))
    (1, 2, 4, 8, 16)
    """
    low, high = config.minimum, config.maximum
    return tuple(sorted({low, *(size for size in CANDIDATE_SIZES if low <= size <= high)}))


def features(context: jax.Array, size: jax.Array, maximum: int) -> jax.Array:
    """Features of entities at sizes: products of (1, indicators) and powers of the log size.

    Args:
      context: f32[n, I], indicators in [0, 1].
      size: i32[n], sizes.
      maximum: largest size, static.

    Returns:
      f32[n, 3 (1 + I)], each row of length 1 at most.

    >>> features(jnp.ones((2, 5)), jnp.array([1, 16]), 16).shape
    (2, 18)
    """
    chex.assert_rank([context, size], [2, 1])
    chex.assert_equal_shape_prefix([context, size], 1)
    scaled = jnp.log(jnp.maximum(size, 1).astype(jnp.float32)) / np.log(max(maximum, 2))
    powers = jnp.stack([scaled**i for i in range(_POWERS)], axis=1)
    context = jnp.concatenate([jnp.ones_like(context[:, :1]), context], axis=1)
    return (context[:, :, None] * powers[:, None, :]).reshape(context.shape[0], -1) / np.sqrt(FEATURES)


def worth(config: SizesConfig, state: discounted.Ridge, context: jax.Array, optimism: float) -> jax.Array:
    """Estimated reward of each candidate size.

    Args:
      config: has the bounds of sizes.
      state: sums of a bandit.
      context: f32[n, I], indicators.
      optimism: how many widths of the confidence interval to add.

    Returns:
      f32[n, K], K = len(candidate_sizes(config)).
    """
    chex.assert_rank(context, 2)
    vector = discounted.estimate(state)
    reach = optimism * discounted.radius(state, _RIDGE, _NORM, _NOISE, _CHANCE)

    def one(size):
        x = features(context, jnp.full(context.shape[0], size), config.maximum)
        return jnp.matmul(x, vector, precision="highest") + reach * discounted.confidence_width(state, x)

    return jax.lax.map(one, jnp.asarray(candidate_sizes(config), jnp.int32)).T


class Bandits(NamedTuple):
    """The bandits of both sides."""

    users: discounted.Ridge
    items: discounted.Ridge


def sizes_by_worth(
    config: SizesConfig, segment: Segment, total: jax.Array, context: jax.Array, bandits: Bandits, optimism: float
) -> jax.Array:
    """Sizes by the worth that the bandits estimate, at one price per coordinate for both sides.

    Args:
      config: has the bounds and the ranking.
      segment: data of the segment.
      total: i32[], coordinates to give out.
      context: f32[N, I], indicators.
      bandits: sums of the bandits.
      optimism: how many widths of the confidence interval to add to the estimates.

    Returns:
      i32[N], sizes of the nodes' own vectors, adding up to min(total, entities x maximum).
    """
    chex.assert_rank([total, context], [0, 2])
    capacity, _ = sides(segment)
    value = jnp.concatenate(
        [
            worth(config, bandits.users, context[:capacity], optimism),
            worth(config, bandits.items, context[capacity:], optimism),
        ]
    )
    bounds = (config.minimum, config.maximum)
    exists, order = active_mask(segment), entities_order(config, segment)
    return sizes.by_price(value, candidate_sizes(config), total, bounds, exists, order)


class _DucbCarry(NamedTuple):
    users: discounted.Ridge
    items: discounted.Ridge
    by_user: jax.Array  # f32[Q], of the reference
    scale: jax.Array  # f32[], fitness of the reference


@dataclasses.dataclass(frozen=True, eq=False)
class _DucbSetting:
    """What all probes of a segment share."""

    config: Config
    segment: Segment
    total: jax.Array  # i32[], coordinates to give out
    context: jax.Array  # f32[N, I], indicators


def ducb_search(context: SegmentContext) -> ProbeSearch:
    """The search of a segment, for `probe_loop.probe_in_turn`.

    Args:
      context: the segment.

    Returns:
      ProbeSearch whose probes all give out the whole budget.
    """
    total, _ = context.budget()
    setting = _DucbSetting(context.config, context.segment, total, indicators(context))
    return ProbeSearch(
        start=_start,
        propose=functools.partial(_propose, setting),
        update=functools.partial(_update, setting),
        finish=_finish,
    )


def _start(planner_state: DucbState, reference: ReferenceProbe) -> _DucbCarry:
    return _DucbCarry(planner_state.users, planner_state.items, reference.by_user.mean(1), reference.fitness)


def _propose(
    setting: _DucbSetting, carry: _DucbCarry, number: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del number, key
    config, bandits = setting.config, Bandits(carry.users, carry.items)
    own = sizes_by_worth(config.sizes, setting.segment, setting.total, setting.context, bandits, 1.0)
    return own, no_action(config)


def _update(setting: _DucbSetting, carry: _DucbCarry, number: jax.Array, key: jax.Array, trial: Trial) -> _DucbCarry:
    del number, key
    capacity, _ = sides(setting.segment)
    gain, observed = by_entity(setting.segment, trial.by_user.mean(1) - carry.by_user)
    scale = jnp.where(carry.scale > 0, carry.scale, 1.0)
    gain = jnp.clip(gain / scale, -_MOST_GAIN, _MOST_GAIN)
    x = features(setting.context, trial.sizes, setting.config.sizes.maximum)
    # Entities without parameters had no size to learn about.
    observed &= trial.sizes > 0

    def side(state: discounted.Ridge, part: slice) -> discounted.Ridge:
        return discounted.add_round(state, x[part], gain[part], observed[part], _FORGET, _RIDGE)

    users, items = side(carry.users, slice(None, capacity)), side(carry.items, slice(capacity, None))
    return carry._replace(users=users, items=items)


def _finish(planner_state: DucbState, carry: _DucbCarry) -> DucbState:
    return planner_state._replace(users=carry.users, items=carry.items)


def ducb_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of the bandits; planning needs f32[N, width] and f32[N, FEATURES] arrays.

    Args:
      config: configuration of the run.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each probe.

    Returns:
      SizePlanner whose state is a `DucbState`.
    """

    def init(key, storage):
        del key, storage
        nothing = discounted.empty(FEATURES, _RIDGE)
        return DucbState(nothing, nothing, jnp.float32(0))

    def sizes_of(context: SegmentContext) -> tuple[jax.Array, jax.Array]:
        total, _ = context.budget()
        bandit_context, planner_state = indicators(context), context.state.planner
        bandits = Bandits(planner_state.users, planner_state.items)
        own = sizes_by_worth(config.sizes, context.segment, total, bandit_context, bandits, 0.0)
        return own, no_action(config)

    return probing_planner(init, ducb_search, sizes_of, config, on_probes)
