"""The random choices of a cut, each with a generator of its own.

What is drawn for a segment depends on the seed, the choice and the number of the segment, and not on how much was drawn
before: two streams that begin alike are cut alike as far as they do.
"""

import enum

import numpy as np


@enum.unique
class Choice(enum.IntEnum):
    """What is chosen at random. The values are part of every stream; new ones are added at the end."""

    TIES = 1
    """The order of rows of equal time."""
    REPLAY = 2
    """Earlier rows that a segment is trained on again, by segment."""
    VALID_USERS = 3
    """The order of the users of a segment's valid part, by segment; early stopping looks at the first of them."""
    TEST_USERS = 4
    """The order of the users of a segment's test part, by segment."""
    ANCHOR = 5
    """The user whose neighbourhood a segment is trained on again, by segment."""


def generator(seed: int, choice: Choice, number: int = 0) -> np.random.Generator:
    """Generator of a choice.

    Args:
      seed: of the stream, not negative.
      choice: what is chosen.
      number: of the segment.

    >>> first, again = (generator(0, Choice.REPLAY, 3).integers(1000) for _ in range(2))
    >>> int(first) == int(again), int(first) == int(generator(0, Choice.REPLAY, 4).integers(1000))
    (True, False)
    """
    return np.random.default_rng((seed, int(choice), number))
