"""Ranking of entities: which of them gets the largest size."""

import jax
import jax.numpy as jnp
import numpy as np


def order_by(frequency: jax.Array, recency: jax.Array, total: jax.Array, active_mask: jax.Array) -> jax.Array:
    """Entities from the hottest to the coldest.

    Args:
      frequency: i32[n] >= 0, interactions in the segment's training part, replayed rows included.
      recency: i32[n] >= 0, position in the stream of the entity's last interaction; larger is later.
      total: i32[n] >= 0, interactions since the start; orders the entities that are not active in the segment.
      alive: bool[n], entities that exist; the others come last.

    Returns:
      i32[n], a permutation. Keys: alive, frequency, total if frequency is 0, recency, and last the later arrival.
    """
    # numbers of 64 bits hold all keys and the index: such numbers sort many times faster than several operands do
    with jax.enable_x64(True):
        cold, old = _cold(frequency, total, active_mask), recency.max() - recency
        cold, old = cold.astype(jnp.uint64), old.astype(jnp.uint64)
        index_bits = np.uint64(max(frequency.shape[0] - 1, 1).bit_length())
        bits = _bits(cold) + _bits(old) + index_bits
        return jax.lax.cond(bits <= np.uint64(64), _sorted_at_once, _sorted_in_turn, cold, old, index_bits)


def _cold(frequency, total, active_mask):
    """One key for three, u32 below 2^33 as i64: smaller is hotter; active before inactive before absent."""
    frequency, total = frequency.astype(jnp.int64), total.astype(jnp.int64)
    inactive = frequency == 0
    heat = jnp.where(inactive, total, frequency + jnp.where(inactive, total, 0).max())
    heat = heat + jnp.where(active_mask, 1 + jnp.where(active_mask, -1, heat).max(), 0)
    return heat.max() - heat


def _bits(values):
    return np.uint64(64) - jax.lax.clz(values.max())


def _sorted_at_once(cold, old, index_bits):
    n = cold.shape[0]
    later = jnp.arange(n - 1, -1, -1, dtype=jnp.uint64)  # the later arrival first
    key = cold << (_bits(old) + index_bits) | old << index_bits | later
    return n - 1 - _index(jax.lax.sort(key), index_bits)


def _sorted_in_turn(cold, old, index_bits):
    """By the lesser keys first, then by the greater one; at most 31 + 31 and 33 + 31 bits."""
    n = cold.shape[0]
    later = jnp.arange(n - 1, -1, -1, dtype=jnp.uint64)
    order = n - 1 - _index(jax.lax.sort(old << index_bits | later), index_bits)
    key = cold[order] << index_bits | jnp.arange(n, dtype=jnp.uint64)
    return order[_index(jax.lax.sort(key), index_bits)]


def _index(key, bits):
    return (key & ((np.uint64(1) << bits) - np.uint64(1))).astype(jnp.int32)


def rank(frequency: jax.Array, recency: jax.Array, total=None, active_mask=None) -> jax.Array:
    """Rank of every entity, 0 for the hottest: the inverse of `order_by`; i32[n]."""
    n = frequency.shape[0]
    total = jnp.zeros_like(frequency) if total is None else total
    active_mask = jnp.ones(n, bool) if active_mask is None else active_mask
    order = order_by(frequency, recency, total, active_mask)
    return jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32), unique_indices=True)
