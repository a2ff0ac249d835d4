"""Runs that two processes share: the records of one, what is told, and what becomes of one when the other is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from scall_jax.cli.commands import run_command
from scall_jax.ops.devices import MeshConfig
from scall_jax.run import processes, text_files
from tests.helpers import tiny_arguments

SMALL = ["--recommender", "ials", "--method", "frequency", "--sizes.maximum", "8", "--ials.sweeps", "2"]
GIVEN = {"half-life": 1, "users-half-life": 1, "unobserved": 0.1, "regularisation": 0.01}
"""Given, so that no program is compiled which chooses them."""
SMALL += [text for name, value in GIVEN.items() for text in (f"--ials.{name}", str(value))]
ERROR = "another process of this run has ended or cannot be reached"
FATAL = "This most likely indicates that another task died"
"""What JAX says where the other process is missed outside a program."""


_KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def _free_port():
    try:
        with socket.socket() as found:
            found.bind(("localhost", 0))
            return found.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no port can be had on loopback: {error}")


def _start(data, out, *more, count=2, of_last=(), caches=None):
    """Two processes of one run, each with one device of a CPU; the last one may have flags of its own.

    Each may have a folder of its own for compiled programs.
    """
    shared = [*tiny_arguments(data, out, *SMALL, *more), "--mesh.devices", str(count)]
    shared += ["--processes.coordinator", f"localhost:{_free_port()}", "--processes.count", str(count)]
    flags = os.environ["XLA_FLAGS"].replace("device_count=2", "device_count=1")
    command = [sys.executable, "-m", "experiments.run", *shared, "--processes.number"]
    return [
        subprocess.Popen(
            [*command, str(number), *(of_last if number == count - 1 else ())],
            env=os.environ
            | {"XLA_FLAGS": flags, "NPROC": "8"}
            | ({"JAX_COMPILATION_CACHE_DIR": str(caches[number])} | _KEEP_ALL if caches else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def _lines(out):
    return text_files.read_lines(out / "frequency" / "metrics.jsonl")


def _same(lines, others):
    for line, other in zip(lines, others, strict=True):
        assert line["allocated_parameters"] == other["allocated_parameters"]
        assert line["bytes_table"] == other["bytes_table"]
        assert line["test_users"] == other["test_users"]
        for name in ("test_recall@20", "valid_ndcg@20", "loss"):
            assert line[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The lines and sizes of the run of one process on one device."""
    out = tmp_path_factory.mktemp("alone")
    run_command(arguments=tiny_arguments(data, out, *SMALL))
    return out


def _sizes(out):
    return [np.load(path) for path in sorted((out / "frequency" / "sizes").glob("*.npz"))]


def test_two_processes_have_the_records_of_one(data, tmp_path, alone):
    pair = _start(data, tmp_path / "two")
    first, second = (process.communicate(timeout=300) for process in pair)
    assert [process.returncode for process in pair] == [0, 0], first[1][-3000:] + second[1][-3000:]
    _same(_lines(alone), _lines(tmp_path / "two"))
    for one, other in zip(_sizes(alone), _sizes(tmp_path / "two"), strict=True):
        np.testing.assert_array_equal(one["users"], other["users"])
        np.testing.assert_array_equal(one["items"], other["items"])
    # The first process speaks, and writes.
    assert "| frequency |" in first[0] and "frequency" not in second[0] + second[1]
    summary = json.loads((tmp_path / "two" / "frequency" / "summary.json").read_text())
    assert summary["segments"] == 4 and (tmp_path / "two" / "table.md").exists()


@pytest.mark.slow
def test_a_process_that_finds_its_programs_compiled_meets_one_that_does_not(data, tmp_path, alone):
    """Both begin exchanges in the order of the program, however each of them came by it."""
    caches = tmp_path / "first", tmp_path / "second"
    for number in range(2):
        out = tmp_path / str(number)
        pair = _start(data, out, caches=caches)
        ends = [process.communicate(timeout=200) for process in pair]
        assert [process.returncode for process in pair] == [0, 0], ends[0][1][-3000:] + ends[1][1][-3000:]
        _same(_lines(alone), _lines(out))
        # JAX has the first process alone keep programs.
        assert len(list(caches[0].glob("*-cache"))) > 10 and not list(caches[1].glob("*-cache"))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_process_is_killed_the_other_ends_and_the_run_goes_on(data, tmp_path, alone, killed):
    out = tmp_path / "two"
    pair = _start(data, out)
    metrics, deadline = out / "frequency" / "metrics.jsonl", time.time() + 200
    while time.time() < deadline and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.01)
    pair[killed].send_signal(signal.SIGKILL)
    since = time.time()
    _, errors = pair[1 - killed].communicate(timeout=100)
    pair[killed].communicate(timeout=20)
    assert time.time() - since < 60
    assert pair[1 - killed].returncode != 0 and (ERROR in errors or FATAL in errors), errors[-3000:]
    assert 0 < len(_lines(out)) < 4
    if killed:
        run_command(arguments=tiny_arguments(data, out, *SMALL, "--resume"))
    else:
        for process in (again := _start(data, out, "--resume")):
            process.communicate(timeout=300)
        assert [process.returncode for process in again] == [0, 0]
    _same(_lines(alone), _lines(out))


@pytest.mark.slow
def test_two_processes_refuse_as_one(data, tmp_path):
    out = tmp_path / "run"
    (out / "frequency").mkdir(parents=True)
    (out / "frequency" / "config.json").write_text("{}")
    for place, more, of_last, message in (
        (tmp_path / "other", ["--cut.max-segments", "0"], (), "max"),
        # What the first process refuses the second one refuses in its words.
        (out, [], (), "holds an unfinished run: --resume it"),
        # Numbers that are made of different data would pass for those of one run.
        (out, [], ("--ials.sweeps", "3"), "the processes differ in their flags"),
    ):
        for process in _start(data, place, *more, of_last=of_last):
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 2 and message in errors, errors[-2000:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"count": 2, "number": 2, "coordinator": "localhost:1"},
            r"number=2 of count=2: numbers are from 0 to count - 1",
        ),
        ({"count": 0}, "at least one process"),
        ({"count": 2}, r"coordinator='': give host:port of the first process"),
        ({"coordinator": "localhost:1"}, r"with count=1: give the number of processes, or auto"),
    ],
)
def test_processes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        processes.ProcessesConfig(**options)


def test_a_single_process_tells_itself_and_need_not_meet_anybody():
    processes.join(processes.ALONE)
    assert processes.is_first() and not processes.several()
    assert processes.told_by_first(lambda: [1, None]) == [1, None]
    with pytest.raises(ValueError, match="no"):
        processes.told_by_first(lambda: (_ for _ in ()).throw(ValueError("no")))
    assert MeshConfig().devices == 1


def test_experiments_refuse_several_processes(capsys):
    from experiments import compare
    from scall_jax.cli.cli import cli

    flags = ["--processes.count", "2", "--processes.coordinator", "localhost:9999"]
    with pytest.raises(SystemExit):
        cli(compare.Compare, compare.main, arguments=flags)
    assert "--processes.*: only `scall-jax run` can be several processes" in capsys.readouterr().err
