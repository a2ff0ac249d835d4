"""Sizes for users and items together: the split of the budget, the shared vectors, sizes by rank to sizes by entity.

Entities are laid out as users [0, U), items [U, U + V), then one shared vector per side at U + V and U + V + 1, where U
and V are capacities. A shared vector stands in for the entities of its side that have size 0. It holds parameters only
while there may be such entities, and the budget pays for it.
"""

import chex
import jax
import jax.numpy as jnp

from scall_jax.sizes.checks import DEVICE_LIMIT


def split_sides(
    total: chex.Numeric, share: chex.Numeric, users: chex.Numeric, items: chex.Numeric, minimum: int, maximum: int
) -> tuple[jax.Array, jax.Array]:
    """Parameters for users and for items, adding up to the total where both sides can hold it.

    Args:
      total: i32[] >= 0, parameters to give out.
      share: f32[] in [0, 1], the users' part; it is moved only as far as the bounds of the sizes ask.
      users: i32[], users that exist.
      items: i32[], items that exist.
      minimum: static lower bound of a size, in parameters.
      maximum: static upper bound of a size, in parameters.

    Returns:
      (i32[], i32[]), parameters for users and for items; both sides can give every entity the minimum if the total
      can.

    >>> [int(side) for side in split_sides(1000, 0.9, users=10, items=90, minimum=1, maximum=64)]
    [640, 360]
    """
    chex.assert_rank([total, share, users, items], 0)
    chex.assert_type([total, users, items], int)
    total = jnp.minimum(total, _times(users + items, maximum))
    fits = total >= _times(users + items, minimum)
    least_users = jnp.where(fits, _times(users, minimum), 0)
    least_items = jnp.where(fits, _times(items, minimum), 0)
    low = jnp.maximum(least_users, total - _times(items, maximum))
    high = jnp.minimum(_times(users, maximum), total - least_items)
    # float32 products are good to 1 in 2^24; the bounds and the difference are exact.
    wanted = jnp.round(total.astype(jnp.float32) * share).astype(jnp.int32)
    for_users = jnp.clip(wanted, low, high)
    return for_users, total - for_users


def _times(count: chex.Numeric, size: int) -> jax.Array:
    """The product in int32, saturating at the largest total."""
    count = jnp.asarray(count, jnp.int32)
    return jnp.where(count > DEVICE_LIMIT // max(size, 1), DEVICE_LIMIT, count * size)


def shared_vector_sizes(total: jax.Array, entities: jax.Array, minimum: int, maximum: int) -> jax.Array:
    """Sizes of the two shared vectors: the minimum while it does not fit for every entity, else 0.

    With minimum 0, an entity may be left without parameters unless all get the maximum: both sizes are 1 until then.

    Args:
      total: i32[] >= 0, parameters to give out.
      entities: i32[], users and items that exist.
      minimum: static lower bound of a size, in parameters.
      maximum: static upper bound of a size, in parameters.

    Returns:
      i32[2], sizes of the users' and the items' shared vector; no more than the total together.

    >>> import jax.numpy as jnp
    >>> shared_vector_sizes(jnp.int32(39), jnp.int32(10), minimum=4, maximum=64)
    Array([4, 4], dtype=int32)
    """
    chex.assert_rank([total, entities], 0)
    chex.assert_type([total, entities], int)
    own = max(minimum, 1)
    short = total < _times(entities, minimum or maximum)
    first = jnp.minimum(total, own)
    second = jnp.minimum(total - first, own)
    return jnp.where(short, jnp.stack([first, second]), 0).astype(jnp.int32)


def assign(by_rank: chex.Array, order: chex.Array) -> jax.Array:
    """Give the k-th size to the k-th entity of an order.

    Args:
      by_rank: i32[n], sizes.
      order: i32[n], a permutation of the entities.

    Returns:
      i32[n], sizes by entity.

    >>> import jax.numpy as jnp
    >>> assign(jnp.array([9, 4, 1]), order=jnp.array([2, 0, 1]))
    Array([4, 1, 9], dtype=int32)
    """
    chex.assert_rank([by_rank, order], 1)
    chex.assert_equal_shape([by_rank, order])
    chex.assert_type([by_rank, order], int)
    return jnp.zeros_like(by_rank).at[order].set(by_rank, unique_indices=True)
