"""Strata of a segment's test users and test items by what is known at its cut; numpy on the host, outside the run.

Coherence is our reading of two measures that arXiv 2410.02453 describes in words: of a user u with the distinct items
I_u before the cut, p(i) the part of the known users who have item i, n_j the users who have j, n_ij who have both,

    mean surprise               S(u)  = -mean over i in I_u of log2 p(i)
    mean conditional surprise   CS(u) = -mean over pairs i != j in I_u, both orders, of log2 p(i | j)
    p(i | j) = (n_ij + m p(i)) / (n_j + m) if i is one of the `neighbours` items that most often go with j
             = p(i)                        otherwise

with m the `smoothing`: a prior worth m users. How the conditional probabilities are averaged, the smoothing and the
cut-off are our choice; a pair beyond the cut-off counts as independent.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import chex
import numpy as np

from scall_jax.evaluation.ranking import BY_USER
from scall_jax.streams import Stream

READING = "our reading of arXiv 2410.02453"

USERS, ITEMS, FREQUENCY = "users", "relevant items", "user frequency"
SURPRISE, CONDITIONAL = f"mean surprise ({READING})", f"mean conditional surprise ({READING})"
TERCILES = ("low", "middle", "high")
SPLITS = {
    USERS: ("new", "warm"),
    ITEMS: ("new", "warm"),
    FREQUENCY: tuple(f"decile {d}" for d in range(1, 11)),
    SURPRISE: TERCILES,
    CONDITIONAL: (*TERCILES, "undefined"),
}
"""Strata by split. A user with one item has no conditional surprise; an item is new if first met in the segment."""

_WORK = 2**22  # co-occurrences, or cells of their counts, in memory at once


@dataclasses.dataclass(frozen=True)
class StrataConfig:
    """How coherence is computed."""

    neighbours: int = 256
    """Co-occurring items of each item that are counted, those with the most users."""
    smoothing: float = 1.0
    """Users that the prior of a conditional probability is worth."""

    def __post_init__(self):
        if self.neighbours < 1:
            raise ValueError(f"strata neighbours={self.neighbours}: must be at least 1")
        if not self.smoothing > 0:
            raise ValueError(f"strata smoothing={self.smoothing}: must be greater than 0")


class Profiles(NamedTuple):
    """Distinct interactions, sorted by user, then item."""

    user: np.ndarray  # i64[E]
    item: np.ndarray  # i64[E]
    users: int  # known; ids are below it
    items: int

    def starts(self) -> np.ndarray:
        """Where each user's items begin; i64[users + 1]."""
        return np.searchsorted(self.user, np.arange(self.users + 1))


class Neighbours(NamedTuple):
    """The k items that most users of an item also have, ordered by number of users, ties to the lower id."""

    items: np.ndarray  # i64[V, k]
    counts: np.ndarray  # i64[V, k], users who have both; 0 where there are fewer than k


class SegmentStrata(NamedTuple):
    """Strata of the Q test users of a segment, in the order of `Segment.test`."""

    users: np.ndarray  # i32[Q]
    labels: dict[str, np.ndarray]  # by split of users: i64[Q], place in `SPLITS`
    items: np.ndarray  # i64[Q, 2], numbers of a user's relevant items that are new, warm


def profiles(stream: Stream, t: int) -> Profiles:
    """The distinct interactions before the cut of segment t.

    Args:
      stream: of segments.
      t: number of the segment, from 0.

    Returns:
      Profiles.
    """
    cut = stream.bounds[t].train
    keys = np.unique(stream.user[:cut].astype(np.int64) << 32 | stream.item[:cut])
    return Profiles(keys >> 32, keys & 0xFFFFFFFF, *stream.known(cut))


def co_occurring(known: Profiles, k: int) -> Neighbours:
    """Count how many users each two items have in common, and keep the k neighbours of every item.

    Args:
      known: interactions before a cut, with V items.
      k: neighbours of an item, at most.

    Returns:
      Neighbours, of O(V k) memory; what is counted on the way stays within blocks of bounded size.

    >>> known = Profiles(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1]), users=3, items=2)
    >>> near = co_occurring(known, 1)
    >>> near.items.ravel().tolist(), near.counts.ravel().tolist()
    ([1, 0], [2, 2])
    """
    chex.assert_rank([known.user, known.item], 1)
    chex.assert_equal_shape([known.user, known.item])
    starts, degree = known.starts(), np.bincount(known.user, minlength=known.users)
    by_item = np.argsort(known.item, kind="stable")
    begins = np.searchsorted(known.item[by_item], np.arange(known.items + 1))
    work = np.bincount(known.item, degree[known.user], known.items)
    found = Neighbours(*(np.zeros((known.items, k), np.int64) for _ in range(2)))
    for first, last in _blocks(work, max(1, _WORK // known.items)):
        edges = by_item[begins[first] : begins[last]]
        row, user = known.item[edges] - first, known.user[edges]
        other = known.item[_ranges(starts[user], degree[user])]
        counts = np.bincount(np.repeat(row, degree[user]) * known.items + other, minlength=(last - first) * known.items)
        counts[np.arange(last - first) * (known.items + 1) + first] = 0  # an item is no neighbour of itself
        cell = np.flatnonzero(counts)
        row, other, count = cell // known.items, cell % known.items, counts[cell]
        order = np.lexsort((other, -count, row))
        row, other, count = row[order], other[order], count[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        nearest = place < k
        found.items[first + row[nearest], place[nearest]] = other[nearest]
        found.counts[first + row[nearest], place[nearest]] = count[nearest]
    return found


def _blocks(work: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `most` items in a row whose work together is bounded, or that are a single item."""
    total, first = np.concatenate([[0], np.cumsum(work)]), 0
    while first < len(work):
        fits = int(np.searchsorted(total, total[first] + _WORK, side="right")) - 1
        last = min(max(first + 1, fits), first + most, len(work))
        yield first, last
        first = last


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers of the ranges [start, start + length), one range after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def mean_surprise(known: Profiles, users: np.ndarray) -> np.ndarray:
    """S of some users (see the module's docstring).

    Args:
      known: interactions before a cut.
      users: i32[Q].

    Returns:
      f64[Q], in bits; NaN for a user without items.

    User 0 has an item that both users have and one that it alone has:

    >>> known = Profiles(np.array([0, 0, 1]), np.array([0, 1, 0]), users=2, items=2)
    >>> mean_surprise(known, np.array([0, 1])).tolist()
    [0.5, 0.0]
    """
    chex.assert_rank([users, known.user, known.item], 1)
    chex.assert_type(users, int)
    surprise = -np.log2(np.bincount(known.item, minlength=known.items)[known.item] / known.users)
    degree = np.bincount(known.user, minlength=known.users)
    total = np.bincount(known.user, surprise, known.users)
    return np.where(degree > 0, total / np.maximum(degree, 1), np.nan)[users]


def mean_conditional_surprise(known: Profiles, users: np.ndarray, near: Neighbours, smoothing: float) -> np.ndarray:
    """CS of some users (see the module's docstring), in O(items of the users x k) time.

    Args:
      known: interactions before a cut, with V items.
      users: i32[Q].
      near: of `co_occurring`, for the V items.
      smoothing: users that the prior is worth.

    Returns:
      f64[Q], in bits; NaN for a user with fewer than two items.
    """
    chex.assert_rank([users, near.items, near.counts], [1, 2, 2])
    chex.assert_equal_shape([near.items, near.counts])
    chex.assert_axis_dimension(near.items, 0, known.items)
    starts = known.starts()
    length = np.diff(starts)[users]
    having = np.bincount(known.item, minlength=known.items)
    prior = having / known.users
    row, item = np.repeat(np.arange(len(users)), length), known.item[_ranges(starts[users], length)]
    # The mean over independent pairs is S(u). Subtract log2(p(i | j) / p(i)) where i is a neighbour of j.
    total = np.zeros(len(users))
    keys = known.user << 32 | known.item
    step = max(1, _WORK // near.items.shape[1])
    for at in range(0, len(item), step):
        part = slice(at, at + step)
        other, count = near.items[item[part]], near.counts[item[part]]
        wanted = users[row[part], None].astype(np.int64) << 32 | other
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        both = (keys[place] == wanted) & (count > 0)
        at_user, given = (np.broadcast_to(x[part, None], both.shape)[both] for x in (row, having[item]))
        gain = np.log2((count[both] / prior[other[both]] + smoothing) / (given + smoothing))
        total += np.bincount(at_user, gain, len(users))
    pairs = length * (length - 1)
    return np.where(pairs > 0, mean_surprise(known, users) - total / np.maximum(pairs, 1), np.nan)


def quantiles(values: np.ndarray, groups: int) -> np.ndarray:
    """Group values by their mean rank, so that equal values stay together.

    Args:
      values: f64[Q].
      groups: number of groups; with many ties they differ in size and may be empty.

    Returns:
      i64[Q], the group of each value from 0 on; a NaN is in group `groups`.

    >>> quantiles(np.array([3.0, 1.0, 1.0, 2.0, np.nan]), 2).tolist()
    [1, 0, 0, 1, 2]
    """
    chex.assert_rank(values, 1)
    defined = ~np.isnan(values)
    _, place, count = np.unique(values[defined], return_inverse=True, return_counts=True)
    twice_rank = 2 * np.cumsum(count) - count
    found = np.full(len(values), groups)
    found[defined] = (groups * twice_rank // (2 * max(1, defined.sum())))[place]
    return found


def of_segment(stream: Stream, t: int, config: StrataConfig = StrataConfig()) -> SegmentStrata:
    """Strata of the test users of segment t; groups are formed among these users.

    Args:
      stream: of segments.
      t: number of the segment, from 0.
      config: how coherence is computed.

    Returns:
      SegmentStrata. Data after the cut says only who the test users are and which of their relevant items are new.
    """
    test, cut = stream.test(t), stream.bounds[t].train
    users_before, items_before = stream.known(stream.bounds[t].start)
    users = np.asarray(test.users)[: test.count]
    known = profiles(stream, t)
    near = co_occurring(known, config.neighbours)
    frequency = np.bincount(stream.user[:cut], minlength=known.users)[users].astype(np.float64)
    new = np.concatenate([[0], np.cumsum(test.items >= items_before)])[test.indptr[: test.count + 1]]
    new, every = np.diff(new), np.diff(test.indptr[: test.count + 1])
    labels = {
        USERS: np.where(users >= users_before, 0, 1),
        FREQUENCY: quantiles(frequency, 10),
        SURPRISE: quantiles(mean_surprise(known, users), 3),
        CONDITIONAL: quantiles(mean_conditional_surprise(known, users, near, config.smoothing), 3),
    }
    return SegmentStrata(users, labels, np.stack([new, every - new], axis=1))


def rows(strata: SegmentStrata, users: np.ndarray, metrics: np.ndarray) -> list[dict[str, str | int | float]]:
    """Means by stratum of one segment of a run.

    Strata of relevant items are means over the users who have such items. Strata without users are left out.

    Args:
      strata: of the segment.
      users: i32[Q], the users that the run wrote for the segment.
      metrics: f32[Q, 6], the metrics that it wrote for them, columns `evaluation.BY_USER`.

    Returns:
      Rows with the columns split, stratum, users (how many), recall@20 and ndcg@20.

    Raises:
      ValueError: the run has evaluated other users, or its metrics do not tell new items from warm ones.
    """
    if not np.array_equal(users, strata.users):
        raise ValueError("the run has evaluated other users: give the stream, cut and seed that it was made with")
    chex.assert_rank([users, metrics], [1, 2])
    if metrics.shape[1] != len(BY_USER):
        raise ValueError(f"the run wrote {metrics.shape[1]} metrics a user, this version {len(BY_USER)}: run it again")
    found = []
    for split, names in SPLITS.items():
        for number, name in enumerate(names):
            by_items = split == ITEMS
            chosen = strata.items[:, number] > 0 if by_items else strata.labels[split] == number
            if not chosen.any():
                continue
            first = 2 * (1 + number) if by_items else 0
            recall, ndcg = metrics[chosen, first : first + 2].mean(0, dtype=np.float64)
            line = {"split": split, "stratum": name, "users": int(chosen.sum())}
            found.append(line | {"recall@20": float(recall), "ndcg@20": float(ndcg)})
    return found
