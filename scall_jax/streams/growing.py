"""Growing: a stream that has been cut as far as it goes, and the rows that wait until a segment of them is complete."""

import dataclasses
from typing import Literal

import numpy as np
import polars as pl

from scall_jax.streams.divide import divide
from scall_jax.streams.interactions import Interactions, from_arrays
from scall_jax.streams.random_choices import Choice, generator
from scall_jax.streams.rule import Rule
from scall_jax.streams.segments import Capacity
from scall_jax.streams.stream import Stream
from scall_jax.streams.times import shown
from scall_jax.streams.wording import WAITS, option

Late = Literal["refuse", "clamp"]
"""What becomes of rows from before the last cut: an error, or rows at the time of the last cut row."""


@dataclasses.dataclass(frozen=True, eq=False)
class Growing:
    """A stream that goes on.

    >>> import jax
    >>> from scall_jax import streams
    >>> rows = streams.synthetic(jax.random.key(0), users=100, items=50, interactions=1000)
    >>> early, late = (rows.take(np.argsort(rows.time, kind="stable")[part]) for part in (slice(700), slice(700, None)))
    >>> grown = advance(growing(streams.cut(early, rows=250)), late)
    >>> len(grown.stream), len(grown.waiting), grown.stream.fingerprint == streams.cut(rows, rows=250).fingerprint
    (4, 0, True)
    """

    stream: Stream
    """All rows that are in segments; its capacities are larger than they need to be (`Stream.reserved`)."""
    waiting: pl.DataFrame
    """Rows that are in none yet, in the order in which they arrived: `user` and `item`, ids as they were given, and
    `time`, i64, milliseconds since 1970."""

    @property
    def clock(self) -> int:
        """Time of the last row that is in a segment; no earlier row can be placed. Milliseconds since 1970."""
        return int(self.stream.time[-1])

    @property
    def rule(self) -> Rule:
        """How the stream is cut."""
        assert self.stream.rule is not None
        return self.stream.rule


def growing(stream: Stream) -> Growing:
    """A stream that can go on.

    Args:
      stream: which was cut by a rule.

    Returns:
      Its segments, and the rows after them.

    Raises:
      ValueError: nobody knows how it was cut, or which rows count depends on the whole of it.
    """
    rule = stream.rule
    if rule is None:
        raise ValueError(f"{stream.source}: an earlier version cut it and did not keep the rule: make the run anew")
    if rule.k_core:
        raise ValueError(
            f"{stream.source}: was cut with {option('k_core')}={rule.k_core}, so that later rows decide which earlier "
            f"ones are used: it cannot go on; make the run anew with {option('k_core')}=0"
        )
    end = stream.bounds[-1].end
    users, items = stream.known(end)
    waiting = pl.DataFrame(
        {
            "user": stream.user_ids.gather(stream.user[end:]),
            "item": stream.item_ids.gather(stream.item[end:]),
            "time": pl.Series(stream.time[end:], dtype=pl.Int64),
        }
    )
    finished = dataclasses.replace(
        stream,
        user=stream.user[:end],
        item=stream.item[:end],
        time=stream.time[:end],
        user_ids=stream.user_ids[:users],
        item_ids=stream.item_ids[:items],
        notes=tuple(note for note in stream.notes if not note.endswith(WAITS)),
        waits=True,
        reserved=Capacity(*[0] * len(Capacity._fields)),
    )
    return Growing(finished, waiting)


def advance(
    before: Growing, rows: Interactions | pl.DataFrame, late: Late = "refuse", source: str | None = None
) -> Growing:
    """Add rows to a stream, and cut the segments that are complete then.

    Rows are sorted by time among those that wait; rows of equal time stay in the order in which they arrived.

    Args:
      before: the stream; it is not changed.
      rows: new ones in any order, by the caller's ids: interactions, or a frame with the columns `user`, `item` and
        `time` (dates, or integers in milliseconds since 1970).
      late: what becomes of rows that are earlier than the last row of a segment: an error, or they are placed at the
        time of that row.
      source: what messages call the rows; None for the name that interactions have, and "new rows" for a frame.

    Returns:
      The stream with all rows. How they were divided into calls makes no difference, unless some were clamped or rows
      of equal time are shuffled.

    Raises:
      ValueError: late rows; rows of another form, or with a value missing; a segment with too few rows to be divided.
    """
    name = source or (rows.source if isinstance(rows, Interactions) else "new rows")
    waiting = joined(before.waiting, _placed(as_frame(rows, name), before, late, name))
    if not _may_be_complete(before.rule, len(waiting)):
        return Growing(before.stream, waiting)
    return _cut(before.stream, before.rule, waiting)


def _may_be_complete(rule: Rule, rows: int) -> bool:
    """Whether so many rows can complete a segment: a row brings a user and an item at most."""
    return rows >= rule.rows if rule.rows is not None else 2 * rows > (rule.new_entities or 0)


def _cut(stream: Stream, rule: Rule, waiting: pl.DataFrame) -> Growing:
    """Cut the segments that are complete."""
    start, time = len(stream.user), waiting["time"].to_numpy()
    order = np.argsort(time, kind="stable")
    placed = order
    if rule.shuffle_ties:
        # Each row draws the number of its place in the sorted stream, as in `row_order.in_order`.
        ties = generator(stream.seed, Choice.TIES).random(start + len(order))[start:]
        placed = order[np.lexsort((ties, time[order]))]
    user, user_ids = numbered(stream.user_ids, waiting["user"].gather(placed))
    item, item_ids = numbered(stream.item_ids, waiting["item"].gather(placed))
    users, items = len(stream.user_ids), len(stream.item_ids)
    known = sum(np.maximum(np.maximum.accumulate(x) + 1, n) for x, n in ((user, users), (item, items)))
    ends = rule.complete(users + items, np.asarray(known))
    if not ends:
        return Growing(stream, waiting)
    new, rest = placed[: ends[-1]], np.ones(len(order), bool)
    rest[new] = False
    user, item = (np.concatenate([old, x[: len(new)]]) for old, x in ((stream.user, user), (stream.item, item)))
    time = np.concatenate([stream.time, time[new]])
    edges, earlier = [start, *(start + end for end in ends)], (stream.bounds, stream.replay)
    bounds, replay = divide(rule, user, item, time, edges, stream.seed, stream.source, earlier)
    grown = dataclasses.replace(
        stream,
        user=user,
        item=item,
        time=time,
        user_ids=user_ids[: int(user.max()) + 1],
        item_ids=item_ids[: int(item.max()) + 1],
        bounds=bounds,
        replay=replay,
        reserved=stream.capacity,
    )
    return Growing(grown, waiting[order[rest[order]]])


def _placed(rows: pl.DataFrame, before: Growing, late: Late, source: str) -> pl.DataFrame:
    """Rows, none of which is earlier than the clock."""
    if late not in ("refuse", "clamp"):
        raise ValueError(f"late={late!r}: choose refuse or clamp")
    early = (rows["time"] < before.clock).arg_true()
    if not len(early):
        return rows
    if late == "clamp":
        return rows.with_columns(time=pl.col("time").clip(before.clock))
    first, clock = rows.row(int(early[0]), named=True), shown(before.clock)
    raise ValueError(
        f"{source}: {len(early):,} of {len(rows):,} new row(s) are earlier than the last row of a "
        f"segment, {clock}, and cannot be placed; the first is user {first['user']!r}, item {first['item']!r}, "
        f"{shown(first['time'])}: leave them out, or {option('late', 'clamp')} places them at {clock}"
    )


def as_frame(rows: Interactions | pl.DataFrame, source: str) -> pl.DataFrame:
    """Rows as `Growing.waiting` has them.

    Args:
      rows: interactions, or a frame with the columns `user`, `item` and `time`, dates or integers in milliseconds.
      source: name used in messages.

    Raises:
      ValueError: other columns, a missing value, or what `from_arrays` refuses.

    >>> as_frame(pl.DataFrame({"item": [5], "user": ["ann"], "time": [1000]}), "rows").row(0)
    ('ann', 5, 1000)
    """
    if isinstance(rows, pl.DataFrame):
        missing = [name for name in ("user", "item", "time") if name not in rows.columns]
        if missing:
            raise ValueError(f"{source}: new rows have no column {missing[0]!r}: give user, item and time")
        time = rows["time"]
        if time.dtype == pl.Date or isinstance(time.dtype, pl.Datetime):
            time = time.cast(pl.Datetime("ms")).cast(pl.Int64)
        elif not time.dtype.is_integer() and len(time):
            raise ValueError(f"{source}: times are {time.dtype}: give dates, or integers in milliseconds since 1970")
        if time.null_count():
            raise ValueError(f"{source}, row {int(time.is_null().arg_true()[0])}: the time is missing")
        users, items = _as_id(rows["user"], source), _as_id(rows["item"], source)
        rows = from_arrays(users, items, time.to_numpy(), source)
    return pl.DataFrame(
        {
            "user": rows.user_ids.gather(rows.user),
            "item": rows.item_ids.gather(rows.item),
            "time": pl.Series(rows.time, dtype=pl.Int64),
        }
    )


def _as_id(ids: pl.Series, source: str) -> pl.Series:
    """A column of integers or text, or of floats that are whole numbers."""
    if ids.dtype.is_integer() or ids.dtype.is_float() or ids.dtype == pl.String:
        return ids
    if ids.dtype in (pl.Categorical, pl.Enum, pl.Null):
        return ids.cast(pl.String)
    raise ValueError(f"{source}: ids of {ids.name}s are {ids.dtype}: give integers or text")


def rows_of(found: Growing) -> pl.DataFrame:
    """All rows in the order of time, those that wait behind the others; columns as `Growing.waiting` has them."""
    stream, waiting = found.stream, found.waiting
    finished = pl.DataFrame(
        {
            "user": stream.user_ids.gather(stream.user),
            "item": stream.item_ids.gather(stream.item),
            "time": pl.Series(stream.time, dtype=pl.Int64),
        }
    )
    return joined(finished, waiting.sort("time", maintain_order=True))


def same_rows(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Whether two frames have the same rows, in any order, ids compared as text.

    >>> one = pl.DataFrame({"user": [1, 2], "item": ["a", "b"], "time": [5, 5]})
    >>> same_rows(one, pl.DataFrame({"user": ["2", "1"], "item": ["b", "a"], "time": [5, 5]})), same_rows(one, one[:1])
    (True, False)
    """
    return _sorted_texts(one).equals(_sorted_texts(other))


def _sorted_texts(rows: pl.DataFrame) -> pl.DataFrame:
    ids = (pl.col(name).cast(pl.String) for name in ("user", "item"))
    return rows.select(*ids, pl.col("time").cast(pl.Int64)).sort("time", "user", "item")


def joined(one: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
    """Rows after rows; a column of ids is text where either is text."""
    parts = [one, other]
    for name in ("user", "item"):
        columns = of_one_type(one[name], other[name])
        parts = [part.with_columns(column.alias(name)) for part, column in zip(parts, columns, strict=True)]
    return pl.concat(parts)


def of_one_type(one: pl.Series, other: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Two columns of ids in the type of the first, or in one that holds both.

    >>> [x.to_list() for x in of_one_type(pl.Series([1]), pl.Series(["2"]))]
    [[1], [2]]
    >>> [x.to_list() for x in of_one_type(pl.Series([1]), pl.Series(["b"]))]
    [['1'], ['b']]
    """
    if one.dtype == other.dtype:
        return one, other
    for dtype in (one.dtype if len(one) else other.dtype, pl.Int64, pl.UInt64):
        kept, same = one.cast(dtype, strict=False), other.cast(dtype, strict=False)
        if _says_the_same(kept, one) and _says_the_same(same, other):
            return kept, same
    return one.cast(pl.String), other.cast(pl.String)


def _says_the_same(cast: pl.Series, ids: pl.Series) -> bool:
    return cast.null_count() == 0 and bool((cast.cast(pl.String) == ids.cast(pl.String)).all())


def numbered(ids: pl.Series, given: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Number ids, those that are new by first appearance.

    Args:
      ids: known ones, by number.
      given: [rows].

    Returns:
      i32[rows], numbers; and ids by number, the new ones behind the known.

    >>> numbers, ids = numbered(pl.Series(["a", "b"]), pl.Series(["c", "b", "c", "d"]))
    >>> numbers.tolist(), ids.to_list()
    ([2, 1, 2, 3], ['a', 'b', 'c', 'd'])
    """
    ids, given = of_one_type(ids, given)
    everything = pl.concat([ids, given]).unique(maintain_order=True)
    table = pl.DataFrame({"id": everything, "number": np.arange(len(everything), dtype=np.int32)})
    found = pl.DataFrame({"id": given}).join(table, on="id", how="left", maintain_order="left")
    return found["number"].to_numpy(), everything.rename(ids.name)
