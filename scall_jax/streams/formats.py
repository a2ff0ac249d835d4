"""Formats of files: their names, the columns they use, and how content is recognised and checked."""

import contextlib
import csv
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from scall_jax.streams.ids import MISSING
from scall_jax.streams.wording import option

FORMATS = ("auto", "parquet", "csv", "tsv", "jsonl", "movielens-dat", "movielens-udata", "gowalla")
"""Names of the formats that `read` takes."""

ALIASES = {
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
"""Names under which published files have each role's column, the preferred one first; capitals, `_`, `-` and spaces do
not matter."""

HEADERLESS = {
    "movielens-dat": ("user", "item", "rating", "timestamp"),
    "movielens-udata": ("user", "item", "rating", "timestamp"),
    "gowalla": ("user", "timestamp", "latitude", "longitude", "item"),
}
"""Columns of the published formats that have no header."""

SEPARATORS = ("::", "\t", ",", ";", "|", " ")
"""What may stand between the fields of a line, as `recognise` tries them."""

_MOST_COLUMNS = 10_000
_LONGEST_NAME = 200
_DATE = re.compile(r"\d{4}[-/]\d\d?[-/]\d\d?")
_TYPE = re.compile(r":(token|float)(_seq)?$")  # the types in headers of RecBole's files
_EPOCH = 1e8  # seconds, 1973: numbers of at least this size may be times, in whatever unit
_MOST_STARS = 10


class Layout(NamedTuple):
    """How the lines of a text file are to be read."""

    format: str
    """`jsonl`, `csv` for any separated text, or a key of `HEADERLESS`."""
    separator: str = ","
    """Between the fields of a line."""
    header: bool = False
    """Whether the first line names the columns."""
    names: tuple[str, ...] = ()
    """Names of the columns of separated text."""
    notes: tuple[str, ...] = ()
    """What was guessed, in words."""

    @property
    def quoted(self) -> bool:
        """Whether quotes may hold separators and line ends; published files with tabs and `::` have bare quotes."""
        return self.format != "jsonl" and self.separator not in ("\t", "::")


def plain(name: str) -> str:
    """A column's name without what people write differently; one that is longer than any known name as it is.

    >>> plain("User ID"), plain("userId:token"), plain("user_id")
    ('userid', 'userid', 'userid')
    """
    if len(name) > _LONGEST_NAME:
        return name
    return re.sub(r"[^a-z0-9]", "", _TYPE.sub("", name.strip()).lower()) or name


_KNOWN = {role: {plain(alias) for alias in aliases} for role, aliases in ALIASES.items()}


def is_known(name: str, requested: Iterable[str | None]) -> bool:
    """Whether a column has a name that is asked for, or one that published files use.

    Args:
      name: of the column.
      requested: names that the caller asks for.
    """
    return name in requested or any(plain(name) in names for names in _KNOWN.values())


def recognise(lines: Sequence[str], format: str, separator: str | None, requested: dict[str, str | None]) -> Layout:
    r"""How to read a text file, judged by its first lines.

    Args:
      lines: the first lines without their ends, at least one.
      format: one of `FORMATS` but parquet.
      separator: between fields, if the caller says so.
      requested: names of columns by role, None where the caller does not ask for one.

    Returns:
      The layout. The columns of text without a header that is no published format are `column_1`, `column_2`, ...

    Raises:
      ValueError: a JSON array, which no line-by-line reader can read, or a first line of 10,000 columns.

    >>> recognise(["1::1193::5::978300760"], "auto", None, {}).format
    'movielens-dat'
    >>> recognise(["USER_ID;ITEM_ID;TS"], "auto", None, {}).separator
    ';'
    """
    first = lines[0].lstrip()
    if format == "jsonl" or (format == "auto" and separator is None and first.startswith("{")):
        return Layout("jsonl")
    if format == "auto" and re.match(r"\[\s*(\{|$)", first):
        raise ValueError("a JSON array: one object per line is needed (jq -c '.[]' writes that)")
    if format in HEADERLESS:
        sep = "::" if format == "movielens-dat" else "\t"
        _refuse_many_columns(first, (sep,))
        return Layout(format, sep, False, _padded(HEADERLESS[format], len(split(lines[0], sep))))
    given = separator or {"csv": ",", "tsv": "\t"}.get(format)
    _refuse_many_columns(first, (given,) if given else SEPARATORS)
    sep = given or max(SEPARATORS, key=lambda s: _fitness(lines, s, requested))
    rows = [split(line, sep) for line in lines]
    notes = () if given or sep in ",\t" else (f"fields are separated by {sep!r}",)
    if _has_header(rows[0], requested):
        return Layout("csv", sep, True, tuple(_TYPE.sub("", field) for field in rows[0]), notes)
    published = _published(rows, sep) if format == "auto" and separator is None else None
    if published is not None:
        names = HEADERLESS[published]
        note = f"no header: read as {published}, whose columns are {', '.join(names)}"
        return Layout(published, sep, False, names, (note,))
    names = tuple(f"column_{number}" for number in range(1, len(rows[0]) + 1))
    return Layout("csv", sep, False, names, (*notes, "no header: the columns have numbers"))


def _refuse_many_columns(line: str, separators: Iterable[str]) -> None:
    """Refuse a first line of so many columns that to tell them apart would take minutes."""
    for separator in separators:
        if line.count(separator) >= _MOST_COLUMNS:
            raise ValueError(
                f"the first line has {line.count(separator):,} {separator!r}, and no table of interactions has "
                f"{_MOST_COLUMNS:,} columns: {option('separator')} says what separates fields"
            )


def split(line: str, separator: str) -> list[str]:
    """Fields of a line, without the quotes and spaces around them.

    Args:
      line: of separated text.
      separator: between fields.
    """
    fields = line.split(separator)
    if len(separator) == 1 and separator != "\t" and '"' in line:
        # The reader of the whole table says what is wrong, if something is.
        with contextlib.suppress(csv.Error):
            fields = next(csv.reader([line], delimiter=separator), fields)
    elif separator == " ":
        fields = line.split()
    return [field.strip().strip('"').strip() for field in fields]


def looks_like_times(values: Sequence[str]) -> bool:
    """Whether all of some texts could be points in time: dates, or numbers since 1970 in some unit.

    >>> looks_like_times(["1600000000"]), looks_like_times(["2020-01-31T10:00"]), looks_like_times(["5"])
    (True, True, False)
    """
    numbers = [_number(value) for value in values]
    return all(number >= _EPOCH or bool(_DATE.match(text)) for number, text in zip(numbers, values, strict=True))


def _padded(names: tuple[str, ...], width: int) -> tuple[str, ...]:
    """The names of a published format, and numbers for further columns."""
    return names + tuple(f"column_{number}" for number in range(len(names) + 1, width + 1))


def _fitness(lines: Sequence[str], separator: str, requested: dict[str, str | None]) -> tuple[object, ...]:
    """How well a separator fits the first lines: names that it uncovers, then columns in which all lines agree."""
    rows = [split(line, separator) for line in lines]
    width, asked = len(rows[0]), [name for name in requested.values() if name is not None]
    found = set(asked).intersection(rows[0])
    names = {plain(field) for field in rows[0]}
    roles = sum(bool(names & known) for known in _KNOWN.values())
    even = all(len(row) == width for row in rows)
    return (len(found) + roles if width > 1 else 0), width >= 3 and even, width >= 3, width >= 2


def _has_header(fields: Sequence[str], requested: dict[str, str | None]) -> bool:
    """A first line is data if some field is a number or a date and no field is a name that is asked for or known."""
    if any(is_known(field, requested.values()) for field in fields):
        return True
    return not any(np.isfinite(_number(field)) or _DATE.match(field) for field in fields)


def _published(rows: Sequence[Sequence[str]], separator: str) -> str | None:
    """The published format without a header that the values of most first lines agree with, if there is one."""
    width = len(rows[0])
    even = [row for row in rows if len(row) == width]
    if (separator, width) == ("\t", 5):
        return "gowalla" if _most(map(_is_checkin, even)) else None
    name = {("::", 4): "movielens-dat", ("\t", 4): "movielens-udata"}.get((separator, width))
    return name if name is not None and _are_ratings(even) else None


def _are_ratings(rows: Sequence[Sequence[str]]) -> bool:
    """Whether columns are user, item, rating and time: small ratings, and no other column looks more like times."""
    columns = ([value for value in column if value not in ("", *MISSING)] for column in zip(*rows, strict=True))
    users, items, ratings, times = columns
    stars = _most(0 <= _number(value) <= _MOST_STARS for value in ratings)
    numbers = _most(_number(value) >= 0 for value in times)
    users, items, times = (_most(looks_like_times([value]) for value in column) for column in (users, items, times))
    return stars and numbers and (times or not (users or items))


def _is_checkin(row: Sequence[str]) -> bool:
    """Whether a row is user, date, latitude, longitude and place."""
    _, date, latitude, longitude, _ = row
    return bool(_DATE.match(date)) and "T" in date and abs(_number(latitude)) <= 90 and abs(_number(longitude)) <= 180


def _most(found: Iterable[bool]) -> bool:
    """Whether nine in ten are true, so that an odd row is an error of its own; false of none."""
    found = list(found)
    return bool(found) and sum(found) >= 0.9 * len(found)


def _number(text: str) -> float:
    """The number that a text writes; NaN if none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
