"""Files to text, piece by piece: which files, decompression, encodings, and blocks of whole rows."""

import bz2
import codecs
import contextlib
import gzip
import itertools
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from scall_jax.streams.wording import option

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"x\x01": "zlib",
    b"x\x9c": "zlib",
    b"x\xda": "zlib",
}
_UNREADABLE = {
    b"\x28\xb5\x2f\xfd": "zstd (unpack it first: zstd -d)",
    b"\x04\x22\x4d\x18": "lz4 (unpack it first: lz4 -d)",
    b"\xff\x06\x00\x00sNaPpY": "snappy (unpack it first)",
    b"\x1f\x9d": "compress (unpack it first: uncompress)",
    b"7z\xbc\xaf\x27\x1c": "7-Zip (unpack it first)",
    b"Rar!": "RAR (unpack it first)",
    b"ARROW1": "Arrow (write it as Parquet)",
    b"\x89HDF": "HDF5 (write it as Parquet)",
    b"SQLite format 3": "SQLite (export the table as CSV)",
    b"Obj\x01": "Avro (write it as Parquet)",
    b"ORC": "ORC (write it as Parquet)",
}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LONGEST_ROW = 2**24  # bytes
_DAMAGES = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError)


def files_of(path: str | Path | Sequence[str | Path], folder: bool) -> list[Path]:
    """The files of one table.

    Args:
      path: a file, several files with parts of one table, or a folder of such files.
      folder: whether the path is a folder of parts, which are taken in the order of their names; hidden files and those
        that start with `_` (marks of finished jobs) are no parts.

    Raises:
      ValueError: no file, something that is none, or a file given twice.
    """
    files = [Path(path)] if isinstance(path, (str, Path)) else [Path(one) for one in path]
    if folder:
        if len(files) != 1 or not files[0].is_dir():
            raise ValueError(f"{', '.join(map(str, files))}: {option('folder')} asks for one folder")
        (top,) = files
        files = sorted(one for one in top.iterdir() if not one.name.startswith((".", "_")))
        if not files:
            raise ValueError(f"{top}: no files in the folder")
    for one in files:
        _check_regular(one)
    known: dict[Path, Path] = {}
    for one in files:
        if known.setdefault(one.resolve(), one) is not one:
            raise ValueError(f"{one}: the same file as {known[one.resolve()]}: rows would count twice")
    if not files:
        raise ValueError("no file is named")
    return files


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        reason = "no such file" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else str(error)
        raise ValueError(f"{path}: {reason}") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path}: a folder, not a file: {option('folder')} reads all files in it as one table")
    if not stat.S_ISREG(mode):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise ValueError(f"{path}: {kind}, not a file: write its content to a file first")


def first_bytes(path: Path) -> bytes:
    """The bytes by which formats are told apart.

    Raises:
      ValueError: the file is empty or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(16)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if not magic:
        raise ValueError(f"{path}: the file is empty")
    return magic


def pieces(path: Path, encoding: str | None, size: int, on_read: Callable[[int], object]) -> Iterator[bytes]:
    """The text of a file in UTF-8, decompressed, without the byte order mark and with `\\n` at the ends of lines.

    Args:
      path: the file.
      encoding: of its text; None for UTF-8, which `whole_rows` checks.
      size: bytes of a piece.
      on_read: called with the number of bytes of the file that have been read so far.

    Raises:
      ValueError: while iterating, naming the file: a damaged, truncated or unknown compression, text that is not in the
        encoding, the mark of an encoding that was not given, or bytes that are no text.
    """
    with contextlib.closing(_text(path, encoding, size, on_read)) as text:
        first = next(text, b"").removeprefix(codecs.BOM_UTF8)
        returns = b"\n" not in first and b"\r" in first.rstrip(b"\r")  # as old Macintoshes ended lines
        for piece in itertools.chain([first], text):
            if piece:
                yield piece.replace(b"\r", b"\n") if returns else piece


def _text(
    path: Path, encoding: str | None, size: int, on_read: Callable[[int], object]
) -> Generator[bytes, None, None]:
    """UTF-8 of a file in the given encoding, or its bytes as they are."""
    decoder = None if encoding is None else codecs.getincrementaldecoder(encoding)()
    lines = 1
    for number, data in enumerate(_decompressed(path, size, on_read)):
        if decoder is None:
            if number == 0:
                _refuse_mark(path, data)
            yield data
            continue
        try:
            text = decoder.decode(data, final=not data).encode()
        except UnicodeError as error:
            raise ValueError(f"{path}, row {lines + _lines_before(error)}: not {encoding}: {error}") from None
        lines += text.count(b"\n")
        yield text


def _lines_before(error: UnicodeError) -> int:
    """Ends of lines in front of what cannot be decoded."""
    if not isinstance(error, UnicodeDecodeError):
        return 0
    return error.object[: error.start].decode(error.encoding, errors="replace").count("\n")


def _refuse_mark(path: Path, data: bytes) -> None:
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"{path}, row 1: the file starts with the mark of {name}: give {option('encoding', name)}")


def _decompressed(path: Path, size: int, on_read: Callable[[int], object]) -> Iterator[bytes]:
    """Decompressed pieces of a file; the last one is empty."""
    magic = first_bytes(path)
    name = _compression(magic)
    _refuse_unreadable(path, magic, "")
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        try:
            read = _reader(raw, name, stack)
            first = True
            while data := _filled(read, size):
                if name is not None and first:
                    _refuse_unreadable(path, data, f" inside {name}", tuple(_MAGIC.items()))
                first = False
                on_read(raw.tell())
                yield data
        except _DAMAGES as error:
            raise ValueError(f"{path}: truncated, damaged or locked {name or 'file'}: {error}") from error
    yield b""


def _compression(magic: bytes) -> str | None:
    if magic.startswith(b"x^") and not magic[:16].isascii():  # zlib's third mark is the start of a text, too
        return "zlib"
    return next((name for start, name in _MAGIC.items() if magic.startswith(start)), None)


def refuse_packed(path: Path, magic: bytes) -> None:
    """Refuse compressed content, where text is to grow.

    Args:
      path: the source, named in errors.
      magic: its first bytes.

    Raises:
      ValueError: it is compressed, or of a kind that is not read.
    """
    _refuse_unreadable(path, magic, "")
    if name := _compression(magic):
        raise ValueError(f"{path}: the content is {name}, which cannot be followed while it grows: write plain text")
    for mark, name in _MARKS.items():
        if magic.startswith(mark):
            raise ValueError(f"{path}: the text starts with the mark of {name}, which cannot be followed: write UTF-8")


def _refuse_unreadable(path: Path, data: bytes, where: str, more: Iterable[tuple[bytes, str]] = ()) -> None:
    packed = ((b"PAR1", "Parquet (unpack it first)"),) if where else ()
    for start, name in (*_UNREADABLE.items(), *packed, *more):
        if data.startswith(start):
            raise ValueError(f"{path}: the content is {name}{where}, which is not read here")


def _filled(read: Callable[[int], bytes], size: int) -> bytes:
    """As many bytes as asked for, unless the file ends."""
    parts, missing = [], size
    while missing and (data := read(missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def _reader(raw: BinaryIO, name: str | None, stack: contextlib.ExitStack) -> Callable[[int], bytes]:
    """`read` of the decompressed file."""
    if name == "zlib":
        return _zlib_reader(raw)
    opened: dict[str | None, Callable[[], Any]] = {
        None: lambda: raw,
        "gzip": lambda: gzip.GzipFile(fileobj=raw),
        "bzip2": lambda: bz2.BZ2File(raw),
        "xz": lambda: lzma.LZMAFile(raw),  # noqa: SIM115
        "zip": lambda: _only_member(raw, stack),
    }
    return stack.enter_context(opened[name]()).read


def _only_member(raw: BinaryIO, stack: contextlib.ExitStack) -> Any:
    try:
        archive = stack.enter_context(zipfile.ZipFile(raw))
        members = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
        opened = archive.open(members[0]) if len(members) == 1 else None
    except (ValueError, LookupError, struct.error) as error:  # names and places of a damaged directory
        raise zipfile.BadZipFile(f"its directory cannot be read ({error})") from error
    if opened is None:
        names = ", ".join(one.filename for one in members[:5])
        raise ValueError(f"{raw.name}: {len(members)} files in the archive ({names}): unpack the one to read")
    return opened


def _zlib_reader(raw: BinaryIO) -> Callable[[int], bytes]:
    engine = zlib.decompressobj()

    def read(size: int) -> bytes:
        while not engine.eof:
            data = engine.unconsumed_tail or raw.read(2**16)
            if not data:
                raise EOFError("the file ends before the compressed data do")
            if out := engine.decompress(data, size):
                return out
        if engine.unused_data or raw.read(1):
            raise EOFError("the file goes on behind the compressed data")
        return b""

    return read


def first_lines(path: Path, parts: Iterator[bytes]) -> bytes:
    """The start of a text, with at least one whole line if there is one.

    Args:
      path: the file, named in errors.
      parts: its text, cut anywhere; what is returned is taken from it.

    Raises:
      ValueError: a NUL, or a first line that does not end.
    """
    first = next(parts, b"").lstrip(b"\r\n")
    check_text(path, first, 1, whole=False)
    while b"\n" not in first and (more := next(parts, b"")):
        first = (first + more).lstrip(b"\r\n")
        check_length(path, first if b"\n" not in first else b"", 1)
    check_text(path, first, 1, whole=False)
    return first


def whole_rows(path: Path, parts: Iterable[bytes], quoted: bool, row: int = 1) -> Iterator[bytes]:
    """Blocks of text that end with the end of a row; blank lines at the start and at the end of the file are left out.

    Args:
      path: the file, named in errors.
      parts: its text, cut anywhere.
      quoted: whether quotes may hold line ends.
      row: number of the first line.

    Raises:
      ValueError: while iterating: bytes that are not UTF-8, NULs, or a row that does not end, with its row.
    """
    rest, first = b"", row
    for part in parts:
        # Blank lines at the end of a block are held back, because they may be the end of the file.
        data = rest + part if row > first or rest.strip(b"\r\n") else (rest + part).lstrip(b"\r\n")
        end = row_end(data, quoted) + 1
        block = data[:end].rstrip(b"\r\n")
        if not block:
            rest = data
            check_length(path, data, row)
            continue
        rest = data[len(block) :]
        ended = rest[: rest.find(b"\n") + 1]
        check_text(path, block, row)
        yield block + ended
        rest = rest[len(ended) :]
        row += block.count(b"\n") + 1
        check_length(path, rest, row)
    if rest.strip(b"\r\n"):
        block = rest.rstrip(b"\r\n")
        check_text(path, block, row)
        yield block


def row_end(data: bytes, quoted: bool) -> int:
    """Position of the last line end that no quotes enclose; -1 if there is none.

    Args:
      data: text that starts with a row.
      quoted: whether quotes may hold line ends.
    """
    end = data.rfind(b"\n")
    odd = quoted and end >= 0 and data.count(b'"', 0, end) % 2
    while odd and end >= 0:
        before = data.rfind(b"\n", 0, data.rfind(b'"', 0, end))
        odd = (odd + data.count(b'"', max(before, 0), end)) % 2
        end = before
    return end


def check_length(path: Path, rest: bytes, row: int) -> None:
    """Check that a row ends.

    Args:
      path: the file, named in errors.
      rest: text that starts with a row and has no row's end.
      row: number of its first line.

    Raises:
      ValueError: it is too long for a row.
    """
    if len(rest) > _LONGEST_ROW:
        check_text(path, rest[:_LONGEST_ROW], row, whole=False)
        raise ValueError(
            f"{path}, row {row}: more than {_LONGEST_ROW / 1e6:.0f} MB without the end of a row: "
            "a quote that is not closed, or no table of interactions"
        )


def check_text(path: Path, block: bytes, row: int, whole: bool = True) -> None:
    """Check that bytes are text.

    Args:
      path: the file, named in errors.
      block: bytes.
      row: number of their first line.
      whole: whether they end with a whole character, so that they can be checked to be UTF-8.

    Raises:
      ValueError: a NUL, or bytes that are not UTF-8.
    """
    if (at := block.find(b"\0")) >= 0:
        row += block.count(b"\n", 0, at)
        other = option("encoding", "utf-16")
        raise ValueError(f"{path}, row {row}: a NUL byte: no text, or text in another encoding ({other}, for example)")
    if not whole:
        return
    try:
        block.decode()
    except UnicodeDecodeError as error:
        at = row + block.count(b"\n", 0, error.start)
        start = max(block.rfind(b"\n", 0, error.start) + 1, error.start - 20)
        raise ValueError(
            f"{path}, row {at}: not UTF-8 at {block[start : error.start + 10].splitlines()[0]!r}: "
            f"name the encoding of the file, for example {option('encoding', 'latin-1')}"
        ) from None
