"""Means of embeddings over the nodes of a side, a block of columns at a time where the storage can."""

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import dynamic_update_slice
from scall_jax.tables.column_blocks import gather, over_column_blocks
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params


def mean_vectors(
    storage: Storage,
    params: Params,
    layout: StorageLayout,
    users: int,
    num_active_users: jax.Array,
    num_active_items: jax.Array,
) -> jax.Array:
    """Mean embedding of the users and of the items that exist.

    Args:
      storage: static.
      params: parameters of the storage (not buffers).
      layout: of the parameters.
      users: capacity of the users' side; static.
      num_active_users: i32[], users that exist: nodes 0 to num_active_users - 1.
      num_active_items: i32[], items that exist: the first of the nodes from `users` on.

    Returns:
      f32[2, width]: users, items; 0 for a side without entities.
    """
    chex.assert_rank([num_active_users, num_active_items], 0)
    at = jnp.arange(storage.nodes, dtype=jnp.int32)
    exists = jnp.stack([at < num_active_users, (at >= users) & (at < users + num_active_items)]).astype(jnp.float32)
    weight = exists / jnp.maximum(exists.sum(1, keepdims=True), 1.0)
    table = storage.table
    if table is None:
        return jnp.matmul(weight, storage.vectors(params, layout), precision=jax.lax.Precision.HIGHEST)
    buffer = table.to_buffer(params)

    def add(first, count, means):
        columns = gather(table, buffer, layout, first, count)
        part = jnp.matmul(weight, columns, precision=jax.lax.Precision.HIGHEST)
        return dynamic_update_slice(means, part, (0, first))

    return over_column_blocks(table, layout, add, jnp.zeros((2, table.width)))
