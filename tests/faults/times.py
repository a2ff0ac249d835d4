"""Inputs whose times are written in any way, with what is right (`inputs`)."""

import datetime
import itertools
from collections.abc import Iterator

from tests.faults.cases import BASE, EIGHT, Case, text_of, written

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def numbers() -> Iterator[Case]:
    """Numbers since 1970 in all units, as whole numbers and fractions, and mixtures."""
    for unit, scale in UNITS.items():
        for given in ("auto", unit):
            text = text_of(time=lambda ms, scale=scale: ms * scale // 1000)
            yield Case(f"times in {unit}, {given}", written("x.csv", text), EIGHT, "", {"time_unit": given})
        text = text_of(time=lambda ms, scale=scale: f"{ms * scale // 1000}.0")
        yield Case(f"times in {unit} with a point", written("x.csv", text), EIGHT)
        lines = [f'{{"user": "{u}", "item": "{i}", "timestamp": {ms * scale // 1000}}}\n' for u, i, ms in EIGHT]
        yield Case(f"times in {unit}, JSON", written("x.jsonl", "".join(lines)), EIGHT)
    for one, other in itertools.permutations(UNITS, 2):
        text = text_of(time=lambda ms, one=one: ms * UNITS[one] // 1000)
        text += f"u,i,{BASE * UNITS[other]}\n"
        words = f"row 10.*in {other} by its size"
        yield Case(f"times in {one}, one in {other}", written("x.csv", text), None, words)
        half = text_of(EIGHT[:1], time=lambda ms, one=one: ms * UNITS[one] // 1000) + f"u,i,{BASE * UNITS[other]}\n"
        yield Case(f"one time in {one}, one in {other}", written("x.csv", half), None, "row [23].*by its size")
    for unit, value in itertools.product(("auto", *UNITS), ("-1", "1e300", "inf", "nan", "soon", "0x10", "1_000", "٣")):
        text = text_of() + f"u,i,{value}\n"
        words = "row 10, column 'timestamp'"
        yield Case(f"time {value}, {unit}", written("x.csv", text), None, words, {"time_unit": unit})
    for value, form in (
        (20200131, "%Y%m%d"),
        (202001311230, "%Y%m%d%H%M"),
        (20200131123000, "%Y%m%d%H%M%S"),
        (2020013112, "%Y%m%d%H"),
        (202001, "%Y%m"),
        (2020, "%Y"),
    ):
        text = text_of([("u", "i", 0)], time=lambda ms, value=value: value)
        moment = datetime.datetime.strptime(str(value), form).replace(tzinfo=datetime.UTC)
        rows = [("u", "i", int(moment.timestamp() * 1000))]
        yield Case(f"date as number {value}", written("x.csv", text), None, "looks like a date")
        if form not in ("%Y%m", "%Y"):
            yield Case(f"date as number {value}, {form}", written("x.csv", text), rows, "", {"time_format": form})
    for unit in ("m", "sec", "S"):
        yield Case(f"unit {unit}", written("x.csv", text_of()), None, "time_unit", {"time_unit": unit})


READ = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S+00:00",
    "%Y-%m-%d %H:%M:%S+0000",
    "%Y-%m-%d %H:%M:%S.000",
    "%Y-%m-%dT%H:%M:%S.000000",
    "%Y-%m-%dT%H:%M:%S.000Z",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M:%S.0",
)
"""Forms that are read without being asked for; all with seconds, so that the rows stay apart."""

ASKED = (
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%d.%m.%Y %H:%M:%S",
    "%d-%m-%Y %H:%M:%S",
    "%m-%d-%Y %H:%M:%S",
    "%m/%d/%Y %I:%M:%S %p",
    "%a %b %d %H:%M:%S %Y",
    "%d/%b/%Y:%H:%M:%S +0000",
    "%a, %d %b %Y %H:%M:%S +0000",
    "%a %b %d %H:%M:%S UTC %Y",
    "%a %b %d %H:%M:%S +0000 %Y",
)


def _moment(ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC)


def dates() -> Iterator[Case]:
    """Dates as text: forms that are known, forms that are given, zones."""
    for form in READ:
        yield Case(
            f"dates {form}", written("x.csv", text_of(time=lambda ms, form=form: _moment(ms).strftime(form))), EIGHT
        )
    for form in ASKED:
        text = text_of(time=lambda ms, form=form: f'"{_moment(ms).strftime(form)}"')
        asked = form.replace("+0000", "%z").replace("UTC", "%Z")
        yield Case(f"dates {form}, given", written("x.csv", text), EIGHT, "", {"time_format": asked})
        yield Case(f"dates {form}, not given", written("x.csv", text), None, "time_format")
        wrong = "%Y.%m.%d"
        words = "row 2, column 'timestamp'.*does not fit"
        yield Case(f"dates {form}, another given", written("x.csv", text), None, words, {"time_format": wrong})
    for hours in (-11, -5, 1, 5.5, 14):
        zone = datetime.timezone(datetime.timedelta(hours=hours))
        text = text_of(time=lambda ms, zone=zone: _moment(ms).astimezone(zone).isoformat())
        yield Case(f"zone {hours}", written("x.csv", text), EIGHT)
    for zone, hours in {"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}.items():
        there = datetime.timezone(datetime.timedelta(hours=hours))
        form = f"%a %b %d %H:%M:%S {zone} %Y"
        text = text_of(time=lambda ms, there=there, form=form: _moment(ms).astimezone(there).strftime(form))
        asked = {"time_format": "%a %b %d %H:%M:%S %Z %Y"}
        yield Case(f"zone {zone}", written("x.csv", text), EIGHT, "", asked)
    for bad in ("2020-13-01", "2020-02-30", "2020-01-01T25:00:00", "1969-12-31", "20-01-01", "2020-1", "yesterday"):
        text = text_of(time=lambda ms: _moment(ms).strftime("%Y-%m-%d %H:%M:%S")) + f"u,i,{bad}\n"
        yield Case(f"date {bad}", written("x.csv", text), None, "row 10, column 'timestamp'")
    text = text_of(time=lambda ms: _moment(ms).strftime("%Y-%m-%d %H:%M:%S")) + f"u,i,{BASE}\n"
    yield Case("a number among dates", written("x.csv", text), None, "row 10, column 'timestamp'")
    yield Case("a date among numbers", written("x.csv", text_of() + "u,i,2020-09-13\n"), None, "row 10")


def odd() -> Iterator[Case]:
    """Times that can be used and may well be mistakes."""
    for value in (0, 1, 4294967295):
        rows = [*EIGHT * 5, ("u9", "i9", 1000 * value)]
        text = text_of(rows)
        yield Case(f"far time {value}", written("x.csv", text), rows, "row 42.*is far from the other rows")
    for unit, value in (("s", 253402300800), ("ms", 253402300800000)):
        text = text_of() + f"u,i,{value}\n"
        words = "after the year 9999|row 10"
        yield Case(f"the year 10000 in {unit}", written("x.csv", text), None, words, {"time_unit": unit})
    rows = [(u, i, 1000 * BASE) for u, i, _ in EIGHT]
    yield Case("one time", written("x.csv", text_of(rows)), rows)
    rows = list(reversed(EIGHT))
    yield Case("times backwards", written("x.csv", text_of(rows)), rows)
    yield Case(
        "both a unit and a form", written("x.csv", text_of()), None, "one of", {"time_unit": "s", "time_format": "%Y"}
    )
