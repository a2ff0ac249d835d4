"""Progress of reading, shown where it takes more than a few seconds."""

import sys
import time
from types import TracebackType

_SECONDS = 4.0  # until the first line
_PAUSE = {True: 0.5, False: 30.0}  # seconds between lines, on a terminal and elsewhere


class ReadProgress:
    """A line of text on standard error about the bytes of some files, which appears after some seconds."""

    def __init__(self, total: int, source: str):
        """Start.

        Args:
          total: bytes of all files.
          source: name of the whole.
        """
        self._total, self._source, self._before, self._done = max(total, 1), source, 0, 0
        self._start, self._terminal = time.monotonic(), sys.stderr.isatty()
        self._next, self._shown = self._start + _SECONDS, False

    def __enter__(self) -> "ReadProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    @property
    def part(self) -> float:
        """Which part of the bytes has been read."""
        return min(self._done / self._total, 1.0)

    def update(self, done: int, doing: str = "reading") -> None:
        """Show how far a file has been read.

        Args:
          done: bytes of the current file.
          doing: what is done with them.
        """
        self._done, now = self._before + done, time.monotonic()
        if now < self._next:
            return
        self._next, self._shown = now + _PAUSE[self._terminal], True
        text = f"{doing} {self._source}: {self.part:.0%} of {self._total / 1e6:,.0f} MB, {now - self._start:.0f} s"
        print(f"\r\033[K{text}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr)

    def finish_file(self, size: int) -> None:
        """Go on to the next file.

        Args:
          size: bytes of the one that has been read.
        """
        self.update(size)
        self._before += size

    def finish(self) -> None:
        """Say that what was read is put together."""
        self.update(self._total - self._before, "numbering users and items of")
