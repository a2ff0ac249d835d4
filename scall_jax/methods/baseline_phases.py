"""Phases of baselines, which have no table and spend no budget."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.config import Config
from scall_jax.evaluation import RankingOptions
from scall_jax.methods.phases import Bookkeeping, Callbacks, Method, MethodPhases, Prepared, Ranked
from scall_jax.methods.planner import no_action
from scall_jax.methods.state import RunState
from scall_jax.recommenders.baseline import Baseline
from scall_jax.recommenders.fit_result import FitResult
from scall_jax.recommenders.served import Served
from scall_jax.streams import Segment, Stream


def baseline_method(baseline: Baseline) -> Method:
    """Build the method that ranks with a baseline.

    Args:
      baseline: a recommender outside the budget.

    Returns:
      Method to which budgets mean nothing: its records say 0 budget units and 0 bytes allowed.

    >>> from scall_jax.recommenders.popularity import FLOORS
    >>> baseline_method(FLOORS["popularity-all"]).budget_is_data
    True
    """
    return Method(functools.partial(_baseline_phases, baseline))


def _baseline_phases(baseline: Baseline, config: Config, callbacks: Callbacks) -> MethodPhases:
    del callbacks
    return MethodPhases(
        init=functools.partial(_init, baseline),
        prepare=functools.partial(_prepare, baseline, config),
        fit=functools.partial(_fit, baseline, config),
        rank=functools.partial(_rank, baseline),
        bookkeeping=functools.partial(_bookkeeping, baseline),
        serve=None if baseline.serve is None else functools.partial(_serve, baseline),
        fold_in=baseline.fold_in,
        keeps_shapes=False,
    )


def _init(baseline: Baseline, key: jax.Array, stream: Stream) -> RunState:
    stored = baseline.empty(stream.capacity.users, stream.capacity.items)
    return RunState(key, stored, (), jnp.zeros(2, jnp.int32), jnp.zeros(stream.most_segments, jnp.int32))


def _prepare(baseline: Baseline, config: Config, state: RunState, segment: Segment) -> Prepared:
    scores, row = baseline.scores(segment, config.fit.valid_users, candidates=config.candidates)
    no_sizes = jnp.zeros(segment.frequency.shape[0] + 2, jnp.int32)
    return Prepared(state.params, state.plan, no_sizes, scores, row, no_action(config))


def _fit(baseline: Baseline, config: Config, state: RunState, segment: Segment, prepared: Prepared) -> FitResult:
    del state, prepared
    params = baseline.fit(segment, config.fit.valid_users, candidates=config.candidates)
    no_steps, no_loss = jnp.int32(0), jnp.float32(0)
    return FitResult(
        params=params,
        steps=no_steps,
        best_step=no_steps,
        fitness=no_loss,
        first_fitness=no_loss,
        loss=no_loss,
        bad_step=jnp.int32(-1),
        by_user=jnp.zeros((0, 2)),
    )


def _rank(
    baseline: Baseline,
    state: RunState,
    segment: Segment,
    prepared: Prepared,
    fit_result: FitResult,
    options: RankingOptions,
) -> Ranked:
    learned = fit_result.params, prepared.item_bias
    valid, test = (baseline.rank(*learned, segment, part, **options) for part in (segment.valid, segment.test))
    return Ranked(fit_result.params, valid, test, jnp.int32(0), state.totals[segment.index])


def _serve(baseline: Baseline, state: RunState, segment: Segment, row: jax.Array, width: int) -> Served:
    del width
    assert baseline.serve is not None
    return baseline.serve(state.params, segment, row)


def _bookkeeping(baseline: Baseline, state: RunState, stream: Stream) -> Bookkeeping:
    del state
    users, items = stream.capacity.users, stream.capacity.items
    return Bookkeeping(
        exporter=baseline.exporter(users, items),
        sizes=lambda plan: np.zeros(users + items + 2, np.int32),
        budget_bytes=lambda segment, known: 0,
        side_bytes=lambda known: 0,
        serves_by=lambda plan, known, graph_bytes: baseline.serves_by(known, graph_bytes),
        training_bytes=lambda state, segment, params: 0,
        describe=lambda state: baseline.describe(state.params),
        width=lambda plan: 0,
        bits=lambda plan: np.zeros(users + items, np.int32),
        totals=lambda: np.zeros(stream.most_segments, np.int32),
    )
