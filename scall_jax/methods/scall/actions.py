"""Actions: what the numbers in (0, 1) of a policy mean, and the sizes that follow from them."""

import jax
import jax.numpy as jnp

from scall_jax import sizes
from scall_jax.config import Config, SearchConfig
from scall_jax.methods.allocators import split_by_side
from scall_jax.streams import Segment

SHAPES = {
    "powerlaw": (0.1, 30.0),  # published
    "pareto": (1.05, 100.0),  # published: from 30
    "truncnorm": (1e-6, 1e-5),  # published
    "truncexp": (0.1, 100.0),
    "lognormal": (0.01, 2.0),
}
"""Least and largest shape of each family, the range that an action spans."""

CONCENTRATIONS = (0.1, 1000.0)
"""Range of a learned concentration, on a logarithmic scale."""


def to_shape(config: SearchConfig, number: jax.Array) -> jax.Array:
    """Shape parameter of an action's number in (0, 1)."""
    low, high = SHAPES[config.family]
    if config.map == "log":
        return low * (high / low) ** number
    return low + (high - low) * number


def sizes_by_action(config: Config, key: jax.Array, segment: Segment, total: jax.Array, action: jax.Array) -> jax.Array:
    """Own sizes i32[N] of all nodes by an action f32[3 or 4]: (rho, users' shape, items' shape[, concentration]).

    Entities get their sizes in the order of their frequency, drawn sizes too.
    """
    search, bounds = config.search, (config.sizes.minimum, config.sizes.maximum)
    concentration = search.concentration
    if search.learn_concentration:
        low, high = CONCENTRATIONS
        concentration = low * (high / low) ** action[3]
    totals = jnp.stack(sizes.split_sides(total, action[0], segment.users, segment.items, *bounds))

    def one_side(number, order, num_active):
        shares = sizes.expected_shares(search.family, to_shape(search, action[1 + number]), num_active, order.shape[0])
        if concentration is not None:
            side_key = jax.random.fold_in(key, number)
            drawn = sizes.sample(side_key, shares, totals[number], concentration, *bounds, num_active=num_active)
            by_rank = -jnp.sort(-drawn)
        else:
            by_rank = sizes.allocate(shares, totals[number], *bounds, num_active=num_active)
        return sizes.assign(by_rank, order)

    return split_by_side(config.sizes, segment, one_side)
