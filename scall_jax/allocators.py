"""Methods that choose sizes without learning: one function (key, segment, total) -> sizes each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scall_jax import sizes
from scall_jax.config import Config
from scall_jax.streams import Segment

Allocator = Callable[[jax.Array, Segment, jax.Array], jax.Array]
"""(key, segment, total i32[]) -> sizes i32[N] by node, adding up to min(total, entities x maximum)."""


def sides(segment: Segment) -> tuple[int, int]:
    """Capacities of users and items."""
    items = segment.popularity.shape[-1]
    return segment.frequency.shape[-1] - items, items


def alive(segment: Segment) -> jax.Array:
    """bool[N], nodes that exist at the segment's cut."""
    users, items = sides(segment)
    return jnp.concatenate([jnp.arange(users) < segment.users, jnp.arange(items) < segment.items])


def entities_order(config: Config, segment: Segment, part: slice = slice(None)) -> jax.Array:
    """Nodes of a part from the hottest to the coldest, as `SizesConfig.ranking` says."""
    frequency = segment.frequency if config.sizes.ranking == "segment" else segment.total
    return sizes.order_by(frequency[part], segment.recency[part], segment.total[part], alive(segment)[part])


def _joint(config: Config, segment: Segment, shares_by_rank, order, total):
    """Sizes of all entities out of one pool of ranks."""
    live = segment.users + segment.items
    by_rank = sizes.allocate(shares_by_rank, total, config.sizes.minimum, config.sizes.maximum, live=live)
    return sizes.assign(by_rank, order)


def uniform(config: Config) -> Allocator:
    """The same size for all, the remainder one each to the most frequent."""

    def allocator(key, segment, total):
        del key
        order = entities_order(config, segment)
        return _joint(config, segment, jnp.ones(order.shape[0]), order, total)

    return allocator


def frequency(config: Config) -> Allocator:
    """Size proportional to frequency^power, users and items alike."""

    def allocator(key, segment, total):
        del key
        order = entities_order(config, segment)
        count = segment.frequency if config.sizes.ranking == "segment" else segment.total
        shares = count[order].astype(jnp.float32) ** config.sizes.power
        return _joint(config, segment, jnp.where(count[order] > 0, shares, 0.0), order, total)

    return allocator


def random(config: Config) -> Allocator:
    """Sizes at random: shares of all entities uniform over the simplex, Dirichlet(1, ..., 1); the control SR."""

    def allocator(key, segment, total):
        order = entities_order(config, segment)
        return _joint(config, segment, jax.random.exponential(key, order.shape), order, total)

    return allocator


def fixed(config: Config, shuffle: bool = False) -> Allocator:
    """One action (rho, user shape, item shape) for all segments; sizes by frequency rank within a side."""

    def allocator(key, segment, total):
        bounds, shapes = (
            (config.sizes.minimum, config.sizes.maximum),
            (config.sizes.user_shape, config.sizes.item_shape),
        )
        rho = segment.users / (segment.users + segment.items) if config.sizes.rho is None else config.sizes.rho
        totals = sizes.split_sides(total, rho, segment.users, segment.items, *bounds)

        def one_side(number, order, live):
            capacity = order.shape[0]
            shape = jnp.asarray(shapes)[number]
            shares = sizes.expected_shares(config.sizes.family, shape, live, capacity)
            by_rank = sizes.allocate(shares, jnp.stack(totals)[number], *bounds, live=live)
            order = _shuffled(jax.random.fold_in(key, number), capacity, live) if shuffle else order
            return sizes.assign(by_rank, order)

        return split_by_side(config, segment, one_side)

    return allocator


def split_by_side(config: Config, segment: Segment, one_side: Callable) -> jax.Array:
    """Sizes of all nodes from a function of one side, compiled once for both.

    `one_side(number, order, live)` gives sizes i32[C] of users (number 0) or items (1): `order` i32[C] from the hottest
    to the coldest, those that do not exist last; `live` i32[], how many exist. C is the capacity of the larger side.
    """
    users, items = sides(segment)
    capacity = max(users, items)
    frequency = segment.frequency if config.sizes.ranking == "segment" else segment.total

    def padded(values):
        parts = values[:users], values[users:]
        return jnp.stack([jnp.pad(part, (0, capacity - part.shape[0])) for part in parts])

    keys = [padded(values) for values in (frequency, segment.recency, segment.total, alive(segment))]
    live = jnp.stack([segment.users, segment.items])

    def side(arguments):
        number, keys, live = arguments
        return one_side(number, sizes.order_by(*keys), live)

    both = jax.lax.map(side, (jnp.arange(2), keys, live))
    return jnp.concatenate([both[0, :users], both[1, :items]])


def _shuffled(key, capacity, live):
    index = jnp.arange(capacity, dtype=jnp.int32)
    dead = (index >= live).astype(jnp.int32)
    return jax.lax.sort((dead, jax.random.bits(key, (capacity,)), index), num_keys=2)[-1]


def shuffled(config: Config) -> Allocator:
    """The sizes of `fixed` given out in random order within a side: what remains is the shape alone."""
    return fixed(config, shuffle=True)


def full(config: Config) -> Allocator:
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
