"""From shares and a total to integer sizes: the sum is exact, and bounds and order hold.

The rule is the divisor method of Webster and Sainte-Laguë with bounds. Sizes are clip(⌊λp + ½⌋, d_min, d_max) for the
multiplier λ that makes them add up to the total. They are monotone in the share p (a more frequent entity never gets
less) and, unlike sizes by largest remainder, monotone in the total: a larger budget never shrinks an entity.

A bracketing search over the bit patterns of floating-point numbers, which is a search in log space, finds λ. It ends at
sizes that add up exactly, or at two neighbouring numbers between which the sum passes the total. In the second case the
few entities that grow between the two share what is left, in descending order of their shares. Only the choice of the
next probe uses floating-point sums.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.selection import largest
from scall_jax.sizes.allocate_host import allocate_host
from scall_jax.sizes.checks import DEVICE_LIMIT, LEAST_SHARE, check_arguments, is_traced

_MAX_MULTIPLIER = np.float32(np.finfo(np.float32).max).view(np.int32)  # bit pattern of the largest multiplier
_SAMPLE = 2048  # entities from which the multiplier is estimated
_REACH = 2**17  # how far the estimate is trusted, in bit patterns; 2^23 of them are a factor of 2


def allocate(
    shares: chex.Array | Sequence[float],
    total: chex.Numeric,
    minimum: int = 1,
    maximum: int = 256,
    num_active: chex.Numeric | None = None,
) -> jax.Array | np.ndarray:
    """Integer sizes that add up to min(total, n x maximum) exactly.

    The divisor method of Webster and Sainte-Laguë (Balinski and Young, Fair Representation, 1982) with bounds.

    Args:
      shares: f32[n], non-negative, in any order; they need not be normalised. All zeros count as all equal.
      total: i32[] >= 0, parameters to give out; may be traced.
      minimum: static lower bound of a size, in parameters.
      maximum: static upper bound of a size, in parameters.
      num_active: i32[], entities that exist out of the capacity n, None for all; those beyond get 0. May be traced.

    Returns:
      i32[n] with minimum <= size <= maximum. Entities with a larger share never get less; of equal shares, the lower
      index is served first. If total < n x minimum, the total // minimum entities with the largest shares get the
      minimum, the next one gets the remainder and the others 0. If the total exceeds 2^31 - 1 or n x maximum exceeds
      2^32 - 1, sizes are worked out on the host and returned as a numpy array i64[n].

    Raises:
      ValueError: bounds out of order; concrete shares that are negative, NaN or infinite; a concrete total that is
        negative; traced arguments that need the host.

    >>> allocate([0.5, 0.3, 0.2], total=10, minimum=1, maximum=4)
    Array([4, 4, 2], dtype=int32)
    """
    check_arguments(shares, total, minimum, maximum, num_active)
    n = np.shape(shares)[0]
    beyond = n * maximum > 2**32 - 1 or maximum > 2**22
    beyond = beyond or (not is_traced(total) and int(total) > DEVICE_LIMIT)
    if beyond and any(map(is_traced, (shares, total, num_active))):
        raise ValueError(
            f"{n} entities with sizes up to {maximum} need 64-bit sums: lower sizes.maximum, or work outside jit"
        )
    if beyond:
        return allocate_host(np.asarray(shares), int(total), minimum, maximum, num_active)
    num_active = n if num_active is None else num_active
    chex.assert_rank([total, num_active], 0)
    chex.assert_type([total, num_active], int)
    shares = jnp.asarray(shares, jnp.float32)
    return _allocate(shares, jnp.asarray(total, jnp.int32), jnp.asarray(num_active, jnp.int32), minimum, maximum)


@functools.partial(jax.jit, static_argnames=("minimum", "maximum"))
def _allocate(shares: jax.Array, total: jax.Array, num_active: jax.Array, minimum: int, maximum: int) -> jax.Array:
    active_mask = jnp.arange(shares.shape[0], dtype=jnp.int32) < num_active
    shares = jnp.where(active_mask, shares, 0.0)
    relative = _relative(shares)
    # uint32 holds n x maximum even where it exceeds int32.
    target = jnp.minimum(total.astype(jnp.uint32), num_active.astype(jnp.uint32) * np.uint32(maximum))
    fits = target >= num_active.astype(jnp.uint32) * np.uint32(minimum)
    found, grows, left = _webster(relative, active_mask, target, minimum, maximum)
    # Where not even the minimum fits, the entities with the largest shares get it.
    least = np.uint32(max(minimum, 1))
    served = largest(
        shares, jnp.where(fits, grows, active_mask), jnp.where(fits, left, (target // least).astype(jnp.int32))
    )
    short = jnp.where(served, max(minimum, 1), jnp.where(_next(shares, active_mask & ~served), target % least, 0))
    # `largest` compares the shares themselves, because relative shares below the floor are all equal.
    return jnp.where(fits, found + served.astype(jnp.int32), short.astype(jnp.int32))


def _relative(shares: jax.Array) -> jax.Array:
    """Shares divided by the largest one, at least LEAST_SHARE; all ones if every share is 0."""
    top = shares.max()
    relative = jnp.where(top > 0, shares / jnp.where(top > 0, top, 1.0), 1.0)
    return jnp.maximum(relative, np.float32(LEAST_SHARE))


def _webster(
    relative: jax.Array, active_mask: jax.Array, target: jax.Array, minimum: int, maximum: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sizes at the multiplier, the mask of entities that grow just beyond it, and by how much the target is missed."""
    bits = _multiplier(relative, active_mask, target, minimum, maximum)
    sizes = _sizes_at(bits, relative, active_mask, minimum, maximum)
    grows = _sizes_at(jnp.minimum(bits + 1, _MAX_MULTIPLIER), relative, active_mask, minimum, maximum) > sizes
    return sizes, grows, (target - sizes.astype(jnp.uint32).sum()).astype(jnp.int32)


def _sizes_at(bits: jax.Array, relative: jax.Array, active_mask: jax.Array, minimum: int, maximum: int) -> jax.Array:
    multiplier = jax.lax.bitcast_convert_type(bits, jnp.float32)
    # Clip before the cast to integer: the result equals that of floor and clip, and infinity does no harm.
    return jnp.where(active_mask, jnp.clip(multiplier * relative + 0.5, minimum, maximum).astype(jnp.int32), 0)


class _Bracket(NamedTuple):
    """State of the search for the multiplier: sum_low <= target < sum_high."""

    number: jax.Array  # i32[], probes made
    low: jax.Array  # i32[], bit pattern of a multiplier whose sizes fit the target
    high: jax.Array  # i32[], bit pattern of a multiplier whose sizes exceed it
    sum_low: jax.Array  # u32[], sum of the sizes at `low`
    sum_high: jax.Array  # u32[], sum of the sizes at `high`


def _multiplier(
    relative: jax.Array, active_mask: jax.Array, target: jax.Array, minimum: int, maximum: int
) -> jax.Array:
    """Bits of a multiplier whose sizes add up to the target, or else of the largest whose sizes stay below it; i32[].

    An estimate from a sample of the entities brackets the multiplier. The search between the ends is the ITP method
    (Oliveira and Takahashi, ACM Transactions on Mathematical Software 47, 2020): it interpolates, moves the probe
    towards the middle so that both ends close in, and never moves it further from the middle than bisection affords.
    """
    num_active = active_mask.sum(dtype=jnp.uint32)
    guess = _sampled_multiplier(relative, num_active, target, minimum, maximum)

    def is_open(b: _Bracket) -> jax.Array:
        return (b.high - b.low > 1) & (b.sum_low != target)

    def step(b: _Bracket) -> _Bracket:
        about_guess = guess + (2 * b.number - 1) * _REACH
        probe = jnp.where(
            b.number < 2,
            about_guess,
            b.low + _itp(b.number, b.high - b.low, target - b.sum_low, b.sum_high - target),
        )
        probe = jnp.clip(probe, b.low + 1, b.high - 1)
        found = _sizes_at(probe, relative, active_mask, minimum, maximum).astype(jnp.uint32).sum()
        fits = found <= target
        low, high = jnp.where(fits, probe, b.low), jnp.where(fits, b.high, probe)
        return _Bracket(b.number + 1, low, high, jnp.where(fits, found, b.sum_low), jnp.where(fits, b.sum_high, found))

    ends = (jnp.int32(0), jnp.int32(_MAX_MULTIPLIER + 1))
    sums = (num_active * np.uint32(minimum), num_active * np.uint32(maximum) + 1)
    return jax.lax.while_loop(is_open, step, _Bracket(jnp.int32(0), *ends, *sums)).low


def _sampled_multiplier(
    relative: jax.Array, num_active: jax.Array, target: jax.Array, minimum: int, maximum: int
) -> jax.Array:
    """Bits of the multiplier that would be right if evenly spaced entities stood for all of them; i32[]."""
    n = relative.shape[0]
    count = min(n, _SAMPLE)
    spaced = (jnp.arange(count, dtype=jnp.float32) + 0.5) * (num_active.astype(jnp.float32) / count)
    sample = relative[jnp.clip(spaced.astype(jnp.int32), 0, n - 1)]
    wanted = target.astype(jnp.float32) * (count / jnp.maximum(num_active, 1).astype(jnp.float32))

    def halve(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = low + (high - low + 1) // 2
        multiplier = jax.lax.bitcast_convert_type(middle, jnp.float32)
        fits = jnp.clip(multiplier * sample, minimum, maximum).sum() <= wanted
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle - 1)

    return jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(_MAX_MULTIPLIER)))[0]


def _itp(number: jax.Array, width: jax.Array, below: jax.Array, beyond: jax.Array) -> jax.Array:
    """Distance of the next probe from the lower end of a bracket; i32[].

    Args:
      number: i32[], probes made so far.
      width: i32[], width of the bracket in bit patterns.
      below: u32[], by how many parameters the sum at the lower end stays below the target.
      beyond: u32[], by how many parameters the sum at the upper end exceeds it.
    """
    width, below, beyond = (x.astype(jnp.float32) for x in (width, below, beyond))
    half = width / 2
    interpolated = width * (below / (below + beyond))
    # The error of interpolation is about the square of the bracket's relative width.
    towards = jnp.minimum(1 + width * width * 2.0**-23, jnp.abs(half - interpolated))
    moved = interpolated + jnp.sign(half - interpolated) * towards
    slack = jnp.maximum(2.0 ** (34 - number.astype(jnp.float32)) - half, 0.0)
    return jnp.clip(moved, half - slack, half + slack).astype(jnp.int32)


def _next(shares: jax.Array, eligible: jax.Array) -> jax.Array:
    """Mask of the eligible entity with the largest share, the first of equal ones."""
    bits = jnp.where(eligible, jax.lax.bitcast_convert_type(shares, jnp.int32), -1)
    return eligible & (jnp.arange(bits.shape[0]) == jnp.argmax(bits))
