"""Means over nodes, strip by strip of columns where the storage can."""

import jax
import jax.numpy as jnp

from scall_jax.nonnegative import dynamic_update_slice
from scall_jax.tables.storage import Storage
from scall_jax.tables.strips import gather, over_strips
from scall_jax.tables.table import Params


def mean_vectors(storage: Storage, params: Params, layout, users: int, live_users, live_items) -> jax.Array:
    """Mean embedding of the users and of the items that exist; f32[2, width]. `users` is the users' capacity."""
    at = jnp.arange(storage.nodes, dtype=jnp.int32)
    alive = jnp.stack([at < live_users, (at >= users) & (at < users + live_items)]).astype(jnp.float32)
    weight = alive / jnp.maximum(alive.sum(1, keepdims=True), 1.0)
    table = storage.table
    if table is None:
        return jnp.matmul(weight, storage.vectors(params, layout), precision=jax.lax.Precision.HIGHEST)
    buffer = table.open(params)

    def add(first, count, means):
        columns = gather(table, buffer, layout, first, count)
        part = jnp.matmul(weight, columns, precision=jax.lax.Precision.HIGHEST)
        return dynamic_update_slice(means, part, (0, first))

    return over_strips(table, layout, add, jnp.zeros((2, table.width)))
