"""Borders and details of reading that a change of one operator would move."""

import bz2
import time

import polars as pl
import pytest

from scall_jax import streams
from scall_jax.streams import memory
from scall_jax.streams.formats import HEADERLESS, recognise
from scall_jax.streams.ids import as_text


def _write(folder, text):
    path = folder / "rows.csv"
    path.write_text(text)
    return path


def test_the_highest_rating_is_a_rating():
    lines = [f"{user}\t{user + 50}\t10\t97830076{user}" for user in range(5)]
    assert recognise(lines, "auto", None, {}).format == "movielens-udata"
    assert recognise([line.replace("\t10\t", "\t11\t") for line in lines], "auto", None, {}).format == "csv"


def test_a_separator_that_all_lines_agree_in_is_preferred():
    assert recognise(["a,b,c;7;1600000000", "d,e;8;1600000001"], "auto", None, {}).separator == ";"


def test_columns_beyond_those_of_a_published_format_have_numbers():
    found = recognise(["1\t1193\t5\t978300760\tx\ty"], "movielens-udata", None, {})
    assert found.names == (*HEADERLESS["movielens-udata"], "column_5", "column_6")


def test_all_digits_of_a_time_count_beside_one_that_is_missing(tmp_path):
    """A float64 would round this to the next millisecond."""
    text = "user,item,timestamp\na,b,1600000000123499999\na,c,-\na,d,1600000001000000000\n"
    with pytest.warns(streams.DataWarning, match="no timestamp in 1"):
        rows = streams.read(_write(tmp_path, text), skip_incomplete=True, time_unit="ns")
    assert rows.time.tolist() == [1600000000123, 1600000001000]


def test_one_odd_text_among_dates_is_no_timestamp_and_asks_for_no_form(tmp_path):
    lines = [f"a,b{day},2020-09-{day:02d}" for day in range(1, 9)]
    text = "\n".join(["user,item,timestamp", *lines, "a,c,soon", ""])
    with pytest.raises(ValueError, match=r"row 10.*'soon' is not a timestamp(?! that is known)"):
        streams.read(_write(tmp_path, text))


def test_numbers_that_are_not_finite_are_no_timestamps(tmp_path):
    path = tmp_path / "rows.parquet"
    times = [float("inf"), float("-inf"), 1.6e9]
    pl.DataFrame({"user": ["a", "b", "c"], "item": ["x", "y", "z"], "timestamp": times}).write_parquet(path)
    with pytest.raises(ValueError, match=r"inf is not a timestamp(?! that is known)"):
        streams.read(path)


def test_a_rating_at_the_minimum_counts_and_one_that_is_no_number_is_refused(tmp_path):
    text = "user,item,rating,timestamp\na,b,4,1600000000\na,c,3,1600000001\n"
    assert len(streams.read(_write(tmp_path, text), min_rating=4)) == 1
    path = _write(tmp_path, text.replace(",3,", ",-NaN,"))
    with pytest.raises(ValueError, match=r"row 3.*is not a number"):
        streams.read(path, min_rating=4)


def test_quotes_inside_a_quoted_field_belong_to_it(tmp_path):
    assert as_text(pl.Series([' "b" ', "c"])).to_list() == ['"b"', "c"]
    assert as_text(pl.Series([' "b" ', "c"]), bare_quotes=True).to_list() == ["b", "c"]


def test_every_distinct_text_counts_once_in_the_account_of_memory(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(memory.Account, "ids", lambda self, number, *rest: counted.append(number))
    streams.read(_write(tmp_path, "user,item,timestamp\na,x,1\nb,x,2\nc,y,3\na,z,4\n"), time_unit="s")
    assert counted == [3, 3]


def test_a_first_line_of_very_many_columns_is_refused_at_once(tmp_path):
    """Some kilobytes of a compressed file can be a line of millions of separators."""
    path = tmp_path / "wide.csv.bz2"
    path.write_bytes(bz2.compress(b"user,item,timestamp" + b";" * 3_000_000 + b"\n1,2,1600000000\n"))
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"wide.csv.bz2: the first line has 3,000,000 ';'.*separator") as caught:
        streams.read(path)
    assert time.process_time() - begun < 5 and len(str(caught.value)) < 400
    with pytest.raises(ValueError, match="the first line has 3,000,000 ';'"):
        streams.read(path, separator=";")
    path.write_bytes(bz2.compress(b"1" + b"\t" * 20_000))
    with pytest.raises(ValueError, match="the first line has 20,000"):
        streams.read(path, format="movielens-udata")


def test_a_first_line_of_one_very_long_field_is_refused_at_once(tmp_path):
    path = tmp_path / "long.csv.bz2"
    path.write_bytes(bz2.compress("\u00eb".encode() * 4_000_000))
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"long.csv.bz2: no column for the user") as caught:
        streams.read(path)
    assert time.process_time() - begun < 5 and len(str(caught.value)) < 400
