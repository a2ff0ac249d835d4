"""A table of a database that grows: rows in the order of a key column whose values only grow.

Keys of PostgreSQL are given out before their transactions commit, so that a row with a smaller key may appear after one
with a larger key. `lag` holds rows back for so many seconds after a key as large was first seen: all transactions that
took a smaller key have ended then, if none takes longer than that from its key to its end and sequences are not cached
(`CACHE 1`, the default). A writer of SQLite takes its keys while it keeps other writers out, so that nothing is held
back there.
"""

import collections
import datetime
import decimal
import itertools
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from scall_jax.streams.columns import Places, find_column
from scall_jax.streams.following.database import PLACE, Database, quoted_name
from scall_jax.streams.following.source import EMPTY, Batch, Offset
from scall_jax.streams.following.text import as_json, refuse_other_options
from scall_jax.streams.gather import Gather, Written
from scall_jax.streams.memory import Account, limit_bytes
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.parsing import Table
from scall_jax.streams.times import Form
from scall_jax.streams.wording import option

_INTEGER = re.compile(r"\b((big|small|medium|tiny)?int\d?|integer)\b", re.IGNORECASE)
"""In the declared types of columns of whole numbers."""
_COUNTED = 1_000_000
"""Rows behind the offset that are counted at most."""


class GrowingTable:
    """A table to which others insert rows."""

    ended = False

    def __init__(
        self,
        database: Database,
        table: str,
        key: str,
        options: ReadOptions,
        lag: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Look up the columns.

        Args:
          database: as `connect` gives it.
          table: its name; in PostgreSQL with its schema in front where that is not on the search path.
          key: column of distinct whole numbers, without nulls, that only grow.
          options: what the caller says about columns and values.
          lag: seconds for which rows are held back; None for the default of the database.
          clock: seconds that pass.

        Raises:
          ValueError: no such table or column, a key that is null somewhere, or a negative lag.
        """
        self.name = f"{database.name}, table {table}"
        self._lag = database.lag if lag is None else lag
        if not self._lag >= 0:
            raise ValueError(f"{option('lag')}={lag}: seconds, at least 0")
        types = database.columns(table)
        if not types:
            raise ValueError(f"{self.name}: no such table")
        if key not in types:
            raise ValueError(f"{self.name}: no column {key!r} for the key; the columns are {', '.join(types)}")
        described = Table(tuple(types), 1, (), False, (), lambda columns: iter(()))
        self._columns = {
            role: find_column(described, role, asked, self.name) for role, asked in options.requested.items()
        }
        self._integers = {role for role in ("user", "item") if _INTEGER.search(types[self._columns[role]])}
        self._database, self._options, self._clock = database, options, clock
        self._key, self._table = quoted_name(key), database.quoted(table)
        self._identity = {"table": table, "key": key, "options": as_json(options)}
        self._seen: collections.deque[tuple[float, int]] = collections.deque()
        if self._query(f"SELECT 1 FROM {self._table} WHERE {self._key} IS NULL LIMIT 1"):
            raise ValueError(f"{self.name}, column {key!r}: a key is null: choose a key that every row has")

    def _query(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._database.query(text, parameters)

    def read(self, offset: Offset | None, most: int) -> Batch:
        """The rows that have been inserted; see `Source.read`."""
        last = None if offset is None else self._last(offset)
        ((newest,),) = self._query(f"SELECT max({self._key}) FROM {self._table}")
        if newest is None:
            return Batch(EMPTY, offset)
        self._check_key(newest)
        if last is not None and newest < last:
            raise ValueError(
                f"{self.name}: its largest key is {newest}, and {last} was read: rows were taken away or keys begin "
                "anew: start in another folder"
            )
        horizon = self._horizon(newest)
        if horizon is None or (last is not None and horizon <= last):
            return Batch(EMPTY, offset, held=last is None or newest > last)
        found = self._rows(last, horizon, most)
        if not found:
            return Batch(EMPTY, offset, held=newest > horizon)
        return self._batch(found, offset, held=newest > horizon)

    def _last(self, offset: Offset) -> int:
        if "table" not in offset:
            raise ValueError(f"{self.name}: the folder has followed another kind of source: choose another folder")
        for name in ("table", "key"):
            if offset[name] != self._identity[name]:
                text = f"{option(name)}={offset[name]!r} before, {self._identity[name]!r} now"
                raise ValueError(f"{self.name}: {text}: give the same, or choose another folder")
        refuse_other_options(offset["options"], self._options, self.name)
        return offset["last"]

    def _check_key(self, key: Any) -> None:
        if not isinstance(key, int):
            column = self._identity["key"]
            raise ValueError(f"{self.name}, column {column!r}: {key!r} is no whole number: keys are whole numbers")

    def _horizon(self, newest: int) -> int | None:
        """The largest key that was there `lag` seconds ago; None where it is not known yet."""
        now = self._clock()
        if not self._seen or newest > self._seen[-1][1]:
            self._seen.append((now, newest))
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._lag:
            self._seen.popleft()
        first, key = self._seen[0]
        return key if first <= now - self._lag else None

    def _rows(self, last: int | None, horizon: int, most: int) -> list[tuple[Any, ...]]:
        columns = ", ".join([self._key, *(quoted_name(name) for name in self._columns.values())])
        after, given = ("", ()) if last is None else (f"{self._key} > {PLACE} AND ", (last,))
        part = f"WHERE {after}{self._key} <= {PLACE} ORDER BY {self._key} LIMIT {PLACE}"
        # One more, since a key that comes twice would be cut off.
        found = self._query(f"SELECT {columns} FROM {self._table} {part}", *given, horizon, most + 1)
        for before, row in itertools.pairwise(found):
            self._check_key(row[0])
            if row[0] <= before[0]:
                column = self._identity["key"]
                raise ValueError(f"{self.name}, column {column!r}: key {row[0]} comes twice: choose one that is unique")
        return found[:most]

    def _batch(self, found: list[tuple[Any, ...]], offset: Offset | None, held: bool) -> Batch:
        keys, *columns = zip(*found, strict=True)
        form = None if offset is None or offset["form"] is None else Form(*offset["form"])
        written = Written(form, None if offset is None else offset["unit"])
        gather = Gather(self._options, Account(limit_bytes(None)), self.name, written, as_written=True)
        gather.places = _Keys(self.name, self._columns, keys)
        frame = {}
        for role, values in zip(self._columns, columns, strict=True):
            frame[role] = self._series(role, values, gather.places)
        gather.add(pl.DataFrame(frame), bare_quotes=False)
        rows, written = gather.frame(), gather.written
        behind = self._identity | {
            "last": keys[-1],
            "rows": len(keys) + (0 if offset is None else offset["rows"]),
            "form": None if written.form is None else list(written.form),
            "unit": written.unit,
        }
        return Batch(rows, behind, len(keys), held)

    def _series(self, role: str, values: Sequence[Any], places: Places) -> pl.Series:
        """Values of a column, of one type whatever rows are among them."""
        odd = next((at for at, x in enumerate(values) if isinstance(x, (bytes, memoryview, list, dict, tuple))), None)
        if odd is not None:
            use = "an id" if role in ("user", "item") else "a point in time" if role == "timestamp" else "a rating"
            raise ValueError(f"{places.name(odd, role)}: a value of type {type(values[odd]).__name__} cannot be {use}")
        if role in self._integers:
            odd = next((at for at, x in enumerate(values) if x is not None and not isinstance(x, int)), None)
            if odd is not None:
                raise ValueError(
                    f"{places.name(odd, role)}: {values[odd]!r} is no whole number, as its column has them"
                )
            return pl.Series(values, dtype=pl.Int64)
        if role in ("user", "item"):
            return pl.Series([None if x is None else str(x) for x in values], dtype=pl.String)
        return _numbers_or_dates(values)

    def wait(self, seconds: float) -> None:
        """Wait, since a table does not say when it grows."""
        time.sleep(seconds)

    def close(self) -> None:
        """End the connection."""
        self._database.close()

    def behind(self, offset: Offset | None) -> str:
        """Rows beyond the offset, those that are held back among them."""
        after, given = ("", ()) if offset is None else (f"WHERE {self._key} > {PLACE} ", (offset["last"],))
        text = f"SELECT count(*) FROM (SELECT 1 FROM {self._table} {after}LIMIT {PLACE}) AS counted"
        ((rows,),) = self._query(text, *given, _COUNTED)
        return f"{rows:,} rows" + " or more" * (rows == _COUNTED)


def _numbers_or_dates(values: Sequence[Any]) -> pl.Series:
    """Timestamps or ratings; what a driver has as objects becomes what files have."""
    kinds = {type(x) for x in values} - {type(None)}
    if kinds <= {datetime.datetime, datetime.date}:
        return pl.Series([_in_utc(x) for x in values], dtype=pl.Datetime("us"))
    plain = [float(x) if isinstance(x, decimal.Decimal) else x for x in values]
    if kinds <= {int}:
        return pl.Series(plain, dtype=pl.Int64)
    if kinds <= {int, float, decimal.Decimal}:
        return pl.Series(plain, dtype=pl.Float64)
    return pl.Series([None if x is None else str(x) for x in plain], dtype=pl.String)


def _in_utc(value: Any) -> datetime.datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime.datetime):
        return datetime.datetime(value.year, value.month, value.day)
    return value.astimezone(datetime.UTC).replace(tzinfo=None) if value.tzinfo else value


class _Keys(Places):
    """Places that are called by their keys."""

    def __init__(self, name: str, columns: dict[str, str], keys: Sequence[int]):
        super().__init__()
        self._name, self._by_role, self._rows = name, columns, keys

    def name(self, row: int, role: str) -> str:
        """The place of a value."""
        return f"{self._name}, {self.row(row)}, column {self._by_role[role]!r}"

    def column(self, role: str) -> str:
        """A column of the table."""
        return f"{self._name}, column {self._by_role[role]!r}"

    def row(self, row: int) -> str:
        """A row by its key."""
        return f"the row with key {self._rows[row]}"
