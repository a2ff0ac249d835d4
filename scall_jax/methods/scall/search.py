"""The search of SCALL: probe actions by short trainings, learn from their rewards, size the segment by the best.

An action is rho (users' share of the budget), one shape per side, and optionally the concentration of the sampler, each
in (0, 1). A probe gives out the whole budget by it, trains for a few steps and evaluates on valid.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax import policies
from scall_jax.config import Config
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.context import SEARCH_KEY, SegmentContext
from scall_jax.methods.planner import SearchRecord, SizePlanner, action_length
from scall_jax.methods.probe import (
    Probe,
    expected_budget_units,
    make_prober,
    most_rounds,
    no_search,
    observe,
    ratio_of,
    reward_of,
    searching_planner,
)
from scall_jax.methods.scall.actions import sizes_by_action


class SearchState(NamedTuple):
    """What the search carries from segment to segment."""

    policy: Any
    ratio: jax.Array  # f32[], fitness of the last probe by the reference
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


def scall_planner(name: str, config: Config, progress: Callable | None = None) -> SizePlanner:
    """The planner that searches by the policy `name` of `policies.POLICIES`.

    `progress(segment, probes, best ratio)` is called on the host after each round of probes.
    """
    length = action_length(config.search)

    @functools.cache
    def policy_for(width: int) -> policies.Policy:
        observation_length = policies.length(config.observe, width)
        return policies.POLICIES[name](config.policy, observation_length, length)

    def init(key, storage):
        policy_state = policy_for(storage.width).init(jax.random.fold_in(key, SEARCH_KEY))
        return SearchState(policy_state, jnp.float32(1), jnp.float32(0))

    def plan(context, key):
        # Nothing has been searched before segment 0: its sizes are uniform, as published.
        state, segment, storage = context.state, context.segment, context.storage
        observation = observe(context, context.stored_params(), state.plan, state.planner.ratio)
        action = policy_for(storage.width).greedy(state.planner.policy, observation)
        total, shared = context.budget()
        own = jax.lax.cond(
            segment.index > 0,
            lambda: sizes_by_action(config, key, segment, total, action),
            lambda: ALLOCATORS["uniform"](config.sizes)(key, segment, total),
        )
        return jnp.concatenate([own, shared]), action

    def search(context):
        return _search(context, policy_for(context.storage.width), progress)

    return searching_planner(config, init, plan, search)


class _SearchCarry(NamedTuple):
    round: jax.Array  # -1 while the reference is probed
    policy: Any
    observation: jax.Array
    ratio: jax.Array
    best: jax.Array
    rho: jax.Array  # greedy share of the users
    still: jax.Array  # rounds in a row in which it hardly moved
    reference: jax.Array  # f32[], fitness that rewards are relative to
    record: SearchRecord


def _search(context: SegmentContext, policy: policies.Policy, progress: Callable | None):
    config, state, segment = context.config, context.state, context.segment
    options, at_once = config.search, config.search.probes_at_once
    key = context.search_key()
    probe = make_prober(context)
    uniform = ALLOCATORS["uniform"](config.sizes)
    size_key = jax.random.fold_in(key, 0)
    relative = options.reference == "uniform"
    # one probe at a time, the reference is the first round: a training that is compiled once serves for all
    folded = relative and at_once == 1

    def uniform_sizes(total):
        return uniform(size_key, segment, total)

    def make(number, probe_key, sample_key, action):
        def allocate(total):
            return sizes_by_action(config, sample_key, segment, total, action)

        def either(total):
            return jax.lax.cond(number < 0, uniform_sizes, allocate, total)

        return probe(probe_key, either if folded else allocate)

    def one_round(carry: _SearchCarry) -> _SearchCarry:
        lanes = jax.random.split(jax.random.fold_in(key, 1 + carry.round), at_once + 1)
        actions = jax.vmap(lambda k: policy.act(carry.policy, k, carry.observation))(lanes[:-1])
        sample_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(lanes[:-1])
        # common random numbers: what differs between probes is the sizes alone
        probe_keys = jnp.broadcast_to(key, (at_once,)) if options.common else lanes[:-1]
        if at_once == 1:
            made = make(carry.round, probe_keys[0], sample_keys[0], actions[0])
            made = jax.tree.map(lambda x: x[None], made)
        else:
            made = jax.vmap(make, (None, 0, 0, 0))(carry.round, probe_keys, sample_keys, actions)
        learned = functools.partial(_learned, config, policy, progress, segment, carry, lanes[-1], actions, made)
        if not folded:
            return learned()
        refer = carry._replace(round=carry.round + 1, reference=made.fitness[0])
        return jax.lax.cond(carry.round < 0, lambda: refer, learned)

    def goes_on(carry: _SearchCarry):
        more = carry.round < most_rounds(options)
        if not options.converge:
            return more
        return more & ~((carry.still >= options.settled_rounds) & (carry.record.count > options.least_probes))

    begun = policy.start_segment(state.planner.policy)
    observation = observe(context, context.stored_params(), state.plan, state.planner.ratio)
    expected = expected_budget_units(context)
    start = _SearchCarry(
        round=jnp.int32(-1 if folded else 0),
        policy=begun,
        observation=observation,
        ratio=state.planner.ratio,
        best=jnp.float32(0),
        rho=policy.greedy(begun, observation)[0],
        still=jnp.int32(0),
        reference=probe(key, uniform_sizes).fitness if relative and not folded else state.planner.reference,
        record=no_search(config)._replace(expected=expected, least=expected),
    )
    end = jax.lax.while_loop(goes_on, one_round, start)
    planner = state.planner._replace(policy=end.policy, ratio=end.ratio)
    return state._replace(planner=planner), end.record._replace(reference=end.reference)


def _learned(config, policy, progress, segment, carry: _SearchCarry, key, actions, made: Probe) -> _SearchCarry:
    """The carry after a round of probes and what the policy learns from it."""
    options = config.search
    ratio = ratio_of(made.fitness, carry.reference)
    reward = reward_of(options, ratio)
    after = policies.with_ratio(config.observe, made.observation, ratio)
    before = jnp.broadcast_to(carry.observation, after.shape)
    updated = policy.update(carry.policy, key, policies.Transition(before, actions, reward, after))
    rho = policy.greedy(updated, after[-1])[0]
    first = carry.round * actions.shape[0]
    record = carry.record
    record = record._replace(
        count=record.count + actions.shape[0],
        action=jax.lax.dynamic_update_slice(record.action, actions, (first, 0)),
        fitness=jax.lax.dynamic_update_slice(record.fitness, made.fitness, (first,)),
        reward=jax.lax.dynamic_update_slice(record.reward, reward, (first,)),
        allocated=jax.lax.dynamic_update_slice(record.allocated, made.allocated, (first,)),
    )
    best = jnp.maximum(carry.best, ratio.max())
    if progress is not None:
        jax.debug.callback(progress, segment.index, record.count, best, ordered=False)
    return _SearchCarry(
        round=carry.round + 1,
        policy=updated,
        observation=after[-1],
        ratio=ratio[-1],
        best=best,
        rho=rho,
        still=jnp.where(jnp.abs(rho - carry.rho) < options.tolerance, carry.still + 1, 0),
        reference=carry.reference,
        record=record,
    )
