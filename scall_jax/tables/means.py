"""Means of embeddings over the nodes of a side, a block of columns at a time where the storage can."""

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import dynamic_update_slice
from scall_jax.ops.sums import padded_sum
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
    num_active = jnp.stack([num_active_users, num_active_items])

    def means(columns: jax.Array) -> jax.Array:
        sums = []
        for side, count in zip((columns[:users], columns[users:]), num_active, strict=True):
            exists = jnp.arange(side.shape[0], dtype=jnp.int32) < count
            sums.append(padded_sum(jnp.where(exists[:, None], side, 0.0)))
        return jnp.stack(sums) / jnp.maximum(num_active, 1).astype(jnp.float32)[:, None]

    table = storage.table
    if table is None:
        return means(storage.vectors(params, layout))
    buffer = table.to_buffer(params)

    def add(first, count, found):
        return dynamic_update_slice(found, means(gather(table, buffer, layout, first, count)), (0, first))

    return over_column_blocks(table, layout, add, jnp.zeros((2, table.width)))
