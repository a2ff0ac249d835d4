"""Stream: sorted interactions with their cuts; builds the segments, one at a time or stacked."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import polars as pl

from scall_jax.streams import statistics
from scall_jax.streams.numpy_ops import counts, distinct, sorted_rows
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.random_choices import Choice, generator
from scall_jax.streams.rule import Rule
from scall_jax.streams.segments import (
    Capacity,
    Graph,
    RaggedItems,
    Segment,
    compact_graph_bytes,
    host_leaf,
    make_graph,
    make_ragged_items,
)
from scall_jax.streams.times import shown

_SEGMENTS = 1024
"""Segments that a stream that grows has room for, or a multiple."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Rows of one segment: train is [start, train), valid [train, valid), test [valid, end)."""

    start: int
    """First row of the segment."""
    train: int
    """End of the training part, the segment's cut."""
    valid: int
    """End of the validation part."""
    end: int
    """End of the test part."""


class Evaluated(NamedTuple):
    """What becomes of the rows of a segment's test part."""

    rows: int
    """All of them."""
    unknown_users: int
    """Rows whose user is not known at the segment's cut."""
    unknown_items: int
    """Rows of known users whose item is not known at the cut."""
    repeats: int
    """Rows of pairs that were met before the cut."""
    users: int
    """Users of the rows that are left, over whom metrics are means."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A stream cut into segments; `len` counts them and iteration yields them.

    >>> import jax
    >>> from scall_jax import streams
    >>> rows = streams.synthetic(jax.random.key(0), users=100, items=50, interactions=1000)
    >>> stream = streams.cut(rows, segments=4)
    >>> [int(segment.users) for segment in stream] == [stream.known(b.train)[0] for b in stream.bounds]
    True
    """

    user: np.ndarray
    """i32[rows], users by first appearance, in the order of time."""
    item: np.ndarray
    """i32[rows], items by first appearance."""
    time: np.ndarray
    """i64[rows], milliseconds since 1970-01-01 UTC."""
    user_ids: pl.Series
    """Raw id of each user."""
    item_ids: pl.Series
    """Raw id of each item."""
    bounds: tuple[Bounds, ...]
    """Rows of every segment."""
    replay: tuple[np.ndarray, ...]
    """For every segment the earlier rows that are trained on again, i64[...]."""
    select_on_test: bool
    """The published protocol, in which valid is test."""
    seed: int
    """Of the order of evaluated users."""
    source: str
    """Name used in messages."""
    notes: tuple[str, ...] = ()
    """What reading the file took for granted, in words."""
    read_options: ReadOptions | None = None
    """What the caller said about the file, so that later ones can be read alike; None if nobody knows."""
    rule: Rule | None = None
    """How it was cut, so that it can be cut further; None if nobody knows."""
    waits: bool = False
    """Rows after the last segment wait for the next one; else they are not used."""
    reserved: Capacity | None = None
    """Of a stream that grows, the capacities so far: where one does not suffice, all become twice what is needed, so
    that they stay the same until something has doubled. None: capacities are what is needed."""

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[Segment]:
        return (self.segment(t) for t in range(len(self)))

    def with_bounds(
        self,
        bounds: tuple[Bounds, ...],
        replay: tuple[np.ndarray, ...],
        notes: Sequence[str],
        rule: Rule | None = None,
        waits: bool = False,
    ) -> "Stream":
        """The same rows, cut otherwise.

        Args:
          bounds, replay, rule, waits: of the new stream.
          notes: added to those of the stream.
        """
        cut: dict[str, Any] = {"bounds": bounds, "replay": replay, "rule": rule, "waits": waits}
        found = dataclasses.replace(self, **cut, notes=(*self.notes, *notes))
        # What does not depend on the bounds is not computed again.
        found.__dict__.update({name: self.__dict__[name] for name in ("_arrivals", "_first") if name in self.__dict__})
        return found

    def first(self, segments: int) -> "Stream":
        """The stream that ends after some of its segments.

        Args:
          segments: how many of the first ones it keeps, from 1 to all.
        """
        if segments == len(self):
            return self
        return self.with_bounds(self.bounds[:segments], self.replay[:segments], (), self.rule, self.waits)

    @property
    def span(self) -> str:
        """First and last time, in words."""
        return f"{shown(self.time[0])} to {shown(self.time[-1])}"

    def known(self, row: int) -> tuple[int, int]:
        """Numbers of users and of items that appear before a row.

        Args:
          row: position in the stream.
        """
        if row == 0:
            return 0, 0
        users, items = (np.searchsorted(first, row) for first in self._arrivals)
        return int(users), int(items)

    @functools.cached_property
    def _arrivals(self) -> tuple[np.ndarray, np.ndarray]:
        """Row of every user's and every item's first appearance; ascending."""
        return _arrivals(self.user), _arrivals(self.item)

    @functools.cached_property
    def capacity(self) -> Capacity:
        """Static sizes that hold every segment."""
        users, items = self.known(self.bounds[-1].train)
        test = max(b.end - b.valid for b in self.bounds)
        test_users = max(self._distinct_users(slice(b.valid, b.end)) for b in self.bounds)
        if self.select_on_test:
            valid, valid_users = test, test_users
        else:
            valid = max(1, *(b.valid - b.train for b in self.bounds))
            valid_users = max(1, *(self._distinct_users(slice(b.train, b.valid)) for b in self.bounds))
        exact = Capacity(
            users=users,
            items=items,
            edges=2 * int((self._by_user < self.bounds[-1].train).sum()),
            positives=max(b.train - b.start + len(r) for b, r in zip(self.bounds, self.replay, strict=True)),
            valid=valid,
            test=test,
            positive_users=max(self._distinct_users(self._trained(t)) for t in range(len(self))),
            valid_users=valid_users,
            test_users=test_users,
        )
        if self.reserved is None or all(need <= room for need, room in zip(exact, self.reserved, strict=True)):
            return self.reserved or exact
        return Capacity(*(2 * need for need in exact))

    @property
    def most_segments(self) -> int:
        """Segments that the stream has room for; more than it has, if it grows."""
        return len(self) if self.reserved is None else -(-len(self) // _SEGMENTS) * _SEGMENTS

    def _distinct_users(self, rows: slice | np.ndarray) -> int:
        return len(distinct(self.user[rows]))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that segments are made of; rows that wait are no part of it."""
        digest = hashlib.sha256(repr((self.bounds, self.select_on_test, self.seed)).encode())
        end = self.bounds[-1].end if self.waits else len(self.user)
        for array in (self.user[:end], self.item[:end], *self.replay):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _first(self) -> np.ndarray:
        """For every row the first row with the same user and item; i32[rows]."""
        order = sorted_rows(self.user, self.item)
        user, item = self.user[order], self.item[order]
        new = np.concatenate([[True], (user[1:] != user[:-1]) | (item[1:] != item[:-1])])
        del user, item
        first = np.empty_like(order)
        first[order] = order[new][np.cumsum(new, dtype=np.int32) - 1]
        return first

    @property
    def _distinct(self) -> np.ndarray:
        """First rows of the distinct pairs, in the order of time; i32[pairs]."""
        return np.flatnonzero(self._first == np.arange(len(self.user), dtype=np.int32)).astype(np.int32)

    @functools.cached_property
    def _by_user(self) -> np.ndarray:
        """First rows of the distinct pairs, sorted by user, then item."""
        rows = self._distinct
        return rows[sorted_rows(self.user[rows], self.item[rows])]

    @functools.cached_property
    def _by_item(self) -> np.ndarray:
        """First rows of the distinct pairs, sorted by item, then user."""
        rows = self._distinct
        return rows[sorted_rows(self.item[rows], self.user[rows])]

    def segment(self, t: int) -> Segment:
        """One segment as numpy arrays of the stream's capacities.

        Args:
          t: number of the segment, from 0.
        """
        bounds, capacity = self.bounds[t], self.capacity
        users, items = self.known(bounds.train)
        users_before, items_before = self.known(bounds.start)
        trained = self._trained(t)
        total = self._count(slice(0, bounds.train))
        valid, valid_rows = self._held_out(t, Choice.VALID_USERS)
        test, test_rows = self._held_out(t, Choice.TEST_USERS)
        if self.select_on_test:
            valid, valid_rows = test, test_rows
        held_out, unknown, seen = np.array([valid_rows, test_rows], np.int32).T
        user, item = self.user[: bounds.train], self.item[: bounds.train]
        return Segment(
            index=host_leaf(np.int32(t)),
            users=host_leaf(np.int32(users)),
            items=host_leaf(np.int32(items)),
            users_before=host_leaf(np.int32(users_before)),
            items_before=host_leaf(np.int32(items_before)),
            interactions=host_leaf(np.int32(bounds.end - bounds.start)),
            graph=self._graph(bounds.train),
            positives=make_ragged_items(
                self.user[trained], self.item[trained], capacity.positives, capacity.positive_users
            ),
            valid=valid,
            test=test,
            held_out=host_leaf(held_out),
            unknown=host_leaf(unknown),
            seen=host_leaf(seen),
            frequency=host_leaf(self._count(trained)),
            total=host_leaf(total),
            recency=host_leaf(statistics.recency(user, item, capacity.users, capacity.items)),
            popularity=host_leaf(statistics.popularity(item, bounds.start, total[capacity.users :])),
            ages=host_leaf(self._ages(bounds.train)),
            repeats=host_leaf(self._repeats(bounds.train)),
            period=host_leaf(np.int32(bounds.train - (self.bounds[t - 1].train if t else 0))),
        )

    def replay_bytes(self, t: int) -> int:
        """Bytes of the rows that a segment is trained on again: two 32-bit ids each.

        Args:
          t: number of the segment, from 0.
        """
        return 8 * len(self.replay[t])

    def graph_bytes(self, t: int) -> int:
        """Bytes of the graph of a segment as `compact_graph` keeps it.

        Args:
          t: number of the segment, from 0.
        """
        cut = self.bounds[t].train
        return compact_graph_bytes(int((self._by_user < cut).sum()), self.known(cut))

    def test(self, t: int) -> RaggedItems:
        """The test part of a segment alone, cheaper than the whole segment.

        Args:
          t: number of the segment, from 0.
        """
        return self._held_out(t, Choice.TEST_USERS)[0]

    def evaluated(self, t: int) -> Evaluated:
        """What becomes of the test rows of a segment.

        Args:
          t: number of the segment, from 0.

        >>> import jax
        >>> from scall_jax import streams
        >>> rows = streams.synthetic(jax.random.key(0), users=100, items=50, interactions=1000)
        >>> stream = streams.cut(rows, segments=4)
        >>> stream.evaluated(1).users == int(stream.test(1).count)
        True
        """
        return self.evaluated_part(self.bounds[t])

    def evaluated_part(self, bounds: Bounds) -> Evaluated:
        """What becomes of the test rows of a segment with these bounds, which need not be one of the stream.

        Args:
          bounds: rows of its parts.
        """
        users, items = self.known(bounds.train)
        part = slice(bounds.valid, bounds.end)
        known_user, known_item = self.user[part] < users, self.item[part] < items
        known = known_user & known_item
        repeated = known & (self._first[part] < bounds.train)
        return Evaluated(
            rows=bounds.end - bounds.valid,
            unknown_users=int((~known_user).sum()),
            unknown_items=int((known_user & ~known_item).sum()),
            repeats=int(repeated.sum()),
            users=len(distinct(self.user[part][known & ~repeated])),
        )

    def stack(self) -> Segment:
        """All segments with a leading axis, for `lax.scan`."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *self)

    def _graph(self, cut: int) -> Graph:
        by_user, by_item = (order[order < cut] for order in (self._by_user, self._by_item))
        return make_graph(self.user, self.item, by_user, by_item, self.capacity.graph)

    def _ages(self, cut: int) -> np.ndarray:
        """Rows from the last row of each graph entry's pair to the cut; i32[E]."""
        last = np.empty(cut, np.int32)
        # Of several rows of a pair the last one's number stays.
        last[self._first[:cut]] = np.arange(cut, dtype=np.int32)
        return self._by_entry(cut, cut - last)

    def _repeats(self, cut: int) -> np.ndarray:
        """Rows of each graph entry's pair; i32[E]."""
        return self._by_entry(cut, np.bincount(self._first[:cut], minlength=cut))

    def _by_entry(self, cut: int, of_row: np.ndarray) -> np.ndarray:
        """What the first row of each graph entry's pair has; i32[E], 0 in padding."""
        entries = np.zeros(self.capacity.edges, np.int32)
        of_pairs = [of_row[order[order < cut]] for order in (self._by_user, self._by_item)]
        entries[: 2 * len(of_pairs[0])] = np.concatenate(of_pairs)
        return entries

    def _trained(self, t: int) -> np.ndarray:
        """Rows that segment t is trained on; i64[...]."""
        bounds = self.bounds[t]
        return np.concatenate([np.arange(bounds.start, bounds.train), self.replay[t]]).astype(np.int64)

    def _held_out(self, t: int, users_of: Choice) -> tuple[RaggedItems, tuple[int, int, int]]:
        """Relevant pairs of the valid or the test part: known at the segment's cut, not yet among its training pairs.

        Also counts all rows, those of unknown users or items, and those of pairs that are known already.
        """
        bounds, capacity, cut = self.bounds[t], self.capacity, self.bounds[t].train
        if users_of == Choice.VALID_USERS:
            start, end, room = bounds.train, bounds.valid, (capacity.valid, capacity.valid_users)
        else:
            start, end, room = bounds.valid, bounds.end, (capacity.test, capacity.test_users)
        users, items = self.known(cut)
        user, item = self.user[start:end], self.item[start:end]
        known = (user < users) & (item < items)
        relevant = known & (self._first[start:end] >= cut)
        found = make_ragged_items(user[relevant], item[relevant], *room, generator(self.seed, users_of, t))
        return found, (end - start, int((~known).sum()), int((known & ~relevant).sum()))

    def _count(self, rows: slice | np.ndarray) -> np.ndarray:
        """How often each node appears in some rows; i32[N]."""
        capacity = self.capacity
        return np.concatenate([counts(self.user[rows], capacity.users), counts(self.item[rows], capacity.items)])


def _arrivals(ids: np.ndarray) -> np.ndarray:
    """Row of each id's first appearance, for ids numbered by first appearance; i64[ids]."""
    return np.flatnonzero(np.diff(np.maximum.accumulate(ids), prepend=ids.dtype.type(-1)))
