"""Budgeted embedding tables (BET, Qu et al., WSDM 2024): sizes sampled from families, picked by a fitness predictor.

An action is a users' share of the budget and, for each side, a family of size distributions and its shape. Of many
sampled actions one is probed: mostly the one that a predictor on sets (DeepSets) ranks first, sometimes a random one,
or the one most like the best so far. The best of the probed ones are trained once more, and the winner sizes the
segment.

Differences from the paper. It fine-tunes a trained table of full size and measures fitness relative to that table,
which would not be within the budget: here a probe is one of SCALL, and fitness is relative to that of uniform sizes. It
draws sizes from a distribution, and draws again what exceeds the largest size: here sizes are the expected order
statistics, and fill the budget exactly within their bounds. The predictor is kept from segment to segment, but learns
from the segment's own probes only, because earlier ones would take a frequency per entity each to keep. Fitness is
measured at 20 alone, not at 5, 10 and 20.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import ndtr, ndtri

from scall_jax import sizes
from scall_jax.config import Config, SizesConfig
from scall_jax.methods.allocators import allocate_by_order, split_by_side
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, SizePlanner, no_action
from scall_jax.methods.probe import most_probes
from scall_jax.methods.rivals.entity_features import scaled_frequency
from scall_jax.methods.rivals.probe_loop import ProbeSearch, ReferenceProbe, Trial, probing_planner, retrained
from scall_jax.ops.keys import Purpose, derive
from scall_jax.ops.sums import by_rows
from scall_jax.streams import Segment, sides

SHAPE_RANGES = {"powerlaw": (0.1, 20.0), "halfnormal": (0.01, 20.0), "truncexp": (0.01, 5.0), "lognormal": (1e-3, 0.5)}
"""Families and the range of their shapes. The published ranges start at 0, where there is no distribution."""

SAMPLED_ACTIONS = 100
"""Actions that are sampled for each probe to choose from, as published."""

_AT_ONCE = 10  # actions evaluated together, at a vector of 16 numbers an entity each
_UPDATES = 2  # updates of the predictor after each probe, as published


class BetState(NamedTuple):
    """State of the planner: the predictor and the best action."""

    params: Any
    opt_state: optax.OptState
    action: jax.Array  # f32[3]
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


class Members(nn.Module):
    """Describes the entities of a side: f32[n, 16] by frequencies f32[n] in [0, 1]."""

    side: str
    """Name of the network, `users` or `items`."""

    @nn.compact
    def __call__(self, frequency: jax.Array) -> jax.Array:
        """What the entities are described by."""
        return _mlp(frequency[:, None], (16, 16), self.side)


class Sets(nn.Module):
    """Describes sizes by their members: fitness f32[] and embedding f32[64]."""

    maximum: int
    """Largest size."""

    @nn.compact
    def __call__(self, member: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Fitness and embedding by descriptions f32[N, 16] and own sizes i32[N]."""
        described = jnp.concatenate(
            [pooled(member, own, self.maximum), jnp.arange(1, self.maximum + 1)[:, None] / self.maximum], axis=1
        )
        embedding = _mlp(described, (64, 64), "sizes").mean(0)
        return nn.Dense(1, name="out")(_mlp(embedding, (64,), "decoder"))[0], embedding


class Predictor(NamedTuple):
    """Predicts the fitness of sizes, as a network on sets.

    The entities of each size are pooled by their mean, and the sizes by theirs. A size that no entity has pools to 0
    and still counts. Users and items of one size are one set; each side has its own network to describe its members.
    """

    maximum: int
    """Largest size."""
    users: int
    """Capacity of the user side, where the items begin."""

    def init(self, key: jax.Array) -> Any:
        """Random parameters.

        Args:
          key: typed PRNG key.
        """
        parts = [Members(side).init(key, jnp.zeros(1)) for side in ("users", "items")]
        parts.append(Sets(self.maximum).init(key, jnp.zeros((1, 16)), jnp.zeros(1, jnp.int32)))
        return {"params": {name: leaf for part in parts for name, leaf in part["params"].items()}}

    def apply(self, params: Any, frequency: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Fitness f32[] and embedding f32[64] of own sizes i32[N] at frequencies f32[N] in [0, 1]."""
        parts = {"users": frequency[: self.users], "items": frequency[self.users :]}

        def described(side: str) -> jax.Array:
            # The gradient of these networks is a sum over entities.
            return by_rows(lambda p, rows: cast(jax.Array, Members(side).apply(p, rows)), params, parts[side])

        member = jnp.concatenate([described(side) for side in parts])
        return cast(tuple[jax.Array, jax.Array], Sets(self.maximum).apply(params, member, own))


def _mlp(x, widths, name):
    for i, width in enumerate(widths):
        x = nn.leaky_relu(nn.Dense(width, name=f"{name}_{i}")(x))
    return x


def pooled(member: jax.Array, own: jax.Array, maximum: int) -> jax.Array:
    """Mean of the rows of each size.

    Args:
      member: f32[N, F].
      own: i32[N], size of each row; rows of size 0 do not count.
      maximum: largest size, static.

    Returns:
      f32[maximum, F], of the sizes 1 to `maximum`; 0 where there are no rows.

    >>> pooled(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([2, 2, 0]), 3).tolist()
    [[0.0], [2.0], [0.0]]
    """
    chex.assert_rank([member, own], [2, 1])
    chex.assert_equal_shape_prefix([member, own], 1)
    place = jnp.where(own > 0, own - 1, maximum)
    totals = jax.ops.segment_sum(member, place, maximum + 1)[:maximum]
    count = jnp.zeros(maximum + 1).at[place].add(1.0)[:maximum]
    return totals / jnp.maximum(count, 1.0)[:, None]


def shares_by_number(number: jax.Array, n: jax.Array, capacity: int) -> jax.Array:
    """Expected shares by rank of the family and shape that a number means.

    The whole part of four times the number is the family, the rest says how far the shape lies in the family's range:
    uniform numbers are uniform families with uniform shapes.

    Args:
      number: f32[] in (0, 1).
      n: i32[], entities.
      capacity: static length of the result.

    Returns:
      f32[capacity], descending; 0 from rank n on.
    """
    chex.assert_rank([number, n], 0)
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
    n = n.astype(jnp.float32)
    upper = (rank - 0.5) / n
    tail = 1 - ndtr(shape)
    raw = -ndtri(tail + upper * (0.5 - tail))
    return jnp.where(rank <= n, jnp.maximum(raw, 0.0), 0.0)


def bet_sizes(config: SizesConfig, segment: Segment, total: jax.Array, action: jax.Array) -> jax.Array:
    """Sizes that an action gives out.

    Args:
      config: has the bounds and the ranking.
      segment: data of the segment.
      total: i32[], coordinates to give out.
      action: f32[3] in (0, 1), the users' share of the total and a number of `shares_by_number` for each side.

    Returns:
      i32[N], sizes of the nodes' own vectors, adding up to min(total, entities x maximum).
    """
    chex.assert_shape(action, (3,))
    chex.assert_rank(total, 0)
    bounds = (config.minimum, config.maximum)
    totals = jnp.stack(sizes.split_sides(total, action[0], segment.users, segment.items, *bounds))

    def one_side(number, order, num_active):
        shares = shares_by_number(action[1 + number], num_active, order.shape[0])
        return allocate_by_order(config, shares, totals[number], num_active, order)

    return split_by_side(config, segment, one_side)


def pick_candidate(
    number: jax.Array, by_predictor: jax.Array, at_random: chex.Numeric, nearest: jax.Array
) -> jax.Array:
    """The sampled action to probe: of five probes, three times the predictor's, then a random one, then the nearest.

    Args:
      number: i32[], number of the probe.
      by_predictor: i32[], the action that the predictor ranks first.
      at_random: i32[], a random one.
      nearest: i32[], the one most like the best action so far.

    Returns:
      i32[], one of the three.

    >>> [int(pick_candidate(jnp.int32(i), 7, 0, 9)) for i in range(6)]
    [7, 7, 7, 0, 9, 7]
    """
    chex.assert_rank([number, by_predictor, at_random, nearest], 0)
    strategy = jnp.maximum(number % 5 - 2, 0)
    return jnp.stack([jnp.asarray(x, jnp.int32) for x in (by_predictor, at_random, nearest)])[strategy]


def optimiser() -> optax.GradientTransformation:
    """Adam with the published learning rate: 0.01, times 0.9 per update, down to 0.002."""
    return optax.adam(optax.exponential_decay(0.01, 1, 0.9, end_value=0.002))


class Fitnesses(NamedTuple):
    """The probes that a predictor learns from."""

    own: jax.Array  # i32[M, N], sizes probed
    fitness: jax.Array  # f32[M], -inf for probes that have not been made


def fit_predictor(
    net: Predictor, params: Any, opt_state: optax.OptState, frequency: jax.Array, probes: Fitnesses
) -> tuple[Any, optax.OptState]:
    """Update a predictor by the mean squared error over the probes made.

    Args:
      net: the predictor.
      params: its parameters.
      opt_state: state of `optimiser`.
      frequency: f32[N] in [0, 1].
      probes: sizes and their fitness.

    Returns:
      New parameters and optimiser state.
    """
    chex.assert_shape(probes.own, (probes.fitness.shape[0], frequency.shape[0]))
    known = jnp.isfinite(probes.fitness)
    number = known.sum().astype(jnp.float32)

    def loss(params):
        value = jax.lax.map(lambda one: _predict(net, params, frequency, one)[0], probes.own, batch_size=_AT_ONCE)
        return jnp.where(known, (value - jnp.where(known, probes.fitness, 0.0)) ** 2, 0.0).sum() / number

    def one(_, carry):
        params, opt_state = carry
        updates, opt_state = optimiser().update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    return jax.lax.fori_loop(0, _UPDATES, one, (params, opt_state))


def _predict(net, params, frequency, own) -> tuple[jax.Array, jax.Array]:
    return net.apply(params, frequency, own)


class _BetCarry(NamedTuple):
    params: Any
    opt_state: optax.OptState
    own: jax.Array  # i32[M, N], sizes probed
    action: jax.Array  # f32[M, 3]
    ratio: jax.Array  # f32[M], -inf for probes that have not been made


@dataclasses.dataclass(frozen=True, eq=False)
class _BetSetting:
    """What all probes of a segment share."""

    config: Config
    segment: Segment
    total: jax.Array  # i32[], coordinates to give out
    net: Predictor
    frequency: jax.Array  # f32[N]
    explored: jax.Array  # bool[M], probes of new sizes; the others repeat the best of these

    @property
    def most(self) -> int:
        """Probes of the segment."""
        return most_probes(self.config.search)

    @property
    def explored_count(self) -> int:
        """Probes of new sizes, which come first."""
        return self.most - retrained(self.config.search)


def bet_search(context: SegmentContext) -> ProbeSearch:
    """The search of a segment, for `probe_loop.probe_in_turn`.

    Args:
      context: the segment.

    Returns:
      ProbeSearch whose carry has the sizes of all probes, i32[M, N].
    """
    config, segment = context.config, context.segment
    users, _ = sides(segment)
    most, again = most_probes(config.search), retrained(config.search)
    total, _ = context.budget()
    frequency = scaled_frequency(config.sizes, segment)
    explored = jnp.arange(most) < most - again
    setting = _BetSetting(config, segment, total, Predictor(config.sizes.maximum, users), frequency, explored)
    return ProbeSearch(
        start=functools.partial(_start, setting),
        propose=functools.partial(_propose, setting),
        update=functools.partial(_update, setting),
        finish=functools.partial(_finish, setting),
        repeats=again,
    )


def _start(setting: _BetSetting, planner_state: BetState, reference: ReferenceProbe) -> _BetCarry:
    del reference
    most = setting.most
    none = jnp.zeros((most, setting.segment.frequency.shape[0]), jnp.int32)
    return _BetCarry(
        planner_state.params, planner_state.opt_state, none, jnp.zeros((most, 3)), jnp.full(most, -jnp.inf)
    )


def _propose(setting: _BetSetting, carry: _BetCarry, number: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    new, again = functools.partial(_new_action, setting), functools.partial(_repeated_action, setting)
    action = jax.lax.cond(number < setting.explored_count, new, again, carry, number, key)
    return bet_sizes(setting.config.sizes, setting.segment, setting.total, action), _padded(setting.config, action)


def _new_action(setting: _BetSetting, carry: _BetCarry, number: jax.Array, key: jax.Array) -> jax.Array:
    actions = jax.random.uniform(key, (SAMPLED_ACTIONS, 3))

    def predict(own):
        return _predict(setting.net, carry.params, setting.frequency, own)

    value, embedding = jax.lax.map(
        lambda action: predict(bet_sizes(setting.config.sizes, setting.segment, setting.total, action)),
        actions,
        batch_size=_AT_ONCE,
    )
    _, best = predict(carry.own[jnp.argmax(carry.ratio)])
    nearest = jnp.argmin(((embedding - best[None]) ** 2).sum(1))
    # The actions are independent, so that the first one is a random one.
    return actions[pick_candidate(number, jnp.argmax(value), 0, nearest)]


def _repeated_action(setting: _BetSetting, carry: _BetCarry, number: jax.Array, key: jax.Array) -> jax.Array:
    del key
    order = jnp.argsort(jnp.where(setting.explored, -carry.ratio, jnp.inf))
    return carry.action[order[jnp.maximum(number - setting.explored_count, 0)]]


def _update(setting: _BetSetting, carry: _BetCarry, number: jax.Array, key: jax.Array, trial: Trial) -> _BetCarry:
    del key
    carry = carry._replace(
        own=carry.own.at[number].set(trial.sizes),
        action=carry.action.at[number].set(trial.action[:3]),
        ratio=carry.ratio.at[number].set(trial.ratio),
    )
    probes = Fitnesses(carry.own, carry.ratio)
    params, opt_state = fit_predictor(setting.net, carry.params, carry.opt_state, setting.frequency, probes)
    return carry._replace(params=params, opt_state=opt_state)


def _finish(setting: _BetSetting, planner_state: BetState, carry: _BetCarry) -> BetState:
    # Where sizes are trained once more, the best of these trainings wins.
    counted = ~setting.explored if retrained(setting.config.search) else setting.explored
    best = jnp.argmax(jnp.where(counted, carry.ratio, -jnp.inf))
    return planner_state._replace(params=carry.params, opt_state=carry.opt_state, action=carry.action[best])


def bet_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of BET; its search needs the sizes of all probes at once, i32[M, N].

    Args:
      config: configuration of the run.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each probe.

    Returns:
      SizePlanner whose state is a `BetState`.
    """

    def init(key, storage):
        del storage
        params = Predictor(config.sizes.maximum, users=0).init(derive(key, Purpose.POLICY_INIT))
        return BetState(params, optimiser().init(params), jnp.full(3, 0.5), jnp.float32(0))

    def sizes_of(context: SegmentContext) -> tuple[jax.Array, jax.Array]:
        total, _ = context.budget()
        action = context.state.planner.action
        return bet_sizes(config.sizes, context.segment, total, action), _padded(config, action)

    return probing_planner(init, bet_search, sizes_of, config, on_probes)


def _padded(config: Config, action: jax.Array) -> jax.Array:
    return no_action(config).at[:3].set(action)
