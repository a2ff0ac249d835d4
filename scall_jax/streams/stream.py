"""Stream: sorted interactions with their cuts; builds the segments, one at a time or stacked."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator

import jax
import numpy as np
import polars as pl

from scall_jax.streams.segments import (
    CHUNK,
    HALF_LIVES,
    Capacity,
    Graph,
    RaggedItems,
    Segment,
    counts,
    make_graph,
    make_ragged_items,
    sorted_rows,
)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Rows of one segment: train is [start, train), valid [train, valid), test [valid, end)."""

    start: int
    train: int
    valid: int
    end: int


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A stream cut into segments.

    Attributes:
      user, item: i32[rows], ids by first appearance, in the order of time.
      time: i64[rows], milliseconds since 1970.
      user_ids, item_ids: raw id by id.
      bounds: rows of every segment.
      replay: for every segment the earlier rows that are trained on again, i64[...].
      select_on_test: the published protocol, in which valid is test.
      seed: of the order of evaluated users.
      source: name used in messages.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series
    bounds: tuple[Bounds, ...]
    replay: tuple[np.ndarray, ...]
    select_on_test: bool
    seed: int
    source: str

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[Segment]:
        return (self.segment(t) for t in range(len(self)))

    def user_index(self) -> dict:
        """Raw user id to id."""
        return {raw: index for index, raw in enumerate(self.user_ids.to_list())}

    def item_index(self) -> dict:
        """Raw item id to id."""
        return {raw: index for index, raw in enumerate(self.item_ids.to_list())}

    def known(self, row: int) -> tuple[int, int]:
        """Users and items that appear before `row`."""
        if row == 0:
            return 0, 0
        users, items = (np.searchsorted(first, row) for first in self._arrivals)
        return int(users), int(items)

    @functools.cached_property
    def _arrivals(self) -> tuple[np.ndarray, np.ndarray]:
        """Row of every user's and every item's first appearance; ascending."""
        return tuple(
            np.flatnonzero(np.diff(np.maximum.accumulate(ids), prepend=ids.dtype.type(-1)))
            for ids in (self.user, self.item)
        )

    @functools.cached_property
    def capacity(self) -> Capacity:
        """Static sizes that hold every segment."""
        users, items = self.known(self.bounds[-1].train)
        distinct = lambda rows: len(np.unique(self.user[rows]))  # noqa: E731
        test_users = max(distinct(slice(b.valid, b.end)) for b in self.bounds)
        return Capacity(
            users=users,
            items=items,
            edges=2 * int((self._by_user < self.bounds[-1].train).sum()),
            positives=max(b.train - b.start + len(r) for b, r in zip(self.bounds, self.replay, strict=True)),
            valid=max(1, *(b.valid - b.train for b in self.bounds))
            if not self.select_on_test
            else max(b.end - b.valid for b in self.bounds),
            test=max(b.end - b.valid for b in self.bounds),
            positive_users=max(distinct(self._trained(t)) for t in range(len(self))),
            valid_users=test_users
            if self.select_on_test
            else max(1, *(distinct(slice(b.train, b.valid)) for b in self.bounds)),
            test_users=test_users,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that segments are made of."""
        digest = hashlib.sha256(repr((self.bounds, self.select_on_test, self.seed)).encode())
        for array in (self.user, self.item, *self.replay):
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
        rows = self._distinct
        return rows[sorted_rows(self.item[rows], self.user[rows])]

    def segment(self, t: int) -> Segment:
        """Segment t as numpy arrays of the stream's capacities."""
        bounds, capacity = self.bounds[t], self.capacity
        users, items = self.known(bounds.train)
        users_before, items_before = self.known(bounds.start)
        trained = self._trained(t)
        total = self._count(slice(0, bounds.train))
        valid, dropped_valid = self._held_out(t, bounds.train, bounds.valid, capacity.valid, capacity.valid_users)
        test, dropped_test = self._held_out(t, bounds.valid, bounds.end, capacity.test, capacity.test_users)
        if self.select_on_test:
            valid, dropped_valid = test, dropped_test
        return Segment(
            index=np.int32(t),
            users=np.int32(users),
            items=np.int32(items),
            users_before=np.int32(users_before),
            items_before=np.int32(items_before),
            interactions=np.int32(bounds.end - bounds.start),
            graph=self._graph(bounds.train),
            positives=make_ragged_items(
                self.user[trained], self.item[trained], capacity.positives, capacity.positive_users
            ),
            valid=valid,
            test=test,
            dropped=np.array([dropped_valid, dropped_test], np.int32),
            frequency=self._count(trained),
            total=total,
            recency=self._recency(bounds.train),
            popularity=self._popularity(slice(bounds.start, bounds.train), total[capacity.users :], bounds.train),
        )

    def replay_bytes(self, t: int) -> int:
        """Bytes of the rows that segment t is trained on again: two 32-bit ids each."""
        return 8 * len(self.replay[t])

    def test(self, t: int) -> RaggedItems:
        """The test part of segment t alone."""
        bounds, capacity = self.bounds[t], self.capacity
        return self._held_out(t, bounds.valid, bounds.end, capacity.test, capacity.test_users)[0]

    def stack(self) -> Segment:
        """All segments with a leading axis, for `lax.scan`."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *self)

    def _graph(self, cut: int) -> Graph:
        capacity, orders = self.capacity, (self._by_user, self._by_item)
        rows = [order[order < cut] for order in orders]
        return make_graph(self.user, self.item, *rows, capacity.users, capacity.nodes, capacity.edges)

    def _trained(self, t: int) -> np.ndarray:
        """Rows that segment t is trained on; i64[...]."""
        bounds = self.bounds[t]
        return np.concatenate([np.arange(bounds.start, bounds.train), self.replay[t]]).astype(np.int64)

    def _held_out(self, t: int, start: int, end: int, capacity: int, most_users: int) -> tuple[RaggedItems, int]:
        """Relevant pairs of rows [start, end): known at the segment's cut, not yet among its training pairs."""
        cut = self.bounds[t].train
        users, items = self.known(cut)
        user, item = self.user[start:end], self.item[start:end]
        known = (user < users) & (item < items)
        relevant = known & (self._first[start:end] >= cut)
        rng = np.random.default_rng((self.seed, t))
        return make_ragged_items(user[relevant], item[relevant], capacity, most_users, rng), int((~known).sum())

    def _count(self, rows) -> np.ndarray:
        capacity = self.capacity
        return np.concatenate([counts(self.user[rows], capacity.users), counts(self.item[rows], capacity.items)])

    def _recency(self, cut: int) -> np.ndarray:
        capacity = self.capacity
        last = np.zeros(capacity.nodes, np.int32)
        users, items = last[: capacity.users], last[capacity.users :]
        for start in range(0, cut, CHUNK):
            rows = slice(start, min(start + CHUNK, cut))
            position = np.arange(rows.start + 1, rows.stop + 1, dtype=np.int32)
            users[self.user[rows]] = position  # of repeated indices the last one stays
            items[self.item[rows]] = position
        return last

    def _popularity(self, own: slice, total: np.ndarray, cut: int) -> np.ndarray:
        items = self.capacity.items
        popularity = [total, counts(self.item[own], items)]
        for half_life in HALF_LIVES:
            start = max(0, cut - 40 * half_life)  # what lies further back weighs less than 2^-40
            decayed = np.zeros(items)
            for first in range(start, cut, CHUNK):
                last = min(first + CHUNK, cut)
                weight = np.exp2(np.arange(first - cut + 1, last - cut + 1) / half_life)
                np.add.at(decayed, self.item[first:last], weight)  # in turn, as one pass would
            popularity.append(decayed)
        return np.stack([row.astype(np.float32) for row in popularity])
