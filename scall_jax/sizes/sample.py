"""Random sizes around expected shares: Dirichlet, then multinomial, with bounds and an exact sum."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.keys import Purpose, derive
from scall_jax.ops.sums import padded_sum
from scall_jax.sizes.allocate import allocate
from scall_jax.sizes.checks import DEVICE_LIMIT, check_arguments, is_traced
from scall_jax.sizes.variates import log_gamma_variates, multinomial

_LEAST_CONCENTRATION = 1e-4  # smaller Gamma shapes leave nothing but their largest draw in float32
_MOST_CONCENTRATION = 1e7


def sample(
    key: jax.Array,
    shares: chex.Array | Sequence[float],
    total: chex.Numeric,
    concentration: chex.Numeric,
    bounds: tuple[int, int] = (1, 256),
    num_active: chex.Numeric | None = None,
) -> jax.Array:
    """Random integer sizes that add up to min(total, n x maximum) exactly.

    p ~ Dirichlet(concentration x n x shares), counts ~ Multinomial(total - n x minimum, p). What exceeds
    maximum - minimum is drawn again among the entities below it, until nothing is left.

    Args:
      key: typed PRNG key.
      shares: f32[n], expected shares, non-negative; they need not be normalised.
      total: i32[] >= 0, parameters to give out; may be traced.
      concentration: f32[], mean parameter of the Dirichlet per entity: the larger, the closer p is to the shares; `inf`
        gives p = shares. May be traced. The Dirichlet's parameters are clipped to [1e-4, 1e7].
      bounds: static (minimum, maximum) of a size, in parameters.
      num_active: i32[], entities that exist out of the capacity n, None for all; those beyond get 0. May be traced.

    Returns:
      i32[n], in the order of the shares; minimum <= size <= maximum. If total < n x minimum, sizes are those of
      `allocate`, without chance.

    Raises:
      ValueError: as `allocate`; a concrete concentration that is not positive; more than 2^31 - 1 parameters.

    >>> import jax
    >>> drawn = sample(jax.random.key(0), [0.5, 0.3, 0.2], total=100, concentration=5.0, bounds=(1, 64))
    >>> int(drawn.sum()), drawn.shape
    (100, (3,))
    """
    minimum, maximum = bounds
    check_arguments(shares, total, minimum, maximum, num_active)
    n = np.shape(shares)[0]
    if n * maximum > 2**32 - 1 or (not is_traced(total) and int(total) > DEVICE_LIMIT):
        raise ValueError(f"{n} entities, sizes up to {maximum}: sampling holds 2^31 - 1 parameters, lower maximum")
    if not is_traced(concentration) and not np.all(np.asarray(concentration) > 0):
        raise ValueError(f"concentration={concentration}: must be greater than 0, inf for the expected shares")
    num_active = jnp.asarray(n if num_active is None else num_active, jnp.int32)
    total = jnp.asarray(total, jnp.int32)
    chex.assert_rank([total, concentration, num_active], 0)
    shares = jnp.asarray(shares, jnp.float32)
    return _sample(key, shares, total, jnp.asarray(concentration, jnp.float32), num_active, bounds)


def _sample(
    key: jax.Array,
    shares: jax.Array,
    total: jax.Array,
    concentration: jax.Array,
    num_active: jax.Array,
    bounds: tuple[int, int],
) -> jax.Array:
    minimum, maximum = bounds
    active_mask = jnp.arange(shares.shape[0], dtype=jnp.int32) < num_active
    # uint32 holds n x maximum even where it exceeds int32.
    target = jnp.minimum(total.astype(jnp.uint32), num_active.astype(jnp.uint32) * np.uint32(maximum))
    floor = num_active.astype(jnp.uint32) * np.uint32(minimum)

    def drawn() -> jax.Array:
        expected = _normalised(shares, active_mask)
        p = _dirichlet(derive(key, Purpose.DIRICHLET), expected, concentration, num_active, active_mask)
        left = (target - floor).astype(jnp.int32)
        counts = _capped_multinomial(key, left, p, active_mask, maximum - minimum)
        return jnp.where(active_mask, counts + minimum, 0)

    return jax.lax.cond(
        target >= floor,
        drawn,
        lambda: allocate(shares, total, minimum, maximum, num_active=num_active).astype(jnp.int32),
    )


def _normalised(weights: jax.Array, active_mask: jax.Array) -> jax.Array:
    """Weights of the entities that exist, divided by their sum; equal ones if all are 0."""
    weights = jnp.where(active_mask, weights, 0.0)
    # Divide by the largest weight first, so that the sum of tiny weights does not underflow.
    weights = weights / jnp.maximum(weights.max(), np.float32(1e-37))
    total = padded_sum(weights)
    uniform = active_mask.astype(jnp.float32) / jnp.maximum(active_mask.sum(), 1).astype(jnp.float32)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), uniform).astype(jnp.float32)


def _dirichlet(
    key: jax.Array, expected: jax.Array, concentration: jax.Array, num_active: jax.Array, active_mask: jax.Array
) -> jax.Array:
    """Dirichlet around the expected shares, from Gammas in log space; the shares themselves at infinity."""
    finite = jnp.isfinite(concentration)
    mean = jnp.where(finite, concentration, 1.0) * num_active.astype(jnp.float32)
    shape = jnp.clip(mean * expected, _LEAST_CONCENTRATION, _MOST_CONCENTRATION)

    def drawn() -> jax.Array:
        log = jnp.where(active_mask, log_gamma_variates(key, shape), -jnp.inf)
        return _normalised(jnp.exp(log - log.max()), active_mask)

    return jax.lax.cond(finite, drawn, lambda: expected)


def _capped_multinomial(key: jax.Array, total: jax.Array, p: jax.Array, active_mask: jax.Array, cap: int) -> jax.Array:
    """Multinomial counts i32[n] in which what exceeds the cap is drawn again among the entities below it.

    The caller ensures that `total` fits.
    """

    def again(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, counts, excess = carry
        room = active_mask & (counts < cap)
        drawn = multinomial(derive(key, Purpose.MULTINOMIAL, number), excess, _normalised(p, room))
        wanted = counts + drawn  # each is at most total <= 2^31 - 1
        # Rounding may make a running sum grow over entities that do not exist; what falls to them is drawn again too.
        kept = jnp.where(active_mask, jnp.minimum(wanted, cap), 0)
        return number + 1, kept, (wanted - kept).sum()

    start = (jnp.int32(0), jnp.zeros(p.shape, jnp.int32), total)
    return jax.lax.while_loop(lambda carry: carry[2] > 0, again, start)[1]
