"""Updates of a finished run that are killed, meet a full disk or find the folder damaged."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scall_jax.run import lock, manifest
from tests.faults import damage, places
from tests.faults.outcomes import EXACT, FAILURE, Outcome, contents, difference, judge
from tests.faults.server import Server


class Updated(NamedTuple):
    """A finished run, rows for it, and what they make of it where nothing comes in between."""

    server: Server
    """Runs the command."""
    folder: Path
    """The finished run; copies of it are updated."""
    data: Path
    """Its rows and those that come later."""
    whole: dict[str, Any]
    """`contents` of the folder after an update."""
    operations: int
    """On files of the folder."""
    seconds: float
    """That an update takes."""

    def arguments(self, folder: Path) -> list[str]:
        """Flags of the command that updates a folder."""
        return ["update", str(folder), "--data", str(self.data), "--no-compilation-cache"]


def updated(server: Server, root: Path, method: str, *flags: str) -> Updated:
    """A run over three quarters of a file, and an update by all of it, which completes segments."""
    root.mkdir(exist_ok=True)
    data, first = root / "rows.csv", root / "first.csv"
    lines = places.write_rows(data).read_text().splitlines()
    head, rows = lines[0], sorted(lines[1:], key=lambda line: int(line.rsplit(",", 1)[1]))
    first.write_text("\n".join([head, *rows[: 3 * len(rows) // 4]]) + "\n")
    shutil.rmtree(root / "runs", ignore_errors=True)
    start = [
        "--no-report",
        "--no-compilation-cache",
        "--fit.steps",
        "20",
        "--fit.eval-every",
        "10",
        "--fit.batch",
        "64",
    ]
    start += ["--data", str(first), "--cut.rows", "600", "--sizes.maximum", "32", "--out", str(root / "runs")]
    _succeed(server.run(["run", "--method", method, *start, *flags], root / "runs"))
    found = Updated(server, root / "runs" / method, data, {}, 0, 0.0)
    out = root / "undisturbed"
    shutil.rmtree(out, ignore_errors=True)
    for _ in range(2):  # The first one compiles.
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(found.folder, out)
        begun = time.monotonic()
        said = _succeed(server.run(found.arguments(out), out, count=True))
    operations = int(said.rsplit(" ", 1)[1])
    found = found._replace(whole=contents(out), operations=operations, seconds=time.monotonic() - begun)
    if len(found.whole["lines"]) == len(contents(found.folder)["lines"]):
        raise RuntimeError("the rows complete no segment")
    return found


def _succeed(ended: tuple[int, str]) -> str:
    if ended[0] != 0:
        raise RuntimeError(f"exit code {ended[0]}: {ended[1]}")
    return ended[1]


def killed(update: Updated, number: int, out: Path) -> Outcome:
    """Kill an update before an operation on files, or at a moment; the next update must end as if it were the first.

    Args:
      update: the run and its rows.
      number: of the case; even ones are killed at operations, odd ones at moments.
      out: folder for the copy.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(update.folder, out)
    if number % 2 == 0:
        at = 1 + 37 * (number // 2) % update.operations
        case = f"{number}: operation {at} of {update.operations}"
        code, error = update.server.run(update.arguments(out), out, kill_at=at)
    else:
        delay = random.Random(number).uniform(0, update.seconds)
        case = f"{number}: {delay:.2f} of {update.seconds:.2f} s"
        process = update.server.start(update.arguments(out), out)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code, error = update.server.end()
    if code not in (0, -signal.SIGKILL):
        return Outcome("kill of an update", case, FAILURE, f"{code}: {error.strip()[-300:]}")
    return _goes_on(update, "kill of an update", case, out)


def _goes_on(update: Updated, situation: str, case: str, out: Path) -> Outcome:
    """Update a folder without a fault, and compare what it leaves."""
    code, error = update.server.run(update.arguments(out), out)
    if code != 0:
        return Outcome(situation, case, FAILURE, f"the next update ends with {code}: {error.strip()[-300:]}")
    try:
        manifest.check(out)
    except ValueError as error:
        return Outcome(situation, case, FAILURE, f"updated, and {error}")
    found = difference(contents(out), update.whole)
    stray = sorted({*map(str, damage.files(out))} - {*manifest.read(out).files, manifest.NAME, lock.NAME})
    if found or stray:
        return Outcome(situation, case, FAILURE, f"{found} differs" if found else f"nobody lists {stray}")
    return Outcome(situation, case, EXACT)


def full_disk(update: Updated, number: int, out: Path) -> Outcome:
    """Let an update meet a full disk at an operation on files."""
    at = 1 + 37 * number % update.operations
    situation, case = "full disk of an update", f"{number}: operation {at} of {update.operations}"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(update.folder, out)
    code, error = update.server.run(update.arguments(out), out, full_at=at)
    ended = judge(situation, case, code, error, [str(out)])
    if ended is not None and ended.kind == FAILURE:
        return ended
    after = _goes_on(update, situation, case, out)
    return after if ended is None or after.kind == FAILURE else ended


def damaged(update: Updated, number: int, out: Path) -> Outcome:
    """Change bytes of a file of the folder, whose kinds take turns, and update it: it must be refused by name.

    Args:
      update: the run and its rows.
      number: of the case; determines the file and the change.
      out: folder for the copy.
    """
    change = [*damage.CHANGES][number % len(damage.CHANGES)]
    use = damage.Use("update", update.folder, lambda folder: None)
    path, data = damage.changed_file(use, change, number // len(damage.CHANGES), np.random.default_rng(number))
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(update.folder, out)
    (out / path).write_bytes(data)
    situation, case = f"{change}: update", f"{number} {path}"
    code, error = update.server.run(update.arguments(out), out)
    ended = judge(situation, case, code, error, [path.name])
    if ended is not None:
        return ended
    found = difference(contents(out), update.whole)
    return Outcome(situation, case, FAILURE if found else EXACT, f"{found} differs" if found else "")
