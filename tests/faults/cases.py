"""What a case of the corpus of inputs is, how it is judged, and the rows that most cases write."""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scall_jax import streams
from tests.faults.outcomes import EXACT, FAILURE, REFUSED, Outcome

Row = tuple[Any, Any, int]
"""User and item as the reader should give them, and milliseconds since 1970."""


class Case(NamedTuple):
    """An input, and what is right."""

    name: str
    """What it is, unlike all others."""
    write: Callable[[Path], Any]
    """write(folder) makes the file and returns what `streams.read` is given."""
    rows: Sequence[Row] | None
    """The rows that must be read; None: it must be refused."""
    words: str = ""
    """A pattern that the refusal has, or, with rows, the one warning."""
    options: dict[str, Any] = {}  # noqa: RUF012
    """Of `streams.read`."""


BASE = 1600000000
"""Seconds of the first row, 2020-09-13 12:26:40."""

EIGHT: list[Row] = [(f"u{k % 3}", f"i{k % 4}", 1000 * (BASE + k)) for k in range(8)]
"""The rows that most files have."""


def written(name: str, data: str | bytes) -> Callable[[Path], Path]:
    """A writer of one file."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


def text_of(
    rows: Sequence[Row] = tuple(EIGHT),
    separator: str = ",",
    header: Sequence[str] | None = ("user", "item", "timestamp"),
    end: str = "\n",
    time: Callable[[int], object] = lambda ms: ms // 1000,
) -> str:
    """Separated text of some rows; a header of None leaves it out."""
    lines = [] if header is None else [separator.join(header)]
    return end.join([*lines, *(separator.join([str(u), str(i), str(time(ms))]) for u, i, ms in rows)]) + end


def check(case: Case, folder: Path) -> Outcome:
    """Read a case in an empty folder and judge what comes of it: `EXACT` and `REFUSED` only where they are right."""
    place, about = folder / "case", ("inputs", case.name)
    os.makedirs(place)
    given = case.write(place)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = streams.read(given, **case.options)
        except ValueError as error:
            text = str(error)
            if case.rows is not None or "\n" in text or not re.search(case.words, text):
                return Outcome(
                    *about, FAILURE, f"refused, {'rows' if case.rows else case.words!r} expected: {text[:300]}"
                )
            return Outcome(*about, REFUSED, text)
        except Exception as error:
            return Outcome(*about, FAILURE, f"{type(error).__name__}: {str(error)[:300]}")
    if case.rows is None:
        return Outcome(*about, FAILURE, f"read, a refusal with {case.words!r} expected: {_rows(found)[:4]}")
    if _rows(found) != list(case.rows):
        return Outcome(*about, FAILURE, f"read {_rows(found)[:4]}, {list(case.rows)[:4]} expected")
    told = [str(one.message) for one in caught]
    wanted = [case.words] if case.words else []
    if len(told) != len(wanted) or not all(re.search(x, y) for x, y in zip(wanted, told, strict=True)):
        return Outcome(*about, FAILURE, f"warned {told}, {wanted} expected")
    return Outcome(*about, EXACT)


def _rows(found: streams.Interactions) -> list[Row]:
    users, items = found.user_ids.gather(found.user), found.item_ids.gather(found.item)
    return list(zip(users.to_list(), items.to_list(), found.time.tolist(), strict=True))
