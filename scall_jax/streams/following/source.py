"""What a growing source of rows is to the one who follows it: rows from an offset on, and the offset behind them."""

from typing import Any, NamedTuple, Protocol

import polars as pl

Offset = dict[str, Any]
"""A place in a source that JSON can hold; what is in it is the source's own matter."""


class Batch(NamedTuple):
    """Rows of a source, in its order."""

    rows: pl.DataFrame
    """Columns `user` and `item` (integers or text, as the source writes them) and `time` (Int64, milliseconds since
    1970). Rows that the options leave out are not among them."""
    offset: Offset | None
    """The place behind these rows, and behind those that were left out; None before anything has been read."""
    read: int = 0
    """Rows of the source that the offset has moved over."""
    held: bool = False
    """Whether there may be more rows already, which the source holds back for now."""


class Source(Protocol):
    """A growing source of rows."""

    name: str
    """What messages call it; without a password."""

    @property
    def ended(self) -> bool:
        """Whether no row can follow those that have been read."""
        ...

    def read(self, offset: Offset | None, most: int) -> Batch:
        """The next rows that are there; none where nothing has come. It does not wait.

        After an error, or a batch that the caller does not want, fewer rows may be asked for from the same place.

        Args:
          offset: where to begin; None for the start.
          most: rows to read at most, at least 1.

        Raises:
          ValueError: a bad row, naming the source, row and column; or not the source that was read before.
        """
        ...

    def wait(self, seconds: float) -> None:
        """Wait for rows.

        Args:
          seconds: at most.
        """
        ...

    def behind(self, offset: Offset | None) -> str:
        """What the source has beyond an offset, in words; empty where it cannot tell.

        Args:
          offset: as of `read`.
        """
        ...

    def close(self) -> None:
        """Give back what is open."""
        ...


EMPTY = pl.DataFrame(schema={"user": pl.String, "item": pl.String, "time": pl.Int64})
"""No rows."""
