"""Integer division, slices and gathers for numbers that are never negative.

`//`, `%` and indexing of `jax.numpy` also work for negative numbers, which costs a comparison, an addition and a select
at each use. An eighth of all operations of a searched run's programs came from that, and compile time and memory grow
with the number of operations.
"""

from collections.abc import Sequence

import chex
import jax
from jax.typing import ArrayLike


def dynamic_slice(operand: jax.Array, start_indices: Sequence[ArrayLike], slice_sizes: Sequence[int]) -> jax.Array:
    """`jax.lax.dynamic_slice` for start indices that are not negative.

    Args:
      operand: [...], any dtype.
      start_indices: one i32[] >= 0 per axis.
      slice_sizes: one static size per axis.

    Returns:
      The slice, [*slice_sizes]. As in `jax.lax`, a start too close to the end is moved back.
    """
    return jax.lax.dynamic_slice(operand, start_indices, slice_sizes, allow_negative_indices=False)


def dynamic_update_slice(operand: jax.Array, update: ArrayLike, start_indices: Sequence[ArrayLike]) -> jax.Array:
    """`jax.lax.dynamic_update_slice` for start indices that are not negative.

    Args:
      operand: [...], any dtype.
      update: values of the operand's rank and dtype, no larger than it on any axis.
      start_indices: one i32[] >= 0 per axis.

    Returns:
      The operand with `update` written at the start indices.
    """
    return jax.lax.dynamic_update_slice(operand, update, start_indices, allow_negative_indices=False)


def div(a: jax.Array, b: jax.Array | int) -> jax.Array:
    """Quotient `a // b`.

    Args:
      a: integers >= 0, [...].
      b: integers > 0 of the same shape and dtype, or one static number.

    Returns:
      The quotient, of the shape and dtype of `a`.

    >>> import jax.numpy as jnp
    >>> div(jnp.array([7, 8]), 4)
    Array([1, 2], dtype=int32)
    """
    chex.assert_type([a, b], int)
    return a >> (b.bit_length() - 1) if isinstance(b, int) and _is_power_of_two(b) else jax.lax.div(a, b)


def ceil_div(a: jax.Array, b: jax.Array | int) -> jax.Array:
    """Quotient `a / b` rounded up.

    Args:
      a: integers >= 0, [...]; `a + b - 1` must not overflow.
      b: integers > 0 of the same shape and dtype, or one static number.

    Returns:
      The quotient, of the shape and dtype of `a`.

    >>> import jax.numpy as jnp
    >>> ceil_div(jnp.array([7, 8]), 4)
    Array([2, 2], dtype=int32)
    """
    chex.assert_type([a, b], int)
    return div(a + (b - 1), b)


def rem(a: jax.Array, b: jax.Array | int) -> jax.Array:
    """Remainder `a % b`.

    Args:
      a: integers >= 0, [...].
      b: integers > 0 of the same shape and dtype, or one static number.

    Returns:
      The remainder, of the shape and dtype of `a`.

    >>> import jax.numpy as jnp
    >>> rem(jnp.array([7, 8]), 4)
    Array([3, 0], dtype=int32)
    """
    chex.assert_type([a, b], int)
    return a & (b - 1) if isinstance(b, int) and _is_power_of_two(b) else jax.lax.rem(a, b)


def _is_power_of_two(b: int) -> bool:
    """Whether a shift or a mask divides; XLA derives the same, but with a correction for negative numbers."""
    return b & (b - 1) == 0


def take(x: jax.Array, at: jax.Array) -> jax.Array:
    """Gather `x[at]` without checks of the indices.

    Args:
      x: [n, ...], any dtype.
      at: integers in [0, n), [...].

    Returns:
      The rows of `x` at these places, [*at.shape, ...].
    """
    chex.assert_type(at, int)
    return x.at[at].get(mode="promise_in_bounds", wrap_negative_indices=False)
