"""The largest values of a vector as a mask, without sorting."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

_MAX_BITS = np.float32(np.finfo(np.float32).max).view(np.int32)  # bit pattern of the largest finite number
_BLOCK = 1024  # entries per block of the two-level search for the first true ones

_Bracket = tuple[jax.Array, jax.Array, jax.Array]


def largest(values: jax.Array, eligible: jax.Array, count: jax.Array) -> jax.Array:
    """Mask of the `count` largest eligible values, ties to lower indices.

    The threshold is found by bisection over the values' bit patterns, which have the same order because no value is
    negative.

    Args:
      values: f32[n], not negative and finite.
      eligible: bool[n], values that may be chosen.
      count: i32[] >= 0, how many to choose.

    Returns:
      bool[n], true at `count` places, or at all eligible ones if there are fewer.

    >>> import jax.numpy as jnp
    >>> largest(jnp.array([2.0, 5.0, 2.0, 9.0]), jnp.array([True, True, True, False]), jnp.int32(2))
    Array([ True,  True, False, False], dtype=bool)
    """
    chex.assert_rank([values, eligible, count], [1, 1, 0])
    chex.assert_equal_shape([values, eligible])
    chex.assert_type([values, eligible, count], [jnp.float32, bool, int])
    bits = jnp.where(eligible, jax.lax.bitcast_convert_type(values, jnp.int32), -1)

    def is_open(bracket: _Bracket) -> jax.Array:
        low, high, above = bracket
        return (low < high) & (above != count)

    def halve(bracket: _Bracket) -> _Bracket:
        # `above`, at most `count`, is how many values exceed `high`; more than `count` values exceed low - 1.
        low, high, above = bracket
        middle = low + (high - low) // 2
        found = (bits > middle).sum(dtype=jnp.int32)
        few = found <= count
        return jnp.where(few, low, middle + 1), jnp.where(few, middle, high), jnp.where(few, found, above)

    least = jnp.where(eligible, bits, _MAX_BITS).min()
    _, threshold, above = jax.lax.while_loop(is_open, halve, (least, bits.max(), jnp.int32(0)))
    return (bits > threshold) | _first_true(eligible & (bits == threshold), count - above)


def _first_true(mask: jax.Array, count: jax.Array) -> jax.Array:
    """The first `count` true entries of a mask."""
    n = mask.shape[0]
    blocks = jnp.pad(mask, (0, -n % _BLOCK)).reshape(-1, _BLOCK)
    up_to = jnp.cumsum(blocks.sum(1, dtype=jnp.int32))
    whole = jnp.minimum((up_to <= count).sum(dtype=jnp.int32), blocks.shape[0] - 1)
    block = blocks[whole].astype(jnp.int32)
    before = up_to[whole] - block.sum()
    end = whole * _BLOCK + (before + jnp.cumsum(block) <= count).sum(dtype=jnp.int32)
    return mask & (jnp.arange(n, dtype=jnp.int32) < end)
