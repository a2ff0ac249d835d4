"""Full-ranking evaluation: exact top-k over all candidate items, in blocks of users that bound memory."""

from collections.abc import Callable
from typing import NamedTuple, TypedDict, Unpack

import chex
import jax
import jax.numpy as jnp

from scall_jax.evaluation import top
from scall_jax.evaluation.top import KnownGraph
from scall_jax.ops.bisection import first_false
from scall_jax.ops.indexing import ceil_div, dynamic_slice, dynamic_update_slice, take
from scall_jax.ops.sums import padded_sum, sum_over_columns
from scall_jax.streams import RaggedItems

CUTOFFS = (5, 10, 20)
STRATA = ("all", "new", "warm")
BY_USER = tuple(
    f"{metric}{items}" for items in ("", " new items", " warm items") for metric in ("recall@20", "ndcg@20")
)
"""Columns of `Metrics.by_user`. Those of new (warm) items count the user's relevant items that are new (warm), and no
others: recall by their number, NDCG by an ideal list that has them first. All items are ranked, as for the others."""

DEPTH = max(CUTOFFS)
"""Items of each user that are looked at."""

Scorer = Callable[[jax.Array, jax.Array], jax.Array]
"""score(first, user i32[B]) -> f32[B, items], scores of the users in rows first, ..., first + B - 1 of a ranking."""

_Ranker = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""rank(first, user i32[B]) -> scores f32[B, 20], descending, -inf where no candidate is left, and items i32[B, 20], of
the users in these rows of a ranking."""


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

    >>> from scall_jax.streams import Graph
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
    columns = jnp.int32(user_vectors.shape[1]) if used_width is None else used_width

    def with_offset(offset):
        by_width = top.scorers(top.pad(item_vectors, offset.shape[0]), offset)
        return lambda first, user: by_width(
            jax.lax.dynamic_slice_in_dim(user_vectors, first, user.shape[0], allow_negative_indices=False), columns
        )

    return _evaluate(_by_scores(with_offset, known), item_bias, relevant, known.items, options)


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

    return _evaluate(_by_scores(with_offset, known), item_bias, relevant, known.items, options)


def evaluate_best(
    best_of: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    item_bias: jax.Array,
    relevant: RaggedItems,
    known_items: jax.Array,
    **options: Unpack[RankingOptions],
) -> Metrics:
    """Compare what has been ranked elsewhere.

    Args:
      best_of: from f32[padded items], what is added to the items' scores, -inf for those that are no candidates, to the
        best `DEPTH` items of each user of `relevant`: scores f32[Q or more, 20], descending, -inf where no candidate is
        left, and items i32 of this shape. Items that a user has met are not among them, and ties go to the lower one.
      item_bias: f32[V], added to scores.
      relevant: items to be found, by user.
      known_items: i32[], items known so far: ids below it.
      **options: as in `RankingOptions`.

    Returns:
      Metrics.

    Raises:
      ValueError: unknown candidates.
    """

    def ranker(offset: jax.Array) -> _Ranker:
        found = best_of(offset)

        def rank(first: jax.Array, user: jax.Array) -> tuple[jax.Array, jax.Array]:
            values, items = (dynamic_slice(x, (first, 0), (user.shape[0], DEPTH)) for x in found)
            return values, items

        return rank

    return _evaluate(ranker, item_bias, relevant, known_items, options)


def _by_scores(with_offset: Callable[[jax.Array], Scorer], known: KnownGraph) -> Callable[[jax.Array], _Ranker]:
    """`with_offset` takes f32[padded items] and gives a scorer of all padded items that adds this offset."""
    known = jax.tree.map(jnp.asarray, known)

    def ranker(offset: jax.Array) -> _Ranker:
        score = with_offset(offset)

        def rank(first: jax.Array, user: jax.Array) -> tuple[jax.Array, jax.Array]:
            return top.top_k(top.mask_seen_items(score(first, user), known, user, -jnp.inf), DEPTH)

        return rank

    return ranker


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
    ranker: Callable[[jax.Array], _Ranker],
    item_bias: jax.Array,
    relevant: RaggedItems,
    known_items: jax.Array,
    options: RankingOptions,
) -> Metrics:
    """`ranker` takes f32[padded items], which is added to scores."""
    candidates = options.get("candidates", "all")
    if candidates not in ("all", "segment"):
        raise ValueError(f"candidates={candidates!r}: choose all or segment")
    relevant, known_items = jax.tree.map(jnp.asarray, (relevant, known_items))
    padded_items = top.padded(item_bias.shape[0], DEPTH)
    queries = relevant.users.shape[0]
    most = top.at_once()
    block_users = max(1, min(most.users, queries, most.scores // padded_items))
    allowed = _allowed(padded_items, relevant, known_items, candidates)
    rank = ranker(jnp.where(allowed, top.pad(item_bias, padded_items), -jnp.inf))
    items_before = options.get("items_before", 0)

    def rank_block(number, totals):
        # A last block that would end beyond the capacity is moved back; users ranked twice are counted once.
        first = jnp.minimum(number * block_users, queries - block_users)
        row = first + jnp.arange(block_users, dtype=jnp.int32)
        user = take(relevant.users, row)
        values, best = rank(first, user)
        counted = (row >= number * block_users) & (row < relevant.count)
        return _add(totals, _Block(first, row, user, values, best, counted), relevant, items_before)

    blocks = ceil_div(relevant.count, block_users)
    start = _Totals(
        by_cutoff=jnp.zeros((queries, 2 * len(CUTOFFS))),
        best_place=jnp.full(padded_items, DEPTH, jnp.int32),
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
    recall, ndcg = jnp.split(sums / jnp.maximum(users, 1).astype(jnp.float32)[:, None], 2, axis=1)
    return Metrics(recall, ndcg, users, covered.astype(jnp.float32), totals.by_user, ranked)


def _allowed(padded_items: int, relevant: RaggedItems, known_items: jax.Array, candidates: str) -> jax.Array:
    """The candidates among the padded items; bool[padded items]."""
    allowed = jnp.arange(padded_items) < known_items
    if candidates == "segment":
        used = jnp.arange(relevant.items.shape[0]) < relevant.indptr[-1]
        at = jnp.where(used, relevant.items, padded_items)
        allowed &= jnp.zeros(padded_items, bool).at[at].set(True, mode="drop")
    return allowed


def _add(totals: _Totals, block: _Block, relevant: RaggedItems, items_before: chex.Numeric) -> _Totals:
    start, end = take(relevant.indptr, block.row), take(relevant.indptr, block.row + 1)
    hits = _contains(relevant.items, start, end, block.items) & jnp.isfinite(block.values)
    size = (end - start).astype(jnp.float32)
    each = [_recall_and_ndcg(hits, size, k) for k in CUTOFFS]
    recall, ndcg = (jnp.stack(columns, axis=1) for columns in zip(*each, strict=True))
    place = jnp.broadcast_to(jnp.arange(DEPTH, dtype=jnp.int32)[None, :], block.items.shape)
    shown = block.counted[:, None] & jnp.isfinite(block.values)
    item = jnp.where(shown, block.items, totals.best_place.shape[0])
    best_place = totals.best_place.at[item].min(place, mode="drop", wrap_negative_indices=False)
    first_new = jnp.full((len(block.row), 1), items_before, jnp.int32)
    size_warm = (_lower_bound(relevant.items, start, end, first_new)[:, 0] - start).astype(jnp.float32)
    by_items = (
        _recall_and_ndcg(hits & (block.items >= items_before), size - size_warm, DEPTH),
        _recall_and_ndcg(hits & (block.items < items_before), size_warm, DEPTH),
    )
    by_user = jnp.stack([recall[:, -1], ndcg[:, -1], *by_items[0], *by_items[1]], axis=1)
    in_use = (block.row < relevant.count)[:, None]

    def with_block(rows, new):
        return dynamic_update_slice(rows, jnp.where(in_use, new, 0.0), (block.first, 0))

    by_cutoff = with_block(totals.by_cutoff, jnp.concatenate([recall, ndcg], axis=1))
    return _Totals(by_cutoff, best_place, with_block(totals.by_user, by_user))


def _recall_and_ndcg(hits, size, k):
    """Of each row of hits bool[B, 20] at cutoff k, f32[B] both; `size` f32[B] relevant items, 0 gives 0."""
    discount = 1.0 / jnp.log2(jnp.arange(2, DEPTH + 2, dtype=jnp.float32))
    ideal = take(jnp.cumsum(discount), jnp.clip(size, 1, k).astype(jnp.int32) - 1)
    gains = sum_over_columns(jnp.where(hits, discount[None, :], 0.0)[:, :k])
    return hits[:, :k].sum(1).astype(jnp.float32) / jnp.maximum(size, 1), gains / ideal


def _contains(items, start, end, wanted):
    """Whether each of wanted i32[B, K] is in its row's ascending items[start:end]."""
    low = _lower_bound(items, start, end, wanted)
    return (low < end[:, None]) & (take(items, jnp.minimum(low, items.shape[0] - 1)) == wanted)


def _lower_bound(items, start, end, wanted):
    """First place in a row's ascending items[start:end] that is not below wanted i32[B, K]; i32[B, K]."""
    start, end = (jnp.broadcast_to(x[:, None], wanted.shape) for x in (start, end))
    last = items.shape[0] - 1
    return first_false(start, end, lambda at: take(items, jnp.minimum(at, last)) < wanted[..., None], last + 1)
