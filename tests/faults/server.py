"""A process that has imported everything and forks: each child runs one command and meets its fault there.

Importing takes seconds and JAX has no threads before its first computation, so that a child that is forked before that
costs little. A request and its reply are lines of JSON on standard input and output:

    python -m tests.faults.server
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")


class Faults:
    """What a child meets at its operations on files below a folder, which an audit hook of the interpreter counts."""

    def __init__(self, below: str, kill_at: int | None = None, full_at: int | None = None):
        """Start without operations.

        Args:
          below: the folder.
          kill_at: number of the operation, from 1, before which the process is killed; None: never.
          full_at: number of the operation from which on every file that is opened for writing and every new folder
            meets a full disk; None: never.
        """
        self.below, self.kill_at, self.full_at, self.count = below, kill_at, full_at, 0

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """See `sys.addaudithook`."""
        opened = event == "open" and isinstance(args[2], int) and args[2] & _WRITING
        if not (opened or event in _CHANGES) or not str(args[0]).startswith(self.below):
            return
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.full_at is not None and self.count >= self.full_at and (opened or event == "os.mkdir"):
            raise OSError(28, "No space left on device", args[0])


def _child(request: dict[str, Any], error: str) -> None:
    """Run a command in a forked child; never returns."""
    code = 1
    try:
        descriptor, nowhere = os.open(error, os.O_WRONLY | os.O_TRUNC), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(descriptor, 2)
        faults = Faults(request["below"], request.get("kill_at"), request.get("full_at"))
        if request.get("largest_file"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], resource.RLIM_INFINITY))
        if request.get("user"):
            os.setgid(request["user"])
            os.setuid(request["user"])
        sys.addaudithook(faults.hook)
        code = _run(request)
    finally:
        os.write(2, f"\noperations {faults.count}".encode()) if request.get("count") else None
        os._exit(code)


def _run(request: dict[str, Any]) -> int:
    """The exit code that the interpreter would end with."""
    import traceback

    from scall_jax.cli import main

    if request.get("marks"):
        _mark_phases(request["marks"])
    try:
        main.main(request["arguments"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _mark_phases(path: str) -> None:
    """Let a run write what begins to a file, a line each: a phase, or its end after the last segment."""
    from scall_jax.cli import commands, progress

    def marked(doing: str) -> None:
        with open(path, "a") as file:
            file.write(doing + "\n")

    shown, finish = progress.Progress.phase, commands.finish_run

    def phase(self: Any, doing: str, name: str) -> None:
        marked(doing)
        shown(self, doing, name)

    def finish_run(*arguments: Any) -> dict[str, Any]:
        marked("ending")
        return finish(*arguments)

    progress.Progress.phase, commands.finish_run = phase, finish_run


def _serve() -> None:

    import scall_jax.analysis.run_report
    import scall_jax.cli.commands
    import scall_jax.cli.serving_commands
    import scall_jax.cli.update_command  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(request, request["error"])
        print(json.dumps(pid), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


class Server:
    """The client of such a process; a context manager."""

    def __init__(self, cache: Path):
        """Start the process.

        Args:
          cache: folder of compiled programs, which children share.
        """
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "MPLBACKEND": "Agg",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.faults.server"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._error = Path(tempfile.mkstemp()[1])
        self._error.chmod(0o666)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._error.unlink()

    def start(self, arguments: Sequence[str], below: Path, **faults: Any) -> int:
        """Start a command in a child; `end` must follow.

        Args:
          arguments: of `scall-jax`.
          below: the folder whose operations are counted.
          **faults: `kill_at`, `full_at` (see `Faults`), `largest_file` (bytes), `user` (number of the user that the
            child becomes), `marks` (a file that gets a line for each phase), `count` (say how many operations).

        Returns:
          Its number.
        """
        request = {"arguments": list(arguments), "below": str(below), "error": str(self._error), **faults}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Wait for the child: its exit code, negative for a signal, and what it wrote to standard error."""
        return int(self._process.stdout.readline()), self._error.read_text()

    def run(self, arguments: Sequence[str], below: Path, **faults: Any) -> tuple[int, str]:
        """`start` and `end`."""
        self.start(arguments, below, **faults)
        return self.end()


def wait_for(path: Path, texts: Sequence[str], most: float = 60) -> bool:
    """Wait until a file has one of some texts; False after so many seconds."""
    until = time.monotonic() + most
    while not any(text in path.read_text() for text in texts):
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


if __name__ == "__main__":
    _serve()
