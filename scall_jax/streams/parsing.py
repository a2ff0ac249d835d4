"""Files to data frames: decompression, separated text, JSON lines and Parquet."""

import gzip
import io
import json
import zlib
from pathlib import Path
from typing import NamedTuple

import polars as pl

from scall_jax.streams.formats import FORMATS, HEADERLESS, has_header, known_names, recognise


class Content(NamedTuple):
    """A file's content."""

    frame: pl.DataFrame
    """Its columns; of JSON lines only those that are asked for or known."""
    first_row: int
    """Number of the line with the first record, from 1."""
    names: list[str]
    """Names of all columns."""


def parse(path: Path, format: str, requested: list[str]) -> Content:
    """Read a file.

    Args:
      path: the file, gzipped or not.
      format: one of `FORMATS`.
      requested: column names that the caller asks for.

    Returns:
      At least one record, with columns of text unless the file has types.

    Raises:
      ValueError: unknown format; missing, empty, truncated or unreadable file; rows with differing numbers of fields.
    """
    if format not in FORMATS:
        raise ValueError(f"{path}: unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        magic = file.read(4)
    if not magic:
        raise ValueError(f"{path}: the file is empty")
    if format == "parquet" or (format == "auto" and magic == b"PAR1"):
        frame = _parquet(path)
        return Content(frame, 1, frame.columns)
    data = _gunzip(path) if magic[:2] == b"\x1f\x8b" else path.read_bytes()
    # Drop the byte order mark, and blank last lines, which are no rows.
    data = data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    if not data.strip():
        raise ValueError(f"{path}: the file is empty")
    format = recognise(data) if format == "auto" else format
    if format == "jsonl":
        return _json_lines(path, data, requested)
    header = format in ("csv", "tsv") and has_header(data, "," if format == "csv" else "\t", requested)
    frame = _separated(path, data, format, header)
    if frame.height == 0:
        raise ValueError(f"{path}: no rows after the header")
    return Content(frame, 2 if header else 1, frame.columns)


def _parquet(path: Path) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
    if frame.height == 0:
        raise ValueError(f"{path}: the file has no rows")
    return frame


def _gunzip(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file: {error}") from error


def _separated(path: Path, data: bytes, format: str, header: bool) -> pl.DataFrame:
    separator = "," if format == "csv" else "\t"
    if format == "movielens-dat":
        data = data.replace(b"::", b"\t")
    names = HEADERLESS.get(format)
    try:
        frame = pl.read_csv(
            io.BytesIO(data),
            has_header=header,
            separator=separator,
            infer_schema=False,
            quote_char='"' if format == "csv" else None,
        )
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}, {_ragged_row(data, separator)}: {_summary(error)}") from error
    if names is not None:
        if frame.width < len(names):
            raise ValueError(
                f"{path}, row 1: {frame.width} field(s) where {format} has {len(names)} ({', '.join(names)})"
            )
    elif not header:
        names = [f"column_{number}" for number in range(1, frame.width + 1)]
    return frame.rename(dict(zip(frame.columns, names or [], strict=False)))


def _ragged_row(data: bytes, separator: str) -> str:
    """Describe the first line whose number of separators differs from the first line's."""
    lines = data.split(b"\n")
    expected = lines[0].count(separator.encode())
    for number, line in enumerate(lines, 1):
        if line and line.count(separator.encode()) != expected:
            text = line[:60].decode(errors="replace")
            return f"row {number}: {text!r} has another number of fields than row 1 (mixed delimiters?)"
    return "unreadable table"


def _json_lines(path: Path, data: bytes, requested: list[str]) -> Content:
    """Columns that are asked for or known, as text, because types in JSON may change from line to line."""
    first = data.lstrip().split(b"\n", 1)[0]
    wanted = dict.fromkeys(known_names(requested), pl.String)
    try:
        frame = pl.read_ndjson(io.BytesIO(data), schema=wanted)
        others = [name for name in json.loads(first) if name not in wanted]
    except (pl.exceptions.PolarsError, ValueError) as error:
        row = _bad_json_row(data)
        problem = f", row {row}: not a JSON object per line" if row else ": unreadable JSON lines"
        raise ValueError(f"{path}{problem}: {_summary(error)}") from error
    frame = frame.select(name for name in wanted if frame[name].null_count() < frame.height)
    return Content(frame, 1, frame.columns + others)


def _bad_json_row(data: bytes) -> int | None:
    """Number of the first line that is no JSON object; None if all are."""
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            if not isinstance(json.loads(line.strip() or b"{}"), dict):
                return number
        except ValueError:
            return number
    return None


def _summary(error: Exception) -> str:
    """First line of an error's text."""
    return str(error).strip().split("\n", 1)[0]
