"""Interactions to a Stream: order, cores, segment boundaries, parts of a segment, replay."""

import itertools
from collections.abc import Sequence

import numpy as np
import polars as pl

from scall_jax.streams.interactions import Interactions
from scall_jax.streams.stream import Bounds, Stream
from scall_jax.streams.times import milliseconds

PUBLISHED_SPLIT = (0.8, 0.0, 0.2)


def cut(
    interactions: Interactions,
    *,
    new_entities: int | None = None,
    segments: int | None = None,
    at: Sequence | None = None,
    split: tuple[float, float, float] = (0.7, 0.1, 0.2),
    published: bool = False,
    replay: float = 0.2,
    k_core: int = 0,
    shuffle_ties: bool = False,
    max_segments: int | None = None,
    seed: int = 0,
) -> Stream:
    """Cut interactions into segments, and each segment into train | valid | test by time.

    Args:
      interactions: rows in source order; they are sorted by (time, source order).
      new_entities: start a new segment before the row with which new users + new items since the last cut exceed
        this (SCALL: 15,000; the default if no other rule is given). A last segment with fewer than a tenth
        as many joins the one before it.
      segments: instead, this many parts of equally many rows.
      at: instead, timestamps (seconds, milliseconds or text, as `read` takes them) at which segments start.
      split: parts of train, valid and test. A boundary moves back to the first row of the moment it falls into, so
        that no moment lies on both sides (an invoice is one moment), unless that would empty a part.
      published: the protocol of the SCALL code: 80/0/20 by rows, valid is test, earlier replay rows are replayed again.
      replay: rows of earlier segments trained on again, as a part of the segment's training rows; drawn without
        replacement from the rows of users in the training part.
      k_core: keep only users and items with at least this many rows, repeatedly. This looks at the whole file, so
        the later part of the stream decides which early rows are seen; 0 (default) does not.
      shuffle_ties: order rows of equal time at random (by `seed`) and not as the source has them, for day-granular
        data.
      max_segments: stop after this many segments.
      seed: of ties, replay and the order of evaluated users.

    Returns:
      A `Stream`; the same arguments give the same stream.

    Raises:
      ValueError: contradictory rules, a value out of its range, moments outside the stream, or a stream too short to
        cut.
    """
    if max_segments is not None and max_segments < 1:
        raise ValueError(f"max_segments={max_segments}: at least 1, or None for all")
    if seed < 0:
        raise ValueError(f"seed={seed}: must not be negative")
    rng = np.random.default_rng(seed)
    rows = _core(interactions, k_core) if k_core else interactions
    rows = _in_order(rows, shuffle_ties, rng)
    user, user_ids = _by_appearance(rows.user, rows.user_ids)
    item, item_ids = _by_appearance(rows.item, rows.item_ids)
    edges = _edges(rows, user, item, new_entities, segments, at)[: None if max_segments is None else max_segments + 1]
    split = PUBLISHED_SPLIT if published else split
    bounds = _parts(edges, rows.time, split, align=not published, source=rows.source)
    return Stream(
        user=user,
        item=item,
        time=rows.time,
        user_ids=user_ids,
        item_ids=item_ids,
        bounds=bounds,
        replay=_replay(user, bounds, replay, published, rng),
        select_on_test=split[1] == 0,
        seed=seed,
        source=rows.source,
    )


def _core(rows: Interactions, k: int) -> Interactions:
    while len(rows):
        active = np.bincount(rows.user)[rows.user] >= k
        active &= np.bincount(rows.item)[rows.item] >= k
        if active.all():
            return rows
        rows = rows.take(active)
    raise ValueError(f"{rows.source}: nothing is left of the {k}-core: lower k_core")


def _in_order(rows: Interactions, shuffle_ties: bool, rng) -> Interactions:
    if shuffle_ties:
        return rows.take(np.lexsort((rng.permutation(len(rows)), rows.time)))
    if (rows.time[1:] >= rows.time[:-1]).all():
        return rows
    return rows.take(np.argsort(rows.time, kind="stable"))


def _by_appearance(codes: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    rows = len(codes)
    first = np.full(len(ids), rows, np.int32)
    first[codes[::-1]] = np.arange(rows - 1, -1, -1, dtype=np.int32)  # of repeated codes the last assignment stays
    old = np.argsort(first, kind="stable")[: int((first < rows).sum())].astype(np.int32)
    if np.array_equal(old, np.arange(len(ids))):
        return codes, ids
    new = np.full(len(ids), -1, np.int32)
    new[old] = np.arange(len(old), dtype=np.int32)
    return new[codes], ids.gather(old)


def _edges(rows, user, item, new_entities, segments, at) -> list[int]:
    """First row of every segment, and the end."""
    if sum(rule is not None for rule in (new_entities, segments, at)) > 1:
        raise ValueError("give one of new_entities, segments and at")
    n = len(rows)
    if at is not None:
        opt_state = milliseconds(pl.Series(at), "auto", _Moments())
        first, last = rows.time[[0, -1]]
        if not ((opt_state > first) & (opt_state <= last)).all():
            shown = " to ".join(str(np.datetime64(int(x), "ms")) for x in (first, last))
            raise ValueError(f"at={list(at)}: a moment lies outside {rows.source}, which goes from {shown}")
        inner = np.searchsorted(rows.time, opt_state, side="left")
        return sorted({0, n, *inner.tolist()})
    if segments is not None:
        if not 1 <= segments <= n:
            raise ValueError(f"{rows.source}: {n} rows do not make {segments} segments")
        return np.linspace(0, n, segments + 1).astype(int).tolist()
    limit = 15000 if new_entities is None else new_entities
    if limit < 2:
        raise ValueError(f"new_entities={limit}: must be at least 2, a user and an item")
    return _edges_by_arrivals(user, item, limit)


class _Moments:
    def refuse(self, bad, role, problem, values):
        bad = bad.fill_null(True)
        if bad.any():
            raise ValueError(f"at: {values[bad.arg_true()[0]]!r} {problem}")


def _edges_by_arrivals(user, item, limit) -> list[int]:
    known = np.maximum.accumulate(user) + np.maximum.accumulate(item) + 2  # entities seen up to each row
    edges, before = [0], 0
    while True:
        edge = int(np.searchsorted(known, before + limit, side="right"))
        if edge >= len(user):
            break
        before = int(known[edge - 1])
        edges.append(edge)
    if len(edges) > 1 and known[-1] - before < limit / 10:
        edges.pop()
    return [*edges, len(user)]


def _parts(edges, time, split, align, source) -> tuple[Bounds, ...]:
    if len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6 or split[0] == 0 or split[2] == 0:
        raise ValueError(f"split={split}: three parts that add up to 1, train and test above 0")
    bounds = []
    for t, (start, end) in enumerate(itertools.pairwise(edges)):
        length = end - start
        train = start + round(split[0] * length)
        valid = start + round((split[0] + split[1]) * length)
        if align and start < train <= valid < end:
            train, valid = _aligned(time, start, train, valid, end)
        if not start < train < end or not train <= valid < end or (split[1] > 0 and train == valid):
            raise ValueError(
                f"{source}: segment {t} has {length} rows, too few for train, valid and test parts:"
                " the stream is too short to cut, use fewer segments or a larger new_entities"
            )
        bounds.append(Bounds(start, train, valid, end))
    return tuple(bounds)


def _aligned(time, start, train, valid, end):
    moved_train = int(np.searchsorted(time[start:end], time[train], side="left")) + start
    moved_valid = int(np.searchsorted(time[start:end], time[min(valid, end - 1)], side="left")) + start
    if start < moved_train < moved_valid < end:
        return moved_train, moved_valid
    return train, valid


def _replay(user, bounds, part, compounding, rng) -> tuple[np.ndarray, ...]:
    if not 0 <= part < float("inf"):
        raise ValueError(f"replay={part}: must be finite and not negative")
    drawn, pool = [], np.empty(0, np.int64)
    for b in bounds:
        current = np.zeros(int(user.max()) + 1, bool)
        current[user[b.start : b.end if compounding else b.train]] = True
        candidates = pool[current[user[pool]]] if part else pool[:0]
        length = (b.end if compounding else b.train) - b.start
        count = min(len(candidates), int(part * length))
        chosen = rng.choice(candidates, count, replace=False) if count else candidates[:0]
        drawn.append(np.sort(chosen))
        pool = np.concatenate(
            [pool, np.arange(b.start, b.end), drawn[-1]] if compounding else [pool, np.arange(b.start, b.end)]
        )
    return tuple(drawn)
