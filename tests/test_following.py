"""Growing sources: every row once, in order and as it is written, however it arrives and however much is asked for."""

import csv
import io
import json
import os
import random
import sqlite3

import pytest

from scall_jax.streams import following
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.wording import DataWarning

pytestmark = pytest.mark.filterwarnings("ignore:.*is an id with a line break:scall_jax.streams.wording.DataWarning")

EVENTS = [
    ["7", "12", "1600000000"],
    ["7.0", "tea, green", "1600000000"],
    ["007", 'two\nlines, "quoted"', "1600000050"],
    ["ann", "é", "1600000060"],
    ["7", "a\n\nb", "1600000060"],
    *([f"u{i % 7}", f"i{i % 5}", str(1600000100 + i // 3)] for i in range(60)),
]
"""Rows by id, of which some look like numbers and some have line ends."""
EXPECTED = [(user, item, 1000 * int(time)) for user, item, time in EVENTS]


def as_csv(rows, end="\n", separator=","):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end, delimiter=separator)
    writer.writerows([["user", "item", "timestamp"], *rows])
    return text.getvalue()


def as_lines(rows):
    records = [{"item": i, "x": [1], "user": u, "timestamp": int(t)} for u, i, t in rows]
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


FORMS = {
    "csv": (as_csv(EVENTS).encode(), ReadOptions()),
    "crlf": (as_csv(EVENTS, "\r\n").encode(), ReadOptions()),
    "mark": (b"\xef\xbb\xbf\n" + as_csv(EVENTS).encode(), ReadOptions()),
    "semicolon": (as_csv(EVENTS, separator=";").encode("latin-1"), ReadOptions(encoding="latin-1")),
    "json": (as_lines(EVENTS).encode(), ReadOptions()),
}


def drain(source, offset, most):
    """All rows that are there, and the offset as a folder would give it back."""
    found = []
    while True:
        batch = source.read(offset, most)
        assert batch.rows.height <= batch.read <= max(most, 8)
        offset = json.loads(json.dumps(batch.offset))
        found += batch.rows.rows()
        if not batch.read:
            return found, offset


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_a_growing_file_do_not_depend_on_how_it_grows(tmp_path, form):
    data, options = FORMS[form]
    for seed in range(2):
        draw, path = random.Random(seed), tmp_path / f"{seed}.txt"
        found, offset = [], None
        cuts = sorted(draw.sample(range(len(data)), 9))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            with path.open("ab") as file:
                file.write(data[start:end])
            # Each time another process goes on.
            rows, offset = drain(following.GrowingFile(path, options), offset, draw.choice([1, 2, 5, 1000]))
            found += rows
        assert found == EXPECTED
        assert following.GrowingFile(path, options).behind(offset) == "0 bytes"


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_a_pipe_whose_feeder_sends_everything_again_or_the_rest(form):
    data, options = FORMS[form]
    start = data.index(b"\n", 1 + data.startswith(b"\xef") * 4) + 1 if form != "json" else 0
    for seed, resend in enumerate(["all", "rest", "all", "rest"]):
        draw, found, offset = random.Random(seed), [], None
        for life in range(4):
            sent = data
            if life and resend == "rest":
                # A feeder may send the header each time, or once.
                kept = data[:start] if seed > 1 else b""
                sent = kept + data[offset["input_bytes"] :] if offset else data
            reading, writing = os.pipe()
            source = following.StandardInput(options, resend, reading)
            asked = draw.randrange(1, 30)
            least = offset["input_bytes"] if offset and resend == "all" else 0
            os.write(writing, sent[: draw.randint(least, len(sent))] if life < 3 else sent)
            os.close(writing)
            while True:
                before = offset
                batch = source.read(offset, asked)
                if not batch.read and source.ended and batch.offset == before:
                    break
                offset = json.loads(json.dumps(batch.offset))
                found += batch.rows.rows()
                if life < 3 and draw.random() < 0.3:
                    # A process that is killed after a commit reads no further.
                    break
            os.close(reading)
        assert found == EXPECTED
        assert offset["rows"] == len(EVENTS)


def grown(path, data):
    """The offset behind all rows of a file with this content."""
    path.write_bytes(data)
    return drain(following.GrowingFile(path, ReadOptions()), None, 100)[1]


CSV = b"user,item,timestamp\nann,tea,1600000000\nbob,tea,1600000001\n"
CHANGED = {
    "shorter": (CSV[:-1], r"events.csv: the file was truncated or replaced: it has 57 bytes, and 58 were read"),
    "another start": (b"x" + CSV[1:], r"events.csv: the file was replaced or changed: at its start"),
    "another last row": (CSV[:-2] + b"2\n", "replaced or changed: at its start"),
    "bad time": (CSV + b"cyd,tea,soon\n", r"events.csv, row 4, column 'timestamp': 'soon' is not a timestamp"),
    "no item": (CSV + b"\ncyd,,1600000002\n", r"events.csv, row 4, column 'item': None is missing"),
    "a field too many": (CSV + b"cyd,tea,1600000002,5\n", r"events.csv, row 4: 'cyd,tea,1600000002,5' has"),
    "milliseconds": (CSV + b"cyd,tea,1600000002000\n", r"row 4, column 'timestamp': 1600000002000 is in ms"),
    "dates": (CSV + b"cyd,tea,2020-09-13\n", r"row 4, column 'timestamp': '2020-09-13' is not a timestamp"),
    "no text": (CSV + b"cyd\0,tea,1600000002\n", r"events.csv, row 4: a NUL byte"),
    "not UTF-8": (CSV + b"\xe9,tea,1600000002\n", r"events.csv, row 4: not UTF-8"),
    "endless": (CSV + b'"' + b"x\n" * 2**23 + b"xx", r"row 4: more than 17 MB without the end of a row"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_file_that_changed_and_bad_rows_are_refused_with_their_place(tmp_path, change):
    offset = grown(tmp_path / "events.csv", CSV)
    content, message = CHANGED[change]
    (tmp_path / "events.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        following.GrowingFile(tmp_path / "events.csv", ReadOptions()).read(offset, 100)


def test_a_long_file_is_known_by_the_bytes_in_front_of_the_offset(tmp_path):
    rows = [[f"u{i}", "tea", str(1600000000 + i)] for i in range(1000)]
    offset = grown(tmp_path / "events.csv", as_csv(rows).encode())
    rows[-1][0] = "u???"
    (tmp_path / "events.csv").write_text(as_csv(rows))
    with pytest.raises(ValueError, match=f"in front of byte {offset['bytes']:,} it has other bytes"):
        following.GrowingFile(tmp_path / "events.csv", ReadOptions()).read(offset, 100)
    (tmp_path / "events.csv").unlink()
    with pytest.raises(ValueError, match="no such file any more"):
        following.GrowingFile(tmp_path / "events.csv", ReadOptions()).read(offset, 100)


def test_what_cannot_grow_is_refused(tmp_path):
    path = tmp_path / "events"
    for content, message in (
        (b"\x1f\x8b\x08", "gzip, which cannot be followed"),
        (b"PAR1", "Parquet file does not grow"),
        (b"\xff\xfeu\0", "the mark of utf-16"),
        (b"SQLite format 3\0", "the content is SQLite"),
    ):
        path.write_bytes(content + b"\n")
        with pytest.raises(ValueError, match=message):
            following.GrowingFile(path, ReadOptions()).read(None, 10)
    for encoding in ("utf-16", "shift_jis"):
        with pytest.raises(ValueError, match="bytes do not tell its line ends"):
            following.GrowingFile(path, ReadOptions(encoding=encoding))
    offset = grown(path, CSV)
    with pytest.raises(ValueError, match="was read with min_rating=None before, 3 now"):
        following.GrowingFile(path, ReadOptions(min_rating=3)).read(offset, 10)
    with pytest.raises(ValueError, match="another kind of source"):
        following.StandardInput(ReadOptions(), "all").read(offset, 10)


def test_rows_that_are_left_out_move_the_offset_only(tmp_path):
    path, options = tmp_path / "events.csv", ReadOptions(skip_incomplete=True, min_rating=3)
    path.write_text("user,item,timestamp,rating\nann,NA,1600000000,5\nbob,tea,1600000001,2\n")
    source = following.GrowingFile(path, options)
    with pytest.warns(DataWarning, match="no item in 1"):
        batch = source.read(None, 10)
    assert (batch.read, batch.rows.height) == (2, 0)
    with path.open("a") as file:
        file.write("cyd,tea,1600000002,4\nhalf,a,ro")
    batch = source.read(batch.offset, 10)
    assert batch.rows.rows() == [("cyd", "tea", 1600000002000)]
    assert source.read(batch.offset, 10).read == 0
    assert source.behind(batch.offset) == "9 bytes"


def test_a_pipe_asks_how_it_goes_on_and_compares_what_comes_again():
    def piped(text, resend=None):
        reading, writing = os.pipe()
        os.write(writing, text)
        os.close(writing)
        return following.StandardInput(ReadOptions(), resend, reading)

    _, offset = drain(piped(CSV), None, 10)
    with pytest.raises(ValueError, match=r"2 rows of it are in the folder: give resend='all' .* is row 3"):
        piped(CSV).read(offset, 10)
    with pytest.raises(ValueError, match="its first 2 rows are not those in the folder"):
        piped(CSV.replace(b"bob", b"rob"), "all").read(offset, 10)
    with pytest.raises(ValueError, match="it ended within the 2 rows"):
        piped(CSV[:-1], "all").read(offset, 10)
    with pytest.raises(ValueError, match="row 4, column 'timestamp': 'soon'"):
        piped(CSV + b"cyd,tea,soon\n", "all").read(offset, 10)


def sqlite(path, rows, kind="TEXT"):
    """A database with a table of events."""
    connection = sqlite3.connect(path)
    connection.execute(f'CREATE TABLE "the ""events""" (id INTEGER PRIMARY KEY, "user" {kind}, item {kind}, ts)')
    insert(connection, rows)
    return connection


def insert(connection, rows):
    connection.executemany('INSERT INTO "the ""events""" ("user", item, ts) VALUES (?, ?, ?)', rows)
    connection.commit()


def table(path, **options):
    return following.GrowingTable(following.connect(f"sqlite:{path}"), 'the "events"', "id", ReadOptions(), **options)


def test_rows_of_a_growing_table(tmp_path):
    path, draw, found, offset = tmp_path / "events.db", random.Random(0), [], None
    connection = sqlite(path, EVENTS[:4])
    for start in range(4, len(EVENTS), 9):
        rows, offset = drain(table(path), offset, draw.randint(1, 12))
        found += rows
        insert(connection, EVENTS[start : start + 9])
    rows, offset = drain(table(path), offset, 3)
    assert found + rows == EXPECTED
    connection.execute('DELETE FROM "the ""events""" WHERE id > 5')
    connection.commit()
    with pytest.raises(ValueError, match=f"its largest key is 5, and {len(EVENTS)} was read"):
        table(path).read(offset, 5)


def test_columns_of_integers_stay_integers_and_bad_values_are_named_by_their_keys(tmp_path):
    path = tmp_path / "events.db"
    connection = sqlite(path, [(7, 12, 1600000000)], "INTEGER")
    batch = table(path).read(None, 5)
    assert batch.rows.rows() == [(7, 12, 1600000000000)]
    for number, (row, message) in enumerate([
        (("ann", 12, 1600000001), r"row with key 2, column 'user': 'ann' is no whole number"),
        ((7, None, 1600000001), r"row with key 3, column 'item': None is missing"),
        ((7, 12, "soon"), r"row with key 4, column 'ts': 'soon' is not a timestamp"),
        ((7, 12, b"x"), r"row with key 5, column 'ts': a value of type bytes cannot be a point in time"),
    ], 2):  # fmt: skip
        insert(connection, [row])
        with pytest.raises(ValueError, match=message):
            table(path).read(batch.offset | {"last": number - 1}, 5)


def test_rows_are_held_back_until_a_key_as_large_is_older_than_the_lag(tmp_path):
    path, now = tmp_path / "events.db", [0.0]
    connection = sqlite(path, EVENTS[:3])
    source = table(path, lag=10.0, clock=lambda: now[0])
    seen, offset = [], None
    for second, arrived in [(0, 0), (4, 2), (9, 0), (10, 0), (13, 1), (14, 0), (23, 0), (30, 0)]:
        now[0] = float(second)
        insert(connection, EVENTS[:arrived])
        batch = source.read(offset, 100)
        offset = batch.offset
        seen.append((second, batch.read, batch.held))
    # Rows that were first seen at 0, 4 and 13 are read at 10, 14 and 23.
    read = {second: number for second, number, _ in seen}
    assert read == {0: 0, 4: 0, 9: 0, 10: 3, 13: 0, 14: 2, 23: 1, 30: 0}
    assert [second for second, _, held in seen if not held] == [23, 30]


def test_a_table_that_cannot_be_followed_is_refused(tmp_path):
    path = tmp_path / "events.db"
    connection = sqlite(path, EVENTS[:3])
    connection.execute("CREATE TABLE twice (id, user, item, ts, word)")
    connection.executemany("INSERT INTO twice VALUES (?, 'a', 'b', 1600000000, 'x')", [(1,), (1,)])
    connection.commit()
    database = following.connect(f"sqlite:{path}")

    def read(name, key):
        return following.GrowingTable(database, name, key, ReadOptions()).read(None, 10)

    for name, key, message in (
        ("events", "id", "table events: no such table"),
        ("twice", "nr", "no column 'nr' for the key; the columns are id, user, item, ts, word"),
        ("twice", "id", "key 1 comes twice"),
        ("twice", "word", "'x' is no whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            read(name, key)
    connection.execute("INSERT INTO twice VALUES (NULL, 'a', 'b', 1600000000, 'x')")
    connection.commit()
    with pytest.raises(ValueError, match="a key is null"):
        read("twice", "id")
    with pytest.raises(ValueError, match="no such file"):
        following.connect(f"sqlite:{tmp_path / 'none.db'}")
