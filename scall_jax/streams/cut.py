"""Interactions to a Stream: order, cores, segment boundaries, parts of a segment, replay."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from scall_jax.streams import boundaries, row_order
from scall_jax.streams.divide import divide
from scall_jax.streams.enough_users import edges_with_enough_users
from scall_jax.streams.interactions import Interactions
from scall_jax.streams.random_choices import Choice, generator
from scall_jax.streams.replay import WAYS
from scall_jax.streams.rule import Rule
from scall_jax.streams.stream import Stream
from scall_jax.streams.wording import WAITS, option

_PUBLISHED_SPLIT = (0.8, 0.0, 0.2)


def cut(
    interactions: Interactions,
    *,
    new_entities: int | None = None,
    segments: int | Literal["auto"] | None = None,
    rows: int | None = None,
    at: Sequence[Any] | None = None,
    split: tuple[float, float, float] = (0.7, 0.1, 0.2),
    published: bool = False,
    replay: float = 0.2,
    replay_by: str = "uniform",
    k_core: int = 0,
    shuffle_ties: bool = False,
    max_segments: int | None = None,
    seed: int = 0,
) -> Stream:
    """Cut interactions into segments, and each segment into train | valid | test by time.

    Args:
      interactions: rows in source order; they are sorted by (time, source order).
      new_entities: start a new segment before the row with which new users + new items since the last cut exceed this
        (SCALL: 15,000; the default if no other rule is given). A last segment with fewer than a tenth as many joins the
        one before it.
      segments: instead, this many parts of equally many rows; "auto" takes as many, up to 12, as leave enough test
        users in each, which `Stream.notes` explains.
      rows: instead, this many rows in every segment. Rows that are left, too few for a segment, wait for those that
        come later (`advance`), and `Stream.notes` says how many they are.
      at: instead, timestamps (seconds, milliseconds or text, as `read` takes them) at which segments start.
      split: parts of train, valid and test. A boundary moves back to the first row of its timestamp, so that no rows of
        equal time lie on both sides (the rows of an invoice have one time), unless that would empty a part.
      published: the protocol of the SCALL code: replayed rows are put in front of the segment's, and the first 80% of
        both are trained on, so that the test part is more than 20% of the segment's own rows; valid is test; replayed
        rows are replayed again.
      replay: rows of earlier segments trained on again, as a part of the segment's training rows; drawn without
        replacement from the rows of users in the training part.
      replay_by: uniform, or neighbourhood: all rows of a random user and of the users nearest to it by items, as many
        rows as with uniform.
      k_core: keep only users and items with at least this many rows, repeatedly. This looks at the whole file, so the
        later part of the stream decides which early rows are used; 0 keeps all.
      shuffle_ties: order rows of equal time at random (by `seed`) and not as the source has them, for day-granular
        data.
      max_segments: stop after this many segments.
      seed: of ties, replay and the order of evaluated users.

    Returns:
      A `Stream`; the same arguments give the same stream.

    Raises:
      ValueError: contradictory rules, a value out of its range, times outside the stream, or a stream too short to cut.

    Warns:
      DataWarning: times that hardly order the rows, while `shuffle_ties` is off.

    >>> import jax
    >>> from scall_jax import streams
    >>> rows = streams.synthetic(jax.random.key(0), users=100, items=50, interactions=1000)
    >>> stream = streams.cut(rows, segments=4)
    >>> len(stream), stream.bounds[1]
    (4, Bounds(start=250, train=425, valid=450, end=500))
    """
    _check(max_segments, replay, replay_by, published, seed)
    if k_core < 0:
        raise ValueError(f"{option('k_core')}={k_core}: rows of each user and item, at least 1; 0 keeps all of them")
    where = _Where(new_entities, segments, rows, at)
    if sum(rule is not None for rule in where) > 1:
        rules = f"{option('new_entities')}, {option('segments')}, {option('rows')} and {option('at')}"
        raise ValueError(f"give one of {rules}")
    kept = row_order.k_core(interactions, k_core) if k_core else interactions
    split = _PUBLISHED_SPLIT if published else split
    stream = _in_order(kept, shuffle_ties, seed, select_on_test=split[1] == 0)
    edges, how = _edges(stream, where, split, align=not published)
    edges = edges[: None if max_segments is None else max_segments + 1]
    by_arrivals = at is None and segments is None and rows is None
    rule = Rule(
        rows=None if by_arrivals else rows or edges[-1] - edges[-2],
        new_entities=boundaries.arrivals_limit(new_entities) if by_arrivals else None,
        split=split,
        replay=replay,
        published=published,
        shuffle_ties=shuffle_ties,
        k_core=k_core,
        replay_by=replay_by,
    )
    bounds, replayed = divide(rule, stream.user, stream.item, stream.time, edges, seed, stream.source)
    waits = rows is not None and max_segments is None
    count = len(stream.user)
    if waits and edges[-1] < count:
        left = f"the last {count - edges[-1]:,} rows are too few for a segment of {rows:,}"
        how.append(f"{left}, and {WAITS}")
    return stream.with_bounds(bounds, replayed, how, rule, waits)


def _check(max_segments: int | None, replay: float, replay_by: str, published: bool, seed: int) -> None:
    """Refuse values out of their range."""
    if max_segments is not None and max_segments < 1:
        raise ValueError(f"{option('max_segments')}={max_segments}: at least 1, or None for all")
    if replay_by not in WAYS:
        raise ValueError(f"{option('replay_by')}={replay_by!r}: choose {' or '.join(WAYS)}")
    if seed < 0:
        raise ValueError(f"seed={seed}: must not be negative")
    if published and replay >= 4:
        reason = f"below 4 with {option('published')}, where replayed rows are among the 80% trained on"
        raise ValueError(f"{option('replay')}={replay}: {reason}")


class _Where(NamedTuple):
    """Where segments start: at most one of these, as `cut` takes them."""

    new_entities: int | None
    segments: int | Literal["auto"] | None
    rows: int | None
    at: Sequence[Any] | None


def _edges(
    stream: Stream, where: _Where, split: tuple[float, float, float], align: bool
) -> tuple[list[int], list[str]]:
    """First rows of all segments and the end, and notes that say how they were chosen."""
    count = len(stream.user)
    if where.at is not None:
        return boundaries.edges_by_time(stream.time, where.at, stream.source), []
    if where.segments == "auto":
        edges, explained = edges_with_enough_users(stream, split, align)
        return edges, [explained]
    if where.segments is not None:
        return boundaries.edges_of_equal_parts(count, where.segments, stream.source), []
    if where.rows is not None:
        return boundaries.edges_of_rows(count, where.rows, stream.source), []
    return boundaries.edges_by_arrivals(stream.user, stream.item, where.new_entities), []


def _in_order(interactions: Interactions, shuffle_ties: bool, seed: int, select_on_test: bool) -> Stream:
    """All rows in the order of time, ids by first appearance, without segments yet."""
    ordered = row_order.in_order(interactions, generator(seed, Choice.TIES) if shuffle_ties else None)
    if not shuffle_ties:
        row_order.warn_of_ties(ordered)
    user, user_ids = row_order.by_appearance(ordered.user, ordered.user_ids)
    item, item_ids = row_order.by_appearance(ordered.item, ordered.item_ids)
    return Stream(
        user=user,
        item=item,
        time=ordered.time,
        user_ids=user_ids,
        item_ids=item_ids,
        bounds=(),
        replay=(),
        select_on_test=select_on_test,
        seed=seed,
        source=ordered.source,
        notes=ordered.notes,
        read_options=ordered.read_options,
    )
