"""The long form of the checks on faults: every situation, counted by what comes of it.

    python -m tests.faults                                  # or: make trust
    python -m tests.faults --only damage inputs --changes 40

What has been done is kept in --out, a line for each case, so that a run that was stopped goes on; the table of counts
is written between the marks of experiments/results/trust.md.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests import conftest  # noqa: F401  The settings of tests hold here, too.
from tests.faults import cases, damage, inputs, kills, places, updates
from tests.faults.outcomes import FAILURE, Outcome, table
from tests.faults.server import Server

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "trust.md"
MARKS = ("<!-- faults -->", "<!-- end of faults -->")

SITUATIONS = ["damage", "inputs", "kills", "disks", "others", "updates", "fuzz"]

JOBS = (
    ("popularity-decayed",),
    ("uniform", "--recommender", "ials", "--table", "packed_int4"),
)
"""Methods and flags of the commands that are killed."""


class Step(NamedTuple):
    """Cases that are done one after the other."""

    name: str
    """For `--only`."""
    count: int
    """How many; a case may have several outcomes."""
    do: Callable[[int], Sequence[Outcome]]
    """do(number)."""


def _uses(root: Path) -> list[damage.Use]:
    uses = [use for name in places.CONFIGS for use in places.stopped_run(root, name)]
    uses += [places.exported_model(root, name) for name in ("popularity", "ials")]
    return [*uses, places.finished_run(root), *places.auto_run(root)]


def _damage_steps(root: Path, changes: int) -> Iterator[Step]:
    uses, work = _uses(root), root / "work" / "copy"
    for change in damage.CHANGES:

        def do(number: int, change: str = change) -> list[Outcome]:
            use = uses[number % len(uses)]
            return [damage.change_bytes(use, change, number // len(uses), work)]

        yield Step("damage", changes, do)
    yield Step("damage", len(uses), lambda number: list(damage.misplaced(uses[number], work)))
    autos = [use for use in uses if use.name.startswith("auto")]
    yield Step("damage", 2, lambda number: [damage.renamed_candidates(autos[number], work)])
    loaded = [use for use in uses if use.name.endswith("loaded")]
    names = ("config.json", "config.json:stream", "stream.json", "metrics.jsonl", "manifest.json", "choices.json")
    pairs = [(use, *name.split(":")) for use in loaded for name in names if (use.folder / name.split(":")[0]).exists()]

    def without(number: int) -> list[Outcome]:
        use, name, *nested = pairs[number]
        return list(damage.without_keys(use, name, work, tuple(nested)))

    yield Step("damage", len(pairs), without)


def _input_steps(root: Path) -> Iterator[Step]:
    corpus = inputs.corpus()

    def do(number: int) -> list[Outcome]:
        with damage.copy_of(root / "empty", root / "work" / "inputs") as folder:
            return [cases.check(corpus[number], folder)]

    (root / "empty").mkdir(exist_ok=True)
    yield Step("inputs", len(corpus), do)


def _process_steps(root: Path, server: Server, count: int) -> Iterator[Step]:
    jobs = [kills.job(server, root / "killed", *job) for job in JOBS]
    # Most cases are of the first one, since the other takes longer.
    out, marks = root / "killed" / "out", root / "killed" / "marks"

    def turn(number: int) -> kills.Job:
        return jobs[number % 12 == 11]

    def at_random(number: int) -> list[Outcome]:
        return kills.kill_at_random(turn(number), range(8 * number, 8 * number + 8), out, marks)

    def at_operation(number: int) -> list[Outcome]:
        return kills.kill_at_operation(turn(number), range(8 * number, 8 * number + 8), out)

    yield Step("kills", count // 12, at_random)
    yield Step("kills", count // 12, at_operation)
    yield Step("disks", count // 10, lambda number: [kills.full_disk(turn(number), number, out)])
    yield Step("disks", 3, lambda number: [kills.read_only(jobs[0], number, out)])
    yield Step("others", count // 25, lambda number: [kills.two_processes(jobs[0], number, out, marks)])
    yield Step("others", len(jobs), lambda number: kills.other_options(jobs[number], out))


def _update_steps(root: Path, server: Server, count: int, changes: int) -> Iterator[Step]:
    update, out = updates.updated(server, root / "updated", "popularity-decayed"), root / "updated" / "out"
    yield Step("updates", count // 5, lambda number: [updates.killed(update, number, out)])
    yield Step("updates", count // 20, lambda number: [updates.full_disk(update, number, out)])
    yield Step("updates", changes // 5, lambda number: [updates.damaged(update, number, out)])


def _fuzz_steps(seconds: int) -> Iterator[Step]:
    from tests.faults import fuzz

    targets = list(fuzz.TARGETS)
    yield Step("fuzz", len(targets), lambda number: [fuzz.in_a_process(targets[number], seconds // len(targets))])


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is not done yet; the exit code is 1 if anything has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/trust"), help="folder of what is made and done")
    parser.add_argument("--kills", type=int, default=300, help="processes that are killed, or a few more")
    parser.add_argument("--changes", type=int, default=300, help="files whose bytes are changed, in each of four ways")
    parser.add_argument("--fuzz-seconds", type=int, default=300, help="for all targets together; needs atheris")
    parser.add_argument("--only", nargs="*", default=SITUATIONS)
    flags = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    root = flags.out.absolute()
    (root / "work").mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        steps: list[Step] = []
        if "damage" in flags.only:
            steps += _damage_steps(root, flags.changes)
        if "inputs" in flags.only:
            steps += _input_steps(root)
        if {"kills", "disks", "others", "updates"} & set(flags.only):
            server = stack.enter_context(Server(root / "cache"))
            if set(flags.only) & {"kills", "disks", "others"}:
                steps += _process_steps(root, server, flags.kills)
            if "updates" in flags.only:
                steps += _update_steps(root, server, flags.kills, flags.changes)
        if "fuzz" in flags.only:
            steps += _fuzz_steps(flags.fuzz_seconds)
        outcomes = _do(root / "done.jsonl", steps, flags.only)
    print(table(outcomes))
    for outcome in outcomes:
        if outcome.kind == FAILURE:
            print(f"failure: {outcome.situation}: {outcome.case}: {outcome.detail}")
    _write(table(outcomes), arguments)
    return int(any(outcome.kind == FAILURE for outcome in outcomes))


def _do(done: Path, steps: Sequence[Step], only: Sequence[str]) -> list[Outcome]:
    """Do what is not done yet; all outcomes so far, those of earlier executions included."""
    known = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    found, keys = [Outcome(*line["outcome"]) for line in known], {line["key"] for line in known}
    positions: dict[str, int] = {}
    with done.open("a") as file:
        for step in steps:
            place = positions[step.name] = positions.get(step.name, -1) + 1
            for number in range(step.count if step.name in only else 0):
                key = f"{step.name} {place} {number}"
                if key in keys:
                    continue
                start = time.monotonic()
                outcomes = list(step.do(number))
                file.writelines(json.dumps({"key": key, "outcome": outcome}) + "\n" for outcome in outcomes)
                file.flush()
                found += outcomes
                # Where a job has fewer operations on files than there are kills, the last ones have nothing to do.
                slow = outcomes and time.monotonic() - start > 1
                if slow or any(outcome.kind == FAILURE for outcome in outcomes):
                    print(f"{key}: {outcomes[-1].kind}, {time.monotonic() - start:.0f} s", flush=True)
    return found


def _write(text: str, arguments: Sequence[str] | None) -> None:
    """Put the table between the marks of the page of results."""
    page = RESULTS.read_text()
    before, rest = page.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    given = shlex.join(sys.argv[1:] if arguments is None else arguments)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    told = f"`python -m tests.faults {given}`".replace(" `", "`")
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"
    RESULTS.write_text(f"{before}{MARKS[0]}\n{told}, commit {commit}, {machine}\n\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    sys.exit(main())
