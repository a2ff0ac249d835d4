"""LightGCN and matrix factorisation as a `Recommender`: trained by gradients of the Bayesian personalised ranking."""

import chex
import jax

from scall_jax.recommenders.fit import FitConfig, evaluate_params, held_by_training, make_fit
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.recommenders.recommender import Recommender
from scall_jax.recommenders.served import fold_neighbours, serve_propagated
from scall_jax.tables.compressed.few_bits import round_rows, rows_bytes
from scall_jax.tables.storage import Storage


def gradient_recommender(config: FitConfig, probe: FitConfig, candidates: str) -> Recommender:
    """Build the recommender that `fit.make_fit` trains.

    Args:
      config: training of a segment; without layers it is matrix factorisation.
      probe: training of a probe.
      candidates: as in `evaluation.RankingOptions`.

    Returns:
      Recommender, which remembers nothing.
    """

    def evaluate(storage: Storage, params, layout, segment, parts, item_bias: jax.Array, **options):
        chex.assert_rank(item_bias, 1)
        model = LightGcn(storage, config.layers)
        return evaluate_params(model, params, layout, segment, parts, item_bias, config.served_bits, **options)

    def serve(storage: Storage, params, layout, segment, item_bias: jax.Array, remembered, width: int):
        del remembered
        served = serve_propagated(LightGcn(storage, config.layers), params, layout, segment, item_bias, width)
        if config.served_bits is None:
            return served
        users, items = (round_rows(vectors, width, config.served_bits) for vectors in (served.users, served.items))
        return served._replace(users=users, items=items)

    def serves_by(known: tuple[int, int], graph_bytes: int, width: int) -> dict[str, int]:
        # The graph, or the vectors that propagation makes of it.
        if not config.layers:
            return {}
        bits, count = config.served_bits, sum(known)
        final = 4 * count * width if bits is None else rows_bytes(bits, count, width)
        return {"graph": graph_bytes, "final_vectors": final}

    return Recommender(
        make_fit=lambda storage, progress: make_fit(storage, config, progress, candidates),
        make_probe_fit=lambda storage: make_fit(storage, probe, None, candidates),
        evaluate=evaluate,
        held_by_training=held_by_training,
        serves_by=serves_by,
        serve=serve,
        fold_in=fold_neighbours,
    )
