"""Bayesian personalised ranking (Rendle et al., UAI 2009, arXiv 1205.2618): triples drawn on device, and their loss."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.evaluation import KnownGraph
from scall_jax.ops.bisection import first_false
from scall_jax.ops.devices import ONE, MeshConfig, part_of, together
from scall_jax.ops.indexing import take
from scall_jax.streams import RaggedItems


class Triples(NamedTuple):
    """A batch of B triples; item ids count from 0."""

    user: jax.Array  # i32[B]
    positive: jax.Array  # i32[B]
    negative: jax.Array  # i32[B], a known item that the user has not met
    weight: jax.Array  # f32[B], 0 where a user has met every item


def sample(
    key: jax.Array,
    positives: RaggedItems,
    known: KnownGraph,
    batch: int,
    source: str = "segment",
    mesh: MeshConfig = ONE,
) -> Triples:
    """Draw triples: users uniform over the segment's users, positives and negatives uniform given the user.

    Args:
      key: typed PRNG key.
      positives: the segment's users and their items.
      known: all known interactions; a user's negatives are the known items outside its row.
      batch: B; static.
      source: positives from the `segment` or from `all` known items of the user; static.
      mesh: devices that have equal parts of the entries of the graph, and draw the same triples; static.

    Returns:
      Triples; negatives are exact, without rejection.

    Raises:
      ValueError: unknown source.

    A user who has met items 0 and 1 of three has one possible negative:

    >>> from scall_jax.streams import Graph
    >>> graph = Graph(jnp.array([0, 2, 3, 4, 4]), jnp.array([1, 2, 0, 0]), jnp.ones(4))
    >>> positives = RaggedItems(jnp.array([0]), jnp.array([0, 2]), jnp.array([0, 1]), jnp.int32(1))
    >>> known = KnownGraph(graph, users=1, items=jnp.int32(3))
    >>> jax.jit(sample, static_argnums=3)(jax.random.key(0), positives, known, 4).negative.tolist()
    [2, 2, 2, 2]
    """
    if source not in ("segment", "all"):
        raise ValueError(f"source={source!r}: choose segment or all")
    chex.assert_rank([positives.users, positives.items, known.items], [1, 1, 0])
    graph, users = known.graph, known.users
    user_bits, positive_bits, negative_bits = jax.random.bits(key, (3, batch))
    at = below(user_bits, positives.count)
    user = take(positives.users, at)
    known_start, known_end = take(graph.indptr, user), take(graph.indptr, user + 1)
    if source == "segment":
        first = take(positives.indptr, at)
        count = take(positives.indptr, at + 1) - first
        positive = take(positives.items, first + below(positive_bits, count))
    else:
        at = known_start + below(positive_bits, known_end - known_start)
        positive = jnp.maximum(together(mesh, part_of(mesh, graph.indices, at)) - users, 0)
    free = known.items - (known_end - known_start)
    place = below(negative_bits, jnp.maximum(free, 1))
    negative = jnp.minimum(_skip(known, known_start, known_end, place, mesh), known.items - 1)
    return Triples(user, positive, negative, (free > 0).astype(jnp.float32))


def nodes(triples: Triples, users: int) -> jax.Array:
    """Nodes of users, positives and negatives, in this order.

    Args:
      triples: of B triples.
      users: capacity of the user side, where the items' nodes begin; static.

    Returns:
      i32[3 B].

    >>> nodes(Triples(jnp.array([1]), jnp.array([0]), jnp.array([3]), jnp.ones(1)), users=10).tolist()
    [1, 10, 13]
    """
    chex.assert_rank([triples.user, triples.positive, triples.negative], 1)
    chex.assert_equal_shape([triples.user, triples.positive, triples.negative])
    return jnp.concatenate([triples.user, triples.positive + users, triples.negative + users])


def below(bits: jax.Array, count: jax.Array) -> jax.Array:
    """Random integers from 0 to count - 1, the upper halves of the products bits x count.

    No integer is likelier than another by more than count / 2^32 of its share. A batch takes one draw of bits and a
    few operations, where `jax.random.randint` with bounds that vary draws twice and divides.

    Args:
      bits: u32[B], uniform.
      count: i32[B] or i32[], at least 1.

    Returns:
      i32[B].

    >>> below(jnp.array([0, 2**31, 2**32 - 1], jnp.uint32), jnp.int32(10)).tolist()
    [0, 5, 9]
    """
    chex.assert_type([bits, count], [jnp.uint32, int])
    count = count.astype(jnp.uint32)
    low, high = bits & 0xFFFF, bits >> 16
    count_low, count_high = count & 0xFFFF, count >> 16
    middle = (low * count_low >> 16) + (high * count_low & 0xFFFF) + (low * count_high & 0xFFFF)
    upper = high * count_high + (high * count_low >> 16) + (low * count_high >> 16) + (middle >> 16)
    return upper.astype(jnp.int32)


def _skip(known: KnownGraph, start, end, place, mesh: MeshConfig):
    """The `place`-th item outside the ascending row [start, end), by how many of the row come before it."""
    indices = known.graph.indices

    def before(at):
        item = together(mesh, part_of(mesh, indices, jnp.minimum(at, end[:, None] - 1))) - known.users
        return item - (at - start[:, None]) <= place[:, None]

    return place + first_false(start, end, before, mesh.devices * indices.shape[0]) - start


def margins(final: jax.Array) -> jax.Array:
    """Inner products of users with positives minus those with negatives.

    Args:
      final: f32[3 B, C], some columns of the final embeddings of users, positives and negatives in this order.

    Returns:
      f32[B]. Margins over all columns are the sum of those over parts of them.

    >>> margins(jnp.array([[1.0, 2.0], [3.0, 4.0], [1.0, 0.0]])).tolist()
    [10.0]
    """
    chex.assert_rank(final, 2)
    chex.assert_type(final, float)
    user, positive, negative = jnp.split(final, 3)
    return (user * (positive - negative)).sum(-1)


def loss(margin: jax.Array, energy: jax.Array, item_bias: jax.Array, triples: Triples, l2: float) -> jax.Array:
    """Mean softplus(-(s_ui - s_uj)) plus l2/2 x the mean squared norm of the triples' own embeddings; f32[].

    Args:
      margin: f32[B], of `margins`.
      energy: f32[], squared norm of all triples' embeddings before propagation.
      item_bias: f32[V], added to scores.
      triples: the batch, of B triples.
      l2: weight of half the mean squared norm.

    Returns:
      f32[].

    >>> triples = Triples(jnp.array([0]), jnp.array([1]), jnp.array([0]), jnp.ones(1))
    >>> round(float(loss(jnp.zeros(1), jnp.float32(0), jnp.zeros(2), triples, l2=0.0)), 4)
    0.6931
    """
    chex.assert_rank([margin, energy, item_bias], [1, 0, 1])
    chex.assert_equal_shape([margin, triples.positive, triples.negative, triples.weight])
    margin = margin + item_bias[triples.positive] - item_bias[triples.negative]
    batch = triples.weight.shape[0]
    ranking = (jax.nn.softplus(-margin) * triples.weight).sum() / jnp.maximum(triples.weight.sum(), 1.0)
    return ranking + 0.5 * l2 * energy / batch
