"""Sizes by one decision per entity: CIESS (Qu et al., SIGIR 2023), twin delayed deep deterministic policy gradient.

Two agents, one for users and one for items, move every entity's size from one probe to the next. An entity's state is
its frequency, its size and how well it is served; the reward is the last of these after the probe, less a price on the
square of its size. The actor's size is the start of a random walk on the sizes, of which the critic takes the best
place. The best probed sizes are trained once more, and the winner sizes the segment.

Differences from the paper. It serves no budget: here all sizes are scaled by one factor to fill it exactly within their
bounds, and the agents learn from what was given out. It measures how well an entity is served relative to a table of
full size, which is not within the budget: here it is relative to the mean of users under the reference of the probes,
and at 20 alone, not at 5, 10 and 20. It makes 300 short trainings with an update each: here there are fewer probes, as
many as SCALL makes, and several updates after each.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import optax

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, SizePlanner, no_action
from scall_jax.methods.probe import most_probes
from scall_jax.methods.rivals.entity_features import EntityValues, by_entity, fill, scaled_frequency
from scall_jax.methods.rivals.probe_loop import ProbeSearch, ReferenceProbe, Trial, probing_planner, retrained
from scall_jax.ops.keys import Purpose, derive, derive_many
from scall_jax.policies.networks import Actor, TwinCritic
from scall_jax.streams import Segment, active_mask, sides

_SIDES = (Purpose.USERS, Purpose.ITEMS)
_WIDTHS = (256, 256)
_GAMMA, _TAU = 0.99, 0.005
_DELAY = 2  # updates of the critic for one of the actor
_NOISE, _MOST_NOISE = 2.0, 5.0  # noise on the target's action and its bound, in coordinates
_ACTOR_RATE, _CRITIC_RATE, _CLIP = 1e-3, 3e-3, 0.01
_BATCH = 4096
_PRICE = 0.2  # price of (size / largest size)^2; published: 0.4 on MovieLens-1M, 0.2 on Yelp2018
_STEPS, _REACH = 5, 5  # steps of the random walk, and the longest of them in coordinates
_SHIFT = 6.0  # standard deviation of the shift of all sizes of a probe, in coordinates
_UPDATES = 8  # updates after each probe
_MOST_QUALITY = 1.0  # This is the published bound.

ACTOR, CRITIC = Actor(1, _WIDTHS), TwinCritic(_WIDTHS)


class ActorCritic(NamedTuple):
    """The agent of a side: networks, their targets and optimisers."""

    actor: Any
    critic: Any
    target_actor: Any
    target_critic: Any
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    updates: jax.Array  # i32[], updates of the critic so far


class CiessState(NamedTuple):
    """State of the planner: the agents and the best sizes."""

    users: ActorCritic
    items: ActorCritic
    sizes: jax.Array  # i32[N], -1 for entities that did not exist, since 0 is a size
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


class SizeBounds(NamedTuple):
    """Bounds of sizes in coordinates, static."""

    low: int
    high: int

    @property
    def span(self) -> int:
        """The distance between the bounds, at least 1."""
        return max(self.high - self.low, 1)

    def place(self, size: jax.Array) -> jax.Array:
        """Where sizes f32[...] lie between the bounds, in [0, 1]."""
        return jnp.clip((size - self.low) / self.span, 0.0, 1.0)

    def size(self, place: jax.Array) -> jax.Array:
        """The inverse of `place`, not rounded."""
        return self.low + place * (self.high - self.low)


class Batch(NamedTuple):
    """Transitions of single entities."""

    state: jax.Array  # f32[n, 3]
    action: jax.Array  # f32[n, 1], place of the size between the bounds
    reward: jax.Array  # f32[n]
    next_state: jax.Array  # f32[n, 3]


def _adam(rate):
    return optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(rate))


def _act(actor: Any, state: jax.Array) -> jax.Array:
    return cast(jax.Array, ACTOR.apply(actor, state))


def _value(critic: Any, state: jax.Array, action: jax.Array) -> jax.Array:
    return cast(jax.Array, CRITIC.apply(critic, state, action))


def new_agent(key: jax.Array) -> ActorCritic:
    """An agent with random networks, whose targets are copies of them.

    Args:
      key: typed PRNG key.

    Returns:
      ActorCritic.
    """
    actor = ACTOR.init(derive(key, Purpose.ACTOR), jnp.zeros(3))
    critic = CRITIC.init(derive(key, Purpose.CRITIC), jnp.zeros(3), jnp.zeros(1))
    opt_state = _adam(_ACTOR_RATE).init(actor), _adam(_CRITIC_RATE).init(critic)
    return ActorCritic(actor, critic, actor, critic, *opt_state, jnp.int32(0))


def td3_targets(
    agent: ActorCritic, reward: jax.Array, next_state: jax.Array, noise: jax.Array, span: float
) -> jax.Array:
    """Targets of the critic, r + γ min Q'(s', π'(s') + noise) (TD3, arXiv 1802.09477, algorithm 1).

    Args:
      agent: has the target networks.
      reward: f32[n].
      next_state: f32[n, 3].
      noise: f32[n, 1], standard normal.
      span: the distance between the bounds of sizes, which scales the noise from coordinates.

    Returns:
      f32[n].
    """
    chex.assert_rank([reward, next_state, noise], [1, 2, 2])
    chex.assert_equal_shape_prefix([reward, next_state, noise], 1)
    shift = jnp.clip(_NOISE * noise, -_MOST_NOISE, _MOST_NOISE) / span
    action = jnp.clip(_act(agent.target_actor, next_state) + shift, 0.0, 1.0)
    return reward + _GAMMA * _value(agent.target_critic, next_state, action).min(-1)


def update_agent(agent: ActorCritic, batch: Batch, noise: jax.Array, span: float) -> ActorCritic:
    """Update the critic, and every other time the actor and the targets (TD3, arXiv 1802.09477, algorithm 1).

    Args:
      agent: the agent before the update.
      batch: n transitions.
      noise: f32[n, 1], standard normal.
      span: the distance between the bounds of sizes.

    Returns:
      ActorCritic after the update.
    """
    chex.assert_rank([batch.state, batch.action], 2)
    wanted = td3_targets(agent, batch.reward, batch.next_state, noise, span)

    def critic_loss(critic):
        return ((_value(critic, batch.state, batch.action) - wanted[:, None]) ** 2).sum(-1).mean()

    changes, critic_opt_state = _adam(_CRITIC_RATE).update(jax.grad(critic_loss)(agent.critic), agent.critic_opt_state)
    critic = optax.apply_updates(agent.critic, changes)
    agent = agent._replace(critic=critic, critic_opt_state=critic_opt_state, updates=agent.updates + 1)

    def actor_loss(actor):
        return -_value(critic, batch.state, _act(actor, batch.state))[..., 0].mean()

    def delayed():
        changes, actor_opt_state = _adam(_ACTOR_RATE).update(jax.grad(actor_loss)(agent.actor), agent.actor_opt_state)
        actor = optax.apply_updates(agent.actor, changes)
        return agent._replace(
            actor=actor,
            actor_opt_state=actor_opt_state,
            target_actor=optax.incremental_update(actor, agent.target_actor, _TAU),
            target_critic=optax.incremental_update(critic, agent.target_critic, _TAU),
        )

    return jax.lax.cond(agent.updates % _DELAY == 0, delayed, lambda: agent)


def walk(key: jax.Array, start: jax.Array, bounds: SizeBounds) -> jax.Array:
    """Random walks on the sizes.

    Sizes at most 5 apart are neighbours; a step goes to one of them with a probability inverse to its distance.

    Args:
      key: typed PRNG key.
      start: i32[n], the sizes to start from.
      bounds: bounds of sizes.

    Returns:
      i32[6, n], the places of each walk, the start first.
    """
    chex.assert_rank(start, 1)
    offset = jnp.asarray([i for i in range(-_REACH, _REACH + 1) if i], jnp.int32)
    weight = -jnp.log(jnp.abs(offset).astype(jnp.float32))[None, :]

    def step(at, step_key):
        ahead = at[:, None] + offset[None, :]
        allowed = (ahead >= bounds.low) & (ahead <= bounds.high)
        picked = jax.random.categorical(step_key, jnp.where(allowed, weight, -jnp.inf), axis=1)
        at = jnp.where(allowed.any(1), at + offset[picked], at)
        return at, at

    _, places = jax.lax.scan(step, start, derive_many(key, Purpose.WALK, count=_STEPS))
    return jnp.concatenate([start[None], places])


def explore_sizes(agent: ActorCritic, key: jax.Array, state: jax.Array, bounds: SizeBounds) -> jax.Array:
    """The size of each entity: the one that the critic prefers along a random walk from the actor's size.

    Args:
      agent: the agent of the entities' side.
      key: typed PRNG key.
      state: f32[n, 3], as `entity_states` gives it.
      bounds: bounds of sizes.

    Returns:
      i32[n].
    """
    chex.assert_shape(state, (None, 3))
    start = jnp.round(bounds.size(_act(agent.actor, state)[:, 0])).astype(jnp.int32)
    places = walk(key, start, bounds)
    value = jax.lax.map(lambda place: _value(agent.critic, state, bounds.place(place)[:, None]).min(-1), places)
    return jnp.take_along_axis(places, value.argmax(0)[None], axis=0)[0]


def entity_states(frequency: jax.Array, own: jax.Array, quality: jax.Array, bounds: SizeBounds) -> jax.Array:
    """States of entities: frequency and size, each moved to [-1, 1], and how well they are served.

    Args:
      frequency: f32[n] in [0, 1].
      own: i32[n], sizes.
      quality: f32[n], metrics relative to the mean of users under the reference.
      bounds: bounds of sizes.

    Returns:
      f32[n, 3].

    >>> entity_states(jnp.array([0.5]), jnp.array([6]), jnp.array([0.75]), SizeBounds(0, 8)).tolist()
    [[0.0, 0.5, 0.75]]
    """
    chex.assert_rank([frequency, own, quality], 1)
    chex.assert_equal_shape([frequency, own, quality])
    return jnp.stack([2 * frequency - 1, 2 * bounds.place(own) - 1, quality], axis=-1)


class History(NamedTuple):
    """The entities of a side over the probes of a segment, n of them; the first row is before the first probe."""

    own: jax.Array  # i32[M + 1, n], sizes
    quality: jax.Array  # f32[M + 1, n]
    frequency: jax.Array  # f32[n] in [0, 1]
    has_value: jax.Array  # bool[n], entities whose quality is measured


def draw_batch(key: jax.Array, history: History, number: jax.Array, bounds: SizeBounds) -> Batch:
    """Draw transitions between successive rows of a history.

    Args:
      key: typed PRNG key.
      history: sizes and quality, of which the rows up to `number` + 1 are in use.
      number: i32[], number of the last probe.
      bounds: bounds of sizes.

    Returns:
      4,096 transitions of entities whose quality is measured.
    """
    chex.assert_equal_shape([history.own, history.quality])
    chex.assert_equal_shape([history.frequency, history.has_value])
    row = jax.random.randint(derive(key, Purpose.ROW), (_BATCH,), 0, number + 1)
    ends, entity_key = jnp.cumsum(history.has_value.astype(jnp.int32)), derive(key, Purpose.ENTITY)
    entity = jnp.searchsorted(ends, jax.random.randint(entity_key, (_BATCH,), 0, ends[-1]), side="right")

    def state_after(probes: int) -> jax.Array:
        frequency = history.frequency[entity]
        own, quality = history.own[row + probes, entity], history.quality[row + probes, entity]
        return entity_states(frequency, own, quality, bounds)

    state, next_state = state_after(0), state_after(1)
    given = history.own[row + 1, entity]
    reward = history.quality[row + 1, entity] - _PRICE * ((given - bounds.low) / bounds.high) ** 2
    return Batch(state, bounds.place(given)[:, None], reward, next_state)


class _CiessCarry(NamedTuple):
    users: ActorCritic
    items: ActorCritic
    own: jax.Array  # i32[M + 1, N], sizes before the first probe, then those of each
    quality: jax.Array  # f32[M + 1, N]
    ratio: jax.Array  # f32[M], -inf for probes that have not been made
    scale: jax.Array  # f32[], fitness of the reference


@dataclasses.dataclass(frozen=True, eq=False)
class _CiessSetting:
    """What all probes of a segment share."""

    config: Config
    segment: Segment
    total: jax.Array  # i32[], coordinates to give out
    frequency: jax.Array  # f32[N]
    explored: jax.Array  # bool[M], probes of new sizes; the others repeat the best of these

    @property
    def bounds(self) -> SizeBounds:
        """Bounds of sizes."""
        return SizeBounds(self.config.sizes.minimum, self.config.sizes.maximum)

    @property
    def parts(self) -> tuple[slice, slice]:
        """Nodes of the users and of the items."""
        capacity, _ = sides(self.segment)
        return slice(None, capacity), slice(capacity, None)

    @property
    def most(self) -> int:
        """Probes of the segment."""
        return most_probes(self.config.search)

    @property
    def explored_count(self) -> int:
        """Probes of new sizes, which come first."""
        return self.most - retrained(self.config.search)


def ciess_search(context: SegmentContext) -> ProbeSearch:
    """The search of a segment, for `probe_loop.probe_in_turn`.

    Args:
      context: the segment.

    Returns:
      ProbeSearch whose carry has sizes and quality of all probes, 8 bytes an entity and probe.
    """
    config, segment = context.config, context.segment
    most, again = most_probes(config.search), retrained(config.search)
    total, _ = context.budget()
    frequency = scaled_frequency(config.sizes, segment)
    setting = _CiessSetting(config, segment, total, frequency, jnp.arange(most) < most - again)
    return ProbeSearch(
        start=functools.partial(_start, setting),
        propose=functools.partial(_propose, setting),
        update=functools.partial(_update, setting),
        finish=functools.partial(_finish, setting),
        repeats=again,
    )


def _quality_of(setting: _CiessSetting, by_user: jax.Array, scale: jax.Array) -> EntityValues:
    value, has_value = by_entity(setting.segment, by_user.mean(1))
    return EntityValues(jnp.where(has_value, jnp.clip(value / scale, 0.0, _MOST_QUALITY), 1.0), has_value)


def _start(setting: _CiessSetting, planner_state: CiessState, reference: ReferenceProbe) -> _CiessCarry:
    most, nodes = setting.most, setting.segment.frequency.shape[0]
    scale = jnp.where(reference.fitness > 0, reference.fitness, 1.0)
    own = jnp.zeros((most + 1, nodes), jnp.int32).at[0].set(reference.sizes)
    quality = jnp.ones(own.shape).at[0].set(_quality_of(setting, reference.by_user, scale).value)
    return _CiessCarry(planner_state.users, planner_state.items, own, quality, jnp.full(most, -jnp.inf), scale)


def _propose(
    setting: _CiessSetting, carry: _CiessCarry, number: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    moved, repeated = functools.partial(_moved, setting), functools.partial(_repeated, setting)
    wanted = jax.lax.cond(number < setting.explored_count, moved, repeated, carry, number, key)
    return fill(setting.config.sizes, setting.segment, setting.total, wanted), no_action(setting.config)


def _moved(setting: _CiessSetting, carry: _CiessCarry, number: jax.Array, key: jax.Array) -> jax.Array:
    bounds = setting.bounds
    state = entity_states(setting.frequency, carry.own[number], carry.quality[number], bounds)
    wanted = [
        explore_sizes(agent, derive(key, side), state[part], bounds)
        for side, agent, part in zip(_SIDES, (carry.users, carry.items), setting.parts, strict=True)
    ]
    shift = _SHIFT * jax.random.normal(derive(key, Purpose.SHIFT))
    return jnp.clip(jnp.round(jnp.concatenate(wanted).astype(jnp.float32) + shift), bounds.low, bounds.high)


def _repeated(setting: _CiessSetting, carry: _CiessCarry, number: jax.Array, key: jax.Array) -> jax.Array:
    del key
    order = jnp.argsort(jnp.where(setting.explored, -carry.ratio, jnp.inf))
    return carry.own[1 + order[jnp.maximum(number - setting.explored_count, 0)]].astype(jnp.float32)


def _update(setting: _CiessSetting, carry: _CiessCarry, number: jax.Array, key: jax.Array, trial: Trial) -> _CiessCarry:
    quality, has_value = _quality_of(setting, trial.by_user, carry.scale)
    carry = carry._replace(
        own=carry.own.at[number + 1].set(trial.sizes),
        quality=carry.quality.at[number + 1].set(quality),
        ratio=carry.ratio.at[number].set(trial.ratio),
    )

    def side(agent: ActorCritic, part: slice, key: jax.Array) -> ActorCritic:
        own, quality = carry.own[:, part], carry.quality[:, part]

        def one(i, agent):
            step_key = derive(key, Purpose.UPDATE_STEP, i)
            noise = jax.random.normal(derive(step_key, Purpose.NEXT_ACTION_NOISE), (_BATCH, 1))
            history = History(own, quality, setting.frequency[part], has_value[part])
            batch = draw_batch(derive(step_key, Purpose.REPLAY_DRAW), history, number, setting.bounds)
            return update_agent(agent, batch, noise, setting.bounds.span)

        updated = functools.partial(jax.lax.fori_loop, 0, _UPDATES, one, agent)
        return jax.lax.cond(has_value[part].any(), updated, lambda: agent)

    keys = [derive(key, side) for side in _SIDES]
    users, items = setting.parts
    return carry._replace(users=side(carry.users, users, keys[0]), items=side(carry.items, items, keys[1]))


def _finish(setting: _CiessSetting, planner_state: CiessState, carry: _CiessCarry) -> CiessState:
    # Where sizes are trained once more, the best of these trainings wins.
    counted = ~setting.explored if retrained(setting.config.search) else setting.explored
    best = jnp.argmax(jnp.where(counted, carry.ratio, -jnp.inf))
    sizes = jnp.where(active_mask(setting.segment), carry.own[1 + best], -1)
    return planner_state._replace(users=carry.users, items=carry.items, sizes=sizes)


def ciess_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of CIESS; its search needs sizes and quality of all probes, 8 bytes an entity and probe.

    Args:
      config: configuration of the run.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each probe.

    Returns:
      SizePlanner whose state is a `CiessState`.
    """
    bounds = SizeBounds(config.sizes.minimum, config.sizes.maximum)

    def init(key, storage):
        key = derive(key, Purpose.POLICY_INIT)
        users, items = (new_agent(derive(key, side)) for side in _SIDES)
        return CiessState(users, items, jnp.full(storage.nodes, -1, jnp.int32), jnp.float32(0))

    def sizes_of(context: SegmentContext) -> tuple[jax.Array, jax.Array]:
        segment = context.segment
        capacity, _ = sides(segment)
        total, _ = context.budget()
        planner_state, frequency = context.state.planner, scaled_frequency(config.sizes, segment)
        # For entities that arrived after the search, query the actor at the smallest size and average service.
        new = entity_states(frequency, jnp.full(frequency.shape, bounds.low), jnp.ones(frequency.shape), bounds)
        place = jnp.concatenate(
            [_act(planner_state.users.actor, new[:capacity]), _act(planner_state.items.actor, new[capacity:])]
        )[:, 0]
        found = planner_state.sizes.astype(jnp.float32)
        wanted = jnp.where(found >= 0, found, bounds.size(place))
        return fill(config.sizes, segment, total, wanted), no_action(config)

    return probing_planner(init, ciess_search, sizes_of, config, on_probes)
