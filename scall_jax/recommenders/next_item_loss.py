"""The loss of a next item under a softmax over all items, a few places at a time.

A sequence is shorter than its room for most users, and scores of all places at once would be batch x length x items. So
the places that have a next item are put first, and only these are worked on, in blocks whose scores stay in the caches;
the gradient is taken along, since it needs the same exponentials.
"""

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import ceil_div, dynamic_slice, take

_FLOOR = 1e-5
"""Added to probabilities before the logarithm, as in the published code of S2PNM."""
_PLACES = 64
"""Places of a block."""


@jax.custom_vjp
def next_item_loss(
    made: jax.Array, items: jax.Array, offset: jax.Array, following: jax.Array, there: jax.Array
) -> jax.Array:
    """Sum of -log(p + 1e-5), p the softmax of made . items + offset at the next item.

    Args:
      made: f32[P, d], outputs after each place.
      items: f32[V, d].
      offset: f32[V], added to scores; -inf for items that there are not.
      following: i32[P], the next item; any where there is none.
      there: bool[P], whether a place has a next item.

    Returns:
      f32[].

    >>> one = jnp.ones((1, 2))
    >>> loss = next_item_loss(one, jnp.zeros((4, 2)), jnp.zeros(4), jnp.array([1]), jnp.array([True]))
    >>> round(float(jnp.exp(-loss)), 4)
    0.25
    """
    return _over_blocks(made, items, offset, following, there)[0]


def _over_blocks(made, items, offset, following, there):
    """The loss, and its gradients by made, items and offset."""
    chex.assert_rank([made, items, offset, following, there], [2, 2, 1, 1, 1])
    places = made.shape[0]
    size = min(_PLACES, places)
    # Places in use first, in their order; a last block that would end beyond the places reaches into padding.
    order = jnp.argsort(~there, stable=True).astype(jnp.int32)
    order = jnp.concatenate([order, jnp.zeros(size, jnp.int32)])
    count = there.sum(dtype=jnp.int32)

    def block(index, carry):
        loss, by_made, by_items, by_offset = carry
        at = dynamic_slice(order, (index * size,), (size,))
        used = (index * size + jnp.arange(size, dtype=jnp.int32) < count).astype(jnp.float32)
        vectors, chosen = take(made, at), take(following, at)
        scores = vectors @ items.T + offset[None, :]
        powers = jnp.exp(scores - scores.max(1, keepdims=True))
        total = powers.sum(1)
        likely = jnp.take_along_axis(powers, chosen[:, None], axis=1)[:, 0] / total
        # The derivative of -log(p + floor) by a score is c (softmax - 1 at the next item), c = p / (p + floor).
        factor = used * likely / (likely + _FLOOR)
        pull = powers * (factor / total)[:, None]
        by_vector = pull @ items - factor[:, None] * take(items, chosen)
        return (
            loss - (used * jnp.log(likely + _FLOOR)).sum(),
            by_made.at[at].add(used[:, None] * by_vector, wrap_negative_indices=False),
            by_items + (pull.T @ vectors).at[chosen].add(-factor[:, None] * vectors, wrap_negative_indices=False),
            by_offset + pull.sum(0).at[chosen].add(-factor, wrap_negative_indices=False),
        )

    start = jnp.float32(0), jnp.zeros_like(made), jnp.zeros_like(items), jnp.zeros_like(offset)
    loss, *gradients = jax.lax.fori_loop(0, ceil_div(count, size), block, start)
    return loss, tuple(gradients)


def _backward(gradients, g):
    return *(g * x for x in gradients), None, None


next_item_loss.defvjp(_over_blocks, _backward)
