"""The network of S2PNM (TKDE 2021, arXiv 2204.00752): users as sums of rows of a dictionary.

The rows are chosen by what a user met last. After the published code (cchao0116/S2PNM-TKDE2021, commit 594d95a). With x
the vectors of a user's items in the order of time, scaled by sqrt(d): h = GRU(x); s = [h; position]; causal attention
with one head, whose queries are of LN(s) and whose keys and values are of s, with the leading half of LN(s) as
residual; g, a feed-forward network of it with residual; z = LN([g; h; g - h; g h]); a selection sigmoid(W1 z) of the
2 d rows of the dictionary W2, whose sum is added to x.
"""

import functools
import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

_MASKED = -1e9


class SequenceNetwork(nn.Module):
    """Outputs after each item of some sequences, which score the next one by inner products with the items' vectors."""

    width: int
    """d."""
    length: int
    """Items of a sequence."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Outputs.

        Args:
          x: f32[B, length, d], scaled vectors of the items, 0 where there is none.
          mask: bool[B, length], false where there is none; sequences end at the last place.

        Returns:
          f32[B, length, d]; those up to a place do not depend on what comes after it.
        """
        chex.assert_shape(x, (None, self.length, self.width))
        dense = functools.partial(nn.Dense, self.width)
        h = nn.RNN(nn.GRUCell(self.width))(x)
        assert isinstance(h, jax.Array)
        position = self.param("position", nn.initializers.normal(0.02), (self.length, self.width))
        both = jnp.concatenate([h, jnp.broadcast_to(position[None], x.shape)], axis=-1)
        s = jnp.where(mask[..., None], both, 0.0)
        normed = nn.LayerNorm()(s)
        query, key, value = dense(name="query")(normed), dense(name="key")(s), dense(name="value")(s)
        scores = jnp.einsum("btd,bsd->bts", query, key) / math.sqrt(self.width)
        causal = jnp.tril(jnp.ones((self.length, self.length), bool))[None] & mask[:, None, :]
        weights = jax.nn.softmax(jnp.where(causal, scores, _MASKED), axis=-1)
        attended = jnp.einsum("bts,bsd->btd", weights, value) + normed[..., : self.width]
        base = nn.LayerNorm()(attended)
        g = dense(name="second")(jax.nn.relu(dense(name="first")(base))) + base
        z = nn.LayerNorm()(jnp.concatenate([g, h, g - h, g * h], axis=-1))
        selection = jax.nn.sigmoid(nn.Dense(2 * self.width, name="selection")(z))
        return dense(name="dictionary")(selection) + x


def dense_parameters(width: int, length: int) -> int:
    """Parameters of the network, the items' vectors and biases apart.

    >>> dense_parameters(10, 30) == 24 * 10**2 + (26 + 30) * 10
    True
    """
    return 24 * width**2 + (26 + length) * width


@functools.lru_cache(maxsize=8)
def _shapes(width: int, length: int) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """Structure and shapes of the network's weights."""
    shapes = jax.eval_shape(
        SequenceNetwork(width, length).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, length, width), jnp.float32),
        jax.ShapeDtypeStruct((1, length), jnp.bool_),
    )
    leaves, structure = jax.tree.flatten(shapes)
    return structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)


def init_dense(key: jax.Array, width: int, length: int) -> jax.Array:
    """Initial weights in one array, f32[`dense_parameters`].

    Args:
      key: typed PRNG key.
      width: d; static.
      length: of a sequence; static.
    """
    zeros = jnp.zeros((1, length, width)), jnp.zeros((1, length), bool)
    leaves = jax.tree.leaves(SequenceNetwork(width, length).init(key, *zeros))
    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])


def outputs(dense: jax.Array, items: jax.Array, sequence: jax.Array) -> jax.Array:
    """Outputs of the network after each item of some sequences.

    Args:
      dense: f32[K], weights of `init_dense`.
      items: f32[V, d].
      sequence: i32[B, length], items, -1 where there is none.

    Returns:
      f32[B, length, d].
    """
    chex.assert_rank([dense, items, sequence], [1, 2, 2])
    width, length = items.shape[1], sequence.shape[1]
    structure, shapes = _shapes(width, length)
    leaves, at = [], 0
    for shape in shapes:
        leaves.append(dense[at : at + shape.size].reshape(shape.shape))
        at += shape.size
    mask = sequence >= 0
    x = jnp.where(mask[..., None], math.sqrt(width) * items[jnp.maximum(sequence, 0)], 0.0)
    made = SequenceNetwork(width, length).apply(jax.tree.unflatten(structure, leaves), x, mask)
    assert isinstance(made, jax.Array)
    return made
