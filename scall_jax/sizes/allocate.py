"""Shares and a total to integer sizes: exact sum, bounds and order, on device in 32 bits or on the host in 64.

The rule is the divisor method of Webster and Sainte-Laguë with bounds: sizes are clip(⌊λp + ½⌋, d_min, d_max) for
the multiplier λ that makes them add up to the total. Its sizes are monotone in the share (a more frequent entity never
gets less) and, unlike largest remainder, monotone in the total: a larger budget never shrinks an entity. λ is
found by bisection over the bit patterns of floating-point numbers, which is a bisection in log space and ends, after
one step per bit, at two neighbouring numbers between which the total is crossed; the few entities that
grow exactly there share what is left in descending order of share. No step sums in floating point.
"""

import jax
import jax.numpy as jnp
import numpy as np

DEVICE_LIMIT = 2**31 - 1
_FLOOR = 2.0**-60  # shares are relative to the largest; smaller ones count as this, so that any total is reachable
_MAX_MULTIPLIER = np.float32(np.finfo(np.float32).max).view(np.int32)


def allocate(shares, total, minimum: int = 1, maximum: int = 256, live=None) -> jax.Array | np.ndarray:
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
    check_arguments(shares, total, minimum, maximum, live)
    n = np.shape(shares)[0]
    traced = any(isinstance(x, jax.core.Tracer) for x in (shares, total, live))
    beyond = n * maximum > 2**32 - 1 or maximum > 2**22
    beyond = beyond or (not isinstance(total, jax.core.Tracer) and int(total) > DEVICE_LIMIT)
    if beyond and traced:
        raise ValueError(
            f"{n} entities with sizes up to {maximum} need 64-bit sums: call allocate outside jit, or lower maximum"
        )
    if beyond:
        return allocate_host(shares, int(total), minimum, maximum, live)
    live = n if live is None else live
    shares = jnp.asarray(shares, jnp.float32)
    return _allocate(shares, jnp.asarray(total, jnp.int32), jnp.asarray(live, jnp.int32), minimum, maximum)


def check_arguments(shares, total, minimum, maximum, live) -> None:
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
    if live is not None and not isinstance(live, jax.core.Tracer) and not 0 <= int(live) <= np.shape(shares)[0]:
        raise ValueError(f"live={int(live)}: must lie between 0 and the capacity {np.shape(shares)[0]}")


def _allocate(shares, total, live, minimum, maximum):
    alive = jnp.arange(shares.shape[0], dtype=jnp.int32) < live
    shares = jnp.where(alive, shares, 0.0)
    relative = _relative(shares)
    # uint32 holds n x maximum even where it exceeds int32
    target = jnp.minimum(total.astype(jnp.uint32), live.astype(jnp.uint32) * np.uint32(maximum))
    fits = target >= live.astype(jnp.uint32) * np.uint32(minimum)
    return jax.lax.cond(
        fits,
        lambda: _webster(shares, relative, alive, target, minimum, maximum),
        lambda: _minimum_only(shares, alive, target, minimum),
    )


def _relative(shares):
    largest = shares.max()
    relative = jnp.where(largest > 0, shares / jnp.where(largest > 0, largest, 1.0), 1.0)
    return jnp.maximum(relative, np.float32(_FLOOR))


def _webster(shares, relative, alive, target, minimum, maximum):
    def sizes_at(bits):
        multiplier = jax.lax.bitcast_convert_type(bits, jnp.float32)
        size = jnp.clip(jnp.floor(multiplier * relative + 0.5), minimum, maximum).astype(jnp.int32)
        return jnp.where(alive, size, 0)

    def halve(_, bracket):
        low, high = bracket  # sum at low <= target, sum beyond high is not needed
        middle = low + (high - low + 1) // 2
        fits = sizes_at(middle).astype(jnp.uint32).sum() <= target
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle - 1)

    start = (jnp.int32(0), jnp.int32(_MAX_MULTIPLIER))
    bits, _ = jax.lax.fori_loop(0, 31, halve, start)
    sizes = sizes_at(bits)
    grows = sizes_at(jnp.minimum(bits + 1, _MAX_MULTIPLIER)) > sizes
    left = (target - sizes.astype(jnp.uint32).sum()).astype(jnp.int32)
    # by the shares themselves: relative ones are equal from the floor down
    return sizes + largest(shares, grows, left).astype(jnp.int32)


def _minimum_only(shares, alive, target, minimum):
    minimum = max(minimum, 1)
    full = (target // np.uint32(minimum)).astype(jnp.int32)
    rest = (target % np.uint32(minimum)).astype(jnp.int32)
    served = largest(shares, alive, full)
    with_next = largest(shares, alive, full + 1)
    return jnp.where(served, minimum, jnp.where(with_next, rest, 0)).astype(jnp.int32)


def largest(values, eligible, count):
    """Mask of the `count` largest eligible values, ties to lower indices, without sorting.

    The threshold is found by bisection over the bit patterns of the (non-negative) values, which order as they do.
    """
    bits = jnp.where(eligible, jax.lax.bitcast_convert_type(values, jnp.int32), -1)

    def halve(_, bracket):
        low, high = bracket  # smallest threshold above which at most `count` values lie
        middle = low + (high - low) // 2
        few = (bits > middle).sum(dtype=jnp.int32) <= count
        return jnp.where(few, low, middle + 1), jnp.where(few, middle, high)

    threshold, _ = jax.lax.fori_loop(0, 32, halve, (jnp.int32(0), jnp.int32(_MAX_MULTIPLIER)))
    above = bits > threshold
    tied = bits == threshold
    room = count - above.sum(dtype=jnp.int32)
    return above | (tied & (jnp.cumsum(tied, dtype=jnp.int32) <= room))


def allocate_host(shares, total: int, minimum: int, maximum: int, live=None) -> np.ndarray:
    """`allocate` in float64 and int64 on the host, for totals and tables beyond 32 bits; int64[n]."""
    shares = np.asarray(shares, np.float64)
    live = len(shares) if live is None else int(live)
    sizes = np.zeros(len(shares), np.int64)
    if live == 0:
        return sizes
    shares = shares[:live]
    relative = shares / shares.max() if shares.max() > 0 else np.ones(live)
    relative = np.maximum(relative, _FLOOR)
    total = min(total, live * maximum)
    if total < live * minimum:
        order = np.argsort(-shares, kind="stable")
        sizes[order[: total // minimum]] = minimum
        sizes[order[total // minimum]] = total % minimum
        return sizes
    sizes[:live] = _webster_host(shares, relative, total, minimum, maximum)
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
