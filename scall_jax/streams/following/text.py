"""Rows of growing text: how its lines are to be read is settled once, so that no row depends on those it comes with."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from scall_jax.streams.columns import find_column
from scall_jax.streams.formats import Layout
from scall_jax.streams.gather import Gather, Written
from scall_jax.streams.memory import Account, limit_bytes
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.parsing import layout_of, text_rows, text_table
from scall_jax.streams.sources import check_text, row_end, whole_rows
from scall_jax.streams.times import Form
from scall_jax.streams.wording import option

BLOCK = 2**20
"""Bytes of text that are read at once, unless a row is longer."""


class Text(NamedTuple):
    """How the rows of a text are read."""

    layout: Layout
    """Of its lines."""
    columns: Mapping[str, str]
    """Name of the column by role."""
    written: Written
    """How times are written, as far as rows have said."""


def recognise_text(name: Path, first: bytes, options: ReadOptions) -> Text:
    """How a text is to be read, judged by its first lines.

    Args:
      name: of the source, in errors.
      first: one or more whole lines, in UTF-8.
      options: what the caller says about it.

    Raises:
      ValueError: no text, or no column for a role.
    """
    check_text(name, first, 1)
    layout = layout_of(name, first, options)
    table = text_table(name, iter(()), first, layout, options)
    columns = {role: find_column(table, role, asked, name) for role, asked in options.requested.items()}
    return Text(layout, columns, Written(None, None))


def rows_of(name: Path, data: bytes, text: Text, options: ReadOptions, row: int) -> tuple[pl.DataFrame, int, Text]:
    """Some rows of a text.

    Args:
      name: of the source, in errors.
      data: whole rows without a header, in UTF-8.
      text: how they are read.
      options: what the caller says about the source.
      row: number of the first row, in errors.

    Returns:
      Rows as in `Batch.rows`, how many rows the data hold, and how the rows that follow are read.

    Raises:
      ValueError: a bad row, naming source, row and column.
    """
    gather = Gather(options, Account(limit_bytes(None)), str(name), text.written, as_written=True)
    gather.places.add(name, 0, row, text.columns)
    blocks = whole_rows(name, [data], text.layout.quoted, row)
    bare_quotes = text.layout.format != "jsonl" and not text.layout.quoted
    for frame in text_rows(name, blocks, text.layout, text.columns, row):
        gather.add(frame, bare_quotes)
    return gather.frame(), gather.rows, text._replace(written=gather.written)


def whole(data: bytes, most: int, quoted: bool) -> bytes:
    """The whole rows at the start of a text.

    Args:
      data: text that starts with a row.
      most: rows to take at most. A row with line ends in quotes may be taken for several, but never cut.
      quoted: whether quotes may hold line ends.

    Returns:
      Text that ends with the end of a row; empty where no row ends.
    """
    data = data[: row_end(data, quoted) + 1]
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    while len(ends) > most:
        part = data[: ends[most - 1] + 1]
        if found := row_end(part, quoted) + 1:
            return part[:found]
        most *= 2
    return data


def to_json(text: Text, options: ReadOptions) -> dict[str, Any]:
    """How a text is read, as JSON can hold it."""
    form = text.written.form
    return {
        "layout": [*text.layout[:3], list(text.layout.names)],
        "columns": dict(text.columns),
        "form": None if form is None else list(form),
        "unit": text.written.unit,
        "options": as_json(options),
    }


def as_json(options: ReadOptions) -> dict[str, Any]:
    """Options as JSON can hold them."""
    return dataclasses.asdict(options) | {"missing": list(options.missing)}


def from_json(stored: Mapping[str, Any], options: ReadOptions, name: str) -> Text:
    """What `to_json` has made.

    Args:
      stored: as JSON.
      options: what the caller says about the source now.
      name: of the source, in errors.

    Raises:
      ValueError: the caller has said something else before.
    """
    refuse_other_options(stored["options"], options, name)
    format, separator, header, names = stored["layout"]
    form = None if stored["form"] is None else Form(*stored["form"])
    layout = Layout(format, separator, header, tuple(names))
    return Text(layout, stored["columns"], Written(form, stored["unit"]))


def refuse_other_options(stored: Mapping[str, Any], options: ReadOptions, name: str) -> None:
    """Check that a source is read as it was read before.

    Args:
      stored: the options before, as JSON.
      options: those of now.
      name: of the source, in errors.

    Raises:
      ValueError: they differ.
    """
    now = as_json(options)
    for key, value in now.items():
        if stored.get(key) != value:
            said = f"{option(key)}={stored.get(key)!r} before, {value!r} now"
            raise ValueError(f"{name} was read with {said}: give the same")
