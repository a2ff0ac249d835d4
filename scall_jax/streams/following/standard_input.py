"""Rows that another process writes to standard input, or to any other pipe.

A pipe cannot go back. What was read from it and not committed is lost with the process, so that whoever feeds it has to
send these rows again: from the start, which `resend="all"` skips as far as it was committed, or from the first row
that was not, with `resend="rest"`. The number of committed rows is in the offset.
"""

import os
import select
import time
import zlib
from pathlib import Path

from scall_jax.streams.following.source import EMPTY, Batch, Offset
from scall_jax.streams.following.text import BLOCK, Text, from_json, recognise_text, rows_of, to_json, whole
from scall_jax.streams.following.text_bytes import TextBytes, blank_start, refuse_no_text
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.sources import check_length, row_end
from scall_jax.streams.wording import option

RESEND = ("all", "rest")
"""What the feeder sends after a restart: everything from the start, or the rows that were not committed."""


class StandardInput:
    """CSV, other separated text, or JSON lines from a pipe.

    No more is taken from the pipe than one block beyond the rows that were asked for, so that the feeder waits.
    """

    def __init__(self, options: ReadOptions, resend: str | None = None, descriptor: int = 0):
        """Read nothing yet.

        Args:
          options: what the caller says about the text.
          resend: one of `RESEND`; needed where rows were committed before.
          descriptor: of the pipe; 0 is standard input.

        Raises:
          ValueError: an encoding whose lines cannot be told apart, or an unknown value of `resend`.
        """
        self.name = "standard input"
        if resend not in (None, *RESEND):
            raise ValueError(f"{option('resend')}={resend!r}: choose one of {', '.join(RESEND)}")
        self._options, self._resend, self._descriptor = options, resend, descriptor
        self._bytes, self._path = TextBytes(self.name, options), Path(self.name)
        self._waiting = b""
        self._at: Offset | None = None
        # A batch may be asked for again with fewer rows, so that where it began is kept, with the bytes from there on.
        self._last: tuple[Offset | None, bytes] | None = None
        self._started, self._closed = False, False
        self._skipped_bytes, self._skipped_crc = 0, 0
        self._quoted = False

    @property
    def ended(self) -> bool:
        """Whether the feeder has closed the pipe and no whole row is left."""
        return self._closed and row_end(self._waiting, self._quoted) < 0

    def read(self, offset: Offset | None, most: int) -> Batch:
        """The rows that have come; see `Source.read`.

        Raises:
          ValueError: also an offset that is neither behind the rows that were read last nor in front of them.
        """
        if not self._started:
            if offset is not None and not self._resumed(offset):
                return Batch(EMPTY, offset, held=not self._closed)
            self._at, self._started = offset, True
        if offset != self._at and self._last is not None and offset == self._last[0]:
            self._at, self._waiting = self._last
        if offset != self._at:
            raise ValueError(f"{self.name}: a pipe cannot go back to {offset}")
        if self._at is None:
            self._fill()
            self._last = None, self._waiting
            return self._first(most)
        text = from_json(self._at["text"], self._options, self.name)
        self._quoted = text.layout.quoted
        self._fill()
        self._last = self._at, self._waiting
        return self._rows(self._at, text, most)

    def _resumed(self, offset: Offset) -> bool:
        """Go to where an earlier process has stopped; False where the feeder has not sent so much yet."""
        if "input_bytes" not in offset:
            raise ValueError(f"{self.name}: the folder has followed another kind of source: choose another folder")
        if self._resend is None:
            raise ValueError(
                f"{self.name}: {offset['rows']:,} rows of it are in the folder: give {option('resend', 'all')} if they "
                f"come again, or {option('resend', 'rest')} if the first row to come is row {offset['rows'] + 1:,}"
            )
        from_json(offset["text"], self._options, self.name)  # Other options are refused before anything is read.
        return self._skipped(offset) if self._resend == "all" else self._past_header(offset)

    def _skipped(self, offset: Offset) -> bool:
        """Read what is in the folder already, and compare it."""
        while self._skipped_bytes < offset["input_bytes"]:
            data = self._waiting or self._received()
            if not data:
                if self._closed:
                    raise ValueError(
                        f"{self.name}: it ended within the {offset['rows']:,} rows that are in the folder: send all of "
                        f"them, or the rest with {option('resend', 'rest')}"
                    )
                return False
            known = data[: offset["input_bytes"] - self._skipped_bytes]
            self._skipped_bytes += len(known)
            self._skipped_crc = zlib.crc32(known, self._skipped_crc)
            self._waiting = data[len(known) :]
        if self._skipped_crc != offset["crc"]:
            raise ValueError(
                f"{self.name}: its first {offset['rows']:,} rows are not those in the folder: send the same, or the "
                f"rest with {option('resend', 'rest')}"
            )
        return True

    def _past_header(self, offset: Offset) -> bool:
        """Leave the header out, if the feeder sends it again."""
        header = offset["header"].encode("latin-1")
        while header and len(self._waiting) < len(header) and header.startswith(self._waiting):
            data = self._received()
            if not data:
                return self._closed
            self._waiting += data
        if header:
            self._waiting = self._waiting.removeprefix(header)
        return True

    def _fill(self) -> None:
        """Take from the pipe what is there, until there is a block with a whole row."""
        while len(self._waiting) < BLOCK or row_end(self._waiting, self._quoted) < 0:
            data = self._received()
            if not data:
                return
            self._waiting += data
            if row_end(self._waiting, self._quoted) < 0:
                check_length(self._path, self._waiting, 1 if self._at is None else self._at["rows"] + 1)

    def _received(self) -> bytes:
        """Bytes of the pipe; none where none are there."""
        if self._closed or not select.select([self._descriptor], [], [], 0)[0]:
            return b""
        data = os.read(self._descriptor, BLOCK)
        self._closed = not data
        return data

    def _first(self, most: int) -> Batch:
        data = self._waiting[: self._waiting.rfind(b"\n") + 1]
        refuse_no_text(self._path, self._waiting)
        start = blank_start(data)
        if start == len(data):
            return Batch(EMPTY, None, held=not self._closed)
        text = recognise_text(self._path, self._bytes.utf8(data[start:], 1), self._options)
        start = data.find(b"\n", start) + 1 if text.layout.header else start
        header = data[:start].decode("latin-1")  # any byte is a character there
        crc = zlib.crc32(data[:start])
        offset = {"rows": 0, "input_bytes": start, "crc": crc, "header": header, "text": to_json(text, self._options)}
        self._waiting, self._at = self._waiting[start:], offset
        return self._rows(offset, text, most)

    def _rows(self, offset: Offset, text: Text, most: int) -> Batch:
        data = whole(self._waiting, most, text.layout.quoted)
        row = 1 + text.layout.header + offset["rows"]
        if not data:
            return Batch(EMPTY, offset, held=not self._closed)
        rows, number, text = rows_of(self._path, self._bytes.utf8(data, row), text, self._options, row)
        self._waiting = self._waiting[len(data) :]
        self._at = offset | {
            "rows": offset["rows"] + number,
            "input_bytes": offset["input_bytes"] + len(data),
            "crc": zlib.crc32(data, offset["crc"]),
            "text": to_json(text, self._options),
        }
        return Batch(rows, self._at, number, held=not self._closed)

    def wait(self, seconds: float) -> None:
        """Wait until something comes, but not longer."""
        if self._closed:
            time.sleep(seconds)
        else:
            select.select([self._descriptor], [], [], seconds)

    def close(self) -> None:
        """Leave the pipe to whoever has made it."""

    def behind(self, offset: Offset | None) -> str:
        """What was read and is not part of a batch; what the feeder holds is not known."""
        return f"{len(self._waiting):,} bytes" if self._waiting else ""
