"""One step per segment: sizes, resized table, fit, evaluation; for a host loop or a scan over stacked segments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax import tables
from scall_jax.allocators import ALLOCATORS, alive, sides
from scall_jax.config import Config
from scall_jax.evaluation import Metrics
from scall_jax.recommenders.fit import Fitted, make_fit, ranked
from scall_jax.recommenders.popularity import FLOORS, best_half_life, chosen_row, ranked_by
from scall_jax.sizes import shared_vector_sizes
from scall_jax.sizes.allocate import DEVICE_LIMIT
from scall_jax.streams import Segment, Stream
from scall_jax.tables.resize import init as init_params

METHODS = (*ALLOCATORS, *FLOORS)


class RunState(NamedTuple):
    """What passes from segment to segment, and all that a checkpoint must hold."""

    key: jax.Array  # typed PRNG key of the run
    params: Any  # of the table; packed: f32[P], P the largest budget of the stream
    sizes: jax.Array  # i32[N + 2], the last two of the shared vectors
    known: jax.Array  # i32[2], users and items that have been given sizes
    totals: jax.Array  # i32[T], parameters allowed at each segment


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
    valid: Metrics
    test: Metrics


class Prepared(NamedTuple):
    """A segment ready to be trained on."""

    params: Any
    sizes: jax.Array  # i32[N + 2]
    item_bias: jax.Array  # f32[V]
    popularity: jax.Array  # i32[], row of `Segment.popularity` in use, -1 if none


class Run(NamedTuple):
    """A run as pure functions; `step` is the composition of the phases between.

    `progress` callbacks apart, nothing here depends on the host.
    """

    init: Callable[[jax.Array, Stream], RunState]
    prepare: Callable[[RunState, Segment], Prepared]
    fit: Callable[[RunState, Segment, Prepared], Fitted]
    evaluate: Callable[[RunState, Segment, Prepared, Fitted], tuple[RunState, Record]]
    step: Callable[[RunState, Segment], tuple[RunState, Record]]


def make_run(config: Config, progress: Callable | None = None) -> Run:
    """Build the functions of a run.

    Args:
      config: of the method.
      progress: called on the host as progress(segment, step, loss, fitness) after each evaluation during a fit.

    Returns:
      Run. `step(state, segment) -> (state, record)` is jit-able and scans over `Stream.stack()`.

    Raises:
      ValueError: unknown method.
    """
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}: choose one of {', '.join(METHODS)}")
    floor = config.method in FLOORS
    prepare = _prepare_floor(config) if floor else _prepare(config)
    fit = _no_fit if floor else _fit(config, progress)
    evaluate = _evaluate(config, floor)

    def step(state, segment):
        prepared = prepare(state, segment)
        return evaluate(state, segment, prepared, fit(state, segment, prepared))

    return Run(_init(config, floor), prepare, fit, evaluate, step)


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


def _init(config, floor):
    def init(key: jax.Array, stream: Stream) -> RunState:
        sizes, known = jnp.zeros(stream.capacity.nodes + 2, jnp.int32), jnp.zeros(2, jnp.int32)
        if floor:
            return RunState(key, jnp.zeros(0), sizes, known, jnp.zeros(len(stream), jnp.int32))
        totals = budget_totals(config, stream)
        entities = [sum(stream.known(b.train)) for b in stream.bounds]
        held = max(min(p, n * config.sizes.maximum) for p, n in zip(totals, entities, strict=True))
        table = tables.TABLES[config.table](held, stream.capacity.users, stream.capacity.items, config.sizes.maximum)
        return RunState(key, table.zeros(), sizes, known, jnp.array(totals, jnp.int32))

    return init


def table_of(config: Config, state: RunState, segment: Segment) -> tables.Table:
    """The table whose parameters the state holds."""
    users, items = sides(segment)
    return tables.TABLES[config.table](jnp.shape(state.params)[0], users, items, config.sizes.maximum)


def _keys(state, segment):
    return jax.random.split(jax.random.fold_in(state.key, segment.index), 3)


def _prepare(config):
    allocator = ALLOCATORS[config.method](config)

    def prepare(state: RunState, segment: Segment) -> Prepared:
        size_key, table_key, _ = _keys(state, segment)
        total = state.totals[segment.index]
        shared = shared_vector_sizes(total, segment.users + segment.items, config.sizes.minimum)
        own = allocator(size_key, segment, total - shared.sum())
        sizes = jnp.concatenate([own, shared])
        params = _carry_over(config, state, segment, sizes, table_key)
        return Prepared(params, sizes, *_item_bias(config, segment))

    return prepare


def _carry_over(config, state, segment, sizes, key):
    table = table_of(config, state, segment)
    new = table.layout(sizes)

    def fresh():
        return init_params(table, key, new, config.carry.init_std)

    def warm():
        old = table.layout(state.sizes)
        users, items = sides(segment)
        known = jnp.concatenate([jnp.arange(users) < state.known[0], jnp.arange(items) < state.known[1]])
        weight = jnp.where(known, segment.total, 0).astype(jnp.float32)
        axes = tables.principal_axes(table, state.params, old, weight) if config.carry.rotate else None
        return tables.resize(
            table,
            key,
            state.params,
            old,
            new,
            known,
            shrink=config.carry.shrink,
            axes=axes,
            std=config.carry.init_std,
            grow_std=config.carry.grow_std,
        )

    return jax.lax.cond(state.known.sum() > 0, warm, fresh) if config.carry.warm else fresh()


def _item_bias(config, segment):
    if config.bias == "none":
        return jnp.zeros(segment.popularity.shape[1]), jnp.int32(-1)
    row = best_half_life(segment, config.fit.valid_users, candidates=config.candidates)
    return jnp.log1p(segment.popularity[row]), row


def _prepare_floor(config):
    def prepare(state: RunState, segment: Segment) -> Prepared:
        row = chosen_row(config.method, segment, config.fit.valid_users, candidates=config.candidates)
        return Prepared(state.params, state.sizes, segment.popularity[row], row)

    return prepare


def _fit(config, progress):
    def fit(state: RunState, segment: Segment, prepared: Prepared) -> Fitted:
        table = table_of(config, state, segment)
        run_fit = make_fit(table, config.fit, progress, config.candidates)
        _, _, key = _keys(state, segment)
        return run_fit(key, prepared.params, table.layout(prepared.sizes), segment, prepared.item_bias)

    return fit


def _no_fit(state, segment, prepared):
    del state, segment
    return Fitted(prepared.params, jnp.int32(0), jnp.int32(0), jnp.float32(0), jnp.float32(0), jnp.int32(-1))


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
            valid=valid,
            test=test,
        )
        known = jnp.stack([segment.users, segment.items])
        return state._replace(params=fitted.params, sizes=prepared.sizes, known=known), record

    return evaluate
