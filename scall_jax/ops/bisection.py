"""Search of many ordered ranges at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.indexing import div

_PARTS = 16  # of what is left, on an accelerator


def first_false(start: jax.Array, end: jax.Array, before: Callable[[jax.Array], jax.Array], most: int) -> jax.Array:
    """First places of ranges where `before` does not hold, or their ends where it holds throughout; i32[...].

    A CPU halves what is left until all is found. An accelerator, where each step waits for the one before and a
    comparison costs next to nothing, leaves a sixteenth, as often as the longest range may need.

    Args:
      start, end: i32[...], ranges [start, end).
      before: takes places i32[..., K], K in each range, some beyond its end; bool[..., K], true up to some place of a
        range and false from there on.
      most: no range is longer; static.
    """
    bracket = (start, jnp.maximum(start, end))
    return by_backend(_by_halves, _by_sixteenths)(bracket, before, most)[0]


def _by_halves(bracket, before, most):
    del most
    return jax.lax.while_loop(lambda b: (b[0] < b[1]).any(), lambda b: _narrowed(b, before, 2), bracket)


def _by_sixteenths(bracket, before, most):
    while most > 0:
        # Without barriers a compiler may merge all steps into one and repeat the first ones many times.
        bracket = jax.lax.optimization_barrier(_narrowed(bracket, before, _PARTS))
        most //= _PARTS
    return bracket


def _narrowed(bracket, before, parts):
    low, high = bracket
    number = jnp.arange(1, parts, dtype=jnp.int32).reshape((1,) * low.ndim + (-1,))
    step = div(high - low, parts) + 1
    at = low[..., None] + number * step[..., None] - 1
    passed = ((at < high[..., None]) & before(at)).sum(-1, dtype=jnp.int32)
    low = low + passed * step
    return low, jnp.minimum(high, low + step - 1)
