"""How many segments a stream is cut into where nobody says: as many as leave test users enough in each."""

from collections.abc import Iterator, Sequence

from scall_jax.streams import boundaries
from scall_jax.streams.stream import Bounds, Stream
from scall_jax.streams.wording import option

MOST_SEGMENTS = 12
"""Segments that a stream is cut into at most."""
ENOUGH_USERS = (200, 100, 20)
"""Test users that each segment after the first should have; the first number that some cut reaches counts."""


def edges_with_enough_users(stream: Stream, split: tuple[float, float, float], align: bool) -> tuple[list[int], str]:
    """First rows of as many equal parts, up to `MOST_SEGMENTS`, as have enough test users each, and the end.

    Args:
      stream: not cut yet.
      split: parts of train, valid and test of a segment.
      align: as in `boundaries.parts_of_segments`.

    Returns:
      Rows, and a sentence that says how they were chosen.

    Raises:
      ValueError: too few rows for a segment.
    """
    found = {number: _least_users(stream, bounds) for number, bounds in _cuts(stream, split, align)}
    for enough in ENOUGH_USERS:
        reaching = [number for number, least in found.items() if least >= enough]
        if reaching:
            number = max(reaching)
            how = f"the most, up to {MOST_SEGMENTS}, that leave each but the first at least {enough} test users"
            return _edges(stream, number), (
                f"cut into {number} segments of equally many rows, {how} (the least: {found[number]:,}); "
                f"{option('segments')} and {option('new_entities')} cut otherwise"
            )
    number = max(found, key=lambda x: (found[x], -x), default=1)
    return _edges(
        stream, number
    ), f"cut into {number} segments of equally many rows: no number leaves enough test users"


def _cuts(stream: Stream, split: tuple[float, float, float], align: bool) -> Iterator[tuple[int, Sequence[Bounds]]]:
    for number in range(MOST_SEGMENTS, 1, -1):
        try:
            edges = _edges(stream, number)
            yield number, boundaries.parts_of_segments(edges, stream.time, split, align, stream.source)
        except ValueError:  # There are too few rows for so many segments.
            continue


def _edges(stream: Stream, number: int) -> list[int]:
    return boundaries.edges_of_equal_parts(len(stream.user), number, stream.source)


def _least_users(stream: Stream, bounds: Sequence[Bounds]) -> int:
    return min(stream.evaluated_part(part).users for part in bounds[1:])
