"""Files to Interactions: published formats and any table with named columns, checked row by row.

Recognised by content: MovieLens `ratings.dat` (`user::item::rating::timestamp`, also MovieTweetings), `u.data`,
`ratings.csv`; Amazon reviews and Yelp `review.json` as JSON lines; Gowalla check-ins; any CSV, TSV, JSON-lines or
Parquet file with named columns; all of the text formats also gzipped.
"""

import gzip
import io
import itertools
import json
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from scall_jax.streams.interactions import Interactions, encode
from scall_jax.streams.times import milliseconds

FORMATS = ("auto", "parquet", "csv", "tsv", "jsonl", "movielens-dat", "movielens-udata", "gowalla")

_ALIASES = {
    "user": ("user", "user_id", "userId", "userid", "reviewerID", "uid"),
    "item": (
        "item",
        "item_id",
        "itemId",
        "itemid",
        "movieId",
        "movie_id",
        "parent_asin",
        "asin",
        "business_id",
        "iid",
    ),
    "timestamp": ("timestamp", "time", "ts", "unixReviewTime", "date", "datetime"),
    "rating": ("rating", "overall", "stars"),
}
_HEADERLESS = {
    "movielens-dat": ["user", "item", "rating", "timestamp"],
    "movielens-udata": ["user", "item", "rating", "timestamp"],
    "gowalla": ["user", "timestamp", "latitude", "longitude", "item"],
}


def read(
    path: str | Path,
    *,
    format: str = "auto",
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    rating: str | None = None,
    min_rating: float | None = None,
    time_unit: str = "auto",
) -> Interactions:
    """Read a file of interactions.

    Args:
      path: the file, gzipped or not.
      format: one of `FORMATS`; `auto` looks at the content.
      user, item, timestamp, rating: column names; by default those of the published formats are recognised. Files
        without a header other than the published ones have columns `column_1`, `column_2`, ...; a first line is data
        if it has a number or a date and none of these names.
      min_rating: keep only rows rated at least this; needs a rating column.
      time_unit: `s`, `ms`, `us` for numeric timestamps; `auto` judges by size. Text is read as ISO-8601 or
        `YYYY-MM-DD[ HH:MM:SS]`, UTC unless it says otherwise.

    Returns:
      Interactions in source order.

    Raises:
      ValueError: naming file, row and column: missing file or column, null id, timestamp that does not parse or is
        negative, rating that does not parse, a column of lists or bytes, empty or truncated file, mixed delimiters.
    """
    path = Path(path)
    given = {"user": user, "item": item, "timestamp": timestamp}
    if min_rating is not None:
        given["rating"] = rating
    table = _table(path, format, [name for name in given.values() if name is not None])
    columns = {role: _column(table, role, name, path) for role, name in given.items()}
    frame = table.frame.select(pl.col(name).alias(role) for role, name in columns.items())
    where = _Where(path, table.first_row, columns)
    del table  # its other columns are not needed
    for role in columns:
        _check_type(frame[role], role, where)
    for role in ("user", "item", "timestamp"):
        where.refuse(_missing(frame[role]), role, "is missing (null or empty)", frame[role])
    time = milliseconds(frame["timestamp"], time_unit, where)
    if min_rating is not None:
        frame, time = _positive(frame, time, min_rating, where)
    user, item = frame["user"], frame["item"]
    del frame  # its other columns are not needed while ids are encoded
    user_codes, user_ids = encode(_tidy(user))
    item_codes, item_ids = encode(_tidy(item))
    return Interactions(user_codes, item_codes, time, user_ids, item_ids, str(path))


class _Where:
    """Names file, row and column of the first bad value."""

    def __init__(self, path: Path, first_row: int, columns: dict[str, str]):
        self.path, self.first_row, self.columns = path, first_row, columns

    def refuse(self, bad: pl.Series, role: str, problem: str, values: pl.Series):
        bad = bad.fill_null(True)
        if bad.any():
            at = bad.arg_true()[0]
            raise ValueError(
                f"{self.path}, row {at + self.first_row}, column {self.columns[role]!r}: {values[at]!r} {problem}"
                f" ({int(bad.sum())} such row(s))"
            )


class _Table(NamedTuple):
    """A file's content: its columns (of JSON lines those that could be asked for), line of the first record, names."""

    frame: pl.DataFrame
    first_row: int
    names: list[str]


def _table(path: Path, format: str, given: list[str]) -> _Table:
    """Read the file; `given` are column names that the caller asks for."""
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
        return _Table(frame, 1, frame.columns)
    data = _gunzip(path) if magic[:2] == b"\x1f\x8b" else path.read_bytes()
    data = data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")  # blank last lines are no rows
    if not data.strip():
        raise ValueError(f"{path}: the file is empty")
    format = _sniff(data) if format == "auto" else format
    if format == "jsonl":
        return _jsonl(path, data, given)
    header = format in ("csv", "tsv") and not _headerless(data, "," if format == "csv" else "\t", given)
    frame = _separated(path, data, format, header)
    if frame.height == 0:
        raise ValueError(f"{path}: no rows after the header")
    return _Table(frame, 2 if header else 1, frame.columns)


def _parquet(path):
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
    if frame.height == 0:
        raise ValueError(f"{path}: the file has no rows")
    return frame


def _gunzip(path):
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file: {error}") from error


def _sniff(data: bytes) -> str:
    line = data.lstrip()[:65536].split(b"\n", 1)[0].rstrip(b"\r")
    if line.startswith(b"{"):
        return "jsonl"
    if b"::" in line:
        return "movielens-dat"
    if b"\t" in line:
        fields = line.split(b"\t")
        if len(fields) == 5 and b"T" in fields[1] and fields[1][:4].isdigit():
            return "gowalla"
        return "movielens-udata" if len(fields) == 4 and all(f.strip().isdigit() for f in fields) else "tsv"
    return "csv"


_DATE = re.compile(r"\d{4}[-/]\d\d?[-/]\d\d?")


def _headerless(data: bytes, separator: str, given: list[str]) -> bool:
    """A first line with a number or a date among its fields, and no name that is asked for or known, is data."""
    line = data.lstrip()[:65536].split(b"\n", 1)[0].decode(errors="replace")
    fields = [field.strip(' "\r') for field in line.split(separator)]
    if {*given, *itertools.chain(*_ALIASES.values())}.intersection(fields):
        return False
    return any(_is_number(field) or _DATE.match(field) for field in fields)


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _separated(path, data, format, header):
    separator = {"csv": ",", "movielens-dat": "\t"}.get(format, "\t")
    if format == "movielens-dat":
        data = data.replace(b"::", b"\t")
    names = _HEADERLESS.get(format)
    try:
        frame = pl.read_csv(
            io.BytesIO(data),
            has_header=header,
            separator=separator,
            infer_schema=False,
            quote_char='"' if format == "csv" else None,
        )
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}, {_ragged_row(data, separator)}: {_first_line(error)}") from error
    if names is not None:
        if frame.width < len(names):
            raise ValueError(
                f"{path}, row 1: {frame.width} field(s) where {format} has {len(names)} ({', '.join(names)})"
            )
    elif not header:
        names = [f"column_{number}" for number in range(1, frame.width + 1)]
    return frame.rename(dict(zip(frame.columns, names or [], strict=False)))


def _ragged_row(data, separator):
    """The first line with another number of separators than the first line."""
    lines = data.split(b"\n")
    expected = lines[0].count(separator.encode())
    for number, line in enumerate(lines, 1):
        if line and line.count(separator.encode()) != expected:
            text = line[:60].decode(errors="replace")
            return f"row {number}: {text!r} has another number of fields than row 1 (mixed delimiters?)"
    return "unreadable table"


def _jsonl(path: Path, data: bytes, given: list[str]) -> _Table:
    """Only what is asked for or known, as text: types of JSON may change from line to line."""
    first = data.lstrip().split(b"\n", 1)[0]
    wanted = dict.fromkeys([*given, *itertools.chain(*_ALIASES.values())], pl.String)
    try:
        frame = pl.read_ndjson(io.BytesIO(data), schema=wanted)
        others = [name for name in json.loads(first) if name not in wanted]
    except (pl.exceptions.PolarsError, ValueError) as error:
        row = _bad_json_row(data)
        problem = f", row {row}: not a JSON object per line" if row else ": unreadable JSON lines"
        raise ValueError(f"{path}{problem}: {_first_line(error)}") from error
    frame = frame.select(name for name in wanted if frame[name].null_count() < frame.height)
    return _Table(frame, 1, frame.columns + others)


def _bad_json_row(data: bytes) -> int | None:
    """The first line that is no JSON object; None where all are."""
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            if not isinstance(json.loads(line.strip() or b"{}"), dict):
                return number
        except ValueError:
            return number
    return None


def _first_line(error):
    return str(error).strip().split("\n", 1)[0]


def _column(table: _Table, role: str, name: str | None, path: Path) -> str:
    if name is not None:
        if name in table.frame.columns:
            return name
        raise ValueError(f"{path}: no column {name!r} for the {role}; the columns are {', '.join(table.names)}")
    for alias in _ALIASES[role]:
        if alias in table.frame.columns:
            return alias
    raise ValueError(
        f"{path}: no column for the {role} among {', '.join(map(repr, table.names))}: name it with {role}="
    )


def _check_type(values: pl.Series, role: str, where: _Where) -> None:
    kind = values.dtype
    if kind.is_nested() or kind == pl.Binary or (role == "timestamp" and kind in (pl.Time, pl.Duration, pl.Boolean)):
        use = "a point in time" if role == "timestamp" else "a number" if role == "rating" else "an id"
        raise ValueError(f"{where.path}, column {where.columns[role]!r}: values of type {kind} cannot be {use}")


def _missing(values: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        return values.is_null() | (values.str.strip_chars() == "")
    return values.is_null() | values.is_nan() if values.dtype.is_float() else values.is_null()


def _tidy(ids: pl.Series) -> pl.Series:
    """Ids as integers where all of them are canonical integers, else as strings."""
    if ids.dtype.is_integer():
        return ids
    text = ids.cast(pl.String).str.strip_chars()
    numbers = text.cast(pl.Int64, strict=False)
    canonical = numbers.null_count() == 0 and (numbers.cast(pl.String) == text).all()
    return numbers if canonical else text


def _positive(frame, time, min_rating, where):
    rating = frame["rating"].cast(pl.Float64, strict=False)
    where.refuse(rating.is_null() | rating.is_nan(), "rating", "is not a number", frame["rating"])
    keep = (rating >= min_rating).to_numpy()
    if not keep.any():
        raise ValueError(
            f"{where.path}, column {where.columns['rating']!r}: no rating reaches min_rating={min_rating:g}"
        )
    return frame.filter(keep), time[np.flatnonzero(keep)]
