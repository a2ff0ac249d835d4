"""Expected shares of a budget by rank: closed forms for the size distributions of SCALL and BET.

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

from scall_jax.sizes.checks import is_traced

FAMILIES = ("powerlaw", "pareto", "truncnorm", "truncexp", "lognormal")
"""Names of the distributions that `expected_shares` knows."""

_SHIFT = 8  # factors of the Gamma ratio taken exactly before its asymptotic expansion


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
    total = raw.sum()
    uniform = jnp.where(active_mask, 1.0 / count, 0.0)
    return jnp.where(total > 0, raw / jnp.where(total > 0, total, 1.0), uniform)


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
    return capacity


def _gamma_ratio(z: jax.Array, s: jax.Array, z_max: jax.Array) -> jax.Array:
    """Γ(z+s)/Γ(z) relative to its value at `z_max`, for z >= 1 and -1 < s <= 10, in float32.

    Γ(z+s)/Γ(z) = Π_{i<m} (z+i)/(z+s+i) · Γ(z+m+s)/Γ(z+m), and with w = z + m + (s-1)/2 the last ratio is
    w^s Σ_k C(s, 2k) B_2k^(1+s)((1+s)/2) w^-2k (Fields 1966, after Tricomi and Erdélyi 1951), B the generalised
    Bernoulli polynomials; the error of four terms is below the precision of float32. Working relative to z_max keeps
    the exponent small.
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
    return -jnp.log1p((1 - upper) * jnp.expm1(-rate)) / rate


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
