"""What passes from segment to segment, and what a segment starts from."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax import tables
from scall_jax.allocators import sides
from scall_jax.config import Config
from scall_jax.recommenders.popularity import best_half_life
from scall_jax.sizes import shared_vector_sizes
from scall_jax.streams import Segment

SEARCH_KEY = 0x5EA7C4
"""Sets the keys of a search apart from those of the segment's other phases."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Held:
    """Capacity of the storage, static."""

    units: int


class RunState(NamedTuple):
    """What passes from segment to segment, and all that a checkpoint must hold."""

    key: jax.Array  # typed PRNG key of the run
    params: Any  # as stored; packed: f32[P], P the largest budget of the stream
    plan: Any  # how the budget is spent; packed: i32[N + 2], sizes, the last two of the shared vectors
    known: jax.Array  # i32[2], users and items that have been given sizes
    totals: jax.Array  # i32[T], units of the storage allowed at each segment; packed: parameters
    chooser: Any = ()  # what the method's chooser remembers
    held: Held = Held(0)


def storage_of(config: Config, state: RunState, segment: Segment) -> tables.Storage:
    """The storage whose parameters the state holds."""
    users, items = sides(segment)
    return tables.kind_of(config).build(state.held.units, users, items, config.sizes.maximum)


def segment_keys(state: RunState, segment: Segment) -> jax.Array:
    """Keys of a segment: for sizes, table and fit."""
    return jax.random.split(jax.random.fold_in(state.key, segment.index), 3)


def search_key(state: RunState, segment: Segment) -> jax.Array:
    """Key of a segment's search."""
    return jax.random.fold_in(jax.random.fold_in(state.key, segment.index), SEARCH_KEY)


def budget_of(config: Config, state: RunState, segment: Segment) -> tuple[jax.Array, jax.Array]:
    """Units for the nodes' own vectors, i32[], and the sizes of the two shared ones, i32[2]."""
    total = state.totals[segment.index]
    bounds = config.sizes.minimum, config.sizes.maximum
    shared = shared_vector_sizes(total, segment.users + segment.items, *bounds)
    return total - shared.sum(), shared


def fresh(config: Config, state: RunState, segment: Segment, plan, key: jax.Array, storage=None):
    """Random parameters for a plan; of another storage than the state's, if one is given."""
    storage = storage_of(config, state, segment) if storage is None else storage
    return storage.fresh(key, storage.layout(plan), config.carry.init_std)


def carry_over(config: Config, state: RunState, segment: Segment, plan, key: jax.Array, storage=None):
    """The state's parameters for a new plan; fresh ones where nothing is known or nothing is to be kept.

    `storage`, if given, is another one that can read what the state's has stored: a search may train more than is kept.
    """
    storage = storage_of(config, state, segment) if storage is None else storage

    def warm():
        users, items = sides(segment)
        known = jnp.concatenate([jnp.arange(users) < state.known[0], jnp.arange(items) < state.known[1]])
        weight = jnp.where(known, segment.total, 0).astype(jnp.float32)
        return storage.resize(key, state.params, state.plan, plan, known, weight, config.carry)

    def afresh():
        return fresh(config, state, segment, plan, key, storage)

    return jax.lax.cond(state.known.sum() > 0, warm, afresh) if config.carry.warm else afresh()


def bias_bytes(config: Config, items: int) -> int:
    """What the statistic behind the items' bias takes: 4 bytes each."""
    return 0 if config.bias == "none" else 4 * items


def item_bias(config: Config, segment: Segment) -> tuple[jax.Array, jax.Array]:
    """What is added to items' scores, f32[V], and the row of `Segment.popularity` it comes from, -1 if none."""
    if config.bias == "none":
        return jnp.zeros(segment.popularity.shape[1]), jnp.int32(-1)
    row = best_half_life(segment, config.fit.valid_users, candidates=config.candidates)
    return jnp.log1p(segment.popularity[row]), row
