"""Growing tables of a real PostgreSQL server."""

import contextlib
import importlib
import json

import pytest

from scall_jax.streams import following
from scall_jax.streams.options import ReadOptions
from tests import postgresql

pytestmark = pytest.mark.skipif(postgresql.missing() is not None, reason=str(postgresql.missing()))


@pytest.fixture(scope="module")
def url():
    with postgresql.server() as found:
        yield found


def connected(url):
    return importlib.import_module("psycopg").connect(url)


def create(url, name):
    """A table, and a connection to fill it."""
    connection = connected(url)
    connection.execute(
        f'CREATE TABLE "{name}" (id bigserial PRIMARY KEY, "user" text, "the %s item" integer, ts timestamptz, '
        "stars numeric)"
    )
    connection.commit()
    return connection


def insert(connection, name, *rows):
    quoted = name.replace("%", "%%")
    text = f'INSERT INTO "{quoted}" ("user", "the %%s item", ts, stars) VALUES (%s, %s, to_timestamp(%s), 4.5)'
    connection.cursor().executemany(text, rows)


def table(url, name, **options):
    """The source of a table, which is closed in the end."""
    options = {"lag": 0.0} | options
    columns = ReadOptions(item="the %s item", rating="stars", min_rating=3)
    return contextlib.closing(following.GrowingTable(following.connect(url), name, "id", columns, **options))


def test_rows_of_a_growing_table_in_batches(url):
    rows = [(f"u{i % 5}", i % 7, 1600000000 + i / 4) for i in range(50)]
    found, offset = [], None
    with create(url, "100% events") as connection:
        for start in range(0, 50, 10):
            insert(connection, "100% events", *rows[start : start + 10])
            connection.commit()
            with table(url, "public.100% events") as source:
                while (batch := source.read(offset, 7)).read:
                    assert batch.read <= 7
                    found += batch.rows.rows()
                    offset = json.loads(json.dumps(batch.offset))
    assert found == [(user, item, round(1000 * time)) for user, item, time in rows]
    with table(url, "100% events") as source:
        assert source.behind(None) == "50 rows"
    with table(url, "public.100% events") as source:
        assert source.behind(offset) == "0 rows"


def test_a_row_that_commits_after_one_with_a_larger_key_is_read_within_the_lag_and_lost_without(url):
    now = [0.0]
    with contextlib.ExitStack() as stack, create(url, "late") as first, connected(url) as second:
        insert(first, "late", ("slow", 1, 1600000000))  # takes key 1
        insert(second, "late", ("quick", 1, 1600000001))  # takes key 2
        second.commit()
        hasty = stack.enter_context(table(url, "late"))
        patient = stack.enter_context(table(url, "late", lag=5.0, clock=lambda: now[0]))
        batch = hasty.read(None, 10)
        assert batch.rows["user"].to_list() == ["quick"]
        waiting = patient.read(None, 10)
        assert (waiting.read, waiting.held) == (0, True)
        first.commit()
        assert hasty.read(batch.offset, 10).read == 0
        now[0] = 5.0
        assert patient.read(None, 10).rows["user"].to_list() == ["slow", "quick"]


def test_bad_rows_and_bad_connections_are_named_without_the_password(url):
    with create(url, "odd") as connection:
        insert(connection, "odd", ("ann", 1, 1600000000), ("bob", None, 1600000001))
        connection.commit()
        connection.execute('CREATE VIEW seen AS SELECT ts AS id, "user", 1 AS item, ts FROM odd')
        connection.commit()
    missing = r"table odd, the row with key 2, column 'the %s item': None is missing"
    with table(url, "odd") as source, pytest.raises(ValueError, match=missing):
        source.read(None, 10)
    with contextlib.closing(following.connect(url)) as database:
        with pytest.raises(ValueError, match="is no whole number: keys are whole numbers"):
            following.GrowingTable(database, "seen", "id", ReadOptions(timestamp="ts")).read(None, 10)
        with pytest.raises(ValueError, match="table none: no such table"):
            following.GrowingTable(database, "none", "id", ReadOptions())
    with pytest.raises(ValueError) as error:
        following.connect(url.replace("tester@", "tester:secret@").replace("/postgres?", "/nowhere?"))
    assert "nowhere" in str(error.value) and "secret" not in str(error.value)
