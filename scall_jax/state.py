"""What passes from segment to segment, and what a segment starts from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax import tables
from scall_jax.allocators import sides
from scall_jax.config import Config
from scall_jax.recommenders.popularity import best_half_life
from scall_jax.sizes import shared_vector_sizes
from scall_jax.streams import Segment
from scall_jax.tables.resize import init as init_params


class RunState(NamedTuple):
    """What passes from segment to segment, and all that a checkpoint must hold."""

    key: jax.Array  # typed PRNG key of the run
    params: Any  # of the table; packed: f32[P], P the largest budget of the stream
    sizes: jax.Array  # i32[N + 2], the last two of the shared vectors
    known: jax.Array  # i32[2], users and items that have been given sizes
    totals: jax.Array  # i32[T], parameters allowed at each segment
    search: Any = ()  # of the search, where the method has one


def table_of(config: Config, state: RunState, segment: Segment) -> tables.Table:
    """The table whose parameters the state holds."""
    users, items = sides(segment)
    return tables.TABLES[config.table](jnp.shape(state.params)[0], users, items, config.sizes.maximum)


def segment_keys(state: RunState, segment: Segment) -> jax.Array:
    """Keys of a segment: for sizes, table and fit."""
    return jax.random.split(jax.random.fold_in(state.key, segment.index), 3)


def budget_of(config: Config, state: RunState, segment: Segment) -> tuple[jax.Array, jax.Array]:
    """Parameters for the nodes' own vectors, i32[], and the sizes of the two shared ones, i32[2]."""
    total = state.totals[segment.index]
    shared = shared_vector_sizes(total, segment.users + segment.items, config.sizes.minimum)
    return total - shared.sum(), shared


def fresh(config: Config, state: RunState, segment: Segment, sizes: jax.Array, key: jax.Array):
    """Random parameters for sizes."""
    table = table_of(config, state, segment)
    return init_params(table, key, table.layout(sizes), config.carry.init_std)


def carry_over(config: Config, state: RunState, segment: Segment, sizes: jax.Array, key: jax.Array):
    """The state's parameters, resized; fresh ones where nothing is known or nothing is to be kept."""
    table = table_of(config, state, segment)

    def warm():
        old = table.layout(state.sizes)
        users, items = sides(segment)
        known = jnp.concatenate([jnp.arange(users) < state.known[0], jnp.arange(items) < state.known[1]])
        weight = jnp.where(known, segment.total, 0).astype(jnp.float32)
        axes = tables.principal_axes(table, state.params, old, weight) if config.carry.rotate else None
        return tables.resize(
            table,
            key,
            state.params,
            old,
            table.layout(sizes),
            known,
            shrink=config.carry.shrink,
            axes=axes,
            std=config.carry.init_std,
            grow_std=config.carry.grow_std,
        )

    def afresh():
        return fresh(config, state, segment, sizes, key)

    return jax.lax.cond(state.known.sum() > 0, warm, afresh) if config.carry.warm else afresh()


def item_bias(config: Config, segment: Segment) -> tuple[jax.Array, jax.Array]:
    """What is added to items' scores, f32[V], and the row of `Segment.popularity` it comes from, -1 if none."""
    if config.bias == "none":
        return jnp.zeros(segment.popularity.shape[1]), jnp.int32(-1)
    row = best_half_life(segment, config.fit.valid_users, candidates=config.candidates)
    return jnp.log1p(segment.popularity[row]), row
