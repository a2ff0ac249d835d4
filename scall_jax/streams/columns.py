"""Columns of a file by the role they play, and errors that name file, row and column."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from scall_jax.streams.formats import ALIASES, looks_like_times, plain
from scall_jax.streams.parsing import Table
from scall_jax.streams.wording import option

_SHOWN = 30  # names of columns in an error


class Part(NamedTuple):
    """A file, or a part of the table that several files hold."""

    path: Path
    """The file."""
    start: int
    """Rows of the parts before it."""
    first_row: int
    """Number of the line with its first record, from 1."""
    columns: Mapping[str, str]
    """Name of the column by role."""


class Places:
    """Where rows come from, so that an error can name the place of a bad value."""

    def __init__(self) -> None:
        """Start without a file."""
        self._parts: list[Part] = []

    def add(self, path: Path, rows: int, first_row: int, columns: Mapping[str, str]) -> None:
        """Start with a file.

        Args:
          path: the file.
          rows: rows that were read before it.
          first_row: number of the line with its first record.
          columns: name of the column by role.
        """
        self._parts.append(Part(path, rows, first_row, columns))

    def name(self, row: int, role: str) -> str:
        """The place of a value.

        Args:
          row: position in the table, from 0.
          role: role of the column.
        """
        part = next(part for part in reversed(self._parts) if part.start <= row)
        return f"{part.path}, {self.row(row)}, column {part.columns[role]!r}"

    def column(self, role: str) -> str:
        """The column of the file that is being read.

        Args:
          role: role of the column.
        """
        return f"{self._parts[-1].path}, column {self._parts[-1].columns[role]!r}"

    def row(self, row: int) -> str:
        """A row by the number of its line, and its file if there are several.

        Args:
          row: position in the table, from 0.
        """
        part = next(part for part in reversed(self._parts) if part.start <= row)
        text = f"row {row - part.start + part.first_row}"
        return text if len(self._parts) == 1 or part is self._parts[-1] else f"{text} of {part.path}"

    def refuse(self, bad: pl.Series, problem: str, role: str, values: pl.Series, start: int) -> None:
        """Raise an error for the first bad value, if there is one.

        Args:
          bad: bool[rows]; null counts as true.
          problem: what is wrong with these values.
          role: role of the column.
          values: the column, [rows].
          start: position of the first of these rows in the table.

        Raises:
          ValueError: naming file, row, column and value.
        """
        bad = bad.fill_null(True)
        if bad.any():
            at = int(np.flatnonzero(bad.to_numpy())[0])
            raise ValueError(
                f"{self.name(start + at, role)}: {values[at]!r} {problem}"
                f" ({int(bad.sum()):,} such row(s) among the first {start + len(bad):,})"
            )


def find_column(table: Table, role: str, name: str | None, path: Path | str) -> str:
    """Name of the column that plays a role.

    Args:
      table: the file.
      role: `user`, `item`, `timestamp` or `rating`.
      name: the column's name, or None to look for a name that published files use.
      path: the file, or what else holds the table, named in errors.

    Raises:
      ValueError: no such column, or several.
    """
    if name is not None:
        if name not in table.names:
            raise ValueError(f"{path}: no column {name!r} for the {role}; the columns are {_listed(table.names)}")
        return _only(table, role, [name], path)
    for alias in ALIASES[role]:
        if alias in table.names:
            return _only(table, role, [alias], path)
    for alias in ALIASES[role]:
        alike = [one for one in table.names if plain(one) == plain(alias)]
        if alike:
            return _only(table, role, alike, path)
    raise ValueError(_nothing_found(table, role, path))


def _only(table: Table, role: str, names: list[str], path: Path | str) -> str:
    if len(names) > 1 or table.names.count(names[0]) > 1:
        several = ", ".join(names) if len(names) > 1 else f"{table.names.count(names[0])} columns {names[0]!r}"
        raise ValueError(f"{path}: {several} could each be the {role}: name one with {option(role)}, or rename it")
    return names[0]


def _nothing_found(table: Table, role: str, path: Path | str) -> str:
    if not table.shown:
        return (
            f"{path}: no column for the {role} among {_listed([repr(name) for name in table.names])}: "
            f"name it with {option(role, 'NAME')}"
        )
    times = [text.split(" ")[0] for text in table.shown if looks_like_times([text.split("(", 1)[1][1:-2]])]
    guess = f"; {' and '.join(times)} could be times" if times else ""
    return (
        f"{path}: no header, and no published format of columns {_listed(table.shown)}{guess}: "
        f"name the columns with {option('user')}, {option('item')} and {option('timestamp')}"
    )


def _listed(names: Sequence[str]) -> str:
    """Names for an error, of which the first ones are enough."""
    more = [f"and {len(names) - _SHOWN:,} more"] if len(names) > _SHOWN else []
    return ", ".join([*(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:_SHOWN]), *more])


def check_dtype(values: pl.Series, role: str, place: str) -> None:
    """Check that a column's type suits its role.

    Args:
      values: the column.
      role: `user`, `item`, `timestamp` or `rating`.
      place: file and column.

    Raises:
      ValueError: lists, bytes, lengths of time, or a type that is no point in time.
    """
    dtype = values.dtype
    base = dtype.base_type()
    timeless = role == "timestamp" and base in (pl.Time, pl.Boolean)
    if dtype.is_nested() or base in (pl.Binary, pl.Duration, pl.Object) or timeless:
        use = "a point in time" if role == "timestamp" else "a number" if role == "rating" else "an id"
        raise ValueError(f"{place}: values of type {dtype} cannot be {use}")
