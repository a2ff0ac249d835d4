"""The two databases whose tables are followed: how each lists columns, quotes names and runs a query."""

import importlib
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_SQLITE = "sqlite:"
_POSTGRESQL = ("postgresql://", "postgres://")

PLACE = "\0"
"""Where a parameter goes in a statement: the one character that no name has."""


class Database(NamedTuple):
    """A connection that reads."""

    name: str
    """Where it leads, without a password."""
    query: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
    """query(text, parameters) has the rows; `PLACE` stands for a parameter in the text."""
    columns: Callable[[str], dict[str, str]]
    """columns(table) has the declared type of each column; nothing where there is no such table."""
    quoted: Callable[[str], str]
    """A table's name as a statement has it."""
    close: Callable[[], object]
    """Ends the connection."""
    lag: float
    """Seconds after which a transaction has ended that took a key, where nobody says: 0 where writers take turns."""


def is_database(data: str) -> bool:
    """Whether a name is the URL of a database.

    >>> is_database("sqlite:events.db"), is_database("postgresql://host/shop"), is_database("events.csv")
    (True, True, False)
    """
    return data.startswith((_SQLITE, *_POSTGRESQL))


def connect(url: str) -> Database:
    """Connect to a database.

    Args:
      url: `sqlite:PATH`, or `postgresql://[USER@]HOST[:PORT]/NAME` with any parameters that libpq knows.

    Raises:
      ValueError: no such database, or it cannot be reached; psycopg is not installed.
    """
    if url.startswith(_SQLITE):
        return _sqlite(Path(url.removeprefix(_SQLITE)))
    if url.startswith(_POSTGRESQL):
        return _postgresql(url)
    raise ValueError(f"{url}: a table is followed in sqlite:PATH or postgresql://HOST/NAME")


def quoted_name(name: str) -> str:
    """An identifier in double quotes.

    >>> quoted_name('a "b"')
    '"a ""b\"""'
    """
    if "\0" in name or not name:
        raise ValueError(f"{name!r} is no name of a table or column")
    return '"' + name.replace('"', '""') + '"'


def _sqlite(path: Path) -> Database:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        # Only reading, so that a wrong path or statement can change nothing.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30, isolation_level=None)
    except sqlite3.Error as error:
        raise ValueError(f"{path}: {error}") from None

    def query(text: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            return connection.execute(text.replace(PLACE, "?"), tuple(parameters)).fetchall()
        except (sqlite3.Error, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from None

    def columns(table: str) -> dict[str, str]:
        return dict(query(f"SELECT name, type FROM pragma_table_xinfo({PLACE})", [table]))

    # A writer takes its keys while it holds the lock that keeps other writers out.
    return Database(str(path), query, columns, quoted_name, connection.close, 0.0)


def _postgresql(url: str) -> Database:
    try:
        psycopg: Any = importlib.import_module("psycopg")
    except ImportError:
        raise ValueError('PostgreSQL needs psycopg: pip install "scall_jax[db]"') from None
    name = without_password(url)
    try:
        connection = psycopg.connect(url, autocommit=True)
        connection.read_only = True
    except psycopg.Error as error:
        raise ValueError(f"{name}: {_first_line(error)}") from None

    def query(text: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            # A percent sign in a quoted name is none of a parameter.
            with connection.cursor() as cursor:
                return cursor.execute(text.replace("%", "%%").replace(PLACE, "%s"), parameters).fetchall()
        except psycopg.Error as error:
            raise ValueError(f"{name}: {_first_line(error)}") from None

    def quoted(table: str) -> str:
        return ".".join(quoted_name(part) for part in table.split("."))

    def columns(table: str) -> dict[str, str]:
        text = (
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            f"WHERE attrelid = to_regclass({PLACE}) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        )
        return dict(query(text, [quoted(table)]))

    return Database(name, query, columns, quoted, connection.close, 5.0)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def without_password(url: str) -> str:
    """The URL of a database as it may be shown.

    >>> without_password("postgresql://ann:secret@host/shop?password=secret&connect_timeout=3")
    'postgresql://ann@host/shop?password=...&connect_timeout=3'
    """
    shown = re.sub(r"^(\w+://[^:/@?]*):.*@", r"\1@", url)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1...", shown)
