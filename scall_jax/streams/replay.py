"""Replay: earlier rows that a segment is trained on again."""

import numpy as np

from scall_jax.streams.random_choices import Choice, generator
from scall_jax.streams.stream import Bounds
from scall_jax.streams.wording import option


def draw_replay(
    user: np.ndarray, bounds: tuple[Bounds, ...], part: float, compounding: bool, seed: int
) -> tuple[np.ndarray, ...]:
    """Rows of earlier segments for each segment, drawn without replacement.

    Args:
      user: i32[rows], users by first appearance.
      bounds: rows of every segment.
      part: replayed rows as a part of the segment's training rows.
      compounding: the protocol of the SCALL code. Users and rows of whole segments count, not of training parts alone,
        and rows that were replayed may be replayed again as often.
      seed: of the draws.

    Returns:
      Ascending i64[...] for each segment: rows of users who appear in its training part.

    Raises:
      ValueError: a part that is negative or infinite.
    """
    if not 0 <= part < float("inf"):
        raise ValueError(f"{option('replay')}={part}: must be finite and not negative")
    drawn: list[np.ndarray] = []
    pool = np.empty(0, np.int64)
    for t, b in enumerate(bounds):
        end = b.end if compounding else b.train
        current = np.zeros(int(user.max()) + 1, bool)
        current[user[b.start : end]] = True
        candidates = pool[current[user[pool]]] if part else pool[:0]
        count = min(len(candidates), int(part * (end - b.start)))
        chosen = generator(seed, Choice.REPLAY, t).choice(candidates, count, replace=False) if count else candidates[:0]
        drawn.append(np.sort(chosen))
        pool = np.concatenate([pool, np.arange(b.start, b.end), *([drawn[-1]] if compounding else [])])
    return tuple(drawn)
