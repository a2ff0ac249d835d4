"""Full-ranking evaluation: exact top-k over all candidate items, in blocks of users that bound memory."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.bisection import first_false
from scall_jax.ops.indexing import ceil_div, div, dynamic_update_slice, rem, take
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


class Metrics(NamedTuple):
    """Means over evaluated users by stratum of `STRATA` and cutoff of `CUTOFFS`; 0 where a stratum has no user."""

    recall: jax.Array  # f32[3, 3], |hits| / |relevant items|
    ndcg: jax.Array  # f32[3, 3], ideal: min(|relevant items|, k) hits first
    users: jax.Array  # i32[3], users evaluated
    coverage: jax.Array  # f32[3], by cutoff: part of the candidates that someone gets recommended
    by_user: jax.Array  # f32[Q, 6], `BY_USER` of each user of `relevant`; 0 beyond its count, or without such items

    def fitness(self) -> jax.Array:
        """Mean of Recall@20 and NDCG@20 over all users, the quantity that selection and reward use; f32[]."""
        return (self.recall[0, -1] + self.ndcg[0, -1]) / 2


def evaluate(
    user_vectors: jax.Array,
    item_vectors: jax.Array,
    item_bias: jax.Array,
    relevant: RaggedItems,
    graph: Graph,
    users: int,
    items: jax.Array,
    *,
    users_before: jax.Array | int = 0,
    items_before: jax.Array | int = 0,
    used_width: jax.Array | None = None,
    candidates: str = "all",
) -> Metrics:
    """Rank items by inner products for the users of `relevant` and compare.

    Args:
      user_vectors: f32[Q, width], of relevant.users in this order.
      item_vectors: f32[V, width].
      item_bias: f32[V], added to inner products.
      relevant: items to be found, by user.
      graph: known interactions; a user's are not recommended.
      users: capacity of the user side.
      items: i32[], items known: the candidates.
      users_before, items_before: users and items with a smaller id are warm, the others new.
      used_width: i32[], columns beyond it are zero; saves work.
      candidates: `all` known items, or `segment`: only items relevant to some user here (the published protocol).

    Returns:
      Metrics. Ties go to the lower item id.

    Raises:
      ValueError: unknown candidates.
    """
    used_width = jnp.int32(user_vectors.shape[1]) if used_width is None else used_width

    def with_offset(offset):
        by_width = _scorers(_pad(item_vectors, offset.shape[0]), offset)
        return lambda first, user: by_width(
            jax.lax.dynamic_slice_in_dim(user_vectors, first, user.shape[0], allow_negative_indices=False), used_width
        )

    before = users_before, items_before
    return _evaluate(with_offset, item_bias, relevant, graph, users, items, before, candidates)


def evaluate_scores(
    score: Callable[[jax.Array, jax.Array], jax.Array],
    item_bias: jax.Array,
    relevant: RaggedItems,
    graph: Graph,
    users: int,
    items: jax.Array,
    *,
    users_before: jax.Array | int = 0,
    items_before: jax.Array | int = 0,
    candidates: str = "all",
) -> Metrics:
    """As `evaluate`, by any scores: score(first, user i32[B]) -> f32[B, V] of relevant.users[first : first + B].

    Raises:
      ValueError: unknown candidates.
    """

    def with_offset(offset):
        def scores(first, user):
            made = score(first, user)
            return jnp.pad(made, ((0, 0), (0, offset.shape[0] - made.shape[1]))) + offset[None, :]

        return scores

    before = users_before, items_before
    return _evaluate(with_offset, item_bias, relevant, graph, users, items, before, candidates)


def _evaluate(with_offset, item_bias, relevant: RaggedItems, graph: Graph, users, items, before, candidates) -> Metrics:
    """with_offset(f32[padded items]) -> function(first, user i32[B]) -> scores f32[B, padded items] plus the offset."""
    if candidates not in ("all", "segment"):
        raise ValueError(f"candidates={candidates!r}: choose all or segment")
    relevant, graph = jax.tree.map(jnp.asarray, (relevant, graph))
    padded_items = _padded(item_bias.shape[0])
    queries = relevant.users.shape[0]
    most = _at_once()
    block = max(1, min(most.users, queries, most.scores // padded_items))
    allowed = jnp.arange(padded_items) < items
    if candidates == "segment":
        wanted = jnp.arange(relevant.items.shape[0]) < relevant.indptr[-1]
        at = jnp.where(wanted, relevant.items, padded_items)
        allowed &= jnp.zeros(padded_items, bool).at[at].set(True, mode="drop")
    score = with_offset(jnp.where(allowed, _pad(item_bias, padded_items), -jnp.inf))

    def rank_block(number, totals):
        # the last block of a full capacity is moved back; users seen twice count once
        first = jnp.minimum(number * block, queries - block)
        at = first + jnp.arange(block, dtype=jnp.int32)
        user = take(relevant.users, at)
        scores = mask_seen_items(score(first, user), graph, user, users, -jnp.inf)
        values, top = top_k(scores)
        counted = (at >= number * block) & (at < relevant.count)
        totals, single = _add(totals[:-1], values, top, at, user, counted, relevant, before), totals[-1]
        *totals, block_values = totals
        return (*totals, dynamic_update_slice(single, block_values, (first, 0)))

    blocks = ceil_div(relevant.count, block)
    zeros = (
        jnp.zeros((3, 3)),
        jnp.zeros((3, 3)),
        jnp.zeros(3, jnp.int32),
        jnp.full(padded_items, _DEPTH, jnp.int32),
        jnp.zeros((queries, len(BY_USER))),
    )
    recall, ndcg, count, best, by_user = jax.lax.fori_loop(0, blocks, rank_block, zeros)
    covered = jnp.stack([(best < k).sum() for k in CUTOFFS]) / jnp.maximum(allowed.sum(), 1)
    scale = 1.0 / jnp.maximum(count, 1)[:, None]
    return Metrics(recall * scale, ndcg * scale, count, covered.astype(jnp.float32), by_user)


class _AtOnce(NamedTuple):
    """How much of a ranking is worked on at once."""

    users: int
    scores: int
    edges: int  # known interactions put out of the ranking


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
    # as one more column the offset needs no pass of its own; accelerators fuse the sum, and split -inf into parts
    as_column = by_backend(True, False)

    def with_column(vectors, column):
        return jnp.concatenate([vectors, column[:, None]], axis=1) if as_column else vectors

    parts = [with_column(item_vectors[:, :end], offset) for end in ends]

    def product(end, part):
        # exact ranking: accelerators would round to fewer bits
        return lambda vectors: jnp.matmul(
            with_column(vectors[:, :end], jnp.ones(len(vectors))), part.T, precision=jax.lax.Precision.HIGHEST
        )

    def scores(vectors, used_width):
        which = (used_width > jnp.asarray(ends[:-1], jnp.int32)).sum() if len(ends) > 1 else 0
        made = jax.lax.switch(which, [product(*pair) for pair in zip(ends, parts, strict=True)], vectors)
        return made if as_column else made + offset[None, :]

    return scores


def mask_seen_items(scores: jax.Array, graph: Graph, user: jax.Array, users: int, value: float) -> jax.Array:
    """f32[B, V] with `value` where a row's user has the item, a fixed number of interactions at a time.

    `user` i32[B] may repeat; `users` is the capacity of the user side, where the items' nodes begin.
    """
    graph = jax.tree.map(jnp.asarray, graph)
    start = take(graph.indptr, user)
    known = take(graph.indptr, user + 1) - start
    ends = jnp.cumsum(known)
    begins = ends - known
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
    """The 20 largest of each row, (f32[B, 20], i32[B, 20]), ties to the lower column.

    Exact in two levels: the 20 chunks with the largest maxima, in order of column, hold the 20 largest values,
    since each value of another chunk has 20 maxima before it.
    """
    batch, n = scores.shape
    chunked = scores.reshape(batch, n // _CHUNK, _CHUNK)
    _, chunk = jax.lax.top_k(chunked.max(-1), min(_DEPTH, n // _CHUNK))
    chunk = jnp.sort(chunk, axis=1)
    kept = jnp.take_along_axis(chunked, chunk[:, :, None], axis=1).reshape(batch, -1)
    values, at = jax.lax.top_k(kept, _DEPTH)
    return values, jnp.take_along_axis(chunk, div(at, _CHUNK), axis=1) * _CHUNK + rem(at, _CHUNK)


def _add(totals, values, top, at, user, counted, relevant: RaggedItems, before):
    recall, ndcg, count, best = totals
    start, end = take(relevant.indptr, at), take(relevant.indptr, at + 1)
    hits = _contains(relevant.items, start, end, top) & jnp.isfinite(values)
    size = (end - start).astype(jnp.float32)
    new = user >= before[0]
    strata = jnp.stack([counted, counted & new, counted & ~new]).astype(jnp.float32)
    each = [_recall_and_ndcg(hits, size, k) for k in CUTOFFS]
    r, g = (jnp.stack(columns, axis=1) for columns in zip(*each, strict=True))
    place = jnp.broadcast_to(jnp.arange(_DEPTH, dtype=jnp.int32)[None, :], top.shape)
    shown = counted[:, None] & jnp.isfinite(values)
    best = best.at[jnp.where(shown, top, best.shape[0])].min(place, mode="drop", wrap_negative_indices=False)
    highest = jax.lax.Precision.HIGHEST
    recall += jnp.matmul(strata, r, precision=highest)
    ndcg += jnp.matmul(strata, g, precision=highest)
    first_new = jnp.full((len(at), 1), before[1], jnp.int32)
    size_warm = (_lower_bound(relevant.items, start, end, first_new)[:, 0] - start).astype(jnp.float32)
    by_items = (
        _recall_and_ndcg(hits & (top >= before[1]), size - size_warm, _DEPTH),
        _recall_and_ndcg(hits & (top < before[1]), size_warm, _DEPTH),
    )
    single = jnp.stack([r[:, -1], g[:, -1], *by_items[0], *by_items[1]], axis=1)
    single = jnp.where((at < relevant.count)[:, None], single, 0.0)
    return recall, ndcg, count + strata.sum(1).astype(jnp.int32), best, single


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
