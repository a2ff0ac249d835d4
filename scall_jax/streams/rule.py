"""Rule: how a stream was cut, so that it can be cut further when more of it has arrived."""

from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """When a segment is complete, and how its rows are divided. One of `rows` and `new_entities` is given."""

    rows: int | None
    """Rows of a segment."""
    new_entities: int | None
    """New users and items of a segment, at most: it is complete when the row that would exceed them has arrived."""
    split: tuple[float, float, float]
    """Parts of train, valid and test."""
    replay: float
    """Rows that are trained on again, as a part of the segment's training rows."""
    published: bool
    """The protocol of the SCALL code."""
    shuffle_ties: bool
    """Rows of equal time are ordered at random."""
    k_core: int
    """Least rows of a user and an item; 0 keeps all."""
    replay_by: str = "uniform"
    """How replayed rows are chosen, one of `replay.WAYS`."""

    def complete(self, before: int, known: np.ndarray) -> list[int]:
        """Ends of the segments that are complete among some rows.

        Args:
          before: users and items that appear before the first of these rows.
          known: i64[rows], users and items that have appeared after each row.

        Returns:
          Ascending numbers of rows from the first one on; none where the first segment is still open.

        >>> rule = Rule(2, None, (0.7, 0.1, 0.2), 0.2, False, False, 0)
        >>> rule.complete(0, np.arange(5)), rule._replace(rows=None, new_entities=3).complete(0, np.array([2, 3, 4, 6]))
        ([2, 4], [2])
        """
        if self.rows is not None:
            return list(range(self.rows, len(known) + 1, self.rows))
        assert self.new_entities is not None
        ends: list[int] = []
        while True:
            end = int(np.searchsorted(known, before + self.new_entities, side="right"))
            if end >= len(known):
                return ends
            ends.append(end)
            before = int(known[end - 1])
