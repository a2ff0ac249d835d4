"""How much the items' bias counts beside the vectors of a fit when ranking, by what has ranked best on valid."""

import jax
import jax.numpy as jnp

from scall_jax.recommenders.fit import as_served, first_users, from_buffer
from scall_jax.recommenders.recommender import EvaluateParams
from scall_jax.streams import Segment
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params


def fitness_by_weight(
    evaluate: EvaluateParams,
    weights: jax.Array,
    storage: Storage,
    params: Params,
    layout: StorageLayout,
    segment: Segment,
    item_bias: jax.Array,
    *,
    valid_users: int,
    candidates: str,
) -> jax.Array:
    """How well what is stored of a fit ranks on valid, by the weight of the bias.

    Args:
      evaluate: of the recommender.
      weights: f32[W].
      storage, params, layout: of the fit; a buffer where the storage has a table.
      segment: the data.
      item_bias: f32[V], of the fit.
      valid_users: users that are looked at, at most; static.
      candidates: as in `evaluation.RankingOptions`; static.

    Returns:
      f32[W], the sum over these users of the mean of Recall@20 and NDCG@20.
    """
    served, own = as_served(storage, storage.store(from_buffer(storage, params), layout), layout)
    sampled = first_users(segment.valid, valid_users)

    def fitness(weight: jax.Array) -> jax.Array:
        (metrics,) = evaluate(served, own, layout, segment, [sampled], weight * item_bias, candidates=candidates)
        return metrics.fitness() * sampled.count.astype(jnp.float32)

    return jax.lax.map(fitness, jnp.asarray(weights))
