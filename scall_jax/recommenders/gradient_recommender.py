"""LightGCN and matrix factorisation as a `Recommender`: trained by gradients of the Bayesian personalised ranking."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.recommenders.bias_weight import Fitted, fitness_by_weight
from scall_jax.recommenders.buffers import held_by_training
from scall_jax.recommenders.fit import make_fit
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.fit_result import FitResult
from scall_jax.recommenders.judge import Judging
from scall_jax.recommenders.judge_on_devices import evaluate_on_devices
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.recommenders.recommender import Recommender
from scall_jax.recommenders.served import Served, fold_neighbours, serve_propagated
from scall_jax.streams import Segment
from scall_jax.tables.compressed.few_bits import round_rows, rows_bytes
from scall_jax.tables.storage import Storage

BIAS_WEIGHTS = (1.0, 2.0, 4.0)
"""Weights of the items' bias to rank with: training leaves vectors too long beside it where a segment has few rows."""


def gradient_recommender(
    config: FitConfig, probe: FitConfig, candidates: str, bias: str = "none", mesh: MeshConfig = ONE
) -> Recommender:
    """Build the recommender that `fit.make_fit` trains.

    Args:
      config: training of a segment; without layers it is matrix factorisation.
      probe: training of a probe.
      candidates: as in `evaluation.RankingOptions`.
      bias: none, or another name of `Config.bias`, with which the weight that items' biases are ranked with is chosen.
      mesh: devices that fits and ranking are spread over.

    Returns:
      Recommender. It remembers f32[W], how well each of `BIAS_WEIGHTS` has done on all valid parts so far, after fits
      of the run's own widths: the sum, over the users of these parts, of the mean of Recall@20 and NDCG@20. Without a
      bias it remembers nothing.
    """
    biased, weights = bias != "none", jnp.array(BIAS_WEIGHTS)

    def evaluate(storage: Storage, params, layout, segment, parts, item_bias: jax.Array, **options):
        chex.assert_rank(item_bias, 1)
        model = LightGcn(storage, config.layers)
        return evaluate_on_devices(
            mesh, model, params, layout, segment, parts, item_bias, config.served_bits, **options
        )

    def make_weighing_fit(storage: Storage, progress=None):
        fit = make_fit(storage, config, progress, candidates, mesh=mesh)

        def fit_and_weigh(key, params, layout, segment: Segment, item_bias, remembered=(), /) -> FitResult:
            result = fit(key, params, layout, segment, item_bias, remembered)
            fitted = Fitted(storage, result.params, layout, segment, item_bias)
            found = fitness_by_weight(evaluate, weights, fitted, Judging(config.valid_users, candidates), mesh)
            return result._replace(remembered=remembered + found)

        return fit_and_weigh if biased else fit

    def ranking_bias(remembered: Any, item_bias: jax.Array) -> jax.Array:
        return weights[jnp.argmax(remembered)] * item_bias if biased else item_bias

    return Recommender(
        make_fit=make_weighing_fit,
        make_probe_fit=lambda storage: make_fit(storage, probe, None, candidates, mesh=mesh),
        evaluate=evaluate,
        held_by_training=held_by_training,
        serves_by=functools.partial(_serves_by, config),
        init=lambda: jnp.zeros(len(BIAS_WEIGHTS)) if biased else (),
        ranking_bias=ranking_bias,
        describe=lambda remembered: {"bias_weight": BIAS_WEIGHTS[int(remembered.argmax())]} if biased else {},
        serve=functools.partial(_serve, config),
        fold_in=fold_neighbours,
    )


def _serve(
    config: FitConfig, storage: Storage, params, layout, segment, item_bias: jax.Array, remembered, width: int
) -> Served:
    """`Recommender.serve`: the vectors that propagation makes, in as many bits as they serve in."""
    del remembered
    served = serve_propagated(LightGcn(storage, config.layers), params, layout, segment, item_bias, width)
    if config.served_bits is None:
        return served
    users, items = (round_rows(vectors, width, config.served_bits) for vectors in (served.users, served.items))
    return served._replace(users=users, items=items)


def _serves_by(config: FitConfig, known: tuple[int, int], graph_bytes: int, width: int) -> dict[str, int]:
    """`Recommender.serves_by`: the graph, or the vectors that propagation makes of it."""
    if not config.layers:
        return {}
    bits, count = config.served_bits, sum(known)
    final = 4 * count * width if bits is None else rows_bytes(bits, count, width)
    return {"graph": graph_bytes, "final_vectors": final}
