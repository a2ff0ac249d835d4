"""Expected shares of a budget by rank: closed forms for the size distributions of SCALL and BET.

SCALL (arXiv 2407.15411, section on size sampling) draws n numbers from a distribution, sorts them in descending
order, divides by their sum, and averages 100 such draws. Here are the expected order statistics divided by their sum,
for which closed forms exist: the same where the sum hardly varies, but not for Pareto shapes near 1, where one draw can
be most of it and the largest shares come out larger here. None of the functions samples.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

FAMILIES = ("powerlaw", "pareto", "truncnorm", "truncexp", "lognormal")

_SHIFT = 8  # factors taken exactly before the asymptotic expansion of the Gamma ratio


def expected_shares(family: str, shape: chex.Numeric, n: chex.Numeric, capacity: int | None = None) -> jax.Array:
    """Expected share of the budget by rank, largest first.

    Args:
      family: one of `FAMILIES`. `powerlaw`: density a x^(a-1) on [0, 1]; `pareto`: density b x^(-b-1) on
        [1, inf), b > 1; `truncnorm`: mean 1/n and standard deviation `shape`, truncated to [0, 1]; `truncexp`:
        density proportional to exp(-shape x) on [0, 1]; `lognormal`: log x has standard deviation `shape`.
      shape: f32[], positive (a, b, standard deviation, rate, sigma); may be traced.
      n: number of entities, i32[]; may be traced when `capacity` is given.
      capacity: static length of the result; defaults to n. Ranks from n on get share 0.

    Returns:
      f32[capacity], descending, summing to 1. Power law and Pareto are exact expectations of the order statistics,
      E[k-th largest] ∝ Γ(n-k+1+1/a)/Γ(n-k+1) and Γ(k-1/b)/Γ(k); the others are quantiles at (n-k+1/2)/n.

    Raises:
      ValueError: unknown family, or a concrete shape or n out of range.
    """
    capacity = _check(family, shape, n, capacity)
    rank = jnp.arange(1, capacity + 1, dtype=jnp.float32)
    shape = jnp.asarray(shape, jnp.float32)
    live_count = jnp.asarray(n, jnp.float32)
    num_active = rank <= live_count
    rank = jnp.minimum(rank, live_count)
    raw = _RAW[family](shape, rank, live_count)
    raw = jax.lax.cummin(jnp.where(num_active, raw, jnp.inf))  # rounding must not disturb the order
    raw = jnp.where(num_active, raw, 0.0)
    total = raw.sum()
    uniform = jnp.where(num_active, 1.0 / live_count, 0.0)
    return jnp.where(total > 0, raw / jnp.where(total > 0, total, 1.0), uniform)


def _check(family, shape, n, capacity):
    if family not in _RAW:
        raise ValueError(f"unknown family {family!r}: choose one of {', '.join(FAMILIES)}")
    if capacity is None:
        if isinstance(n, jax.core.Tracer):
            raise ValueError("n is traced: give capacity=, the static length of the result")
        capacity = int(n)
    if not isinstance(n, jax.core.Tracer) and np.ndim(n) == 0 and not 1 <= int(n) <= capacity:
        raise ValueError(f"n={int(n)} entities: must lie between 1 and the capacity {capacity}")
    if not isinstance(shape, jax.core.Tracer):
        least = 1.0 if family == "pareto" else 0.0
        if not np.all(np.isfinite(shape)) or np.any(np.asarray(shape) <= least):
            raise ValueError(f"shape={shape} of family {family!r}: must be finite and greater than {least:g}")
    return capacity


def _gamma_ratio(z: jax.Array, s: jax.Array, z_max: jax.Array) -> jax.Array:
    """Γ(z+s)/Γ(z) relative to its value at `z_max`, for z >= 1 and -1 < s <= 10, in float32.

    Γ(z+s)/Γ(z) = Π_{i<m} (z+i)/(z+s+i) · Γ(z+m+s)/Γ(z+m), and with w = z + m + (s-1)/2 the last ratio is
    w^s Σ_k C(s, 2k) B_2k^(1+s)((1+s)/2) w^-2k (Fields 1966, after Tricomi and Erdélyi 1951), B the generalised
    Bernoulli
    polynomials; four terms leave less than float32 shows. Working relative to z_max keeps the exponent small.
    """
    c2 = -s * (s * s - 1) / 24
    c4 = s * (s - 1) * (s - 2) * (s - 3) * (s + 1) * (5 * s + 7) / 5760
    c6 = -s * (s - 1) * (s - 2) * (s - 3) * (s - 4) * (s - 5) / 720
    c6 = c6 * (s + 1) * (35 * (s + 1) ** 2 + 42 * (s + 1) + 16) / 4032

    def parts(x):
        w = x + _SHIFT + (s - 1) / 2
        v = 1 / (w * w)
        # each factor lies within [1/11, 1/(1+s)]: no product of eight leaves float32, and no logarithm is needed
        head = [(x + i) / (x + s + i) for i in range(_SHIFT)]
        return w, functools.reduce(jnp.multiply, head) * (1 + v * (c2 + v * (c4 + v * c6)))

    w, factor = parts(z)
    w_max, factor_max = parts(z_max)
    return jnp.exp(s * jnp.log(w / w_max)) * (factor / factor_max)


def _powerlaw(a, rank, n):
    return _gamma_ratio(n - rank + 1, 1 / a, n)


def _pareto(b, rank, n):
    del n
    return _gamma_ratio(rank, -1 / b, jnp.ones_like(b))


def _upper_tail(rank, n):
    """Probability above the k-th largest value's quantile, (k - 1/2)/n."""
    return (rank - 0.5) / n


def _truncnorm(sd, rank, n):
    mean = 1 / n
    below, above = ndtr(-mean / sd), ndtr(-(1 - mean) / sd)  # mass cut off on either side
    upper = _upper_tail(rank, n)
    mass = 1 - below - above
    high = -ndtri(above + upper * mass)
    low = ndtri(below + (1 - upper) * mass)
    z = jnp.where(upper < 0.5, high, low)
    return jnp.clip(mean + sd * z, 0.0, 1.0)


def _truncexp(rate, rank, n):
    upper = _upper_tail(rank, n)
    return -jnp.log1p((1 - upper) * jnp.expm1(-rate)) / rate


def _lognormal(sigma, rank, n):
    upper = _upper_tail(rank, n)
    largest = -ndtri(0.5 / n)
    return jnp.exp(sigma * (-ndtri(upper) - largest))


_RAW = {
    "powerlaw": _powerlaw,
    "pareto": _pareto,
    "truncnorm": _truncnorm,
    "truncexp": _truncexp,
    "lognormal": _lognormal,
}
