"""Full-ranking evaluation: exact top-k over all candidate items, in blocks of users that bound memory."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypedDict, Unpack

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.bisection import first_false
from scall_jax.ops.indexing import ceil_div, div, dynamic_update_slice, rem, take
from scall_jax.ops.sums import padded_sum
from scall_jax.streams import Graph, RaggedItems

CUTOFFS = (5, 10, 20)
STRATA = ("all", "new", "warm")
BY_USER = tuple(
    f"{metric}{items}" for items in ("", " new items", " warm items") for metric in ("recall@20", "ndcg@20")
)
"""Columns of `Metrics.by_user`. Those of new (warm) items count the user's relevant items that are new (warm), and no
others: recall by their number, NDCG by an ideal list that has them first. All items are ranked, as for the others."""

_DEPTH = max(CUTOFFS)
_CHUNK = 32  # items per chunk of the two-level top-k

Scorer = Callable[[jax.Array, jax.Array], jax.Array]
"""score(first, user i32[B]) -> f32[B, items], scores of the users in rows first, ..., first + B - 1 of a ranking."""


class Metrics(NamedTuple):
    """Means over evaluated users by stratum of `STRATA` and cutoff of `CUTOFFS`; 0 where a stratum has no user."""

    recall: jax.Array  # f32[3, 3], |hits| / |relevant items|
    ndcg: jax.Array  # f32[3, 3], ideal: min(|relevant items|, k) hits first
    users: jax.Array  # i32[3], users evaluated
    coverage: jax.Array  # f32[3], by cutoff: part of the candidates that are recommended to at least one user
    by_user: jax.Array  # f32[Q, 6], `BY_USER` of each user of `relevant`; 0 beyond its count, or without such items
    candidates: jax.Array  # i32[], items that are ranked, those that a user has met included

    def fitness(self) -> jax.Array:
        """Mean of Recall@20 and NDCG@20 over all users, the quantity that selection and reward use; f32[]."""
        return (self.recall[0, -1] + self.ndcg[0, -1]) / 2


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


class RankingOptions(TypedDict, total=False):
    """Options of every ranking, all of them optional."""

    users_before: jax.Array | int
    """i32[], users with a smaller id are warm, the others new; 0 by default."""
    items_before: jax.Array | int
    """i32[], items with a smaller id are warm, the others new; 0 by default."""
    candidates: str
    """`all` known items (the default), or `segment`: only items relevant to some user here, the published protocol."""


def evaluate(
    user_vectors: jax.Array,
    item_vectors: jax.Array,
    item_bias: jax.Array,
    relevant: RaggedItems,
    known: KnownGraph,
    *,
    used_width: jax.Array | None = None,
    **options: Unpack[RankingOptions],
) -> Metrics:
    """Rank items by inner products for the users of `relevant` and compare.

    Args:
      user_vectors: f32[Q, width], of relevant.users in this order.
      item_vectors: f32[V, width].
      item_bias: f32[V], added to inner products.
      relevant: items to be found, by user.
      known: interactions that are not recommended to their users again, and the items known so far.
      used_width: i32[], columns beyond it are zero; saves work.
      **options: as in `RankingOptions`.

    Returns:
      Metrics. Ties go to the lower item id.

    Raises:
      ValueError: unknown candidates.

    One user who has met none of three items is to be recommended the last one:

    >>> graph = Graph(jnp.zeros(5, jnp.int32), jnp.zeros(1, jnp.int32), jnp.zeros(1))
    >>> known = KnownGraph(graph, users=1, items=jnp.int32(3))
    >>> relevant = RaggedItems(jnp.array([0]), jnp.array([0, 1]), jnp.array([2]), jnp.int32(1))
    >>> vectors = jnp.ones((1, 1)), jnp.array([[1.0], [2.0], [3.0]])
    >>> metrics = jax.jit(evaluate)(*vectors, jnp.zeros(3), relevant, known)
    >>> float(metrics.recall[0, 0]), float(metrics.ndcg[0, 0]), int(metrics.users[0])
    (1.0, 1.0, 1)
    """
    chex.assert_rank([user_vectors, item_vectors, item_bias], [2, 2, 1])
    chex.assert_type([user_vectors, item_vectors, item_bias], float)
    chex.assert_equal_shape_prefix([user_vectors, relevant.users], 1)
    chex.assert_equal_shape_prefix([item_vectors, item_bias], 1)
    chex.assert_equal_shape_suffix([user_vectors, item_vectors], 1)
    used_width = jnp.int32(user_vectors.shape[1]) if used_width is None else used_width

    def with_offset(offset):
        by_width = _scorers(_pad(item_vectors, offset.shape[0]), offset)
        return lambda first, user: by_width(
            jax.lax.dynamic_slice_in_dim(user_vectors, first, user.shape[0], allow_negative_indices=False), used_width
        )

    return _evaluate(with_offset, item_bias, relevant, known, options)


def evaluate_scores(
    score: Scorer, item_bias: jax.Array, relevant: RaggedItems, known: KnownGraph, **options: Unpack[RankingOptions]
) -> Metrics:
    """Rank items by any scores for the users of `relevant` and compare.

    Args:
      score: score(first, user i32[B]) -> f32[B, V], scores of relevant.users[first : first + B].
      item_bias: f32[V], added to scores.
      relevant: items to be found, by user.
      known: interactions that are not recommended to their users again, and the items known so far.
      **options: as in `RankingOptions`.

    Returns:
      Metrics. Ties go to the lower item id.

    Raises:
      ValueError: unknown candidates.
    """
    chex.assert_rank(item_bias, 1)
    chex.assert_type(item_bias, float)

    def with_offset(offset):
        def scores(first, user):
            made = score(first, user)
            return jnp.pad(made, ((0, 0), (0, offset.shape[0] - made.shape[1]))) + offset[None, :]

        return scores

    return _evaluate(with_offset, item_bias, relevant, known, options)


class _Totals(NamedTuple):
    """What the users ranked so far have got."""

    by_cutoff: jax.Array  # f32[Q, 6], Recall, then NDCG of each user at each cutoff
    best_place: jax.Array  # i32[padded items], the highest place at which an item is recommended
    by_user: jax.Array  # f32[Q, 6]


class _Block(NamedTuple):
    """The recommendations to a block of B users."""

    first: jax.Array  # i32[], row of the first user
    row: jax.Array  # i32[B], rows of `relevant`
    user: jax.Array  # i32[B]
    values: jax.Array  # f32[B, 20], scores in descending order; -inf where there is no candidate left
    items: jax.Array  # i32[B, 20]
    counted: jax.Array  # bool[B], false for users of another block and beyond the count


def _evaluate(
    with_offset: Callable[[jax.Array], Scorer],
    item_bias: jax.Array,
    relevant: RaggedItems,
    known: KnownGraph,
    options: RankingOptions,
) -> Metrics:
    """`with_offset` takes f32[padded items] and gives a scorer of all padded items that adds this offset."""
    candidates = options.get("candidates", "all")
    if candidates not in ("all", "segment"):
        raise ValueError(f"candidates={candidates!r}: choose all or segment")
    relevant, known = jax.tree.map(jnp.asarray, (relevant, known))
    padded_items = _padded(item_bias.shape[0])
    queries = relevant.users.shape[0]
    most = _at_once()
    block_users = max(1, min(most.users, queries, most.scores // padded_items))
    allowed = _allowed(padded_items, relevant, known, candidates)
    score = with_offset(jnp.where(allowed, _pad(item_bias, padded_items), -jnp.inf))
    items_before = options.get("items_before", 0)

    def rank_block(number, totals):
        # A last block that would end beyond the capacity is moved back; users ranked twice are counted once.
        first = jnp.minimum(number * block_users, queries - block_users)
        row = first + jnp.arange(block_users, dtype=jnp.int32)
        user = take(relevant.users, row)
        scores = mask_seen_items(score(first, user), known, user, -jnp.inf)
        values, top = top_k(scores)
        counted = (row >= number * block_users) & (row < relevant.count)
        return _add(totals, _Block(first, row, user, values, top, counted), relevant, items_before)

    blocks = ceil_div(relevant.count, block_users)
    start = _Totals(
        by_cutoff=jnp.zeros((queries, 2 * len(CUTOFFS))),
        best_place=jnp.full(padded_items, _DEPTH, jnp.int32),
        by_user=jnp.zeros((queries, len(BY_USER))),
    )
    totals = jax.lax.fori_loop(0, blocks, rank_block, start)
    ranked = allowed.sum()
    covered = jnp.stack([(totals.best_place < k).sum() for k in CUTOFFS]) / jnp.maximum(ranked, 1)
    in_use = jnp.arange(queries, dtype=jnp.int32) < relevant.count
    new = relevant.users >= options.get("users_before", 0)
    strata = jnp.stack([in_use, in_use & new, in_use & ~new], axis=1)
    users = strata.sum(0, dtype=jnp.int32)
    # The sums run over all users at once, because the number of users in a block depends on the stream's largest part.
    sums = padded_sum(jnp.where(strata[:, :, None], totals.by_cutoff[:, None, :], 0.0))
    recall, ndcg = jnp.split(sums / jnp.maximum(users, 1)[:, None], 2, axis=1)
    return Metrics(recall, ndcg, users, covered.astype(jnp.float32), totals.by_user, ranked)


def _allowed(padded_items: int, relevant: RaggedItems, known: KnownGraph, candidates: str) -> jax.Array:
    """The candidates among the padded items; bool[padded items]."""
    allowed = jnp.arange(padded_items) < known.items
    if candidates == "segment":
        used = jnp.arange(relevant.items.shape[0]) < relevant.indptr[-1]
        at = jnp.where(used, relevant.items, padded_items)
        allowed &= jnp.zeros(padded_items, bool).at[at].set(True, mode="drop")
    return allowed


class _AtOnce(NamedTuple):
    """How much of a ranking is worked on at once."""

    users: int
    scores: int
    edges: int  # known interactions that are masked


def _at_once() -> _AtOnce:
    """On a CPU as much as stays in its caches, elsewhere enough to keep all units busy."""
    return by_backend(_AtOnce(1024, 2**20, 1024), _AtOnce(4096, 2**24, 2**18))


def _padded(items: int) -> int:
    """Items rounded up to whole chunks, enough of them for the two-level top-k."""
    return -(-max(items, _DEPTH * _CHUNK) // _CHUNK) * _CHUNK


def _pad(values, length):
    return jnp.pad(values, [(0, length - values.shape[0])] + [(0, 0)] * (values.ndim - 1))


def _scorers(item_vectors, offset):
    """Function (vectors, used width) -> scores + offset, which multiplies no more columns than a few static widths ask.

    The leading columns are copied once for each width, not in every block: a narrow product reads narrow rows.
    """
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


def mask_seen_items(scores: jax.Array, known: KnownGraph, user: jax.Array, value: float) -> jax.Array:
    """Scores with `value` where a row's user has met the item, a fixed number of interactions at a time.

    Args:
      scores: f32[B, V].
      known: interactions of all users.
      user: i32[B], users of the rows; they may repeat.
      value: put in place of the scores.

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
    ends = jnp.cumsum(degree)
    begins = ends - degree
    edges = min(_at_once().edges, graph.indices.shape[0])

    def body(carry):
        done, scores = carry
        flat = done + jnp.arange(edges, dtype=jnp.int32)
        row = jnp.searchsorted(ends, flat, side="right").astype(jnp.int32)
        valid = flat < ends[-1]
        row = jnp.where(valid, row, 0)
        item = take(graph.indices, jnp.where(valid, take(start, row) + flat - take(begins, row), 0)) - users
        row = jnp.where(valid, row, scores.shape[0])
        return done + edges, scores.at[row, item].set(value, mode="drop", wrap_negative_indices=False)

    return jax.lax.while_loop(lambda carry: carry[0] < ends[-1], body, (jnp.int32(0), scores))[1]


def top_k(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The 20 largest of each row, ties to the lower column.

    Exact in two levels: the 20 chunks with the largest maxima, in order of column, hold the 20 largest values,
    since each value of another chunk has 20 maxima before it.

    Args:
      scores: f32[B, n], n a multiple of 32.

    Returns:
      (values f32[B, 20] in descending order, columns i32[B, 20]).

    Raises:
      ValueError: n is no multiple of 32.

    >>> values, columns = top_k(jnp.arange(64.0)[None])
    >>> values[0, :3].tolist(), columns[0, :3].tolist()
    ([63.0, 62.0, 61.0], [63, 62, 61])
    """
    chex.assert_rank(scores, 2)
    chex.assert_type(scores, float)
    batch, n = scores.shape
    if n == 0 or n % _CHUNK:
        raise ValueError(f"top_k of {n} columns: pad them by -inf to a multiple of {_CHUNK}")
    chunked = scores.reshape(batch, n // _CHUNK, _CHUNK)
    _, chunk = jax.lax.top_k(chunked.max(-1), min(_DEPTH, n // _CHUNK))
    chunk = jnp.sort(chunk, axis=1)
    chosen = jnp.take_along_axis(chunked, chunk[:, :, None], axis=1).reshape(batch, -1)
    values, at = jax.lax.top_k(chosen, _DEPTH)
    return values, jnp.take_along_axis(chunk, div(at, _CHUNK), axis=1) * _CHUNK + rem(at, _CHUNK)


def _add(totals: _Totals, block: _Block, relevant: RaggedItems, items_before: chex.Numeric) -> _Totals:
    start, end = take(relevant.indptr, block.row), take(relevant.indptr, block.row + 1)
    hits = _contains(relevant.items, start, end, block.items) & jnp.isfinite(block.values)
    size = (end - start).astype(jnp.float32)
    each = [_recall_and_ndcg(hits, size, k) for k in CUTOFFS]
    recall, ndcg = (jnp.stack(columns, axis=1) for columns in zip(*each, strict=True))
    place = jnp.broadcast_to(jnp.arange(_DEPTH, dtype=jnp.int32)[None, :], block.items.shape)
    shown = block.counted[:, None] & jnp.isfinite(block.values)
    item = jnp.where(shown, block.items, totals.best_place.shape[0])
    best_place = totals.best_place.at[item].min(place, mode="drop", wrap_negative_indices=False)
    first_new = jnp.full((len(block.row), 1), items_before, jnp.int32)
    size_warm = (_lower_bound(relevant.items, start, end, first_new)[:, 0] - start).astype(jnp.float32)
    by_items = (
        _recall_and_ndcg(hits & (block.items >= items_before), size - size_warm, _DEPTH),
        _recall_and_ndcg(hits & (block.items < items_before), size_warm, _DEPTH),
    )
    by_user = jnp.stack([recall[:, -1], ndcg[:, -1], *by_items[0], *by_items[1]], axis=1)
    in_use = (block.row < relevant.count)[:, None]

    def with_block(rows, new):
        return dynamic_update_slice(rows, jnp.where(in_use, new, 0.0), (block.first, 0))

    by_cutoff = with_block(totals.by_cutoff, jnp.concatenate([recall, ndcg], axis=1))
    return _Totals(by_cutoff, best_place, with_block(totals.by_user, by_user))


def _recall_and_ndcg(hits, size, k):
    """Of each row of hits bool[B, 20] at cutoff k, f32[B] both; `size` f32[B] relevant items, 0 gives 0."""
    discount = 1.0 / jnp.log2(jnp.arange(2, _DEPTH + 2, dtype=jnp.float32))
    ideal = take(jnp.cumsum(discount), jnp.clip(size, 1, k).astype(jnp.int32) - 1)
    gains = jnp.where(hits, discount[None, :], 0.0)[:, :k].sum(1)
    return hits[:, :k].sum(1) / jnp.maximum(size, 1), gains / ideal


def _contains(items, start, end, wanted):
    """Whether each of wanted i32[B, K] is in its row's ascending items[start:end]."""
    low = _lower_bound(items, start, end, wanted)
    return (low < end[:, None]) & (take(items, jnp.minimum(low, items.shape[0] - 1)) == wanted)


def _lower_bound(items, start, end, wanted):
    """First place in a row's ascending items[start:end] that is not below wanted i32[B, K]; i32[B, K]."""
    start, end = (jnp.broadcast_to(x[:, None], wanted.shape) for x in (start, end))
    last = items.shape[0] - 1
    return first_false(start, end, lambda at: take(items, jnp.minimum(at, last)) < wanted[..., None], last + 1)
