"""Means over nodes, strip by strip of columns where the storage can."""

import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import dynamic_update_slice
from scall_jax.tables.column_blocks import gather, over_column_blocks
from scall_jax.tables.storage import Storage
from scall_jax.tables.table import Params


def mean_vectors(storage: Storage, params: Params, layout, users: int, num_active_users, num_active_items) -> jax.Array:
    """Mean embedding of the users and of the items that exist; f32[2, width]. `users` is the users' capacity."""
    at = jnp.arange(storage.nodes, dtype=jnp.int32)
    active_mask = jnp.stack([at < num_active_users, (at >= users) & (at < users + num_active_items)]).astype(
        jnp.float32
    )
    weight = active_mask / jnp.maximum(active_mask.sum(1, keepdims=True), 1.0)
    table = storage.table
    if table is None:
        return jnp.matmul(weight, storage.vectors(params, layout), precision=jax.lax.Precision.HIGHEST)
    buffer = table.to_buffer(params)

    def add(first, count, means):
        columns = gather(table, buffer, layout, first, count)
        part = jnp.matmul(weight, columns, precision=jax.lax.Precision.HIGHEST)
        return dynamic_update_slice(means, part, (0, first))

    return over_column_blocks(table, layout, add, jnp.zeros((2, table.width)))
