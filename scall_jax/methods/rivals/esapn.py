"""Sizes that only grow: ESAPN (Liu et al., SIGIR 2020), a policy a side that says who takes the next larger size.

Everybody starts at the smallest candidate, `sizes.minimum` (2 in the paper), and stays there through the first segment,
which is not searched. A policy sees how popular an entity is and its size, and says how likely it is to grow; it learns
by REINFORCE from growth that is drawn at random, and sizes follow its likelier choice. The paper does both at every
batch and takes the loss of the entity's own samples for the reward; here both happen at every probe, and the reward is
how well the entity is served after it, less the mean of that over the segment's probes before. Batch normalisation over
a batch of samples has become normalisation of each entity's own features, and a probe has as many updates a side as it
has parts of its entities.

The paper serves no budget: here growth is admitted from the likeliest on as long as it fits, so that sizes stay at the
budget or below. Where the smallest sizes of the new fit no more beside what the others hold, or the budget falls below
that, all sizes shrink in proportion.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from scall_jax.config import Config
from scall_jax.methods.context import SEARCH_KEY, SegmentContext
from scall_jax.methods.planner import SizePlanner, no_action
from scall_jax.methods.rivals.ducb import candidate_sizes
from scall_jax.methods.rivals.entity_features import by_entity, fill
from scall_jax.methods.rivals.probe_loop import Search, probing_planner
from scall_jax.streams.segments import active_mask, sides

_BUCKETS, _EMBEDDED, _HIDDEN = 32, 32, 512
_RATE = 1e-3  # 1e-4 in the paper, which makes an update every 500 samples
_DRAW_KEY = 0xE5A9  # folded into the search's key
_PARTS = 8  # of the entities that a probe tells of, an update each
_MOST_REWARD = 4.0


class Growth(nn.Module):
    """Logit of growing, f32[n], by popularity i32[n] in buckets and size i32[n] in places among the candidates."""

    sizes: int

    @nn.compact
    def __call__(self, bucket, place):
        """The logit."""
        popularity = nn.LayerNorm()(nn.Embed(_BUCKETS, _EMBEDDED)(bucket))
        x = jnp.concatenate([popularity, jax.nn.one_hot(place, self.sizes)], axis=-1)
        x = jnp.tanh(nn.LayerNorm()(nn.Dense(_HIDDEN)(x)))
        logits = nn.Dense(2)(x)
        return logits[..., 1] - logits[..., 0]


class Agent(NamedTuple):
    """The policy of a side and its optimiser."""

    params: Any
    opt_state: optax.OptState


class EsapnState(NamedTuple):
    """Policies and sizes."""

    users: Agent
    items: Agent
    sizes: jax.Array  # i32[N], 0 for who did not exist
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


def buckets(count: jax.Array) -> jax.Array:
    """Popularity i32[n] in quarters of powers of two; i32[n]."""
    return jnp.minimum(4 * jnp.log2(1 + count.astype(jnp.float32)), _BUCKETS - 1).astype(jnp.int32)


def next_size(own: jax.Array, choices: tuple[int, ...]) -> jax.Array:
    """The candidate above i32[n], or what it is where there is none."""
    place = jnp.searchsorted(jnp.asarray(choices), own, side="right")
    return jnp.where(place < len(choices), jnp.asarray(choices, jnp.int32)[jnp.minimum(place, len(choices) - 1)], own)


def place_of(own: jax.Array, choices: tuple[int, ...]) -> jax.Array:
    """Place of the largest candidate that is not above i32[n]."""
    return jnp.clip(jnp.searchsorted(jnp.asarray(choices), own, side="right") - 1, 0, len(choices) - 1)


def admitted(wish: jax.Array, likely: jax.Array, cost: jax.Array, room: jax.Array) -> jax.Array:
    """Who of those with a wish, bool[n], grows: the likeliest as long as their costs i32[n] fit; bool[n]."""
    index = jnp.arange(wish.shape[0], dtype=jnp.int32)
    _, order = jax.lax.sort((jnp.where(wish, -likely, jnp.inf), index), num_keys=2)
    spent = jnp.cumsum(jnp.where(wish, cost, 0)[order])
    return jnp.zeros_like(wish).at[order].set(spent <= room) & wish


def loss(net: Growth, params, bucket, place, grew, advantage, weight) -> jax.Array:
    """REINFORCE: minus the mean of log-likelihood of what was drawn x advantage, over entities of weight 1; f32[]."""
    logit = net.apply(params, bucket, place)
    likelihood = jax.nn.log_sigmoid(jnp.where(grew, logit, -logit))
    return -(weight * advantage * likelihood).sum() / jnp.maximum(weight.sum(), 1.0)


def starting_sizes(config: Config, segment, total, kept: jax.Array) -> jax.Array:
    """What entities have before any growth: kept sizes i32[N], the smallest for the new; scaled to fit if need be."""
    start = jnp.where(active_mask(segment), jnp.maximum(kept, candidate_sizes(config)[0]), 0)
    return jax.lax.cond(
        start.sum() <= total,
        lambda: start,
        lambda: fill(config.sizes, segment, total, start.astype(jnp.float32)),
    )


class _EsapnCarry(NamedTuple):
    users: Agent
    items: Agent
    own: jax.Array  # i32[N]
    served: jax.Array  # f32[N], sum over the reference, where it tells, and probes
    count: jax.Array  # f32[], of them
    scale: jax.Array  # f32[]
    draw: jax.Array  # key of the next probe's draws


def esapn_search(context: SegmentContext) -> Search:
    """The search of a segment."""
    config, segment = context.config, context.segment
    capacity, _ = sides(segment)
    choices, adam = candidate_sizes(config), optax.adam(_RATE)
    net, total = Growth(len(choices)), context.budget()[0]
    parts = (slice(None, capacity), slice(capacity, None))
    bucket = buckets(segment.total)

    def logits(agents, own):
        place = place_of(own, choices)
        by_side = [net.apply(a.params, bucket[p], place[p]) for a, p in zip(agents, parts, strict=True)]
        return jnp.concatenate(by_side)

    def grown(own, wish, likely):
        larger = next_size(own, choices)
        grows = admitted(wish & active_mask(segment) & (larger > own), likely, larger - own, total - own.sum())
        return jnp.where(grows, larger, own)

    def begin(kept, reference):
        scale = jnp.where(reference.fitness > 0, reference.fitness, 1.0)
        value, seen = by_entity(segment, reference.by_user.mean(1) / scale)
        count = jnp.float32(config.search.reference == "uniform")
        own = starting_sizes(config, segment, total, kept.sizes)
        draw = jax.random.fold_in(context.search_key(), _DRAW_KEY)
        return _EsapnCarry(kept.users, kept.items, own, count * jnp.where(seen, value, 0.0), count, scale, draw)

    def drawn(carry):
        logit = logits((carry.users, carry.items), carry.own)
        return logit, jax.random.uniform(carry.draw, logit.shape) < jax.nn.sigmoid(logit)

    def propose(carry, number, key):
        del number, key
        logit, wish = drawn(carry)
        return grown(carry.own, wish, logit), no_action(config)

    def learn(carry, number, key, trial):
        del number
        value, seen = by_entity(segment, trial.by_user.mean(1) / carry.scale)
        mean = jnp.where(seen, value, 0.0).sum() / jnp.maximum(seen.sum(), 1)
        usual = jnp.where(carry.count > 0, carry.served / jnp.maximum(carry.count, 1.0), mean)
        advantage = jnp.clip(value - usual, -_MOST_REWARD, _MOST_REWARD)
        place, grew = place_of(carry.own, choices), trial.sizes > carry.own
        draw, part_key = jax.random.split(key)
        part_of = jax.random.randint(part_key, seen.shape, 0, _PARTS)
        # who could not grow has decided nothing, and what was refused for want of room has not been tried
        _, wish = drawn(carry)
        told = seen & (next_size(carry.own, choices) > carry.own) & (grew | ~wish)

        def side(agent, part):
            def one(i, agent):
                weight = (told[part] & (part_of[part] == i)).astype(jnp.float32)
                seen_now = bucket[part], place[part], grew[part], advantage[part], weight
                gradient = jax.grad(lambda params: loss(net, params, *seen_now))(agent.params)
                changes, opt_state = adam.update(gradient, agent.opt_state)
                return Agent(optax.apply_updates(agent.params, changes), opt_state)

            return jax.lax.fori_loop(0, _PARTS, one, agent)

        agents = side(carry.users, parts[0]), side(carry.items, parts[1])
        logit = logits(agents, carry.own)
        own = grown(carry.own, logit > 0, logit)
        served = carry.served + jnp.where(seen, value, 0.0)
        carry = carry._replace(users=agents[0], items=agents[1], own=own, draw=draw)
        return carry._replace(served=served, count=carry.count + 1)

    def end(kept, carry):
        return kept._replace(users=carry.users, items=carry.items, sizes=carry.own)

    return Search(begin, propose, learn, end, fills=False)


def esapn_planner(config: Config, progress: Callable | None = None) -> SizePlanner:
    """The chooser."""
    choices, adam = candidate_sizes(config), optax.adam(_RATE)

    def new_agent(key):
        params = Growth(len(choices)).init(key, jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
        return Agent(params, adam.init(params))

    def init(key, storage):
        users, items = (new_agent(k) for k in jax.random.split(jax.random.fold_in(key, SEARCH_KEY)))
        return EsapnState(users, items, jnp.zeros(storage.nodes, jnp.int32), jnp.float32(0))

    def sizes_of(context):
        total, _ = context.budget()
        return starting_sizes(config, context.segment, total, context.state.planner.sizes), no_action(config)

    return probing_planner(init, esapn_search, sizes_of, config, progress, uniform_start=False)
