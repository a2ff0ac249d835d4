"""Segment: one step of the stream as a pytree of fixed shapes, so that segments stack and scan.

Capacities are those of the whole stream and lengths are data: U users, V items, N = U + V nodes (users first), E graph
entries, B segment users, R segment positives, Q evaluated users, T relevant pairs, H popularity statistics. Ids are
given by first appearance, so whoever is known at some moment is a prefix of each side.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Graph(NamedTuple):
    """Normalised adjacency D^-1/2 A D^-1/2 of users and items in compressed sparse rows; symmetric.

    Entries beyond indptr[-1] are padding: zero values that no row refers to.
    """

    indptr: jax.Array  # i32[N + 1]
    indices: jax.Array  # i32[E], ascending within a row
    values: jax.Array  # f32[E]
    chunks: tuple[tuple[jax.Array, jax.Array], ...] = ()  # by `recommenders.graph.planned`, from indptr; () is none


class RaggedItems(NamedTuple):
    """Ragged item lists of some users: users[i] has items[indptr[i]:indptr[i+1]], distinct and ascending."""

    users: jax.Array  # i32[B]
    indptr: jax.Array  # i32[B + 1]
    items: jax.Array  # i32[R]
    count: jax.Array  # i32[], users in use


class Segment(NamedTuple):
    """What may be known at the cut between training and validation of one segment, and the parts held back."""

    index: jax.Array  # i32[]
    users: jax.Array  # i32[], users seen by the end of the training part
    items: jax.Array  # i32[]
    users_before: jax.Array  # i32[], users seen before this segment; those from here to `users` are new
    items_before: jax.Array  # i32[]
    interactions: jax.Array  # i32[], rows of the segment, all parts, replay apart
    graph: Graph  # all interactions before the segment and its training part
    positives: RaggedItems  # segment's training part and replayed rows
    valid: RaggedItems  # relevant items by user: known at the cut and not among the user's training items
    test: RaggedItems
    dropped: jax.Array  # i32[2], rows of valid and test whose user or item is not known at the cut
    frequency: jax.Array  # i32[N], rows of the training part and of the replay
    total: jax.Array  # i32[N], rows before the cut
    recency: jax.Array  # i32[N], 1 + position of the last row before the cut, 0 if none
    popularity: jax.Array  # f32[H, V]: all-time, segment, then decayed counts by half-life


HALF_LIVES = (250, 500, 1000, 2000, 4000, 8000, 16000, 32000)
"""Half-lives of the decayed counts, in interactions."""

POPULARITY = ("all", "segment", *(f"decayed-{h}" for h in HALF_LIVES))
"""Names of the rows of `Segment.popularity`."""


CHUNK = 2**16
"""Rows worked on at once where numpy needs 64-bit copies of them."""


class Capacity(NamedTuple):
    """Static sizes shared by all segments of a stream."""

    users: int
    items: int
    edges: int
    positives: int
    valid: int
    test: int
    positive_users: int  # distinct users of the positives of one segment, at most
    valid_users: int
    test_users: int

    @property
    def nodes(self) -> int:
        """Users and items."""
        return self.users + self.items


def pad(values: np.ndarray, length: int, fill=0) -> np.ndarray:
    """The vector extended to `length`."""
    out = np.full(length, fill, values.dtype)
    out[: len(values)] = values
    return out


def counts(values: np.ndarray, length: int) -> np.ndarray:
    """How often each of 0, ..., length - 1 occurs; i32[length]."""
    total = np.zeros(length, np.int32)
    for start in range(0, len(values), CHUNK):
        total += np.bincount(values[start : start + CHUNK], minlength=length).astype(np.int32)
    return total


def sorted_rows(major: np.ndarray, minor: np.ndarray) -> np.ndarray:
    """Positions in the order of (major, minor, position), all of them not negative; i32[rows]."""
    rows = len(major)
    bits, minor_bits = max(rows - 1, 0).bit_length(), int(minor.max(initial=0)).bit_length()
    if int(major.max(initial=0)).bit_length() + minor_bits + bits > 63:
        return np.lexsort((minor, major)).astype(np.int32)
    # sorted in place, in one number each: no second array, and faster than an indirect sort
    key = major.astype(np.int64)
    for shift, low in ((minor_bits, minor), (bits, np.arange(rows, dtype=np.int32))):
        key <<= shift
        key |= low
    key.sort()
    key &= (1 << bits) - 1
    return key.astype(np.int32)


def make_ragged_items(
    user: np.ndarray, item: np.ndarray, capacity: int, most_users: int, rng: np.random.Generator | None = None
) -> RaggedItems:
    """Distinct pairs grouped by user, padded to `capacity` pairs and `most_users` users.

    Users ascend, or are in random order if `rng` is given.
    """
    keys = np.unique(user.astype(np.int64) << 32 | item.astype(np.int64))
    user, item = (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)
    users, starts, counts = np.unique(user, return_index=True, return_counts=True)
    if rng is not None:
        shuffled = rng.permutation(len(users))
        users, starts, counts = users[shuffled], starts[shuffled], counts[shuffled]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        item = item[np.repeat(starts, counts) + within]
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return RaggedItems(
        users=pad(users, most_users),
        indptr=pad(indptr, most_users + 1, indptr[-1]),
        items=pad(item, capacity),
        count=np.int32(len(users)),
    )


def make_graph(
    user: np.ndarray, item: np.ndarray, by_user: np.ndarray, by_item: np.ndarray, users: int, nodes: int, edges: int
) -> Graph:
    """Symmetric normalised graph.

    Args:
      user, item: of all rows.
      by_user: rows of the distinct pairs, sorted by user, then item.
      by_item: the same rows sorted by item, then user.
      users: capacity of the user side, where the items' nodes begin.
      nodes, edges: capacities.
    """
    pairs = len(by_user)
    parts = [slice(start, min(start + CHUNK, pairs)) for start in range(0, pairs, CHUNK)]
    degree = np.zeros(nodes, np.int64)
    for part in parts:
        degree[:users] += counts(user[by_user[part]], users)
        degree[users:] += counts(item[by_user[part]], nodes - users)
    indptr = np.concatenate([[0], np.cumsum(degree)]).astype(np.int32)
    scale = 1.0 / np.sqrt(np.maximum(degree, 1))
    indices, values = np.zeros(edges, np.int32), np.zeros(edges, np.float32)
    for part in parts:
        other = slice(part.start + pairs, part.stop + pairs)
        indices[part], indices[other] = item[by_user[part]] + users, user[by_item[part]]
        values[part] = scale[user[by_user[part]]] * scale[indices[part]]
        values[other] = scale[item[by_item[part]] + users] * scale[indices[other]]
    return Graph(indptr, indices, values)


def sides(segment: Segment) -> tuple[int, int]:
    """Capacities of users and items."""
    items = segment.popularity.shape[-1]
    return segment.frequency.shape[-1] - items, items


def active_mask(segment: Segment) -> jax.Array:
    """bool[N], nodes that exist at the segment's cut."""
    users, items = sides(segment)
    return jnp.concatenate([jnp.arange(users) < segment.users, jnp.arange(items) < segment.items])
