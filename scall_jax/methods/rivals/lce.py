"""LCE over a stream (Hang et al., arXiv 2202.02427): vectors of one side alone; the graph composes those of the other.

Only the abstract is public without the paper: explicit vectors for a subset of nodes, others composed by their
interactions. Items have the vectors here, one size for all, beside one coordinate that all users share, and
LightGCN's propagation composes users: a stand-in for the published composition.
"""

import dataclasses

import jax
import jax.numpy as jnp

from scall_jax.config import Config, SizesConfig
from scall_jax.methods.allocators import Allocator, allocate_by_order, entities_order
from scall_jax.methods.planner import OnProbes, SizePlanner, allocator_planner
from scall_jax.streams import sides


def items_alone(config: SizesConfig) -> Allocator:
    """One size for all items, none for users; what items cannot hold, at their largest size, goes to users.

    Args:
      config: has the largest size and the ranking; its smallest size must be 0.

    Returns:
      Allocator.

    >>> from scall_jax import streams
    >>> rows = streams.synthetic(jax.random.key(0), users=6, items=4, interactions=60)
    >>> segment = streams.cut(rows, segments=2).segment(1)
    >>> own = items_alone(SizesConfig(minimum=0, maximum=8))(jax.random.key(0), segment, jnp.int32(20))
    >>> own.tolist()
    [0, 0, 0, 7, 7, 6]
    """

    def allocator(key: jax.Array, segment, total: jax.Array) -> jax.Array:
        del key
        users = sides(segment)[0]
        # The product may be more than an integer holds.
        of_items = jnp.where(segment.items > total // config.maximum, total, segment.items * config.maximum)
        parts = (slice(users), total - of_items, segment.users), (slice(users, None), of_items, segment.items)
        found = []
        for part, amount, number in parts:
            order = entities_order(config, segment, part)
            found.append(allocate_by_order(config, jnp.ones(order.shape[0]), amount, number, order))
        return jnp.concatenate(found)

    return allocator


def without_minimum(config: Config) -> Config:
    """The config of LCE, in which users may have no coordinates, so that no scale of theirs is paid for either."""
    return dataclasses.replace(config, sizes=dataclasses.replace(config.sizes, minimum=0))


def lce_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of LCE. It remembers nothing.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner of a sized storage.

    Raises:
      ValueError: nothing composes users' vectors.
    """
    if config.recommender != "lightgcn" or not config.fit.layers:
        raise ValueError(
            f"recommender={config.recommender!r} with fit.layers={config.fit.layers}: lce has no vectors of users, "
            "which propagation composes: choose recommender=lightgcn and at least one layer"
        )
    return allocator_planner(items_alone)(config, on_probes)
