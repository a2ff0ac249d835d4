"""Files to Interactions: published formats and any table with named columns, checked row by row.

Recognised by content: MovieLens `ratings.dat` (`user::item::rating::timestamp`, also MovieTweetings), `u.data`,
`ratings.csv`; Amazon reviews and Yelp `review.json` as JSON lines; Gowalla check-ins; any CSV, TSV, JSON-lines or
Parquet file with named columns; all of the text formats also gzipped.
"""

import gzip
import io
import zlib
from pathlib import Path

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
        without a header other than the published ones have columns `column_1`, `column_2`, ...
      min_rating: keep only rows rated at least this; needs a rating column.
      time_unit: `s`, `ms`, `us` for numeric timestamps; `auto` judges by size. Text is read as ISO-8601 or
        `YYYY-MM-DD[ HH:MM:SS]`, UTC unless it says otherwise.

    Returns:
      Interactions in source order.

    Raises:
      ValueError: naming file, row and column: missing file or column, null id, timestamp that does not parse or is
        negative, rating that does not parse, empty or truncated file, mixed delimiters.
    """
    path = Path(path)
    frame, first_row = _frame(path, format)
    columns = {
        role: _column(frame, role, name, path)
        for role, name in (("user", user), ("item", item), ("timestamp", timestamp))
    }
    if min_rating is not None:
        columns["rating"] = _column(frame, "rating", rating, path)
    frame = frame.select(pl.col(name).alias(role) for role, name in columns.items())
    where = _Where(path, first_row, columns)
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


def _frame(path: Path, format: str) -> tuple[pl.DataFrame, int]:
    """The file as a table, and the line (or row) number of its first record."""
    if format not in FORMATS:
        raise ValueError(f"{path}: unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        magic = file.read(4)
    if not magic:
        raise ValueError(f"{path}: the file is empty")
    if format == "parquet" or (format == "auto" and magic == b"PAR1"):
        return _parquet(path), 1
    data = _gunzip(path) if magic[:2] == b"\x1f\x8b" else path.read_bytes()
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise ValueError(f"{path}: the file is empty")
    format = _sniff(data) if format == "auto" else format
    if format == "jsonl":
        return _jsonl(path, data), 1
    header = format in ("csv", "tsv") and not _headerless(data, b"," if format == "csv" else b"\t")
    frame = _separated(path, data, format, header)
    if frame.height == 0:
        raise ValueError(f"{path}: no rows after the header")
    return frame, 2 if header else 1


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


def _headerless(data: bytes, separator: bytes) -> bool:
    """A first line with a number among its fields is data, not a header."""
    fields = data.lstrip()[:65536].split(b"\n", 1)[0].rstrip(b"\r").split(separator)
    return any(f.strip(b' "').replace(b".", b"", 1).isdigit() for f in fields)


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
        frame = frame.rename(dict(zip(frame.columns, names, strict=False)))
    return frame


def _ragged_row(data, separator):
    """The first line with another number of separators than the first line."""
    lines = data.split(b"\n")
    expected = lines[0].count(separator.encode())
    for number, line in enumerate(lines, 1):
        if line and line.count(separator.encode()) != expected:
            text = line[:60].decode(errors="replace")
            return f"row {number}: {text!r} has another number of fields than row 1 (mixed delimiters?)"
    return "unreadable table"


def _jsonl(path, data):
    try:
        return pl.read_ndjson(io.BytesIO(data), infer_schema_length=1000)
    except pl.exceptions.PolarsError as error:
        row = _bad_json_row(data)
        raise ValueError(f"{path}, row {row}: not a JSON object per line: {_first_line(error)}") from error


def _bad_json_row(data):
    import json

    number = 0
    for number, line in enumerate(data.splitlines(), 1):
        try:
            json.loads(line or b"{}")
        except ValueError:
            return number
    return number


def _first_line(error):
    return str(error).strip().split("\n", 1)[0]


def _column(frame, role, name, path):
    if name is not None:
        if name in frame.columns:
            return name
        raise ValueError(f"{path}: no column {name!r} for the {role}; the columns are {', '.join(frame.columns)}")
    for alias in _ALIASES[role]:
        if alias in frame.columns:
            return alias
    raise ValueError(
        f"{path}: no column for the {role} among {', '.join(map(repr, frame.columns))}: name it with {role}="
    )


def _missing(values: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        return values.is_null() | (values.str.strip_chars() == "")
    return values.is_null()


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
    where.refuse(rating.is_null(), "rating", "is not a number", frame["rating"])
    keep = (rating >= min_rating).to_numpy()
    if not keep.any():
        raise ValueError(
            f"{where.path}, column {where.columns['rating']!r}: no rating reaches min_rating={min_rating:g}"
        )
    return frame.filter(keep), time[np.flatnonzero(keep)]
