"""Segments to their parts, and to the rows that they are trained on again, by a rule."""

import numpy as np

from scall_jax.streams.boundaries import parts_of_segments
from scall_jax.streams.replay import draw_replay
from scall_jax.streams.rule import Rule
from scall_jax.streams.stream import Bounds

Divided = tuple[tuple[Bounds, ...], tuple[np.ndarray, ...]]
"""Bounds of segments, and for each the earlier rows that it is trained on again, i64[...]."""


def divide(
    rule: Rule,
    user: np.ndarray,
    item: np.ndarray,
    time: np.ndarray,
    edges: list[int],
    seed: int,
    source: str,
    earlier: Divided = ((), ()),
) -> Divided:
    """Parts of segments, and the rows that they are trained on again.

    Args:
      rule: of the cut.
      user: i32[rows], users by first appearance.
      item: i32[rows], items by first appearance.
      time: i64[rows], ascending.
      edges: first rows of the segments, and the end.
      seed: of the replay.
      source: name used in messages.
      earlier: what this function returned for the segments before these.

    Returns:
      Bounds and replayed rows of all segments, the earlier ones included.

    Raises:
      ValueError: a segment with too few rows, or parts that make no sense.
    """
    before, replayed = earlier

    def parts(in_front: list[int] | None = None) -> tuple[Bounds, ...]:
        found = parts_of_segments(edges, time, rule.split, not rule.published, source, in_front, len(before))
        return (*before, *found)

    bounds = parts()
    item_of = None if rule.replay_by == "uniform" else item
    drawn = draw_replay(user, bounds, rule.replay, rule.published, seed, replayed, item_of)
    if rule.published:
        # What is replayed depends on whole segments there, so that it is known before these are split.
        bounds = parts([len(rows) for rows in drawn[len(before) :]])
    return bounds, drawn
