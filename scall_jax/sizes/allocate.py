"""Shares and a total to integer sizes: exact sum, bounds and order, on device in 32 bits or on the host in 64.

The rule is the divisor method of Webster and Sainte-Laguë with bounds: sizes are clip(⌊λp + ½⌋, d_min, d_max) for
the multiplier λ that makes them add up to the total. Its sizes are monotone in the share (a more frequent entity never
gets less) and, unlike largest remainder, monotone in the total: a larger budget never shrinks an entity. λ is
found by a bracketing search over the bit patterns of floating-point numbers, a search in log space, which ends at sizes
that add up exactly or at two neighbouring numbers between which the total is crossed; the few entities that grow
exactly there share what is left in descending order of share. Only where to look next is worked out in floating point.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

DEVICE_LIMIT = 2**31 - 1
_FLOOR = 2.0**-60  # shares are relative to the largest; smaller ones count as this, so that any total is reachable
_MAX_MULTIPLIER = np.float32(np.finfo(np.float32).max).view(np.int32)
_SAMPLE = 2048  # entities from which the multiplier is estimated
_REACH = 2**17  # how far the estimate is trusted, in bit patterns: 2^23 are a factor of 2
_BLOCK = 1024


def allocate(shares, total, minimum: int = 1, maximum: int = 256, num_active=None) -> jax.Array | np.ndarray:
    """Integer sizes that add up to min(total, n x maximum) exactly.

    Args:
      shares: f32[n], non-negative, in any order; need not be normalised. All zeros count as all equal.
      total: parameters to give out, i32[] >= 0; may be traced.
      minimum, maximum: bounds of a size, static.
      live: optional i32[], entities that exist out of the capacity n; those beyond get 0. May be traced.

    Returns:
      i32[n] with minimum <= size <= maximum. Entities with a larger share never get less; equal shares are
      served by index. If total < n x minimum, the total // minimum entities with the largest shares get the minimum,
      the next one the remainder, the others 0. A total beyond 2^31 - 1, or n x maximum beyond 2^32 - 1, is
      worked out on the host: int64[n] as a numpy array.

    Raises:
      ValueError: bounds out of order; concrete shares negative, NaN or infinite; concrete total negative; traced
      arguments
        that need the host.
    """
    check_arguments(shares, total, minimum, maximum, num_active)
    n = np.shape(shares)[0]
    traced = any(isinstance(x, jax.core.Tracer) for x in (shares, total, num_active))
    beyond = n * maximum > 2**32 - 1 or maximum > 2**22
    beyond = beyond or (not isinstance(total, jax.core.Tracer) and int(total) > DEVICE_LIMIT)
    if beyond and traced:
        raise ValueError(
            f"{n} entities with sizes up to {maximum} need 64-bit sums: call allocate outside jit, or lower maximum"
        )
    if beyond:
        return allocate_host(shares, int(total), minimum, maximum, num_active)
    num_active = n if num_active is None else num_active
    shares = jnp.asarray(shares, jnp.float32)
    return _allocate(shares, jnp.asarray(total, jnp.int32), jnp.asarray(num_active, jnp.int32), minimum, maximum)


def check_arguments(shares, total, minimum, maximum, num_active) -> None:
    """Raise ValueError for what `allocate` and `sample` cannot take."""
    if np.ndim(shares) != 1 or np.shape(shares)[0] < 1:
        raise ValueError(f"shares of shape {np.shape(shares)}: must be a vector with at least one entity")
    if not 0 <= minimum <= maximum or maximum < 1:
        raise ValueError(f"minimum={minimum}, maximum={maximum}: need 0 <= minimum <= maximum and maximum >= 1")
    if not isinstance(shares, jax.core.Tracer):
        values = np.asarray(shares)
        bad = ~np.isfinite(values) | (values < 0)
        if bad.any():
            at = int(np.argmax(bad))
            raise ValueError(
                f"shares[{at}]={values[at]} ({int(bad.sum())} such): shares must be finite and not negative"
            )
    if not isinstance(total, jax.core.Tracer) and int(total) < 0:
        raise ValueError(f"total={int(total)}: a budget cannot be negative")
    if (
        num_active is not None
        and not isinstance(num_active, jax.core.Tracer)
        and not 0 <= int(num_active) <= np.shape(shares)[0]
    ):
        raise ValueError(f"num_active={int(num_active)}: must lie between 0 and the capacity {np.shape(shares)[0]}")


@functools.partial(jax.jit, static_argnames=("minimum", "maximum"))
def _allocate(shares, total, num_active, minimum, maximum):
    active_mask = jnp.arange(shares.shape[0], dtype=jnp.int32) < num_active
    shares = jnp.where(active_mask, shares, 0.0)
    relative = _relative(shares)
    # uint32 holds n x maximum even where it exceeds int32
    target = jnp.minimum(total.astype(jnp.uint32), num_active.astype(jnp.uint32) * np.uint32(maximum))
    fits = target >= num_active.astype(jnp.uint32) * np.uint32(minimum)
    # where not even the minimum fits, the first entities by share get it
    found, grows, left = _webster(relative, active_mask, target, minimum, maximum)
    least = np.uint32(max(minimum, 1))
    served = largest(
        shares, jnp.where(fits, grows, active_mask), jnp.where(fits, left, (target // least).astype(jnp.int32))
    )
    short = jnp.where(served, max(minimum, 1), jnp.where(_next(shares, active_mask & ~served), target % least, 0))
    # by the shares themselves: relative ones are equal from the floor down
    return jnp.where(fits, found + served, short.astype(jnp.int32))


def _relative(shares):
    largest = shares.max()
    relative = jnp.where(largest > 0, shares / jnp.where(largest > 0, largest, 1.0), 1.0)
    return jnp.maximum(relative, np.float32(_FLOOR))


def _webster(relative, active_mask, target, minimum, maximum):
    """Sizes at the multiplier, which entities grow beyond it, and by how many the target is missed."""
    bits = _multiplier(relative, active_mask, target, minimum, maximum)
    sizes = _sizes_at(bits, relative, active_mask, minimum, maximum)
    grows = _sizes_at(jnp.minimum(bits + 1, _MAX_MULTIPLIER), relative, active_mask, minimum, maximum) > sizes
    return sizes, grows, (target - sizes.astype(jnp.uint32).sum()).astype(jnp.int32)


def _sizes_at(bits, relative, active_mask, minimum, maximum):
    multiplier = jax.lax.bitcast_convert_type(bits, jnp.float32)
    # clipped before it is cut to an integer: the same as floor and then clip, and infinity is no problem
    return jnp.where(active_mask, jnp.clip(multiplier * relative + 0.5, minimum, maximum).astype(jnp.int32), 0)


def _multiplier(relative, active_mask, target, minimum, maximum):
    """Bits of a multiplier whose sizes add up to the target, or else of the largest whose sizes stay below it; i32[].

    A sample of the entities brackets it; the search between the ends is the method ITP (Oliveira and Takahashi, ACM
    Transactions on Mathematical Software 47, 2020): interpolation, moved towards the middle so that both ends close
    in, and never further from the middle than bisection can afford.
    """
    num_active = active_mask.sum(dtype=jnp.uint32)
    guess = _sampled_multiplier(relative, num_active, target, minimum, maximum)

    def open_(carry):
        _, low, high, sum_low, _ = carry
        return (high - low > 1) & (sum_low != target)

    def step(carry):
        number, low, high, sum_low, sum_high = carry  # sum_low <= target < sum_high
        about_guess = guess + (2 * number - 1) * _REACH
        probe = jnp.where(number < 2, about_guess, low + _itp(number, high - low, target - sum_low, sum_high - target))
        probe = jnp.clip(probe, low + 1, high - 1)
        found = _sizes_at(probe, relative, active_mask, minimum, maximum).astype(jnp.uint32).sum()
        fits = found <= target
        low, high = jnp.where(fits, probe, low), jnp.where(fits, high, probe)
        return number + 1, low, high, jnp.where(fits, found, sum_low), jnp.where(fits, sum_high, found)

    ends = (jnp.int32(0), jnp.int32(_MAX_MULTIPLIER + 1))
    sums = (num_active * np.uint32(minimum), num_active * np.uint32(maximum) + 1)
    return jax.lax.while_loop(open_, step, (jnp.int32(0), *ends, *sums))[1]


def _sampled_multiplier(relative, num_active, target, minimum, maximum):
    """Bits of the multiplier that would do if evenly spaced entities stood for all; i32[]."""
    n = relative.shape[0]
    count = min(n, _SAMPLE)
    spaced = (jnp.arange(count, dtype=jnp.float32) + 0.5) * (num_active.astype(jnp.float32) / count)
    sample = relative[jnp.clip(spaced.astype(jnp.int32), 0, n - 1)]
    wanted = target.astype(jnp.float32) * (count / jnp.maximum(num_active, 1).astype(jnp.float32))

    def halve(_, bracket):
        low, high = bracket
        middle = low + (high - low + 1) // 2
        multiplier = jax.lax.bitcast_convert_type(middle, jnp.float32)
        fits = jnp.clip(multiplier * sample, minimum, maximum).sum() <= wanted
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle - 1)

    return jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(_MAX_MULTIPLIER)))[0]


def _itp(number, width, below, beyond):
    """Where to probe a bracket of a width after `number` probes, from the target's distances to its ends; i32[]."""
    width, below, beyond = (x.astype(jnp.float32) for x in (width, below, beyond))
    half = width / 2
    interpolated = width * (below / (below + beyond))
    # interpolation is off by about the square of the bracket's relative width
    towards = jnp.minimum(1 + width * width * 2.0**-23, jnp.abs(half - interpolated))
    moved = interpolated + jnp.sign(half - interpolated) * towards
    slack = jnp.maximum(2.0 ** (34 - number.astype(jnp.float32)) - half, 0.0)
    return jnp.clip(moved, half - slack, half + slack).astype(jnp.int32)


def _next(shares, eligible):
    """Mask of the eligible entity with the largest share, the first of equal ones."""
    bits = jnp.where(eligible, jax.lax.bitcast_convert_type(shares, jnp.int32), -1)
    return eligible & (jnp.arange(bits.shape[0]) == jnp.argmax(bits))


def largest(values, eligible, count):
    """Mask of the `count` largest eligible values, ties to lower indices, without sorting.

    The threshold is found by bisection over the bit patterns of the (non-negative) values, which order as they do.
    """
    bits = jnp.where(eligible, jax.lax.bitcast_convert_type(values, jnp.int32), -1)

    def open_(bracket):
        low, high, above = bracket
        return (low < high) & (above != count)

    def halve(bracket):
        low, high, above = bracket  # `above` values, at most `count`, lie above `high`; more than `count` above low - 1
        middle = low + (high - low) // 2
        found = (bits > middle).sum(dtype=jnp.int32)
        few = found <= count
        return jnp.where(few, low, middle + 1), jnp.where(few, middle, high), jnp.where(few, found, above)

    least = jnp.where(eligible, bits, _MAX_MULTIPLIER).min()
    _, threshold, above = jax.lax.while_loop(open_, halve, (least, bits.max(), jnp.int32(0)))
    return (bits > threshold) | _first(eligible & (bits == threshold), count - above)


def _first(mask, count):
    """The first `count` true entries of a mask."""
    n = mask.shape[0]
    blocks = jnp.pad(mask, (0, -n % _BLOCK)).reshape(-1, _BLOCK)
    up_to = jnp.cumsum(blocks.sum(1, dtype=jnp.int32))
    whole = jnp.minimum((up_to <= count).sum(dtype=jnp.int32), blocks.shape[0] - 1)
    block = blocks[whole].astype(jnp.int32)
    before = up_to[whole] - block.sum()
    end = whole * _BLOCK + (before + jnp.cumsum(block) <= count).sum(dtype=jnp.int32)
    return mask & (jnp.arange(n, dtype=jnp.int32) < end)


def allocate_host(shares, total: int, minimum: int, maximum: int, num_active=None) -> np.ndarray:
    """`allocate` in float64 and int64 on the host, for totals and tables beyond 32 bits; int64[n]."""
    shares = np.asarray(shares, np.float64)
    num_active = len(shares) if num_active is None else int(num_active)
    sizes = np.zeros(len(shares), np.int64)
    if num_active == 0:
        return sizes
    shares = shares[:num_active]
    relative = shares / shares.max() if shares.max() > 0 else np.ones(num_active)
    relative = np.maximum(relative, _FLOOR)
    total = min(total, num_active * maximum)
    if total < num_active * minimum:
        order = np.argsort(-shares, kind="stable")
        sizes[order[: total // minimum]] = minimum
        sizes[order[total // minimum]] = total % minimum
        return sizes
    sizes[:num_active] = _webster_host(shares, relative, total, minimum, maximum)
    return sizes


def _webster_host(shares, relative, total, minimum, maximum):
    def sizes_at(bits):
        with np.errstate(over="ignore"):
            real = np.floor(np.int64(bits).view(np.float64) * relative + 0.5)
        return np.clip(real, minimum, maximum).astype(np.int64)

    low, high = 0, int(np.float64(np.finfo(np.float64).max).view(np.int64))
    top = high
    while low < high:
        middle = low + (high - low + 1) // 2
        if sizes_at(middle).sum() <= total:
            low = middle
        else:
            high = middle - 1
    sizes = sizes_at(low)
    grows = np.flatnonzero(sizes_at(min(low + 1, top)) > sizes)
    left = total - sizes.sum()
    sizes[grows[np.argsort(-shares[grows], kind="stable")[:left]]] += 1
    return sizes
