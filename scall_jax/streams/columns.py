"""Columns of a file by the role they play, and errors that name file, row and column."""

from pathlib import Path
from typing import NamedTuple

import polars as pl

from scall_jax.streams.formats import ALIASES
from scall_jax.streams.parsing import Content


class Origin(NamedTuple):
    """Where columns come from, so that an error can name the place of a bad value."""

    path: Path
    """The file."""
    first_row: int
    """Number of the line with the first record, from 1."""
    columns: dict[str, str]
    """Name of the column by role."""

    def refuse(self, bad: pl.Series, problem: str, role: str, values: pl.Series) -> None:
        """Raise an error for the first bad value, if there is one.

        Args:
          bad: bool[rows]; null counts as true.
          problem: what is wrong with these values.
          role: role of the column.
          values: the column, [rows].

        Raises:
          ValueError: naming file, row, column and value.
        """
        bad = bad.fill_null(True)
        if bad.any():
            at = bad.arg_true()[0]
            raise ValueError(
                f"{self.path}, row {at + self.first_row}, column {self.columns[role]!r}: {values[at]!r} {problem}"
                f" ({int(bad.sum())} such row(s))"
            )


def find_column(content: Content, role: str, name: str | None, path: Path) -> str:
    """Name of the column that plays a role.

    Args:
      content: the file's content.
      role: `user`, `item`, `timestamp` or `rating`.
      name: the column's name, or None to look for a name that published files use.
      path: the file, named in errors.

    Raises:
      ValueError: no such column.
    """
    if name is not None:
        if name in content.frame.columns:
            return name
        raise ValueError(f"{path}: no column {name!r} for the {role}; the columns are {', '.join(content.names)}")
    for alias in ALIASES[role]:
        if alias in content.frame.columns:
            return alias
    raise ValueError(
        f"{path}: no column for the {role} among {', '.join(map(repr, content.names))}: name it with {role}="
    )


def check_dtype(values: pl.Series, role: str, origin: Origin) -> None:
    """Check that a column's type suits its role.

    Args:
      values: the column.
      role: `user`, `item`, `timestamp` or `rating`.
      origin: where it comes from.

    Raises:
      ValueError: lists, bytes, or a type that is no point in time.
    """
    dtype = values.dtype
    base = dtype.base_type()
    timeless = role == "timestamp" and base in (pl.Time, pl.Duration, pl.Boolean)
    if dtype.is_nested() or base is pl.Binary or timeless:
        use = "a point in time" if role == "timestamp" else "a number" if role == "rating" else "an id"
        raise ValueError(f"{origin.path}, column {origin.columns[role]!r}: values of type {dtype} cannot be {use}")
