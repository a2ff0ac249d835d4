"""The compiled training loop: Adam on the parameters, early stopping on valid, the best parameters as its result."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scall_jax import evaluation
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders import bpr
from scall_jax.recommenders.graph import with_chunks
from scall_jax.recommenders.lightgcn import LightGcn, embed
from scall_jax.recommenders.train_step import (
    OptState,
    StepResult,
    StepSettings,
    TrainState,
    empty_opt_state,
    train_step,
)
from scall_jax.streams import RaggedItems, Segment, sides
from scall_jax.tables.compressed.few_bits import BITS, round_rows
from scall_jax.tables.storage import Storage, StorageLayout, Stored
from scall_jax.tables.table import Params


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Training of one segment."""

    layers: int = 3
    """Propagations of LightGCN; 0 is matrix factorisation."""
    batch: int = 2048
    """Triples per step."""
    steps: int = 1000
    """Steps, at most."""
    learning_rate: float = 0.02
    """Learning rate of Adam at the start."""
    decay: float = 0.95
    """Factor on the learning rate every `decay_every` steps."""
    decay_every: int = 200
    """Steps between decays."""
    least_learning_rate: float = 0.001
    """The learning rate does not fall below this."""
    l2: float = 1e-4
    """Weight of half the mean squared norm of a batch's own embeddings."""
    eval_every: int = 100
    """Steps between evaluations on valid."""
    patience: int = 4
    """Evaluations without improvement before stopping; twice as many while the training loss still falls."""
    valid_users: int = 4096
    """Users that early stopping looks at, at most; a random sample."""
    rounding: str = "after"
    """For storages that round: round after the training, or train within it: each step reads coordinates as they would
    be stored, with the scales of the last evaluation, and changes those that are not rounded (straight-through)."""
    served_bits: int | None = None
    """LightGCN ranks and serves by final vectors (after propagation) in 1, 2, 3, 4 or 8 bits a coordinate, with a scale
    for each vector; None: in float32."""
    positives: str = "segment"
    """Positives are drawn from the user's interactions in the `segment` or from `all` of them."""

    def __post_init__(self):
        for name in ("batch", "steps", "decay_every", "eval_every", "patience", "valid_users"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.layers < 0:
            raise ValueError(f"layers={self.layers}: must not be negative")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: must be greater than 0")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay}: must lie above 0 and not above 1, which is no decay")
        for name in ("least_learning_rate", "l2"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        if self.served_bits is not None and (self.served_bits not in BITS or not self.layers):
            raise ValueError(
                f"served_bits={self.served_bits} at layers={self.layers}: choose one of {', '.join(map(str, BITS))}, "
                "and at least one layer; without propagation the table serves: choose table=packed_int4 or the like"
            )
        if self.rounding not in ("after", "within"):
            raise ValueError(f"rounding={self.rounding!r}: choose after or within")
        if self.positives not in ("segment", "all"):
            raise ValueError(f"positives={self.positives!r}: choose segment or all")


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


class FitResult(NamedTuple):
    """Result of a fit."""

    params: Params  # a buffer for a storage with a table
    steps: jax.Array  # i32[], steps made
    best_step: jax.Array  # i32[], step of the parameters
    fitness: jax.Array  # f32[], on the users that early stopping looks at
    first_fitness: jax.Array  # f32[], the same after the first `eval_every` steps
    loss: jax.Array  # f32[], training loss over the last interval
    bad_step: jax.Array  # i32[], first step with a non-finite loss, -1 if none
    by_user: jax.Array  # f32[Q, 2], Recall@20 and NDCG@20 at the last evaluation, of the first Q users of valid
    remembered: Any = None  # what the recommender remembers from now on; None: what it did before


class Step(Protocol):
    """Signature of a step of training."""

    def __call__(
        self,
        key: jax.Array,
        state: TrainState,
        layout: StorageLayout,
        segment: Segment,
        item_bias: jax.Array,
        scratch: jax.Array | tuple[()] = (),
        /,
    ) -> StepResult:
        """Draw a batch and descend by its gradient.

        Args:
          key: typed PRNG key of the step.
          state: parameters and the state of the optimiser.
          layout: of the storage.
          segment: the data.
          item_bias: f32[V], added to scores.
          scratch: f32[3 batch, width] for a storage with a table, else ().

        Returns:
          StepResult; the loss includes a storage's penalty.
        """
        ...


class Fit(Protocol):
    """Signature of a fit."""

    def __call__(
        self,
        key: jax.Array,
        params: Params,
        layout: StorageLayout,
        segment: Segment,
        item_bias: jax.Array,
        remembered: Any = (),
        /,
    ) -> FitResult:
        """Train on a segment until its valid part says to stop.

        Args:
          key: typed PRNG key.
          params: of the storage, from `to_buffer`.
          layout: of the storage.
          segment: the data.
          item_bias: f32[V], added to scores.
          remembered: what the recommender remembers (`Recommender.init`).

        Returns:
          FitResult.
        """
        ...


def learning_rate(config: FitConfig) -> optax.Schedule:
    """Learning rate by the number of steps made, decayed in stairs.

    >>> rate = learning_rate(FitConfig(learning_rate=0.02, decay=0.5, decay_every=10))
    >>> [round(float(rate(step)), 4) for step in (0, 9, 10, 20)]
    [0.02, 0.02, 0.01, 0.005]
    """
    if config.decay == 1:  # optax would treat the end value as a lower bound on a growing rate
        return optax.constant_schedule(config.learning_rate)
    return optax.exponential_decay(
        config.learning_rate,
        config.decay_every,
        config.decay,
        staircase=True,
        end_value=min(config.least_learning_rate, config.learning_rate),
    )


def to_buffer(storage: Storage, params: Params) -> Params:
    """Parameters as training and `embed` take them: a table's with room for reading past their end."""
    return params if storage.table is None else storage.table.to_buffer(params)


def from_buffer(storage: Storage, params: Params) -> Params:
    """The inverse of `to_buffer`."""
    return params if storage.table is None else storage.table.from_buffer(params)


def as_served(storage: Storage, stored: Stored, layout: StorageLayout) -> tuple[Storage, Params]:
    """What ranks: a storage whose table reads what is stored, where it has one, and parameters for `embed`.

    Args:
      storage: of the parameters.
      stored: what it stores.
      layout: of the storage.

    Returns:
      (storage, parameters): what is stored itself, or what the storage loads of it.
    """
    if storage.served is not None:
        return storage._replace(table=storage.served), storage.served.to_buffer(stored)
    return storage, to_buffer(storage, storage.load(stored, layout))


def held_by_training(storage: Storage, params: Params, keeps_best: bool = True) -> tuple[Params, ...]:
    """What training holds from step to step, as copies of the parameters.

    Args:
      storage: of the parameters.
      params: from `to_buffer`.
      keeps_best: the best parameters so far are kept.

    Returns:
      The parameters, their best so far, the two moments of Adam, and, where there is no table, a gradient: as many
      times the parameters. What lives within a step alone, as embeddings do, is not among them.
    """
    return (params,) * (3 + keeps_best + (storage.table is None))


def evaluate_params(
    model: LightGcn,
    params: Params,
    layout: StorageLayout,
    segment: Segment,
    parts: Sequence[RaggedItems],
    item_bias: jax.Array,
    served_bits: int | None = None,
    **options: Unpack[evaluation.RankingOptions],
) -> list[evaluation.Metrics]:
    """Evaluate parameters on parts of a segment, each on its users.

    Args:
      model: static.
      params: of the storage, from `to_buffer`.
      layout: of the storage.
      segment: the data.
      parts: items to be found by user, such as `segment.valid` and `segment.test`.
      item_bias: f32[V], added to scores.
      served_bits: bits a coordinate of the final vectors that rank; None for float32; static.
      **options: as in `evaluation.RankingOptions`.

    Returns:
      Metrics of each part.

    Raises:
      ValueError: unknown candidates.
    """
    chex.assert_shape(item_bias, (sides(segment)[1],))
    storage = model.storage
    users = storage.nodes - item_bias.shape[0]
    items = jnp.arange(users, storage.nodes, dtype=jnp.int32)
    rows = jnp.concatenate([*(part.users for part in parts), items])
    # All parts share one propagation.
    final, _ = embed(model, params, layout, with_chunks(segment.graph), rows)
    if served_bits is not None:
        final = round_rows(final, storage.used(layout), served_bits)
    *queries, of_items = jnp.split(final, np.cumsum([part.users.shape[0] for part in parts]))
    known, used = evaluation.KnownGraph(segment.graph, users, segment.items), storage.used(layout)
    return [
        evaluation.evaluate(vectors, of_items, item_bias, part, known, used_width=used, **options)
        for vectors, part in zip(queries, parts, strict=True)
    ]


def optimiser(config: FitConfig) -> optax.GradientTransformation:
    """Adam for storages without a table; `train_step` does the same for tables."""
    return optax.adam(learning_rate(config))


def make_step(storage: Storage, config: FitConfig) -> Step:
    """Build one step of training.

    Args:
      storage: of the parameters.
      config: of the training.

    Returns:
      A function as `Step` describes it.
    """
    model, rate, adam = LightGcn(storage, config.layers), learning_rate(config), optimiser(config)
    settings = StepSettings(model, rate, config.l2)

    def step(key, state, layout, segment, item_bias, scratch=()):
        users, graph = storage.nodes - item_bias.shape[0], segment.graph
        known = evaluation.KnownGraph(graph, users, segment.items)
        triples = bpr.sample(key, segment.positives, known, config.batch, config.positives)
        if storage.table is not None:
            return train_step(settings, state, layout, graph, triples, item_bias, scratch)
        rows = bpr.nodes(triples, users)

        def objective(params):
            final, own = embed(model, params, layout, graph, rows)
            value = bpr.loss(bpr.margins(final), (own * own).sum(), item_bias, triples, config.l2)
            if storage.auxiliary is not None:
                columns, weight = storage.auxiliary(layout)
                alone = bpr.margins(final * columns[None, :])
                value += weight * bpr.loss(alone, jnp.float32(0), item_bias, triples, 0.0)
            return value if storage.penalty is None else value + storage.penalty(params, layout)

        value, gradient = jax.value_and_grad(objective)(state.params)
        updates, opt_state = adam.update(gradient, state.opt_state, state.params)
        return StepResult(TrainState(optax.apply_updates(state.params, updates), opt_state), value, scratch)

    return step


def make_fit(
    storage: Storage,
    config: FitConfig,
    progress: Callable | None = None,
    candidates: str = "all",
    step: Step | None = None,
    init_opt_state: Callable[[Params], Any] | None = None,
) -> Fit:
    """Build the training of a segment, to be compiled.

    Args:
      storage: of the parameters.
      config: of the training.
      progress: progress(segment, step, loss, fitness) is called on the host after each evaluation, not always in order.
      candidates: as in `evaluation.RankingOptions`.
      step: another step than that of `make_step`; only for storages without a table.
      init_opt_state: the first state of its optimiser; given with `step`.

    Returns:
      A function as `Fit` describes it.
    """
    take_step = make_step(storage, config) if step is None else step
    trainer = _Trainer(LightGcn(storage, config.layers), config, take_step, progress, candidates)
    if init_opt_state is None:
        init_opt_state = empty_opt_state if storage.table is not None else optimiser(config).init

    def fit(key: jax.Array, params: Params, layout, segment: Segment, item_bias: jax.Array, remembered=()) -> FitResult:
        del remembered
        chex.assert_shape(item_bias, (sides(segment)[1],))
        sampled = first_users(segment.valid, config.valid_users)
        segment = segment._replace(graph=with_chunks(segment.graph))
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


def first_users(rows: RaggedItems, most: int) -> RaggedItems:
    """The first users of some lists, which is a random sample where they are in random order.

    Args:
      rows: item lists of B users.
      most: users, at most; static.

    Returns:
      RaggedItems of min(B, most) users.

    >>> rows = RaggedItems(jnp.array([7, 5]), jnp.array([0, 1, 3]), jnp.array([4, 2, 6]), jnp.int32(2))
    >>> first_users(rows, 1).users.tolist()
    [7]
    """
    chex.assert_rank([rows.users, rows.indptr, rows.items], 1)
    most = min(most, rows.users.shape[0])
    return RaggedItems(rows.users[:most], rows.indptr[: most + 1], rows.items, jnp.minimum(rows.count, most))


class _Trainer(NamedTuple):
    """The static part of a fit."""

    model: LightGcn
    config: FitConfig
    step: Step
    progress: Callable | None
    candidates: str


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
    config, storage = trainer.config, trainer.model.storage
    table, take_step = storage.table, trainer.step
    within = storage.rounding if config.rounding == "within" else None
    if within is not None:
        # Scales hold for an interval: to find them costs as much as some steps.
        rounding = within(from_buffer(storage, state.params), data.layout)
        take_step = make_step(storage._replace(table=rounding), config)

    def one_step(i, carry: _IntervalCarry) -> _IntervalCarry:
        step = carry.start + i
        key = derive(data.key, Purpose.TRAINING_STEP, step)
        made = take_step(key, carry.state, data.layout, data.segment, data.item_bias, carry.scratch)
        bad_step = jnp.where((carry.bad_step < 0) & ~jnp.isfinite(made.loss), step, carry.bad_step)
        return _IntervalCarry(made.state, carry.total + made.loss, bad_step, carry.start, made.scratch)

    count = jnp.minimum(config.eval_every, config.steps - state.step)
    scratch = () if table is None else jnp.zeros((3 * config.batch, table.width))
    start = TrainState(state.params, state.opt_state)
    carry = _IntervalCarry(start, jnp.float32(0), state.bad_step, state.step, scratch)
    carry = jax.lax.fori_loop(0, count, one_step, carry)
    model, params = trainer.model, carry.state.params
    if storage.rounds:
        # What is chosen here is what will serve.
        served, params = as_served(storage, storage.store(from_buffer(storage, params), data.layout), data.layout)
        model = LightGcn(served, config.layers)
    (metrics,) = evaluate_params(
        model,
        params,
        data.layout,
        data.segment,
        [data.sampled],
        data.item_bias,
        config.served_bits,
        candidates=trainer.candidates,
    )
    mean_loss = carry.total / count.astype(jnp.float32)
    # Without validation users the loss decides.
    fitness = jnp.where(data.sampled.count > 0, metrics.fitness(), -mean_loss)
    step = state.step + count
    evaluated = _Evaluated(mean_loss, fitness, carry.bad_step, metrics.by_user[:, :2])
    state = _judge(state, carry.state, step, evaluated)
    if trainer.progress is not None:
        jax.debug.callback(trainer.progress, data.segment.index, state.step, mean_loss, fitness, ordered=False)
    return state


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
