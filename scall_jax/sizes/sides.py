"""Sizes for both sides at once: the split of the budget, the shared vectors, sizes by rank to entities by index.

Entities are laid out as users [0, U), items [U, U+V), then one shared vector per side at U+V and U+V+1, where U and V
are capacities. A shared vector holds parameters only while some entity may have size 0, and is charged to the budget.
"""

import chex
import jax
import jax.numpy as jnp

from scall_jax.sizes.allocate import DEVICE_LIMIT


def _times(count: jax.Array, size: int) -> jax.Array:
    """count x size in int32, saturating at the largest total."""
    count = jnp.asarray(count, jnp.int32)
    return jnp.where(count > DEVICE_LIMIT // max(size, 1), DEVICE_LIMIT, count * size)


def split_sides(total: jax.Array, share: chex.Numeric, users, items, minimum: int, maximum: int):
    """Parameters for users and for items, (i32[], i32[]), adding up to `total` where both sides can hold it.

    `share` (f32[] in [0, 1]) is the users' part, moved only as far as the bounds of the sizes ask.
    """
    total = jnp.minimum(total, _times(users + items, maximum))
    fits = total >= _times(users + items, minimum)
    least_users = jnp.where(fits, _times(users, minimum), 0)
    least_items = jnp.where(fits, _times(items, minimum), 0)
    low = jnp.maximum(least_users, total - _times(items, maximum))
    high = jnp.minimum(_times(users, maximum), total - least_items)
    # float32 products are good to 1 in 2^24; the bounds and the difference are exact
    wanted = jnp.round(total.astype(jnp.float32) * share).astype(jnp.int32)
    for_users = jnp.clip(wanted, low, high)
    return for_users, total - for_users


def shared_vector_sizes(total: jax.Array, entities: jax.Array, minimum: int, maximum: int) -> jax.Array:
    """Sizes of the two shared vectors, i32[2]: `minimum` each while the minimum does not fit, else 0.

    With minimum 0 an entity may be left without parameters unless all get the maximum: then 1 each.
    """
    own = max(minimum, 1)
    short = total < _times(entities, minimum or maximum)
    first = jnp.minimum(total, own)
    second = jnp.minimum(total - first, own)
    return jnp.where(short, jnp.stack([first, second]), 0).astype(jnp.int32)


def assign(by_rank: jax.Array, order: jax.Array) -> jax.Array:
    """Give the k-th size to the k-th entity of `order`; i32[n] by entity."""
    return jnp.zeros_like(by_rank).at[order].set(by_rank, unique_indices=True)
