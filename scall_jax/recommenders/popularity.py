"""Recommenders that ignore who the user is: items by how often users met them, all-time, recently, or with decay.

>>> sorted(FLOORS)
['popularity-all', 'popularity-decayed', 'popularity-segment']
"""

from collections.abc import Callable
from typing import Any, Unpack

import chex
import jax
import jax.numpy as jnp

from scall_jax import evaluation
from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.recommenders.baseline import Baseline, Exporter
from scall_jax.recommenders.judge import first_users
from scall_jax.recommenders.parts import segment_parts
from scall_jax.recommenders.served import Served
from scall_jax.streams import POPULARITY, RaggedItems, Segment, sides

_FIRST_DECAYED = POPULARITY.index("segment") + 1


def evaluate_item_scores(
    scores: jax.Array,
    segment: Segment,
    relevant: RaggedItems,
    mesh: MeshConfig = ONE,
    **options: Unpack[evaluation.RankingOptions],
) -> evaluation.Metrics:
    """Evaluate one score per item for all users alike.

    Args:
      scores: f32[V].
      segment: the data.
      relevant: items to be found, by user.
      mesh: devices that the entries of the segment's graph lie on in parts; static.
      **options: as in `evaluation.RankingOptions`.

    Returns:
      Metrics.
    """
    chex.assert_shape(scores, (sides(segment)[1],))
    users = segment.frequency.shape[0] - scores.shape[0]
    if mesh.devices > 1:
        nothing = evaluation.VectorsInParts((), (), lambda _, rows: jnp.zeros((rows.shape[0], 1)), 1)
        known = evaluation.KnownGraph(segment_parts(mesh, segment).graph, users, segment.items)
        no_columns = jnp.int32(0)
        return evaluation.evaluate_in_parts(mesh, nothing, scores, relevant, known, used_width=no_columns, **options)
    user_vectors, item_vectors = jnp.zeros((relevant.users.shape[0], 1)), jnp.zeros((scores.shape[0], 1))
    known = evaluation.KnownGraph(segment.graph, users, segment.items)
    return evaluation.evaluate(user_vectors, item_vectors, scores, relevant, known, **options)


def best_half_life(
    segment: Segment, valid_users: int, mesh: MeshConfig = ONE, **options: Unpack[evaluation.RankingOptions]
) -> jax.Array:
    """The half-life of the decayed popularity that ranks best on valid.

    Args:
      segment: the data.
      valid_users: users of valid that are looked at, at most; static.
      mesh: as in `evaluate_item_scores`.
      **options: as in `evaluation.RankingOptions`.

    Returns:
      i32[], the row of `segment.popularity`.
    """
    sampled = first_users(segment.valid, valid_users)

    def fitness(scores):
        return evaluate_item_scores(scores, segment, sampled, mesh, **options).fitness()

    return _FIRST_DECAYED + jnp.argmax(jax.lax.map(fitness, segment.popularity[_FIRST_DECAYED:])).astype(jnp.int32)


def _by_popularity(row_of: Callable[..., jax.Array]) -> Baseline:
    """Items by a row of `segment.popularity`; nothing is learned or stored."""

    def scores(segment: Segment, valid_users: int, **options: Unpack[evaluation.RankingOptions]):
        row = row_of(segment, valid_users, **options)
        return segment.popularity[row], row

    def rank(stored: Any, scores: jax.Array, segment: Segment, relevant: RaggedItems, /, **options):
        del stored
        return evaluate_item_scores(scores, segment, relevant, **options)

    def serve(stored: Any, segment: Segment, row: jax.Array) -> Served:
        del stored
        users, items = sides(segment)
        return Served(jnp.zeros((users, 1)), jnp.zeros((items, 1)), segment.popularity[row])

    return Baseline(
        empty=lambda users, items: jnp.zeros(0),
        scores=scores,
        fit=lambda segment, valid_users, **options: jnp.zeros(0),
        rank=rank,
        exporter=lambda users, items: Exporter(
            lambda stored, plan, known: {}, lambda exported, known: (jnp.zeros(0), ())
        ),
        serves_by=lambda known, graph_bytes: {"counts": 4 * known[1]},
        describe=lambda stored: {},
        serve=serve,
    )


def _always(name: str) -> Callable[..., jax.Array]:
    return lambda segment, valid_users, **options: jnp.int32(POPULARITY.index(name))


FLOORS = {
    "popularity-all": _by_popularity(_always("all")),
    "popularity-segment": _by_popularity(_always("segment")),
    "popularity-decayed": _by_popularity(best_half_life),
}
"""Methods that rank by popularity alone."""
