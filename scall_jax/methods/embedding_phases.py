"""Phases of methods with embeddings: a planner spends the budget, the table is carried over, trained and ranked."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import tables
from scall_jax.config import Config
from scall_jax.evaluation import RankingOptions
from scall_jax.methods.context import bias_bytes, segment_context, served_bias
from scall_jax.methods.phases import (
    Bookkeeping,
    Callbacks,
    Method,
    MethodPhases,
    Prepared,
    Ranked,
)
from scall_jax.methods.planner import Planned, PlannerFactory, SizePlanner
from scall_jax.methods.recommender import recommender_of, settled
from scall_jax.methods.state import RunState, StorageCapacity
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.baseline import Exporter
from scall_jax.recommenders.buffers import as_served, to_buffer, to_stored, trained_as_served
from scall_jax.recommenders.fit_result import FitResult
from scall_jax.recommenders.recommender import OnEvaluation
from scall_jax.recommenders.served import Served
from scall_jax.sizes.allocate import DEVICE_LIMIT
from scall_jax.streams import Segment, Stream
from scall_jax.streams.numpy_ops import pad
from scall_jax.tables.table import nbytes


def embedding_method(
    make_planner: PlannerFactory,
    storage: str | None = None,
    unlimited: bool = False,
) -> Method:
    """Build the method that a planner and a storage make.

    Args:
      make_planner: make_planner(config, on_probes) -> SizePlanner.
      storage: name in `tables.STORAGES` that the planner plans for; None for `Config.table`, a sized one.
      unlimited: the budget is the largest size for every entity, whatever the config says.

    Returns:
      Method. With a storage of its own, shapes follow from the budget, so that a sweep does not map over budgets.

    >>> from scall_jax.methods.planner import allocator_planner
    >>> from scall_jax.methods.allocators import uniform
    >>> embedding_method(allocator_planner(uniform)).budget_is_data
    True
    """
    return Method(functools.partial(_embedding_phases, make_planner, storage, unlimited), storage is None)


def budget_totals(config: Config, stream: Stream, unlimited: bool = False) -> list[int]:
    """Budget units of the storage that each segment may spend, by the entities known at its cut.

    Args:
      config: has the budget in bytes, the storage, and what the budget pays for (`charge`).
      stream: the segments.
      unlimited: the largest size for every entity, instead of the config's budget.

    Returns:
      One number per segment.

    Raises:
      ValueError: more than some 2^31 budget units, or less than one; the message has the bytes of what else is paid
        for.

    >>> from scall_jax import Budget, streams
    >>> rows = streams.synthetic(jax.random.key(0), users=6, items=4, interactions=60)
    >>> stream = streams.cut(rows, segments=2)
    >>> entities = [sum(stream.known(bounds.train)) for bounds in stream.bounds]
    >>> budget_totals(Config(budget=Budget.mean_size(3)), stream) == [3 * n for n in entities]
    True
    """
    totals = []
    for t, bounds in enumerate(stream.bounds):
        entities = stream.known(bounds.train)
        nbytes = 4 * config.budget.parameters(t, sum(entities))
        beside, metadata = _beside_table(config, stream, t), config.charge != "table"
        left = nbytes - sum(part for _, part in beside)
        factory = tables.storage_factory(config)
        total = factory.budget_units(left, entities, config.sizes.maximum, metadata)
        if unlimited:
            total = sum(entities) * config.sizes.maximum
        most = _most_units(stream)
        if not 1 <= total <= most:
            raise ValueError(
                f"budget ({config.budget}) at segment {t}: {total} budget units must lie between 1 and {most}"
                + "".join(f"; {name} takes {part} of {nbytes} bytes: {_WAYS_OUT[name]}" for name, part in beside)
                + ("; sizes are paid for too: raise it, or charge=table" if metadata else "")
            )
        totals.append(total)
    return totals


def _most_units(stream: Stream) -> int:
    """Budget units that a table may have: places within it, and of a column of all nodes behind it, are 32 bits."""
    return DEVICE_LIMIT - stream.capacity.nodes - 2


_WAYS_OUT = {
    "replay": "lower cut.replay",
    "bias": "bias=none",
    "graph or final vectors": "charge=stored, or fit.layers=0, which needs neither",
}


def _beside_table(config: Config, stream: Stream, t: int) -> list[tuple[str, int]]:
    """Names and bytes of what the budget pays for beside the table and its sizes."""
    known = stream.known(stream.bounds[t].train)
    found = {
        "replay": stream.replay_bytes(t) if config.charge == "replay" else 0,
        "bias": bias_bytes(config, known[1]) if config.charge != "table" else 0,
    }
    if config.charge == "serving":
        # Sizes are not known yet, so that vectors may be as long as the largest size.
        ways = recommender_of(config).serves_by(known, stream.graph_bytes(t), config.sizes.maximum)
        found["graph or final vectors"] = min(ways.values(), default=0)
    return [(name, nbytes) for name, nbytes in found.items() if nbytes]


def _embedding_phases(
    make_planner: PlannerFactory, storage: str | None, unlimited: bool, config: Config, callbacks: Callbacks
) -> MethodPhases:
    if storage is not None:
        config = dataclasses.replace(config, table=storage)
    elif config.table not in tables.SIZED:
        raise ValueError(f"table={config.table!r} has no sizes to plan: choose one of {', '.join(tables.SIZED)}")
    config = settled(config, storage)
    planner, recommender = make_planner(config, callbacks.on_probes), recommender_of(config)

    def optional(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        return None if function is None else with_context(config, function)

    return MethodPhases(
        init=functools.partial(_init, config, planner, unlimited),
        prepare=functools.partial(_prepare, config, planner),
        fit=functools.partial(_fit, config, callbacks.progress),
        rank=functools.partial(_rank, config),
        bookkeeping=functools.partial(_bookkeeping, config, planner, unlimited),
        choose=None if recommender.choose is None else functools.partial(_choose, config),
        serve=None if recommender.serve is None else functools.partial(_serve, config),
        fold_in=recommender.fold_in,
        search_before=optional(planner.search_before),
        search_after=optional(planner.search_after),
        update=optional(planner.update),
    )


def with_context(config: Config, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (context, ...) as one of (state, segment, ...)."""
    return lambda state, segment, *rest: function(segment_context(config, state, segment), *rest)


def _init(config: Config, planner: SizePlanner, unlimited: bool, key: jax.Array, stream: Stream) -> RunState:
    known = jnp.zeros(2, jnp.int32)
    totals = budget_totals(config, stream, unlimited)
    factory = tables.storage_factory(config)
    entities = [stream.known(b.train) for b in stream.bounds]
    spent = totals
    if stream.reserved is not None:
        # What a stream that grows may spend before its capacities do not suffice.
        entities.append((stream.capacity.users, stream.capacity.items))
        spent = [*totals, _units_of(config, stream, len(stream) - 1, entities[-1])]
    capacity = factory.capacity(spent, entities, config.sizes.maximum)
    storage = factory.build(capacity, stream.capacity.users, stream.capacity.items, config.sizes.maximum)
    planner_state = planner.init(key, storage)
    static = StorageCapacity(capacity, _mean_coordinates(config, stream, totals[0]))
    totals = jnp.asarray(_padded(totals, stream))
    remembered = recommender_of(config).init()
    return RunState(key, storage.empty(), storage.plan(), known, totals, planner_state, remembered, static)


def _mean_coordinates(config: Config, stream: Stream, units: int) -> float:
    """`StorageCapacity.mean_coordinates`, by the units of the first segment."""
    entities, budget = sum(stream.known(stream.bounds[0].train)), config.budget
    # A schedule may name more bytes for later segments, whose fits are as wide.
    first, *later = [budget.parameters(t, entities) for t in range(max(len(budget.steps), 1))]
    coordinates = tables.storage_factory(config).coordinates_of_unit * units * max([first, *later]) / max(first, 1)
    return min(coordinates / entities, config.sizes.maximum)


def _padded(totals: list[int], stream: Stream) -> np.ndarray:
    """i32[T], budget units by segment, as far as they are known; the stream has room for T segments."""
    return pad(np.array(totals, np.int32), stream.most_segments)


def _units_of(config: Config, stream: Stream, segment: int, entities: tuple[int, int]) -> int:
    """Budget units that so many users and items may have at a segment, if nothing beside the table is paid for."""
    nbytes = 4 * config.budget.parameters(segment, sum(entities))
    units = tables.storage_factory(config).budget_units(nbytes, entities, config.sizes.maximum, False)
    return min(max(units, 1), _most_units(stream))


def _choose(config: Config, state: RunState, segment: Segment) -> RunState:
    choose = recommender_of(config).choose
    assert choose is not None
    key = derive(derive(state.key, Purpose.SEGMENT, segment.index), Purpose.CHOICE)
    mean = state.capacity.mean_coordinates
    return state._replace(recommender=choose(key, state.recommender, segment, mean))


def _prepare(config: Config, planner: SizePlanner, state: RunState, segment: Segment) -> Prepared:
    context = segment_context(config, state, segment)
    keys, storage = context.keys(), context.storage
    plan, action, start = Planned(*planner.plan(context, keys.plan))
    params = to_buffer(storage, context.warm_params(plan, keys.table), config.mesh) if start is None else start
    sizes = storage.sizes(plan)
    return Prepared(params, plan, sizes, *context.item_bias(), action)


def _fit(
    config: Config, progress: OnEvaluation | None, state: RunState, segment: Segment, prepared: Prepared
) -> FitResult:
    context = segment_context(config, state, segment)
    storage = context.storage
    run_fit = context.recommender().make_fit(storage, progress)
    layout = storage.layout(prepared.plan)
    return run_fit(context.keys().fit, prepared.params, layout, segment, prepared.item_bias, state.recommender)


def _rank(
    config: Config,
    state: RunState,
    segment: Segment,
    prepared: Prepared,
    fit_result: FitResult,
    options: RankingOptions,
) -> Ranked:
    context = segment_context(config, state, segment)
    storage = context.storage
    layout = storage.layout(prepared.plan)
    stored = to_stored(storage, fit_result.params, layout, config.mesh)
    served, params = trained_as_served(storage, fit_result.params, stored, layout, config.mesh)
    parts = segment.valid, segment.test
    recommender = context.recommender()
    remembered = state.recommender if fit_result.remembered is None else fit_result.remembered
    bias = recommender.ranking_bias(remembered, prepared.item_bias)
    valid, test = recommender.evaluate(served, params, layout, segment, parts, bias, **options)
    return Ranked(stored, valid, test, storage.allocated(prepared.plan), context.affords(prepared.plan))


def _serve(config: Config, state: RunState, segment: Segment, row: jax.Array, width: int) -> Served:
    context = segment_context(config, state, segment)
    storage, recommender = context.storage, context.recommender()
    layout = storage.layout(state.plan)
    served, params = as_served(storage, state.params, layout)
    bias = served_bias(config, recommender, state, segment, row)
    assert recommender.serve is not None
    return recommender.serve(served, params, layout, segment, bias, state.recommender, width)


def _bookkeeping(config: Config, planner: SizePlanner, unlimited: bool, state: RunState, stream: Stream) -> Bookkeeping:
    users, items = stream.capacity.users, stream.capacity.items
    factory, recommender = tables.storage_factory(config), recommender_of(config)
    storage = factory.build(state.capacity.budget_units, users, items, config.sizes.maximum)

    def budget_bytes(segment: int, known: tuple[int, int]) -> int:
        if unlimited:
            return 4 * sum(known) * config.sizes.maximum
        return 4 * config.budget.parameters(segment, sum(known))

    def training_bytes(state: RunState, segment: Segment, params: Any) -> int:
        held = [nbytes(recommender.held_by_training(storage, params))]
        if recommender.held_by_choice is not None and recommender.choose is not None:
            by_choice = recommender.held_by_choice(segment, state.capacity.mean_coordinates)
            held.append(nbytes(state.params) + nbytes(by_choice))
        if planner.search_holds is not None:
            found = jax.eval_shape(with_context(config, planner.search_holds), state, segment)
            held.append(nbytes(state.params) + nbytes(found))
        return max(held)

    def sizes(plan: Any) -> np.ndarray:
        return np.asarray(storage.sizes(plan))

    def width(plan: Any) -> int:
        # The layout of a table says no more than whole column blocks.
        return int(sizes(plan).max() if storage.table is not None else storage.used(storage.layout(plan)))

    return Bookkeeping(
        exporter=Exporter(storage.export, storage.restore),
        sizes=sizes,
        budget_bytes=budget_bytes,
        side_bytes=lambda known: bias_bytes(config, known[1]),
        serves_by=lambda plan, known, graph_bytes: recommender.serves_by(known, graph_bytes, width(plan)),
        training_bytes=training_bytes,
        describe=lambda state: recommender.describe(state.recommender),
        width=width,
        bits=lambda plan: np.broadcast_to(np.asarray(storage.bits(plan), np.int32), users + items),
        totals=lambda: _padded(budget_totals(config, stream, unlimited), stream),
    )
