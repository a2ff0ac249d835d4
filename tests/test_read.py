import gzip
import json

import numpy as np
import polars as pl
import pytest

from scall_jax import streams


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
