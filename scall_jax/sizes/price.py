"""Sizes out of a few candidates by what each is worth to an entity, less a price per parameter.

The price at which the sizes fit the total is found by bisection: sizes never rise with the price, since a higher price
never makes the larger of two candidates the better one.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.sizes.allocate import allocate
from scall_jax.sizes.checks import require_sum
from scall_jax.sizes.sides import assign

_HALVINGS = 48  # enough to narrow any interval down to neighbouring float32 numbers


def by_price(
    worth: jax.Array,
    candidates: tuple[int, ...],
    total: chex.Numeric,
    bounds: tuple[int, int],
    active_mask: jax.Array,
    order: jax.Array,
) -> jax.Array:
    """Sizes from candidates, at one price per parameter, that add up to min(total, entities x maximum) exactly.

    Each entity takes the candidate with the largest worth - price x size, the smaller of two that tie. The price is the
    lowest at which these sizes fit. What is left goes, in turn by `order`, to entities whose size grows at a price just
    below; one of them may get a size between two candidates. A total beyond the largest candidate or below the smallest
    one is given out in proportion to these sizes; where the minimum does not fit, it goes to the first of `order`.

    Args:
      worth: f32[N, K], finite worth of each candidate to each entity.
      candidates: K static sizes, ascending, within the bounds.
      total: i32[] >= 0, parameters to give out.
      bounds: static (minimum, maximum) of a size, in parameters.
      active_mask: bool[N], entities that exist; the others get 0.
      order: i32[N], a permutation in which the entities that exist come first.

    Returns:
      i32[N], sizes by entity.

    Raises:
      ValueError: candidates out of order or out of bounds; N x maximum exceeds 2^32 - 1.

    >>> import jax.numpy as jnp
    >>> worth = jnp.array([[0.1, 0.9], [0.2, 0.7], [0.5, 0.6]])
    >>> by_price(worth, (1, 4), 9, (1, 4), jnp.ones(3, bool), jnp.arange(3))
    Array([4, 4, 1], dtype=int32)
    """
    _check(candidates, bounds)
    minimum, maximum = bounds
    require_sum(worth.shape[0], maximum, "lower sizes.maximum")
    chex.assert_shape([worth, active_mask, order], [(None, len(candidates)), worth.shape[:1], worth.shape[:1]])
    chex.assert_rank(total, 0)
    chex.assert_type([worth, total, active_mask, order], [float, int, bool, int])
    size = jnp.asarray(candidates, jnp.int32)
    cost = size.astype(jnp.float32)[None, :]
    # uint32 holds N x maximum even where it exceeds int32.
    target = jnp.asarray(total).astype(jnp.uint32)

    def sizes_at(price: jax.Array) -> jax.Array:
        return jnp.where(active_mask, size[jnp.argmax(worth - price * cost, axis=1)], 0).astype(jnp.uint32)

    # Beyond this price, of either sign, every entity takes the smallest or the largest candidate.
    gap = np.diff(candidates).min() if len(candidates) > 1 else 1
    most = 1.0 + 3 * jnp.abs(jnp.where(active_mask[:, None], worth, 0.0)).max() / float(gap)
    low, high = _prices_around(lambda price: sizes_at(price).sum() <= target, most)
    fitting = sizes_at(high)
    # In float32 the worth of two candidates may be level, so that a few want less at the lower price: they stay.
    chosen = _grown(fitting, jnp.maximum(sizes_at(low), fitting), target, order)
    shares = chosen[order].astype(jnp.float32)
    exact = assign(allocate(shares, total, minimum, maximum, num_active=active_mask.sum()), order)
    return jnp.where(chosen.sum() == target, chosen.astype(jnp.int32), exact)


def _check(candidates: tuple[int, ...], bounds: tuple[int, int]) -> None:
    """Refuse candidates that do not ascend within the bounds."""
    minimum, maximum = bounds
    if list(candidates) != sorted(set(candidates)) or not minimum <= candidates[0] <= candidates[-1] <= maximum:
        raise ValueError(f"candidates={candidates}: must ascend within {minimum} and {maximum}")


def _prices_around(fits: Callable[[jax.Array], jax.Array], most: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The price just below the lowest one at which sizes fit, and that one; f32[] each, between -most and most."""

    def halve(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket  # at the price `high` the sizes fit
        middle = low + (high - low) / 2
        fitting = fits(middle)
        return jnp.where(fitting, low, middle), jnp.where(fitting, middle, high)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (-most, most))


def _grown(fitting: jax.Array, largest: jax.Array, target: jax.Array, order: jax.Array) -> jax.Array:
    """Sizes u32[N] that grow from `fitting` up to `largest`, in turn by `order`, until they add up to the target."""
    room = largest[order] - fitting[order]
    # Where even the smallest candidates do not fit, there is nothing left.
    left = target - jnp.minimum(fitting.sum(), target)
    before = jnp.cumsum(room) - room
    more = jnp.minimum(left - jnp.minimum(before, left), room)
    return fitting + jnp.zeros_like(fitting).at[order].set(more)
