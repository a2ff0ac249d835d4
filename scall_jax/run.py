"""One step per segment: sizes, resized table, fit, evaluation; for a host loop or a scan over stacked segments."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax import tables
from scall_jax.actions import action_length
from scall_jax.allocators import alive
from scall_jax.chooser import Chooser
from scall_jax.config import Config
from scall_jax.evaluation import Metrics
from scall_jax.methods import Method, method_of
from scall_jax.recommenders.fit import Fitted, closed, make_fit, opened, ranked
from scall_jax.reference import Reference
from scall_jax.search import SearchRecord, no_search
from scall_jax.sizes.allocate import DEVICE_LIMIT
from scall_jax.state import Held, RunState, bias_bytes, carry_over, item_bias, segment_keys, storage_of
from scall_jax.streams import Segment, Stream


class Record(NamedTuple):
    """What one segment leaves behind, on device."""

    segment: jax.Array  # i32[]
    users: jax.Array  # i32[]
    items: jax.Array  # i32[]
    new_users: jax.Array  # i32[]
    new_items: jax.Array  # i32[]
    interactions: jax.Array  # i32[]
    dropped: jax.Array  # i32[2]
    budget: jax.Array  # i32[], units of the storage allowed; packed: parameters
    allocated: jax.Array  # i32[], units given out, shared vectors included
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

    params: Any  # of the storage, in training, opened
    plan: Any  # of the storage
    sizes: jax.Array  # i32[N + 2], coordinates of the nodes' own vectors and of the two shared ones
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


def make_run(
    config: Config,
    progress: Callable | None = None,
    on_probes: Callable | None = None,
    method: Method | Reference | None = None,
) -> Run:
    """Build the functions of a run.

    Args:
      config: of the method.
      progress: called on the host as progress(segment, step, loss, fitness) after each evaluation during a fit.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each round of probes.
      method: one that `methods.METHODS` does not have; `config.method` is then no more than its name.

    Returns:
      Run. `step(state, segment) -> (state, record)` is jit-able and scans over `Stream.stack()`.

    Raises:
      ValueError: unknown method.
    """
    method = method or method_of(config.method)
    if isinstance(method, Reference):
        return _composed(
            config,
            init=_init_reference(method),
            prepare=_prepare_reference(config, method),
            fit=_learn(config, method),
            evaluate=_evaluate(config, _rank_reference(method)),
        )
    if method.storage is not None:
        config = dataclasses.replace(config, table=method.storage)
    elif config.table not in tables.SIZED:
        raise ValueError(f"table={config.table!r} holds no sizes to choose: choose one of {', '.join(tables.SIZED)}")
    chooser = method.chooser(config, on_probes)
    return _composed(
        config,
        init=_init(config, chooser),
        prepare=_prepare(config, chooser),
        fit=_fit(config, progress),
        evaluate=_evaluate(config, _rank(config), chooser.learn),
        search=chooser.search,
        when=chooser.when,
        first=chooser.first,
    )


def _composed(config, init, prepare, fit, evaluate, search=None, when=None, first=False) -> Run:
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
        if first:
            return search(state, segment)
        # nothing to size by it: the first segment is uniform, and after the last one there is none
        last = state.totals.shape[0] - 1
        useful = segment.index > 0 if when == "before" else segment.index < last
        return jax.lax.cond(useful, lambda: search(state, segment), lambda: (state, no_search(config)))

    return Run(init, prepare, fit, evaluate, run_search if search else None, when, step)


def budget_totals(config: Config, stream: Stream) -> list[int]:
    """Units of the storage allowed at each segment, by the entities known at its cut.

    Raises:
      ValueError: more than 2^31 - 1, or less than one.
    """
    totals = []
    for t, bounds in enumerate(stream.bounds):
        entities = stream.known(bounds.train)
        nbytes = 4 * config.budget.parameters(t, sum(entities))
        replayed = stream.replay_bytes(t) if config.charge == "replay" else 0
        metadata = config.charge != "parameters"
        beside = replayed + (bias_bytes(config, entities[1]) if metadata else 0)
        total = tables.kind_of(config).units(nbytes - beside, entities, config.sizes.maximum, metadata)
        if config.method == "full":
            total = sum(entities) * config.sizes.maximum
        if not 1 <= total <= DEVICE_LIMIT:
            raise ValueError(
                f"budget ({config.budget}) of {total} units at segment {t}: must lie between 1 and {DEVICE_LIMIT}"
                + (f"; replay takes {replayed} of {nbytes} bytes: lower cut.replay" if replayed else "")
                + ("; metadata and bias are paid for: raise it, or charge=parameters, bias=none" if metadata else "")
            )
        totals.append(total)
    return totals


def _init(config, chooser: Chooser):
    def init(key: jax.Array, stream: Stream) -> RunState:
        known = jnp.zeros(2, jnp.int32)
        totals = budget_totals(config, stream)
        kind = tables.kind_of(config)
        held = kind.held(totals, [stream.known(b.train) for b in stream.bounds], config.sizes.maximum)
        storage = kind.build(held, stream.capacity.users, stream.capacity.items, config.sizes.maximum)
        remembered = chooser.init(key, storage)
        totals = jnp.array(totals, jnp.int32)
        return RunState(key, storage.empty(), storage.plan(), known, totals, remembered, Held(held))

    return init


def _init_reference(reference: Reference):
    def init(key: jax.Array, stream: Stream) -> RunState:
        stored = reference.empty(stream.capacity.users, stream.capacity.items)
        return RunState(key, stored, (), jnp.zeros(2, jnp.int32), jnp.zeros(len(stream), jnp.int32))

    return init


def _prepare(config, chooser):
    def prepare(state: RunState, segment: Segment) -> Prepared:
        plan_key, storage_key, _ = segment_keys(state, segment)
        plan, action = chooser.choose(state, segment, plan_key)
        storage = storage_of(config, state, segment)
        params = opened(storage, carry_over(config, state, segment, plan, storage_key))
        sizes = storage.sizes(plan)
        return Prepared(params, plan, sizes, *item_bias(config, segment), action)

    return prepare


def _prepare_reference(config, reference: Reference):
    def prepare(state: RunState, segment: Segment) -> Prepared:
        scores, row = reference.scores(segment, config.fit.valid_users, candidates=config.candidates)
        none = jnp.zeros(segment.frequency.shape[0] + 2, jnp.int32), jnp.zeros(action_length(config.search))
        return Prepared(state.params, state.plan, none[0], scores, row, none[1])

    return prepare


def _fit(config, progress):
    def fit(state: RunState, segment: Segment, prepared: Prepared) -> Fitted:
        storage = storage_of(config, state, segment)
        run_fit = make_fit(storage, config.fit, progress, config.candidates)
        _, _, key = segment_keys(state, segment)
        return run_fit(key, prepared.params, storage.layout(prepared.plan), segment, prepared.item_bias)

    return fit


def _learn(config, reference: Reference):
    def fit(state: RunState, segment: Segment, prepared: Prepared) -> Fitted:
        del state, prepared
        params = reference.learn(segment, config.fit.valid_users, candidates=config.candidates)
        none, zero = jnp.float32(0), jnp.int32(0)
        return Fitted(params, zero, zero, none, none, none, jnp.int32(-1), jnp.zeros((0, 2)))

    return fit


def _rank(config):
    def rank(state, segment, prepared, fitted, **options):
        """What is stored, metrics on valid and test by it, and the units that the plan spends."""
        storage = storage_of(config, state, segment)
        layout = storage.layout(prepared.plan)
        stored = storage.store(closed(storage, fitted.params), layout)
        params = opened(storage, storage.load(stored, layout))
        parts = segment.valid, segment.test
        found = ranked(storage, config.fit, params, layout, segment, parts, prepared.item_bias, **options)
        return stored, *found, storage.allocated(prepared.plan)

    return rank


def _rank_reference(reference: Reference):
    def rank(state, segment, prepared, fitted, **options):
        del state
        learned = fitted.params, prepared.item_bias
        found = (reference.rank(*learned, segment, part, **options) for part in (segment.valid, segment.test))
        return fitted.params, *found, jnp.int32(0)

    return rank


def _evaluate(config, rank, learn=None):
    def evaluate(state, segment, prepared, fitted):
        before = {"users_before": segment.users_before, "items_before": segment.items_before}
        options = before | {"candidates": config.candidates}
        stored, valid, test, allocated = rank(state, segment, prepared, fitted, **options)
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
            allocated=allocated,
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
        state = state._replace(params=stored, plan=prepared.plan, known=known)
        if learn is not None:
            state = learn(state, segment, prepared, fitted, valid)
        return state, record

    return evaluate
