"""Processes that are killed, meet a full disk, may not write, or come second."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scall_jax.run import folder as run_folder
from scall_jax.run import manifest
from tests.faults import places
from tests.faults.outcomes import EXACT, FAILURE, REFUSED, Outcome, contents, difference, judge
from tests.faults.server import Server, wait_for

NOBODY = 65534
"""Number of a user without rights."""


class Job(NamedTuple):
    """A command, and what it leaves where nothing comes in between."""

    server: Server
    """Runs it."""
    data: Path
    """File of the stream."""
    flags: tuple[str, ...]
    """Of the command, apart from data and output."""
    whole: dict[str, Any]
    """`contents` of its folder."""
    operations: int
    """On files of its folder."""
    method: str
    """Name of the method, which is that of the folder, too."""

    def arguments(self, out: Path, *more: str) -> list[str]:
        """Flags of the command that writes to a folder."""
        return ["run", *places.arguments(self.data, out, "--method", self.method, *self.flags, *more)]


def job(server: Server, root: Path, method: str, *flags: str) -> Job:
    """A command, run once without faults."""
    out, data = root / "undisturbed" / method, root / "rows.csv"
    root.mkdir(exist_ok=True)
    if not data.exists():
        places.write_rows(data)
    first = Job(server, data, flags, {}, 0, method)
    shutil.rmtree(out, ignore_errors=True)
    code, error = server.run(first.arguments(out), out, count=True)
    if code != 0:
        raise RuntimeError(f"exit code {code}: {error}")
    return first._replace(whole=contents(out / method), operations=int(error.rsplit(" ", 1)[1]))


def _finished(job: Job, situation: str, case: str, out: Path) -> Outcome:
    """Compare a finished run with the undisturbed one."""
    try:
        manifest.check(out / job.method)
    except ValueError as error:
        return Outcome(situation, case, FAILURE, f"finished, and {error}")
    found = difference(contents(out / job.method), job.whole)
    shutil.rmtree(out)
    return Outcome(situation, case, FAILURE if found else EXACT, f"{found} differs" if found else "")


def _goes_on(job: Job, situation: str, case: str, out: Path) -> Outcome:
    """Continue a run without a fault and compare what it leaves."""
    code, error = job.server.run(job.arguments(out, "--resume"), out)
    if code != 0:
        return Outcome(situation, case, FAILURE, f"--resume ends with {code}: {error.strip()[-300:]}")
    return _finished(job, situation, case, out)


def kill_at_operation(job: Job, numbers: Sequence[int], out: Path) -> list[Outcome]:
    """Kill a run before one of its operations on files, then the one that goes on, and so forth; let the last go on.

    Args:
      job: the command.
      numbers: of the cases; each determines the operation, counted from where the process began.
      out: folder of the run.

    Returns:
      An outcome for each kill, all of them that of the run that they hit.
    """
    cases, situation, before = [], "kill at a file operation", 0
    shutil.rmtree(out, ignore_errors=True)
    for number in numbers:
        # A step that has no factor in common with the number of operations reaches all of them.
        at = 1 + 37 * number % job.operations
        cases.append(f"{job.method} {number}: operation {at} of {job.operations}, after {before} segments")
        code, error = job.server.run(job.arguments(out, "--resume"), out, kill_at=at)
        done = run_folder.finished_segments(out / job.method)
        if code not in (0, -signal.SIGKILL) or done < before:
            return [Outcome(situation, cases[-1], FAILURE, f"{code}, {done} segments: {error.strip()[-300:]}")]
        before = done
        if code == 0:
            # A run that goes on has fewer operations than a whole one.
            cases.pop()
            break
    end = _goes_on(job, situation, "", out)
    return [end._replace(case=case) for case in cases]


_DELAYS = {"reading": 0.8, "compiling": 1.5, "running": 0.2, "writing": 0.03, "ending": 0.4}
"""Most seconds after the beginning of a phase; `ending` begins when all segments are written."""


def kill_at_random(job: Job, numbers: Sequence[int], out: Path, marks: Path) -> list[Outcome]:
    """Kill a run again and again, each time some time after a phase has begun, and then let it go on.

    A run that was finished before its kill is compared and started anew.

    Args:
      job: the command.
      numbers: of the cases; each determines phase, which take turns, and delay.
      out: folder of the run.
      marks: a file for the names of phases.

    Returns:
      An outcome for each kill, all of them that of the run that they hit.
    """
    outcomes: list[Outcome] = []
    cases, situation, before = [], "kill at a random moment", 0
    shutil.rmtree(out, ignore_errors=True)
    for number in numbers:
        draw = random.Random(number)
        phase = [*_DELAYS][number % len(_DELAYS)]
        delay = draw.uniform(0, _DELAYS[phase])
        code, error = _killed(job, phase, delay, out, marks)
        done = run_folder.finished_segments(out / job.method)
        last = (marks.read_text().split() or ["reading"])[-1]
        case = f"{job.method} {number}: {last}, {delay:.3f} s after {phase}, {done} segments"
        if code not in (0, -signal.SIGKILL):
            return [*outcomes, Outcome(situation, case, FAILURE, f"{code}: {error.strip()[-300:]}")]
        if done < before:
            return [*outcomes, Outcome(situation, case, FAILURE, f"{before} segments were finished before")]
        before = done
        if code == 0:
            end = _finished(job, situation, "", out)
            outcomes += [end._replace(case=case) for case in cases]
            cases, before = [], 0
        else:
            cases.append(case)
    end = _goes_on(job, situation, "", out)
    return outcomes + [end._replace(case=case) for case in cases]


def _killed(job: Job, phase: str, delay: float, out: Path, marks: Path) -> tuple[int, str]:
    """Run a command and kill it some seconds after a phase has begun: its exit code, and what it wrote."""
    marks.write_text("reading\n")
    pid = job.server.start(job.arguments(out, "--resume"), out, marks=str(marks))
    # A run that goes on may be past this phase; it is then killed in its end.
    wait_for(marks, (phase, "ending"), 300)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return job.server.end()


def two_processes(job: Job, number: int, out: Path, marks: Path) -> Outcome:
    """Start a command in the folder of one that is running; the first one must finish as if it were alone."""
    situation, draw = "two processes", random.Random(number)
    phase = draw.choice(["compiling", "running", "writing"])
    how = draw.choice(["--resume", "--overwrite"])
    marks.write_text("")
    # The second process imports everything before the first one starts, which else were done by then.
    with Server(Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", out.parent / "cache"))) as other:
        other.run(["-h"], out)
        job.server.start(job.arguments(out, "--resume"), out, marks=str(marks))
        wait_for(marks, (phase,), 300)
        time.sleep(draw.uniform(0, _DELAYS[phase]) / 2)
        ends = other.run(job.arguments(out, how), out)
        first = job.server.end()
    case = f"{number}: {how} {phase}"
    if first[0] != 0:
        return Outcome(situation, case, FAILURE, f"the first process: {first[1].strip()[-300:]}")
    second = judge(situation, case, *ends, ["is being written by"])
    whole = _finished(job, situation, case, out)
    # Where the first process was done by then, the second one finds a finished run.
    return whole if second is None or whole.kind != EXACT else second


def full_disk(job: Job, number: int, out: Path) -> Outcome:
    """Let a run meet a full disk: one of its own, or at an operation, or a bound on the size of files."""
    draw = random.Random(number)
    how = ("mount", "operation", "largest file")[number % 3]
    if how == "mount":
        return _small_disk(job, draw.randrange(4, 400), number, out)
    fault = {"full_at": 1 + draw.randrange(job.operations)}
    if how == "largest file":
        fault = {"largest_file": draw.choice([600, 1000, 2000, 5000])}
    case, situation = f"{job.method} {number}: {fault}", f"full disk ({how})"
    code, error = job.server.run(job.arguments(out, "--resume"), out, **fault)
    ended = judge(situation, case, code, error, [str(out)])
    if ended is not None and ended.kind == FAILURE:
        shutil.rmtree(out, ignore_errors=True)
        return ended
    after = _goes_on(job, situation, case, out)
    return after if ended is None or after.kind == FAILURE else ended


def _small_disk(job: Job, kilobytes: int, number: int, out: Path) -> Outcome:
    """A run on a file system of its own that is too small, which then grows."""
    case, situation = f"{job.method} {number}: {kilobytes} kB", "full disk (mount)"
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", out], check=True)
    try:
        inner = out / "runs"
        code, error = job.server.run(job.arguments(inner, "--resume"), inner)
        ended = judge(situation, case, code, error, [str(inner)])
        if ended is not None and ended.kind == FAILURE:
            return ended
        subprocess.run(["mount", "-o", "remount,size=50m", out], check=True)
        after = _goes_on(job, situation, case, inner)
        return after if ended is None or after.kind == FAILURE else ended
    finally:
        subprocess.run(["umount", out], check=True)


def read_only(job: Job, number: int, out: Path) -> Outcome:
    """A run in a folder that its user may not write to: one that is not there yet, or an unfinished or finished one."""
    state = ("new", "unfinished", "finished")[number % 3]
    situation, case = "read-only folder", f"{job.method} {state}"
    out.mkdir(parents=True, exist_ok=True)
    if state != "new":
        at = {} if state == "finished" else {"kill_at": 2 * job.operations // 3}
        job.server.run(job.arguments(out, "--resume"), out, **at)
    code, error = job.server.run(job.arguments(out, "--resume"), out, user=NOBODY)
    ended = judge(situation, case, code, error, [str(out)])
    after = _goes_on(job, situation, case, out)
    if after.kind == FAILURE:
        return after
    return ended or Outcome(situation, case, FAILURE, "the folder was written to")


def other_options(job: Job, out: Path) -> list[Outcome]:
    """Continue an unfinished run with another method's budget, seed, options or data."""
    from tests.helpers import tiny_arguments

    other = out.parent / "other.csv"
    text = job.data.read_text().splitlines()
    found = []
    for name, more, lines in (
        ("budget", ["--budget.mean-size", "3"], text),
        ("seed", ["--seed", "1"], text),
        ("steps", ["--fit.steps", "30"], text),
        ("cut", ["--cut.segments", "3"], text),
        ("replay", ["--cut.replay", "0"], text),
        ("a row less", [], text[:-1]),
        ("another id", [], [*text[:-1], text[-1].replace("u", "w")]),
        ("another time", [], [*text[:-1], text[-1] + "0"]),
    ):
        job.server.run(job.arguments(out, "--resume"), out, kill_at=2 * job.operations // 3)
        other.write_text("\n".join(lines) + "\n")
        given = tiny_arguments(other, out, "--method", job.method, "--no-compilation-cache", "--resume", *more)
        code, error = job.server.run(["run", *given], out)
        ended = judge("other options or data", name, code, error, ["holds another run", "time", "test users"])
        after = _goes_on(job, "other options or data", name, out)
        found.append(after if after.kind == FAILURE else ended or after._replace(kind=FAILURE, detail="was believed"))
        assert found[-1].kind in (EXACT, REFUSED, FAILURE)
    return found
