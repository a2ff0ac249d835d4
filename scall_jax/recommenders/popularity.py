"""Recommenders without users: items by how often they were met, all-time, of late, or with decay."""

import jax
import jax.numpy as jnp

from scall_jax.evaluation import ranking as evaluation
from scall_jax.recommenders.baseline import Baseline, Exporter
from scall_jax.recommenders.fit import first_users
from scall_jax.streams import POPULARITY, RaggedItems, Segment

_FIRST_DECAYED = POPULARITY.index("segment") + 1


def ranked_by(scores: jax.Array, segment: Segment, relevant: RaggedItems, **options) -> evaluation.Metrics:
    """Evaluate one score per item, f32[V], for all users alike."""
    users = segment.frequency.shape[0] - scores.shape[0]
    nothing = jnp.zeros((relevant.users.shape[0], 1)), jnp.zeros((scores.shape[0], 1))
    return evaluation.evaluate(*nothing, scores, relevant, segment.graph, users, segment.items, **options)


def best_half_life(segment: Segment, valid_users: int, **options) -> jax.Array:
    """Row of `segment.popularity` among the decayed ones that ranks best on valid; i32[]."""
    sampled = first_users(segment.valid, valid_users)

    def fitness(scores):
        return ranked_by(scores, segment, sampled, **options).fitness()

    return _FIRST_DECAYED + jnp.argmax(jax.lax.map(fitness, segment.popularity[_FIRST_DECAYED:])).astype(jnp.int32)


def _floor(row_of) -> Baseline:
    """Items by a row of `segment.popularity`; nothing is learned or stored."""

    def scores(segment, valid_users, **options):
        row = row_of(segment, valid_users, **options)
        return segment.popularity[row], row

    return Baseline(
        empty=lambda users, items: jnp.zeros(0),
        scores=scores,
        fit=lambda segment, valid_users, **options: jnp.zeros(0),
        rank=lambda stored, scores, segment, relevant, **options: ranked_by(scores, segment, relevant, **options),
        exporter=lambda users, items: Exporter(
            lambda stored, plan, known: {}, lambda exported, known: (jnp.zeros(0), ())
        ),
        describe=lambda stored: {},
    )


def _always(name: str):
    return lambda segment, valid_users, **options: jnp.int32(POPULARITY.index(name))


FLOORS = {
    "popularity-all": _floor(_always("all")),
    "popularity-segment": _floor(_always("segment")),
    "popularity-decayed": _floor(best_half_life),
}
"""Methods that rank by popularity alone."""
