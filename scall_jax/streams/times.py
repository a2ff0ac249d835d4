"""Timestamps of any common kind to milliseconds since 1970."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl

from scall_jax.streams.wording import option

TIME_UNITS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds per unit of a numeric timestamp."""

LAST_MILLISECOND = 253_402_300_799_999
"""The end of the year 9999."""

_TEXT_FORMATS = ("%+", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")
_LOCAL_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
)
# Forms that `auto` does not read, because days and months or zones can be taken for each other; proposed in errors.
_PROPOSED = (
    *(f"{day}{time}" for day in ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%m/%d/%y", "%d/%m/%y")
      for time in ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")),
    "%a %b %d %H:%M:%S %Z %Y",
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %H:%M:%S %Y",
    "%a, %d %b %Y %H:%M:%S %z",
    "%a, %d %b %Y %H:%M:%S %Z",
    "%d/%b/%Y:%H:%M:%S %z",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d %b %Y",
    "%d-%b-%Y",
)  # fmt: skip
_ZONES = {"UTC": 0, "GMT": 0, "UT": 0, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6} | {
    "PST": -8,
    "PDT": -7,
}  # hours; the names that RFC 2822 defines
_LIMITS = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": 1e20}  # above these, a number of the unit is after the year 5138
_CALENDAR = (
    ("%Y%m%d", (4, 2, 2)),
    ("%Y%m%d%H%M%S", (4, 2, 2, 2, 2, 2)),
    ("%Y%m%d%H%M", (4, 2, 2, 2, 2)),
    ("%Y%m%d%H", (4, 2, 2, 2)),
    ("%Y%m", (4, 2)),
    ("%Y", (4,)),
)  # dates written as numbers, and the digits of their parts
_RANGES = ((1900, 2100), (1, 12), (1, 31), (0, 23), (0, 59), (0, 60))


class Form(NamedTuple):
    """How the timestamps of a column are written."""

    dates: bool
    """Whether they are dates, not numbers."""
    pattern: str | None = None
    """Form of dates in text that the caller gives."""


def form_of(values: pl.Series, pattern: str | None) -> Form:
    """How a column's timestamps are written.

    Args:
      values: the first timestamps of a column, [rows].
      pattern: form of dates as `read` takes it; None to judge by the values, of which the majority decides whether the
        column holds numbers or dates, so that an odd value is an error.
    """
    if values.dtype.is_temporal():
        return Form(True)
    if pattern is not None or values.dtype.is_numeric():
        return Form(pattern is not None, pattern)
    numbers = values.cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)
    return Form(2 * numbers.null_count() > len(numbers))


def parse(values: pl.Series, form: Form) -> pl.Series:
    """Timestamps as numbers.

    Args:
      values: timestamps, [rows].
      form: how they are written.

    Returns:
      Int64[rows] milliseconds since 1970 of dates; Int64[rows] or Float64[rows] of numbers, in their own unit. Null
      where a value is no timestamp.

    Raises:
      ValueError: a pattern that cannot be used.

    >>> parse(pl.Series(["1970-01-02"]), Form(True)).to_list(), parse(pl.Series(["5"]), Form(False)).to_list()
    ([86400000], [5])
    """
    if values.dtype.is_temporal():
        return values.cast(pl.Datetime("ms")).dt.epoch("ms")
    if values.dtype.is_integer() and not form.dates:
        return values.cast(pl.Int64, strict=False)
    if values.dtype.is_float() and form.dates:
        values = values.cast(pl.Int64, strict=False)
    if form.dates:
        text = values.cast(pl.String).str.strip_chars()
        return _from_text(text) if form.pattern is None else _by_pattern(text, form.pattern)
    text = values if values.dtype.is_numeric() else values.cast(pl.String).str.strip_chars()
    if text.dtype == pl.String:
        whole = text.cast(pl.Int64, strict=False)
        if whole.null_count() == text.null_count():
            return whole
    numbers = text.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite().fill_null(False), None)


def proposal(values: pl.Series) -> str:
    """What an error says about text that is no timestamp: the parameter that helps, and forms that would fit.

    Args:
      values: timestamps that were not understood, [rows].
    """
    text = values.drop_nulls().head(1000).cast(pl.String).str.strip_chars()
    fitting = [one for one in _PROPOSED if len(text) and _by_pattern(text, one).null_count() == 0]
    if not fitting:
        return f"is not a timestamp that is known ({option('time_format')} names other forms)"
    return f"is not a timestamp that is known: give {' or '.join(option('time_format', one) for one in fitting[:2])}"


def _from_text(text: pl.Series) -> pl.Series:
    def parsed(pattern: str, has_zone: bool) -> pl.Expr:
        dtype = pl.Datetime("ms", "UTC") if has_zone else pl.Datetime("ms")
        return pl.col("t").str.strptime(dtype, pattern, strict=False).dt.epoch("ms")

    attempts = [parsed(p, True) for p in _TEXT_FORMATS] + [parsed(p, False) for p in _LOCAL_FORMATS]
    return pl.DataFrame({"t": text}).select(pl.coalesce(attempts))["t"]


def _by_pattern(text: pl.Series, pattern: str) -> pl.Series:
    """Dates by the caller's form, which is that of `datetime.strptime`."""
    form = pattern.replace(".%f", "%.f")
    if "%Z" in form:
        found = [zone for zone in _ZONES if text.str.contains(zone, literal=True).any()]
        for zone in found:
            text = text.str.replace(rf"\b{zone}\b", f"{_ZONES[zone]:+03d}00")
        form = form.replace("%Z", "%z")
    if re.search("%[HI]", form) and "%M" not in form:
        form, text = f"{form}|%M", text + "|00"  # An hour alone is not taken.
    try:
        dtype = pl.Datetime("ms", "UTC") if re.search("%[:#]*z|%[+]", form) else pl.Datetime("ms")
        dates = text.str.strptime(dtype, form, strict=False)
        if re.fullmatch("(%[YmdHMS])+", form):
            # Digits without anything between them: too few would be taken for other parts of the date.
            dates = dates.set((dates.dt.strftime(form) != text).fill_null(True), None)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{option('time_format', pattern)}: {str(error).splitlines()[0]}") from None
    return dates.dt.epoch("ms")


class Locate(NamedTuple):
    """How errors call a row, given its position."""

    place: Callable[[int], str]
    """File, row and column."""
    row: Callable[[int], str]
    """The row alone."""


def in_milliseconds(numbers: np.ndarray, unit: str, locate: Locate) -> np.ndarray:
    """Numeric timestamps in milliseconds.

    Args:
      numbers: i64[rows] or f64[rows], finite and not negative.
      unit: one of `TIME_UNITS`, or `auto`: seconds where numbers are below 10^11, milliseconds below 10^14,
        microseconds below 10^17, else nanoseconds. Zero may be of any unit.
      locate: how errors call a row.

    Returns:
      i64[rows], milliseconds.

    Raises:
      ValueError: without a unit, numbers that cannot be of one unit or are dates written as numbers.

    >>> in_milliseconds(np.array([1600000000]), "auto", Locate(str, str)).tolist()
    [1600000000000]
    """
    if unit == "auto":
        unit = common_unit(numbers, locate)
        _refuse_calendar(numbers, locate)
    scale = TIME_UNITS[unit]
    if numbers.dtype.kind == "i" and int(numbers.max(initial=0)) * max(scale, 1) < 2**62:
        # Whole numbers stay exact.
        divisor = round(1 / scale)
        return numbers * int(scale) if scale >= 1 else (numbers + divisor // 2) // divisor
    # What is cut off is far beyond the last year.
    return np.minimum(np.rint(numbers * scale), 2.0**62).astype(np.int64)


def common_unit(numbers: np.ndarray, locate: Locate) -> str:
    """The unit that all numbers can be of by their size; zero can be of any.

    Args:
      numbers: i64[rows] or f64[rows], finite and not negative.
      locate: how errors call a row.

    Raises:
      ValueError: numbers that cannot be of one unit.
    """
    names, limits = list(_LIMITS), list(_LIMITS.values())
    some = numbers[numbers != 0]
    if not len(some):
        return "s"
    least, most = (int(np.searchsorted(limits, float(end), side="right")) for end in (some.min(), some.max()))
    if least == most < len(names):
        return names[least]
    del some
    units = np.searchsorted(limits, numbers, side="right")
    usual = int(np.bincount(units[numbers != 0]).argmax())
    odd = int(((units != usual) & (numbers != 0)).argmax())
    even = int(((units == usual) & (numbers != 0)).argmax())
    shown = [f"in {names[u]}" if u < len(names) else "out of range" for u in (units[odd], usual)]
    raise ValueError(
        f"{locate.place(odd)}: {numbers[odd]} is {shown[0]} by its size, where {numbers[even]} in {locate.row(even)} "
        f"is {shown[1]} ({int(((units != usual) & (numbers != 0)).sum()):,} such row(s)): "
        f"mend the rows, or give {option('time_unit')}, the unit of all"
    )


def _refuse_calendar(numbers: np.ndarray, locate: Locate) -> None:
    """Refuse numbers that are dates such as 20200131."""
    first = int((numbers != 0).argmax()) if len(numbers) else 0
    for pattern, digits in _CALENDAR:
        if _part_of_dates(numbers[first : first + 100], digits) > 0.9 and _part_of_dates(numbers, digits) > 0.9:
            raise ValueError(
                f"{locate.place(first)}: {numbers[first]:.0f} looks like a date, not like a number since 1970: "
                f"give {option('time_format', pattern)}, or {option('time_unit')} if it is such a number"
            )


def _part_of_dates(numbers: np.ndarray, digits: tuple[int, ...]) -> float:
    """Which part of the numbers that are not zero are dates, given how many digits each part of a date has."""
    some = numbers[(numbers != 0) & (numbers < 2.0**62)]
    rest = some.astype(np.int64)
    right = rest == some
    for width, (low, high) in reversed(list(zip(digits, _RANGES, strict=False))):
        rest, part = np.divmod(rest, 10**width)
        right &= (part >= low) & (part <= high)
    return float((right & (rest == 0)).mean()) if len(some) else 0.0


_DAY = 86_400_000
_YEAR = 366 * _DAY


def strays(time: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Rows far from all others in time, as unset times and typing errors are.

    A row is one if it is among the thousandth at an end of the stream and as far from the others as these are from each
    other (of less than ten rows: ten times as far, and five years), or if it alone is of 1970-01-01.

    Args:
      time: i64[rows], milliseconds since 1970.

    Returns:
      (i64[n], (first, last)): positions of the rows, and the ends of the others.

    >>> strays(np.array([0, 1600000000000, 1600000001000]))[0].tolist()
    [0]
    """
    rows = len(time)
    unset = time < _DAY
    if unset.mean() > 0.5 or (unset.any() and int(time[~unset].min()) < _YEAR):
        unset[:] = False
    far = unset
    if rows - unset.sum() >= 3:
        left = time[~unset] if unset.any() else time
        few = max(1, len(left) // 1000)
        low, high = (int(x) for x in np.partition(left, (few, len(left) - 1 - few))[[few, len(left) - 1 - few]])
        margin = max(high - low, _DAY) if rows >= 10 else max(10 * (high - low), 5 * _YEAR)
        far = unset | (time < low - margin) | (time > high + margin)
    others = time[~far] if far.any() else time
    return np.flatnonzero(far), (int(others.min()), int(others.max()))


def shown(time: int) -> str:
    """A time in words.

    >>> shown(1600000000000)
    '2020-09-13 12:26:40'
    """
    return str(np.datetime64(int(time) // 1000, "s")).replace("T", " ")
