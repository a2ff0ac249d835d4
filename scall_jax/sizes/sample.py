"""Random sizes around expected shares: Dirichlet, then multinomial, under bounds and an exact sum.

A multinomial of `total` draws is built from Poisson counts (Devroye, Non-Uniform Random Variate Generation, 1986,
XI.1): independent Poisson counts with a mean total a little below `total` are, given their sum, multinomial; the
few draws that are missing are made one by one. The result is exact, O(n), and needs no binomial tree.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from scall_jax.ops.bisection import first_false
from scall_jax.sizes.allocate import DEVICE_LIMIT, allocate, check_arguments

_LEAST_CONCENTRATION = 1e-4  # smaller Gamma shapes leave nothing but their largest draw in float32
_MOST_CONCENTRATION = 1e7
_MARGIN = 4.0  # standard deviations by which the Poisson total stays below the multinomial's
_INVERSION = 12.0  # Poisson means up to here are inverted, larger ones drawn by rejection
_DRAWS = 4096  # single draws made at once
_CHUNK = 1024  # entries that a single draw searches after it has found their chunk


def sample(
    key: jax.Array,
    shares: chex.Array,
    total: chex.Numeric,
    concentration: chex.Numeric,
    minimum: int = 1,
    maximum: int = 256,
    num_active: chex.Numeric | None = None,
) -> jax.Array:
    """Random integer sizes that add up to min(total, n x maximum) exactly.

    p ~ Dirichlet(concentration x n x shares), counts ~ Multinomial(total - n x minimum, p); what exceeds
    maximum - minimum is drawn again among the entities below it, until nothing is left.

    Args:
      key: typed PRNG key.
      shares: f32[n], expected shares, non-negative, need not be normalised.
      total: parameters to give out, i32[] >= 0; may be traced.
      concentration: f32[], mean parameter of the Dirichlet per entity: the larger, the closer p is to the shares;
        `inf` for p = shares. May be traced. Parameters are held within [1e-4, 1e7].
      minimum, maximum: bounds of a size, static.
      live: optional i32[], entities that exist out of the capacity n; those beyond get 0. May be traced.

    Returns:
      i32[n], in the order of the shares; minimum <= size <= maximum. If total < n x minimum, sizes are those of
      `allocate`, without chance.

    Raises:
      ValueError: as `allocate`; a concrete concentration that is not positive; more than 2^31 - 1 parameters.
    """
    check_arguments(shares, total, minimum, maximum, num_active)
    n = np.shape(shares)[0]
    if n * maximum > 2**32 - 1 or (not isinstance(total, jax.core.Tracer) and int(total) > DEVICE_LIMIT):
        raise ValueError(f"{n} entities, sizes up to {maximum}: sampling holds 2^31 - 1 parameters, lower maximum")
    if not isinstance(concentration, jax.core.Tracer) and not np.all(np.asarray(concentration) > 0):
        raise ValueError(f"concentration={concentration}: must be greater than 0, inf for the expected shares")
    num_active = jnp.asarray(n if num_active is None else num_active, jnp.int32)
    total = jnp.asarray(total, jnp.int32)
    shares = jnp.asarray(shares, jnp.float32)
    return _sample(key, shares, total, jnp.asarray(concentration, jnp.float32), num_active, minimum, maximum)


def _sample(key, shares, total, concentration, num_active, minimum, maximum):
    active_mask = jnp.arange(shares.shape[0], dtype=jnp.int32) < num_active
    # uint32 holds n x maximum even where it exceeds int32
    target = jnp.minimum(total.astype(jnp.uint32), num_active.astype(jnp.uint32) * np.uint32(maximum))
    floor = num_active.astype(jnp.uint32) * np.uint32(minimum)

    def drawn():
        dirichlet_key, multinomial_key = jax.random.split(key)
        expected = _normalised(shares, active_mask)
        p = _dirichlet(dirichlet_key, expected, concentration, num_active, active_mask)
        left = (target - floor).astype(jnp.int32)
        counts = _capped_multinomial(multinomial_key, left, p, active_mask, maximum - minimum)
        return jnp.where(active_mask, counts + minimum, 0)

    return jax.lax.cond(
        target >= floor,
        drawn,
        lambda: allocate(shares, total, minimum, maximum, num_active=num_active).astype(jnp.int32),
    )


def _normalised(weights, active_mask):
    weights = jnp.where(active_mask, weights, 0.0)
    # by the largest first: the sum of tiny weights must not underflow
    weights = weights / jnp.maximum(weights.max(), np.float32(1e-37))
    total = weights.sum()
    uniform = active_mask / jnp.maximum(active_mask.sum(), 1)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), uniform).astype(jnp.float32)


def _dirichlet(key, expected, concentration, num_active, active_mask):
    """Dirichlet around the expected shares, from Gammas in log space; the shares themselves at infinity."""
    finite = jnp.isfinite(concentration)
    mean = jnp.where(finite, concentration, 1.0) * num_active
    shape = jnp.clip(mean * expected, _LEAST_CONCENTRATION, _MOST_CONCENTRATION)

    def drawn():
        log = jnp.where(active_mask, log_gamma_variates(key, shape), -jnp.inf)
        return _normalised(jnp.exp(log - log.max()), active_mask)

    return jax.lax.cond(finite, drawn, lambda: expected)


def log_gamma_variates(key: jax.Array, shape: jax.Array) -> jax.Array:
    """Logarithms of independent Gamma(shape, 1) variates, f32[n].

    Marsaglia and Tsang (ACM TOMS 26, 2000): d v with v = (1 + x / sqrt(9 d))^3, x normal, accepted with a
    probability above 0.95; shapes below 1 by Gamma(shape + 1) U^(1/shape). All are drawn at once, those refused again.
    """
    boosted = jnp.where(shape < 1, shape + 1, shape)
    d = boosted - 1 / 3
    c = 1 / jnp.sqrt(9 * d)
    boost_key, loop_key = jax.random.split(key)

    def again(carry):
        number, pending, log = carry
        normal_key, uniform_key = jax.random.split(jax.random.fold_in(loop_key, number))
        x = jax.random.normal(normal_key, shape.shape)
        root = 1 + c * x
        v = jnp.where(root > 0, root, 1.0) ** 3
        u = jax.random.uniform(uniform_key, shape.shape, minval=np.float32(1e-38))
        accepted = (root > 0) & (jnp.log(u) < 0.5 * x * x + d * (1 - v + jnp.log(v)))
        return number + 1, pending & ~accepted, jnp.where(pending, jnp.log(d) + jnp.log(v), log)

    start = (jnp.int32(0), jnp.ones(shape.shape, bool), jnp.zeros(shape.shape))
    _, _, log = jax.lax.while_loop(lambda carry: carry[1].any(), again, start)
    u = jax.random.uniform(boost_key, shape.shape, minval=np.float32(1e-38))
    return jnp.where(shape < 1, log + jnp.log(u) / shape, log)


def _capped_multinomial(key, total, p, active_mask, cap):
    """Multinomial of which what exceeds the cap is drawn again among the entities below it; i32[n].

    The caller sees to it that `total` fits.
    """

    def again(carry):
        number, counts, excess = carry
        room = active_mask & (counts < cap)
        drawn = multinomial(jax.random.fold_in(key, number), excess, _normalised(p, room))
        wanted = counts + drawn  # each at most total <= 2^31 - 1
        # a running sum may grow by rounding over entities that take no part: what falls to them is drawn again too
        kept = jnp.where(active_mask, jnp.minimum(wanted, cap), 0)
        return number + 1, kept, (wanted - kept).sum()

    start = (jnp.int32(0), jnp.zeros(p.shape, jnp.int32), total)
    return jax.lax.while_loop(lambda carry: carry[2] > 0, again, start)[1]


def multinomial(key: jax.Array, total: jax.Array, p: jax.Array) -> jax.Array:
    """Counts of `total` (i32[], traced) independent draws from p f32[n]; i32[n], summing to total exactly."""
    poisson_key, single_key = jax.random.split(key)
    real = total.astype(jnp.float32)
    mean = jnp.maximum(real - _MARGIN * jnp.sqrt(real) - 1, 0.0) * p

    def again(carry):
        number, _ = carry
        return number + 1, poisson(jax.random.fold_in(poisson_key, number), mean)

    def too_many(carry):
        # refusing by the sum alone leaves the counts multinomial given the sum
        return carry[1].sum() > total

    counts = jax.lax.while_loop(too_many, again, again((jnp.int32(0), None)))[1]
    return _single_draws(single_key, counts, total - counts.sum(), p)


def poisson(key: jax.Array, mean: jax.Array) -> jax.Array:
    """Independent Poisson counts of the means f32[n]; i32[n].

    Small means by inversion of one uniform number, large ones by transformed rejection (Hoermann's PTRS, Insurance:
    Mathematics and Economics 12, 1993).
    """
    inversion_key, rejection_key = jax.random.split(key)
    small = mean < _INVERSION
    by_inversion = _poisson_inversion(inversion_key, jnp.where(small, mean, 0.0))
    by_rejection = _poisson_rejection(rejection_key, jnp.where(small, _INVERSION, mean), ~small)
    return jnp.where(small, by_inversion, by_rejection)


def _poisson_inversion(key, mean):
    u = jax.random.uniform(key, mean.shape)

    def step(carry):
        k, count, term, below = carry
        beyond = u >= below
        term = term * mean / (k + 1)
        # the sum of all terms falls short of 1 by rounding: a vanishing term ends the walk
        return k + 1, count + (beyond & (term > 0)), term, jnp.where(term > 1e-9, below + term, 2.0)

    first = jnp.exp(-mean)
    start = (jnp.float32(0), jnp.zeros(mean.shape, jnp.int32), first, jnp.where(mean > 0, first, 2.0))
    return jax.lax.while_loop(lambda carry: (u >= carry[3]).any(), step, start)[1]


def _poisson_rejection(key, mean, wanted):
    log_mean = jnp.log(mean)
    b = 0.931 + 2.53 * jnp.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_r = 0.9277 - 3.6224 / (b - 2)

    def again(carry):
        number, pending, count = carry
        u_key, v_key = jax.random.split(jax.random.fold_in(key, number))
        u = jax.random.uniform(u_key, mean.shape) - 0.5
        v = jax.random.uniform(v_key, mean.shape, minval=np.float32(1e-38))
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


def _log_poisson(k, mean, log_mean):
    """Log probability of count k, by Stirling's series around the mode where k is large (no cancellation)."""
    x = (k - mean) / mean
    # k log(mean) - mean - log k! = -mean ((1 + x) log(1 + x) - x) - log(2 pi k)/2 - 1/(12 k) + ...
    k_safe = jnp.maximum(k, 1.0)
    deviance = jnp.where(jnp.abs(x) < 0.1, _deviance_series(x), (1 + x) * jnp.log1p(x) - x)
    series = -mean * deviance - 0.5 * jnp.log(2 * np.pi * k_safe) - 1 / (12 * k_safe) + 1 / (360 * k_safe**3)
    return jnp.where(k >= 8, series, k * log_mean - mean - gammaln(k + 1))


def _deviance_series(x):
    """(1 + x) log(1 + x) - x for |x| < 0.1: sum over j >= 2 of (-x)^j / (j (j - 1))."""
    total = jnp.zeros_like(x)
    for j in range(9, 1, -1):
        total = 1 / (j * (j - 1)) - x * total
    return x * x * total


def _single_draws(key, counts, missing, p):
    """Add `missing` single draws; each finds a chunk of entries, then an entry, by two uniform numbers."""
    n = p.shape[0]
    chunk = min(_CHUNK, n)
    padded = jnp.pad(p, (0, -n % chunk)).reshape(-1, chunk)
    within = jnp.cumsum(padded, axis=1)
    across = jnp.cumsum(within[:, -1])

    def draw(carry):
        number, counts = carry
        u = jax.random.uniform(jax.random.fold_in(key, number), (2, _DRAWS))
        at_chunk = jnp.searchsorted(across, u[0] * across[-1], side="right")
        at_chunk = jnp.minimum(at_chunk, across.shape[0] - 1)
        place = _search_rows(within, at_chunk, u[1] * within[at_chunk, -1])
        wanted = number * _DRAWS + jnp.arange(_DRAWS, dtype=jnp.int32) < missing
        at = jnp.where(wanted, at_chunk.astype(jnp.int32) * chunk + place, n)
        return number + 1, counts.at[at].add(1, mode="drop")

    return jax.lax.while_loop(lambda c: c[0] * _DRAWS < missing, draw, (jnp.int32(0), counts))[1]


def _search_rows(ascending, row, value):
    """First place in its row of `ascending` f32[R, C] that exceeds a value; i32 of the shape of `row`."""
    length = ascending.shape[1]
    row, value = row[..., None], value[..., None]
    start = jnp.zeros(row.shape[:-1], jnp.int32)
    before = lambda at: ascending[row, jnp.minimum(at, length - 1)] <= value  # noqa: E731
    return jnp.minimum(first_false(start, start + length, before, length), length - 1)
