"""Sizes that only grow: ESAPN (Liu et al., SIGIR 2020), a policy per side that says which entities grow.

An entity starts at size 2, as in the paper, whatever `sizes.minimum` allows below it, and keeps it through the first
segment, which is not searched. A policy observes how popular an entity is and its size, and says how likely it is to
take the next larger size. It learns by REINFORCE from growth that is drawn at random, and sizes follow its likelier
choice. The paper does both at every batch and takes the loss of the entity's own samples for the reward. Here both
happen at every probe, and the reward is how well the entity is served after it, less the mean of that over the
segment's probes before. Batch normalisation over a batch of samples has become normalisation of each entity's own
features, and a probe has as many updates a side as it has parts of its entities.

The paper serves no budget: here growth is admitted from the likeliest on as long as it fits, so that sizes stay at the
budget or below. Where the first sizes of the new entities do not fit beside the sizes of the others, or the budget
falls below them, all sizes shrink in proportion, to the budget exactly.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from scall_jax.config import Config, SizesConfig
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, SizePlanner, no_action
from scall_jax.methods.rivals.ducb import CANDIDATE_SIZES
from scall_jax.methods.rivals.entity_features import by_entity, fill
from scall_jax.methods.rivals.probe_loop import ProbeSearch, ReferenceProbe, Trial, probing_planner
from scall_jax.ops.keys import Purpose, by_side, derive
from scall_jax.ops.sums import by_rows, padded_sum_by_side
from scall_jax.streams import Segment, active_mask, sides

START_SIZE = 2
"""Size that entities start at, where the bounds of sizes contain it; published."""

_BUCKETS, _EMBEDDED, _HIDDEN = 32, 32, 512
_RATE = 1e-3  # 1e-4 in the paper, which makes an update every 500 samples
_PARTS = 8  # parts that the entities are split into after a probe, with an update each
_MOST_REWARD = 4.0


def growing_sizes(config: SizesConfig) -> tuple[int, ...]:
    """The sizes that an entity grows through, ascending; the first is the one that it starts at.

    >>> growing_sizes(SizesConfig(minimum=0, maximum=20)), growing_sizes(SizesConfig(minimum=4, maximum=20))
    ((2, 4, 8, 16), (4, 8, 16))
    """
    start = min(max(START_SIZE, config.minimum), config.maximum)
    return tuple(sorted({start, *(size for size in CANDIDATE_SIZES if start <= size <= config.maximum)}))


class Growth(nn.Module):
    """Network of a policy: the logit of growing, f32[n], by popularity and size."""

    sizes: int
    """Number of candidate sizes."""

    @nn.compact
    def __call__(self, bucket: jax.Array, place: jax.Array) -> jax.Array:
        """The logit of i32[n] buckets of popularity and i32[n] places of sizes among the candidates."""
        popularity = nn.LayerNorm()(nn.Embed(_BUCKETS, _EMBEDDED)(bucket))
        x = jnp.concatenate([popularity, jax.nn.one_hot(place, self.sizes)], axis=-1)
        x = jnp.tanh(nn.LayerNorm()(nn.Dense(_HIDDEN)(x)))
        logits = nn.Dense(2)(x)
        return logits[..., 1] - logits[..., 0]


def _logit(net: Growth, params: Any, bucket: jax.Array, place: jax.Array) -> jax.Array:
    def of_rows(params: Any, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        return cast(jax.Array, net.apply(params, *rows))

    return by_rows(of_rows, params, (bucket, place))


class GrowthPolicy(NamedTuple):
    """The policy of a side and its optimiser."""

    params: Any
    opt_state: optax.OptState


class EsapnState(NamedTuple):
    """State of the planner: policies and sizes."""

    users: GrowthPolicy
    items: GrowthPolicy
    sizes: jax.Array  # i32[N], -1 for entities that did not exist, since 0 is a size
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


def buckets(count: jax.Array) -> jax.Array:
    """Buckets of popularity: four to each power of two, at most 32.

    Args:
      count: i32[n], interactions.

    Returns:
      i32[n].

    >>> buckets(jnp.array([0, 1, 3, 10**9])).tolist()
    [0, 4, 8, 31]
    """
    chex.assert_rank(count, 1)
    return jnp.minimum(4 * jnp.log2(1 + count.astype(jnp.float32)), _BUCKETS - 1).astype(jnp.int32)


def next_size(own: jax.Array, choices: tuple[int, ...]) -> jax.Array:
    """The candidate above each size, or the size itself where there is none.

    Args:
      own: i32[n], sizes.
      choices: candidate sizes, ascending, static.

    Returns:
      i32[n].

    >>> next_size(jnp.array([1, 3, 8]), (1, 2, 4, 8)).tolist()
    [2, 4, 8]
    """
    chex.assert_rank(own, 1)
    place = jnp.searchsorted(jnp.asarray(choices), own, side="right")
    return jnp.where(place < len(choices), jnp.asarray(choices, jnp.int32)[jnp.minimum(place, len(choices) - 1)], own)


def place_of(own: jax.Array, choices: tuple[int, ...]) -> jax.Array:
    """Place of the largest candidate that is not above each size; 0 where all are.

    Args:
      own: i32[n], sizes.
      choices: candidate sizes, ascending, static.

    Returns:
      i32[n].

    >>> place_of(jnp.array([1, 3, 8]), (1, 2, 4, 8)).tolist()
    [0, 1, 3]
    """
    chex.assert_rank(own, 1)
    return jnp.clip(jnp.searchsorted(jnp.asarray(choices), own, side="right") - 1, 0, len(choices) - 1)


def admitted(wish: jax.Array, likely: jax.Array, cost: jax.Array, room: jax.Array) -> jax.Array:
    """Admit growth from the likeliest entity on, until the first that does not fit.

    Args:
      wish: bool[n], entities that want to grow.
      likely: f32[n], how likely each is to grow; of equal ones the first comes first.
      cost: i32[n], coordinates that its growth takes.
      room: i32[], coordinates that are left.

    Returns:
      bool[n], entities that grow.

    >>> likely, cost = jnp.array([0.1, 0.9, 0.5]), jnp.array([1, 2, 2])
    >>> admitted(jnp.ones(3, bool), likely, cost, jnp.int32(4)).tolist()
    [False, True, True]
    """
    chex.assert_rank([wish, likely, cost, room], [1, 1, 1, 0])
    chex.assert_equal_shape([wish, likely, cost])
    index = jnp.arange(wish.shape[0], dtype=jnp.int32)
    _, order = jax.lax.sort((jnp.where(wish, -likely, jnp.inf), index), num_keys=2)
    spent = jnp.cumsum(jnp.where(wish, cost, 0)[order])
    return jnp.zeros_like(wish).at[order].set(spent <= room) & wish


class Decisions(NamedTuple):
    """Decisions of a policy on n entities, and what came of them."""

    bucket: jax.Array  # i32[n], popularity
    place: jax.Array  # i32[n], size as a place among the candidates
    grew: jax.Array  # bool[n]
    advantage: jax.Array  # f32[n], reward less what was usual
    weight: jax.Array  # f32[n], 1 for the entities to learn from, else 0


def reinforce_loss(net: Growth, params: Any, decisions: Decisions) -> jax.Array:
    """Loss of REINFORCE: minus the mean of log-likelihood x advantage over the entities of weight 1.

    Args:
      net: the network.
      params: its parameters.
      decisions: what was drawn, and what came of it.

    Returns:
      f32[].
    """
    chex.assert_rank(list(decisions), 1)
    chex.assert_equal_shape(list(decisions))
    logit = _logit(net, params, decisions.bucket, decisions.place)
    likelihood = jax.nn.log_sigmoid(jnp.where(decisions.grew, logit, -logit))
    weight = decisions.weight
    return -(weight * decisions.advantage * likelihood).sum() / jnp.maximum(weight.sum(), 1.0)


def starting_sizes(config: SizesConfig, segment: Segment, total: jax.Array, previous_sizes: jax.Array) -> jax.Array:
    """Sizes before any growth: those of the segment before, and the first of `growing_sizes` for new entities.

    Args:
      config: has the bounds and the ranking.
      segment: data of the segment.
      total: i32[], coordinates to give out; where the sizes exceed it, all shrink in proportion.
      previous_sizes: i32[N], sizes of the segment before, -1 for new entities.

    Returns:
      i32[N], sizes of the nodes' own vectors.
    """
    chex.assert_rank(total, 0)
    chex.assert_equal_shape([previous_sizes, segment.frequency])
    known = jnp.maximum(previous_sizes, config.minimum)
    start = jnp.where(previous_sizes >= 0, known, growing_sizes(config)[0])
    start = jnp.where(active_mask(segment), start, 0)
    return jax.lax.cond(
        start.sum() <= total,
        lambda: start,
        lambda: fill(config, segment, total, start.astype(jnp.float32)),
    )


class _EsapnCarry(NamedTuple):
    users: GrowthPolicy
    items: GrowthPolicy
    own: jax.Array  # i32[N]
    served: jax.Array  # f32[N], sum of how well entities are served over the probes, and the reference if it is one
    count: jax.Array  # f32[], addends of `served`
    scale: jax.Array  # f32[], fitness of the reference
    chance: jax.Array  # f32[N] in [0, 1): nodes grow in the next probe if they are likelier to than this


@dataclasses.dataclass(frozen=True, eq=False)
class _EsapnSetting:
    """What all probes of a segment share."""

    context: SegmentContext
    total: jax.Array  # i32[], coordinates to give out
    bucket: jax.Array  # i32[N], popularity

    @property
    def choices(self) -> tuple[int, ...]:
        """Candidate sizes."""
        return growing_sizes(self.context.config.sizes)

    @property
    def net(self) -> Growth:
        """The network of both sides' policies."""
        return Growth(len(self.choices))

    @property
    def parts(self) -> tuple[slice, slice]:
        """Nodes of the users and of the items."""
        capacity, _ = sides(self.context.segment)
        return slice(None, capacity), slice(capacity, None)


def esapn_search(context: SegmentContext) -> ProbeSearch:
    """The search of a segment, for `probe_loop.probe_in_turn`.

    Args:
      context: the segment.

    Returns:
      ProbeSearch whose probes may give out less than the budget.
    """
    total, _ = context.budget()
    setting = _EsapnSetting(context, total, buckets(context.segment.total))
    return ProbeSearch(
        start=functools.partial(_start, setting),
        propose=functools.partial(_propose, setting),
        update=functools.partial(_update, setting),
        finish=functools.partial(_finish, setting),
        fills_budget=False,
    )


def _start(setting: _EsapnSetting, planner_state: EsapnState, reference: ReferenceProbe) -> _EsapnCarry:
    config, segment = setting.context.config, setting.context.segment
    scale = jnp.where(reference.fitness > 0, reference.fitness, 1.0)
    value, has_value = by_entity(segment, reference.by_user.mean(1) / scale)
    count = jnp.float32(config.search.reference == "uniform")
    own = starting_sizes(config.sizes, segment, setting.total, planner_state.sizes)
    chance = _chance(setting, setting.context.search_key())
    served = count * jnp.where(has_value, value, 0.0)
    return _EsapnCarry(planner_state.users, planner_state.items, own, served, count, scale, chance)


def _chance(setting: _EsapnSetting, key: jax.Array) -> jax.Array:
    return by_side(jax.random.uniform, derive(key, Purpose.GROWTH), *sides(setting.context.segment))


def _logits(setting: _EsapnSetting, users: GrowthPolicy, items: GrowthPolicy, own: jax.Array) -> jax.Array:
    """Logits of growing of all nodes at sizes i32[N], f32[N]."""
    place = place_of(own, setting.choices)
    by_side = [
        _logit(setting.net, policy.params, setting.bucket[part], place[part])
        for policy, part in zip((users, items), setting.parts, strict=True)
    ]
    return jnp.concatenate(by_side)


def _grown(setting: _EsapnSetting, own: jax.Array, wish: jax.Array, likely: jax.Array) -> jax.Array:
    """Sizes i32[N] after the growth that is admitted."""
    larger = next_size(own, setting.choices)
    can_grow = wish & active_mask(setting.context.segment) & (larger > own)
    grows = admitted(can_grow, likely, larger - own, setting.total - own.sum())
    return jnp.where(grows, larger, own)


def _drawn(setting: _EsapnSetting, carry: _EsapnCarry) -> tuple[jax.Array, jax.Array]:
    """Logits f32[N], and which nodes are drawn to grow, bool[N]."""
    logit = _logits(setting, carry.users, carry.items, carry.own)
    return logit, carry.chance < jax.nn.sigmoid(logit)


def _propose(
    setting: _EsapnSetting, carry: _EsapnCarry, number: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del number, key
    logit, wish = _drawn(setting, carry)
    return _grown(setting, carry.own, wish, logit), no_action(setting.context.config)


def _update(setting: _EsapnSetting, carry: _EsapnCarry, number: jax.Array, key: jax.Array, trial: Trial) -> _EsapnCarry:
    del number
    value, has_value = by_entity(setting.context.segment, trial.by_user.mean(1) / carry.scale)
    total = padded_sum_by_side(jnp.where(has_value, value, 0.0), sides(setting.context.segment)[0])
    mean = total / jnp.maximum(has_value.sum(), 1).astype(jnp.float32)
    usual = jnp.where(carry.count > 0, carry.served / jnp.maximum(carry.count, 1.0), mean)
    advantage = jnp.clip(value - usual, -_MOST_REWARD, _MOST_REWARD)
    place, grew = place_of(carry.own, setting.choices), trial.sizes > carry.own
    sides_of = sides(setting.context.segment)
    part_of = by_side(jax.random.randint, derive(key, Purpose.PART), *sides_of, minval=0, maxval=_PARTS)
    # Learn only from entities that could grow and whose sampled decision was carried out.
    _, wish = _drawn(setting, carry)
    carried_out = has_value & (next_size(carry.own, setting.choices) > carry.own) & (grew | ~wish)

    def side(policy: GrowthPolicy, part: slice) -> GrowthPolicy:
        def one(i, policy):
            weight = (carried_out[part] & (part_of[part] == i)).astype(jnp.float32)
            decisions = Decisions(setting.bucket[part], place[part], grew[part], advantage[part], weight)
            return _updated_policy(setting.net, policy, decisions)

        return jax.lax.fori_loop(0, _PARTS, one, policy)

    users, items = setting.parts
    users, items = side(carry.users, users), side(carry.items, items)
    logit = _logits(setting, users, items, carry.own)
    own = _grown(setting, carry.own, logit > 0, logit)
    served = carry.served + jnp.where(has_value, value, 0.0)
    carry = carry._replace(users=users, items=items, own=own, chance=_chance(setting, key))
    return carry._replace(served=served, count=carry.count + 1)


def _updated_policy(net: Growth, policy: GrowthPolicy, decisions: Decisions) -> GrowthPolicy:
    gradient = jax.grad(lambda params: reinforce_loss(net, params, decisions))(policy.params)
    changes, opt_state = optax.adam(_RATE).update(gradient, policy.opt_state)
    return GrowthPolicy(optax.apply_updates(policy.params, changes), opt_state)


def _finish(setting: _EsapnSetting, planner_state: EsapnState, carry: _EsapnCarry) -> EsapnState:
    sizes = jnp.where(active_mask(setting.context.segment), carry.own, -1)
    return planner_state._replace(users=carry.users, items=carry.items, sizes=sizes)


def esapn_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of ESAPN.

    Args:
      config: configuration of the run.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each probe.

    Returns:
      SizePlanner whose state is an `EsapnState`.
    """
    choices, adam = growing_sizes(config.sizes), optax.adam(_RATE)

    def new_policy(key):
        params = Growth(len(choices)).init(key, jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
        return GrowthPolicy(params, adam.init(params))

    def init(key, storage):
        key = derive(key, Purpose.POLICY_INIT)
        users, items = (new_policy(derive(key, side)) for side in (Purpose.USERS, Purpose.ITEMS))
        return EsapnState(users, items, jnp.full(storage.nodes, -1, jnp.int32), jnp.float32(0))

    def sizes_of(context: SegmentContext) -> tuple[jax.Array, jax.Array]:
        total, _ = context.budget()
        own = starting_sizes(config.sizes, context.segment, total, context.state.planner.sizes)
        return own, no_action(config)

    return probing_planner(init, esapn_search, sizes_of, config, on_probes, uniform_start=False)
