"""Stream: sorted interactions with their cuts; builds the segments, one at a time or stacked."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator

import jax
import numpy as np
import polars as pl

from scall_jax.streams.segments import HALF_LIVES, Capacity, Graph, Rows, Segment, make_graph, make_rows


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
        return int(self._known[0][row - 1]), int(self._known[1][row - 1])

    @functools.cached_property
    def _known(self):
        return np.maximum.accumulate(self.user) + 1, np.maximum.accumulate(self.item) + 1

    @functools.cached_property
    def capacity(self) -> Capacity:
        """Static sizes that hold every segment."""
        users, items = self.known(self.bounds[-1].train)
        _, first = self._pairs
        return Capacity(
            users=users,
            items=items,
            edges=2 * int((first < self.bounds[-1].train).sum()),
            positives=max(b.train - b.start + len(r) for b, r in zip(self.bounds, self.replay, strict=True)),
            valid=max(1, *(b.valid - b.train for b in self.bounds))
            if not self.select_on_test
            else max(b.end - b.valid for b in self.bounds),
            test=max(b.end - b.valid for b in self.bounds),
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that segments are made of."""
        digest = hashlib.sha256(repr((self.bounds, self.select_on_test, self.seed)).encode())
        for array in (self.user, self.item, *self.replay):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct pairs as sorted keys user << 32 | item, and the row of each one's first occurrence."""
        return np.unique(self.user.astype(np.int64) << 32 | self.item.astype(np.int64), return_index=True)

    @functools.cached_property
    def _by_item(self) -> np.ndarray:
        return np.argsort(self._pairs[0] & 0xFFFFFFFF, kind="stable")

    def segment(self, t: int) -> Segment:
        """Segment t as numpy arrays of the stream's capacities."""
        bounds, capacity = self.bounds[t], self.capacity
        users, items = self.known(bounds.train)
        users_before, items_before = self.known(bounds.start)
        trained = np.concatenate([np.arange(bounds.start, bounds.train), self.replay[t]]).astype(np.int64)
        before = slice(0, bounds.train)
        valid, dropped_valid = self._held_out(t, bounds.train, bounds.valid, capacity.valid)
        test, dropped_test = self._held_out(t, bounds.valid, bounds.end, capacity.test)
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
            positives=make_rows(self.user[trained], self.item[trained], capacity.positives),
            valid=valid,
            test=test,
            dropped=np.array([dropped_valid, dropped_test], np.int32),
            frequency=self._count(trained),
            total=self._count(before),
            recency=self._recency(bounds.train),
            popularity=self._popularity(slice(bounds.start, bounds.train), bounds.train),
        )

    def replay_bytes(self, t: int) -> int:
        """Bytes of the rows that segment t is trained on again: two 32-bit ids each."""
        return 8 * len(self.replay[t])

    def test(self, t: int) -> Rows:
        """The test part of segment t alone."""
        bounds = self.bounds[t]
        return self._held_out(t, bounds.valid, bounds.end, self.capacity.test)[0]

    def stack(self) -> Segment:
        """All segments with a leading axis, for `lax.scan`."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *self)

    def _graph(self, cut: int) -> Graph:
        keys, first = self._pairs
        known = first < cut
        by_user, by_item = keys[known], keys[self._by_item][known[self._by_item]]
        capacity = self.capacity

        def split(k):
            return (k >> 32).astype(np.int32), (k & 0xFFFFFFFF).astype(np.int32)

        return make_graph(split(by_user), split(by_item), capacity.users, capacity.nodes, capacity.edges)

    def _held_out(self, t: int, start: int, end: int, capacity: int) -> tuple[Rows, int]:
        """Relevant pairs of rows [start, end): known at the segment's cut, not yet among its training pairs."""
        cut = self.bounds[t].train
        users, items = self.known(cut)
        user, item = self.user[start:end], self.item[start:end]
        known = (user < users) & (item < items)
        user, item = user[known], item[known]
        keys, first = self._pairs
        position = np.searchsorted(keys, user.astype(np.int64) << 32 | item.astype(np.int64))
        fresh = first[position] >= cut
        rng = np.random.default_rng((self.seed, t))
        return make_rows(user[fresh], item[fresh], capacity, rng), int((~known).sum())

    def _count(self, rows) -> np.ndarray:
        capacity = self.capacity
        return np.concatenate(
            [
                np.bincount(self.user[rows], minlength=capacity.users),
                np.bincount(self.item[rows], minlength=capacity.items),
            ]
        ).astype(np.int32)

    def _recency(self, cut: int) -> np.ndarray:
        capacity = self.capacity
        last = np.zeros(capacity.nodes, np.int32)
        position = np.arange(1, cut + 1, dtype=np.int32)
        last[self.user[:cut]] = position  # of repeated indices the last one stays
        last[self.item[:cut] + capacity.users] = position
        return last

    def _popularity(self, own: slice, cut: int) -> np.ndarray:
        items = self.capacity.items
        counts = [np.bincount(self.item[:cut], minlength=items), np.bincount(self.item[own], minlength=items)]
        for half_life in HALF_LIVES:
            start = max(0, cut - 40 * half_life)  # what lies further back weighs less than 2^-40
            age = np.arange(cut - start)[::-1]
            counts.append(np.bincount(self.item[start:cut], np.exp2(-age / half_life), minlength=items))
        return np.stack(counts).astype(np.float32)
