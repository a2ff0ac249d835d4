"""Timestamps of any common kind to milliseconds since 1970."""

import numpy as np
import polars as pl

TIME_UNITS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
_TEXT_FORMATS = ("%+", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")
_LOCAL_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d")


def milliseconds(values: pl.Series, unit: str, where) -> np.ndarray:
    """i64[rows], milliseconds since 1970 UTC, from numbers, text or dates.

    Numbers are seconds below 10^11 (by their largest), milliseconds below 10^14, else microseconds, unless `unit`
    says so. `where.refuse` reports the first value that is no time or is negative.
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
        # most values settle whether the column holds numbers or dates: the odd one is then an error
        time = _from_numbers(numbers, unit) if 2 * numbers.null_count() <= len(numbers) else _from_text(text)
    where.refuse(time.is_null(), "timestamp", "is not a timestamp", values)
    where.refuse(time < 0, "timestamp", "is before 1970", values)
    return time.to_numpy()


def _from_numbers(values: pl.Series, unit: str) -> pl.Series:
    whole = values.dtype.is_integer()
    if not whole:
        values = values.cast(pl.Float64)
        values = values.set(~values.is_finite().fill_null(False), None)
    largest = max(abs(values.min() or 0), abs(values.max() or 0))
    if unit == "auto":
        unit = "s" if largest < 1e11 else "ms" if largest < 1e14 else "us"
    if whole and unit != "us" and largest * TIME_UNITS[unit] < 2**53:
        return values.cast(pl.Int64) * int(TIME_UNITS[unit])  # what floating point gives too, with fewer copies
    values = values.cast(pl.Float64)
    return (values * TIME_UNITS[unit]).round().cast(pl.Int64, strict=False)


def _from_text(text: pl.Series) -> pl.Series:
    def parsed(pattern, zone):
        type_ = pl.Datetime("ms", "UTC") if zone else pl.Datetime("ms")
        return pl.col("t").str.strptime(type_, pattern, strict=False).dt.epoch("ms")

    attempts = [parsed(p, True) for p in _TEXT_FORMATS] + [parsed(p, False) for p in _LOCAL_FORMATS]
    return pl.DataFrame({"t": text}).select(pl.coalesce(attempts))["t"]
