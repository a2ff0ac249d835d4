"""Random variates by rejection that are drawn for whole vectors at once: Gamma, Poisson and multinomial.

A multinomial of `total` draws is built from Poisson counts (Devroye, Non-Uniform Random Variate Generation, 1986,
XI.1): independent Poisson counts whose total has a mean slightly below `total` are, given their sum, multinomial; the
few missing draws are made one by one. The result is exact, O(n), and needs no binomial tree.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from scall_jax.ops.bisection import first_false
from scall_jax.ops.keys import Purpose, derive

_MARGIN = 4.0  # standard deviations by which the Poisson total stays below the multinomial's
_INVERSION = 12.0  # Poisson means up to here are inverted, larger ones drawn by rejection
_DRAWS = 4096  # single draws made at once
_CHUNK = 1024  # entries that a single draw searches after it has found their chunk


def log_gamma_variates(key: jax.Array, shape: jax.Array) -> jax.Array:
    """Logarithms of independent Gamma(shape, 1) variates.

    Marsaglia and Tsang (ACM Transactions on Mathematical Software 26, 2000): d v with v = (1 + x / sqrt(9 d))^3, x
    normal, accepted with a probability above 0.95; shapes below 1 by Gamma(shape + 1) U^(1/shape). All variates are
    drawn together, and refused ones are drawn again.

    Args:
      key: typed PRNG key.
      shape: f32[n], positive.

    Returns:
      f32[n].
    """
    chex.assert_type(shape, jnp.float32)
    boosted = jnp.where(shape < 1, shape + 1, shape)
    d = boosted - 1 / 3
    c = 1 / jnp.sqrt(9 * d)

    def again(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, pending, log = carry
        x = jax.random.normal(derive(key, Purpose.GAMMA_NORMAL, number), shape.shape)
        root = 1 + c * x
        v = jnp.where(root > 0, root, 1.0) ** 3
        u = jax.random.uniform(derive(key, Purpose.GAMMA_ACCEPT, number), shape.shape, minval=np.float32(1e-38))
        accepted = (root > 0) & (jnp.log(u) < 0.5 * x * x + d * (1 - v + jnp.log(v)))
        return number + 1, pending & ~accepted, jnp.where(pending, jnp.log(d) + jnp.log(v), log)

    start = (jnp.int32(0), jnp.ones(shape.shape, bool), jnp.zeros(shape.shape))
    _, _, log = jax.lax.while_loop(lambda carry: carry[1].any(), again, start)
    u = jax.random.uniform(derive(key, Purpose.GAMMA_BOOST), shape.shape, minval=np.float32(1e-38))
    return jnp.where(shape < 1, log + jnp.log(u) / shape, log)


def multinomial(key: jax.Array, total: jax.Array, p: jax.Array) -> jax.Array:
    """Counts of independent draws with the given probabilities.

    Args:
      key: typed PRNG key.
      total: i32[] >= 0, number of draws.
      p: f32[n], probabilities that add up to 1.

    Returns:
      i32[n], adding up to `total` exactly.

    >>> import jax, jax.numpy as jnp
    >>> int(multinomial(jax.random.key(0), jnp.int32(100), jnp.array([0.2, 0.8])).sum())
    100
    """
    chex.assert_rank([total, p], [0, 1])
    chex.assert_type([total, p], [jnp.int32, jnp.float32])
    real = total.astype(jnp.float32)
    mean = jnp.maximum(real - _MARGIN * jnp.sqrt(real) - 1, 0.0) * p

    def again(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
        number, _ = carry
        return number + 1, poisson(derive(key, Purpose.POISSON, number), mean)

    def too_many(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        # Refusal depends on the sum alone, so the counts stay multinomial given the sum.
        return carry[1].sum() > total

    counts = jax.lax.while_loop(too_many, again, again((jnp.int32(0), None)))[1]
    return _single_draws(key, counts, total - counts.sum(), p)


def poisson(key: jax.Array, mean: jax.Array) -> jax.Array:
    """Independent Poisson counts.

    Counts with small means are drawn by inversion of one uniform number, those with large means by transformed
    rejection (Hörmann's PTRS, Insurance: Mathematics and Economics 12, 1993).

    Args:
      key: typed PRNG key.
      mean: f32[n], not negative.

    Returns:
      i32[n].
    """
    chex.assert_type(mean, jnp.float32)
    small = mean < _INVERSION
    by_inversion = _poisson_inversion(derive(key, Purpose.POISSON_INVERSION), jnp.where(small, mean, 0.0))
    by_rejection = _poisson_rejection(key, jnp.where(small, _INVERSION, mean), ~small)
    return jnp.where(small, by_inversion, by_rejection)


class _Walk(NamedTuple):
    """State of the inversion: a walk along the Poisson probabilities."""

    k: jax.Array  # f32[], count that the walk has reached
    found: jax.Array  # i32[n], counts found
    term: jax.Array  # f32[n], probability of the count k
    below: jax.Array  # f32[n], probability of counts up to k; 2 ends the walk


def _poisson_inversion(key: jax.Array, mean: jax.Array) -> jax.Array:
    u = jax.random.uniform(key, mean.shape)

    def step(w: _Walk) -> _Walk:
        beyond = u >= w.below
        term = w.term * mean / (w.k + 1)
        # Rounding keeps the sum of all terms below 1, so a vanishing term ends the walk.
        found = w.found + (beyond & (term > 0)).astype(jnp.int32)
        return _Walk(w.k + 1, found, term, jnp.where(term > 1e-9, w.below + term, 2.0))

    first = jnp.exp(-mean)
    start = _Walk(jnp.float32(0), jnp.zeros(mean.shape, jnp.int32), first, jnp.where(mean > 0, first, 2.0))
    return jax.lax.while_loop(lambda w: (u >= w.below).any(), step, start).found


def _poisson_rejection(key: jax.Array, mean: jax.Array, wanted: jax.Array) -> jax.Array:
    log_mean = jnp.log(mean)
    b = 0.931 + 2.53 * jnp.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_r = 0.9277 - 3.6224 / (b - 2)

    def again(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, pending, count = carry
        u = jax.random.uniform(derive(key, Purpose.POISSON_PROPOSAL, number), mean.shape) - 0.5
        v = jax.random.uniform(derive(key, Purpose.POISSON_ACCEPT, number), mean.shape, minval=np.float32(1e-38))
        us = jnp.maximum(0.5 - jnp.abs(u), 1e-7)
        k = jnp.floor((2 * a / us + b) * u + mean + 0.43)
        quick = (us >= 0.07) & (v <= v_r)
        refused = (k < 0) | ((us < 0.013) & (v > us))
        left = jnp.log(v * inverse_alpha / (a / (us * us) + b))
        exact = left <= _log_poisson(jnp.maximum(k, 0.0), mean, log_mean)
        accepted = quick | (~refused & exact)
        return number + 1, pending & ~accepted, jnp.where(pending, k.astype(jnp.int32), count)

    start = (jnp.int32(0), wanted, jnp.zeros(mean.shape, jnp.int32))
    return jax.lax.while_loop(lambda carry: carry[1].any(), again, start)[2]


def _log_poisson(k: jax.Array, mean: jax.Array, log_mean: jax.Array) -> jax.Array:
    """Log probability of count k; for large k by Stirling's series around the mode, which avoids cancellation."""
    x = (k - mean) / mean
    # k log(mean) - mean - log k! = -mean ((1 + x) log(1 + x) - x) - log(2 pi k)/2 - 1/(12 k) + ...
    k_safe = jnp.maximum(k, 1.0)
    deviance = jnp.where(jnp.abs(x) < 0.1, _deviance_series(x), (1 + x) * jnp.log1p(x) - x)
    series = -mean * deviance - 0.5 * jnp.log(2 * np.pi * k_safe) - 1 / (12 * k_safe) + 1 / (360 * k_safe**3)
    return jnp.where(k >= 8, series, k * log_mean - mean - gammaln(k + 1))


def _deviance_series(x: jax.Array) -> jax.Array:
    """(1 + x) log(1 + x) - x for |x| < 0.1: sum over j >= 2 of (-x)^j / (j (j - 1))."""
    total = jnp.zeros_like(x)
    for j in range(9, 1, -1):
        total = 1 / (j * (j - 1)) - x * total
    return x * x * total


def _single_draws(key: jax.Array, counts: jax.Array, missing: jax.Array, p: jax.Array) -> jax.Array:
    """Counts with `missing` single draws added; two uniform numbers find a chunk of entries, then an entry in it."""
    n = p.shape[0]
    # Chunks of fixed length that are added up one after another, so that entries of 0 at the end change no draw.
    padded = jnp.pad(p, (0, -n % _CHUNK)).reshape(-1, _CHUNK)
    within = jnp.cumsum(padded, axis=1)
    _, across = jax.lax.scan(lambda total, x: (total + x, total + x), jnp.float32(0), within[:, -1])

    def draw(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, counts = carry
        u = jax.random.uniform(derive(key, Purpose.SINGLE_DRAW, number), (2, _DRAWS))
        at_chunk = jnp.searchsorted(across, u[0] * across[-1], side="right")
        at_chunk = jnp.minimum(at_chunk, across.shape[0] - 1)
        place = _search_rows(within, at_chunk, u[1] * within[at_chunk, -1])
        wanted = number * _DRAWS + jnp.arange(_DRAWS, dtype=jnp.int32) < missing
        at = jnp.where(wanted, at_chunk.astype(jnp.int32) * _CHUNK + place, n)
        return number + 1, counts.at[at].add(1, mode="drop")

    return jax.lax.while_loop(lambda c: c[0] * _DRAWS < missing, draw, (jnp.int32(0), counts))[1]


def _search_rows(ascending: jax.Array, row: jax.Array, value: jax.Array) -> jax.Array:
    """First place in each row of `ascending` f32[R, C] that exceeds its value; i32 of the shape of `row`."""
    length = ascending.shape[1]
    row, value = row[..., None], value[..., None]
    start = jnp.zeros(row.shape[:-1], jnp.int32)
    before = lambda at: ascending[row, jnp.minimum(at, length - 1)] <= value  # noqa: E731
    return jnp.minimum(first_false(start, start + length, before, length), length - 1)
