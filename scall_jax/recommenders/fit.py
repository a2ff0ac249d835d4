"""The compiled training loop: Adam on the stored parameters, early stopping on valid, best parameters kept."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scall_jax.evaluation import ranking as evaluation
from scall_jax.recommenders import bpr
from scall_jax.recommenders.descent import OptState, empty_opt_state, train_step
from scall_jax.recommenders.graph import with_chunks
from scall_jax.recommenders.lightgcn import embed
from scall_jax.streams import RaggedItems, Segment
from scall_jax.tables.storage import Storage
from scall_jax.tables.table import Params, nbytes


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Training of one segment."""

    layers: int = 3
    """Propagations of LightGCN; 0 is matrix factorisation."""
    batch: int = 2048
    """Triples per step."""
    steps: int = 1000
    """At most this many steps."""
    learning_rate: float = 0.02
    """Of Adam at the start."""
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
    """Users (a random sample) that early stopping looks at."""
    positives: str = "segment"
    """Positives from the user's interactions in the `segment` or from `all` of them."""

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
        if self.positives not in ("segment", "all"):
            raise ValueError(f"positives={self.positives!r}: choose segment or all")


class FitState(NamedTuple):
    """Carried through the training loop."""

    params: Params  # opened
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

    params: Params  # opened
    steps: jax.Array  # i32[], steps made
    best_step: jax.Array  # i32[], step of the parameters
    fitness: jax.Array  # f32[], on the users that early stopping looks at
    first_fitness: jax.Array  # f32[], the same after the first `eval_every` steps
    loss: jax.Array  # f32[], training loss over the last interval
    bad_step: jax.Array  # i32[], first step with a non-finite loss, -1 if none
    by_user: jax.Array  # f32[Q, 2], Recall@20 and NDCG@20 at the last evaluation, of the first Q users of valid


def learning_rate(config: FitConfig) -> optax.Schedule:
    """Learning rate by the number of steps made, decayed in stairs."""
    if config.decay == 1:  # optax would take the end value for a lower bound on a growing rate
        return optax.constant_schedule(config.learning_rate)
    return optax.exponential_decay(
        config.learning_rate,
        config.decay_every,
        config.decay,
        staircase=True,
        end_value=min(config.least_learning_rate, config.learning_rate),
    )


def to_buffer(storage: Storage, params: Params):
    """Parameters as training and `embed` take them: with room for reading past their end, where there is a table."""
    return params if storage.table is None else storage.table.to_buffer(params)


def from_buffer(storage: Storage, params):
    """The inverse of `opened`."""
    return params if storage.table is None else storage.table.from_buffer(params)


def training_bytes(storage: Storage, params) -> int:
    """Bytes of `opened` parameters, their best so far and two moments, and of a gradient where there is no table."""
    return (4 if storage.table is not None else 5) * nbytes(params)


def evaluate_params(
    storage: Storage,
    config: FitConfig,
    params,
    layout,
    segment: Segment,
    parts: Sequence[RaggedItems],
    item_bias,
    **options,
) -> list[evaluation.Metrics]:
    """Evaluate `opened` parameters on parts of a segment, each on its users; `options` as in `evaluation.evaluate`."""
    users = storage.nodes - item_bias.shape[0]
    items = jnp.arange(users, storage.nodes, dtype=jnp.int32)
    rows = jnp.concatenate([*(part.users for part in parts), items])
    # one propagation for all parts
    final, _ = embed(storage, config.layers, params, layout, with_chunks(segment.graph), rows)
    *queries, of_items = jnp.split(final, np.cumsum([part.users.shape[0] for part in parts]))
    graph, used = segment.graph, storage.used(layout)
    return [
        evaluation.evaluate(vectors, of_items, item_bias, part, graph, users, segment.items, used_width=used, **options)
        for vectors, part in zip(queries, parts, strict=True)
    ]


def optimiser(config: FitConfig) -> optax.GradientTransformation:
    """Of storages without a table; tables have the same in `descent`."""
    return optax.adam(learning_rate(config))


def make_step(storage: Storage, config: FitConfig) -> Callable:
    """One step of training, step(key, number, params, moments, layout, segment, item_bias, scratch).

    `number` i32[] counts steps and sets their random numbers apart; `scratch` is f32[3 batch, width] for a storage with
    a table, else (). Returns parameters, moments, the loss f32[] before the step, a storage's penalty included, and
    scratch.
    """
    rate, adam = learning_rate(config), optimiser(config)

    def step(key, number, params, opt_state, layout, segment: Segment, item_bias, scratch=()):
        users, graph = storage.nodes - item_bias.shape[0], segment.graph
        key = jax.random.fold_in(key, number)
        rows_of = segment.positives, graph, users, segment.items
        triples = bpr.sample(key, *rows_of, config.batch, config.positives)
        rows = jnp.concatenate([triples.user, triples.positive + users, triples.negative + users])
        if storage.table is not None:
            static = storage.table, rate, config.layers, config.l2
            batch = layout, graph, rows, triples, item_bias, scratch
            value, params, opt_state, scratch = train_step(*static, params, opt_state, *batch)
            return params, opt_state, value, scratch

        def objective(params):
            final, own = embed(storage, config.layers, params, layout, graph, rows)
            value = bpr.loss(bpr.margins(final), (own * own).sum(), item_bias, triples, config.l2)
            return value if storage.penalty is None else value + storage.penalty(params, layout)

        value, gradient = jax.value_and_grad(objective)(params)
        updates, opt_state = adam.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value, scratch

    return step


def make_fit(
    storage: Storage, config: FitConfig, progress: Callable | None = None, candidates: str = "all"
) -> Callable:
    """Build fit(key, params, layout, segment, item_bias) -> Fitted, to be compiled; parameters are `opened` ones.

    `progress(segment, step, loss, fitness)` is called on the host after each evaluation, not always in order.
    """
    init_moments = empty_opt_state if storage.table is not None else optimiser(config).init
    train = make_step(storage, config)

    def fit(key: jax.Array, params: Params, layout, segment: Segment, item_bias: jax.Array) -> FitResult:
        sampled = first_users(segment.valid, config.valid_users)
        segment = segment._replace(graph=with_chunks(segment.graph))

        def one_step(i, carry):
            params, opt_state, total, bad, start, scratch = carry
            step = start + i
            params, opt_state, value, scratch = train(key, step, params, opt_state, layout, segment, item_bias, scratch)
            bad = jnp.where((bad < 0) & ~jnp.isfinite(value), step, bad)
            return params, opt_state, total + value, bad, start, scratch

        def interval(state: FitState) -> FitState:
            count = jnp.minimum(config.eval_every, config.steps - state.step)
            scratch = () if storage.table is None else jnp.zeros((3 * config.batch, storage.table.width))
            carry = (state.params, state.opt_state, jnp.float32(0), state.bad_step, state.step, scratch)
            params, opt_state, total, bad, *_ = jax.lax.fori_loop(0, count, one_step, carry)
            (metrics,) = evaluate_params(
                storage, config, params, layout, segment, [sampled], item_bias, candidates=candidates
            )
            mean_loss = total / count
            # without validation users the loss decides
            fitness = jnp.where(sampled.count > 0, metrics.fitness(), -mean_loss)
            state = _judge(
                state, params, opt_state, state.step + count, mean_loss, fitness, bad, metrics.by_user[:, :2]
            )
            if progress is not None:
                jax.debug.callback(progress, segment.index, state.step, mean_loss, fitness, ordered=False)
            return state

        def goes_on(state: FitState):
            patience = jnp.where(state.falling, 2 * config.patience, config.patience)
            return (state.step < config.steps) & (state.stale < patience) & (state.bad_step < 0)

        end = jax.lax.while_loop(goes_on, interval, _initial(params, init_moments, sampled.users.shape[0]))
        return FitResult(
            end.best_params,
            end.step,
            end.best_step,
            end.best_fitness,
            end.first_fitness,
            end.loss,
            end.bad_step,
            end.by_user,
        )

    return fit


def first_users(rows: RaggedItems, most: int) -> RaggedItems:
    """The first `most` users (their order is random), statically."""
    most = min(most, rows.users.shape[0])
    return RaggedItems(rows.users[:most], rows.indptr[: most + 1], rows.items, jnp.minimum(rows.count, most))


def _initial(params, init_moments, users: int) -> FitState:
    return FitState(
        params=params,
        opt_state=init_moments(params),
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


def _judge(state: FitState, params, opt_state, step, loss, fitness, bad, by_user) -> FitState:
    better = fitness > state.best_fitness
    return FitState(
        params=params,
        opt_state=opt_state,
        step=step,
        best_params=jax.tree.map(lambda new, old: jnp.where(better, new, old), params, state.best_params),
        best_fitness=jnp.where(better, fitness, state.best_fitness),
        first_fitness=jnp.where(jnp.isinf(state.best_fitness), fitness, state.first_fitness),
        best_step=jnp.where(better, step, state.best_step),
        stale=jnp.where(better, 0, state.stale + 1),
        loss=loss,
        lowest_loss=jnp.minimum(state.lowest_loss, loss),
        falling=loss < 0.99 * state.lowest_loss,
        bad_step=bad,
        by_user=by_user,
    )
