"""Segment: one step of the stream as a pytree of fixed shapes, so that segments stack and scan.

Capacities are those of the whole stream and lengths are data: U users, V items, N = U + V nodes (users first), E graph
entries, B segment users, R segment positives, Q evaluated users, T relevant pairs, H popularity statistics. Ids are
given by first appearance, so the entities known at any time are a prefix of each side. An entity is a user or an item.
"""

from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.streams.numpy_ops import CHUNK, chunks, counts, distinct, pad


class Graph(NamedTuple):
    """Normalised adjacency D^-1/2 A D^-1/2 of users and items in compressed sparse rows; symmetric.

    Entries from indptr[-1] on are padding: zero values that no row refers to.
    """

    indptr: jax.Array  # i32[N + 1], first entry of each node, and the end
    indices: jax.Array  # i32[E], neighbours, ascending within a row
    values: jax.Array  # f32[E]
    chunks: tuple[tuple[jax.Array, jax.Array], ...] = ()  # from indptr by `recommenders.graph.with_chunks`, or none


class RaggedItems(NamedTuple):
    """Item lists of some users: users[i] has items[indptr[i]:indptr[i+1]], distinct and ascending."""

    users: jax.Array  # i32[B]
    indptr: jax.Array  # i32[B + 1]
    items: jax.Array  # i32[R]
    count: jax.Array  # i32[], users in use


class Segment(NamedTuple):
    """What is known at the cut between training and validation of one segment, and the held-out parts."""

    index: jax.Array  # i32[], number of the segment, from 0
    users: jax.Array  # i32[], users known at the cut
    items: jax.Array  # i32[], items known at the cut
    users_before: jax.Array  # i32[], users known before this segment; those from here to `users` are new
    items_before: jax.Array  # i32[], items known before this segment
    interactions: jax.Array  # i32[], rows of all parts of the segment, without replayed ones
    graph: Graph  # all interactions before the cut
    positives: RaggedItems  # the segment's training part and replayed rows
    valid: RaggedItems  # relevant items by user: known at the cut and not among the user's training items
    test: RaggedItems  # as `valid`
    held_out: jax.Array  # i32[2], rows of valid and test
    unknown: jax.Array  # i32[2], of these, rows whose user or item is not known at the cut
    seen: jax.Array  # i32[2], of these, rows of pairs that are known at the cut already
    frequency: jax.Array  # i32[N], rows of the training part and of the replay
    total: jax.Array  # i32[N], rows before the cut
    recency: jax.Array  # i32[N], 1 + position of the last row before the cut, 0 if there is none
    popularity: jax.Array  # f32[H, V], all-time, segment, then decayed counts by half-life
    ages: jax.Array  # i32[E], rows from the last one of the entry's pair to the cut, at least 1; 0 in padding
    repeats: jax.Array  # i32[E], rows of the entry's pair before the cut; 0 in padding
    period: jax.Array  # i32[], rows from the cut before, or from the stream's start, to the cut


class GraphCapacity(NamedTuple):
    """Static sizes of a graph."""

    users: int
    """Nodes of the user side, where the items' nodes begin."""
    items: int
    """Nodes of the item side."""
    edges: int
    """Entries, two for each pair."""


class Capacity(NamedTuple):
    """Static sizes shared by all segments of a stream."""

    users: int
    """Users known at the last cut, U."""
    items: int
    """Items known at the last cut, V."""
    edges: int
    """Entries of the last segment's graph, E."""
    positives: int
    """Most training and replayed rows of a segment, R."""
    valid: int
    """Most validation rows of a segment."""
    test: int
    """Most test rows of a segment."""
    positive_users: int
    """Most distinct users of a segment's positives, B."""
    valid_users: int
    """Most distinct users of a segment's validation part."""
    test_users: int
    """Most distinct users of a segment's test part."""

    @property
    def nodes(self) -> int:
        """Users and items, N."""
        return self.users + self.items

    @property
    def graph(self) -> GraphCapacity:
        """Sizes of the graph."""
        return GraphCapacity(self.users, self.items, self.edges)


def host_leaf(values: Any) -> jax.Array:
    """A numpy array or scalar with the type that it has inside programs.

    Segments are built on the host from numpy arrays; as arguments of a program they become `jax.Array`.

    Args:
      values: numpy array or scalar; returned unchanged.
    """
    return cast("jax.Array", values)


def make_ragged_items(
    user: np.ndarray, item: np.ndarray, capacity: int, most_users: int, rng: np.random.Generator | None = None
) -> RaggedItems:
    """Distinct pairs grouped by user.

    Args:
      user: i32[rows], users of the pairs.
      item: i32[rows], items of the pairs.
      capacity: length of the padded list of items.
      most_users: length of the padded list of users.
      rng: source of a random order of users; None for ascending ones.

    Returns:
      Numpy arrays, padded to the given lengths.
    """
    chex.assert_rank([user, item], 1)
    chex.assert_equal_shape([user, item])
    chex.assert_type([user, item], int)
    keys = distinct(user.astype(np.int64) << 32 | item.astype(np.int64))
    user, item = (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)
    users, starts, lengths = np.unique(user, return_index=True, return_counts=True)
    if rng is not None:
        shuffled = rng.permutation(len(users))
        users, starts, lengths = users[shuffled], starts[shuffled], lengths[shuffled]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        item = item[np.repeat(starts, lengths) + within]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return RaggedItems(
        users=host_leaf(pad(users, most_users)),
        indptr=host_leaf(pad(indptr, most_users + 1, indptr[-1])),
        items=host_leaf(pad(item, capacity)),
        count=host_leaf(np.int32(len(users))),
    )


def make_graph(
    user: np.ndarray, item: np.ndarray, by_user: np.ndarray, by_item: np.ndarray, capacity: GraphCapacity
) -> Graph:
    """Symmetric normalised graph of the distinct pairs.

    Args:
      user: i32[rows], users of all rows.
      item: i32[rows], items of all rows.
      by_user: i32[pairs], rows of the distinct pairs, sorted by user, then item.
      by_item: i32[pairs], the same rows sorted by item, then user.
      capacity: sizes of the result.

    Returns:
      Numpy arrays, padded to the capacity.
    """
    chex.assert_rank([user, item, by_user, by_item], 1)
    chex.assert_equal_shape([user, item])
    chex.assert_equal_shape([by_user, by_item])
    chex.assert_type([user, item, by_user, by_item], int)
    pairs, users = len(by_user), capacity.users
    degree = np.zeros(users + capacity.items, np.int64)
    for part in chunks(0, pairs, max(CHUNK, len(degree))):
        degree[:users] += counts(user[by_user[part]], users)
        degree[users:] += counts(item[by_user[part]], capacity.items)
    indptr = np.concatenate([[0], np.cumsum(degree)]).astype(np.int32)
    scale = 1.0 / np.sqrt(np.maximum(degree, 1))
    indices, values = np.zeros(capacity.edges, np.int32), np.zeros(capacity.edges, np.float32)
    for part in chunks(0, pairs):
        other = slice(part.start + pairs, part.stop + pairs)
        indices[part], indices[other] = item[by_user[part]] + users, user[by_item[part]]
        values[part] = scale[user[by_user[part]]] * scale[indices[part]]
        values[other] = scale[item[by_item[part]] + users] * scale[indices[other]]
    return Graph(host_leaf(indptr), host_leaf(indices), host_leaf(values))


def compact_graph(graph: Graph, users: int, known: tuple[int, int]) -> dict[str, np.ndarray]:
    """The smallest plain arrays that a graph can be restored from: each pair once, users' rows of ascending items.

    The other half follows by symmetry, and the normalisation from the degrees.

    Args:
      graph: of the users and items that are known.
      users: capacity of the users' side.
      known: known users and items.

    Returns:
      `offsets` u32[known users + 1], where each user's items begin, and the end; `items` [pairs], their numbers within
      the items' side, in the smallest unsigned integers that hold the largest.

    >>> graph = Graph(np.array([0, 2, 3, 4, 6]), np.array([2, 3, 3, 0, 0, 1]), np.ones(6))
    >>> compact = compact_graph(graph, users=2, known=(2, 2))
    >>> compact["offsets"].tolist(), compact["items"].tolist(), compact["items"].dtype.name
    ([0, 2, 3], [0, 1, 1], 'uint8')
    """
    chex.assert_rank([graph.indptr, graph.indices], 1)
    offsets = np.asarray(graph.indptr)[: known[0] + 1].astype(np.uint32)
    items = np.asarray(graph.indices)[: offsets[-1]] - users
    return {"offsets": offsets, "items": items.astype(np.min_scalar_type(max(known[1] - 1, 0)))}


def compact_graph_bytes(pairs: int, known: tuple[int, int]) -> int:
    """Bytes of the arrays of `compact_graph`.

    Args:
      pairs: distinct pairs of a user and an item.
      known: known users and items.

    >>> compact_graph_bytes(3, (2, 2)), compact_graph_bytes(1000, (100, 257))
    (15, 2404)
    """
    return 4 * (known[0] + 1) + pairs * np.min_scalar_type(max(known[1] - 1, 0)).itemsize


def sides(segment: Segment) -> tuple[int, int]:
    """Capacities of the user side and the item side.

    Args:
      segment: one segment, or several with leading axes.

    Returns:
      (U, V).
    """
    items = segment.popularity.shape[-1]
    return segment.frequency.shape[-1] - items, items


def active_mask(segment: Segment) -> jax.Array:
    """Mask of the nodes that exist at a segment's cut.

    Args:
      segment: one segment.

    Returns:
      bool[N], users first.
    """
    chex.assert_rank([segment.users, segment.items, segment.frequency, segment.popularity], [0, 0, 1, 2])
    users, items = sides(segment)
    return jnp.concatenate([jnp.arange(users) < segment.users, jnp.arange(items) < segment.items])
