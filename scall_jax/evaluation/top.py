"""Scores of all items and their exact top-k, in blocks of users that bound memory: for evaluation and for serving."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.devices import ONE, MeshConfig, ask, most, part_of
from scall_jax.ops.indexing import ceil_div, div, dynamic_update_slice, rem, take
from scall_jax.streams import Graph

CHUNK = 32
"""Items per chunk of the two-level top-k in evaluation."""

_LEVELS = (128, 16)
"""Chunks where the depth is small beside the items: what is sorted is short at every level."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=("graph", "items"), meta_fields=("users",))
@dataclasses.dataclass(frozen=True)
class KnownGraph:
    """The known interactions, and which of their graph's nodes are known items."""

    graph: Graph
    """All known interactions, of N nodes: users, then items."""
    users: int
    """Capacity of the user side, where the items' nodes begin; static."""
    items: jax.Array
    """i32[], items known so far: ids below it."""


class AtOnce(NamedTuple):
    """How much of a ranking is worked on at once."""

    users: int
    scores: int
    edges: int  # known interactions that are masked


def at_once() -> AtOnce:
    """On a CPU as much as stays in its caches, elsewhere enough to keep all units busy."""
    return by_backend(AtOnce(1024, 2**20, 1024), AtOnce(4096, 2**24, 2**18))


def padded(items: int, depth: int, chunk: int = CHUNK) -> int:
    """Items rounded up to whole chunks, enough of them for the two-level top-k.

    >>> padded(150, depth=20), padded(1000, depth=20)
    (640, 1024)
    """
    return -(-max(items, depth * chunk) // chunk) * chunk


def pad(values: jax.Array, length: int) -> jax.Array:
    """Values f32[n, ...] with zeros behind them, f32[length, ...]."""
    return jnp.pad(values, [(0, length - values.shape[0])] + [(0, 0)] * (values.ndim - 1))


def scorers(item_vectors: jax.Array, offset: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Function (vectors, used width) -> scores + offset, which multiplies no more columns than a few static widths ask.

    The leading columns are copied once for each width, not in every block: a narrow product reads narrow rows.

    Args:
      item_vectors: f32[V, width].
      offset: f32[V], added to every row of scores.

    Returns:
      Function of (f32[B, width], i32[]) that gives f32[B, V].
    """
    chex.assert_rank([item_vectors, offset], [2, 1])
    chex.assert_equal_shape_prefix([item_vectors, offset], 1)
    width = item_vectors.shape[1]
    ends = [w for w in (16, 32, 64, 128) if w < width] + [width]
    # CPU: the offset is one more column of the product, which saves a pass over the scores. Accelerators: the sum is
    # fused anyway, and a product that splits numbers into parts turns -inf into NaN.
    as_column = by_backend(True, False)

    def with_column(vectors, column):
        return jnp.concatenate([vectors, column[:, None]], axis=1) if as_column else vectors

    parts = [with_column(item_vectors[:, :end], offset) for end in ends]

    def product(end, part):
        # Accelerators round factors to fewer bits by default; an exact ranking needs them all.
        return lambda vectors: jnp.matmul(
            with_column(vectors[:, :end], jnp.ones(len(vectors))), part.T, precision=jax.lax.Precision.HIGHEST
        )

    def scores(vectors, used_width):
        which = (used_width > jnp.asarray(ends[:-1], jnp.int32)).sum() if len(ends) > 1 else 0
        made = jax.lax.switch(which, [product(*pair) for pair in zip(ends, parts, strict=True)], vectors)
        return made if as_column else made + offset[None, :]

    return scores


def mask_seen_items(
    scores: jax.Array,
    known: KnownGraph,
    user: jax.Array,
    value: float,
    *,
    counted: jax.Array | None = None,
    first_item: jax.Array | int = 0,
    mesh: MeshConfig = ONE,
) -> jax.Array:
    """Scores with `value` where a row's user has met the item, a fixed number of interactions at a time.

    Args:
      scores: f32[B, V], of V items, one after another.
      known: interactions of all users; on several devices this one's part of the graph's entries.
      user: i32[B], users of the rows; they may repeat.
      value: put in place of the scores.
      counted: bool[B], rows to mask, None for all; the others, whose users stand for nobody, stay as they are.
      first_item: the item of the first column.
      mesh: devices that have a part of the entries each, and rows of their own; static.

    Returns:
      f32[B, V].

    The second of two users has met item 0, which is node 2:

    >>> graph = Graph(jnp.array([0, 0, 1, 2, 2]), jnp.array([2, 1]), jnp.ones(2))
    >>> mask_seen_items(jnp.ones((1, 2)), KnownGraph(graph, 2, jnp.int32(2)), jnp.array([1]), 0.0).tolist()
    [[0.0, 1.0]]
    """
    chex.assert_rank([scores, user], [2, 1])
    chex.assert_type([scores, user], [float, int])
    chex.assert_equal_shape_prefix([scores, user], 1)
    graph, users = jax.tree.map(jnp.asarray, known.graph), known.users
    start = take(graph.indptr, user)
    degree = take(graph.indptr, user + 1) - start
    degree = degree if counted is None else jnp.where(counted, degree, 0)
    ends = jnp.cumsum(degree)
    begins = ends - degree
    edges, last = min(at_once().edges, graph.indices.shape[0] * mesh.devices), most(mesh, ends[-1])

    def body(carry):
        done, scores = carry
        flat = done + jnp.arange(edges, dtype=jnp.int32)
        row = jnp.searchsorted(ends, flat, side="right").astype(jnp.int32)
        valid = flat < ends[-1]
        row = jnp.where(valid, row, 0)
        entry = jnp.where(valid, take(start, row) + flat - take(begins, row), 0)
        item = ask(mesh, entry, functools.partial(part_of, mesh, graph.indices)) - (users + first_item)
        row = jnp.where(valid, row, scores.shape[0])
        return done + edges, scores.at[row, item].set(value, mode="drop", wrap_negative_indices=False)

    return jax.lax.while_loop(lambda carry: carry[0] < last, body, (jnp.int32(0), scores))[1]


def top_k(scores: jax.Array, depth: int = 20, chunks: tuple[int, ...] = (CHUNK,)) -> tuple[jax.Array, jax.Array]:
    """The largest values of each row, ties to the lower column.

    Exact in levels: the `depth` chunks with the largest maxima, in order of column, hold the `depth` largest values,
    since each value of another chunk has as many maxima before it.

    Args:
      scores: f32[B, n], n a multiple of the first chunk and at least `depth`.
      depth: values of each row; static.
      chunks: columns of a chunk at each level, each a multiple of the next; static.

    Returns:
      (values f32[B, depth] in descending order, columns i32[B, depth]).

    Raises:
      ValueError: n is no such number.

    >>> values, columns = top_k(jnp.arange(64.0)[None])
    >>> values[0, :3].tolist(), columns[0, :3].tolist()
    ([63.0, 62.0, 61.0], [63, 62, 61])
    """
    chex.assert_rank(scores, 2)
    chex.assert_type(scores, float)
    (batch, n), (chunk, *finer) = scores.shape, chunks
    if n == 0 or n % chunk or n < depth:
        raise ValueError(f"top_k of {n} columns: pad them by -inf to a multiple of {chunk}, at least {depth}")
    chunked = scores.reshape(batch, n // chunk, chunk)
    _, best = jax.lax.top_k(chunked.max(-1), min(depth, n // chunk))
    best = jnp.sort(best, axis=1)
    chosen = jnp.take_along_axis(chunked, best[:, :, None], axis=1).reshape(batch, -1)
    values, at = top_k(chosen, depth, tuple(finer)) if finer else jax.lax.top_k(chosen, depth)
    return values, jnp.take_along_axis(best, div(at, chunk), axis=1) * chunk + rem(at, chunk)


def best_items(
    user_vectors: jax.Array,
    item_vectors: jax.Array,
    item_bias: jax.Array,
    seen: KnownGraph,
    depth: int,
) -> tuple[jax.Array, jax.Array]:
    """The best items of some users, by inner products plus the items' bias.

    Args:
      user_vectors: f32[B, width].
      item_vectors: f32[V, width].
      item_bias: f32[V].
      seen: items that are not to be recommended, row i of the graph those of row i of `user_vectors`, and the number of
        known items.
      depth: items of each user, static.

    Returns:
      (scores f32[B, depth], descending, -inf where no item is left; items i32[B, depth]). Ties go to the lower item.

    >>> seen = KnownGraph(Graph(jnp.array([0, 1]), jnp.array([2]), jnp.ones(1)), users=0, items=jnp.int32(3))
    >>> best_items(jnp.ones((1, 1)), jnp.array([[1.0], [3.0], [4.0]]), jnp.zeros(3), seen, depth=2)[1].tolist()
    [[1, 0]]
    """
    chex.assert_rank([user_vectors, item_vectors, item_bias], [2, 2, 1])
    chex.assert_equal_shape_suffix([user_vectors, item_vectors], 1)
    (users, width), items = user_vectors.shape, item_vectors.shape[0]
    # Where so many are asked for, chunks would be more columns than there are items: a sort of these is less work.
    few = depth * _LEVELS[0] > items
    length = max(items, depth) if few else padded(items, depth, _LEVELS[0])
    allowed = jnp.arange(length) < seen.items
    score = scorers(pad(item_vectors, length), jnp.where(allowed, pad(item_bias, length), -jnp.inf))
    most = at_once()
    block = max(1, min(most.users, users, 2 * most.scores // length))

    def rank_block(number, found):
        # A last block that would end beyond the capacity is moved back; its users are written twice.
        first = jnp.minimum(number * block, users - block)
        row = first + jnp.arange(block, dtype=jnp.int32)
        vectors = jax.lax.dynamic_slice_in_dim(user_vectors, first, block, allow_negative_indices=False)
        scores = mask_seen_items(score(vectors, jnp.int32(width)), seen, row, -jnp.inf)
        best = jax.lax.top_k(scores, depth) if few else top_k(scores, depth, _LEVELS)
        return tuple(dynamic_update_slice(whole, part, (first, 0)) for whole, part in zip(found, best, strict=True))

    start = jnp.zeros((users, depth)), jnp.zeros((users, depth), jnp.int32)
    return jax.lax.fori_loop(0, ceil_div(jnp.int32(users), block), rank_block, start)
