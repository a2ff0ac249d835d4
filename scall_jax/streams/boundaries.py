"""Where segments begin, and where each segment's training, validation and test parts do."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from scall_jax.streams.stream import Bounds
from scall_jax.streams.times import Locate, form_of, in_milliseconds, parse
from scall_jax.streams.wording import option

_NEW_ENTITIES = 15000  # the number in the SCALL paper


def edges_by_time(time: np.ndarray, at: Sequence[Any], source: str) -> list[int]:
    """First rows of segments that start at given times, and the end.

    Args:
      time: i64[rows], milliseconds since 1970, ascending.
      at: timestamps, as `read` takes them.
      source: name used in messages.

    Raises:
      ValueError: something that is no timestamp, or a time outside the stream.
    """
    starts = _milliseconds(at)
    first, last = time[[0, -1]]
    if not ((starts > first) & (starts <= last)).all():
        shown = " to ".join(str(np.datetime64(int(x), "ms")) for x in (first, last))
        raise ValueError(f"{option('at')}={list(at)}: a time lies outside {source}, which goes from {shown}")
    inner = np.searchsorted(time, starts, side="left")
    return sorted({0, len(time), *inner.tolist()})


def _milliseconds(at: Sequence[Any]) -> np.ndarray:
    """Timestamps as `read` takes them, without options."""
    try:
        values = pl.Series(at)
        form = form_of(values, None)
        numbers = parse(values, form)
        for bad, problem in ((numbers.is_null(), "is not a timestamp"), (numbers < 0, "is before 1970")):
            if bad.any():
                raise ValueError(f"{values[int(bad.arg_true()[0])]!r} {problem}")
        if form.dates:
            return numbers.to_numpy()
        return in_milliseconds(numbers.to_numpy(), "auto", Locate(lambda i: f"time {i}", lambda i: f"time {i}"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{option('at')}={list(at)}: {error} (write dates as 2024-05-31)") from None


def edges_of_equal_parts(rows: int, segments: int, source: str) -> list[int]:
    """First rows of segments of equally many rows, and the end.

    Args:
      rows: number of rows.
      segments: number of segments.
      source: name used in messages.

    Raises:
      ValueError: fewer rows than segments, or no segment.
    """
    if not 1 <= segments <= rows:
        raise ValueError(f"{source}: {rows} rows do not make {option('segments')}={segments} segments")
    return np.linspace(0, rows, segments + 1).astype(int).tolist()


def edges_of_rows(rows: int, length: int, source: str) -> list[int]:
    """First rows of segments of so many rows each, and the end of the last of them that is complete.

    Args:
      rows: number of rows.
      length: rows of a segment.
      source: name used in messages.

    Raises:
      ValueError: no segment is complete.
    """
    if not 1 <= length <= rows:
        raise ValueError(f"{source}: {rows} rows do not make a segment of {option('rows')}={length} rows")
    return list(range(0, rows + 1, length))


def arrivals_limit(new_entities: int | None) -> int:
    """The number of new users and items that a segment may have: as given, or that of the SCALL paper."""
    return _NEW_ENTITIES if new_entities is None else new_entities


def edges_by_arrivals(user: np.ndarray, item: np.ndarray, new_entities: int | None) -> list[int]:
    """First rows of segments with at most so many new users and items, and the end.

    Args:
      user: i32[rows], users by first appearance.
      item: i32[rows], items by first appearance.
      new_entities: users and items that may be new in a segment; None for the number of the SCALL paper. A last segment
        with fewer than a tenth of them joins the one before it.

    Raises:
      ValueError: fewer than two new entities.
    """
    limit = arrivals_limit(new_entities)
    if limit < 2:
        raise ValueError(f"{option('new_entities')}={limit}: must be at least 2, a user and an item")
    known = np.maximum.accumulate(user) + np.maximum.accumulate(item) + 2  # entities known after each row
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


def parts_of_segments(
    edges: list[int],
    time: np.ndarray,
    split: tuple[float, float, float],
    align: bool,
    source: str,
    in_front: Sequence[int] | None = None,
    first: int = 0,
) -> tuple[Bounds, ...]:
    """Training, validation and test part of each segment.

    Args:
      edges: first rows of the segments, and the end.
      time: i64[rows], milliseconds since 1970, ascending.
      split: parts of train, valid and test, which add up to 1.
      align: move boundaries back so that no two rows of equal time lie on both sides, unless that would empty a part.
      source: name used in messages.
      in_front: for each segment replayed rows that are put in front of its own before both are split; none by default.
      first: number of the first of these segments, for messages.

    Raises:
      ValueError: a split that makes no sense, or a segment with too few rows.
    """
    # A comparison with NaN is false, so what must hold is asked for.
    if not (len(split) == 3 and min(split) >= 0 and abs(sum(split) - 1) <= 1e-6 and split[0] > 0 and split[2] > 0):
        raise ValueError(f"split={split}: three parts that add up to 1, train and test above 0")
    bounds: list[Bounds] = []
    for t, (start, end) in enumerate(itertools.pairwise(edges)):
        length, replayed = end - start, in_front[t] if in_front else 0
        train, valid = (round(part * (replayed + length)) - replayed for part in (split[0], split[0] + split[1]))
        part = Bounds(start, start + train, start + valid, end)
        if align and start < part.train <= part.valid < end:
            part = _aligned(time, part)
        ordered = start < part.train < end and part.train <= part.valid < end
        if not ordered or (split[1] > 0 and part.train == part.valid):
            raise ValueError(
                f"{source}: segment {first + t} has {length} rows, too few for train, valid and test parts: the stream "
                f"is too short to cut so, use fewer segments ({option('segments')}) or a larger "
                f"{option('new_entities')}"
            )
        bounds.append(part)
    return tuple(bounds)


def _aligned(time: np.ndarray, part: Bounds) -> Bounds:
    """The boundaries moved back to the first rows of equal time, or unchanged if a part would be empty."""
    inside = time[part.start : part.end]
    train = int(np.searchsorted(inside, time[part.train], side="left")) + part.start
    valid = int(np.searchsorted(inside, time[min(part.valid, part.end - 1)], side="left")) + part.start
    if part.train == part.valid:
        valid = train  # There is no part for validation.
    elif train == valid:
        return part
    return Bounds(part.start, train, valid, part.end) if part.start < train <= valid < part.end else part
