"""Answers of a model to requests, as frames by the caller's own ids."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from scall_jax.evaluation import KnownGraph, best_items
from scall_jax.recommenders.served import FoldIn, Served
from scall_jax.serving.data import ModelData
from scall_jax.streams import Graph

KNOWN, FOLDED, POPULARITY = "known", "folded in", "popularity"
"""Where a recommendation comes from: column `source`."""

_LEAST = 8
"""Requests are padded to powers of two from here on, so that few programs are compiled."""
_MOST = 4096
"""Users that are answered at once."""


class _Request(NamedTuple):
    """B users, and what the caller says of them."""

    users: pl.Series  # [B], ids
    rows: np.ndarray  # i64[B], -1 for unknown users
    places: np.ndarray  # i64[G], places in the request, ascending
    items: np.ndarray  # i64[G], known items that the users at these places have met, each once

    def part(self, start: int, end: int) -> "_Request":
        low, high = np.searchsorted(self.places, [start, end])
        within = slice(low, high)
        return _Request(self.users[start:end], self.rows[start:end], self.places[within] - start, self.items[within])


class _Pairs(NamedTuple):
    """Items of the users of a request in compressed rows."""

    offsets: np.ndarray  # i64[B + 1]
    items: np.ndarray  # i64[pairs]


def recommend(model: ModelData, users: Any, k: int, exclude_seen: bool, items_of: Any) -> pl.DataFrame:
    """Recommend items; see `Model.recommend`."""
    _check_count(k)
    request = _request(model, users, items_of)
    count = len(request.rows)
    parts = [
        _answer(model, request.part(start, min(start + _MOST, count)), k, exclude_seen)
        for start in range(0, count, _MOST)
    ]
    return pl.concat(parts)


def _request(model: ModelData, users: Any, items_of: Any) -> _Request:
    ids = model.users.ids if users is None else model.users.given(users)
    if not len(ids):
        raise ValueError("no users: give one id at least")
    rows = np.arange(len(ids)) if users is None else model.users.rows(ids)
    places, items = met_since(model, ids)
    if items_of is not None:
        more = _given(model, ids, items_of)
        pairs = np.unique(np.concatenate([places << 32 | items, more[0] << 32 | more[1]]))
        places, items = pairs >> 32, pairs & 0xFFFFFFFF
    return _Request(ids, rows, places, items)


def met_since(model: ModelData, ids: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Known items that users have met after the segment's cut (`ModelData.waiting`).

    Args:
      model: of which some of the users may be unknown.
      ids: [B], of users.

    Returns:
      Places in `ids`, i64[G] and ascending, and for each an item i64[G], ascending for each user.
    """
    users, seen = model.waiting
    if not len(users):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows = users.rows(ids)
    starts = np.where(rows >= 0, seen.offsets[rows], 0).astype(np.int64)
    lengths = np.where(rows >= 0, seen.offsets[rows + 1].astype(np.int64) - starts, 0)
    places, at = _ragged(starts, lengths)
    return places, seen.items[at].astype(np.int64)


def _given(model: ModelData, ids: pl.Series, items_of: Any) -> tuple[np.ndarray, np.ndarray]:
    """Places in a request and known items that their users have met, as the caller says."""
    given = _given_items(items_of)
    # Text, since the ids of a request and those beside it may be given in different types.
    given = pl.DataFrame({"user": given["user"].cast(pl.String), "row": model.items.rows(given["item"])})
    places = pl.DataFrame({"user": ids.cast(pl.String), "place": np.arange(len(ids), dtype=np.int64)})
    pairs = places.join(given.filter(pl.col("row") >= 0).unique(), on="user", nulls_equal=False).sort("place", "row")
    return pairs["place"].to_numpy(), pairs["row"].to_numpy()


def _given_items(items_of: Any) -> pl.DataFrame:
    """A frame with the columns `user` and `item`."""
    if isinstance(items_of, Mapping):
        items_of = {user: [items] if isinstance(items, str | int) else list(items) for user, items in items_of.items()}
        users = [user for user, items in items_of.items() for _ in items]
        found = [item for items in items_of.values() for item in items]
        texts = any(isinstance(x, str) for x in users), any(isinstance(x, str) for x in found)
        users, found = ([str(x) for x in xs] if text else xs for xs, text in zip((users, found), texts, strict=True))
        return pl.DataFrame({"user": pl.Series(users), "item": pl.Series(found)})
    if isinstance(items_of, pl.DataFrame) and {"user", "item"} <= set(items_of.columns):
        return items_of
    raise ValueError("items_of: give a dictionary from user to items, or a polars frame with columns user and item")


def _answer(model: ModelData, request: _Request, k: int, exclude_seen: bool) -> pl.DataFrame:
    """`recommend` for users that are answered at once."""
    served, known = model.served, request.rows >= 0
    given = np.zeros(len(known), bool)
    given[request.places] = True
    if model.personal:
        source = np.where(known, KNOWN, np.where(given & (model.fold_in is not None), FOLDED, POPULARITY))
    else:
        source = np.full(len(known), POPULARITY)
    met = _met(model, request)
    queries = np.zeros((len(known), served.items.shape[1]), np.float32)
    if len(served.users):
        own = source == KNOWN
        queries[own] = np.asarray(served.users)[request.rows[own]]
        folded = np.flatnonzero(source == FOLDED)
    else:
        folded = np.flatnonzero((source == KNOWN) | (source == FOLDED))
    if model.fold_in is not None and len(folded):
        queries[folded] = _folded(model.fold_in, served, _some(met, folded))
    popular = source == POPULARITY
    nothing = served._replace(users=np.zeros((0, 1)), items=np.zeros((len(model.items), 1), np.float32))
    found = []
    for places, by, vectors in (
        (np.flatnonzero(~popular), served, queries),
        (np.flatnonzero(popular), nothing._replace(bias=model.popularity), np.zeros((len(known), 1), np.float32)),
    ):
        if len(places):
            hidden = _some(met, places) if exclude_seen else _Pairs(np.zeros(len(places) + 1, np.int64), met.items[:0])
            found.append((places, *_ranked(by, vectors[places], hidden, k)))
    return _frame(model, request, source, found)


def _met(model: ModelData, request: _Request) -> _Pairs:
    """What the users of a request have met, in the run, since then, or as the caller says."""
    rows = request.rows
    starts = np.where(rows >= 0, model.seen.offsets[rows], 0).astype(np.int64)
    lengths = np.where(rows >= 0, model.seen.offsets[rows + 1].astype(np.int64) - starts, 0)
    place, at = _ragged(starts, lengths)
    place, item = np.concatenate([place, request.places]), np.concatenate([model.seen.items[at], request.items])
    pairs = np.unique(place << 32 | item.astype(np.int64)) if len(request.places) else place << 32 | item
    offsets = np.searchsorted(pairs, np.arange(len(rows) + 1) << 32)
    return _Pairs(offsets, pairs & 0xFFFFFFFF)


def _ragged(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of ranges that begin at i64[n] and are i64[n] long: the number of each element's range, and the elements."""
    ends = np.cumsum(lengths)
    number = np.repeat(np.arange(len(starts)), lengths)
    return number, np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths) + np.repeat(starts, lengths)


def _some(pairs: _Pairs, rows: np.ndarray) -> _Pairs:
    """Some of the rows."""
    if len(rows) == len(pairs.offsets) - 1:
        return pairs
    lengths = np.diff(pairs.offsets)[rows]
    return _Pairs(np.concatenate([[0], np.cumsum(lengths)]), pairs.items[_ragged(pairs.offsets[rows], lengths)[1]])


def _power(count: int) -> int:
    return max(_LEAST, 1 << max(count - 1, 0).bit_length())


def _folded(fold_in: FoldIn, served: Served, pairs: _Pairs) -> np.ndarray:
    """Vectors f32[B, D] of users by their items."""
    lengths = np.diff(pairs.offsets)
    lists = np.zeros((_power(len(lengths)), _power(int(lengths.max()))), np.int32)
    number, at = _ragged(np.zeros(len(lengths), np.int64), lengths)
    lists[number, at] = pairs.items
    counts = np.pad(lengths, (0, len(lists) - len(lengths))).astype(np.int32)
    return np.asarray(_fold_program(fold_in)(served, lists, counts))[: len(lengths)]


@functools.lru_cache(maxsize=16)
def _fold_program(fold_in: FoldIn) -> Any:
    def each(served: Served, lists: jax.Array, counts: jax.Array) -> jax.Array:
        # One user after another: side by side, the vectors of all their items would be in memory at once.
        return jax.lax.map(lambda one: fold_in(served, *one), (lists, counts))

    return jax.jit(each)


_best = jax.jit(best_items, static_argnames="depth")


def _ranked(served: Served, queries: np.ndarray, hidden: _Pairs, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores f32[B, n] and items i32[B, n] of users by their vectors, n = k or, where that is less, all items."""
    depth = min(k, len(served.items))
    users, room = _power(len(queries)), _power(len(hidden.items))
    offsets = np.pad(hidden.offsets, (0, users - len(queries)), mode="edge").astype(np.int32)
    items = np.pad(hidden.items, (0, room - len(hidden.items))).astype(np.int32)
    padded = np.pad(queries, ((0, users - len(queries)), (0, 0)))
    seen = KnownGraph(Graph(jnp.asarray(offsets), jnp.asarray(items), jnp.zeros(0)), 0, jnp.int32(len(served.items)))
    scores, found = _best(padded, served.items, served.bias, seen, depth=depth)
    return np.asarray(scores)[: len(queries)], np.asarray(found)[: len(queries)]


def _frame(
    model: ModelData, request: _Request, source: np.ndarray, found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> pl.DataFrame:
    places, scores, items = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(places, kind="stable")
    places, scores, items = places[order], scores[order], items[order]
    place = np.repeat(places, scores.shape[1])
    frame = pl.DataFrame(
        {
            "user": request.users[place],
            "rank": np.tile(np.arange(1, scores.shape[1] + 1, dtype=np.uint32), len(places)),
            "item": model.items.ids[np.minimum(items.ravel(), len(model.items) - 1)],
            "score": scores.ravel(),
            "source": pl.Series(source)[place],
        }
    )
    left = np.isfinite(scores)
    return frame if left.all() else frame.filter(left.ravel())


def similar_items(model: ModelData, items: Any, k: int) -> pl.DataFrame:
    """Items by the cosine of their vectors; see `Model.similar_items`."""
    _check_count(k)
    ids = model.items.given(items)
    rows = model.items.rows(ids)
    if (rows < 0).any() or not len(rows):
        unknown = ids.filter(rows < 0).to_list()[:3]
        raise ValueError(f"items {unknown}: not among the {len(model.items):,} known ones")
    vectors = np.asarray(model.served.items)
    if not vectors.any():
        raise ValueError(f"method {model.config.method} has no vectors of items: choose one with embeddings, or ease")
    # Squares of small coordinates, as vectors of items that were last met long ago have, would be 0 in float32.
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = vectors / np.where(largest > 0, largest, 1.0)
    unit = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1.0)
    own = _Pairs(np.arange(len(rows) + 1), rows)
    cosines = Served(jnp.zeros((0, unit.shape[1])), jnp.asarray(unit), jnp.zeros(len(unit)))
    found = _ranked(cosines, unit[rows], own, k)
    frame = _frame(model, _Request(ids, rows, rows[:0], rows[:0]), rows, [(np.arange(len(rows)), *found)])
    return frame.select(item="user", rank="rank", similar="item", score="score")


def _check_count(k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
