"""Progress of reading, shown where it takes more than a few seconds."""

import sys
import time
from types import TracebackType

from tqdm.auto import tqdm

_SECONDS = 5.0


class ReadProgress:
    """A bar over the bytes of the files, which appears after five seconds."""

    def __init__(self, total: int, source: str):
        """Start.

        Args:
          total: bytes of all files.
          source: name in front of the bar.
        """
        self._total, self._source = total, source
        self._start, self._before, self._done = time.monotonic(), 0, 0
        self._bar: tqdm | None = None

    def __enter__(self) -> "ReadProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def part(self) -> float:
        """Which part of the bytes has been read."""
        return self._done / max(self._total, 1)

    def update(self, done: int) -> None:
        """Show how far a file has been read.

        Args:
          done: bytes of the current file.
        """
        self._done = self._before + done
        if self._bar is None and time.monotonic() - self._start > _SECONDS:
            pause = 0.1 if sys.stderr.isatty() else 30
            options = {"unit": "B", "unit_scale": True, "file": sys.stderr, "leave": False, "mininterval": pause}
            self._bar = tqdm(desc=f"reading {self._source}", total=self._total, initial=self._done, **options)
        elif self._bar is not None:
            self._bar.update(self._done - self._bar.n)

    def finish_file(self, size: int) -> None:
        """Go on to the next file.

        Args:
          size: bytes of the one that has been read.
        """
        self.update(size)
        self._before += size

    def describe(self, text: str) -> None:
        """Say what is done with what was read.

        Args:
          text: a few words.
        """
        self.update(self._total - self._before)
        if self._bar is not None:
            self._bar.set_description(text)
