"""Search of many ordered ranges at once, and of an interval of floating-point numbers."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.indexing import div

_PARTS = 16  # parts into which a step on an accelerator divides each range

_Predicate = Callable[[jax.Array], jax.Array]
_Ranges = tuple[jax.Array, jax.Array]


def first_false(start: jax.Array, end: jax.Array, before: _Predicate, most: int) -> jax.Array:
    """First places of ranges where `before` is false, or the ranges' ends where it is true throughout.

    On a CPU, each step halves all ranges until every place is found. An accelerator waits for each step, while a
    comparison costs next to nothing: there, each step leaves a sixteenth, and as many steps are made as the longest
    range may need.

    Args:
      start: i32[...], first place of each range.
      end: i32[...], the place after the last one of each range.
      before: predicate of places i32[..., K], K in each range and some beyond its end; bool[..., K], true up to some
        place of a range and false from there on.
      most: static upper bound of the ranges' lengths.

    Returns:
      i32[...], places between `start` and `end`.

    >>> import jax.numpy as jnp
    >>> values = jnp.array([1, 3, 5, 7, 9])
    >>> first_false(jnp.array([0, 2]), jnp.array([5, 4]), lambda at: values[at] < 4, most=5)
    Array([2, 2], dtype=int32)
    """
    chex.assert_equal_shape([start, end])
    chex.assert_type([start, end], int)
    return by_backend(_by_halves, _by_sixteenths)(start, end, before, most)


def _by_halves(start: jax.Array, end: jax.Array, before: _Predicate, most: int) -> jax.Array:
    del most
    narrowed = _narrowing(start.ndim, before, 2)
    ranges = (start, jnp.maximum(start, end))
    return jax.lax.while_loop(lambda r: (r[0] < r[1]).any(), narrowed, ranges)[0]


def _by_sixteenths(start: jax.Array, end: jax.Array, before: _Predicate, most: int) -> jax.Array:
    narrowed = _narrowing(start.ndim, before, _PARTS)
    ranges = (start, jnp.maximum(start, end))
    while most > 0:
        # Without barriers, a compiler may merge all steps into one and repeat the first ones many times.
        ranges = jax.lax.optimization_barrier(narrowed(ranges))
        most //= _PARTS
    return ranges[0]


def _narrowing(ndim: int, before: _Predicate, parts: int) -> Callable[[_Ranges], _Ranges]:
    """A step from ranges to the part of each that holds its first false place."""
    number = jnp.arange(1, parts, dtype=jnp.int32).reshape((1,) * ndim + (-1,))

    def narrowed(ranges: _Ranges) -> _Ranges:
        low, high = ranges
        step = div(high - low, parts) + 1
        at = low[..., None] + number * step[..., None] - 1
        passed = ((at < high[..., None]) & before(at)).sum(-1, dtype=jnp.int32)
        low = low + passed * step
        return low, jnp.minimum(high, low + step - 1)

    return narrowed


HALVINGS = 32
"""Steps by `halfway` that narrow any interval down to neighbouring float32 numbers."""


def halfway(low: jax.Array, high: jax.Array) -> jax.Array:
    """The number that has as many float32 numbers between itself and `low` as between itself and `high`.

    To halve by it takes as many steps to a price of 1e-9 as to one of 1e9, wherever the interval began; the mean of the
    ends would come no nearer than the interval's own length in 2^-n.

    Args:
      low, high: f32[], not nan, low <= high.

    Returns:
      f32[], `low` itself where the two are neighbours.

    >>> import jax.numpy as jnp
    >>> float(halfway(jnp.float32(2.0**-20), jnp.float32(2.0**20)))
    1.0
    """
    chex.assert_type([low, high], jnp.float32)
    low, high = (_in_order(jax.lax.bitcast_convert_type(end, jnp.int32)) for end in (low, high))
    # Their sum may not fit.
    middle = (low & high) + ((low ^ high) >> 1)
    return jax.lax.bitcast_convert_type(_in_order(middle), jnp.float32)


def _in_order(bits: jax.Array) -> jax.Array:
    """Bit patterns of float32 numbers as integers in the numbers' order, and back."""
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))
