"""Sizes out of a few candidates by what each is worth to an entity, less a price per parameter.

The price that makes the sizes fit the total is found by bisection: sizes never rise with it, since a higher price never
makes the larger of two candidates the better one.
"""

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.sizes.allocate import allocate
from scall_jax.sizes.sides import assign

_HALVINGS = 48  # more than a float32 between two numbers can be halved to any purpose


def by_price(
    worth: jax.Array,
    candidates: tuple[int, ...],
    total: jax.Array,
    minimum: int,
    maximum: int,
    num_active: jax.Array,
    order,
) -> jax.Array:
    """Sizes i32[N] that add up to min(total, entities x maximum) exactly.

    Each entity takes the candidate with the largest worth - price x size, the smaller of two that tie; the price is the
    lowest at which that fits. What is left goes to those whose size grows at a price just below, in turn by `order`:
    one of them may get a size between two candidates. A total beyond the largest candidate or below the smallest is
    given out in proportion to these sizes, the minimum first to the first of `order` where it does not fit.

    Args:
      worth: f32[N, K], finite.
      candidates: K sizes, ascending, within the bounds.
      total: i32[], parameters to give out.
      minimum, maximum: bounds of a size.
      live: bool[N], entities that exist; the others get 0.
      order: i32[N], a permutation with those who exist in front.

    Raises:
      ValueError: candidates out of order or of bounds.
    """
    if list(candidates) != sorted(set(candidates)) or not minimum <= candidates[0] <= candidates[-1] <= maximum:
        raise ValueError(f"candidates={candidates}: must ascend within {minimum} and {maximum}")
    size = jnp.asarray(candidates, jnp.int32)
    cost = size.astype(jnp.float32)[None, :]

    def sizes_at(price):
        return jnp.where(num_active, size[jnp.argmax(worth - price * cost, axis=1)], 0)

    def halve(_, bracket):
        low, high = bracket  # at `high` the sizes fit
        middle = low + (high - low) / 2
        fits = sizes_at(middle).sum() <= total
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    # beyond this price, of either sign, everybody takes the smallest or the largest
    gap = np.diff(candidates).min() if len(candidates) > 1 else 1
    most = 1.0 + 3 * jnp.abs(jnp.where(num_active[:, None], worth, 0.0)).max() / float(gap)
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (-most, most))
    fitting = sizes_at(high)
    room = sizes_at(low) - fitting
    left = total - fitting.sum()
    before = jnp.cumsum(room[order]) - room[order]
    chosen = fitting + jnp.zeros_like(fitting).at[order].set(jnp.clip(left - before, 0, room[order]))
    shares = chosen[order].astype(jnp.float32)
    exact = assign(allocate(shares, total, minimum, maximum, num_active=num_active.sum()), order)
    return jnp.where(chosen.sum() == total, chosen, exact)
