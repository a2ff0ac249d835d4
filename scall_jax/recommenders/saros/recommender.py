"""SAROS as a `Recommender`: matrix factorisation trained in the order of time, a step for each block (`learning`).

Source: Burashnikova, Maximov, Clausel, Laclau, Iutzeler, Amini, JAIR 2021, arXiv 2012.06910, and its published code
(SashaBurashnikova/SAROS, commit 9ce3670). Here it is a rule of training that goes with every storage and every method
that chooses sizes: early stopping, evaluation and account are those of the other recommenders. A stream says what was
clicked and not what was shown, so that non-clicks are sampled exposures (`blocks`).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.buffers import as_would_be_served, from_buffer, to_buffer
from scall_jax.recommenders.fit_result import FitResult
from scall_jax.recommenders.judge import evaluate_params, first_users
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.recommenders.recommender import Recommender
from scall_jax.recommenders.saros import learning
from scall_jax.recommenders.saros.blocks import Blocks, segment_blocks, with_exposures
from scall_jax.recommenders.saros.config import SarosConfig
from scall_jax.recommenders.served import fold_neighbours, serve_propagated
from scall_jax.streams import RaggedItems, Segment
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params


class Prequential(NamedTuple):
    """What is remembered: how the latest segment's blocks ranked before they were learned from, f32[] each."""

    recall: jax.Array  # mean Recall@20 of the blocks
    ndcg: jax.Array  # mean NDCG@20
    blocks: jax.Array  # blocks that were ranked


class _Passes(NamedTuple):
    """Carried from pass to pass."""

    learned: learning.Learned
    passes: jax.Array  # i32[], passes made
    updates: jax.Array  # i32[], updates so far
    best_params: Params
    best_updates: jax.Array  # i32[]
    best_fitness: jax.Array  # f32[], on valid
    first_fitness: jax.Array  # f32[], after the first pass
    stale: jax.Array  # i32[], passes since the best
    fitness: jax.Array  # f32[], after the last pass
    by_user: jax.Array  # f32[Q, 2]


class _Data(NamedTuple):
    """What a fit reads."""

    key: jax.Array
    layout: StorageLayout
    segment: Segment
    item_bias: jax.Array  # f32[V]
    blocks: Blocks
    sampled: RaggedItems  # valid, of the users that early stopping looks at


def saros_recommender(config: SarosConfig, valid_users: int, candidates: str) -> Recommender:
    """Build the recommender.

    Args:
      config: of the training.
      valid_users: users of valid that early stopping looks at, at most.
      candidates: as in `evaluation.RankingOptions`.

    Returns:
      Recommender. It remembers `Prequential`, zeros without `SarosConfig.prequential`.
    """

    def make(passes: int, prequential: bool):
        def make_fit(storage: Storage, progress=None):
            return functools.partial(_fit, storage, config, (passes, prequential, valid_users, candidates), progress)

        return make_fit

    def evaluate(storage: Storage, params, layout, segment, parts, item_bias, **options):
        return evaluate_params(LightGcn(storage, 0), params, layout, segment, parts, item_bias, **options)

    def serve(storage: Storage, params, layout, segment: Segment, item_bias, remembered, width: int):
        del remembered
        return serve_propagated(LightGcn(storage, 0), params, layout, segment, item_bias, width)

    return Recommender(
        make_fit=make(config.passes, config.prequential),
        make_probe_fit=make(config.probe_passes, False),
        evaluate=evaluate,
        held_by_training=functools.partial(_held_by_training, config),
        serves_by=lambda known, graph_bytes, width: {},
        init=lambda: Prequential(jnp.float32(0), jnp.float32(0), jnp.float32(0)),
        describe=_describe if config.prequential else lambda remembered: {},
        serve=serve,
        fold_in=fold_neighbours,
    )


def _held_by_training(config: SarosConfig, storage: Storage, params: Params) -> Any:
    """Parameters, their best so far, the gradient of a block, and the momentum."""
    own = jax.eval_shape(functools.partial(from_buffer, storage), params)
    return (own,) * (3 + (config.momentum > 0))


def _describe(remembered: Prequential) -> dict[str, Any]:
    found = {"recall@20": remembered.recall, "ndcg@20": remembered.ndcg}
    return {f"prequential_{name}": float(x) for name, x in found.items()} | {
        "prequential_blocks": int(remembered.blocks)
    }


def _fit(storage: Storage, config: SarosConfig, options, progress, key, params, layout, segment, item_bias, *_):
    """A `Fit` of at most so many passes."""
    passes, prequential, valid_users, candidates = options
    blocks = segment_blocks(config, segment)
    data = _Data(key, layout, segment, item_bias, blocks, first_users(segment.valid, valid_users))
    params = from_buffer(storage, params)
    met = learning.Met(segment.graph, segment.ages, segment.items) if prequential else None

    def one_pass(state: _Passes, met: learning.Met | None = None) -> _Passes:
        state = _one_pass(storage, config, candidates, data, state, met)
        if progress is not None:
            loss = _mean_loss(state.learned)
            jax.debug.callback(progress, segment.index, state.passes, loss, state.fitness, ordered=False)
        return state

    def goes_on(state: _Passes) -> jax.Array:
        return (state.passes < passes) & (state.stale < config.patience) & (state.learned.bad < 0)

    state = one_pass(_before(config, params, data), met)
    if passes > 1:
        state = jax.lax.while_loop(goes_on, one_pass, state)
    recall, ndcg, ranked = state.learned.found
    most = jnp.maximum(ranked, 1.0)
    return FitResult(
        params=to_buffer(storage, state.best_params),
        steps=state.updates,
        best_step=state.best_updates,
        fitness=state.best_fitness,
        first_fitness=state.first_fitness,
        loss=_mean_loss(state.learned),
        bad_step=state.learned.bad,
        by_user=state.by_user,
        remembered=Prequential(recall / most, ndcg / most, ranked) if prequential else None,
    )


def _mean_loss(learned: learning.Learned) -> jax.Array:
    return learned.loss / jnp.maximum(learned.updates, 1).astype(jnp.float32)


def _before(config: SarosConfig, params: Params, data: _Data) -> _Passes:
    return _Passes(
        learned=learning.start(config, params),
        passes=jnp.int32(0),
        updates=jnp.int32(0),
        best_params=params,
        best_updates=jnp.int32(0),
        best_fitness=jnp.float32(-jnp.inf),
        first_fitness=jnp.float32(0),
        stale=jnp.int32(0),
        fitness=jnp.float32(0),
        by_user=jnp.zeros((data.sampled.users.shape[0], 2)),
    )


def _one_pass(
    storage: Storage, config: SarosConfig, candidates: str, data: _Data, state: _Passes, met: learning.Met | None
) -> _Passes:
    """A pass over the blocks with exposures of its own, and how what would be stored of it ranks valid."""
    blocks = with_exposures(derive(data.key, Purpose.TRAINING_STEP, state.passes), data.blocks, data.segment)
    learned = state.learned._replace(loss=jnp.float32(0), updates=jnp.int32(0))
    learned = learning.learn(storage, config, learned, data.layout, blocks, data.item_bias, met)
    served, params = as_would_be_served(storage, to_buffer(storage, learned.params), data.layout)
    (metrics,) = evaluate_params(
        LightGcn(served, 0), params, data.layout, data.segment, [data.sampled], data.item_bias, candidates=candidates
    )
    fitness = jnp.where(data.sampled.count > 0, metrics.fitness(), -_mean_loss(learned))
    better = fitness > state.best_fitness
    updates = state.updates + learned.updates
    return _Passes(
        learned=learned,
        passes=state.passes + 1,
        updates=updates,
        best_params=jax.tree.map(lambda new, old: jnp.where(better, new, old), learned.params, state.best_params),
        best_updates=jnp.where(better, updates, state.best_updates),
        best_fitness=jnp.where(better, fitness, state.best_fitness),
        first_fitness=jnp.where(state.passes == 0, fitness, state.first_fitness),
        stale=jnp.where(better, 0, state.stale + 1),
        fitness=fitness,
        by_user=metrics.by_user[:, :2],
    )
