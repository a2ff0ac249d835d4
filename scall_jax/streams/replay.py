"""Replay: earlier rows that a segment is trained on again."""

import numpy as np

from scall_jax.streams.random_choices import Choice, generator
from scall_jax.streams.stream import Bounds
from scall_jax.streams.wording import option


def draw_replay(
    user: np.ndarray,
    bounds: tuple[Bounds, ...],
    part: float,
    compounding: bool,
    seed: int,
    earlier: tuple[np.ndarray, ...] = (),
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

    Returns:
      Ascending i64[...] for each segment: rows of users who appear in its training part.

    Raises:
      ValueError: a part that is negative or infinite.
    """
    if not 0 <= part < float("inf"):
        raise ValueError(f"{option('replay')}={part}: must be finite and not negative")
    drawn, before = list(earlier), zip(bounds, earlier, strict=False)
    pool = np.concatenate([np.empty(0, np.int64), *(_pooled(b, rows, compounding) for b, rows in before)])
    for t, b in enumerate(bounds[len(earlier) :], len(earlier)):
        end = b.end if compounding else b.train
        current = np.zeros(int(user.max()) + 1, bool)
        current[user[b.start : end]] = True
        candidates = pool[current[user[pool]]] if part else pool[:0]
        count = min(len(candidates), int(part * (end - b.start)))
        chosen = generator(seed, Choice.REPLAY, t).choice(candidates, count, replace=False) if count else candidates[:0]
        drawn.append(np.sort(chosen))
        pool = np.concatenate([pool, _pooled(b, drawn[-1], compounding)])
    return tuple(drawn)


def _pooled(bounds: Bounds, drawn: np.ndarray, compounding: bool) -> np.ndarray:
    """Rows that a segment leaves to be replayed; i64[...]."""
    return np.concatenate([np.arange(bounds.start, bounds.end), *([drawn] if compounding else [])])
