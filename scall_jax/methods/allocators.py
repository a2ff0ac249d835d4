"""Methods that choose sizes without learning: functions of a segment and a total.

They are also what the methods that learn start from, and `entities_order`, `allocate_by_order` and `split_by_side` are
their parts. Everywhere N = U + V is the number of nodes that a segment has room for, users first, and sizes are counted
in coordinates (float32 parameters for the storage `packed`).
"""

from collections.abc import Callable
from typing import cast

import chex
import jax
import jax.numpy as jnp

from scall_jax import sizes
from scall_jax.config import SizesConfig
from scall_jax.methods.coherence import importance
from scall_jax.ops.keys import Purpose, by_side, derive
from scall_jax.streams import Segment, active_mask, sides

Allocator = Callable[[jax.Array, Segment, jax.Array], jax.Array]
"""(typed PRNG key, segment, total i32[]) -> own sizes i32[N] by node.

They add up to min(total, entities x maximum) and are 0 for nodes that do not exist. The function is pure and uses
nothing of the segment but what is known at its cut.
"""


def entities_order(config: SizesConfig, segment: Segment, part: slice = slice(None)) -> jax.Array:
    """Nodes from the most to the least frequent, those that do not exist last.

    Args:
      config: `ranking` says which frequency counts.
      segment: data of the segment.
      part: the nodes to order, C of them; all by default.

    Returns:
      i32[C], a permutation of the positions within the part.
    """
    chex.assert_equal_shape([segment.frequency, segment.recency, segment.total])
    frequency = ranking_frequency(config, segment)
    return sizes.order_by(frequency[part], segment.recency[part], segment.total[part], active_mask(segment)[part])


def ranking_frequency(config: SizesConfig, segment: Segment) -> jax.Array:
    """The frequency that sizes follow.

    Args:
      config: `ranking` says which.
      segment: data of the segment.

    Returns:
      i32[N], interactions in the segment or in total, or those in the segment weighed by `coherence.importance`.
    """
    if config.ranking == "coherence":
        return importance(segment)
    return segment.frequency if config.ranking == "segment" else segment.total


def allocate_by_order(
    config: SizesConfig, shares: jax.Array, total: jax.Array, num_active: jax.Array, order: jax.Array
) -> jax.Array:
    """Sizes that share a total out in proportion, within the bounds of the config.

    Args:
      config: has the bounds.
      shares: f32[C], non-negative, of the entities in `order`; ties go to the first of them.
      total: i32[], coordinates to give out.
      num_active: i32[], entities that exist; they come first in `order`.
      order: i32[C], a permutation of the entities.

    Returns:
      i32[C] by entity, adding up to min(total, num_active x maximum).

    >>> shares, order = jnp.array([4.0, 2.0, 1.0, 1.0]), jnp.array([2, 0, 1, 3])
    >>> allocate_by_order(SizesConfig(maximum=8), shares, jnp.int32(11), jnp.int32(3), order).tolist()
    [3, 2, 6, 0]
    """
    chex.assert_rank([shares, order, total, num_active], [1, 1, 0, 0])
    chex.assert_equal_shape([shares, order])
    by_rank = sizes.allocate(shares, total, config.minimum, config.maximum, num_active=num_active)
    return sizes.assign(cast(jax.Array, by_rank), order)


def _joint(config: SizesConfig, segment: Segment, shares: jax.Array, order: jax.Array, total: jax.Array) -> jax.Array:
    """Sizes of users and items out of one pool; shares f32[N] are in the order i32[N]."""
    return allocate_by_order(config, shares, total, segment.users + segment.items, order)


def uniform(config: SizesConfig) -> Allocator:
    """The same size for all entities; the remainder goes to the most frequent, one coordinate each.

    >>> from scall_jax import streams
    >>> rows = streams.synthetic(jax.random.key(0), users=6, items=4, interactions=60)
    >>> segment = streams.cut(rows, segments=2).segment(1)
    >>> sorted(uniform(SizesConfig(maximum=8))(jax.random.key(0), segment, jnp.int32(32)).tolist())
    [5, 5, 5, 5, 6, 6]
    """

    def allocator(key, segment, total):
        del key
        order = entities_order(config, segment)
        return _joint(config, segment, jnp.ones(order.shape[0]), order, total)

    return allocator


def frequency(config: SizesConfig) -> Allocator:
    """Sizes proportional to frequency^`SizesConfig.power`, users and items out of one pool.

    >>> from scall_jax import streams
    >>> rows = streams.synthetic(jax.random.key(0), users=6, items=4, interactions=60)
    >>> segment = streams.cut(rows, segments=2).segment(1)
    >>> own = frequency(SizesConfig(maximum=8))(jax.random.key(0), segment, jnp.int32(20))
    >>> int(own.sum()), int(own[segment.frequency.argmax()]) == int(own.max())
    (20, True)
    """

    return lambda key, segment, total: by_power(config, segment, total, config.power)


def by_power(
    config: SizesConfig, segment: Segment, total: jax.Array, power: chex.Numeric, count: jax.Array | None = None
) -> jax.Array:
    """Sizes proportional to a power of the frequency, users and items out of one pool.

    Args:
      config: has the bounds, and says which frequency counts.
      segment: data of the segment.
      total: i32[], coordinates to give out.
      power: 0 to `sizes.MOST_POWER`; it may be traced.
      count: i32[N], what counts as frequency; None for that of the config.

    Returns:
      i32[N], own sizes by node.
    """
    count, bounds = ranking_frequency(config, segment) if count is None else count, (config.minimum, config.maximum)
    order = sizes.order_by(count, segment.recency, segment.total, active_mask(segment))
    shares = sizes.power_shares(count[order], power, total, bounds, segment.users + segment.items)
    return _joint(config, segment, shares, order, total)


def random(config: SizesConfig) -> Allocator:
    """Random sizes: the shares of all entities are uniform over the simplex, Dirichlet(1, ..., 1).

    It is the control SR of SCALL (arXiv 2407.15411).

    Args:
      config: has the bounds.

    Returns:
      Allocator.
    """

    def allocator(key, segment, total):
        order = entities_order(config, segment)
        return _joint(config, segment, by_side(jax.random.exponential, key, *sides(segment))[order], order, total)

    return allocator


def fixed(config: SizesConfig, shuffle: bool = False) -> Allocator:
    """One action (rho, user shape, item shape) for all segments.

    Sizes follow the order statistics of `SizesConfig.family`, the largest for the most frequent entity of a side.

    Args:
      config: the action, the family and the bounds.
      shuffle: give the sizes out in random order within a side instead.

    Returns:
      Allocator.

    Raises:
      ValueError: a shape that the family does not have.

    >>> from scall_jax import streams
    >>> rows = streams.synthetic(jax.random.key(0), users=6, items=4, interactions=60)
    >>> segment = streams.cut(rows, segments=2).segment(1)
    >>> own = fixed(SizesConfig(maximum=8, rho=0.25))(jax.random.key(0), segment, jnp.int32(24))
    >>> int(own[:3].sum()), int(own[3:].sum())
    (6, 18)
    """

    bounds, shapes = (config.minimum, config.maximum), (config.user_shape, config.item_shape)
    for name, shape in zip(("user_shape", "item_shape"), shapes, strict=True):
        if config.family == "pareto" and shape <= 1:
            raise ValueError(
                f"sizes {name}={shape}: Pareto's distribution has a mean for shapes above 1 only; give one, such as 2"
            )

    def allocator(key, segment, total):
        rho = segment.users / (segment.users + segment.items) if config.rho is None else config.rho
        totals = sizes.split_sides(total, rho, segment.users, segment.items, *bounds)

        def one_side(number, order, num_active):
            capacity = order.shape[0]
            shape = jnp.asarray(shapes)[number]
            shares = sizes.expected_shares(config.family, shape, num_active, capacity)
            by_rank = sizes.allocate(shares, jnp.stack(totals)[number], *bounds, num_active=num_active)
            order = _shuffled(derive(key, Purpose.SIDE, number), capacity, num_active) if shuffle else order
            return sizes.assign(cast(jax.Array, by_rank), order)

        return split_by_side(config, segment, one_side)

    return allocator


OneSide = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(side i32[], order i32[C], number of active entities i32[]) -> sizes i32[C] of one side by entity."""


def split_by_side(config: SizesConfig, segment: Segment, one_side: OneSide) -> jax.Array:
    """Sizes of all nodes from a function of one side, which is compiled once for both.

    Args:
      config: `ranking` says which frequency orders the entities.
      segment: data of the segment.
      one_side: one_side(side, order, num_active) gives the sizes i32[C] of users (side 0) or items (side 1). `order`
        i32[C] has the most frequent entity first and those that do not exist last; `num_active` i32[] is the number of
        those that exist. C is the capacity of the larger side.

    Returns:
      i32[N].
    """
    chex.assert_equal_shape([segment.frequency, segment.recency, segment.total])
    users, items = sides(segment)
    capacity = max(users, items)
    frequency = ranking_frequency(config, segment)

    def padded(values):
        parts = values[:users], values[users:]
        return jnp.stack([jnp.pad(part, (0, capacity - part.shape[0])) for part in parts])

    keys = [padded(values) for values in (frequency, segment.recency, segment.total, active_mask(segment))]
    num_active = jnp.stack([segment.users, segment.items])

    def side(arguments):
        number, keys, num_active = arguments
        return one_side(number, sizes.order_by(*keys), num_active)

    both = jax.lax.map(side, (jnp.arange(2), keys, num_active))
    return jnp.concatenate([both[0, :users], both[1, :items]])


def _shuffled(key, capacity, num_active):
    index = jnp.arange(capacity, dtype=jnp.int32)
    absent = (index >= num_active).astype(jnp.int32)
    return jax.lax.sort((absent, jax.random.bits(key, (capacity,)), index), num_keys=2)[-1]


def shuffled(config: SizesConfig) -> Allocator:
    """The sizes of `fixed` in random order within a side: the control that keeps nothing but their distribution.

    Args:
      config: the action, the family and the bounds.

    Returns:
      Allocator.
    """
    return fixed(config, shuffle=True)


def full(config: SizesConfig) -> Allocator:
    """The largest size for all entities; a run of it has the budget for that and no other.

    Args:
      config: has the largest size.

    Returns:
      Allocator.
    """
    return uniform(config)


ALLOCATORS: dict[str, Callable[[SizesConfig], Allocator]] = {
    "uniform": uniform,
    "fixed": fixed,
    "frequency": frequency,
    "shuffled": shuffled,
    "random": random,
    "full": full,
}
"""Allocators by name: functions of `Config.sizes`."""
