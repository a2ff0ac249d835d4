"""How much the items' bias counts beside the vectors of a fit when ranking, by what has ranked best on valid."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.recommenders.buffers import as_would_be_served
from scall_jax.recommenders.judge import Judging, first_users
from scall_jax.recommenders.recommender import EvaluateParams
from scall_jax.streams import Segment
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params


class Fitted(NamedTuple):
    """A fit, and what it was made of."""

    storage: Storage
    """Static."""
    params: Params
    """A buffer where the storage has a table."""
    layout: StorageLayout
    """Of the storage."""
    segment: Segment
    """The data."""
    item_bias: jax.Array
    """f32[V], of the fit."""


def fitness_by_weight(
    evaluate: EvaluateParams, weights: jax.Array, fitted: Fitted, judging: Judging, mesh: MeshConfig = ONE
) -> jax.Array:
    """How well what is stored of a fit ranks on valid, by the weight of the bias.

    Args:
      evaluate: of the recommender.
      weights: f32[W].
      fitted: the fit.
      judging: on whom; static.
      mesh: devices that `evaluate` is spread over; static.

    Returns:
      f32[W], the sum over these users of the mean of Recall@20 and NDCG@20.
    """
    storage, params, layout, segment, item_bias = fitted
    served, own = as_would_be_served(storage, params, layout, mesh)
    sampled = first_users(segment.valid, judging.valid_users)

    def fitness(weight: jax.Array) -> jax.Array:
        (metrics,) = evaluate(
            served, own, layout, segment, [sampled], weight * item_bias, candidates=judging.candidates
        )
        return metrics.fitness() * sampled.count.astype(jnp.float32)

    return jax.lax.map(fitness, jnp.asarray(weights))
