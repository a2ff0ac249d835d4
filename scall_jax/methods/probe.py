"""Probes: short trainings of a segment to judge sizes by, and the rewards that searches learn from.

All methods that search are charged alike: as many probes of as many steps, with one formula for rewards (`reward_of`)
and one reference that they are relative to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import chex
import jax
import jax.numpy as jnp

from scall_jax import policies, tables
from scall_jax.config import Config, SearchConfig
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import Outcome, SearchRecord, SegmentSearch, SizePlanner, action_length
from scall_jax.methods.state import RunState
from scall_jax.ops.devices import gathered
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.buffers import from_buffer, to_buffer
from scall_jax.streams import sides
from scall_jax.tables import Storage


class HasReference(Protocol):
    """State of a planner that makes probes: a NamedTuple with at least this field."""

    @property
    def reference(self) -> jax.Array:
        """f32[], fitness of the last fit at its first evaluation."""
        ...

    def _replace(self, **fields: Any) -> Self: ...


class Probe(NamedTuple):
    """Result of a probe."""

    fitness: jax.Array
    """f32[], mean of Recall@20 and NDCG@20 on the validation part; 0 where the training diverged."""
    allocated: jax.Array
    """i32[], budget units that it gave out."""
    observation: jax.Array
    """f32[O], observation of its trained parameters, with a ratio of 0."""
    by_user: jax.Array
    """f32[Q, 2], Recall@20 and NDCG@20 of the first Q users of the validation part."""


Allocate = Callable[[jax.Array], jax.Array]
"""(coordinates to give out, i32[]) -> own sizes i32[N]."""

ProbeStart = Callable[[Any, jax.Array], Any]
"""(plan, typed PRNG key) -> buffer of parameters that a probe starts from."""


class Prober(Protocol):
    """Signature of what `make_prober` builds."""

    def __call__(self, key: jax.Array, allocate: Allocate, start: ProbeStart | None = None) -> Probe:
        """Train a segment briefly.

        Args:
          key: typed PRNG key of the training.
          allocate: sizes to train with.
          start: parameters to start from; None for `usual_start`.

        Returns:
          Probe.
        """
        ...


def searching_planner(
    config: Config,
    init: Callable[[jax.Array, Storage], HasReference],
    plan: Callable[[SegmentContext, jax.Array], tuple[Any, ...]],
    search: SegmentSearch,
    search_holds: Callable[[SegmentContext], Any],
) -> SizePlanner:
    """A planner whose search runs on the segment that `SearchConfig.on` says.

    A search on the current segment leaves out the first one, whose sizes are uniform. One on the previous segment's
    data runs after every segment, the last one too: a stream may go on, and what a segment leaves behind must not
    depend on whether it does.

    Args:
      config: configuration of the run.
      init: as `SizePlanner.init`; its state has the reference that rewards may be relative to.
      plan: as `SizePlanner.plan`.
      search: as `SizePlanner.search_before`.
      search_holds: as `SizePlanner.search_holds`.

    Returns:
      SizePlanner.
    """

    def search_before(context: SegmentContext) -> tuple[RunState, SearchRecord]:
        return jax.lax.cond(
            context.segment.index > 0, lambda: search(context), lambda: (context.state, no_search(config))
        )

    planner = SizePlanner(init, plan, update=remember_reference, search_holds=search_holds)
    if config.search.on == "current":
        return planner._replace(search_before=search_before)
    return planner._replace(search_after=search)


def remember_reference(context: SegmentContext, outcome: Outcome) -> HasReference:
    """The planner's state with the fitness of the segment's fit at its first evaluation.

    Later rewards may be relative to it (`SearchConfig.reference`).

    Args:
      context: the segment, with the state after it.
      outcome: has the segment's fit.

    Returns:
      The planner's state, a `HasReference` of the same type.
    """
    planner_state: HasReference = context.state.planner
    return planner_state._replace(reference=outcome.fit_result.first_fitness)


def no_search(config: Config) -> SearchRecord:
    """The record of a segment without probes, with rows for `most_probes(config.search)`.

    >>> no_search(Config(search=SearchConfig(probes=5))).action.shape
    (5, 3)
    """
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
    """The most probes of a segment, in whole rounds.

    >>> most_probes(SearchConfig(probes=10, probes_at_once=4))
    12
    """
    return most_rounds(config) * config.probes_at_once


def most_rounds(config: SearchConfig) -> int:
    """The most rounds of a segment, of `SearchConfig.probes_at_once` probes each.

    >>> most_rounds(SearchConfig(probes=10, probes_at_once=4))
    3
    """
    return -(-config.planned_probes // config.probes_at_once)


def observe(context: SegmentContext, params: Any, plan: Any, ratio: jax.Array) -> jax.Array:
    """What a policy observes of a segment.

    Args:
      context: the segment.
      params: parameters of the context's storage, in the form that training takes.
      plan: plan of the parameters.
      ratio: f32[], the last probe's fitness relative to the reference.

    Returns:
      f32[O], where O = `policies.length(config.observe, width)`.
    """
    chex.assert_rank(ratio, 0)
    config, segment, storage = context.config, context.segment, context.storage
    users, items = sides(segment)
    # Before the first plan the layout is empty and the means are 0.
    means = tables.mean_vectors(storage, params, storage.layout(plan), users, segment.users, segment.items)
    sizes = storage.sizes(plan)
    exists = context.active_mask()
    parts = ((slice(0, users), segment.users), (slice(users, users + items), segment.items))
    user_side, item_side = (
        policies.Side(segment.frequency[part], sizes[part], exists[part], num_active, mean)
        for (part, num_active), mean in zip(parts, means, strict=True)
    )
    return policies.observe(config.observe, user_side, item_side, ratio, config.sizes.maximum)


def make_prober(context: SegmentContext) -> Prober:
    """Build the function that trains a segment briefly with given sizes.

    The training has `SearchConfig.probe_steps` steps, starts from what `SearchConfig.start` says, and is evaluated
    once, at its end.

    Args:
      context: the segment.

    Returns:
      Prober.
    """
    storage, segment = context.storage, context.segment
    run_fit = context.recommender().make_probe_fit(storage)
    bias, _ = context.item_bias()

    def probe(key: jax.Array, allocate: Allocate, start: ProbeStart | None = None) -> Probe:
        table_key, fit_key = derive(key, Purpose.TABLE), derive(key, Purpose.FIT)
        sizes = context.spend(allocate)
        params = usual_start(context, sizes, table_key) if start is None else start(sizes, table_key)
        fit_result = run_fit(fit_key, params, storage.layout(sizes), segment, bias, context.state.recommender)
        fitness = jnp.where(fit_result.bad_step < 0, fit_result.fitness, 0.0)
        fitted = from_buffer(storage, gathered(context.config.mesh, fit_result.params))
        observation = observe(context, fitted, sizes, jnp.float32(0))
        # What scales and sizes leave over is beyond the units that a probe has to give out.
        spent = sizes.sum()
        counted = jnp.where(spent <= context.affords(sizes), jnp.minimum(spent, context.budget_total()), spent)
        return Probe(fitness, counted, observation, fit_result.by_user)

    return probe


def usual_start(context: SegmentContext, plan: Any, key: jax.Array) -> Any:
    """A buffer of the parameters that a probe starts from, as `SearchConfig.start` says.

    Args:
      context: the segment.
      plan: of the probe.
      key: typed PRNG key, for new coordinates.
    """
    start = context.warm_params if context.config.search.start == "warm" else context.fresh_params
    return to_buffer(context.storage, start(plan, key), context.config.mesh)


def held_by_probes(context: SegmentContext, at_once: int = 1) -> Any:
    """What the trainings of probes hold from step to step, for `SizePlanner.search_holds`.

    Args:
      context: the segment.
      at_once: probes that are trained together; static.

    Returns:
      A pytree of arrays with a leading axis of probes.
    """
    storage = context.storage
    params = to_buffer(storage, context.fresh_params(storage.plan(), context.search_key()))
    held = context.recommender().held_by_training(storage, params)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (at_once, *x.shape)), held)


def ratio_of(config: SearchConfig, fitness: jax.Array, reference: jax.Array) -> jax.Array:
    """Fitness relative to a reference, from 0 to `SearchConfig.most_ratio`; 1 where the reference is 0.

    Args:
      config: has the bound.
      fitness: f32[...].
      reference: f32[] or of the same shape.

    Returns:
      f32[...].

    >>> ratio_of(SearchConfig(), jnp.array([0.1, 0.3, 0.9]), jnp.float32(0.2)).round(2).tolist()
    [0.5, 1.5, 4.0]
    """
    chex.assert_type([fitness, reference], float)
    ratio = jnp.clip(fitness / jnp.where(reference > 0, reference, 1.0), 0.0, config.most_ratio)
    return jnp.where(reference > 0, ratio, 1.0)


def reward_of(config: SearchConfig, ratio: jax.Array) -> jax.Array:
    """The reward of a probe: 0 at a ratio of `low`, 10 at one of `high`, linear between and beyond them.

    Args:
      config: has `low` and `high`.
      ratio: f32[...], fitness relative to the reference.

    Returns:
      f32[...].

    >>> reward_of(SearchConfig(low=0.5, high=1.5), jnp.array([0.5, 1.0, 1.5, 2.0])).tolist()
    [0.0, 5.0, 10.0, 15.0]
    """
    chex.assert_type(ratio, float)
    return 10 * (ratio - config.low) / (config.high - config.low)


def expected_budget_units(context: SegmentContext) -> jax.Array:
    """Budget units that a probe of the segment gives out if it spends all it can.

    Args:
      context: the segment.

    Returns:
      i32[], the segment's budget, or the largest size for every entity where that is less.
    """
    segment = context.segment
    entities = (segment.users + segment.items).astype(jnp.uint32)
    most = entities * jnp.uint32(context.config.sizes.maximum)
    return jnp.minimum(context.budget_total().astype(jnp.uint32), most).astype(jnp.int32)
