"""Ctrl-C and SIGTERM end a command with one line and its exit code, and what is left continues to the same records."""

import collections
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scall_jax.cli.commands import run_command
from scall_jax.run import folder as run_folder
from scall_jax.run import manifest, text_files
from tests.helpers import comparable, tiny_arguments

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

CHILD = """
import sys
from scall_jax.cli.main import main
from scall_jax.cli.progress import Progress
shown, marks = Progress.phase, sys.argv.pop(1)
def phase(self, doing, name):
    with open(marks, "a") as file:
        file.write(doing + "\\n")
    shown(self, doing, name)
Progress.phase = phase
print("reading", flush=True, file=open(marks, "w"))
main()
"""
"""The command, with a file beside it that says what it is doing."""


DELAYS = {"reading": 0.2, "compiling": 0.0, "running": 0.0, "writing": 0.0}
"""Seconds to wait after a phase is marked; the mark of reading is written before the command takes signals."""


def stopped(arguments, marks: Path, phase: str, delay: float, number: signal.Signals) -> tuple[int, str, str]:
    """Exit code, standard error and last phase of a command that gets a signal some time after a phase began."""
    marks.write_text("")
    # Programs are compiled each time, so that there is a time of compiling.
    environment = os.environ | {"XDG_CACHE_HOME": str(marks.parent / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(marks), "run", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)
    while process.poll() is None and phase not in marks.read_text():
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    error = process.communicate()[1]
    return process.returncode, error, marks.read_text().split()[-1]


def check_stop(result: tuple[int, str, str], number: signal.Signals, run: Path) -> str:
    """The phase of the signal; asserts that one line says how far the run came."""
    code, error, phase = result
    assert code == CODES[number], error
    assert "Traceback" not in error and "Fatal" not in error
    *before, last = error.splitlines()
    assert all(": " in line for line in before) and not any(line.startswith("stopped") for line in before)
    done = run_folder.finished_segments(run)
    if phase == "reading":
        assert last == "stopped"
    elif done == 0:
        assert last == "stopped before the first segment was finished; continue with --resume"
    else:
        assert last == f"stopped after segment {done - 1}; continue with --resume"
    return phase


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nobody stopped: its folder and its flags."""
    path = tmp_path_factory.mktemp("whole")
    more = ["--method", "popularity-decayed", "--cut.segments", "6"]
    run_command(arguments=tiny_arguments(data, path, *more))
    return path / "popularity-decayed", more


@pytest.mark.parametrize(
    "stops",
    [
        [("compiling", signal.SIGINT), ("writing", signal.SIGTERM)],
        pytest.param([("reading", signal.SIGTERM), ("running", signal.SIGINT)], marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_with_one_line_and_the_run_goes_on_from_there(data, whole, tmp_path, stops):
    arguments = tiny_arguments(data, tmp_path / "run", *whole[1], "--resume")
    run = tmp_path / "run" / "popularity-decayed"
    for phase, number in stops:
        found = check_stop(stopped(arguments, tmp_path / "marks", phase, DELAYS[phase], number), number, run)
        assert found == phase or phase in ("running", "writing")
    assert run_folder.finished_segments(run) < 6
    run_command(arguments=arguments)
    lines = [comparable(text_files.read_lines(x / "metrics.jsonl")) for x in (whole[0], run)]
    assert lines[0] == lines[1]
    manifest.check(run)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_after_the_work_changes_nothing(number):
    ending = f"import atexit, os; atexit.register(os.kill, os.getpid(), {int(number)})"
    command = f"{ending}\nfrom scall_jax.cli.main import main\nmain()"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", command, "methods"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "popularity-decayed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", ["popularity-decayed", "fixed"])
def test_a_hundred_signals_at_random_moments(data, tmp_path, method):
    """Each folder is stopped and continued until its run is finished; then the next one begins."""
    draw, counts = random.Random(0), collections.Counter()
    more = ["--method", method, "--cut.segments", "12"]
    run_command(arguments=tiny_arguments(data, tmp_path / "whole", *more))
    wanted = comparable(text_files.read_lines(tmp_path / "whole" / method / "metrics.jsonl"))
    finished = 0
    while counts.total() < 50:
        out = tmp_path / f"run{finished}"
        arguments = tiny_arguments(data, out, *more, "--resume")
        number = draw.choice([*CODES])
        phase = draw.choice(["reading", "compiling", "running", "writing"])
        most = {"reading": 2.0, "compiling": 4.0, "running": 0.6, "writing": 0.02}[phase]
        delay = draw.uniform(DELAYS[phase], most)
        result = stopped(arguments, tmp_path / "marks", phase, delay, number)
        if result[0] != 0:
            counts[check_stop(result, number, out / method)] += 1
            continue
        assert comparable(text_files.read_lines(out / method / "metrics.jsonl")) == wanted
        finished += 1
    print(dict(counts), f"{finished} runs finished")
    # Segments of so few rows run in a moment, which a signal may not meet.
    assert {*counts, "running"} == {"reading", "compiling", "running", "writing"}
    run_command(arguments=arguments)
    assert comparable(text_files.read_lines(out / method / "metrics.jsonl")) == wanted
