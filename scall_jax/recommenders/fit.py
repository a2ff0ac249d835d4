"""The compiled training loop: Adam on the parameters, early stopping on valid, the best parameters as its result."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import optax

from scall_jax.ops.devices import IN_PARTS, ONE, WHOLE, MeshConfig, on_devices
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.buffers import as_would_be_served, from_buffer
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.fit_result import Fit, FitResult, Step
from scall_jax.recommenders.graph import own_rows, with_chunks
from scall_jax.recommenders.judge import first_users
from scall_jax.recommenders.judge_on_devices import evaluate_on_devices
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.recommenders.make_step import make_step, optimiser
from scall_jax.recommenders.parts import segment_parts, segment_specs
from scall_jax.recommenders.train_step import OptState, TrainState, empty_opt_state
from scall_jax.streams import RaggedItems, Segment, sides
from scall_jax.tables.packed_parts import packed_part
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params


class FitState(NamedTuple):
    """Carried through the training loop."""

    params: Params  # a buffer for a storage with a table
    opt_state: OptState | optax.OptState
    step: jax.Array  # i32[], steps made
    best_params: Params
    best_fitness: jax.Array  # f32[], on valid
    first_fitness: jax.Array  # f32[], at the first evaluation
    best_step: jax.Array  # i32[]
    stale: jax.Array  # i32[], evaluations since the best
    loss: jax.Array  # f32[], mean since the last evaluation
    lowest_loss: jax.Array  # f32[], lowest such mean
    falling: jax.Array  # bool[], the loss fell in the last interval
    bad_step: jax.Array  # i32[], first step with a non-finite loss, -1 if none
    by_user: jax.Array  # f32[Q, 2], Recall@20 and NDCG@20 of each user that early stopping looks at, at the last one


def make_fit(
    storage: Storage,
    config: FitConfig,
    progress: Callable | None = None,
    candidates: str = "all",
    step: Step | None = None,
    init_opt_state: Callable[[Params], Any] | None = None,
    ready: Callable[[Params, StorageLayout, Segment], Params] | None = None,
    mesh: MeshConfig = ONE,
) -> Fit:
    """Build the training of a segment, to be compiled.

    Args:
      storage: of the parameters.
      config: of the training.
      progress: progress(segment, step, loss, fitness) is called on the host after each evaluation, not always in order.
      candidates: as in `evaluation.RankingOptions`.
      step: another step than that of `make_step`; only for storages without a table.
      init_opt_state: the first state of its optimiser; given with `step`.
      ready: (parameters, layout, segment) -> parameters of which all that ranks follows from what the steps changed;
        called before each evaluation. None: the steps leave nothing to do.
      mesh: devices that steps and evaluations are spread over; only for packed tables, and steps of `make_step`.

    Returns:
      A function as `Fit` describes it.

    Raises:
      ValueError: several devices, and what runs on one; training within rounding that a storage does not have.
    """
    if config.rounding != "after" and storage.rounding is None:
        raise ValueError(
            f"fit rounding={config.rounding!r}: this storage does not round what it is trained in: choose "
            "table=packed_int4 or the like, or leave it out"
        )
    if mesh.devices > 1 and (storage.table is None or step is not None or config.rounding != "after"):
        raise ValueError(f"mesh.devices={mesh.devices}: such a step of training runs on one device")
    take_step = make_step(storage, config) if step is None else step
    trainer = _Trainer(LightGcn(storage, config.layers), config, take_step, progress, candidates, ready, mesh)
    if init_opt_state is None:
        init_opt_state = empty_opt_state if storage.table is not None else optimiser(config).init

    def fit(key: jax.Array, params: Params, layout, segment: Segment, item_bias: jax.Array, remembered=()) -> FitResult:
        del remembered
        chex.assert_shape(item_bias, (sides(segment)[1],))
        sampled = first_users(segment.valid, config.valid_users)
        if mesh.devices == 1:
            segment = segment._replace(graph=with_chunks(segment.graph))
        segment = segment_parts(mesh, segment)
        data = _FitData(key, layout, segment, item_bias, sampled)
        start = _initial(params, init_opt_state, sampled.users.shape[0])
        end = jax.lax.while_loop(
            functools.partial(_goes_on, config), functools.partial(_train_interval, trainer, data), start
        )
        return FitResult(
            params=end.best_params,
            steps=end.step,
            best_step=end.best_step,
            fitness=end.best_fitness,
            first_fitness=end.first_fitness,
            loss=end.loss,
            bad_step=end.bad_step,
            by_user=end.by_user,
        )

    return fit


class _Trainer(NamedTuple):
    """The static part of a fit."""

    model: LightGcn
    config: FitConfig
    step: Step
    progress: Callable | None
    candidates: str
    ready: Callable | None
    mesh: MeshConfig


class _FitData(NamedTuple):
    """What a fit reads and does not change."""

    key: jax.Array
    layout: StorageLayout
    segment: Segment
    item_bias: jax.Array  # f32[V]
    sampled: RaggedItems  # The items of the users that early stopping looks at.


class _IntervalCarry(NamedTuple):
    """Carried through the steps between two evaluations."""

    state: TrainState
    total: jax.Array  # f32[], sum of the losses
    bad_step: jax.Array  # i32[], first step with a non-finite loss, -1 if none
    start: jax.Array  # i32[], steps made before
    scratch: jax.Array | tuple[()]


class _Evaluated(NamedTuple):
    """What an evaluation says of an interval."""

    loss: jax.Array  # f32[], mean of the interval
    fitness: jax.Array  # f32[]
    bad_step: jax.Array  # i32[]
    by_user: jax.Array  # f32[Q, 2]


def _goes_on(config: FitConfig, state: FitState) -> jax.Array:
    patience = jnp.where(state.falling, 2 * config.patience, config.patience)
    return (state.step < config.steps) & (state.stale < patience) & (state.bad_step < 0)


def _train_interval(trainer: _Trainer, data: _FitData, state: FitState) -> FitState:
    """The steps up to the next evaluation, and the evaluation."""
    config, storage, take_step, mesh = trainer.config, trainer.model.storage, trainer.step, trainer.mesh
    within = storage.rounding if config.rounding == "within" else None
    if within is not None:
        # Scales hold for an interval: to find them costs as much as some steps.
        rounding = within(from_buffer(storage, state.params), data.layout)
        take_step = make_step(storage._replace(table=rounding), config)

    count = jnp.minimum(config.eval_every, config.steps - state.step)
    carry = _steps(trainer, data, take_step, state, count)
    trained = carry.state
    if trainer.ready is not None:
        trained = trained._replace(params=trainer.ready(trained.params, data.layout, data.segment))
    # What is chosen here is what will serve.
    served, params = as_would_be_served(storage, trained.params, data.layout, mesh)
    model = LightGcn(served, config.layers)
    given = params, data.layout, data.segment, [data.sampled], data.item_bias
    (metrics,) = evaluate_on_devices(mesh, model, *given, config.served_bits, candidates=trainer.candidates)
    mean_loss = carry.total / count.astype(jnp.float32)
    # Without validation users the loss decides.
    fitness = jnp.where(data.sampled.count > 0, metrics.fitness(), -mean_loss)
    step = state.step + count
    evaluated = _Evaluated(mean_loss, fitness, carry.bad_step, metrics.by_user[:, :2])
    state = _judge(state, trained, step, evaluated)
    if trainer.progress is not None:
        jax.debug.callback(trainer.progress, data.segment.index, state.step, mean_loss, fitness, ordered=False)
    return state


def _steps(trainer: _Trainer, data: _FitData, take_step: Step, state: FitState, count: jax.Array) -> _IntervalCarry:
    """Some steps from a state; the carry comes without scratch."""
    config, storage, mesh = trainer.config, trainer.model.storage, trainer.mesh
    table = storage.table

    def step_of_device(segment: Segment) -> Step:
        if table is None or mesh.devices == 1:
            return take_step
        # Without layers no product is made.
        graph = own_rows(mesh, segment.graph, max(sides(segment))) if config.layers else None
        return make_step(storage._replace(table=packed_part(table, mesh)), config, mesh, graph)

    def on_one(key, start: _IntervalCarry, layout, segment: Segment, item_bias, count) -> _IntervalCarry:
        step_here = step_of_device(segment)

        def one_step(i, carry: _IntervalCarry) -> _IntervalCarry:
            step = carry.start + i
            step_key = derive(key, Purpose.TRAINING_STEP, step)
            made = step_here(step_key, carry.state, layout, segment, item_bias, carry.scratch)
            bad_step = jnp.where((carry.bad_step < 0) & ~jnp.isfinite(made.loss), step, carry.bad_step)
            return _IntervalCarry(made.state, carry.total + made.loss, bad_step, carry.start, made.scratch)

        scratch = () if table is None else jnp.zeros((3 * config.batch, table.width))
        return jax.lax.fori_loop(0, count, one_step, start._replace(scratch=scratch))._replace(scratch=())

    start = _IntervalCarry(TrainState(state.params, state.opt_state), jnp.float32(0), state.bad_step, state.step, ())
    in_parts, whole = cast(Any, IN_PARTS), cast(Any, WHOLE)
    specs = _IntervalCarry(TrainState(in_parts, OptState(whole, in_parts, in_parts)), whole, whole, whole, ())
    given = data.key, start, data.layout, data.segment, data.item_bias, count
    in_specs = WHOLE, specs, WHOLE, segment_specs(data.segment), WHOLE, WHOLE
    return on_devices(mesh, on_one, given, in_specs, specs)


def _initial(params: Params, init_opt_state: Callable, users: int) -> FitState:
    return FitState(
        params=params,
        opt_state=init_opt_state(params),
        step=jnp.int32(0),
        best_params=params,
        best_fitness=jnp.float32(-jnp.inf),
        first_fitness=jnp.float32(0),
        best_step=jnp.int32(0),
        stale=jnp.int32(0),
        loss=jnp.float32(0),
        lowest_loss=jnp.float32(jnp.inf),
        falling=jnp.bool_(True),
        bad_step=jnp.int32(-1),
        by_user=jnp.zeros((users, 2)),
    )


def _judge(state: FitState, trained: TrainState, step: jax.Array, evaluated: _Evaluated) -> FitState:
    """The state after an interval: what was trained becomes the best where its fitness is."""
    better = evaluated.fitness > state.best_fitness
    return FitState(
        params=trained.params,
        opt_state=trained.opt_state,
        step=step,
        best_params=jax.tree.map(lambda new, old: jnp.where(better, new, old), trained.params, state.best_params),
        best_fitness=jnp.where(better, evaluated.fitness, state.best_fitness),
        first_fitness=jnp.where(jnp.isinf(state.best_fitness), evaluated.fitness, state.first_fitness),
        best_step=jnp.where(better, step, state.best_step),
        stale=jnp.where(better, 0, state.stale + 1),
        loss=evaluated.loss,
        lowest_loss=jnp.minimum(state.lowest_loss, evaluated.loss),
        falling=evaluated.loss < 0.99 * state.lowest_loss,
        bad_step=evaluated.bad_step,
        by_user=evaluated.by_user,
    )
