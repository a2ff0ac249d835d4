"""The search of SCALL: probe actions by short trainings, learn from their rewards, size the segment by the best.

An action is rho (users' share of the budget), one shape per side, and optionally the concentration of the sampler, each
in (0, 1). A probe gives out the whole budget by it, trains for a few steps and evaluates on valid.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax import policies, tables
from scall_jax.actions import action_length, sizes_by_action
from scall_jax.allocators import ALLOCATORS, alive, sides
from scall_jax.chooser import Chooser
from scall_jax.config import Config
from scall_jax.recommenders.fit import closed, make_fit, opened
from scall_jax.state import (
    SEARCH_KEY,
    RunState,
    budget_of,
    carry_over,
    fresh,
    item_bias,
    search_key,
    storage_of,
)
from scall_jax.streams import Segment

_MOST_RATIO = 4.0


class SearchState(NamedTuple):
    """What the search carries from segment to segment."""

    policy: Any
    ratio: jax.Array  # f32[], fitness of the last probe by the reference
    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation


class SearchRecord(NamedTuple):
    """Probes of one segment, M at most; rows from `count` on are 0."""

    count: jax.Array  # i32[], probes made
    action: jax.Array  # f32[M, A]
    fitness: jax.Array  # f32[M], mean of Recall@20 and NDCG@20 on valid
    reward: jax.Array  # f32[M]
    allocated: jax.Array  # i32[M], parameters given out
    expected: jax.Array  # i32[], parameters that each had to give out, or had to stay at or below
    least: jax.Array  # i32[], the least that each had to give out
    reference: jax.Array  # f32[], fitness that rewards are relative to


class Probe(NamedTuple):
    """What a probe finds."""

    fitness: jax.Array  # f32[], mean of Recall@20 and NDCG@20 on valid
    allocated: jax.Array  # i32[], parameters given out
    observation: jax.Array  # f32[O], after it
    by_user: jax.Array  # f32[Q, 2], Recall@20 and NDCG@20 of the first Q users of valid


def make_search(name: str, config: Config, progress: Callable | None = None) -> Chooser:
    """The chooser that searches by the policy `name` of `policies.POLICIES`.

    `progress(segment, probes, best ratio)` is called on the host after each round of probes.
    """
    length = action_length(config.search)

    @functools.cache
    def policy_for(width: int) -> policies.Policy:
        seen = policies.length(config.observe, width)
        return policies.POLICIES[name](config.policy, seen, length)

    def init(key, storage):
        begun = policy_for(storage.width).init(jax.random.fold_in(key, SEARCH_KEY))
        return SearchState(begun, jnp.float32(1), jnp.float32(0))

    def choose(state, segment, key):
        # at segment 0 nothing has been searched: uniform sizes, as published
        storage = storage_of(config, state, segment)
        params = storage.load(state.params, storage.layout(state.plan))
        seen = observe(config, state, segment, params, state.plan, state.chooser.ratio)
        action = policy_for(storage.width).greedy(state.chooser.policy, seen)
        total, shared = budget_of(config, state, segment)
        own = jax.lax.cond(
            segment.index > 0,
            lambda: sizes_by_action(config, key, segment, total, action),
            lambda: ALLOCATORS["uniform"](config)(key, segment, total),
        )
        return jnp.concatenate([own, shared]), action

    def run(state, segment):
        return _search(config, policy_for(storage_of(config, state, segment).width), state, segment, progress)

    def learn(state, segment, prepared, fitted, valid):
        del segment, prepared, valid
        return state._replace(chooser=state.chooser._replace(reference=fitted.first_fitness))

    return Chooser(init, choose, run, "before" if config.search.on == "current" else "after", learn)


def no_search(config: Config) -> SearchRecord:
    """The record of a segment without search."""
    most = most_probes(config)
    return SearchRecord(
        count=jnp.int32(0),
        action=jnp.zeros((most, action_length(config.search))),
        fitness=jnp.zeros(most),
        reward=jnp.zeros(most),
        allocated=jnp.zeros(most, jnp.int32),
        expected=jnp.int32(0),
        least=jnp.int32(0),
        reference=jnp.float32(0),
    )


def most_probes(config: Config) -> int:
    """Probes of a segment in whole rounds."""
    return _rounds(config) * config.search.probes_at_once


def _rounds(config: Config) -> int:
    return -(-config.search.probes // config.search.probes_at_once)


def observe(config: Config, state: RunState, segment: Segment, params, plan, ratio) -> jax.Array:
    """What a policy sees, f32[O], of parameters, a plan and the last probe's ratio."""
    storage = storage_of(config, state, segment)
    users, items = sides(segment)
    # without sizes yet, the layout is empty and the means are 0
    means = tables.mean_vectors(storage, params, storage.layout(plan), users, segment.users, segment.items)
    sizes = storage.sizes(plan)
    exists = alive(segment)
    parts = ((slice(0, users), segment.users), (slice(users, users + items), segment.items))
    described = [
        policies.Side(segment.frequency[part], sizes[part], exists[part], live, mean)
        for (part, live), mean in zip(parts, means, strict=True)
    ]
    return policies.observe(config.observe, *described, ratio, config.sizes.maximum)


def make_prober(config: Config, state: RunState, segment: Segment) -> Callable[..., Probe]:
    """Function (key, function from a total to own sizes i32[N]) -> Probe: a short training with these sizes."""
    storage = storage_of(config, state, segment)
    run_fit = make_fit(storage, config.search.probe_fit(config.fit), None, config.candidates)
    bias, _ = item_bias(config, segment)
    total, shared = budget_of(config, state, segment)

    def probe(key, allocate) -> Probe:
        table_key, fit_key = jax.random.split(key)
        sizes = jnp.concatenate([allocate(total), shared])
        start = carry_over if config.search.start == "warm" else fresh
        params = opened(storage, start(config, state, segment, sizes, table_key))
        fitted = run_fit(fit_key, params, storage.layout(sizes), segment, bias)
        fitness = jnp.where(fitted.bad_step < 0, fitted.fitness, 0.0)
        seen = observe(config, state, segment, closed(storage, fitted.params), sizes, 0.0)
        return Probe(fitness, sizes.sum(), seen, fitted.by_user)

    return probe


class _Carry(NamedTuple):
    round: jax.Array  # -1 while the reference is probed
    policy: Any
    observation: jax.Array
    ratio: jax.Array
    best: jax.Array
    rho: jax.Array  # greedy share of the users
    still: jax.Array  # rounds in a row in which it hardly moved
    reference: jax.Array  # f32[], fitness that rewards are relative to
    record: SearchRecord


def _search(config, policy, state, segment, progress):
    options, at_once = config.search, config.search.probes_at_once
    key = search_key(state, segment)
    probe = make_prober(config, state, segment)
    uniform = ALLOCATORS["uniform"](config)
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

    def one_round(carry: _Carry) -> _Carry:
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

    def goes_on(carry: _Carry):
        more = carry.round < _rounds(config)
        if not options.converge:
            return more
        return more & ~((carry.still >= options.settled_rounds) & (carry.record.count > options.least_probes))

    begun = policy.begin(state.chooser.policy)
    storage = storage_of(config, state, segment)
    params = storage.load(state.params, storage.layout(state.plan))
    seen = observe(config, state, segment, params, state.plan, state.chooser.ratio)
    expected = expected_units(config, state, segment)
    start = _Carry(
        round=jnp.int32(-1 if folded else 0),
        policy=begun,
        observation=seen,
        ratio=state.chooser.ratio,
        best=jnp.float32(0),
        rho=policy.greedy(begun, seen)[0],
        still=jnp.int32(0),
        reference=probe(key, uniform_sizes).fitness if relative and not folded else state.chooser.reference,
        record=no_search(config)._replace(expected=expected, least=expected),
    )
    end = jax.lax.while_loop(goes_on, one_round, start)
    chooser = state.chooser._replace(policy=end.policy, ratio=end.ratio)
    return state._replace(chooser=chooser), end.record._replace(reference=end.reference)


def _learned(config, policy, progress, segment, carry: _Carry, key, actions, made: Probe) -> _Carry:
    """The carry after a round of probes and what the policy learns from it."""
    options = config.search
    ratio = ratio_of(made.fitness, carry.reference)
    reward = 10 * (ratio - options.low) / (options.high - options.low)
    after = _with_ratio(config, made.observation, ratio)
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
    return _Carry(
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


def ratio_of(fitness: jax.Array, reference: jax.Array) -> jax.Array:
    """Fitness by the reference, held within [0, 4]: early references may be next to nothing, or nothing."""
    return jnp.where(reference > 0, jnp.clip(fitness / jnp.where(reference > 0, reference, 1.0), 0.0, _MOST_RATIO), 1.0)


def _with_ratio(config, observations, ratio):
    """Observations after the probes, with the probes' own ratio at its place."""
    return observations.at[:, 2 * config.observe.groups].set(ratio)


def expected_units(config: Config, state: RunState, segment: Segment) -> jax.Array:
    """Parameters that each probe of a segment has to give out, i32[]."""
    entities = (segment.users + segment.items).astype(jnp.uint32)
    most = entities * jnp.uint32(config.sizes.maximum)
    return jnp.minimum(state.totals[segment.index].astype(jnp.uint32), most).astype(jnp.int32)
