"""Replay: earlier rows that a segment is trained on again.

They are drawn uniformly, or, after the local neighbourhood sampling of arXiv 2307.14278, they are those of a random
user, the anchor, and of the users nearest to it: neighbourhoods stay whole, where a uniform draw leaves a little of
everything.
"""

import numpy as np

from scall_jax.streams.numpy_ops import distinct
from scall_jax.streams.random_choices import Choice, generator
from scall_jax.streams.stream import Bounds
from scall_jax.streams.wording import option

WAYS = ("uniform", "neighbourhood")
"""How replayed rows are chosen."""

_MOST_PART = 1_000_000
"""Replayed rows as a part of the segment's, at most: far more than the rows that there are to be replayed."""


def draw_replay(
    user: np.ndarray,
    bounds: tuple[Bounds, ...],
    part: float,
    compounding: bool,
    seed: int,
    earlier: tuple[np.ndarray, ...] = (),
    item: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Rows of earlier segments for each segment, drawn without replacement.

    Args:
      user: i32[rows], users by first appearance.
      bounds: rows of every segment.
      part: replayed rows as a part of the segment's training rows.
      compounding: the protocol of the SCALL code. Users and rows of whole segments count, not of training parts alone,
        and rows that were replayed may be replayed again as often.
      seed: of the draws.
      earlier: what has been drawn for the first segments already.
      item: i32[rows], for draws by neighbourhood; None draws uniformly.

    Returns:
      Ascending i64[...] for each segment: rows of users who appear in its training part.

    Raises:
      ValueError: a part that is negative or above a million.
    """
    if not 0 <= part <= _MOST_PART:
        raise ValueError(
            f"{option('replay')}={part}: must be finite, not negative and at most {_MOST_PART:,}; much less "
            "replays all earlier rows of a segment's users"
        )
    drawn, before = list(earlier), zip(bounds, earlier, strict=False)
    pool = np.concatenate([np.empty(0, np.int64), *(_pooled(b, rows, compounding) for b, rows in before)])
    for t, b in enumerate(bounds[len(earlier) :], len(earlier)):
        end = b.end if compounding else b.train
        current = np.zeros(int(user.max()) + 1, bool)
        current[user[b.start : end]] = True
        candidates = pool[current[user[pool]]] if part else pool[:0]
        count = min(len(candidates), int(part * (end - b.start)))
        if not count:
            chosen = candidates[:0]
        elif item is None:
            chosen = generator(seed, Choice.REPLAY, t).choice(candidates, count, replace=False)
        else:
            rng = generator(seed, Choice.ANCHOR, t)
            anchor = int(rng.choice(distinct(user[candidates])))
            chosen = neighbourhood(user[candidates], nearest(user[:end], item[:end], anchor), candidates, count)
        drawn.append(np.sort(chosen))
        pool = np.concatenate([pool, _pooled(b, drawn[-1], compounding)])
    return tuple(drawn)


def nearest(user: np.ndarray, item: np.ndarray, anchor: int) -> np.ndarray:
    """Users from the most to the least similar to one of them, by the cosine of the sets of their items.

    Args:
      user: i32[rows], of the rows that are known.
      item: i32[rows].
      anchor: the user.

    Returns:
      i64[users], the anchor first, ties by number.

    >>> nearest(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 2, 3, 1, 2]), anchor=0).tolist()
    [0, 2, 1]
    """
    pairs = distinct(user.astype(np.int64) << 32 | item.astype(np.int64))
    who, what = pairs >> 32, pairs & 0xFFFFFFFF
    count = np.bincount(who)
    own = np.zeros(int(what.max()) + 1, bool)
    own[what[who == anchor]] = True
    shared = np.bincount(who, own[what], len(count))
    cosine = shared / np.sqrt(np.maximum(count, 1) * own.sum())
    # Rounding must not put another user of the same items before the anchor.
    cosine[anchor] = 2
    return np.argsort(-cosine, kind="stable")


def neighbourhood(user: np.ndarray, order: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """Rows of the first users in an order, as many as are wanted; of the last user the latest rows.

    Args:
      user: i32[candidates], user of each candidate.
      order: i64[users], every user.
      candidates: i64[candidates], numbers of rows.
      count: rows that are wanted, at most as many as there are candidates.

    Returns:
      i64[count].

    >>> neighbourhood(np.array([0, 1, 1, 0]), np.array([1, 0]), np.array([4, 5, 6, 7]), count=3).tolist()
    [6, 5, 7]
    """
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return candidates[np.lexsort((-candidates, place[user]))[:count]]


def _pooled(bounds: Bounds, drawn: np.ndarray, compounding: bool) -> np.ndarray:
    """Rows that a segment leaves to be replayed; i64[...]."""
    return np.concatenate([np.arange(bounds.start, bounds.end), *([drawn] if compounding else [])])
