"""Bayesian personalised ranking (Rendle et al., UAI 2009): triples drawn on device, and their loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.bisection import first_false
from scall_jax.ops.indexing import take
from scall_jax.streams import Graph, RaggedItems


class Triples(NamedTuple):
    """A batch of B triples; item ids count from 0."""

    user: jax.Array  # i32[B]
    positive: jax.Array  # i32[B]
    negative: jax.Array  # i32[B], an item that the user has not met
    weight: jax.Array  # f32[B], 0 where a user has met every item


def sample(
    key: jax.Array,
    positives: RaggedItems,
    graph: Graph,
    users: int,
    items: jax.Array,
    batch: int,
    source: str = "segment",
) -> Triples:
    """Draw triples: users uniform over the segment's users, positives and negatives uniform given the user.

    Args:
      key: typed PRNG key.
      positives: the segment's users and their items.
      graph: all known interactions; a user's negatives are the known items outside its row.
      users: capacity of the user side (items are the nodes from there on).
      items: i32[], known items.
      batch: B.
      source: positives from the `segment` or from `all` known items of the user.

    Returns:
      Triples; negatives are exact, without rejection.
    """
    user_bits, positive_bits, negative_bits = jax.random.bits(key, (3, batch))
    at = below(user_bits, positives.count)
    user = take(positives.users, at)
    known_start, known_end = take(graph.indptr, user), take(graph.indptr, user + 1)
    if source == "segment":
        first = take(positives.indptr, at)
        count = take(positives.indptr, at + 1) - first
        positive = take(positives.items, first + below(positive_bits, count))
    else:
        positive = take(graph.indices, known_start + below(positive_bits, known_end - known_start)) - users
    free = items - (known_end - known_start)
    place = below(negative_bits, jnp.maximum(free, 1))
    negative = jnp.minimum(_skip(graph, users, known_start, known_end, place), items - 1)
    return Triples(user, positive, negative, (free > 0).astype(jnp.float32))


def below(bits: jax.Array, count: jax.Array) -> jax.Array:
    """Random integers from 0 to count - 1 of 32 random bits each: the upper half of the product bits x count, i32.

    No integer is likelier than another by more than count / 2^32 of its share. One draw of bits and a few operations
    do for all of a batch, where `randint` with bounds that vary draws twice and divides.
    """
    count = count.astype(jnp.uint32)
    low, high = bits & 0xFFFF, bits >> 16
    count_low, count_high = count & 0xFFFF, count >> 16
    middle = (low * count_low >> 16) + (high * count_low & 0xFFFF) + (low * count_high & 0xFFFF)
    upper = high * count_high + (high * count_low >> 16) + (low * count_high >> 16) + (middle >> 16)
    return upper.astype(jnp.int32)


def _skip(graph, users, start, end, place):
    """The `place`-th item outside the ascending row [start, end), by how many of the row come before it."""

    def before(at):
        item = take(graph.indices, jnp.minimum(at, end[:, None] - 1)) - users
        return item - (at - start[:, None]) <= place[:, None]

    return place + first_false(start, end, before, graph.indices.shape[0]) - start


def margins(final: jax.Array) -> jax.Array:
    """Inner products of users with positives minus those with negatives, f32[B].

    `final`: f32[3 B, C], some coordinates of users, positives and negatives in this order. Margins over all coordinates
    are the sum over parts of them.
    """
    user, positive, negative = jnp.split(final, 3)
    return (user * (positive - negative)).sum(-1)


def loss(margin: jax.Array, energy: jax.Array, item_bias: jax.Array, triples: Triples, l2: float) -> jax.Array:
    """Mean softplus(-(s_ui - s_uj)) plus l2/2 x the mean squared norm of the triples' own embeddings; f32[].

    Args:
      margin: f32[B], of `margins`.
      energy: f32[], squared norm of all triples' embeddings before propagation.
      item_bias: f32[V], added to scores.
      triples: the batch.
      l2: static.
    """
    margin = margin + item_bias[triples.positive] - item_bias[triples.negative]
    batch = triples.weight.shape[0]
    ranking = (jax.nn.softplus(-margin) * triples.weight).sum() / jnp.maximum(triples.weight.sum(), 1.0)
    return ranking + 0.5 * l2 * energy / batch
