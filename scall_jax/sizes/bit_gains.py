"""Sizes and bits from gains: at one price for a bit, how many coordinates an entity has and in how many bits each.

A coordinate is worth what it lowers the entity's loss by, given those before it. Stored in b bits its error is, to a
good approximation, independent of all else, with a variance of `ROUNDING[b]` times the mean square of the vector's
coordinates; by the curvature of the loss that takes a part of the gain away again. With independent coordinates of one
vector this is reverse water-filling, max(0, 1/2 log2(variance / price)) bits each (Cover and Thomas, Elements of
information theory, section 10.3); here all coordinates of a vector have the same bits, because they share a scale.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.bisection import HALVINGS, halfway
from scall_jax.sizes.checks import require_sum

ROUNDING = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154, 8: 0.0000877}
"""Mean squared error of the best uniform quantiser of a normal variable of variance 1 with 2^b codes (for 1 to 4 bits
Max, 1960, table II; for 8 the minimum over its step, .0308)."""


class Coordinates(NamedTuple):
    """What the coordinates of N entities are worth, and what errors in them cost."""

    gains: jax.Array
    """f32[N, D], what each coordinate lowers the entity's loss by, given those before it."""
    vectors: jax.Array
    """f32[N, D], the coordinates."""
    curvature: jax.Array
    """f32[N, D], second derivative of half of the loss by each coordinate."""


def worth_in_bits(found: Coordinates, bits: tuple[int, ...]) -> jax.Array:
    """What a vector of each size and each number of bits is worth.

    Args:
      found: of D coordinates.
      bits: B of `ROUNDING`; static.

    Returns:
      f32[N, B, D], of the sizes 1 to D.

    >>> found = Coordinates(jnp.array([[4.0, 1.0]]), jnp.array([[2.0, 1.0]]), jnp.array([[1.0, 1.0]]))
    >>> [[round(float(x), 2) for x in worth] for worth in worth_in_bits(found, (1, 4))[0]]
    [[2.55, 3.18], [3.95, 4.94]]
    """
    chex.assert_equal_shape(found)
    chex.assert_rank(found.gains, 2)
    gain, square, curvature = (jnp.cumsum(x, axis=1) for x in (found.gains, found.vectors**2, found.curvature))
    size = jnp.arange(1, gain.shape[1] + 1, dtype=jnp.float32)
    lost = square * curvature / size[None, :]
    errors = jnp.array([ROUNDING[b] for b in bits], jnp.float32)
    return gain[:, None, :] - errors[None, :, None] * lost[:, None, :]


def first_that_fit(cost: jax.Array, total: jax.Array, order: jax.Array) -> jax.Array:
    """Which entities, from the first of an order on, have no more than a total together.

    Args:
      cost: i32[N] or u32[N], by entity; they add up to less than 2^32.
      total: i32[] or u32[].
      order: i32[N], a permutation.

    Returns:
      bool[N].

    >>> first_that_fit(jnp.array([3, 4, 0, 5]), jnp.int32(9), jnp.array([3, 1, 0, 2])).tolist()
    [False, True, False, True]
    """
    chex.assert_equal_shape([cost, order])
    reached = jnp.cumsum(cost[order].astype(jnp.uint32)) <= jnp.asarray(total).astype(jnp.uint32)
    return jnp.zeros(cost.shape[0], bool).at[order].set(reached)


def sizes_and_bits(
    worth: jax.Array, bits: tuple[int, ...], total: jax.Array, scale_bits: int, active_mask: jax.Array, order: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The size and the bits of each entity, at one price for a bit.

    The price is the lowest at which what everybody wants fits. What is left over goes to entities that want more at a
    price just below, in turn, and then to those that have room for one coordinate more.

    Args:
      worth: f32[N, B, D] of `worth_in_bits`, weighed against each other.
      bits: the B numbers of bits; static.
      total: u32[] or i32[], bits of codes and scales to give out.
      scale_bits: bits that a vector with coordinates needs beside them; static.
      active_mask: bool[N], entities that exist; the others get nothing.
      order: i32[N], a permutation; those that come first have precedence.

    Returns:
      Sizes i32[N] and bits i32[N], 0 and 0 for entities without; they take no more than the total.

    Raises:
      ValueError: the most that all N could have is 2^32 bits or more.
    """
    nodes, kinds, most = worth.shape
    require_sum(nodes, max(bits) * most + scale_bits, "lower sizes.maximum or gains.wide")
    total = jnp.asarray(total).astype(jnp.uint32)
    chex.assert_shape([active_mask, order], (nodes,))
    each = jnp.asarray(bits, jnp.int32)
    # uint32 holds the bits of all entities even where int32 does not.
    cost = (each[:, None] * jnp.arange(1, most + 1, dtype=jnp.int32)[None, :] + scale_bits).ravel().astype(jnp.uint32)
    choices = jnp.where(active_mask[:, None], worth.reshape(nodes, kinds * most), -jnp.inf)

    def wanted(price: jax.Array) -> jax.Array:
        """Index of each entity's choice, -1 for nothing."""
        net = choices - price * cost.astype(jnp.float32)[None, :]
        return jnp.where(net.max(1) > 0, jnp.argmax(net, axis=1).astype(jnp.int32), -1)

    def cost_of(choice: jax.Array) -> jax.Array:
        return jnp.where(choice >= 0, cost[jnp.maximum(choice, 0)], jnp.uint32(0))

    def halve(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket  # at the price `high` what is wanted fits
        middle = halfway(low, high)
        fits = cost_of(wanted(middle)).sum() <= total
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    highest = 1.0 + jnp.where(active_mask[:, None, None], jnp.abs(worth), 0.0).max()
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.float32(0), highest))
    chosen, more = wanted(high), wanted(low)
    # Compiled apart from the loop, the same numbers may be rounded otherwise: what no longer fits goes to nobody.
    chosen = jnp.where(first_that_fit(cost_of(chosen), total, order), chosen, -1)
    # Those that want more at the lower price get it in turn, as long as all before them and they fit.
    # In float32 the worth of two choices may be level, so that a few want less at the lower price: they stay.
    extra = jnp.maximum(cost_of(more), cost_of(chosen)) - cost_of(chosen)
    takes = first_that_fit(extra, total - cost_of(chosen).sum(), order)
    chosen = jnp.where(takes & (extra > 0), more, chosen)
    has = chosen >= 0
    size = jnp.where(has, jnp.maximum(chosen, 0) % most + 1, 0)
    own = jnp.where(has, each[jnp.maximum(chosen, 0) // most], 0)
    # One coordinate more for those that have some, in turn.
    left = total - cost_of(chosen).sum()
    room = jnp.where(has & (size < most), own, 0)
    return size + (first_that_fit(room, left, order) & (room > 0)), own
