"""A run over segments as pure functions: the phases of a segment, their order, and the record that they leave."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.evaluation import Metrics, RankingOptions
from scall_jax.methods.phases import Callbacks, Method, MethodPhases, Prepared
from scall_jax.methods.planner import Outcome, SearchRecord
from scall_jax.methods.probe import no_search
from scall_jax.methods.registry import method_of
from scall_jax.methods.state import RunState
from scall_jax.ops.devices import MeshConfig
from scall_jax.recommenders.fit_result import FitResult
from scall_jax.streams import Segment, Stream, active_mask


class Record(NamedTuple):
    """The results of one segment, on the device. A is the length of an action."""

    segment: jax.Array  # i32[], number of the segment, from 0
    users: jax.Array  # i32[], users known at the segment's cut
    items: jax.Array  # i32[], items known at the segment's cut
    new_users: jax.Array  # i32[], users that the segment brought
    new_items: jax.Array  # i32[], items that the segment brought
    interactions: jax.Array  # i32[], rows of the segment, all parts
    held_out: jax.Array  # i32[2], rows of valid and of test
    unknown: jax.Array  # i32[2], of these, rows whose user or item is not known at the cut
    seen: jax.Array  # i32[2], of these, rows of pairs that are known at the cut already
    budget: jax.Array  # i32[], budget units of the storage that are allowed; of the packed tables: coordinates
    allocated: jax.Array  # i32[], budget units that the plan spends, shared vectors included
    without: jax.Array  # i32[], entities without parameters of their own
    largest: jax.Array  # i32[], largest size
    steps: jax.Array  # i32[], training steps
    best_step: jax.Array  # i32[], training step after which the kept parameters stood
    loss: jax.Array  # f32[], mean training loss over the last interval between evaluations
    bad_step: jax.Array  # i32[], first step with a non-finite loss, -1 if none
    popularity: jax.Array  # i32[], row of `Segment.popularity` in use, -1 if none
    action: jax.Array  # f32[A], the action that the sizes come from, zeros without one
    search: SearchRecord  # probes on this segment's data
    valid: Metrics
    test: Metrics


class Run(NamedTuple):
    """A run as pure functions: the phases of a segment, and `step`, which composes them.

    Apart from the callbacks that `make_run` takes, nothing here depends on the host.
    """

    init: Callable[[jax.Array, Stream], RunState]
    """(key, stream) -> state before the first segment."""
    choose: Callable[[RunState, Segment], RunState] | None
    """What the recommender chooses for itself; None where that is nothing."""
    search_before: Callable[[RunState, Segment], tuple[RunState, SearchRecord]] | None
    """A search before the segment's plan; None without one."""
    prepare: Callable[[RunState, Segment], Prepared]
    """Plans the budget and resizes the table."""
    fit: Callable[[RunState, Segment, Prepared], FitResult]
    """Trains the prepared parameters."""
    evaluate: Callable[[RunState, Segment, Prepared, FitResult], tuple[RunState, Record]]
    """Stores the trained parameters, and ranks valid and test by what is stored."""
    search_after: Callable[[RunState, Segment], tuple[RunState, SearchRecord]] | None
    """A search after the segment's evaluation; None without one."""
    step: Callable[[RunState, Segment], tuple[RunState, Record]]
    """All phases of a segment in their order."""
    method: MethodPhases
    """The method's own phases, which the functions above call, and its bookkeeping on the host."""
    mesh: MeshConfig
    """Devices that programs are compiled for."""


def make_run(
    config: Config,
    progress: Callable[..., object] | None = None,
    on_probes: Callable[..., object] | None = None,
    method: Method | None = None,
) -> Run:
    """Build the functions of a run.

    Args:
      config: of the run.
      progress: called on the host as progress(segment, step, loss, fitness) after each evaluation during a fit.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each round of probes.
      method: a method that `METHODS` does not list; `config.method` is then only its name.

    Returns:
      Run. `step(state, segment) -> (state, record)` may be jitted and mapped, and scans over `Stream.stack()`.

    Raises:
      ValueError: unknown method, or a table that the method cannot plan for.
    """
    method = method or method_of(config.method)
    config = method.configure(config)
    phases = method.phases(config, Callbacks(progress, on_probes))

    def call(name: str, *arguments: Any) -> Any:
        return getattr(run, name)(*arguments)

    def step(state: RunState, segment: Segment) -> tuple[RunState, Record]:
        chex.assert_rank([segment.index, segment.users, segment.frequency, state.totals], [0, 0, 1, 1])
        chex.assert_shape(state.known, (2,))
        nothing = no_search(config)
        state, record, found = in_order(run, call, state, segment)
        return state, record._replace(search=nothing if found is None else found)

    run = Run(
        init=phases.init,
        choose=phases.choose,
        search_before=phases.search_before,
        prepare=phases.prepare,
        fit=phases.fit,
        evaluate=functools.partial(_evaluate, config, phases),
        search_after=phases.search_after,
        step=step,
        method=phases,
        mesh=config.mesh,
    )
    return run


def in_order(
    run: Run, call: Callable[..., Any], state: RunState, segment: Segment
) -> tuple[RunState, Record, SearchRecord | None]:
    """Run the phases of a segment in their order; this is the one place where the order stands.

    Args:
      run: says which choices and searches there are.
      call: call(name of a field of `Run`, *arguments) runs one phase.
      state: before the segment.
      segment: the data.

    Returns:
      The state after the segment, its record, and the record of its search, None without one.
    """
    found = None
    if run.choose is not None:
        state = call("choose", state, segment)
    if run.search_before is not None:
        state, found = call("search_before", state, segment)
    prepared = call("prepare", state, segment)
    fit_result = call("fit", state, segment, prepared)
    state, record = call("evaluate", state, segment, prepared, fit_result)
    if run.search_after is not None:
        state, found = call("search_after", state, segment)
    return state, record, found


def _evaluate(
    config: Config,
    phases: MethodPhases,
    state: RunState,
    segment: Segment,
    prepared: Prepared,
    fit_result: FitResult,
) -> tuple[RunState, Record]:
    options = RankingOptions(
        users_before=segment.users_before, items_before=segment.items_before, candidates=config.candidates
    )
    ranked = phases.rank(state, segment, prepared, fit_result, options)
    exists = active_mask(segment)
    record = Record(
        segment=segment.index,
        users=segment.users,
        items=segment.items,
        new_users=segment.users - segment.users_before,
        new_items=segment.items - segment.items_before,
        interactions=segment.interactions,
        held_out=segment.held_out,
        unknown=segment.unknown,
        seen=segment.seen,
        budget=ranked.allowed,
        allocated=ranked.allocated,
        without=(exists & (prepared.sizes[:-2] == 0)).sum(),
        largest=prepared.sizes.max(),
        steps=fit_result.steps,
        best_step=fit_result.best_step,
        loss=fit_result.loss,
        bad_step=fit_result.bad_step,
        popularity=prepared.popularity,
        action=prepared.action,
        search=no_search(config),
        valid=ranked.valid,
        test=ranked.test,
    )
    known = jnp.stack([segment.users, segment.items])
    state = state._replace(params=ranked.stored, plan=prepared.plan, known=known)
    if fit_result.remembered is not None:
        state = state._replace(recommender=fit_result.remembered)
    if phases.update is not None:
        state = state._replace(planner=phases.update(state, segment, Outcome(fit_result, ranked.valid)))
    return state, record
