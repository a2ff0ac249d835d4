"""Search of many ordered ranges at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scall_jax.nonnegative import div

_PARTS = 16  # of what is left, on an accelerator


def first_not(start: jax.Array, end: jax.Array, before: Callable[[jax.Array], jax.Array], most: int) -> jax.Array:
    """First places of ranges where `before` does not hold, or their ends where it holds throughout; i32[...].

    A CPU halves what is left until all is found. An accelerator, where each step waits for the one before and a
    comparison costs next to nothing, leaves a sixteenth, as often as the longest range may need.

    Args:
      start, end: i32[...], ranges [start, end).
      before: takes places i32[..., K], K in each range, some beyond its end; bool[..., K], true up to some place of a
        range and false from there on.
      most: no range is longer; static.
    """
    on_cpu = jax.default_backend() == "cpu"
    parts = 2 if on_cpu else _PARTS
    number = jnp.arange(1, parts, dtype=jnp.int32).reshape((1,) * start.ndim + (-1,))

    def narrow(bracket):
        low, high = bracket
        step = div(high - low, parts) + 1
        at = low[..., None] + number * step[..., None] - 1
        passed = ((at < high[..., None]) & before(at)).sum(-1, dtype=jnp.int32)
        low = low + passed * step
        return low, jnp.minimum(high, low + step - 1)

    bracket = (start, jnp.maximum(start, end))
    if on_cpu:
        return jax.lax.while_loop(lambda bracket: (bracket[0] < bracket[1]).any(), narrow, bracket)[0]
    while most > 0:
        # without barriers a compiler may merge all steps into one and repeat the first ones many times
        bracket = jax.lax.optimization_barrier(narrow(bracket))
        most //= _PARTS
    return bracket[0]
