"""Ranking of entities: which of them gets the largest size."""

import jax
import jax.numpy as jnp


def order_by(frequency: jax.Array, recency: jax.Array, total: jax.Array, alive: jax.Array) -> jax.Array:
    """Entities from the hottest to the coldest.

    Args:
      frequency: i32[n], interactions in the segment's training part, replayed rows included.
      recency: i32[n], position in the stream of the entity's last interaction; larger is later.
      total: i32[n], interactions since the start; orders the entities that are not active in the segment.
      alive: bool[n], entities that exist; the others come last.

    Returns:
      i32[n], a permutation. Keys: alive, frequency, total if frequency is 0, recency, and last the later arrival.
    """
    n = frequency.shape[0]
    index = jnp.arange(n, dtype=jnp.int32)
    dead = (~alive).astype(jnp.int32)
    inactive_total = jnp.where(frequency > 0, 0, total)
    keys = (dead, -frequency, -inactive_total, -recency, -index)
    return jax.lax.sort((*keys, index), num_keys=5)[-1]


def rank(frequency: jax.Array, recency: jax.Array, total=None, alive=None) -> jax.Array:
    """Rank of every entity, 0 for the hottest: the inverse of `order_by`; i32[n]."""
    n = frequency.shape[0]
    total = jnp.zeros_like(frequency) if total is None else total
    alive = jnp.ones(n, bool) if alive is None else alive
    order = order_by(frequency, recency, total, alive)
    return jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32), unique_indices=True)
