"""Recommenders without users: items by how often they were met, all-time, of late, or with decay."""

import jax
import jax.numpy as jnp

from scall_jax import evaluation
from scall_jax.recommenders.fit import first_users
from scall_jax.streams import POPULARITY, Rows, Segment

FLOORS = ("popularity-all", "popularity-segment", "popularity-decayed")

_FIRST_DECAYED = POPULARITY.index("segment") + 1


def ranked_by(scores: jax.Array, segment: Segment, relevant: Rows, **options) -> evaluation.Metrics:
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


def chosen_row(method: str, segment: Segment, valid_users: int, **options) -> jax.Array:
    """Row of `segment.popularity` that a method of `FLOORS` ranks by; i32[]."""
    if method == "popularity-decayed":
        return best_half_life(segment, valid_users, **options)
    return jnp.int32(POPULARITY.index(method.removeprefix("popularity-")))
