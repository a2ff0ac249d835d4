"""Methods that choose sizes without learning: one function (key, segment, total) -> sizes each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scall_jax import sizes
from scall_jax.config import SizesConfig
from scall_jax.streams import Segment, active_mask, sides

Allocator = Callable[[jax.Array, Segment, jax.Array], jax.Array]
"""(key, segment, total i32[]) -> sizes i32[N] by node, adding up to min(total, entities x maximum)."""


def entities_order(config: SizesConfig, segment: Segment, part: slice = slice(None)) -> jax.Array:
    """Nodes of a part from the hottest to the coldest, as `SizesConfig.ranking` says."""
    frequency = segment.frequency if config.ranking == "segment" else segment.total
    return sizes.order_by(frequency[part], segment.recency[part], segment.total[part], active_mask(segment)[part])


def _joint(config: SizesConfig, segment: Segment, shares_by_rank, order, total):
    """Sizes of all entities out of one pool of ranks."""
    num_active = segment.users + segment.items
    by_rank = sizes.allocate(shares_by_rank, total, config.minimum, config.maximum, num_active=num_active)
    return sizes.assign(by_rank, order)


def uniform(config: SizesConfig) -> Allocator:
    """The same size for all, the remainder one each to the most frequent."""

    def allocator(key, segment, total):
        del key
        order = entities_order(config, segment)
        return _joint(config, segment, jnp.ones(order.shape[0]), order, total)

    return allocator


def frequency(config: SizesConfig) -> Allocator:
    """Size proportional to frequency^power, users and items alike."""

    def allocator(key, segment, total):
        del key
        order = entities_order(config, segment)
        count = segment.frequency if config.ranking == "segment" else segment.total
        shares = count[order].astype(jnp.float32) ** config.power
        return _joint(config, segment, jnp.where(count[order] > 0, shares, 0.0), order, total)

    return allocator


def random(config: SizesConfig) -> Allocator:
    """Sizes at random: shares of all entities uniform over the simplex, Dirichlet(1, ..., 1); the control SR."""

    def allocator(key, segment, total):
        order = entities_order(config, segment)
        return _joint(config, segment, jax.random.exponential(key, order.shape), order, total)

    return allocator


def fixed(config: SizesConfig, shuffle: bool = False) -> Allocator:
    """One action (rho, user shape, item shape) for all segments; sizes by frequency rank within a side."""

    def allocator(key, segment, total):
        bounds, shapes = (
            (config.minimum, config.maximum),
            (config.user_shape, config.item_shape),
        )
        rho = segment.users / (segment.users + segment.items) if config.rho is None else config.rho
        totals = sizes.split_sides(total, rho, segment.users, segment.items, *bounds)

        def one_side(number, order, num_active):
            capacity = order.shape[0]
            shape = jnp.asarray(shapes)[number]
            shares = sizes.expected_shares(config.family, shape, num_active, capacity)
            by_rank = sizes.allocate(shares, jnp.stack(totals)[number], *bounds, num_active=num_active)
            order = _shuffled(jax.random.fold_in(key, number), capacity, num_active) if shuffle else order
            return sizes.assign(by_rank, order)

        return split_by_side(config, segment, one_side)

    return allocator


def split_by_side(config: SizesConfig, segment: Segment, one_side: Callable) -> jax.Array:
    """Sizes of all nodes from a function of one side, compiled once for both.

    `one_side(number, order, live)` gives sizes i32[C] of users (number 0) or items (1): `order` i32[C] from the hottest
    to the coldest, those that do not exist last; `live` i32[], how many exist. C is the capacity of the larger side.
    """
    users, items = sides(segment)
    capacity = max(users, items)
    frequency = segment.frequency if config.ranking == "segment" else segment.total

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
    dead = (index >= num_active).astype(jnp.int32)
    return jax.lax.sort((dead, jax.random.bits(key, (capacity,)), index), num_keys=2)[-1]


def shuffled(config: SizesConfig) -> Allocator:
    """The sizes of `fixed` given out in random order within a side: what remains is the shape alone."""
    return fixed(config, shuffle=True)


def full(config: SizesConfig) -> Allocator:
    """The largest size for all; its run has no other budget."""
    return uniform(config)


ALLOCATORS = {
    "uniform": uniform,
    "fixed": fixed,
    "frequency": frequency,
    "shuffled": shuffled,
    "random": random,
    "full": full,
}
