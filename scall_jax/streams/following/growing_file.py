"""A file of text that grows: its whole lines, from a byte on."""

import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO

from scall_jax.streams.following.source import EMPTY, Batch, Offset
from scall_jax.streams.following.text import BLOCK, Text, from_json, recognise_text, rows_of, to_json, whole
from scall_jax.streams.following.text_bytes import TextBytes, blank_start, refuse_no_text
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.sources import check_length, row_end

_COMPARED = 4096
"""Bytes at the start of the file, and in front of the offset, by which the file is known again."""


class GrowingFile:
    """CSV, other separated text, or JSON lines that others append to.

    A line counts once its end is there. A file that has become shorter, or has other bytes at its start or in front of
    the offset than it had, is refused; one that was copied or moved there with the same bytes is the same file.
    """

    ended = False

    def __init__(self, path: str | Path, options: ReadOptions):
        """Open nothing yet: the file need not exist before its first rows are written.

        Args:
          path: of the file.
          options: what the caller says about it.

        Raises:
          ValueError: an encoding, or a format, whose lines cannot be told apart while they grow.
        """
        self.name = str(path)
        self._path, self._options = Path(path), options
        self._bytes = TextBytes(self.name, options)

    def read(self, offset: Offset | None, most: int) -> Batch:
        """The rows that have been appended; see `Source.read`."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            if offset is None:
                return Batch(EMPTY, None)
            raise ValueError(f"{self.name}: no such file any more: put it back, or start in another folder") from None
        except IsADirectoryError:
            raise ValueError(f"{self.name}: a folder, not a file: name one file, to which rows are appended") from None
        except OSError as error:
            raise ValueError(f"{self.name} cannot be read ({error.strerror}): name a file that can be") from None
        with file:
            if offset is None:
                return self._first(file, most)
            self._check_same(file, offset)
            text = from_json(offset["text"], self._options, self.name)
            return self._rows(file, offset, text, most)

    def _first(self, file: BinaryIO, most: int) -> Batch:
        """Recognise the text, and read its first rows."""
        data = file.read(BLOCK)
        refuse_no_text(self._path, data)
        data = data[: data.rfind(b"\n") + 1]
        if blank_start(data) == len(data):
            return Batch(EMPTY, None)
        start = blank_start(data)
        text = recognise_text(self._path, self._bytes.utf8(data[start:], 1), self._options)
        start = data.find(b"\n", start) + 1 if text.layout.header else start
        offset = self._offset(file, start, 1 + text.layout.header, text)
        return self._rows(file, offset, text, most)

    def _rows(self, file: BinaryIO, offset: Offset, text: Text, most: int) -> Batch:
        start, row = offset["bytes"], offset["row"]
        file.seek(start)
        data = b""
        while more := file.read(BLOCK):
            data += more
            if row_end(data, text.layout.quoted) >= 0:
                break
            check_length(self._path, data, row)
        data = whole(data, most, text.layout.quoted)
        if not data:
            return Batch(EMPTY, offset)
        rows, number, text = rows_of(self._path, self._bytes.utf8(data, row), text, self._options, row)
        return Batch(rows, self._offset(file, start + len(data), row + number, text), number)

    def _offset(self, file: BinaryIO, end: int, row: int, text: Text) -> Offset:
        return {
            "file": self.name,
            "bytes": end,
            "row": row,
            "start": _hash(file, 0, end),
            "end": _hash(file, end - _COMPARED, end),
            "text": to_json(text, self._options),
        }

    def _check_same(self, file: BinaryIO, offset: Offset) -> None:
        if "bytes" not in offset or "file" not in offset:
            raise ValueError(f"{self.name}: the folder has followed another kind of source: choose another folder")
        end, size = offset["bytes"], os.fstat(file.fileno()).st_size
        way = "append to the file that was read, or start in another folder"
        if size < end:
            raise ValueError(
                f"{self.name}: the file was truncated or replaced: it has {size:,} bytes, and {end:,} were read: {way}"
            )
        for place, found in (("start", _hash(file, 0, end)), ("end", _hash(file, end - _COMPARED, end))):
            if found != offset[place]:
                where = "at its start" if place == "start" else f"in front of byte {end:,}"
                raise ValueError(
                    f"{self.name}: the file was replaced or changed: {where} it has other bytes than were read: {way}"
                )

    def wait(self, seconds: float) -> None:
        """Wait, since a file does not say when it grows."""
        time.sleep(seconds)

    def close(self) -> None:
        """Nothing is open between two calls."""

    def behind(self, offset: Offset | None) -> str:
        """Bytes beyond the offset."""
        try:
            return f"{self._path.stat().st_size - (offset or {'bytes': 0})['bytes']:,} bytes"
        except FileNotFoundError:
            return ""


def _hash(file: BinaryIO, start: int, end: int) -> str:
    """SHA-256 of some bytes, at most `_COMPARED` of them."""
    start = max(start, 0)
    file.seek(start)
    return hashlib.sha256(file.read(min(end - start, _COMPARED))).hexdigest()
