"""S2PNM as a `Recommender`: the network of the storage `sequence`, trained to tell users' next items."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax

from scall_jax.ops.indexing import take
from scall_jax.recommenders.bpr import below
from scall_jax.recommenders.buffers import held_by_training
from scall_jax.recommenders.fit import make_fit
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.fit_result import Step
from scall_jax.recommenders.judge import evaluate_vectors
from scall_jax.recommenders.next_item_loss import next_item_loss
from scall_jax.recommenders.recommender import Recommender
from scall_jax.recommenders.served import serve_vectors
from scall_jax.recommenders.train_step import StepResult, TrainState
from scall_jax.streams import Segment
from scall_jax.tables.sequence import Histories, SequenceConfig, SequenceParams
from scall_jax.tables.sequence_network import outputs
from scall_jax.tables.storage import Storage


def sequence_loss(params: SequenceParams, histories: jax.Array, item_bias: jax.Array, known: jax.Array) -> jax.Array:
    """Mean of -log(p + 1e-5), where p is the softmax over all known items at the next item, over places with one.

    Args:
      params: of the storage.
      histories: i32[B, length + 1], items in the order of time, -1 in front of them.
      item_bias: f32[V], added to scores beside the items' own bias.
      known: i32[], items known.

    Returns:
      f32[]; 0 where no user has two items.
    """
    chex.assert_rank([histories, item_bias, known], [2, 1, 0])
    before, after = histories[:, :-1], histories[:, 1:]
    made, there = outputs(params.dense, params.items, before), before >= 0
    offset = jnp.where(jnp.arange(item_bias.shape[0]) < known, params.bias + item_bias, -jnp.inf)
    following = jnp.maximum(after, 0).ravel()
    total = next_item_loss(made.reshape(-1, made.shape[-1]), params.items, offset, following, there.ravel())
    return total / jnp.maximum(there.sum(), 1.0)


def optimiser(config: SequenceConfig) -> optax.GradientTransformation:
    """Adam with the published decay and clipping."""
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(config.learning_rate, b2=0.98, eps=1e-9))


def make_sequence_step(config: SequenceConfig) -> Step:
    """Build one step of training: users of the segment at random, all places of what they met last.

    Args:
      config: of the training.

    Returns:
      A function as `Step` describes it.
    """
    adam = optimiser(config)

    def step(key, state: TrainState, layout: Histories, segment: Segment, item_bias, scratch=()) -> StepResult:
        bits = jax.random.bits(key, (config.batch,))
        at = below(bits, jnp.maximum(segment.positives.count, 1))
        histories = take(layout.items, take(segment.positives.users, at))
        value, gradient = jax.value_and_grad(sequence_loss)(state.params, histories, item_bias, segment.items)
        updates, opt_state = adam.update(gradient, state.opt_state, state.params)
        return StepResult(TrainState(optax.apply_updates(state.params, updates), opt_state), value, scratch)

    return step


def sequence_recommender(config: SequenceConfig, fit: FitConfig, probe: FitConfig, candidates: str) -> Recommender:
    """Build the recommender.

    Args:
      config: of the network and its steps.
      fit: steps of a segment and early stopping.
      probe: the same of a probe.
      candidates: as in `evaluation.RankingOptions`.

    Returns:
      Recommender of the storage `sequence`; it remembers nothing. New users are those of the next segment: there is no
      rule to fold them in, as the order of their items is not given.
    """

    def make(fit: FitConfig, storage: Storage, progress=None):
        unpropagated = dataclasses.replace(fit, layers=0, served_bits=None)
        return make_fit(storage, unpropagated, progress, candidates, make_sequence_step(config), optimiser(config).init)

    return Recommender(
        make_fit=lambda storage, progress: make(fit, storage, progress),
        make_probe_fit=lambda storage: make(probe, storage),
        evaluate=evaluate_vectors,
        held_by_training=held_by_training,
        serves_by=lambda known, graph_bytes, width: {},
        serve=serve_vectors,
    )
