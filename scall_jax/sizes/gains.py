"""Sizes from gains: what each coordinate of each entity lowers a loss by decides who gets how many.

At one price for a coordinate, every entity takes the coordinates that are worth it, and the price is the one at which
the budget is spent (`price.by_price`). How gains are weighed against each other is a matter of a few numbers:

* gains / W^exponent, where W is the sum of an entity's weights: with 0, an interaction counts as one and frequent
  entities count for more; with 1, an entity counts as one.
* minus noise x residual for each coordinate: a coordinate must earn what it costs to estimate. Fitting one more
  coordinate to noise lowers an entity's loss by the noise of a unit of weight, whatever the coordinate is worth.
* a mixture with one size for all, towards which sizes lose the influence of gains.
"""

import dataclasses
from typing import NamedTuple, cast

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.keys import by_side
from scall_jax.sizes.allocate import allocate
from scall_jax.sizes.price import by_price
from scall_jax.sizes.sides import assign

LEAST_WEIGHT = 1e-30
"""The least that gains are divided by, so that quotients are numbers."""
STARTS = ("rotated", "random")
"""What a fit may start from whose sizes come from gains."""


@dataclasses.dataclass(frozen=True)
class GainsConfig:
    """Sizes from gains: the wide fit that they are read off, and how they are weighed.

    Raises:
      ValueError: a value out of its range, or an unknown start.
    """

    wide: float = 4.0
    """Width of the closed-form fit that gains are read off, in mean sizes; at least 16 coordinates."""
    sweeps: int = 4
    """Sweeps of that fit."""
    noise: float = 0.0
    """Method gain: what a coordinate costs to estimate, in residuals of a unit of weight."""
    exponent: float = 1.0
    """Method gain: power of an entity's weight that its gains are divided by; with 1 an entity counts as one."""
    mixture: float = 0.0
    """Method gain: part of one size for all in every size, from 0 to 1."""
    rho: float | None = None
    """Method gain: users' share of the budget, 0 to 1; None takes one price for both sides."""
    start: str = "rotated"
    """Methods gain and waterfill, where the recommender is solved for: start from the leading coordinates of the wide
    fit (rotated), or from random vectors."""

    shuffle: bool = False
    """Methods gain and scall-gain: a control that gives every entity the gains of a random one of its side."""

    def __post_init__(self) -> None:
        if not self.wide >= 1:
            raise ValueError(f"gains wide={self.wide}: must be at least 1")
        if self.sweeps < 1:
            raise ValueError(f"gains sweeps={self.sweeps}: must be at least 1")
        if not self.noise >= 0:
            raise ValueError(f"gains noise={self.noise}: must not be negative")
        for name in ("exponent", "mixture", "rho"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"gains {name}={value}: must lie between 0 and 1")
        if self.start not in STARTS:
            raise ValueError(f"unknown gains start {self.start!r}: choose one of {', '.join(STARTS)}")

    def width(self, mean: float, maximum: int) -> int:
        """Coordinates of the wide fit.

        Args:
          mean: coordinates that an entity of the first segment has on average.
          maximum: the largest size.

        >>> GainsConfig().width(6.0, 128), GainsConfig().width(1.0, 128)
        (24, 16)
        """
        wanted = -(-int(self.wide * mean) // 8) * 8
        return min(max(wanted, 16), maximum)


class GainRule(NamedTuple):
    """How gains are weighed; f32[] or float each."""

    noise: chex.Numeric
    """What a coordinate costs, in residuals of a unit of weight; 0 or more."""
    exponent: chex.Numeric
    """Power of an entity's weight that its gains are divided by, from 0 to 1."""
    mixture: chex.Numeric
    """Part of one size for all in every size, from 0 to 1."""
    users: chex.Numeric = 0.5
    """The users' part, from 0 to 1, in what gains of both sides count: a half is one price for both."""


class Gains(NamedTuple):
    """What the coordinates of N entities are worth."""

    by_coordinate: jax.Array
    """f32[N, D], what each coordinate lowers the entity's loss by, given those before it."""
    weight: jax.Array
    """f32[N], an entity's loss where its vector is 0: without an item bias the sum of its interactions' weights. With
    one, an entity whose interactions have faded still has coordinates that make up for the bias of items it never met,
    and divided by the weights of its interactions alone these would be worth the most of all."""
    residual: jax.Array
    """f32[], loss that is left for a unit of weight."""


def shuffled(key: jax.Array, gains: Gains, active_mask: jax.Array, users: int) -> Gains:
    """Gains given to the wrong entities: each gets those of a random one of its side, nobody's are lost.

    Args:
      key: typed PRNG key.
      gains: of N entities.
      active_mask: bool[N], entities that exist, the first ones of a side.
      users: capacity of the users' side; static.

    Returns:
      Gains.
    """
    nodes = active_mask.shape[0]
    bits = by_side(jax.random.bits, key, users, nodes - users)
    index = jnp.arange(nodes, dtype=jnp.int32)
    # Within a side, entities that exist come first, in random order.
    source = jax.lax.sort((index >= users, ~active_mask, bits, index), num_keys=3)[3]
    return gains._replace(by_coordinate=gains.by_coordinate[source], weight=gains.weight[source])


def worth_of_sizes(gains: Gains, rule: GainRule, users: int) -> jax.Array:
    """What each size is worth to each entity.

    Args:
      gains: of D coordinates.
      rule: how they are weighed; the mixture does not matter.
      users: capacity of the users' side, the first entities; static.

    Returns:
      f32[N, D + 1], of the sizes 0 to D; 0 for size 0.

    >>> gains = Gains(jnp.array([[8.0, 4.0], [1.0, 0.5]]), jnp.array([16.0, 1.0]), jnp.float32(1))
    >>> worth_of_sizes(gains, GainRule(0.0, 1.0, 0.0), users=1).tolist()
    [[0.0, 0.5, 0.75], [0.0, 1.0, 1.5]]
    """
    chex.assert_rank([gains.by_coordinate, gains.weight, gains.residual], [2, 1, 0])
    chex.assert_equal_shape_prefix([gains.by_coordinate, gains.weight], 1)
    net = jnp.cumsum(gains.by_coordinate - rule.noise * gains.residual, axis=1)
    # What has faded to next to nothing is worth much less than nothing with a noise to take off, but not infinitely.
    weight = jnp.where(gains.weight > 0, jnp.maximum(gains.weight, LEAST_WEIGHT), 1.0)
    of_users = jnp.arange(weight.shape[0]) < users
    side = 2 * jnp.where(of_users, rule.users, 1 - jnp.asarray(rule.users, jnp.float32))
    return jnp.pad(net * (side / weight**rule.exponent)[:, None], ((0, 0), (1, 0)))


def sizes_by_gains(
    gains: Gains,
    rule: GainRule,
    total: jax.Array,
    users_total: jax.Array | None,
    bounds: tuple[int, int],
    active_mask: jax.Array,
    order: jax.Array,
    users: int,
) -> jax.Array:
    """Sizes that add up to a total exactly, by what coordinates are worth.

    Args:
      gains: of D coordinates; larger sizes are given only where all entities have D.
      rule: how gains are weighed.
      total: i32[], coordinates to give out.
      users_total: i32[], the users' part of them, before sizes are mixed; None for one price for both sides.
      bounds: static (minimum, maximum) of a size.
      active_mask: bool[N], entities that exist.
      order: i32[N], a permutation in which the entities that exist come first; ties go to the first.
      users: capacity of the users' side, the first entities; static.

    Returns:
      i32[N], adding up to min(total, entities x maximum).

    Raises:
      ValueError: gains of fewer coordinates than the smallest size.
    """
    nodes, most = gains.by_coordinate.shape
    chex.assert_shape([active_mask, order], (nodes,))
    minimum, maximum = bounds
    if most < minimum:
        raise ValueError(
            f"sizes minimum={minimum}: the wide fit that gains are read off has {most} coordinates: raise gains.wide, "
            "or lower the smallest size"
        )
    worth = jnp.where(active_mask[:, None], worth_of_sizes(gains, rule, users), 0.0)
    least, largest = minimum, min(maximum, most)
    candidates = tuple(range(least, largest + 1))
    worth = worth[:, least : largest + 1]

    def one_price(part: jax.Array, amount: jax.Array) -> jax.Array:
        exists = active_mask & part
        first = jax.lax.sort((~exists[order], jnp.arange(nodes, dtype=jnp.int32)), num_keys=2)[1]
        return by_price(worth, candidates, amount, bounds, exists, order[first])

    if users_total is None:
        own = one_price(jnp.ones(nodes, bool), total)
    else:
        of_users = jnp.arange(nodes) < users
        parts, amounts = jnp.stack([of_users, ~of_users]), jnp.stack([users_total, total - users_total])
        own = jax.lax.map(lambda side: one_price(*side), (parts, amounts)).sum(0)
    return _mixed(own, rule.mixture, total, bounds, active_mask, order)


def _mixed(own: jax.Array, mixture: chex.Numeric, total, bounds, active_mask: jax.Array, order: jax.Array) -> jax.Array:
    """Sizes between given ones and one size for all, adding up to the total."""
    num_active = active_mask.sum()
    mean = own.sum() / jnp.maximum(num_active, 1)
    shares = jnp.where(active_mask, (1 - mixture) * own.astype(jnp.float32) + mixture * mean, 0.0)[order]
    mixed = assign(cast(jax.Array, allocate(shares, total, *bounds, num_active=num_active)), order)
    return jnp.where(mixture > 0, mixed, own)


def spectral_exponent(spectrum: jax.Array, rank: jax.Array | int) -> jax.Array:
    """Beta of a spectrum that falls as l^-beta, by least squares of logarithms.

    Args:
      spectrum: f32[D], singular values, descending.
      rank: i32[], how many of them are used, the first ones; at least 2.

    Returns:
      f32[], at least 0; 1 where the spectrum has less than two positive values.

    >>> round(float(spectral_exponent(jnp.arange(1.0, 17.0) ** -0.75, 16)), 4)
    0.75
    """
    chex.assert_rank(spectrum, 1)
    number = jnp.arange(1, spectrum.shape[0] + 1, dtype=jnp.float32)
    used = (spectrum > 1e-6 * spectrum[0]) & (number <= jnp.asarray(rank, jnp.float32))
    x, y = jnp.log(number), jnp.log(jnp.where(used, spectrum, 1.0))
    count = jnp.maximum(used.sum(), 1).astype(jnp.float32)
    from_mean_x = jnp.where(used, x - jnp.where(used, x, 0.0).sum() / count, 0.0)
    from_mean_y = jnp.where(used, y - jnp.where(used, y, 0.0).sum() / count, 0.0)
    slope = (from_mean_x * from_mean_y).sum() / jnp.maximum((from_mean_x**2).sum(), 1e-12)
    return jnp.where(used.sum() > 1, jnp.maximum(-slope, 0.0), 1.0)
