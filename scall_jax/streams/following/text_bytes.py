"""Bytes of growing text: which are text at all, their encoding, and what is blank in front."""

import codecs
from pathlib import Path

from scall_jax.streams.options import ReadOptions
from scall_jax.streams.sources import refuse_packed
from scall_jax.streams.wording import option


class TextBytes:
    """Bytes of whole lines to UTF-8."""

    def __init__(self, name: str, options: ReadOptions):
        """Check that lines can be told apart by their bytes.

        Args:
          name: of the source, in errors.
          options: of which format and encoding matter.

        Raises:
          ValueError: they cannot.
        """
        if options.format == "parquet":
            raise ValueError(f"{name}: a Parquet file does not grow: follow CSV, JSON lines or a table")
        self._name, self._encoding = name, options.encoding
        if options.encoding is not None and not _keeps_lines(options.encoding):
            raise ValueError(
                f"{name}: {option('encoding', options.encoding)} is not followed, because bytes do not tell its line "
                "ends: write UTF-8 (iconv -t utf-8)"
            )

    def utf8(self, data: bytes, row: int) -> bytes:
        """Text in UTF-8.

        Args:
          data: whole lines.
          row: number of the first one, in errors.

        Raises:
          ValueError: bytes that the encoding does not have.
        """
        if self._encoding is None:
            return data
        try:
            return data.decode(self._encoding).encode()
        except UnicodeError as error:
            raise ValueError(f"{self._name}, row {row} or later: not {self._encoding}: {error}") from None


def _keeps_lines(encoding: str) -> bool:
    """Whether each byte is a character of its own, those of ASCII as there, or the encoding is UTF-8."""
    if codecs.lookup(encoding).name == "utf-8":
        return True
    every = bytes(range(256))
    try:
        plain = every[:128].decode(encoding) == every[:128].decode()
        return plain and len(every.decode(encoding, errors="replace")) == len(every)
    except UnicodeError:
        return False


def blank_start(data: bytes) -> int:
    """Bytes of the byte order mark and of blank lines at the start of a text."""
    mark = len(codecs.BOM_UTF8) * data.startswith(codecs.BOM_UTF8)
    return len(data) - len(data[mark:].lstrip(b"\r\n"))


def refuse_no_text(path: Path, data: bytes) -> None:
    """Refuse what is compressed, or known to be no text.

    Args:
      path: name of the source, in errors.
      data: its first bytes.

    Raises:
      ValueError: it is.
    """
    refuse_packed(path, data)
    if data.startswith(b"PAR1"):
        raise ValueError(f"{path}: a Parquet file does not grow: follow CSV, JSON lines or a table")
