"""Timestamps of any common kind to milliseconds since 1970."""

from collections.abc import Callable
from typing import cast

import numpy as np
import polars as pl

TIME_UNITS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
"""Milliseconds per unit of a numeric timestamp."""

_TEXT_FORMATS = ("%+", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")
_LOCAL_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d")


def milliseconds(values: pl.Series, unit: str, refuse: Callable[[pl.Series, str], None]) -> np.ndarray:
    """Times from numbers, text or dates.

    Args:
      values: timestamps, [rows].
      unit: `s`, `ms` or `us` of numeric timestamps; `auto` takes seconds if the largest number is below 10^11,
        milliseconds if it is below 10^14, else microseconds.
      refuse: called with a mask bool[rows] of bad values and what is wrong with them; raises if any is true.

    Returns:
      i64[rows], milliseconds since 1970-01-01 UTC.

    Raises:
      ValueError: unknown unit; a value that is no timestamp or is before 1970, raised by `refuse`.
    """
    if unit != "auto" and unit not in TIME_UNITS:
        raise ValueError(f"time_unit={unit!r}: choose auto, {', '.join(TIME_UNITS)}")
    if values.dtype.is_temporal():
        time = values.cast(pl.Datetime("ms")).dt.epoch("ms")
    elif values.dtype.is_numeric():
        time = _from_numbers(values, unit)
    else:
        text = values.cast(pl.String).str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        # The majority decides whether the column holds numbers or dates, so that an odd value is an error.
        time = _from_numbers(numbers, unit) if 2 * numbers.null_count() <= len(numbers) else _from_text(text)
    refuse(time.is_null(), "is not a timestamp")
    refuse(time < 0, "is before 1970")
    return time.to_numpy()


def _from_numbers(values: pl.Series, unit: str) -> pl.Series:
    whole = values.dtype.is_integer()
    if not whole:
        values = values.cast(pl.Float64)
        values = values.set(~values.is_finite().fill_null(False), None)
    ends = cast("list[float | None]", [values.min(), values.max()])
    largest = max(abs(end or 0) for end in ends)
    if unit == "auto":
        unit = "s" if largest < 1e11 else "ms" if largest < 1e14 else "us"
    if whole and unit != "us" and largest * TIME_UNITS[unit] < 2**53:
        # Integer arithmetic gives what floating point would give here, with fewer copies.
        return values.cast(pl.Int64) * int(TIME_UNITS[unit])
    values = values.cast(pl.Float64)
    return (values * TIME_UNITS[unit]).round().cast(pl.Int64, strict=False)


def _from_text(text: pl.Series) -> pl.Series:
    def parsed(pattern: str, has_zone: bool) -> pl.Expr:
        dtype = pl.Datetime("ms", "UTC") if has_zone else pl.Datetime("ms")
        return pl.col("t").str.strptime(dtype, pattern, strict=False).dt.epoch("ms")

    attempts = [parsed(p, True) for p in _TEXT_FORMATS] + [parsed(p, False) for p in _LOCAL_FORMATS]
    return pl.DataFrame({"t": text}).select(pl.coalesce(attempts))["t"]
