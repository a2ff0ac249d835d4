"""What may come of a fault: the right answer, or a refusal in one line. Anything else is a failure."""

import collections
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
import polars as pl

from scall_jax.run import config_file, records, text_files
from scall_jax.run import folder as run_folder

EXACT = "exact"
"""The answer is bit for bit the one without the fault."""

REFUSED = "refused"
"""A message of one line that names the file, and where it is a process an exit code that is not zero."""

FAILURE = "failure"
"""Anything else: another answer, a traceback, a message without a name, a process that hangs."""


class Outcome(NamedTuple):
    """What came of one case."""

    situation: str
    """Row of the table."""
    case: str
    """Which one: with the situation it says what was done."""
    kind: str
    """`EXACT`, `REFUSED` or `FAILURE`."""
    detail: str = ""
    """The message, or how the answer differs."""


def observe(situation: str, case: str, answer: Callable[[], Any], right: Any, names: Sequence[str] = ()) -> Outcome:
    """Do something in a damaged place, and judge what comes of it.

    Args:
      situation, case: of the outcome.
      answer: does it; a ValueError or OSError of one line is what a command turns into a message and exit code 2.
      right: the answer without the fault, compared by ==.
      names: a refusal must have one of these in its message; none: any message.
    """
    try:
        found = answer()
    except (ValueError, OSError) as error:
        text = str(error)
        if "\n" in text.strip():
            return Outcome(situation, case, FAILURE, f"several lines: {text[:200]!r}")
        if names and not any(name in text for name in names):
            return Outcome(situation, case, FAILURE, f"{type(error).__name__} names none of {list(names)}: {text}")
        return Outcome(situation, case, REFUSED, text)
    except Exception as error:
        return Outcome(situation, case, FAILURE, f"{type(error).__name__}: {str(error)[:200]}")
    return Outcome(situation, case, EXACT if found == right else FAILURE, "" if found == right else "another answer")


_LIBRARY = re.compile(r"Traceback \(most recent call last\):\n(?:  .*\n)+RuntimeError: Event loop is closed\n")
"""What a thread of TensorStore may print when a write of it fails after Orbax has raised the error of another one."""


def judge(situation: str, case: str, code: int, error: str, names: Sequence[str]) -> Outcome | None:
    """Judge the end of a process; None where it has finished its work, so that its result is to be compared.

    Args:
      situation, case: of the outcome.
      code: its exit code, negative for a signal.
      error: what it wrote to standard error.
      names: a refusal must have one of these in its message.
    """
    if code == 0:
        return None
    error = _LIBRARY.sub("", error)
    *_, last = error.strip().splitlines() or [""]
    if "Traceback" in error or code != 2 or not last.startswith("error: "):
        return Outcome(situation, case, FAILURE, f"exit code {code}: {error.strip()[-300:]}")
    if not any(name in last for name in names):
        return Outcome(situation, case, FAILURE, f"names none of {list(names)}: {last}")
    return Outcome(situation, case, REFUSED, last)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row for each situation, with the number of outcomes of each kind."""
    rows = collections.defaultdict(collections.Counter)
    for outcome in outcomes:
        rows[outcome.situation][outcome.kind] += 1
    rows["all"] = collections.Counter(outcome.kind for outcome in outcomes)
    kinds = (EXACT, REFUSED, FAILURE)
    lines = ["| situation | cases | exact | refused | failures |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, counts in rows.items():
        lines.append(f"| {name} | {counts.total()} | " + " | ".join(str(counts[kind]) for kind in kinds) + " |")
    return "\n".join(lines)


_TIMES = ("seconds", "peak_rss", "disk_bytes")
"""Parts of the names of what differs from one execution to the next; `records.VOLATILE` lists those of lines."""


def contents(folder: Path) -> dict[str, Any]:
    """Everything that a run has left, without what differs from one execution to the next, as a nested dictionary."""
    lines = text_files.read_lines(folder / "metrics.jsonl")
    found: dict[str, Any] = {
        "lines": [{k: v for k, v in line.items() if k not in records.VOLATILE} for line in lines],
        "config": json.loads((folder / config_file.CONFIG).read_text()),
    }
    for path in sorted(folder.glob("*/segment-*.npz")):
        with np.load(path) as stored:
            found[path.relative_to(folder).as_posix()] = {name: _raw(stored[name]) for name in stored.files}
    for path in sorted(folder.glob("checkpoints/segment-*/*")):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(path.absolute())
        found[path.relative_to(folder).as_posix()] = {name: _raw(np.asarray(tree[name])) for name in tree}
    for path in sorted(folder.glob("*.parquet")):
        found[path.name] = pl.read_parquet(path).to_dict(as_series=False)
    for name in ("stream.json", run_folder.SUMMARY, "choices.json"):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text())
            found[name] = {k: v for k, v in content.items() if not any(part in k for part in _TIMES)}
    for part in sorted(folder.glob("candidates/*")):
        found[part.name] = contents(part)
    return found


def _raw(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


def difference(one: Any, other: Any, at: str = "") -> str | None:
    """Where two nested dictionaries differ first; None where they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if key not in one or key not in other:
                return f"{at}/{key} is in one of them"
            found = difference(one[key], other[key], f"{at}/{key}")
            if found:
                return found
        return None
    return None if one == other else at
