"""A command line made of a dataclass of flags and a job."""

import contextlib
import difflib
import io
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from scall_jax.cli import help_page
from scall_jax.cli.stopping import stop_on_signals
from scall_jax.run import process_memory, processes
from scall_jax.streams import DataWarning

F = TypeVar("F")

Positional = tyro.conf.Positional
"""Annotation of a field of flags that is given without a name."""


def cli(
    flags: type[F],
    job: Callable[[F], object],
    description: str | None = None,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> None:
    """Parse flags and do a job; bad input and files that cannot be read end with a message and exit code 2.

    Ctrl-C and SIGTERM end the process with a line and exit code 130 or 143 (`stopping`). Output goes out line by line.

    `-h` and `--help` print the flags that `flags.SHOWN` lists, where it has this attribute, and `--help-all` all flags.

    Args:
      flags: dataclass of the flags, nested dataclasses included.
      job: called with the flags.
      description: shown by `--help`, in general the docstring of the experiment's module.
      arguments: without the program's name; None for those of the process.
      program: how the process was started, for help; None for `python -m MODULE`.

    Raises:
      SystemExit: with code 2 for bad input, and with code 0 after help.
    """
    process_memory.limit_heap()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    last = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program = program or _program()
    if hasattr(flags, "SHOWN") and not {"-h", "--help"}.isdisjoint(arguments):
        print(help_page.page(flags, program or "", description or ""))
        raise SystemExit(0)
    arguments = ["--help" if x == "--help-all" else x for x in arguments]
    try:
        _check_names(flags, arguments)
        with _plain_warnings(), stop_on_signals(lambda: "stopped", last=last):
            job(tyro.cli(flags, args=arguments, description=description, prog=program))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            if processes.several():
                processes.leave(error)
            raise
        way = _less_memory(flags)
        print(f"error: {str(error).splitlines()[0]}: {way}", file=sys.stderr)
        raise SystemExit(2) from None


def _less_memory(flags: type) -> str:
    """What to do where the memory of a device does not suffice, by the flags that a command has."""
    known = {flag.name for flag in help_page.all_flags(flags)}
    ways = [f"lower --{name}" for name in ("sizes.maximum", "fit.batch") if name in known]
    return " or ".join(ways) or "the model is too large for this device: use one with more memory"


def _check_names(flags: type, arguments: Sequence[str]) -> None:
    """Refuse an unknown flag, with the nearest one that there is."""
    found = [(flag.name, flag.value) for flag in help_page.all_flags(flags)]
    known = ["help", *(name for name, _ in found), *(_negated(name) for name, value in found if not value)]
    for argument in arguments:
        name = argument.removeprefix("--").split("=", 1)[0].replace("_", "-")
        if re.match("--[a-z]", argument) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean --{near[0]}?" if near else "--help-all shows all flags"
            raise ValueError(f"unknown flag {argument.split('=', 1)[0]}: {hint}")


def _negated(name: str) -> str:
    """The flag that turns a switch off: `no-` stands before the last part of its name."""
    *groups, last = name.split(".")
    return ".".join([*groups, f"no-{last}"])


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Within this context, warnings about the data are shown without the place in the code, each text once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", DataWarning)
        show = warnings.showwarning

        def shown(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if issubclass(category, DataWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                show(message, category, *place, **options)

        warnings.showwarning = shown
        yield


def _program() -> str | None:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


def command() -> str:
    """The command line that this process was started with, quoted for a shell, for the head of a table."""
    start = _program() or Path(sys.argv[0]).name
    return " ".join([start, shlex.join(sys.argv[1:])]).rstrip()
