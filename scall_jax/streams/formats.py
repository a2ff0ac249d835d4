"""Formats of files: their names, the columns they use, and how content is recognised."""

import itertools
import re

import numpy as np

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
"""Names under which published files have each role's column, the preferred one first."""

HEADERLESS = {
    "movielens-dat": ["user", "item", "rating", "timestamp"],
    "movielens-udata": ["user", "item", "rating", "timestamp"],
    "gowalla": ["user", "timestamp", "latitude", "longitude", "item"],
}
"""Columns of the published formats that have no header."""

_DATE = re.compile(r"\d{4}[-/]\d\d?[-/]\d\d?")
_FIRST_BYTES = 65536  # the first line is looked for among these


def recognise(data: bytes) -> str:
    """Format of a text file by its first line.

    Args:
      data: the file's content, not empty.

    Returns:
      One of `FORMATS`, neither auto nor parquet.

    >>> recognise(b"1::1193::5::978300760"), recognise(b'{"user": 1}'), recognise(b"user,item")
    ('movielens-dat', 'jsonl', 'csv')
    """
    line = _first_line(data).rstrip(b"\r")
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


def known_names(requested: list[str]) -> list[str]:
    """Column names that may be used: those that the caller asks for, then all aliases.

    Args:
      requested: names that the caller asks for.
    """
    return [*requested, *itertools.chain(*ALIASES.values())]


def has_header(data: bytes, separator: str, requested: list[str]) -> bool:
    """Whether the first line names columns.

    A first line is data if some field is a number or a date and no field is a name that is asked for or known.

    Args:
      data: the file's content, not empty.
      separator: between fields.
      requested: names that the caller asks for.
    """
    fields = [field.strip(' "\r') for field in _first_line(data).decode(errors="replace").split(separator)]
    if set(known_names(requested)).intersection(fields):
        return True
    return not any(_is_number(field) or _DATE.match(field) for field in fields)


def _first_line(data: bytes) -> bytes:
    return data.lstrip()[:_FIRST_BYTES].split(b"\n", 1)[0]


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
