"""Shares of a budget by rank: closed forms for the size distributions of SCALL and BET, and powers of a frequency.

SCALL (arXiv 2407.15411, section on size sampling) draws n numbers from a distribution, sorts them in descending order,
divides by their sum, and averages 100 such draws. This module computes the expected order statistics divided by their
sum, for which closed forms exist, and samples nothing. The two agree where the sum hardly varies. They differ for
Pareto shapes near 1, where one draw can be most of the sum and the largest shares come out larger here.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from scall_jax.ops.sums import padded_sum
from scall_jax.sizes.checks import LEAST_SHARE, is_traced

FAMILIES = ("powerlaw", "pareto", "truncnorm", "truncexp", "lognormal")
"""Names of the distributions that `expected_shares` knows."""

MOST_POWER = 64.0
"""Largest power of `power_shares`."""

_SHIFT = 8  # factors of the Gamma ratio taken exactly before its asymptotic expansion
_LEAST_POWERLAW = 0.1  # shape of a power law, from which on the closed form holds
_HEADROOM = 4  # powers of two above the share of the largest size, beyond which shares need not be told apart


def expected_shares(family: str, shape: chex.Numeric, n: chex.Numeric, capacity: int | None = None) -> jax.Array:
    """Expected share of the budget by rank, largest first.

    Power law and Pareto shares are exact expectations of the order statistics (David and Nagaraja, Order Statistics,
    2003): E[k-th largest] ∝ Γ(n-k+1+1/a)/Γ(n-k+1) and Γ(k-1/b)/Γ(k). The others are quantiles at (n-k+1/2)/n.

    Args:
      family: one of `FAMILIES`. `powerlaw`: density a x^(a-1) on [0, 1]; `pareto`: density b x^(-b-1) on [1, inf),
        b > 1; `truncnorm`: mean 1/n and standard deviation `shape`, truncated to [0, 1]; `truncexp`: density
        proportional to exp(-shape x) on [0, 1]; `lognormal`: log x has standard deviation `shape`.
      shape: f32[], positive (a, b, standard deviation, rate, sigma); may be traced.
      n: i32[], number of entities; may be traced when `capacity` is given.
      capacity: static length of the result, n by default. Ranks from n on get share 0.

    Returns:
      f32[capacity], descending, summing to 1.

    Raises:
      ValueError: unknown family, or a concrete shape or n out of range.

    >>> print((6 * expected_shares("powerlaw", 1.0, n=3, capacity=4)).round())
    [3. 2. 1. 0.]
    """
    length = _check(family, shape, n, capacity)
    chex.assert_rank([shape, n], 0)
    chex.assert_type(n, int)
    rank = jnp.arange(1, length + 1, dtype=jnp.float32)
    shape = jnp.asarray(shape, jnp.float32)
    count = jnp.asarray(n, jnp.float32)
    active_mask = rank <= count
    rank = jnp.minimum(rank, count)
    raw = _RAW[family](shape, rank, count)
    # The running minimum undoes what rounding may do to the order.
    raw = jax.lax.cummin(jnp.where(active_mask, raw, jnp.inf))
    raw = jnp.where(active_mask, raw, 0.0)
    total = padded_sum(raw)
    uniform = jnp.where(active_mask, 1.0 / count, 0.0)
    return jnp.where(total > 0, raw / jnp.where(total > 0, total, 1.0), uniform)


def power_shares(
    frequency: jax.Array,
    power: chex.Numeric,
    total: chex.Numeric,
    bounds: tuple[int, int],
    num_active: chex.Numeric | None = None,
) -> jax.Array:
    """Shares proportional to frequency^power, for `allocate` with the same total and bounds.

    At large powers shares lie hundreds of powers of two apart, which float32 cannot hold, while the entities whose
    sizes lie between the bounds are always within a few of each other. So logarithms are taken relative to an entity
    at the largest size, and shares far above it, which get the largest size in any case, are all made equal.

    Args:
      frequency: i32[n] >= 0, descending.
      power: 0 to `MOST_POWER`; a traced one is not checked.
      total: i32[], parameters that the shares are for.
      bounds: static (minimum, maximum) of a size, in parameters.
      num_active: i32[], entities that exist, the first ones; None for all.

    Returns:
      f32[n], descending and finite, 0 where the frequency is 0; equal frequencies have equal shares.

    Raises:
      ValueError: the power is out of its range.

    >>> power_shares(jnp.array([8, 4, 4, 0]), 2.0, jnp.int32(10), (1, 8)).tolist()
    [1.0, 0.25, 0.25, 0.0]
    """
    if not is_traced(power) and not 0 <= power <= MOST_POWER:
        raise ValueError(f"power={power}: must lie between 0 and {MOST_POWER:g}")
    chex.assert_rank([frequency, total], [1, 0])
    chex.assert_type([frequency, total], int)
    positive = frequency > 0
    top = jnp.maximum(frequency.max(), 1).astype(jnp.float32)
    exponent = power * jnp.log2(jnp.maximum(frequency, 1).astype(jnp.float32) / top)
    # The running minimum undoes what rounding may do to the order.
    exponent = jax.lax.cummin(jnp.where(positive, exponent, -jnp.inf))
    least = jnp.where(positive, exponent, 0.0).min()
    active_mask = jnp.arange(frequency.shape[0]) < (frequency.shape[0] if num_active is None else num_active)

    def at_maximum():
        return _exponent_at_maximum(exponent, least, jnp.asarray(total), bounds, active_mask)

    # `allocate` tells shares apart that are at most LEAST_SHARE of the largest.
    pivot = jax.lax.cond(least >= 1 + np.log2(LEAST_SHARE), lambda: jnp.int32(-_HEADROOM), at_maximum)
    return jnp.exp2(jnp.minimum(exponent - pivot.astype(jnp.float32), _HEADROOM) - _HEADROOM)


def _exponent_at_maximum(
    exponent: jax.Array, least: jax.Array, total: jax.Array, bounds: tuple[int, int], active_mask: jax.Array
) -> jax.Array:
    """The least exponent that gets the largest size, i32[], rounded up: found by bisection, with integer sums."""
    minimum, maximum = bounds

    def fits(pivot: jax.Array) -> jax.Array:
        real = maximum * jnp.exp2(jnp.minimum(exponent - pivot.astype(jnp.float32), 0.0))
        own = jnp.where(active_mask, jnp.maximum(real.astype(jnp.uint32), minimum), 0).astype(jnp.uint32)
        return own.sum() <= total.astype(jnp.uint32)

    def halve(bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = low + (high - low) // 2
        fitting = fits(middle)
        return jnp.where(fitting, low, middle + 1), jnp.where(fitting, middle, high)

    ends = jnp.floor(least).astype(jnp.int32), jnp.int32(np.ceil(np.log2(maximum)) + 1)
    return jax.lax.while_loop(lambda bracket: bracket[0] < bracket[1], halve, ends)[1]


def _check(family: str, shape: chex.Numeric, n: chex.Numeric, capacity: int | None) -> int:
    """Length of the result; raises ValueError for what is out of range."""
    if family not in _RAW:
        raise ValueError(f"unknown family {family!r}: choose one of {', '.join(FAMILIES)}")
    if capacity is None:
        if is_traced(n):
            raise ValueError("n is traced: give capacity=, the static length of the result")
        capacity = int(n)
    if not is_traced(n) and np.ndim(n) == 0 and not 1 <= int(n) <= capacity:
        raise ValueError(f"n={int(n)} entities: must lie between 1 and the capacity {capacity}")
    if not is_traced(shape):
        least = 1.0 if family == "pareto" else 0.0
        if not np.all(np.isfinite(shape)) or np.any(np.asarray(shape) <= least):
            raise ValueError(f"shape={shape} of family {family!r}: must be finite and greater than {least:g}")
        if family == "powerlaw" and np.any(np.asarray(shape) < _LEAST_POWERLAW):
            raise ValueError(
                f"shape={shape} of family 'powerlaw': must be at least {_LEAST_POWERLAW:g}, where the first "
                "few entities have nearly everything"
            )
    return capacity


def _gamma_ratio(z: jax.Array, s: jax.Array, z_max: jax.Array) -> jax.Array:
    """Γ(z+s)/Γ(z) relative to its value at `z_max`, for z >= 1 and -1 < s <= 10, to 5e-6 in float32.

    Γ(z+s)/Γ(z) = Π_{i<m} (z+i)/(z+s+i) · Γ(z+m+s)/Γ(z+m), and with w = z + m + (s-1)/2 the last ratio is
    w^s Σ_k C(s, 2k) B_2k^(1+s)((1+s)/2) w^-2k (Fields 1966, after Tricomi and Erdélyi 1951), B the generalised
    Bernoulli polynomials; four terms are within 5e-6 where s is 10 and z is 1, and below the precision of float32 else.
    Working relative to z_max keeps the exponent small.
    """
    c2 = -s * (s * s - 1) / 24
    c4 = s * (s - 1) * (s - 2) * (s - 3) * (s + 1) * (5 * s + 7) / 5760
    c6 = -s * (s - 1) * (s - 2) * (s - 3) * (s - 4) * (s - 5) / 720
    c6 = c6 * (s + 1) * (35 * (s + 1) ** 2 + 42 * (s + 1) + 16) / 4032

    def parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        w = x + _SHIFT + (s - 1) / 2
        v = 1 / (w * w)
        # Each factor lies within [1/11, 1/(1+s)], so a product of eight stays within float32 without logarithms.
        head = [(x + i) / (x + s + i) for i in range(_SHIFT)]
        return w, functools.reduce(jnp.multiply, head) * (1 + v * (c2 + v * (c4 + v * c6)))

    w, factor = parts(z)
    w_max, factor_max = parts(z_max)
    return jnp.exp(s * jnp.log(w / w_max)) * (factor / factor_max)


def _powerlaw(a: jax.Array, rank: jax.Array, n: jax.Array) -> jax.Array:
    return _gamma_ratio(n - rank + 1, 1 / a, n)


def _pareto(b: jax.Array, rank: jax.Array, n: jax.Array) -> jax.Array:
    del n
    return _gamma_ratio(rank, -1 / b, jnp.ones_like(b))


def _upper_tail(rank: jax.Array, n: jax.Array) -> jax.Array:
    """Probability above the quantile of the k-th largest value, (k - 1/2)/n."""
    return (rank - 0.5) / n


def _truncnorm(sd: jax.Array, rank: jax.Array, n: jax.Array) -> jax.Array:
    mean = 1 / n
    below, above = ndtr(-mean / sd), ndtr(-(1 - mean) / sd)  # mass cut off on either side
    upper = _upper_tail(rank, n)
    mass = 1 - below - above
    high = -ndtri(above + upper * mass)
    low = ndtri(below + (1 - upper) * mass)
    z = jnp.where(upper < 0.5, high, low)
    return jnp.clip(mean + sd * z, 0.0, 1.0)


def _truncexp(rate: jax.Array, rank: jax.Array, n: jax.Array) -> jax.Array:
    upper = _upper_tail(rank, n)
    left = (1 - upper) * jnp.exp(-rate)
    # At a large rate log1p would be of -1 + upper, and upper may be far below float32's spacing at 1.
    return -jnp.where(rate > 1, jnp.log(upper + left), jnp.log1p((1 - upper) * jnp.expm1(-rate))) / rate


def _lognormal(sigma: jax.Array, rank: jax.Array, n: jax.Array) -> jax.Array:
    upper = _upper_tail(rank, n)
    largest = -ndtri(0.5 / n)
    return jnp.exp(sigma * (-ndtri(upper) - largest))


_RAW: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "powerlaw": _powerlaw,
    "pareto": _pareto,
    "truncnorm": _truncnorm,
    "truncexp": _truncexp,
    "lognormal": _lognormal,
}
