"""Blocks of rows to columns of codes and times: checks row by row, and what must agree over all rows."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl

from scall_jax.streams.columns import Places, check_dtype
from scall_jax.streams.ids import as_ids, as_text, encode_column, is_missing, runs_together, warn_of_breaks
from scall_jax.streams.interactions import Interactions
from scall_jax.streams.memory import Account
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.times import (
    LAST_MILLISECOND,
    Form,
    Locate,
    common_unit,
    form_of,
    in_milliseconds,
    parse,
    proposal,
    shown,
    strays,
)
from scall_jax.streams.wording import DataWarning, option


class Written(NamedTuple):
    """How the times of a table are written, as far as its rows have said."""

    form: Form | None
    """Numbers or dates; None without rows."""
    unit: str | None
    """Of numbers; None without rows, or where it is given."""


class Gather:
    """Columns that grow block by block; `finish` makes interactions of them, `frame` a table of rows."""

    def __init__(
        self,
        options: ReadOptions,
        account: Account,
        source: str,
        written: Written | None = None,
        as_written: bool = False,
    ):
        """Start without rows.

        Args:
          options: what the caller says about the files.
          account: of the memory that is taken.
          source: name of the whole in messages.
          written: how the times of the rows before are written, where these are a part of a longer table.
          as_written: text stays text in ids, so that an id does not depend on the rows beside it.
        """
        self.places = Places()
        self.rows = 0
        self._options, self._account, self._source = options, account, source
        self._dtypes = {role: pl.Categorical(pl.Categories.random()) for role in ("user", "item")}
        self._known = {"user": 0, "item": 0}
        self._columns: dict[str, list[pl.Series]] = {role: [] for role in ("user", "item", "timestamp", "keep")}
        self._form: Form | None = written.form if written else None
        self._unit: str | None = written.unit if written else None
        self._as_written = as_written
        self._incomplete: dict[str, tuple[int, str]] = {}

    def add(self, frame: pl.DataFrame, bare_quotes: bool, read: float | None = None) -> None:
        """Check and keep some rows.

        Args:
          frame: columns `user`, `item`, `timestamp` and, where ratings matter, `rating`.
          bare_quotes: whether quotes around a field are still there.
          read: which part of the source has been read, if it is known.

        Raises:
          ValueError: naming file, row and column: a missing value, unless such rows are left out; an id, timestamp or
            rating that is none; more memory than may be taken.
        """
        start, missing = self.rows, pl.Series([False]).new_from_index(0, frame.height)
        self._account.rows(frame.height, self._source, read)
        for role in frame.columns:
            check_dtype(frame[role], role, self.places.column(role))
        values = {role: self._ids(frame[role], bare_quotes) for role in ("user", "item")}
        values |= {role: self._text_or_number(frame[role], bare_quotes) for role in frame.columns if role not in values}
        for role, column in values.items():
            missing |= self._missing(column, frame[role], role, start)
        for role in ("user", "item"):
            problem = "is a floating-point number that cannot tell ids apart"
            self.places.refuse(runs_together(frame[role]), problem, role, frame[role], start)
            self._keep_ids(role, values[role], missing, read)
        self._columns["timestamp"].append(self._time(values["timestamp"], missing, start))
        self._columns["keep"].append(self._wanted(values.get("rating"), missing, start))
        self.rows += frame.height

    def _ids(self, values: pl.Series, bare_quotes: bool) -> pl.Series:
        if self._as_written and not values.dtype.is_integer():
            return as_text(values, bare_quotes)
        return as_ids(values, bare_quotes)

    @staticmethod
    def _text_or_number(values: pl.Series, bare_quotes: bool) -> pl.Series:
        """Timestamps and ratings: text without spaces around it, and typed values as they are."""
        if values.dtype.is_temporal() or values.dtype.is_numeric():
            return values
        return as_text(values, bare_quotes)

    def _missing(self, values: pl.Series, raw: pl.Series, role: str, start: int) -> pl.Series:
        """Mask of missing values; raises unless rows with such are left out, else counts them."""
        gone = values.is_null() if values.dtype.is_temporal() else is_missing(values, self._options.missing)
        if raw.dtype.is_float():
            gone |= raw.is_nan().fill_null(True)
        if not gone.any():
            return gone
        if not self._options.skip_incomplete:
            problem = "is missing" if role in ("user", "item", "timestamp") else "is a missing rating"
            way = f"{option('skip_incomplete')} leaves such rows out, {option('missing')} says which texts count"
            self.places.refuse(gone, f"{problem} (null, empty or a text such as NA): {way}", role, raw, start)
        count, place = self._incomplete.get(role, (0, ""))
        at = int(np.flatnonzero(gone.to_numpy())[0])
        place = place or f"{self.places.row(start + at)}: {raw[at]!r}"
        self._incomplete[role] = count + int(gone.sum()), place
        return gone

    def _keep_ids(self, role: str, text: pl.Series, missing: pl.Series, read: float | None) -> None:
        if text.dtype.is_integer():
            self._columns[role].append(text)
            return
        codes = text.set(missing, None) if missing.any() else text
        codes = codes.cast(self._dtypes[role])
        known = max(self._known[role], int(codes.to_physical().max() or 0) + 1)  # pyright: ignore[reportArgumentType]
        if known > self._known[role]:
            length = float(text.str.len_bytes().mean() or 0)  # pyright: ignore[reportArgumentType]
            self._account.ids(known - self._known[role], length, self._source, read)
            self._known[role] = known
        self._columns[role].append(codes)

    def _time(self, values: pl.Series, missing: pl.Series, start: int) -> pl.Series:
        """Milliseconds of dates, or numbers in their own unit; 0 in rows that are left out."""
        here = values.filter(~missing) if missing.any() else values
        if self._form is None and len(here):
            self._form = form_of(here, self._options.time_format)
        values = values.set(missing, None) if missing.any() else values
        numbers = parse(values, self._form or Form(False))
        bad = (numbers.is_null() | (numbers < 0)) & ~missing
        if bad.any():
            unread = numbers.is_null() & ~missing
            text = values.dtype == pl.String and not self._options.time_format
            given = f"does not fit {option('time_format', self._options.time_format or '')}"
            odd = unread.sum() < 0.5 * len(here) or not text
            problem = given if self._options.time_format else "is not a timestamp" if odd else proposal(here)
            self.places.refuse(unread, problem, "timestamp", values, start)
            self.places.refuse(bad, "is before 1970", "timestamp", values, start)
        return numbers.set(missing, 0) if missing.any() else numbers

    def _wanted(self, ratings: pl.Series | None, missing: pl.Series, start: int) -> pl.Series:
        """Mask of complete rows whose rating reaches the minimum."""
        if ratings is None or self._options.min_rating is None:
            return ~missing
        numbers = ratings.cast(pl.Float64, strict=False)
        bad = (numbers.is_null() | numbers.is_nan().fill_null(True)) & ~missing
        self.places.refuse(bad, "is not a number", "rating", ratings, start)
        return (numbers >= self._options.min_rating).fill_null(False) & ~missing

    def finish(self, notes: tuple[str, ...]) -> Interactions:
        """What has been read.

        Args:
          notes: what was guessed.

        Raises:
          ValueError: nothing is left, timestamps that cannot be of one unit, or out of range.

        Warns:
          DataWarning: rows that were left out because a value is missing, and rows whose time is far from all others.
        """
        keep = self._taken("keep").to_numpy()
        self._report_incomplete(keep)
        rows = None if keep.all() else np.flatnonzero(keep)
        time = self._milliseconds(rows)
        codes, vocabularies = [], []
        for role in ("user", "item"):
            ids = self._taken(role)
            coded, vocabulary = encode_column(ids if rows is None else ids.gather(rows))
            codes.append(coded)
            vocabularies.append(vocabulary)
        return Interactions(codes[0], codes[1], time, vocabularies[0], vocabularies[1], self._source, notes)

    def frame(self) -> pl.DataFrame:
        """What has been read, row by row.

        Returns:
          Columns `user` and `item`, integers or text, and `time`, Int64, milliseconds since 1970; without rows where
          none is complete.

        Raises:
          ValueError: timestamps that cannot be of one unit, of another one than those before, or out of range.

        Warns:
          DataWarning: as `finish`.
        """
        keep = self._taken("keep").to_numpy() if self.rows else np.zeros(0, bool)
        self._warn_of_incomplete()
        if not keep.any():
            return pl.DataFrame(schema={"user": pl.String, "item": pl.String, "time": pl.Int64})
        rows = None if keep.all() else np.flatnonzero(keep)
        columns = {"user": self._taken("user"), "item": self._taken("item")}
        for role, ids in columns.items():
            if not ids.dtype.is_integer():
                columns[role] = ids.cast(pl.String)
                warn_of_breaks(columns[role].unique())
        found = pl.DataFrame(columns)
        time = self._milliseconds(rows)
        return (found if rows is None else found[rows]).with_columns(time=pl.Series(time, dtype=pl.Int64))

    @property
    def written(self) -> Written:
        """How the times of the rows so far are written; that of numbers is known after `frame`."""
        return Written(self._form, self._unit)

    def _taken(self, role: str) -> pl.Series:
        """A column as one series, whose parts are freed."""
        parts = self._columns.pop(role)
        dtypes = {part.dtype for part in parts}
        if len(dtypes) > 1:
            # Integers become what other parts of the column are.
            if role == "timestamp":
                parts = [part.cast(pl.Float64) for part in parts]
            elif all(dtype.is_signed_integer() and dtype != pl.Int128 for dtype in dtypes):
                parts = [part.cast(pl.Int64) for part in parts]
            else:
                as_categories = self._dtypes[role]
                parts = [p.cast(pl.String).cast(as_categories) if p.dtype.is_integer() else p for p in parts]
        return pl.concat(parts, rechunk=True)

    def _report_incomplete(self, keep: np.ndarray) -> None:
        left_out = self._left_out()
        if not keep.any():
            least = self._options.min_rating
            problem = f"{self._source}: no row is complete"
            if least is not None:
                problem = f"{self.places.column('rating')}: no rating reaches {option('min_rating')}={least:g}"
            raise ValueError(f"{problem}; {left_out}" if left_out else problem)
        self._warn_of_incomplete()

    def _left_out(self) -> str:
        return "; ".join(f"no {role} in {n:,} (first: {place})" for role, (n, place) in self._incomplete.items())

    def _warn_of_incomplete(self) -> None:
        if left_out := self._left_out():
            message = f"{self._source}: rows left out of {self.rows:,} because a value is missing: {left_out}"
            warnings.warn(message, DataWarning, stacklevel=6)  # The warning points to the call of `read`.

    def _milliseconds(self, rows: np.ndarray | None) -> np.ndarray:
        numbers = self._taken("timestamp").to_numpy()
        numbers = numbers if rows is None else numbers[rows]

        def at(position: int) -> int:
            return position if rows is None else int(rows[position])

        locate = Locate(lambda i: self.places.name(at(i), "timestamp"), lambda i: self.places.row(at(i)))
        dates = self._form is not None and self._form.dates
        if self._as_written and not dates and self._options.time_unit == "auto":
            self._check_unit(numbers, locate)
        time = numbers if dates else in_milliseconds(numbers, self._options.time_unit, locate)
        late = time > LAST_MILLISECOND
        if late.any():
            first = int(late.argmax())
            unit = "" if dates else f" (read with {option('time_unit', self._options.time_unit)})"
            raise ValueError(f"{locate.place(first)}: {numbers[first]} is after the year 9999{unit}")
        self._warn_of_strays(time, locate.place)
        return time

    def _check_unit(self, numbers: np.ndarray, locate: Locate) -> None:
        """The unit of numbers by their size, which must be that of the rows before."""
        if not numbers.any():
            return
        unit = common_unit(numbers, locate)
        if self._unit not in (None, unit):
            first = int((numbers != 0).argmax())
            raise ValueError(
                f"{locate.place(first)}: {numbers[first]} is in {unit} by its size, where the rows before are in "
                f"{self._unit}: mend the rows, or give {option('time_unit')}, the unit of all"
            )
        self._unit = unit

    @staticmethod
    def _warn_of_strays(time: np.ndarray, place: Callable[[int], str]) -> None:
        far, ends = strays(time)
        if len(far):
            first = int(far[0])
            warnings.warn(
                f"{place(first)}: {shown(time[first])} is far from the other rows, which go from {shown(ends[0])} to "
                f"{shown(ends[1])} ({len(far):,} such row(s)): a missing time or a typing error?",
                DataWarning,
                stacklevel=6,
            )
