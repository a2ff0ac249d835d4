"""One step per segment: sizes, resized table, fit, evaluation; for a host loop or a scan over stacked segments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax import tables
from scall_jax.actions import action_length
from scall_jax.allocators import ALLOCATORS, alive
from scall_jax.config import Config
from scall_jax.evaluation import Metrics
from scall_jax.policies import POLICIES
from scall_jax.recommenders.fit import Fitted, make_fit, ranked
from scall_jax.recommenders.popularity import FLOORS, chosen_row, ranked_by
from scall_jax.search import SearchRecord, make_search, no_search
from scall_jax.sizes.allocate import DEVICE_LIMIT
from scall_jax.state import RunState, budget_of, carry_over, item_bias, segment_keys, table_of
from scall_jax.streams import Segment, Stream

SEARCHED = {"scall": "gp"} | {f"scall-{name}": name for name in POLICIES}
"""Methods that search sizes, and their policies."""

METHODS = (*ALLOCATORS, *SEARCHED, *FLOORS)


class Record(NamedTuple):
    """What one segment leaves behind, on device."""

    segment: jax.Array  # i32[]
    users: jax.Array  # i32[]
    items: jax.Array  # i32[]
    new_users: jax.Array  # i32[]
    new_items: jax.Array  # i32[]
    interactions: jax.Array  # i32[]
    dropped: jax.Array  # i32[2]
    budget: jax.Array  # i32[], parameters allowed
    allocated: jax.Array  # i32[], parameters given out, shared vectors included
    without: jax.Array  # i32[], entities without parameters of their own
    largest: jax.Array  # i32[], largest size
    steps: jax.Array  # i32[], training steps
    best_step: jax.Array  # i32[], step of the kept parameters
    loss: jax.Array  # f32[], over the last interval
    bad_step: jax.Array  # i32[], first step with a non-finite loss, -1 if none
    popularity: jax.Array  # i32[], row of `Segment.popularity` in use, -1 if none
    action: jax.Array  # f32[A] that sized the segment, 0 without one
    search: SearchRecord  # probes on this segment's data
    valid: Metrics
    test: Metrics


class Prepared(NamedTuple):
    """A segment ready to be trained on."""

    params: Any
    sizes: jax.Array  # i32[N + 2]
    item_bias: jax.Array  # f32[V]
    popularity: jax.Array  # i32[], row of `Segment.popularity` in use, -1 if none
    action: jax.Array  # f32[A] that the sizes come from, 0 without one


class Run(NamedTuple):
    """A run as pure functions; `step` is the composition of the phases between.

    `progress` callbacks apart, nothing here depends on the host.
    """

    init: Callable[[jax.Array, Stream], RunState]
    prepare: Callable[[RunState, Segment], Prepared]
    fit: Callable[[RunState, Segment, Prepared], Fitted]
    evaluate: Callable[[RunState, Segment, Prepared, Fitted], tuple[RunState, Record]]
    search: Callable[[RunState, Segment], tuple[RunState, SearchRecord]] | None
    search_when: str | None  # `before` the segment is prepared or `after` it is evaluated
    step: Callable[[RunState, Segment], tuple[RunState, Record]]


def make_run(config: Config, progress: Callable | None = None, on_probes: Callable | None = None) -> Run:
    """Build the functions of a run.

    Args:
      config: of the method.
      progress: called on the host as progress(segment, step, loss, fitness) after each evaluation during a fit.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each round of probes.

    Returns:
      Run. `step(state, segment) -> (state, record)` is jit-able and scans over `Stream.stack()`.

    Raises:
      ValueError: unknown method.
    """
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}: choose one of {', '.join(METHODS)}")
    floor, policy = config.method in FLOORS, SEARCHED.get(config.method)
    search = make_search(config, policy, on_probes) if policy else None
    prepare = _prepare_floor(config) if floor else _prepare(config, search)
    fit = _no_fit if floor else _fit(config, progress)
    evaluate = _evaluate(config, floor)
    when = None if search is None else "before" if config.search.on == "current" else "after"

    def step(state, segment):
        found = no_search(config)
        if when == "before":
            state, found = run_search(state, segment)
        prepared = prepare(state, segment)
        state, record = evaluate(state, segment, prepared, fit(state, segment, prepared))
        if when == "after":
            state, found = run_search(state, segment)
        return state, record._replace(search=found)

    def run_search(state, segment):
        # nothing to size by it: the first segment is uniform, and after the last one there is none
        last = state.totals.shape[0] - 1
        useful = segment.index > 0 if when == "before" else segment.index < last
        return jax.lax.cond(useful, lambda: search.run(state, segment), lambda: (state, no_search(config)))

    return Run(_init(config, floor, search), prepare, fit, evaluate, run_search if search else None, when, step)


def budget_totals(config: Config, stream: Stream) -> list[int]:
    """Parameters allowed at each segment, by the entities known at its cut.

    Raises:
      ValueError: more than 2^31 - 1, or less than one parameter.
    """
    totals = []
    for t, bounds in enumerate(stream.bounds):
        entities = sum(stream.known(bounds.train))
        total = entities * config.sizes.maximum if config.method == "full" else config.budget.parameters(t, entities)
        if not 1 <= total <= DEVICE_LIMIT:
            raise ValueError(
                f"budget ({config.budget}) of {total} parameters at segment {t}: must lie between 1 and {DEVICE_LIMIT}"
            )
        totals.append(total)
    return totals


def _init(config, floor, search):
    def init(key: jax.Array, stream: Stream) -> RunState:
        sizes, known = jnp.zeros(stream.capacity.nodes + 2, jnp.int32), jnp.zeros(2, jnp.int32)
        if floor:
            return RunState(key, jnp.zeros(0), sizes, known, jnp.zeros(len(stream), jnp.int32))
        totals = budget_totals(config, stream)
        entities = [sum(stream.known(b.train)) for b in stream.bounds]
        held = max(min(p, n * config.sizes.maximum) for p, n in zip(totals, entities, strict=True))
        table = tables.TABLES[config.table](held, stream.capacity.users, stream.capacity.items, config.sizes.maximum)
        searched = search.init(key, table.width) if search else ()
        return RunState(key, table.zeros(), sizes, known, jnp.array(totals, jnp.int32), searched)

    return init


def _prepare(config, search):
    if search is None:
        allocator = ALLOCATORS[config.method](config)

    def choose(state, segment, key, total):
        if search is None:
            return allocator(key, segment, total), jnp.zeros(action_length(config.search))
        return search.choose(state, segment, key, total)

    def prepare(state: RunState, segment: Segment) -> Prepared:
        size_key, table_key, _ = segment_keys(state, segment)
        total, shared = budget_of(config, state, segment)
        own, action = choose(state, segment, size_key, total)
        sizes = jnp.concatenate([own, shared])
        params = carry_over(config, state, segment, sizes, table_key)
        return Prepared(params, sizes, *item_bias(config, segment), action)

    return prepare


def _prepare_floor(config):
    def prepare(state: RunState, segment: Segment) -> Prepared:
        row = chosen_row(config.method, segment, config.fit.valid_users, candidates=config.candidates)
        return Prepared(
            state.params, state.sizes, segment.popularity[row], row, jnp.zeros(action_length(config.search))
        )

    return prepare


def _fit(config, progress):
    def fit(state: RunState, segment: Segment, prepared: Prepared) -> Fitted:
        table = table_of(config, state, segment)
        run_fit = make_fit(table, config.fit, progress, config.candidates)
        _, _, key = segment_keys(state, segment)
        return run_fit(key, prepared.params, table.layout(prepared.sizes), segment, prepared.item_bias)

    return fit


def _no_fit(state, segment, prepared):
    del state, segment
    none, zero = jnp.float32(0), jnp.int32(0)
    return Fitted(prepared.params, zero, zero, none, none, none, jnp.int32(-1))


def _evaluate(config, floor):
    def metrics(state, segment, prepared, fitted, relevant):
        options = {"users_before": segment.users_before, "candidates": config.candidates}
        if floor:
            return ranked_by(prepared.item_bias, segment, relevant, **options)
        table = table_of(config, state, segment)
        layout = table.layout(prepared.sizes)
        return ranked(table, config.fit, fitted.params, layout, segment, relevant, prepared.item_bias, **options)

    def evaluate(state, segment, prepared, fitted):
        valid, test = (metrics(state, segment, prepared, fitted, part) for part in (segment.valid, segment.test))
        exists = alive(segment)
        record = Record(
            segment=segment.index,
            users=segment.users,
            items=segment.items,
            new_users=segment.users - segment.users_before,
            new_items=segment.items - segment.items_before,
            interactions=segment.interactions,
            dropped=segment.dropped,
            budget=state.totals[segment.index],
            allocated=prepared.sizes.sum(),
            without=(exists & (prepared.sizes[:-2] == 0)).sum(),
            largest=prepared.sizes.max(),
            steps=fitted.steps,
            best_step=fitted.best_step,
            loss=fitted.loss,
            bad_step=fitted.bad_step,
            popularity=prepared.popularity,
            action=prepared.action,
            search=no_search(config),
            valid=valid,
            test=test,
        )
        known = jnp.stack([segment.users, segment.items])
        state = state._replace(params=fitted.params, sizes=prepared.sizes, known=known)
        if state.search:
            state = state._replace(search=state.search._replace(reference=fitted.first_fitness))
        return state, record

    return evaluate
