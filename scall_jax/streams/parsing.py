"""Files to data frames, a block of rows at a time: separated text, JSON lines and Parquet."""

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from scall_jax.streams import sources
from scall_jax.streams.formats import HEADERLESS, Layout, is_known, recognise
from scall_jax.streams.options import ReadOptions

_SAMPLE_BYTES, _SAMPLE_LINES = 2**16, 100
"""How much of a file is looked at to recognise its layout."""
_SUBSTITUTES = b"\x1f\x1e\x1d\x1c\x01\x02\x03\x04"
_FAILURES = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
# A number with an exponent, or with a fraction and about as many digits as a float holds.
_INEXACT = re.compile(rb"[:\s]-?(?=[\d.]{16})\d+\.\d|[:\s]-?\d[\d.]*[eE][+-]?\d")


class Table(NamedTuple):
    """A file whose columns are known and whose rows have not been read yet."""

    names: tuple[str, ...]
    """Names of all columns; of JSON lines those of the first records, the known ones first."""
    first_row: int
    """Number of the line with the first record, from 1."""
    notes: tuple[str, ...]
    """What was guessed, in words."""
    bare_quotes: bool
    """Whether quotes around a field are still there."""
    shown: tuple[str, ...]
    """Names of all columns without a header, each with its first value; empty where names are the file's own."""
    frames: Callable[[Mapping[str, str]], Iterator[pl.DataFrame]]
    """frames(columns) reads the rows in blocks; columns holds the name of a column by role, and so do the frames."""
    rows: int | None = None
    """Number of rows, where the file says so."""


class Reading(NamedTuple):
    """How to go through a file."""

    options: ReadOptions
    """What the caller says about it."""
    block: int
    """Bytes of text that are read at once."""
    on_read: Callable[[int], object]
    """Called with the number of bytes of the file that have been read so far."""


def open_table(path: Path, reading: Reading) -> Table:
    """Recognise a file.

    Args:
      path: the file.
      reading: how to go through it.

    Returns:
      A table whose frames have columns of text unless the file has types.

    Raises:
      ValueError: here or while the frames are read: an empty, truncated or unreadable file; rows with differing numbers
        of fields.
    """
    magic, options = sources.first_bytes(path), reading.options
    if options.format == "parquet" or (options.format == "auto" and magic.startswith(b"PAR1")):
        return _parquet(path, reading)
    pieces = sources.pieces(path, options.encoding, reading.block, reading.on_read)
    first = sources.first_lines(path, pieces)
    if not first.strip():
        raise ValueError(f"{path}: the file is empty")
    layout = layout_of(path, first, options)
    blocks = sources.whole_rows(path, itertools.chain([first], pieces), layout.quoted)
    return text_table(path, blocks, first, layout, options)


def layout_of(path: Path, first: bytes, options: ReadOptions) -> Layout:
    """How the lines of a text are to be read.

    Args:
      path: the file, named in errors.
      first: start of its text, not blank.
      options: what the caller says about it.

    Raises:
      ValueError: a JSON array.
    """
    try:
        return recognise(_sample(first), options.format, options.separator, options.requested)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def text_table(path: Path, blocks: Iterator[bytes], first: bytes, layout: Layout, options: ReadOptions) -> Table:
    """A text as a table.

    Args:
      path: the file, named in errors.
      blocks: whole rows, the header among them.
      first: start of the text.
      layout: of its lines.
      options: what the caller says about it.

    Raises:
      ValueError: here or while the frames are read, as in `open_table`.
    """
    if layout.format == "jsonl":
        return _json_lines(path, blocks, layout, first, options)
    return _separated(path, blocks, layout, _sample(first))


def text_rows(
    path: Path, blocks: Iterable[bytes], layout: Layout, columns: Mapping[str, str], row: int
) -> Iterator[pl.DataFrame]:
    """The columns with a role, a block at a time, as text.

    Args:
      path: the file, named in errors.
      blocks: whole rows without a header.
      layout: of the lines.
      columns: name of the column by role.
      row: number of the first row.

    Raises:
      ValueError: while iterating: rows with differing numbers of fields, or lines that are no JSON objects.
    """
    for block in blocks:
        if layout.format == "jsonl":
            frame = _json_block(path, block, columns, row)
            yield frame.select(pl.col(name).alias(role) for role, name in columns.items())
        else:
            frame = _parsed(path, block, layout.separator, len(layout.names), row)
            yield frame.select(pl.nth(layout.names.index(name)).alias(role) for role, name in columns.items())
        row += frame.height


def _sample(first: bytes) -> list[str]:
    """The first whole lines of a text."""
    end = max(_SAMPLE_BYTES, first.find(b"\n"))
    sample = first[:end].rstrip(b"\r\n").decode(errors="replace").split("\n")
    whole = sample[:-1] if len(first) > end and sample[1:] else sample
    return [line.rstrip("\r") for line in whole[:_SAMPLE_LINES]]


def _separated(path: Path, blocks: Iterator[bytes], layout: Layout, lines: list[str]) -> Table:
    names = layout.names
    expected = HEADERLESS.get(layout.format, ())
    values = lines[0].split(layout.separator)
    if len(values) < len(expected):
        raise ValueError(
            f"{path}, row 1: {len(values)} field(s) where {layout.format} has {len(expected)} ({', '.join(expected)})"
        )

    def frames(columns: Mapping[str, str]) -> Iterator[pl.DataFrame]:
        found = text_rows(path, _without_header(blocks, layout.header), layout, columns, 1 + layout.header)
        rows = 0
        for frame in found:
            rows += frame.height
            yield frame
        if layout.header and not rows:
            raise ValueError(f"{path}: no rows after the header")

    numbered = not layout.header and not expected
    shown = tuple(f"{name} ({value[:30]!r})" for name, value in zip(names, values, strict=False)) if numbered else ()
    return Table(names, 2 if layout.header else 1, layout.notes, not layout.quoted, shown, frames)


def _without_header(blocks: Iterator[bytes], header: bool) -> Iterator[bytes]:
    for block in blocks:
        rest = block[block.find(b"\n") + 1 :] if header and b"\n" in block else b"" if header else block
        header = False
        if rest:
            yield rest


def _parsed(path: Path, block: bytes, separator: str, width: int, row: int) -> pl.DataFrame:
    """All columns of some rows of separated text, as text."""
    data, sign = block, separator.encode()
    if separator == " " and b'"' not in data and re.search(rb"  |^ | \r?$", data, re.MULTILINE):
        data = re.sub(rb"^ +| +(?=\r?$)", b"", re.sub(rb" +", b" ", data), flags=re.MULTILINE)
    if len(sign) > 1:
        sign = next((bytes([code]) for code in _SUBSTITUTES if code not in data), b"")
        if not sign:
            raise ValueError(f"{path}, rows from {row} on: control characters of all kinds, no text")
        data = data.replace(separator.encode(), sign)
    if data.startswith(b"x"):
        data = b"\xef\xbb\xbf" + data  # Text that starts with x^ would be taken for compressed data.
    quoted = separator not in ("\t", "::")
    try:
        return pl.read_csv(
            io.BytesIO(data),
            has_header=False,
            separator=sign.decode(),
            schema={f"column_{number}": pl.String for number in range(width)},
            missing_columns="insert",  # A short first row is like any other short row.
            quote_char='"' if quoted else None,
        )
    except _FAILURES as error:
        raise ValueError(f"{path}, {_odd_row(block, separator, width, row, quoted)}: {_summary(error)}") from error


def _odd_row(block: bytes, separator: str, width: int, row: int, quoted: bool) -> str:
    """Describe the first row with another number of fields than the first row of the file, or with odd quotes."""
    lines = block.decode(errors="replace").split("\n")
    fields: Iterator[list[str]] = (line.split(separator) for line in lines)
    if quoted and len(separator) == 1:
        fields = iter(csv.reader(lines, delimiter=separator, strict=True))
    number = row - 1
    try:
        for number, found in enumerate(fields, row):
            if len(found) > width:
                text = separator.join(found)[:60]
                return f"row {number}: {text!r} has another number of fields than row 1 (mixed delimiters?)"
    except csv.Error as error:
        return f"row {number + 1}: {error}"
    for number, line in enumerate(lines, row):
        if quoted and line.count('"') % 2:
            return f"row {number}: {line[:60]!r} has a quote that is not closed"
    return f"rows from {row} on: unreadable table"


def _json_lines(path: Path, blocks: Iterator[bytes], layout: Layout, first: bytes, options: ReadOptions) -> Table:
    """JSON lines, read as text, because types in JSON may change from line to line."""
    found: dict[str, bool] = {}
    sample = list(filter(bytes.strip, first.split(b"\n", _SAMPLE_LINES)[:_SAMPLE_LINES]))
    for row, line in enumerate(sample, 1):
        try:
            record = _decoded(line)
        except ValueError as error:
            if found and row == len(sample) and not first.endswith(b"\n"):
                break  # The line may be cut off; reading it will say what is wrong.
            raise ValueError(f"{path}, row {row}: not a JSON object per line ({error})") from None
        found |= {name: found.get(name, False) or value is not None for name, value in record.items()}
    requested = [name for name in options.requested.values() if name is not None]
    written = {name: json.dumps(name, ensure_ascii=False).encode() for name in requested}
    found |= {name: True for name in requested if name in found or written[name] in first}
    known = [name for name, filled in found.items() if filled and is_known(name, requested)]
    others = [name for name in found if not is_known(name, requested)]

    def frames(columns: Mapping[str, str]) -> Iterator[pl.DataFrame]:
        return text_rows(path, blocks, layout, columns, 1)

    return Table((*known, *others), 1, (), False, (), frames)


def _json_block(path: Path, block: bytes, columns: Mapping[str, str], row: int) -> pl.DataFrame:
    """The columns with a role of some lines of JSON."""
    try:
        frame = pl.read_ndjson(io.BytesIO(block), schema=dict.fromkeys(columns.values(), pl.String))
    except _FAILURES as error:
        raise ValueError(f"{path}{_bad_json_row(block, row)}: {_summary(error)}") from error
    ids = [columns[role] for role in ("user", "item")]
    odd = pl.any_horizontal(pl.col(name).str.contains("^\\s*[\\[{]|\\x00") for name in ids)
    long = pl.any_horizontal(pl.col(name).str.contains(r"^-?[\d.]{16}|^-?\d[\d.]*[eE]") for name in ids)
    suspects = odd | long if frame.select(long.any()).item() and _INEXACT.search(block) else odd
    at = frame.select(suspects.fill_null(False).arg_true()).to_series().to_list()
    return _as_written(path, block, frame, ids, at, row) if at else frame


def _as_written(path: Path, block: bytes, frame: pl.DataFrame, ids: list[str], at: list[int], row: int) -> pl.DataFrame:
    """The frame with ids of some rows as the file writes them, where numbers may have lost digits."""
    lines = [line for line in block.split(b"\n") if line.strip()]
    texts = {name: frame[name].gather(at).to_list() for name in ids}
    for place, number in enumerate(at):
        record = _decoded(lines[number])
        for name in ids:
            value = record.get(name)
            if isinstance(value, (list, dict)) or "\0" in (texts[name][place] or ""):
                kind = {list: "a list", dict: "an object"}.get(type(value), "text with a NUL")
                text = str(texts[name][place])[:60]
                raise ValueError(f"{path}, row {row + number}, column {name!r}: {kind} cannot be an id: {text!r}")
            if isinstance(value, _Number):
                texts[name][place] = str(value)
    return frame.with_columns(
        frame[name].scatter(at, pl.Series(texts[name], dtype=pl.String)).alias(name) for name in dict.fromkeys(ids)
    )


class _Number(str):
    """A number as JSON writes it."""


def _decoded(line: str | bytes) -> dict[str, Any]:
    """One line of JSON, its numbers as text.

    Raises:
      ValueError: no JSON, or no object.
    """
    try:
        record = json.loads(line, parse_float=_Number, parse_int=_Number, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _bad_json_row(block: bytes, row: int) -> str:
    """Describe the first line that is no JSON object."""
    lines = [line for line in block.split(b"\n") if line.strip()]
    for number, line in enumerate(lines, row):
        try:
            _decoded(line)
        except ValueError as error:
            return f", row {number}: not a JSON object per line ({error})"
    return f", rows from {row} on: unreadable JSON lines"


_PARQUET_ROWS = 2**20  # rows that are read at once


def _parquet(path: Path, reading: Reading) -> Table:
    # An absolute path without globs or partitions: a path is a path.
    lazy = _readable(path, lambda: pl.scan_parquet(path.absolute(), glob=False, hive_partitioning=False))
    names = tuple(_readable(path, lambda: lazy.collect_schema().names()))
    rows = _readable(path, lambda: lazy.select(pl.len()).collect().item())
    if rows == 0:
        raise ValueError(f"{path}: the file has no rows")

    def frames(columns: Mapping[str, str]) -> Iterator[pl.DataFrame]:
        chosen = lazy.select(pl.col(name).alias(role) for role, name in columns.items())
        size = path.stat().st_size
        for start in range(0, rows, _PARQUET_ROWS):
            frame = _readable(path, lambda start=start: chosen.slice(start, _PARQUET_ROWS).collect())
            if frame.height != min(_PARQUET_ROWS, rows - start):
                raise ValueError(f"{path}: not a readable Parquet file: rows are missing from row {start + 1} on")
            reading.on_read(size * (start + frame.height) // rows)
            yield frame

    return Table(names, 1, (), False, (), frames, rows)


def _readable(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except _FAILURES as error:
        raise ValueError(f"{path}: not a readable Parquet file: {_summary(error)}") from error


def _summary(error: BaseException) -> str:
    """First line of an error's text."""
    return str(error).strip().split("\n", 1)[0]
