"""Sizes by one decision per entity: CIESS (Qu et al., SIGIR 2023), twin delayed deep deterministic policy gradient.

Two agents, one for users and one for items, move every entity's size from one probe to the next. An entity's state is
its frequency, its size and how well it is served; the reward is the last of these after the probe, less a price on the
square of its size. The actor's size is the start of a random walk on the sizes, of which the critic takes the best
place. The best probed sizes are trained once more, and the winner sizes the segment.

The paper serves no budget: here all sizes are scaled by one factor to fill it exactly within their bounds, and what the
agents learn from is what was given out. It measures how well an entity is served relative to a table of full size,
which is not within the budget: here it is relative to the mean of users under the reference of the probes, and at 20
alone, not at 5, 10 and 20. And it makes 300 short trainings with an update each; at the probes of SCALL there are
several updates to a probe.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scall_jax.config import Config
from scall_jax.methods.context import SEARCH_KEY, SegmentContext
from scall_jax.methods.planner import SizePlanner, no_action
from scall_jax.methods.probe import most_probes
from scall_jax.methods.rivals.entity_features import by_entity, fill, scaled_frequency
from scall_jax.methods.rivals.probe_loop import Search, probing_planner, retrained
from scall_jax.policies.networks import Actor, TwinCritic
from scall_jax.streams.segments import active_mask, sides

_WIDTHS = (256, 256)
_GAMMA, _TAU = 0.99, 0.005
_DELAY = 2  # updates of the critic to one of the actor
_NOISE, _MOST_NOISE = 2.0, 5.0  # on the target's action, in coordinates
_ACTOR_RATE, _CRITIC_RATE, _CLIP = 1e-3, 3e-3, 0.01
_BATCH = 4096
_PRICE = 0.2  # of the squared part of the largest size; 0.4 on MovieLens-1M as published, 0.2 on Yelp2018
_STEPS, _REACH = 5, 5  # of the random walk, and how far one of them goes
_SHIFT = 6.0  # standard deviation of the noise on all sizes of a probe
_UPDATES = 8  # after each probe
_MOST_QUALITY = 1.0  # as published

ACTOR, CRITIC = Actor(1, _WIDTHS), TwinCritic(_WIDTHS)


class Agent(NamedTuple):
    """Networks of a side, their targets and optimisers."""

    actor: Any
    critic: Any
    target_actor: Any
    target_critic: Any
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    updates: jax.Array  # i32[], of the critic so far


class CiessState(NamedTuple):
    """Agents and the sizes found."""

    users: Agent
    items: Agent
    sizes: jax.Array  # i32[N], -1 for who did not exist: 0 is a size
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


class Batch(NamedTuple):
    """Transitions of single entities."""

    state: jax.Array  # f32[n, 3]
    action: jax.Array  # f32[n, 1], place of the size between the bounds
    reward: jax.Array  # f32[n]
    ahead: jax.Array  # f32[n, 3], the state after


def _adam(rate):
    return optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(rate))


def new_agent(key: jax.Array) -> Agent:
    """An agent that knows nothing; its targets are copies."""
    actor_key, critic_key = jax.random.split(key)
    actor = ACTOR.init(actor_key, jnp.zeros(3))
    critic = CRITIC.init(critic_key, jnp.zeros(3), jnp.zeros(1))
    opt_state = _adam(_ACTOR_RATE).init(actor), _adam(_CRITIC_RATE).init(critic)
    return Agent(actor, critic, actor, critic, *opt_state, jnp.int32(0))


def targets(agent: Agent, reward: jax.Array, ahead: jax.Array, noise: jax.Array, span: float) -> jax.Array:
    """r + γ min Q'(s', π'(s') + noise), f32[n]: the noise f32[n, 1] is standard normal, `span` sizes are 1."""
    shift = jnp.clip(_NOISE * noise, -_MOST_NOISE, _MOST_NOISE) / span
    action = jnp.clip(ACTOR.apply(agent.target_actor, ahead) + shift, 0.0, 1.0)
    return reward + _GAMMA * CRITIC.apply(agent.target_critic, ahead, action).min(-1)


def update(agent: Agent, batch: Batch, noise: jax.Array, span: float) -> Agent:
    """One update of the critic, and at every other one of the actor and the targets (TD3, arXiv 1802.09477)."""
    wanted = targets(agent, batch.reward, batch.ahead, noise, span)

    def critic_loss(critic):
        return ((CRITIC.apply(critic, batch.state, batch.action) - wanted[:, None]) ** 2).sum(-1).mean()

    changes, critic_opt_state = _adam(_CRITIC_RATE).update(jax.grad(critic_loss)(agent.critic), agent.critic_opt_state)
    critic = optax.apply_updates(agent.critic, changes)
    agent = agent._replace(critic=critic, critic_opt_state=critic_opt_state, updates=agent.updates + 1)

    def actor_loss(actor):
        return -CRITIC.apply(critic, batch.state, ACTOR.apply(actor, batch.state))[..., 0].mean()

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


def walk(key: jax.Array, start: jax.Array, low: int, high: int) -> jax.Array:
    """Places of a random walk on the sizes, i32[_STEPS + 1, n], from i32[n] on.

    Sizes at most _REACH apart are neighbours; a step goes to one of them with a probability inverse to its distance.
    """
    offset = jnp.asarray([i for i in range(-_REACH, _REACH + 1) if i], jnp.int32)
    weight = -jnp.log(jnp.abs(offset).astype(jnp.float32))[None, :]

    def step(at, step_key):
        ahead = at[:, None] + offset[None, :]
        allowed = (ahead >= low) & (ahead <= high)
        chosen = jax.random.categorical(step_key, jnp.where(allowed, weight, -jnp.inf), axis=1)
        at = jnp.where(allowed.any(1), at + offset[chosen], at)
        return at, at

    _, places = jax.lax.scan(step, start, jax.random.split(key, _STEPS))
    return jnp.concatenate([start[None], places])


def explored(agent: Agent, key: jax.Array, seen: jax.Array, low: int, high: int) -> jax.Array:
    """Size of each entity of states f32[n, 3]: the critic's choice along a walk from the actor's; i32[n]."""
    start = jnp.round(_size(ACTOR.apply(agent.actor, seen)[:, 0], low, high)).astype(jnp.int32)
    places = walk(key, start, low, high)
    value = jax.lax.map(
        lambda place: CRITIC.apply(agent.critic, seen, _place(place, low, high)[:, None]).min(-1), places
    )
    return jnp.take_along_axis(places, value.argmax(0)[None], axis=0)[0]


def _place(size, low, high):
    return jnp.clip((size - low) / max(high - low, 1), 0.0, 1.0)


def _size(place, low, high):
    return low + place * (high - low)


def states(frequency: jax.Array, own: jax.Array, quality: jax.Array, low: int, high: int) -> jax.Array:
    """Frequency and size, each within [-1, 1], and quality; f32[n, 3]."""
    return jnp.stack([2 * frequency - 1, 2 * _place(own, low, high) - 1, quality], axis=-1)


class _CiessCarry(NamedTuple):
    users: Agent
    items: Agent
    own: jax.Array  # i32[M + 1, N], sizes before the first probe, then those of each
    quality: jax.Array  # f32[M + 1, N]
    ratio: jax.Array  # f32[M], -inf from the probes made on
    scale: jax.Array  # f32[]


def ciess_search(context: SegmentContext) -> Search:
    """The search of a segment."""
    config, segment = context.config, context.segment
    capacity, _ = sides(segment)
    most, again = most_probes(config.search), retrained(config.search)
    low, high = config.sizes.minimum, config.sizes.maximum
    total, _ = context.budget()
    frequency = scaled_frequency(config.sizes, segment)
    parts = (slice(None, capacity), slice(capacity, None))
    first = jnp.arange(most) < most - again

    def quality_of(by_user, scale):
        value, seen = by_entity(segment, by_user.mean(1))
        return jnp.where(seen, jnp.clip(value / scale, 0.0, _MOST_QUALITY), 1.0), seen

    def begin(kept, reference):
        scale = jnp.where(reference.fitness > 0, reference.fitness, 1.0)
        own = jnp.zeros((most + 1, capacity + segment.popularity.shape[1]), jnp.int32).at[0].set(reference.sizes)
        quality = jnp.ones(own.shape).at[0].set(quality_of(reference.by_user, scale)[0])
        return _CiessCarry(kept.users, kept.items, own, quality, jnp.full(most, -jnp.inf), scale)

    def moved(carry, number, key):
        walk_key, shift_key = jax.random.split(key)
        seen = states(frequency, carry.own[number], carry.quality[number], low, high)
        wanted = [
            explored(agent, jax.random.fold_in(walk_key, i), seen[part], low, high)
            for i, (agent, part) in enumerate(zip((carry.users, carry.items), parts, strict=True))
        ]
        shift = _SHIFT * jax.random.normal(shift_key)
        return jnp.clip(jnp.round(jnp.concatenate(wanted) + shift), low, high)

    def repeated(carry, number, key):
        del key
        order = jnp.argsort(jnp.where(first, -carry.ratio, jnp.inf))
        return carry.own[1 + order[jnp.maximum(number - (most - again), 0)]].astype(jnp.float32)

    def propose(carry, number, key):
        wanted = jax.lax.cond(number < most - again, moved, repeated, carry, number, key)
        return fill(config.sizes, segment, total, wanted), no_action(config)

    def learn(carry, number, key, trial):
        quality, seen = quality_of(trial.by_user, carry.scale)
        carry = carry._replace(
            own=carry.own.at[number + 1].set(trial.sizes),
            quality=carry.quality.at[number + 1].set(quality),
            ratio=carry.ratio.at[number].set(trial.ratio),
        )

        def side(agent, part, key):
            kept = carry.own[:, part], carry.quality[:, part]

            def one(i, agent):
                draw_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
                batch = draw(draw_key, *kept, frequency[part], seen[part], number, low, high)
                return update(agent, batch, jax.random.normal(noise_key, (_BATCH, 1)), max(high - low, 1))

            return jax.lax.cond(seen[part].any(), lambda: jax.lax.fori_loop(0, _UPDATES, one, agent), lambda: agent)

        keys = jax.random.split(key)
        return carry._replace(users=side(carry.users, parts[0], keys[0]), items=side(carry.items, parts[1], keys[1]))

    def end(kept, carry):
        counted = ~first if again else first
        best = jnp.argmax(jnp.where(counted, carry.ratio, -jnp.inf))
        found = jnp.where(active_mask(segment), carry.own[1 + best], -1)
        return kept._replace(users=carry.users, items=carry.items, sizes=found)

    return Search(begin, propose, learn, end)


def draw(key, own, quality, frequency, seen, number, low: int, high: int) -> Batch:
    """_BATCH transitions of entities of `seen` between successive rows of sizes and quality, up to row `number` + 1."""
    row_key, entity_key = jax.random.split(key)
    row = jax.random.randint(row_key, (_BATCH,), 0, number + 1)
    ends = jnp.cumsum(seen.astype(jnp.int32))
    entity = jnp.searchsorted(ends, jax.random.randint(entity_key, (_BATCH,), 0, ends[-1]), side="right")
    now, after = (
        states(frequency[entity], own[row + i, entity], quality[row + i, entity], low, high) for i in range(2)
    )
    given = own[row + 1, entity]
    reward = quality[row + 1, entity] - _PRICE * ((given - low) / high) ** 2
    return Batch(now, _place(given, low, high)[:, None], reward, after)


def ciess_planner(config: Config, progress: Callable | None = None) -> SizePlanner:
    """The chooser; during its search it holds sizes and quality of all probes, 8 bytes an entity and probe."""
    low, high = config.sizes.minimum, config.sizes.maximum

    def init(key, storage):
        users, items = (new_agent(k) for k in jax.random.split(jax.random.fold_in(key, SEARCH_KEY)))
        return CiessState(users, items, jnp.full(storage.nodes, -1, jnp.int32), jnp.float32(0))

    def sizes_of(context):
        segment = context.segment
        capacity, _ = sides(segment)
        total, _ = context.budget()
        kept, frequency = context.state.planner, scaled_frequency(config.sizes, segment)
        # who has come since the search gets what the actor says of the smallest size served as the mean is
        new = states(frequency, jnp.full(frequency.shape, low), jnp.ones(frequency.shape), low, high)
        place = jnp.concatenate(
            [ACTOR.apply(kept.users.actor, new[:capacity]), ACTOR.apply(kept.items.actor, new[capacity:])]
        )[:, 0]
        wanted = jnp.where(kept.sizes >= 0, kept.sizes, _size(place, low, high))
        return fill(config.sizes, segment, total, wanted), no_action(config)

    return probing_planner(init, ciess_search, sizes_of, config, progress, retrained(config.search))
