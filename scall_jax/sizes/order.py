"""Order of the entities by how often and how recently they interact: who gets the largest size."""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def order_by(frequency: jax.Array, recency: jax.Array, total: jax.Array, active_mask: jax.Array) -> jax.Array:
    """Entities from the most to the least frequent.

    The sort keys are, in turn: whether the entity exists; its frequency; its total, if its frequency is 0; its recency;
    and last its index, the later arrival first.

    Args:
      frequency: i32[n] >= 0, interactions in the segment's training part, replayed rows included.
      recency: i32[n] >= 0, position in the stream of the entity's last interaction; larger is later.
      total: i32[n] >= 0, interactions since the start of the stream; it orders entities of frequency 0.
      active_mask: bool[n], entities that exist; the others come last.

    Returns:
      i32[n], a permutation of the indices.

    >>> import jax.numpy as jnp
    >>> frequency, recency, total = jnp.array([[3, 0, 5, 0], [9, 4, 2, 7], [3, 8, 5, 1]])
    >>> order_by(frequency, recency, total, jnp.array([True, True, True, False]))
    Array([2, 0, 1, 3], dtype=int32)
    """
    chex.assert_rank([frequency, recency, total, active_mask], 1)
    chex.assert_equal_shape([frequency, recency, total, active_mask])
    chex.assert_type([frequency, recency, total, active_mask], [int, int, int, bool])
    # A 64-bit number holds all keys and the index; sorting such numbers is many times faster than sorting operands.
    with jax.enable_x64(True):
        cold, old = _cold(frequency, total, active_mask), recency.max() - recency
        cold, old = cold.astype(jnp.uint64), old.astype(jnp.uint64)
        index_bits = np.uint64(max(frequency.shape[0] - 1, 1).bit_length())
        bits = _bits(cold) + _bits(old) + index_bits
        return jax.lax.cond(bits <= np.uint64(64), _sorted_at_once, _sorted_in_turn, cold, old, index_bits)


def _cold(frequency: jax.Array, total: jax.Array, active_mask: jax.Array) -> jax.Array:
    """Existence, frequency and total as one key below 2^33, the smallest for the most frequent entity; i64[n]."""
    frequency, total = frequency.astype(jnp.int64), total.astype(jnp.int64)
    inactive = frequency == 0
    heat = jnp.where(inactive, total, frequency + jnp.where(inactive, total, 0).max())
    heat = heat + jnp.where(active_mask, 1 + jnp.where(active_mask, -1, heat).max(), 0)
    return heat.max() - heat


def _bits(values: jax.Array) -> jax.Array:
    """Bits that the largest value takes; u64[]."""
    return np.uint64(64) - jax.lax.clz(values.max())


def _sorted_at_once(cold: jax.Array, old: jax.Array, index_bits: jax.Array) -> jax.Array:
    n = cold.shape[0]
    later = jnp.arange(n - 1, -1, -1, dtype=jnp.uint64)  # reversed, so that the later arrival comes first
    key = cold << (_bits(old) + index_bits) | old << index_bits | later
    return n - 1 - _index(jax.lax.sort(key), index_bits)


def _sorted_in_turn(cold: jax.Array, old: jax.Array, index_bits: jax.Array) -> jax.Array:
    """Sort by the lesser keys first, of at most 31 + 31 bits, then by the greater one, of at most 33 + 31 bits."""
    n = cold.shape[0]
    later = jnp.arange(n - 1, -1, -1, dtype=jnp.uint64)
    order = n - 1 - _index(jax.lax.sort(old << index_bits | later), index_bits)
    key = cold[order] << index_bits | jnp.arange(n, dtype=jnp.uint64)
    return order[_index(jax.lax.sort(key), index_bits)]


def _index(key: jax.Array, bits: jax.Array) -> jax.Array:
    """The index in the lowest bits of sorted keys; i32[n]."""
    return (key & ((np.uint64(1) << bits) - np.uint64(1))).astype(jnp.int32)
