"""The search of SCALL (arXiv 2407.15411): probe actions, learn from their rewards, size the segment by the best.

An action is a few numbers in (0, 1) that stand for sizes (`actions`, or `prices`). A probe gives out the whole budget
by an action, trains for a few steps, and is evaluated on valid.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from scall_jax import policies
from scall_jax.config import ACTIONS, Config
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, Planned, SearchRecord, SizePlanner, action_length, no_action
from scall_jax.methods.probe import (
    Probe,
    Prober,
    expected_budget_units,
    held_by_probes,
    make_prober,
    most_rounds,
    no_search,
    observe,
    ratio_of,
    reward_of,
    searching_planner,
    usual_start,
)
from scall_jax.methods.scall.actions import ActionSpace, Meaning, shapes
from scall_jax.methods.scall.prices import prices
from scall_jax.methods.state import RunState
from scall_jax.ops.devices import agreed
from scall_jax.ops.keys import Purpose, derive, derive_many
from scall_jax.recommenders.buffers import to_buffer


class SearchState(NamedTuple):
    """State of the planner of SCALL, which passes from segment to segment."""

    policy: Any  # state of the policy
    ratio: jax.Array  # f32[], the last probe's fitness relative to the reference
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation
    space: Any = ()  # state of the action space (`ActionSpace.init`)


_SPACES: dict[str, Callable[[Config], ActionSpace]] = {"shapes": shapes, "prices": prices}
assert tuple(_SPACES) == ACTIONS


def scall_planner(name: str, config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner that searches with a policy.

    Args:
      name: name of the policy in `policies.POLICIES`.
      config: configuration of the run.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each round of probes.

    Returns:
      SizePlanner whose state is a `SearchState`.
    """
    length = action_length(config.search)
    space = _SPACES[config.search.actions](config)

    @functools.cache
    def policy_for(width: int) -> policies.Policy:
        observation_length = policies.length(config.observe, width)
        return policies.POLICIES[name](config.policy, observation_length, length)

    def init(key, storage):
        policy_state = policy_for(storage.width).init(derive(key, Purpose.POLICY_INIT))
        return SearchState(policy_state, jnp.float32(1), jnp.float32(0), space.init())

    def plan(context: SegmentContext, key: jax.Array) -> Planned:
        return _plan(context, key, space, policy_for(context.storage.width))

    def search(context: SegmentContext) -> tuple[RunState, SearchRecord]:
        planner_state = context.state.planner
        planner_state = planner_state._replace(space=space.choose(context, planner_state.space))
        context = dataclasses.replace(context, state=context.state._replace(planner=planner_state))
        return _search(context, space, policy_for(context.storage.width), on_probes)

    def search_holds(context: SegmentContext) -> Any:
        start = _rounds(context, space, policy_for(context.storage.width), None).start()
        held = space.holds(context, context.state.planner.space)
        return start, held, held_by_probes(context, config.search.probes_at_once)

    return searching_planner(config, init, plan, search, search_holds)


def _plan(context: SegmentContext, key: jax.Array, space: ActionSpace, policy: policies.Policy) -> Planned:
    """The plan by the action that the policy thinks best.

    Nothing has been searched before segment 0: its sizes are uniform, as published.
    """
    config, state, segment = context.config, context.state, context.segment
    observation = observe(context, context.stored_params(), state.plan, state.planner.ratio)
    action = agreed(config.mesh, policy.greedy(state.planner.policy, observation))
    meaning = space.meaning(context, state.planner.space)

    def own_sizes(total: jax.Array) -> jax.Array:
        return jax.lax.cond(
            segment.index > 0,
            lambda: meaning.sizes(key, total, action),
            lambda: ALLOCATORS["uniform"](config.sizes)(key, segment, total),
        )

    new_plan = context.spend(own_sizes)
    # What is recorded is the action that sizes come from.
    taken = jnp.where(segment.index > 0, action, no_action(config))
    return Planned(new_plan, taken, _start_of_fit(context, meaning, action, new_plan))


def _start_of_fit(context: SegmentContext, meaning: Meaning, action: jax.Array, plan: Any) -> Any:
    """Parameters that the fit starts from, where actions say so; None for those carried over."""
    start_by_action = meaning.start
    if start_by_action is None:
        return None
    table_key = context.keys().table

    def usual() -> Any:
        return to_buffer(context.storage, context.warm_params(plan, table_key), context.config.mesh)

    return jax.lax.cond(context.segment.index > 0, lambda: start_by_action(action, plan, usual), usual)


class _SearchCarry(NamedTuple):
    round: jax.Array  # i32[], -1 while the reference is probed
    policy: Any  # state of the policy
    observation: jax.Array  # f32[O], after the last probe
    ratio: jax.Array  # f32[], of the last probe
    best: jax.Array  # f32[], the largest ratio so far
    rho: jax.Array  # f32[], the users' share of the greedy action
    still: jax.Array  # i32[], rounds in a row in which rho hardly moved
    still_before: jax.Array  # i32[], the same before the last round
    reference: jax.Array  # f32[], fitness that rewards are relative to
    record: SearchRecord


def _rounds(
    context: SegmentContext, space: ActionSpace, policy: policies.Policy, on_probes: OnProbes | None
) -> "_Rounds":
    meaning = space.meaning(context, context.state.planner.space)
    return _Rounds(context, meaning, policy, on_probes, context.search_key(), make_prober(context))


def _search(
    context: SegmentContext, space: ActionSpace, policy: policies.Policy, on_probes: OnProbes | None
) -> tuple[RunState, SearchRecord]:
    rounds = _rounds(context, space, policy, on_probes)
    end = jax.lax.while_loop(rounds.unfinished, rounds.one_round, rounds.start())
    state = context.state
    planner_state = state.planner._replace(policy=end.policy, ratio=end.ratio)
    return state._replace(planner=planner_state), end.record._replace(reference=end.reference)


@dataclasses.dataclass(frozen=True, eq=False)
class _Rounds:
    """The rounds of a segment's search, as pure functions of what a round carries."""

    context: SegmentContext
    meaning: Meaning
    policy: policies.Policy
    on_probes: OnProbes | None
    key: jax.Array
    probe: Prober

    @property
    def reference_is_round(self) -> bool:
        """Whether the reference is probed as the first round.

        With one probe at a time it is, so that one compiled training serves for all probes.
        """
        options = self.context.config.search
        return options.reference == "uniform" and options.probes_at_once == 1

    def start(self) -> _SearchCarry:
        """What the first round is given."""
        context, policy, state = self.context, self.policy, self.context.state
        config = context.config
        policy_state = policy.start_segment(state.planner.policy)
        observation = observe(context, context.stored_params(), state.plan, state.planner.ratio)
        expected = expected_budget_units(context)
        reference = state.planner.reference
        if config.search.reference == "uniform" and not self.reference_is_round:
            reference = self.probe(derive(self.key, Purpose.COMMON_PROBE), self.uniform).fitness
        return _SearchCarry(
            round=jnp.int32(-1 if self.reference_is_round else 0),
            policy=policy_state,
            observation=observation,
            ratio=state.planner.ratio,
            best=jnp.float32(0),
            rho=agreed(config.mesh, policy.greedy(policy_state, observation)[0]),
            still=jnp.int32(0),
            still_before=jnp.int32(0),
            reference=reference,
            record=no_search(config)._replace(expected=expected, least=expected),
        )

    def unfinished(self, carry: _SearchCarry) -> jax.Array:
        """Whether another round follows, bool[]."""
        options = self.context.config.search
        more = carry.round < most_rounds(options)
        if not options.converge:
            return more
        return more & ~((carry.still_before >= options.settled_rounds) & (carry.record.count > options.least_probes))

    def one_round(self, carry: _SearchCarry) -> _SearchCarry:
        """Probe the actions that the policy wants to try, and let it learn from their rewards."""
        options, policy = self.context.config.search, self.policy
        at_once = options.probes_at_once
        lanes = functools.partial(self.lane_keys, carry.round)
        actions = jax.vmap(lambda k: policy.act(carry.policy, k, carry.observation))(lanes(Purpose.ACTION))
        actions = agreed(self.context.config.mesh, actions)
        # With common random numbers, probes differ in nothing but their sizes.
        common = derive(self.key, Purpose.COMMON_PROBE)
        probe_keys = jnp.broadcast_to(common, (at_once,)) if options.common else lanes(Purpose.PROBE)
        sample_keys = lanes(Purpose.PROBE_SIZES)
        if at_once == 1:
            probes = self.probe_action(carry.round, probe_keys[0], sample_keys[0], actions[0])
            probes = jax.tree.map(lambda x: x[None], probes)
        else:
            probes = jax.vmap(self.probe_action, (None, 0, 0, 0))(carry.round, probe_keys, sample_keys, actions)
        update_key = derive(self.key, Purpose.POLICY_UPDATE, 1 + carry.round)
        after_probes = functools.partial(self.learned, carry, update_key, actions, probes)
        if not self.reference_is_round:
            return after_probes()
        after_reference = carry._replace(round=carry.round + 1, reference=probes.fitness[0])
        return jax.lax.cond(carry.round < 0, lambda: after_reference, after_probes)

    def lane_keys(self, number: jax.Array, purpose: Purpose) -> jax.Array:
        """Keys [K] of a purpose for the K probes of a round; the reference's round is -1."""
        return derive_many(self.key, purpose, 1 + number, count=self.context.config.search.probes_at_once)

    def uniform(self, total: jax.Array) -> jax.Array:
        """Sizes i32[N] of the reference."""
        return ALLOCATORS["uniform"](self.context.config.sizes)(self.key, self.context.segment, total)

    def probe_action(self, number: jax.Array, probe_key: jax.Array, sample_key: jax.Array, action: jax.Array) -> Probe:
        """Probe an action f32[A], or the reference in round -1."""

        def by_action(total):
            return self.meaning.sizes(sample_key, total, action)

        def by_round(total):
            return jax.lax.cond(number < 0, self.uniform, by_action, total)

        start = None if self.meaning.start is None else functools.partial(self.start_of, number, action)
        return self.probe(probe_key, by_round if self.reference_is_round else by_action, start)

    def start_of(self, number: jax.Array, action: jax.Array, plan: jax.Array, key: jax.Array) -> Any:
        """Parameters that a probe of an action starts from, where actions say so."""
        by_action = cast(Callable[..., Any], self.meaning.start)

        def usual() -> Any:
            return usual_start(self.context, plan, key)

        return jax.lax.cond(number < 0, usual, lambda: by_action(action, plan, usual))

    def learned(self, carry: _SearchCarry, key: jax.Array, actions: jax.Array, probes: Probe) -> _SearchCarry:
        """The carry after a round of probes of actions f32[K, A], with what the policy learns from them."""
        config, policy = self.context.config, self.policy
        options = config.search
        ratio = ratio_of(options, probes.fitness, carry.reference)
        reward = reward_of(options, ratio)
        after = policies.with_ratio(config.observe, probes.observation, ratio)
        before = jnp.broadcast_to(carry.observation, after.shape)
        policy_state = policy.update(carry.policy, key, policies.Transition(before, actions, reward, after))
        rho = agreed(config.mesh, policy.greedy(policy_state, after[-1])[0])
        record = _with_probes(carry.record, carry.round * actions.shape[0], actions, probes, reward)
        best = jnp.maximum(carry.best, ratio.max())
        if self.on_probes is not None:
            on_probes = cast(Callable[..., None], self.on_probes)
            jax.debug.callback(on_probes, self.context.segment.index, record.count, best, ordered=False)
        return _SearchCarry(
            round=carry.round + 1,
            policy=policy_state,
            observation=after[-1],
            ratio=ratio[-1],
            best=best,
            rho=rho,
            still=jnp.where(jnp.abs(rho - carry.rho) < options.tolerance, carry.still + 1, 0),
            still_before=carry.still,
            reference=carry.reference,
            record=record,
        )


def _with_probes(
    record: SearchRecord, first: jax.Array, actions: jax.Array, probes: Probe, reward: jax.Array
) -> SearchRecord:
    """The record with a round of probes in its rows from `first` on."""
    return record._replace(
        count=record.count + actions.shape[0],
        action=jax.lax.dynamic_update_slice(record.action, actions, (first, 0)),
        fitness=jax.lax.dynamic_update_slice(record.fitness, probes.fitness, (first,)),
        reward=jax.lax.dynamic_update_slice(record.reward, reward, (first,)),
        allocated=jax.lax.dynamic_update_slice(record.allocated, probes.allocated, (first,)),
    )
