"""Inputs by their shape, Parquet files by their types, and the published formats, with what is right (`inputs`)."""

import datetime
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from tests.faults.cases import BASE, EIGHT, Case, Row, text_of, written


def shapes() -> Iterator[Case]:
    """Files without rows, with one, with too much in a row."""
    for name, data in {"": b"", "line ends": b"\n\r\n", "spaces": b"  \n ", "a mark": b"\xef\xbb\xbf"}.items():
        yield Case(f"nothing but {name!r}", written("x.csv", data), None, "empty|no column")
    yield Case("a header alone", written("x.csv", "user,item,timestamp\n"), None, "no rows after the header")
    yield Case("a header alone, no line end", written("x.csv", "user,item,timestamp"), None, "no rows after the header")
    for end in ("", "\n"):
        text = f"user,item,timestamp\nu,i,{BASE}{end}"
        yield Case(f"one row, then {end!r}", written("x.csv", text), [("u", "i", 1000 * BASE)])
    for place in (0, 10, 40, 100):
        data = bytearray(text_of().encode())
        data[place] = 0
        yield Case(f"a NUL at {place}", written("x.csv", bytes(data)), None, "NUL")
    yield Case("zeros", written("x.csv", bytes(1000)), None, "NUL")
    yield Case("a row of 17 MB", written("x.csv", text_of() + '"' + "a" * 17_000_000), None, "without the end of a row")
    wide = ",".join(["user", "item", "timestamp", *(f"c{k}" for k in range(2000))])
    text = wide + f"\nu,i,{BASE}" + ",x" * 2000 + "\n"
    yield Case("2003 columns", written("x.csv", text), [("u", "i", 1000 * BASE)])
    for order in itertools.permutations(("user", "item", "timestamp", "rating")):
        lines = [
            order,
            *([{"user": u, "item": i, "timestamp": ms // 1000, "rating": 4}[x] for x in order] for u, i, ms in EIGHT),
        ]
        text = "".join(",".join(map(str, line)) + "\n" for line in lines)
        yield Case(f"columns {', '.join(order)}", written("x.csv", text), EIGHT)
    for name in ("user", "item", "timestamp"):
        text = text_of(header=(*(x for x in ("user", "item", "timestamp") if x != name), "other"))
        yield Case(f"no column {name}", written("x.csv", text), None, f"no column for the {name}")
        yield Case(f"no column asked for, {name}", written("x.csv", text_of()), None, "no column 'z'", {name: "z"})
        twice = text_of(header=("user", "item", "timestamp"), rows=[]).strip() + f",{name}\nu,i,{BASE},x\n"
        yield Case(f"two columns {name}", written("x.csv", twice), None, f"could each be the {name}")
    rated = f"user,item,rating,timestamp\nu,i,5,{BASE}\nv,j,1,{BASE + 1}\n"
    kept = [("u", "i", 1000 * BASE)]
    yield Case("ratings of 4 and more", written("x.csv", rated), kept, "", {"min_rating": 4})
    yield Case("ratings of 6 and more", written("x.csv", rated), None, "no rating reaches", {"min_rating": 6})
    yield Case("no ratings", written("x.csv", text_of()), None, "no column for the rating", {"min_rating": 4})
    for bad in ("good", "nan", "inf", "4,5"):
        text = rated.replace(",5,", f',"{bad}",')
        words = "row 2, column 'rating'"
        rows = kept if bad == "inf" else None
        yield Case(f"a rating {bad}", written("x.csv", text), rows, "" if rows else words, {"min_rating": 4})
    big = 'user,item,timestamp\n"a,1,3\n' + "b,2,4\n" * 3
    yield Case("a quote open to the end", written("x.csv", big), None, r"x\.csv, row 2")
    yield Case("a program", lambda folder: Path(sys.executable), None, "NUL|UTF-8|empty|not read")
    page = "<!DOCTYPE html>\n<html><body>404</body></html>\n"
    yield Case("a page of the web", written("x.csv", page), None, "no column|no header")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    yield Case("a pointer of Git LFS", written("x.csv", pointer), None, "no column|no header")
    yield Case("memory", written("x.csv", text_of(EIGHT * 500)), None, "max_memory", {"max_memory": 1e-3})


def _frame(**change: pl.Series) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        frame = pl.DataFrame({"user": ["u", "v"], "item": ["i", "j"], "timestamp": [BASE, BASE + 1]})
        frame.with_columns(**change).write_parquet(folder / "x.parquet")
        return folder / "x.parquet"

    return write


TWO: list[Row] = [("u", "i", 1000 * BASE), ("v", "j", 1000 * (BASE + 1))]


def _with(place: int, values: list[object]) -> list[Row]:
    return [(*row[:place], value, *row[place + 1 :]) for row, value in zip(TWO, values, strict=True)]  # pyright: ignore


def parquet() -> Iterator[Case]:
    """Types that play a role and types that do not; files that are cut."""
    for role, dtype in itertools.product(
        ("user", "item", "timestamp"),
        (
            pl.Duration("ms"),
            pl.Duration("ns"),
            pl.List(pl.Int64),
            pl.Binary,
            pl.Null,
            pl.Array(pl.Int64, 1),
            pl.Struct({"a": pl.Int64}),
        ),
    ):
        base = dtype.base_type()
        values = {pl.List: [[1], [2]], pl.Binary: [b"a", b"b"], pl.Null: [None, None], pl.Array: [[1], [2]]}.get(
            base, [1, 2]
        )
        values = [{"a": 1}, {"a": 2}] if base == pl.Struct else values
        series = pl.Series(values, dtype=dtype) if base in (pl.Struct, pl.Array) else pl.Series(values).cast(dtype)
        yield Case(f"Parquet {dtype} as {role}", _frame(**{role: series}), None, f"column '{role}'")
    for dtype in (pl.Time, pl.Boolean):
        values = [datetime.time(1), datetime.time(2)] if dtype == pl.Time else [True, False]
        yield Case(f"Parquet {dtype} as timestamp", _frame(timestamp=pl.Series(values)), None, "column 'timestamp'")
    for place, role in enumerate(("user", "item")):
        for dtype in (pl.Int8, pl.UInt8, pl.Int16, pl.UInt16, pl.Int32, pl.UInt32, pl.Int64, pl.UInt64, pl.Int128):
            yield Case(
                f"Parquet {dtype} as {role}", _frame(**{role: pl.Series([5, 7], dtype=dtype)}), _with(place, [5, 7])
            )
        for dtype in (pl.Float32, pl.Float64, pl.Decimal(9, 2)):
            series = pl.Series([5, 7]).cast(dtype)
            yield Case(f"Parquet {dtype} as {role}", _frame(**{role: series}), _with(place, [5, 7]))
        for dtype in (pl.Categorical, pl.Enum(["x", "y"]), pl.String):
            series = pl.Series(["x", "y"]).cast(dtype)
            yield Case(f"Parquet {dtype} as {role}", _frame(**{role: series}), _with(place, ["x", "y"]))
        series = pl.Series([2**64 - 2, 2**64 - 1], dtype=pl.UInt64)
        yield Case(f"Parquet large UInt64 as {role}", _frame(**{role: series}), _with(place, [2**64 - 2, 2**64 - 1]))
        for value in (2.0**53 + 2, float("inf"), float("nan")):
            yield Case(
                f"Parquet {value} as {role}", _frame(**{role: pl.Series([1.0, value])}), None, f"row 2, column '{role}'"
            )
    for unit, zone in itertools.product(("ms", "us", "ns"), (None, "UTC", "Asia/Tokyo", "America/New_York")):
        moments = pl.Series([1000 * BASE, 1000 * (BASE + 1)]).cast(pl.Datetime("ms")).cast(pl.Datetime(unit))
        moments = moments if zone is None else moments.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
        yield Case(f"Parquet Datetime {unit} {zone}", _frame(timestamp=moments), TWO)
    days = pl.Series([datetime.date(2020, 9, 13), datetime.date(2020, 9, 14)])
    yield Case("Parquet Date", _frame(timestamp=days), _with(2, [1599955200000, 1600041600000]))
    for dtype in (pl.Int32, pl.UInt32, pl.Float64, pl.String, pl.UInt64):
        yield Case(f"Parquet {dtype} as time", _frame(timestamp=pl.Series([BASE, BASE + 1]).cast(dtype)), TWO)
    yield Case("Parquet time before 1970", _frame(timestamp=pl.Series([BASE, -1])), None, "row 2.*before 1970")
    buffer = io.BytesIO()
    pl.DataFrame({"user": ["u", "v"], "item": ["i", "j"], "timestamp": [BASE, BASE + 1]}).write_parquet(buffer)
    whole = buffer.getvalue()
    for part in range(1, 20):
        data = whole[: part * len(whole) // 20]
        yield Case(f"Parquet, {part} twentieths", written("x.parquet", data), None, "not a readable Parquet|NUL")
    for name in ("x.csv", "x.parquet.gz", "x"):
        yield Case(f"Parquet named {name}", written(name, whole), TWO)
    yield Case("text named x.parquet", written("x.parquet", text_of()), EIGHT)
    yield Case("text as Parquet", written("x.csv", text_of()), None, "not a readable Parquet", {"format": "parquet"})
    yield Case("Parquet without rows", lambda folder: _empty(folder), None, "no rows")


def _empty(folder: Path) -> Path:
    pl.DataFrame({"user": [], "item": [], "timestamp": []}).write_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def published() -> Iterator[Case]:
    """The published formats, by their content, under any name, and what looks like them."""
    rows = [(k % 3 + 1, 100 * (k % 4) + 7, 1000 * (BASE + k)) for k in range(8)]
    moments = [datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC) for _, _, ms in rows]
    texts = {
        "MovieLens dat": "".join(f"{u}::{i}::5::{ms // 1000}\n" for u, i, ms in rows),
        "MovieLens u.data": "".join(f"{u}\t{i}\t3\t{ms // 1000}\n" for u, i, ms in rows),
        "MovieLens csv": "userId,movieId,rating,timestamp\n"
        + "".join(f"{u},{i},3.5,{ms // 1000}\n" for u, i, ms in rows),
        "Gowalla": "".join(
            f"{u}\t{m:%Y-%m-%dT%H:%M:%SZ}\t30.2\t-97.7\t{i}\n" for (u, i, _), m in zip(rows, moments, strict=True)
        ),
        "RecBole": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"{u}\t{i}\t4\t{ms // 1000}\n" for u, i, ms in rows),
    }
    objects = {
        "Amazon 2014": lambda u, i, ms, m: {"reviewerID": u, "asin": i, "overall": 5.0, "unixReviewTime": ms // 1000},
        "Amazon 2023": lambda u, i, ms, m: {
            "user_id": u,
            "parent_asin": i,
            "asin": "x",
            "rating": 5.0,
            "timestamp": ms,
        },
        "Yelp": lambda u, i, ms, m: {"user_id": u, "business_id": i, "stars": 5.0, "date": f"{m:%Y-%m-%d %H:%M:%S}"},
    }
    for name, make in objects.items():
        lines = [json.dumps(make(*row, m)) + "\n" for row, m in zip(rows, moments, strict=True)]
        texts[name] = "".join(lines)
    for (name, text), file in itertools.product(texts.items(), ("x", "ratings.dat", "x.csv", "x.json")):
        yield Case(f"{name} named {file}", written(file, text), rows)
        if file == "x":
            yield Case(f"{name}, Windows lines", written(file, text.replace("\n", "\r\n")), rows)
            yield Case(f"{name}, no last line end", written(file, text.rstrip("\n")), rows)
    for text, name in ((texts["MovieLens u.data"], "movielens-dat"), (texts["MovieLens dat"], "gowalla")):
        yield Case(f"{name} that is none", written("x", text), None, "field", {"format": name})
    events = "".join(f"{1000 * (BASE + k)}\t25759{k % 3}\t35590{k % 4}\t{k % 2 + 1}\n" for k in range(8))
    yield Case("events that are no u.data", written("x.tsv", events), None, "column_1 could be times")
    plays = "".join(f"u{k % 3}\t2009-04-08T01:57:4{k}Z\tid-{k % 4}\tname\ttitle{k}\n" for k in range(8))
    yield Case("plays that are no check-ins", written("x.tsv", plays), None, "no header, and no published format")
