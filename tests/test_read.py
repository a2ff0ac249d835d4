import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import warnings
import zipfile
import zlib

import jax
import numpy as np
import polars as pl
import pytest

from scall_jax import streams
from scall_jax.cli import flags as run_flags
from scall_jax.cli import stream_flags
from scall_jax.cli.commands import run_command
from scall_jax.streams import memory, progress, sources


def _write(folder, name, text, zipped=False):
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


FORMATS = {
    "ratings.dat": "1::1193::5::978300760\n2::661::3::978302109\n",
    "u.data": "1\t1193\t5\t978300760\n2\t661\t3\t978302109\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n1,1193,5.0,978300760\n2,661,3.5,978302109\n",
    "plain.tsv": "user\titem\trating\ttimestamp\n1\t1193\t5\t978300760\n2\t661\t3\t978302109\n",
    "amazon2014.json": '{"reviewerID":1,"asin":1193,"overall":5.0,"unixReviewTime":978300760}\n'
    '{"reviewerID":2,"asin":661,"overall":3.0,"unixReviewTime":978302109,"helpful":[0,1]}\n',
    "amazon2023.jsonl": '{"user_id":"1","parent_asin":"1193","asin":"x","rating":5.0,"timestamp":978300760000}\n'
    '{"user_id":"2","parent_asin":"661","asin":"y","rating":3.0,"timestamp":978302109000}\n',
    "review.json": '{"user_id":"1","business_id":"1193","stars":5.0,"date":"2000-12-31 22:12:40"}\n'
    '{"user_id":"2","business_id":"661","stars":3.0,"date":"2000-12-31 22:35:09"}\n',
    "dates.csv": "user,item,rating,date\n1,1193,5,2000-12-31T22:12:40Z\n2,661,3,2000-12-31T22:35:09Z\n",
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_published_formats(tmp_path, name, zipped):
    rows = streams.read(_write(tmp_path, name + ".gz" * zipped, FORMATS[name], zipped))
    assert rows.user_ids.to_list() == [1, 2]
    assert rows.item_ids.to_list() == [1193, 661]
    np.testing.assert_array_equal(rows.time, [978300760000, 978302109000])


def test_minimum_rating_keeps_positive_rows_only(tmp_path):
    for name, text in FORMATS.items():
        rows = streams.read(_write(tmp_path, name, text), min_rating=4)
        assert (rows.user_ids.to_list(), rows.item_ids.to_list(), len(rows)) == ([1], [1193], 1)


def test_gowalla_checkins(tmp_path):
    text = "0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t22847\n0\t2010-10-18T22:17:43Z\t30.2\t-97.7\t420315\n"
    rows = streams.read(_write(tmp_path, "checkins.txt", text))
    np.testing.assert_array_equal(rows.time, [1287532527000, 1287440263000])
    assert rows.item_ids.to_list() == [22847, 420315]


def test_named_columns_and_string_ids(tmp_path):
    text = 'when,"who",what\n2020-01-01,"a, b",007\n2020-01-02,c,7\n'
    rows = streams.read(_write(tmp_path, "x.csv", text), user="who", item="what", timestamp="when")
    assert rows.user_ids.to_list() == ["a, b", "c"]
    assert rows.item_ids.to_list() == ["007", "7"]
    np.testing.assert_array_equal(rows.time, [1577836800000, 1577923200000])


def test_a_first_line_of_data_is_no_header(tmp_path):
    for text in ("196,242,881250949,3\n186,302,891717742,3\n", "u,i,2020-01-01,x\nu,j,2020-01-02,y\n"):
        path = _write(tmp_path, "x.csv", text)
        rows = streams.read(path, user="column_1", item="column_2", timestamp="column_3")
        first = [line.split(",") for line in text.splitlines()]
        assert [str(rows.user_ids[int(code)]) for code in rows.user] == [fields[0] for fields in first]
        assert [str(rows.item_ids[int(code)]) for code in rows.item] == [fields[1] for fields in first]
    rows = streams.read(_write(tmp_path, "x.csv", "user,item,timestamp,2020\n1,2,3,4\n"))
    assert len(rows) == 1


def test_json_whose_types_change_late(tmp_path):
    lines = [{"user": i, "item": i % 7, "timestamp": i, "rating": 4, "vote": None, "images": []} for i in range(1500)]
    lines[1200] = {"user": "a", "item": 3, "timestamp": 5, "rating": 4.5, "vote": "5", "images": [{"b": 1}]}
    path = _write(tmp_path, "x.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    rows = streams.read(path, min_rating=4.2)
    assert (rows.user_ids.to_list(), rows.item_ids.to_list(), rows.time.tolist()) == (["a"], [3], [5000])
    lines[1300]["timestamp"] = "soon"
    _write(tmp_path, "x.jsonl", "\n" + "\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="row 1301, column 'timestamp': 'soon'"):
        streams.read(path)
    _write(tmp_path, "x.jsonl", '{"user":1}\n[1]\n')
    with pytest.raises(ValueError, match="row 2: not a JSON object"):
        streams.read(path)
    _write(tmp_path, "x.jsonl", '{"user":1,"item":null,"when":3,"timestamp":4}\n')
    with pytest.raises(ValueError, match="no column for the item among 'user', 'timestamp', 'when'"):
        streams.read(path)


def test_not_a_number_is_no_id_and_no_rating(tmp_path):
    path = tmp_path / "x.parquet"
    frame = pl.DataFrame({"user": [1.0, 2.0], "item": [1, 2], "timestamp": [3, 4], "rating": [5.0, float("nan")]})
    frame.write_parquet(path)
    with pytest.raises(ValueError, match="row 2, column 'rating': nan"):
        streams.read(path, min_rating=4)
    frame.with_columns(user=pl.Series([1.0, float("nan")])).write_parquet(path)
    with pytest.raises(ValueError, match="row 2, column 'user': nan"):
        streams.read(path)
    for change in ({"user": pl.Series([[1], [2]])}, {"item": pl.Series([b"a", b"b"])}):
        frame.with_columns(**change).write_parquet(path)
        with pytest.raises(ValueError, match=f"column '{next(iter(change))}': values of type .* cannot be an id"):
            streams.read(path)
    with pytest.raises(ValueError, match="row 1, column 'item'"):
        streams.from_arrays([1, 2], [3.0, None], [4, 5])
    days = np.array(["1970-01-01", "1970-01-02"], "datetime64[D]")
    assert streams.from_arrays([1, 2], [3, 4], days).time.tolist() == [0, 86_400_000]


def test_parquet_with_dates(tmp_path):
    from datetime import datetime

    path = tmp_path / "x.parquet"
    pl.DataFrame({"user": ["a"], "item": [3], "timestamp": [datetime(2020, 1, 1)]}).write_parquet(path)
    np.testing.assert_array_equal(streams.read(path).time, [1577836800000])


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("auto", 978300760, 978300760000),
        ("auto", 978300760123, 978300760123),
        ("auto", 978300760123000, 978300760123),
        ("ms", 5, 5),
        ("s", 1.5, 1500),
    ],
)
def test_time_units(tmp_path, unit, value, expected):
    path = _write(tmp_path, "x.csv", f"user,item,timestamp\n1,2,{value}\n")
    np.testing.assert_array_equal(streams.read(path, time_unit=unit).time, [expected])


HEAD = "user,item,timestamp\n1,2,3\n"
BAD = {
    "empty.csv": ("", "empty"),
    "header.csv": ("user,item,timestamp\n", "no rows"),
    "column.csv": ("user,item\n1,2\n", "timestamp"),
    "text.csv": (HEAD + "1,2,soon\n", "row 3, column 'timestamp': 'soon'"),
    "negative.csv": (HEAD + "1,2,-3\n", "row 3, column 'timestamp': '-3'"),
    "null_user.csv": (HEAD + ",2,3\n", "row 3, column 'user'"),
    "null_item.csv": (HEAD + "1,,3\n", "row 3, column 'item'"),
    "mixed.csv": (HEAD + "1;2;3\n", "row 3, column 'item'"),
    "wide.csv": (HEAD + "1,2,3,4\n", "row 3"),
    "mixed.dat": ("1::2::3::4\n1:2:3:4\n", "row 2, column 'item'"),
    "torn.json": ('{"user":1,"item":2,"timestamp":3}\n{"user":1,"it\n', "row 2"),
    "null.json": ('{"user":1,"item":2,"timestamp":3}\n{"user":1,"item":2}\n', "row 2, column 'timestamp'"),
    "odd.csv": ("user,item,date\n1,2,2020-01-01\n1,2,nan\n1,2,2020-01-03\n", "row 3, column 'date': 'nan'"),
    "junk.parquet": ("PAR1 this is no Parquet file", "not a readable Parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_row_and_column(tmp_path, name):
    text, message = BAD[name]
    with pytest.raises(ValueError, match=f"(?s){name}.*{message}"):
        streams.read(_write(tmp_path, name, text))


def test_bad_rating_missing_file_unknown_names_and_torn_gzip(tmp_path):
    path = _write(tmp_path, "x.csv", "user,item,rating,timestamp\n1,2,good,3\n")
    with pytest.raises(ValueError, match="row 2, column 'rating': 'good'"):
        streams.read(path, min_rating=3)
    with pytest.raises(ValueError, match="no column 'uid'"):
        streams.read(path, user="uid")
    with pytest.raises(ValueError, match="no such file"):
        streams.read(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="unknown format 'xml'"):
        streams.read(path, format="xml")
    with pytest.raises(ValueError, match="no embedded stream"):
        streams.load("netflix")
    torn = _write(tmp_path, "x.csv.gz", HEAD * 1000, zipped=True)
    torn.write_bytes(torn.read_bytes()[:-12])
    with pytest.raises(ValueError, match="truncated"):
        streams.read(torn)


@pytest.mark.parametrize(
    ("name", "rows", "users", "items"),
    [("online-retail", 736880, 5851, 4336), ("movietweetings", 141695, 21081, 12611)],
)
def test_embedded_streams(name, rows, users, items):
    loaded = streams.load(name)
    assert (len(loaded), len(loaded.user_ids), len(loaded.item_ids)) == (rows, users, items)


def _bytes(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def _ids(rows):
    """Raw user and item of each row."""
    users, items = rows.user_ids.gather(rows.user), rows.item_ids.gather(rows.item)
    return list(zip(users.to_list(), items.to_list(), strict=True))


TIMES = [1600000000000 + 1000 * k for k in range(8)]
EIGHT = [(f"u{k % 3}", f"i{k % 4}") for k in range(8)]


def _table(separator, header=("user", "item", "timestamp"), rows=EIGHT, start=1600000000):
    lines = [separator.join(header), *(separator.join([u, i, str(start + k)]) for k, (u, i) in enumerate(rows))]
    return "\n".join(lines) + "\n"


# Files whose rows are EIGHT at TIMES, however they are written.
SAME = {
    "semicolons.csv": _table(";"),
    "pipes.txt": _table("|"),
    "spaces.txt": _table(" "),
    "runs_of_spaces.txt": _table("   "),
    "tabs.tsv": _table("\t"),
    "colons.txt": _table("::"),
    "upper.csv": _table(",", ("USER_ID", "ITEM_ID", "TIMESTAMP")),
    "camel.csv": _table(",", ("userID", "itemID", "Time")),
    "spaced.csv": _table(", ", ("User ID", "Item Id", "timestamp")),
    "typed.inter": _table("\t", ("user_id:token", "item_id:token", "timestamp:float")),
    "crlf.csv": _table(",").replace("\n", "\r\n"),
    "cr.csv": _table(",").replace("\n", "\r"),
    "blank_lines.csv": "\n\n" + _table(",") + "\r\n\n\n",
    "marked.csv": "\ufeff" + _table(","),
}
SAME["milliseconds.csv"] = "user,item,timestamp\n" + "".join(
    f"{u},{i},{t}\n" for (u, i), t in zip(EIGHT, TIMES, strict=True)
)
SAME["nanoseconds.csv"] = "user,item,timestamp\n" + "".join(
    f"{u},{i},{t}000000\n" for (u, i), t in zip(EIGHT, TIMES, strict=True)
)
SAME["slashes.csv"] = "user,item,date\n" + "".join(
    f"{u},{i},2020/09/13 12:26:{40 + k}\n" for k, (u, i) in enumerate(EIGHT)
)


@pytest.mark.parametrize("name", SAME)
def test_ways_to_write_one_table(tmp_path, name):
    rows = streams.read(_write(tmp_path, name, SAME[name]))
    assert _ids(rows) == EIGHT and rows.time.tolist() == TIMES


def test_a_separator_that_is_guessed_is_told_and_a_given_one_holds(tmp_path):
    path = _write(tmp_path, "x.txt", SAME["pipes.txt"])
    assert "fields are separated by '|'" in streams.read(path).notes[0]
    rows = streams.read(path, separator="|")
    assert rows.notes == () and _ids(rows) == EIGHT
    assert "8 rows, 3 users, 4 items, 2020-09-13 12:26:40 to 2020-09-13 12:26:47" in repr(rows)
    with pytest.raises(ValueError, match=r"no column for the user among 'user|item|timestamp'"):
        streams.read(path, separator=",")
    for wrong in ("", "\n"):
        with pytest.raises(ValueError, match="separator="):
            streams.read(path, separator=wrong)
    tabs = _write(tmp_path, "x.tsv", SAME["tabs.tsv"])
    assert _ids(streams.read(tabs, separator=r"\t")) == EIGHT


ZONED = "user,item,timestamp\nu1,i1,Mon Apr 06 22:19:45 PDT 2009\nu2,i2,Tue Apr 07 01:02:03 PDT 2009\n"
AMERICAN = "user,item,timestamp\nu1,i1,12/1/2010 8:26\nu2,i2,12/13/2010 17:05\nu1,i3,1/2/2011 9:00\n"
DIGITS = "user,item,timestamp\nu1,i1,20200131\nu2,i2,20200201\nu1,i3,20200301\n"


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        (AMERICAN, "%m/%d/%Y %H:%M", [1291191960, 1292259900, 1293958800]),
        (ZONED, "%a %b %d %H:%M:%S %Z %Y", [1239081585, 1239091323]),
        (DIGITS, "%Y%m%d", [1580428800, 1580515200, 1583020800]),
        (HEAD.replace("3", "2020013112"), "%Y%m%d%H", [1580472000]),
        (HEAD.replace("3", "2020-01-31 12:00:00.250"), "%Y-%m-%d %H:%M:%S.%f", [1580472000.25]),
        (HEAD.replace("3", "2020-01-31 12:00:00 +0100"), "%Y-%m-%d %H:%M:%S %z", [1580468400]),
    ],
)
def test_dates_of_other_forms_are_read_by_request_and_refused_with_the_way_otherwise(tmp_path, text, form, expected):
    """The expected seconds are those of `calendar.timegm`."""
    path = _write(tmp_path, "x.csv", text)
    assert streams.read(path, time_format=form).time.tolist() == [1000 * second for second in expected]
    if form not in ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S %z"):
        with pytest.raises(ValueError, match=f"row 2, column 'timestamp'.*time_format='{form}'"):
            streams.read(path)


def test_a_form_of_dates_that_does_not_fit_is_refused_by_row(tmp_path):
    path = _write(tmp_path, "x.csv", AMERICAN)
    with pytest.raises(ValueError, match=r"row 3, .*'12/13/2010 17:05' does not fit time_format='%d/%m/%Y %H:%M'"):
        streams.read(path, time_format="%d/%m/%Y %H:%M")
    with pytest.raises(ValueError, match=r"row 2, .*'2020013' does not fit"):
        streams.read(_write(tmp_path, "x.csv", HEAD.replace("3", "2020013")), time_format="%Y%m%d")
    with pytest.raises(ValueError, match=r"row 2, .*'Mon Apr 06 22:19:45 CEST 2009' does not fit"):
        streams.read(_write(tmp_path, "x.csv", ZONED.replace("PDT", "CEST")), time_format="%a %b %d %H:%M:%S %Z %Y")
    with pytest.raises(ValueError, match="give one of time_unit"):
        streams.read(path, time_format="%Y", time_unit="s")
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 2], "timestamp": [20200131, 20200201]})
    frame.write_parquet(tmp_path / "x.parquet")
    assert streams.read(tmp_path / "x.parquet", time_format="%Y%m%d").time.tolist() == [1580428800000, 1580515200000]


MIXED = "user,item,timestamp\n1,1,1600000000\n2,2,1500000000000\n3,3,1700000000\n"


def test_a_mixture_of_units_is_refused_with_both_rows_and_a_unit_settles_it(tmp_path):
    path = _write(tmp_path, "x.csv", MIXED)
    with pytest.raises(ValueError, match=r"row 3, .*1500000000000 is in ms .* 1600000000 in row 2 is in s .*time_unit"):
        streams.read(path)
    with pytest.raises(ValueError, match=r"row 3, .*1500000000000 is after the year 9999"):
        streams.read(path, time_unit="s")
    with pytest.warns(streams.DataWarning, match="row 3, .*2017-07-14 02:40:00 is far"):
        assert streams.read(path, time_unit="ms").time.tolist() == [1600000000, 1500000000000, 1700000000]
    assert streams.read(path, time_unit="ns").time.tolist() == [1600, 1500000, 1700]
    # As many of one as of the other, and as fractions.
    for unit in (1000, 10**6, 10**9):
        frame = pl.DataFrame({"user": range(40), "item": range(40), "timestamp": [1.6e9] * 20 + [1.6e9 * unit] * 20})
        frame.write_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"in row 1 is in s .20 such"):
            streams.read(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "value", [2**63 - 1, 2**63, 10**30, 1e300, -(2**63), -1], ids=["max", "beyond", "1e30", "1e300", "min", "-1"]
)
@pytest.mark.parametrize("unit", ["auto", "s", "ms", "us", "ns"])
def test_a_time_out_of_range_is_refused_by_its_row(tmp_path, value, unit):
    text = _table(",", rows=[("u", f"i{k}") for k in range(40)]) + f"u,j,{value}\n"
    if unit == "ns" and isinstance(value, int) and 0 < value < 2**64:
        with pytest.warns(streams.DataWarning, match="row 42, .* 2262-04-11 .* is far from the other rows"):
            streams.read(_write(tmp_path, "x.csv", text), time_unit=unit)
        return
    with pytest.raises(ValueError, match="row 42, column 'timestamp'"):
        streams.read(_write(tmp_path, "x.csv", text), time_unit=unit)


@pytest.mark.parametrize("value", [0, 1, 946684800, 4294967295, 253402300799])
def test_a_time_far_from_all_others_is_warned_of_by_its_row(tmp_path, value):
    text = _table(",", rows=[("u", f"i{k}") for k in range(40)])
    path = _write(tmp_path, "x.csv", text + f"u,j,{value}\n" if value != 253402300799 else text)
    if value == 253402300799:
        assert len(streams.read(path)) == 40  # without such a row nothing is said
        return
    with pytest.warns(
        streams.DataWarning, match="row 42, .*is far .* 2020-09-13 12:26:40 to 2020-09-13 12:27:19 .1 such"
    ):
        assert streams.read(path).time[-1] == 1000 * value


def test_streams_with_a_long_tail_have_no_time_far_from_all_others(tmp_path):
    rng = np.random.default_rng(0)
    for times in (rng.integers(8e8, 16e8, 3000), 1.4e9 + rng.exponential(3e7, 3000).cumsum(), np.arange(3000)):
        frame = pl.DataFrame({"user": 1, "item": 2, "timestamp": np.sort(times).astype(int)})
        frame.write_parquet(tmp_path / "x.parquet")
        assert len(streams.read(tmp_path / "x.parquet")) == 3000


def test_numbers_that_are_dates_are_no_seconds(tmp_path):
    for value, form in ((202001311230, "%Y%m%d%H%M"), (20200131123000, "%Y%m%d%H%M%S"), (202001, "%Y%m"), (2020, "%Y")):
        text = HEAD.replace("3", str(value))
        with pytest.raises(ValueError, match=f"{value} looks like a date.*time_format='{form}'"):
            streams.read(_write(tmp_path, "x.csv", text))
    # Unset and mistyped times do not hide it.
    with pytest.raises(ValueError, match=r"row 2, .*20200131 looks like a date"):
        streams.read(_write(tmp_path, "x.csv", DIGITS + "u1,i1,20200230\n" * 30 + "u1,i1,99999999\nu1,i1,0\n"))
    assert streams.read(_write(tmp_path, "x.csv", DIGITS), time_unit="s").time[0] == 20200131000
    # Seconds since the start of a recording are no dates, although some of them look like one.
    steps = "user,item,timestamp\n" + "".join(f"1,2,{19999000 + 7 * k}\n" for k in range(400))
    assert len(streams.read(_write(tmp_path, "x.csv", steps))) == 400


TOKENS = ("NA", "NaN", "nan", "None", "NULL", "null", r"\N", "-", "", " ")


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "dat"])
@pytest.mark.parametrize("role", ["user", "item", "timestamp"])
def test_texts_for_missing_values_are_missing_and_counted(tmp_path, form, role):
    good = {"user": "u1", "item": "i1", "timestamp": "1600000000"}
    rows = [good, *(good | {role: token} for token in TOKENS), good | {"user": "u2"}]
    path = tmp_path / f"x.{form}"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif form == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif form == "dat":
        path.write_text("".join(f"{r['user']}::{r['item']}::5::{r['timestamp']}\n" for r in rows))
    else:
        separator = "," if form == "csv" else "\t"
        path.write_text("\n".join([separator.join(good), *(separator.join(row.values()) for row in rows)]))
    first = 3 if form in ("csv", "tsv") else 2
    with pytest.raises(ValueError, match=rf"row {first}, column '{role}': 'NA' is missing.*skip_incomplete.*\(10 such"):
        streams.read(path)
    with pytest.warns(streams.DataWarning, match=rf"left out of 12 .*no {role} in 10 \(first: row {first}: 'NA'\)"):
        rows = streams.read(path, skip_incomplete=True)
    assert _ids(rows) == [("u1", "i1"), ("u2", "i1")] and rows.time.tolist() == [1600000000000] * 2


def test_the_caller_says_what_is_missing(tmp_path):
    path = _write(tmp_path, "x.csv", "user,item,timestamp\nNA,1,3\n?,2,4\n-1,3,5\n")
    assert len(streams.read(path, missing=())) == 3
    with pytest.warns(streams.DataWarning, match="no user in 2"):
        rows = streams.read(path, missing=("?", "-1"), skip_incomplete=True)
    assert rows.user_ids.to_list() == ["NA"]
    numbers = _write(tmp_path, "y.csv", "user,item,timestamp\n7,1,3\n-1,2,4\n")
    with pytest.warns(streams.DataWarning, match="no user in 1"):
        assert streams.read(numbers, missing=["-1"], skip_incomplete=True).user_ids.to_list() == [7]
    with pytest.raises(ValueError, match="no row is complete; no user in 3"):
        streams.read(path, missing=("NA", "?", "-1"), skip_incomplete=True)
    with pytest.raises(ValueError, match="missing: a sequence"):
        streams.read(path, missing="NA")
    rated = _write(tmp_path, "z.csv", "user,item,rating,timestamp\n1,1,NA,3\n2,2,5,4\n3,3,1,5\n")
    with pytest.raises(ValueError, match="row 2, column 'rating': 'NA' is a missing rating"):
        streams.read(rated, min_rating=3)
    with pytest.warns(streams.DataWarning, match="no rating in 1"):
        assert streams.read(rated, min_rating=3, skip_incomplete=True).user_ids.to_list() == [2]


def test_whole_numbers_are_one_id_however_they_are_written(tmp_path):
    text = "user,item,timestamp\n1034,1,3\n1034.0,2,4\n77,1.00,5\n"
    rows = streams.read(_write(tmp_path, "x.csv", text))
    assert _ids(rows) == [(1034, 1), (1034, 2), (77, 1)]
    # A column of text keeps both, and says so.
    with pytest.warns(streams.DataWarning, match="'1034.0' and '1034' are two ids"):
        rows = streams.read(_write(tmp_path, "x.csv", text + "ann,1,6\n"))
    assert rows.user_ids.to_list() == ["1034", "1034.0", "77", "ann"]
    for values in (
        [1034.0, 1034.0, 77.0],
        ["1034", "1034.0", "77"],
        pl.Series(["1034.00", "1034", "77"]).cast(pl.Decimal(9, 2)),
    ):
        pl.DataFrame({"user": values, "item": [1, 2, 1], "timestamp": [3, 4, 5]}).write_parquet(tmp_path / "x.parquet")
        assert _ids(streams.read(tmp_path / "x.parquet")) == [(1034, 1), (1034, 2), (77, 1)]


def test_ids_that_floats_cannot_tell_apart_are_refused(tmp_path):
    for dtype, value in ((pl.Float64, 2.0**53 + 2), (pl.Float32, 2.0**24 + 2), (pl.Float64, float("inf"))):
        frame = pl.DataFrame({"user": pl.Series([1.0, value], dtype=dtype), "item": [1, 2], "timestamp": [3, 4]})
        frame.write_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"row 2, column 'user': .* cannot tell ids apart"):
            streams.read(tmp_path / "x.parquet")


def test_large_integers_stay_apart(tmp_path):
    for form, (low, high) in {
        "parquet": (2**63 - 2, 2**63 - 1),
        "csv": (10**19, 10**19 + 1),
        "jsonl": (10**17, 10**17 + 1),
    }.items():
        path = tmp_path / f"x.{form}"
        if form == "parquet":
            pl.DataFrame({"user": [low, high], "item": [1, 2], "timestamp": [3, 4]}).write_parquet(path)
        elif form == "csv":
            path.write_text(f"user,item,timestamp\n{low},1,3\n{high},2,4\n")
        else:
            path.write_text("".join(f'{{"user": {n}, "item": 1, "timestamp": 3}}\n' for n in (low, high)))
        assert streams.read(path).user_ids.to_list() == [low, high]


def test_quotes_are_no_part_of_ids_in_any_format(tmp_path):
    for name, text in {
        "x.tsv": 'user\titem\ttimestamp\n"u1"\ti1\t1600000000\nu1\t"i ""2"""\t1600000001\n',
        "x.csv": 'user,item,timestamp\n"u1",i1,1600000000\nu1,"i ""2""",1600000001\n',
        "x.dat": '"u1"::i1::5::1600000000\nu1::"i ""2"""::5::1600000001\n',
        "y.csv": 'user;item;timestamp\n"u1";i1;1600000000\nu1;"i ""2""";1600000001\n',
    }.items():
        assert _ids(streams.read(_write(tmp_path, name, text))) == [("u1", "i1"), ("u1", 'i "2"')], name
    # A quote alone is text where quotes mean nothing.
    rows = streams.read(_write(tmp_path, "x.tsv", 'user\titem\ttimestamp\n5" pipe\ti1\t1600000000\n'))
    assert rows.user_ids.to_list() == ['5" pipe']


def test_quotes_that_are_not_closed(tmp_path):
    for text in ('5" pipe,1,3\n6,2,4\n', '"a,1,3\nb,2,4\n', '"b" ,1,3\n'):
        with pytest.raises(ValueError, match=r"x\.csv, row 2: .*"):
            streams.read(_write(tmp_path, "x.csv", "user,item,timestamp\n" + text))
    with pytest.warns(streams.DataWarning, match="line break .*a quote that is not closed"):
        streams.read(_write(tmp_path, "x.csv", 'user,item,timestamp\n"a,1,3\nb",2,4\nc,3,5\n'))


def test_a_tab_inside_an_id_of_a_file_with_colons(tmp_path):
    rows = streams.read(_write(tmp_path, "x.dat", "u0\tx::i0::5::1600000000\nu1::i1::4::1600000100\n"))
    assert _ids(rows) == [("u0\tx", "i0"), ("u1", "i1")] and rows.time.tolist() == [1600000000000, 1600000100000]


@pytest.mark.parametrize("role", ["user", "item"])
@pytest.mark.parametrize(
    ("value", "message"),
    [("[5, 7]", "a list"), ('{"a": 1}', "an object"), ('"a\\u0000b"', "text with a NUL"), ("[]", "a list")],
)
def test_json_values_that_are_no_ids(tmp_path, role, value, message):
    good = '{"user": "u", "item": "i", "timestamp": 1600000000}\n'
    bad = good.replace('"u"' if role == "user" else '"i"', value)
    with pytest.raises(ValueError, match=f"row 3, column '{role}': {message} cannot be an id"):
        streams.read(_write(tmp_path, "x.jsonl", good * 2 + bad))
    # Text that looks like a list is text.
    assert len(streams.read(_write(tmp_path, "x.jsonl", good + good.replace('"u"', '"[5]"')))) == 2


def test_json_numbers_keep_all_their_digits(tmp_path):
    ids = ["12345678901234567890.0", "12345678901234567891.0", "1.2345678901234567890", "1.2345678901234567891"]
    lines = [f'{{"user": {text}, "item": 1, "timestamp": 1600000000}}\n' for text in ids]
    rows = streams.read(_write(tmp_path, "x.jsonl", "".join(lines)))
    assert rows.user_ids.to_list() == ["12345678901234567890", "12345678901234567891", *ids[2:]]


@pytest.mark.parametrize("depth", [900, 1000, 100_000])
def test_json_that_is_nested_deeply_is_read_or_refused_by_its_row(tmp_path, depth):
    good = '{"user": 1, "item": 2, "timestamp": 3, "x": 0}\n'
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        deep = good.replace('"x": 0', '"x": ' + opening * depth + "0" + closing * depth)
        for text in (good + deep, deep + good):
            try:
                assert len(streams.read(_write(tmp_path, "x.jsonl", text))) == 2
            except ValueError as error:
                assert f"x.jsonl, row {2 if text.startswith(good) else 1}" in str(error)


def test_json_that_is_no_json_lines(tmp_path):
    for text, message in {
        '[{"user": 1, "item": 2, "timestamp": 3}]': "a JSON array: one object per line",
        "[\n": "a JSON array",
        '{\n"user": 1}\n': "row 1: not a JSON object",
        '{"user": NaN, "item": 2, "timestamp": 3}\n': "row 1: .*NaN is no JSON",
        '{"user": 1, "item": 2, "timestamp": 3}\n' * 200
        + '{"user": NaN, "item": 2, "timestamp": 3}\n': "row 201: .*NaN",
        '{"user": 1, "item": 2, "timestamp": 3}\n' * 200 + "5\n": "row 201: not a JSON object",
    }.items():
        with pytest.raises(ValueError, match=message):
            streams.read(_write(tmp_path, "x.jsonl", text))


@pytest.mark.parametrize("role", ["user", "item", "timestamp"])
@pytest.mark.parametrize("dtype", [pl.Duration("ms"), pl.Time, pl.Boolean, pl.Binary, pl.List(pl.Int64), pl.Null])
def test_columns_of_parquet_of_types_that_play_no_role(tmp_path, role, dtype):
    values = {pl.Binary: [b"a"], pl.List(pl.Int64): [[1]], pl.Null: [None], pl.Boolean: [True]}.get(dtype, [1])
    frame = pl.DataFrame({"user": [1], "item": [2], "timestamp": [3]})
    frame = frame.with_columns(pl.Series(values).cast(dtype).alias(role))
    frame.write_parquet(tmp_path / "x.parquet")
    if role != "timestamp" and dtype in (pl.Time, pl.Boolean):
        assert len(streams.read(tmp_path / "x.parquet")) == 1  # Such values are odd, but they tell users apart.
        return
    with pytest.raises(ValueError, match=f"x.parquet.*column '{role}'"):
        streams.read(tmp_path / "x.parquet")


def test_a_path_is_a_path(tmp_path):
    for name, user in (("names[1].parquet", "bracket"), ("names1.parquet", "plain"), ("star*.parquet", "star")):
        pl.DataFrame({"user": [user], "item": [1], "timestamp": [3]}).write_parquet(tmp_path / name)
    (tmp_path / "starfish.parquet").write_bytes((tmp_path / "names1.parquet").read_bytes())
    for name, user in (("names[1].parquet", "bracket"), ("names1.parquet", "plain"), ("star*.parquet", "star")):
        assert streams.read(tmp_path / name).user_ids.to_list() == [user]
    partition = tmp_path / "user=7"
    partition.mkdir()
    (partition / "x.parquet").write_bytes((tmp_path / "names1.parquet").read_bytes())
    assert streams.read(partition / "x.parquet").user_ids.to_list() == ["plain"]
    for pattern in ("*.parquet", "names?.parquet", "nothing[1].parquet"):
        with pytest.raises(ValueError, match="no such file"):
            streams.read(tmp_path / pattern)
    (tmp_path / "~x.csv").write_text(HEAD)
    assert len(streams.read(tmp_path / "~x.csv")) == 1


def test_parts_of_one_table_by_request(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    lines = SAME["tabs.tsv"].splitlines(keepends=True)
    (folder / "b.tsv").write_text("".join([lines[0], *lines[5:]]))
    (folder / "a.tsv").write_text("".join(lines[:5]))
    (folder / "_SUCCESS").touch()
    (folder / ".a.tsv.crc").write_bytes(b"\0")
    for rows in (streams.read(folder, folder=True), streams.read([folder / "a.tsv", str(folder / "b.tsv")])):
        assert _ids(rows) == EIGHT and rows.time.tolist() == TIMES
    with pytest.raises(ValueError, match="a folder, not a file: folder reads all files"):
        streams.read(folder)
    with pytest.raises(ValueError, match="asks for one folder"):
        streams.read(folder / "a.tsv", folder=True)
    with pytest.raises(ValueError, match="the same file"):
        streams.read([folder / "a.tsv", folder / ".." / "parts" / "a.tsv"])
    with pytest.raises(ValueError, match="no file"):
        streams.read([])
    # Errors name the part and its row, and units must agree over all parts.
    (folder / "c.tsv").write_text("".join([lines[0], "u\ti\tsoon\n"]))
    with pytest.raises(ValueError, match=r"c.tsv, row 2, column 'timestamp': 'soon'"):
        streams.read(folder, folder=True)
    (folder / "c.tsv").write_text("".join([lines[0], "u\ti\t1600000000000\n"]))
    with pytest.raises(ValueError, match=r"c.tsv, row 2, .*is in ms .*in row 2 of .*a.tsv is in s"):
        streams.read(folder, folder=True)
    (folder / "c.tsv").write_text("".join(lines[5:]))
    with pytest.raises(ValueError, match=r"c.tsv: no header"):
        streams.read(folder, folder=True)
    (folder / "c.tsv").unlink()
    # Ids that are numbers in one part and text in another are one column.
    (folder / "c.tsv").write_text("user\titem\ttimestamp\n7\ti\t1600000000\n")
    (folder / "d.tsv").write_text("user\titem\ttimestamp\n7\ti\t1600000000\nx\ti\t1600000000\n")
    assert streams.read(folder, folder=True).user_ids.to_list() == ["u0", "u1", "u2", "7", "x"]


def test_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match=r"pipe.csv: a named pipe, not a file"):
        streams.read(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match="a device or socket"):
        streams.read("/dev/null")
    (tmp_path / "hanging.csv").symlink_to(tmp_path / "nothing")
    for name in ("hanging.csv", "hanging.csv/x", "a\0b"):
        with pytest.raises(ValueError, match=r"no such file|null"):
            streams.read(tmp_path / name)


def test_guesses_without_a_header_are_checked_and_told(tmp_path):
    events = "".join(f"14332213{k}2117\t25759{k % 3}\t35590{k % 4}\t{k % 2 + 1}\n" for k in range(8))
    path = _write(tmp_path, "x.tsv", events)
    with pytest.raises(ValueError, match=r"no header.*column_4 \('1'\); column_1 could be times: name the columns"):
        streams.read(path)
    rows = streams.read(path, user="column_2", item="column_3", timestamp="column_1")
    assert rows.user_ids.to_list() == [257590, 257591, 257592] and "no header" in rows.notes[0]
    plays = "".join(f"u{k % 3}\t2009-04-08T01:57:4{k}Z\tid-{k % 4}\tname\ttitle{k}\n" for k in range(8))
    with pytest.raises(ValueError, match="no header, and no published format"):
        streams.read(_write(tmp_path, "x.tsv", plays))
    # The order user, time, rating, item of numbers is no u.data either.
    with pytest.raises(ValueError, match="column_2 could be times"):
        streams.read(_write(tmp_path, "x.tsv", "257\t1433221332\t1\t3559\n258\t1433221333\t2\t3560\n"))
    for name in ("u.data", "ratings.dat"):
        (note,) = streams.read(_write(tmp_path, name, FORMATS[name])).notes
        assert "no header: read as movielens-" in note and "user, item, rating, timestamp" in note
    # An odd row is an error of its own, and no reason to take the file for something else.
    text = FORMATS["u.data"] * 20 + "1\t2\tx\tsoon\n"
    with pytest.raises(ValueError, match="row 41, column 'timestamp': 'soon'"):
        streams.read(_write(tmp_path, "u.data", text))


def test_columns_that_could_each_play_a_role_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 columns 'user' could each be the user"):
        streams.read(_write(tmp_path, "x.csv", "user,user,item,timestamp\n1,2,3,4\n"))
    with pytest.raises(ValueError, match="USER_ID, User-Id could each be the user: name one with user"):
        streams.read(_write(tmp_path, "x.csv", "USER_ID,User-Id,item,timestamp\n1,2,3,4\n"))
    rows = streams.read(_write(tmp_path, "x.csv", "USER_ID,User-Id,item,timestamp\n1,2,3,4\n"), user="User-Id")
    assert rows.user_ids.to_list() == [2]


LATIN = "user,item,timestamp\nJosé,i1,1600000000\nZoë,i2,1600000001\n"


def test_encodings_are_read_by_declaration_and_refused_with_the_row_otherwise(tmp_path):
    for encoding in ("latin-1", "utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8", "utf-8-sig"):
        path = _bytes(tmp_path, "x.csv", LATIN.encode(encoding))
        assert streams.read(path, encoding=encoding).user_ids.to_list() == ["José", "Zoë"], encoding
        if not encoding.startswith("utf-8"):
            row = "row 2" if "utf" not in encoding else "row 1"
            with pytest.raises(ValueError, match=f"{row}.*encoding="):
                streams.read(path)
    late = _bytes(tmp_path, "x.csv", (HEAD + "1,2,3\n" * 500).encode() + "é,2,3\n".encode("latin-1"))
    with pytest.raises(ValueError, match="row 503: not UTF-8"):
        streams.read(late)
    with pytest.raises(ValueError, match="row 503: not ascii"):
        streams.read(late, encoding="ascii")
    for wrong in ("rot13", "base64", "klingon"):
        with pytest.raises(ValueError, match=f"encoding='{wrong}'"):
            streams.read(late, encoding=wrong)


PACKED = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def _zipped(data, names=("x.csv",)):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return buffer.getvalue()


def _long_table():
    """A table that compresses badly, so that a part of the compressed bytes holds a part of the rows."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 10**9, (2, 20_000))
    rows = [f"{u},{i},{1600000000 + k}\n" for k, (u, i) in enumerate(zip(users, items, strict=True))]
    return ("user,item,timestamp\n" + "".join(rows)).encode()


@pytest.mark.parametrize("name", [*PACKED, "zip"])
def test_compressed_files_are_read_whole_or_refused(tmp_path, name):
    data = _long_table()
    packed = _zipped(data) if name == "zip" else PACKED[name](data)
    assert len(streams.read(_bytes(tmp_path, "x.dat", packed))) == 20_000
    for end in (len(packed) // 2, len(packed) - 1, len(packed) - 9, 20):
        with pytest.raises(ValueError, match=r"x\.dat.*(truncated, damaged|NUL|UTF-8)"):
            streams.read(_bytes(tmp_path, "x.dat", packed[:end]))
    if name in ("zlib", "gzip"):
        with pytest.raises(ValueError, match=r"x.dat"):
            streams.read(_bytes(tmp_path, "x.dat", packed + b"more"))
    with pytest.raises(ValueError, match=r"gzip, zlib|inside|not read here"):
        streams.read(_bytes(tmp_path, "x.dat", gzip.compress(packed)))


def test_gzip_members_one_after_the_other_are_one_file(tmp_path):
    data = _long_table()
    both = gzip.compress(data[:200_000]) + gzip.compress(data[200_000:])
    assert len(streams.read(_bytes(tmp_path, "x.gz", both))) == 20_000


def test_what_cannot_be_unpacked_is_refused_by_name(tmp_path):
    for start, name in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x04\x22\x4d\x18", "lz4"), (b"7z\xbc\xaf\x27\x1c", "7-Zip")):
        with pytest.raises(ValueError, match=f"x.csv: the content is {name}"):
            streams.read(_bytes(tmp_path, "x.csv", start + b"abc" * 50))
    with pytest.raises(ValueError, match=r"2 files in the archive .a.csv, b.csv.: unpack the one to read"):
        streams.read(_bytes(tmp_path, "x.zip", _zipped(HEAD, ("a.csv", "b.csv"))))
    pl.DataFrame({"user": [1], "item": [2], "timestamp": [3]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"Parquet .* inside gzip"):
        streams.read(_bytes(tmp_path, "x.gz", gzip.compress((tmp_path / "x.parquet").read_bytes())))
    # A text that starts like zlib's data is a text.
    assert streams.read(_write(tmp_path, "x.csv", "x^,item,user,timestamp\nx^,1,x^,3\n")).user_ids.to_list() == ["x^"]


@pytest.mark.parametrize("quoted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_blocks_of_any_size_hold_the_same_rows(tmp_path, monkeypatch, quoted):
    rng = np.random.default_rng(1)
    words = ["a,b", 'c "d"', "e\nf", "g", "007", "é"] if quoted else ["ab", "7", "x", "007", "é"]
    chosen = [[words[k] for k in row] for row in rng.integers(0, len(words), (300, 2))]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n" if quoted else "\n")
    writer.writerows([["user", "item", "timestamp"], *([u, i, 10 * k] for k, (u, i) in enumerate(chosen))])
    path = tmp_path / "x.csv"
    path.write_bytes(buffer.getvalue().encode() + b"\n\n\n")
    for size in (50, 97, 1000, 2**20):
        monkeypatch.setattr(memory.Account, "block", size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", streams.DataWarning)  # Some ids have line breaks.
            rows = streams.read(path)
        assert _ids(rows) == [tuple(row) for row in chosen] and rows.time[-1] == 2_990_000
        lines = "".join(
            json.dumps({"user": u, "item": i, "timestamp": k, "x": [1]}) + "\n" for k, (u, i) in enumerate(chosen)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", streams.DataWarning)
            rows = streams.read(_write(tmp_path, "x.jsonl", lines))
        assert _ids(rows) == [tuple(row) for row in chosen]
    monkeypatch.setattr(memory.Account, "block", 50)
    _write(tmp_path, "x.csv", "user,item,timestamp\n" + "u,i,5\n" * 100 + "u,i,soon\n")
    with pytest.raises(ValueError, match="row 102, column 'timestamp': 'soon'"):
        streams.read(path)


def test_integers_after_text_and_text_after_integers_are_one_column(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.Account, "block", 30)
    for users in (["7", "12", "x", "7"], ["x", "7", "7.0", "12"], ["7", "7.0", "12"], [" 7", "7"]):
        text = "user,item,timestamp\n" + "".join(f"{u},1,{k}\n" for k, u in enumerate(users * 4))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", streams.DataWarning)
            rows = streams.read(_write(tmp_path, "x.csv", text))
        numbers = "x" not in users
        expected = [int(float(u)) for u in users] if numbers else users
        assert [user for user, _ in _ids(rows)] == expected * 4


def test_memory_is_bounded_and_the_figure_is_named(tmp_path):
    line = b"1,2,1600000000\n"
    packed = _bytes(tmp_path, "x.gz", gzip.compress(b"user,item,timestamp\n" + line * 400_000))
    assert packed.stat().st_size < 100_000
    with pytest.raises(
        ValueError, match=r"x.gz: .* rows take .* MB to read after .*, more than the 10 MB .*max_memory"
    ):
        streams.read(packed, max_memory=10)
    assert len(streams.read(packed, max_memory=100)) == 400_000
    pl.DataFrame({"user": np.zeros(10**6, int), "item": 1, "timestamp": 3}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="1,000,000 rows take 56 MB to read, more than the 40 MB"):
        streams.read(tmp_path / "x.parquet", max_memory=40)
    ids = "".join(f"{'x' * 100}{k},1,3\n" for k in range(20_000))
    with pytest.raises(ValueError, match="more than the 5 MB"):
        streams.read(_write(tmp_path, "x.csv", "user,item,timestamp\n" + ids), max_memory=5)
    with pytest.raises(ValueError, match="must be above 0"):
        streams.read(packed, max_memory=0)


def test_rows_without_an_end_and_empty_space_are_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_LONGEST_ROW", 2**17)
    for text, row in ((b"a" * 2**19, 1), (HEAD.encode() + b'"' + b"1,2,3\n" * 2**16, 3)):
        with pytest.raises(ValueError, match=f"row {row}: more than 0 MB without the end of a row"):
            streams.read(_bytes(tmp_path, "x.csv", text), max_memory=3)
    sparse = _bytes(tmp_path, "x.csv", HEAD.encode())
    os.truncate(sparse, 2**36)
    with pytest.raises(ValueError, match="row 3: a NUL byte"):
        streams.read(sparse)
    os.truncate(sparse, 0)
    os.truncate(sparse, 2**36)
    with pytest.raises(ValueError, match="row 1: a NUL byte"):
        streams.read(sparse)


def test_progress_is_shown_where_reading_takes_long(tmp_path, monkeypatch, capsys):
    path = _write(tmp_path, "x.csv", SAME["tabs.tsv"])
    streams.read(path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_SECONDS", 0)
    streams.read(path)
    assert re.fullmatch(r"reading .*x\.csv: 100% of 0 MB, 0 s\n", capsys.readouterr().err)


def test_damaged_parquet_is_read_or_refused_and_never_a_panic(tmp_path):
    frame = pl.DataFrame({"user": [f"u{k % 50}" for k in range(500)], "item": range(500), "timestamp": range(500)})
    path = tmp_path / "x.parquet"
    rng = np.random.default_rng(0)
    for compression in ("zstd", "uncompressed"):
        frame.write_parquet(path, compression=compression)
        whole = path.read_bytes()
        outcomes = set()
        for place in rng.integers(0, 8 * len(whole), 300):
            flipped = bytearray(whole)
            flipped[place // 8] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", streams.DataWarning)
                try:
                    outcomes.add(len(streams.read(path)))
                except ValueError as error:
                    assert "x.parquet" in str(error)
                    outcomes.add("refused")
        assert outcomes == {500, "refused"}


@pytest.mark.parametrize("name", [*FORMATS, *SAME])
def test_damaged_text_is_read_or_refused_with_the_name_of_the_file(tmp_path, name):
    whole = (FORMATS | SAME)[name].encode()
    rng = np.random.default_rng(len(whole))
    tokens = [
        b"",
        b"\n",
        b",",
        b"\t",
        b'"',
        b"::",
        b"\0",
        b"NA",
        b"-1",
        b"9" * 20,
        b"[",
        b"{",
        b"\xff",
        b"20200131",
        b"inf",
    ]
    for _ in range(60):
        damaged, place = bytearray(whole), int(rng.integers(0, len(whole)))
        damaged[place : place + int(rng.integers(0, 9))] = tokens[int(rng.integers(len(tokens)))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", streams.DataWarning)
            try:
                assert len(streams.read(_bytes(tmp_path, name, bytes(damaged)))) > 0
            except ValueError as error:
                assert str(tmp_path / name) in str(error)


def test_on_a_command_line_messages_name_flags(tmp_path):
    for text, columns, message in (
        (MIXED, {}, "--columns.time-unit"),
        (AMERICAN, {}, "--columns.time-format '%m/%d/%Y %H:%M'"),
        (DIGITS, {}, "--columns.time-format %Y%m%d"),
        ("user,item,timestamp\nNA,1,3\n", {}, "--columns.skip-incomplete leaves such rows out, --columns.missing says"),
        ("session,item,timestamp\n1,2,3\n", {}, "--columns.user NAME"),
        (HEAD, {"format": "xml"}, "unknown format 'xml'"),
        (HEAD, {"separator": ""}, "--columns.separator"),
    ):
        path = _write(tmp_path, "x.csv", text)
        with pytest.raises(ValueError, match=re.escape(message)):
            stream_flags.load_stream(run_flags.Main(data=str(path), columns=run_flags.Columns(**columns)))
    path = _bytes(tmp_path, "x.csv", LATIN.encode("latin-1"))
    with pytest.raises(ValueError, match=r"--columns.encoding latin-1"):
        stream_flags.load_stream(run_flags.Main(data=str(path)))
    with pytest.raises(ValueError, match=r"--columns.folder"):
        stream_flags.load_stream(run_flags.Main(data=str(tmp_path)))
    with pytest.raises(ValueError, match="--max-memory"):
        stream_flags.load_stream(run_flags.Main(max_memory=1e-3))
    with pytest.raises(ValueError, match="is an embedded stream"):
        stream_flags.load_stream(run_flags.Main(columns=run_flags.Columns(folder=True)))


def test_the_command_line_reads_parts_and_shows_time_range_notes_and_warnings(tmp_path, capsys):
    rows = streams.synthetic(jax.random.key(0), users=150, items=80, interactions=4000)
    lines = [f"{u}|{i}|{t}\n" for (u, i), t in zip(_ids(rows), rows.time.tolist(), strict=True)]
    for name, part in (("a", lines[:2000]), ("b", [*lines[2000:], "NA|i|1600000000000\n"])):
        _write(tmp_path, f"{name}.txt", "user|item|timestamp\n" + "".join(part))
    arguments = ["--data", str(tmp_path / "a.txt"), "--columns.parts", str(tmp_path / "b.txt")]
    arguments += ["--columns.skip-incomplete", "--method", "popularity-all", "--cut.segments", "2"]
    run_command([*arguments, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()[:2]
    assert "4,000 interactions" in first and ", 2020-01-01 " in first and " to 2020-12-" in first
    assert second.endswith("fields are separated by '|'")
    assert "warning: " in printed.err and "no user in 1 (first: row 2002: 'NA')" in printed.err
    assert "DataWarning" not in printed.err
