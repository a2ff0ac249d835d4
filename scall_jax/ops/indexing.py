"""Division, and reading and writing at places, where no number is negative.

`//`, `%` and indices of jax.numpy work for negative numbers too, which takes a comparison, a sum and a choice at each
index, more at a division, and again wherever the result is used. They were an eighth of all operations of a searched
run's programs, whose number is what compiling takes memory and time by.
"""

import functools

import jax

dynamic_slice = functools.partial(jax.lax.dynamic_slice, allow_negative_indices=False)
dynamic_update_slice = functools.partial(jax.lax.dynamic_update_slice, allow_negative_indices=False)


def div(a: jax.Array, b: jax.Array | int) -> jax.Array:
    """a // b for a >= 0 and b > 0."""
    return a >> (b.bit_length() - 1) if _power_of_two(b) else jax.lax.div(a, b)


def ceil_div(a: jax.Array, b: jax.Array | int) -> jax.Array:
    """a / b rounded up, for a >= 0 and b > 0; a + b - 1 must not overflow."""
    return div(a + (b - 1), b)


def rem(a: jax.Array, b: jax.Array | int) -> jax.Array:
    """a % b for a >= 0 and b > 0."""
    return a & (b - 1) if _power_of_two(b) else jax.lax.rem(a, b)


def _power_of_two(b) -> bool:
    """Whether a shift or a mask does, which XLA makes of a division too, but for negative numbers as well."""
    return isinstance(b, int) and b & (b - 1) == 0


def take(x: jax.Array, at: jax.Array) -> jax.Array:
    """x[at]; at >= 0 and within x."""
    return x.at[at].get(mode="promise_in_bounds", wrap_negative_indices=False)
