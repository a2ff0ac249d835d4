"""Probes: short trainings of a segment with sizes to be judged, and the rewards that searches learn from."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from scall_jax import policies, tables
from scall_jax.config import Config, SearchConfig
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import Outcome, SearchRecord, SizePlanner, action_length
from scall_jax.methods.state import RunState
from scall_jax.recommenders.fit import from_buffer, make_fit, to_buffer
from scall_jax.streams import sides

_MOST_RATIO = 4.0


class HasReference(Protocol):
    """What a planner that makes probes remembers: a NamedTuple with at least this field."""

    reference: jax.Array  # f32[], fitness of the last fit at its first evaluation

    def _replace(self, **fields) -> "HasReference": ...


class Probe(NamedTuple):
    """What a probe finds."""

    fitness: jax.Array  # f32[], mean of Recall@20 and NDCG@20 on valid
    allocated: jax.Array  # i32[], parameters given out
    observation: jax.Array  # f32[O], after it
    by_user: jax.Array  # f32[Q, 2], Recall@20 and NDCG@20 of the first Q users of valid


def searching_planner(
    config: Config,
    init: Callable,
    plan: Callable,
    search: Callable[[SegmentContext], tuple[RunState, SearchRecord]],
) -> SizePlanner:
    """A planner whose memory is a `HasReference` and whose `search` runs when `SearchConfig.on` says.

    A search on the current segment leaves out the first one, whose sizes are uniform; one on the previous segment's
    data runs after each segment but the last, which no plan follows.
    """

    def nothing_found(context):
        return context.state, no_search(config)

    def search_before(context):
        return jax.lax.cond(context.segment.index > 0, lambda: search(context), lambda: nothing_found(context))

    def search_after(context):
        last = context.state.totals.shape[0] - 1
        return jax.lax.cond(context.segment.index < last, lambda: search(context), lambda: nothing_found(context))

    if config.search.on == "current":
        return SizePlanner(init, plan, search_before=search_before, update=remember_reference)
    return SizePlanner(init, plan, search_after=search_after, update=remember_reference)


def remember_reference(context: SegmentContext, outcome: Outcome) -> HasReference:
    """Keep the fitness of the segment's fit at its first evaluation, to which later rewards may be relative."""
    memory: HasReference = context.state.planner
    return memory._replace(reference=outcome.fit_result.first_fitness)


def no_search(config: Config) -> SearchRecord:
    """The record of a segment without search."""
    most = most_probes(config.search)
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


def most_probes(config: SearchConfig) -> int:
    """Probes of a segment in whole rounds."""
    return most_rounds(config) * config.probes_at_once


def most_rounds(config: SearchConfig) -> int:
    """Rounds of `SearchConfig.probes_at_once` probes of a segment."""
    return -(-config.probes // config.probes_at_once)


def observe(context: SegmentContext, params, plan, ratio) -> jax.Array:
    """What a policy sees, f32[O], of parameters, a plan and the last probe's ratio."""
    config, segment, storage = context.config, context.segment, context.storage
    users, items = sides(segment)
    # Before the first plan the layout is empty and the means are 0.
    means = tables.mean_vectors(storage, params, storage.layout(plan), users, segment.users, segment.items)
    sizes = storage.sizes(plan)
    exists = context.active_mask()
    parts = ((slice(0, users), segment.users), (slice(users, users + items), segment.items))
    described = [
        policies.Side(segment.frequency[part], sizes[part], exists[part], num_active, mean)
        for (part, num_active), mean in zip(parts, means, strict=True)
    ]
    return policies.observe(config.observe, *described, ratio, config.sizes.maximum)


def make_prober(context: SegmentContext) -> Callable[..., Probe]:
    """Function (key, function from a total to own sizes i32[N]) -> Probe: a short training with these sizes."""
    config, storage, segment = context.config, context.storage, context.segment
    run_fit = make_fit(storage, config.search.probe_fit(config.fit), None, config.candidates)
    bias, _ = context.item_bias()
    total, shared = context.budget()

    def probe(key, allocate) -> Probe:
        table_key, fit_key = jax.random.split(key)
        sizes = jnp.concatenate([allocate(total), shared])
        start = context.warm_params if config.search.start == "warm" else context.fresh_params
        params = to_buffer(storage, start(sizes, table_key))
        fit_result = run_fit(fit_key, params, storage.layout(sizes), segment, bias)
        fitness = jnp.where(fit_result.bad_step < 0, fit_result.fitness, 0.0)
        observation = observe(context, from_buffer(storage, fit_result.params), sizes, 0.0)
        return Probe(fitness, sizes.sum(), observation, fit_result.by_user)

    return probe


def ratio_of(fitness: jax.Array, reference: jax.Array) -> jax.Array:
    """Fitness by the reference, held within [0, 4]: early references may be next to nothing, or nothing."""
    return jnp.where(reference > 0, jnp.clip(fitness / jnp.where(reference > 0, reference, 1.0), 0.0, _MOST_RATIO), 1.0)


def reward_of(config: SearchConfig, ratio: jax.Array) -> jax.Array:
    """The reward of a probe: 0 at a ratio of `low` and 10 at one of `high`, linear in between and beyond."""
    return 10 * (ratio - config.low) / (config.high - config.low)


def expected_budget_units(context: SegmentContext) -> jax.Array:
    """Budget units that each probe of a segment has to give out, i32[]."""
    segment = context.segment
    entities = (segment.users + segment.items).astype(jnp.uint32)
    most = entities * jnp.uint32(context.config.sizes.maximum)
    return jnp.minimum(context.budget_total().astype(jnp.uint32), most).astype(jnp.int32)
