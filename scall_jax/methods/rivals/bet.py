"""Budgeted embedding tables (BET, Qu et al., WSDM 2024): sizes sampled from families, picked by a fitness predictor.

An action is a users' share of the budget and, for each side, a family of size distributions and its shape. Of many
sampled actions one is probed: mostly the one that a predictor on sets (DeepSets) thinks best, now and then any, or the
one most like the best so far. The best of the probed ones are trained once more, and the winner sizes the segment.

The paper fine-tunes a trained table of full size and measures fitness relative to it; a full table would not be within
the budget, so that a probe here is one of SCALL, its fitness relative to that of uniform sizes. Sizes that the paper
draws from a distribution are its expected order statistics, and fill the budget exactly within their bounds, where the
paper draws again what exceeds the largest size. The predictor is kept from segment to segment; it learns from
the probes of the segment, since earlier ones would take a frequency per entity each to keep. Fitness is measured at 20
alone, not at 5, 10 and 20.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import ndtr, ndtri

from scall_jax import sizes
from scall_jax.config import Config
from scall_jax.methods.allocators import split_by_side
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import SizePlanner, no_action
from scall_jax.methods.probe import most_probes
from scall_jax.methods.rivals.entity_features import scaled_frequency
from scall_jax.methods.rivals.probe_loop import Search, probing_planner, retrained
from scall_jax.streams.segments import sides

SHAPE_RANGES = {"powerlaw": (0.1, 20.0), "halfnormal": (0.01, 20.0), "truncexp": (0.01, 5.0), "lognormal": (1e-3, 0.5)}
"""Families and the range of their shapes; published from 0, which is no distribution."""

CANDIDATES = 100
"""Actions that a probe is chosen from, as published."""

_AT_ONCE = 10  # of them worked on together, at a vector of 16 numbers an entity each
_UPDATES = 2  # of the predictor after each probe, as published


class BetState(NamedTuple):
    """Predictor and the action found."""

    params: Any
    opt_state: optax.OptState
    action: jax.Array  # f32[3]
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


class Predictor(nn.Module):
    """Fitness of sizes: members of each size are pooled by their mean, the sizes by theirs.

    A size that nobody has pools to 0 and still counts; users and items of one size are one set, described by a network
    of their own side.
    """

    maximum: int
    users: int

    @nn.compact
    def __call__(self, frequency, own):
        """Fitness f32[] and embedding f32[64] of own sizes i32[N] at frequencies f32[N] in [0, 1]."""
        member = jnp.concatenate(
            [
                _mlp(frequency[: self.users, None], (16, 16), "users"),
                _mlp(frequency[self.users :, None], (16, 16), "items"),
            ]
        )
        described = jnp.concatenate(
            [pooled(member, own, self.maximum), jnp.arange(1, self.maximum + 1)[:, None] / self.maximum], axis=1
        )
        embedding = _mlp(described, (64, 64), "sizes").mean(0)
        return nn.Dense(1, name="out")(_mlp(embedding, (64,), "decoder"))[0], embedding


def _mlp(x, widths, name):
    for i, width in enumerate(widths):
        x = nn.leaky_relu(nn.Dense(width, name=f"{name}_{i}")(x))
    return x


def pooled(member: jax.Array, own: jax.Array, maximum: int) -> jax.Array:
    """Mean of the rows of f32[N, F] of each size from 1 to `maximum`, 0 where there are none; f32[maximum, F]."""
    place = jnp.where(own > 0, own - 1, maximum)
    totals = jax.ops.segment_sum(member, place, maximum + 1)[:maximum]
    count = jnp.zeros(maximum + 1).at[place].add(1.0)[:maximum]
    return totals / jnp.maximum(count, 1.0)[:, None]


def expected_shares(number: jax.Array, n: jax.Array, capacity: int) -> jax.Array:
    """Shares by rank, f32[capacity], of the family and shape that a number in (0, 1) means.

    Four times the number is the family and how far the shape lies in its range: uniform numbers are uniform families
    with uniform shapes.
    """
    scaled = jnp.clip(4 * number, 0.0, 3.9999)
    family = jnp.floor(scaled)
    part = scaled - family

    def of(name, low, high):
        shape = jnp.maximum(part * high, low)
        if name == "halfnormal":
            return _half_normal(shape, n, capacity)
        return sizes.expected_shares(name, shape, n, capacity)

    branches = [lambda name=name, low=low, high=high: of(name, low, high) for name, (low, high) in SHAPE_RANGES.items()]
    return jax.lax.switch(family.astype(jnp.int32), branches)


def _half_normal(shape, n, capacity):
    """A standard normal truncated to [0, shape], by its quantiles at (n-k+1/2)/n."""
    rank = jnp.arange(1, capacity + 1, dtype=jnp.float32)
    upper = (rank - 0.5) / n
    tail = 1 - ndtr(shape)
    raw = -ndtri(tail + upper * (0.5 - tail))
    return jnp.where(rank <= n, jnp.maximum(raw, 0.0), 0.0)


def bet_sizes(config: Config, segment, total: jax.Array, action: jax.Array) -> jax.Array:
    """Own sizes i32[N] of an action f32[3]: users' share, then a number of `expected_shares` for each side."""
    bounds = (config.sizes.minimum, config.sizes.maximum)
    totals = jnp.stack(sizes.split_sides(total, action[0], segment.users, segment.items, *bounds))

    def one_side(number, order, num_active):
        shares = expected_shares(action[1 + number], num_active, order.shape[0])
        return sizes.assign(sizes.allocate(shares, totals[number], *bounds, num_active=num_active), order)

    return split_by_side(config.sizes, segment, one_side)


class _BetCarry(NamedTuple):
    params: Any
    opt_state: optax.OptState
    own: jax.Array  # i32[M, N], sizes probed
    action: jax.Array  # f32[M, 3]
    ratio: jax.Array  # f32[M], -inf from the probes made on


def bet_search(context: SegmentContext) -> Search:
    """The search of a segment."""
    config, segment = context.config, context.segment
    users, _ = sides(segment)
    most, again = most_probes(config.search), retrained(config.search)
    total, _ = context.budget()
    net, adam = Predictor(config.sizes.maximum, users), optimiser()
    frequency = scaled_frequency(config.sizes, segment)
    explored = jnp.arange(most) < most - again

    def begin(kept, reference):
        del reference
        none = jnp.zeros((most, segment.frequency.shape[0]), jnp.int32)
        return _BetCarry(kept.params, kept.opt_state, none, jnp.zeros((most, 3)), jnp.full(most, -jnp.inf))

    def by_selection(carry, number, key):
        actions = jax.random.uniform(key, (CANDIDATES, 3))
        value, embedding = jax.lax.map(
            lambda action: net.apply(carry.params, frequency, bet_sizes(config, segment, total, action)),
            actions,
            batch_size=_AT_ONCE,
        )
        _, best = net.apply(carry.params, frequency, carry.own[jnp.argmax(carry.ratio)])
        nearest = jnp.argmin(((embedding - best[None]) ** 2).sum(1))
        # candidates are independent: the first is a random one
        return actions[select(number, jnp.argmax(value), 0, nearest)]

    def by_rank(carry, number, key):
        del key
        order = jnp.argsort(jnp.where(explored, -carry.ratio, jnp.inf))
        return carry.action[order[jnp.maximum(number - (most - again), 0)]]

    def propose(carry, number, key):
        action = jax.lax.cond(number < most - again, by_selection, by_rank, carry, number, key)
        return bet_sizes(config, segment, total, action), _padded(config, action)

    def learn(carry, number, key, trial):
        del key
        carry = carry._replace(
            own=carry.own.at[number].set(trial.sizes),
            action=carry.action.at[number].set(trial.action[:3]),
            ratio=carry.ratio.at[number].set(trial.ratio),
        )
        params, opt_state = fit_predictor(net, adam, carry.params, carry.opt_state, frequency, carry.own, carry.ratio)
        return carry._replace(params=params, opt_state=opt_state)

    def end(kept, carry):
        counted = ~explored if again else explored
        best = jnp.argmax(jnp.where(counted, carry.ratio, -jnp.inf))
        return kept._replace(params=carry.params, opt_state=carry.opt_state, action=carry.action[best])

    return Search(begin, propose, learn, end)


def select(number: jax.Array, by_predictor, random, nearest) -> jax.Array:
    """Candidate of a probe: thrice the predictor's, then a random one, then the nearest to the best; over again."""
    strategy = jnp.maximum(number % 5 - 2, 0)
    return jnp.stack([jnp.asarray(x, jnp.int32) for x in (by_predictor, random, nearest)])[strategy]


def optimiser() -> optax.GradientTransformation:
    """Adam as published: 0.01, times 0.9 per update, down to 0.002."""
    return optax.adam(optax.exponential_decay(0.01, 1, 0.9, end_value=0.002))


def fit_predictor(net: Predictor, adam, params, opt_state, frequency, own, fitness):
    """Updates by the mean squared error over probes with a finite fitness f32[M] of sizes i32[M, N]."""
    known = jnp.isfinite(fitness)

    def loss(params):
        value = jax.lax.map(lambda one: net.apply(params, frequency, one)[0], own, batch_size=_AT_ONCE)
        return jnp.where(known, (value - jnp.where(known, fitness, 0.0)) ** 2, 0.0).sum() / known.sum()

    def one(_, carry):
        params, opt_state = carry
        updates, opt_state = adam.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    return jax.lax.fori_loop(0, _UPDATES, one, (params, opt_state))


def bet_planner(config: Config, progress: Callable | None = None) -> SizePlanner:
    """The chooser; during its search it holds the sizes of all probes, i32[M, N]."""

    def init(key, storage):
        nodes = jnp.zeros(storage.nodes)
        # users and items have networks of the same shapes: where one side ends does not matter to parameters
        net = Predictor(config.sizes.maximum, 1)
        params = net.init(key, nodes, nodes.astype(jnp.int32))
        return BetState(params, optimiser().init(params), jnp.full(3, 0.5), jnp.float32(0))

    def sizes_of(context):
        total, _ = context.budget()
        action = context.state.planner.action
        return bet_sizes(config, context.segment, total, action), _padded(config, action)

    return probing_planner(init, bet_search, sizes_of, config, progress, retrained(config.search))


def _padded(config, action):
    return no_action(config).at[:3].set(action)
