"""The console command `scall-jax`: one word for the job, then its flags."""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import scall_jax
from scall_jax.cli.nearest import advice
from scall_jax.cli.stopping import stop_on_signals


class Command(NamedTuple):
    """A subcommand."""

    usage: str
    """What follows its name, in the form that is used most."""
    text: str
    """What it does, in one line."""
    place: str
    """Module and function, `module:function`, imported only when it is called for. function(arguments, program=...)
    does it; bad input ends with a message and exit code 2."""


COMMANDS = {
    "run": Command(
        "--data FILE --out FOLDER",
        "run methods over a stream of interactions within a memory budget",
        "scall_jax.cli.commands:run_command",
    ),
    "update": Command(
        "RUN --data FILE",
        "add new rows to a finished run, and run the segments that they complete",
        "scall_jax.cli.update_command:update_command",
    ),
    "follow": Command(
        "--data FILE --out FOLDER",
        "keep a model up with a file, a table or a pipe that grows",
        "scall_jax.cli.follow:follow_command",
    ),
    "recommend": Command(
        "RUN --users ID...",
        "recommend items by the model that a run has left",
        "scall_jax.cli.serving_commands:recommend_command",
    ),
    "export": Command(
        "RUN --out FOLDER",
        "write a run's model to a folder that needs no JAX",
        "scall_jax.cli.serving_commands:export_command",
    ),
    "compare": Command(
        "RUN... [--html FILE]",
        "finished runs side by side, with tests over users and seeds",
        "scall_jax.cli.compare:compare_command",
    ),
    "report": Command(
        "RUN...",
        "write report.html of finished runs anew",
        "scall_jax.cli.write_reports:report_command",
    ),
    "methods": Command(
        "[NAME...]",
        "the methods, one line each",
        "scall_jax.cli.list_methods:methods_command",
    ),
}
"""The subcommands by name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what a command line asks for.

    Args:
      arguments: a subcommand and its flags; None for those of the process.

    Raises:
      SystemExit: with code 2 for an unknown subcommand or bad input.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
    elif name == "--version":
        print(f"scall-jax {scall_jax.__version__}")
    elif name in COMMANDS:
        module, function = COMMANDS[name].place.split(":")
        # Importing takes seconds, during which Ctrl-C may come too.
        with stop_on_signals(lambda: "stopped", last=arguments is None):
            getattr(importlib.import_module(module), function)(rest, program=f"scall-jax {name}")
    else:
        hint = advice(name, [*COMMANDS, "--help", "--version"])
        print(f"error: unknown subcommand {name!r}: {hint}", file=sys.stderr)
        raise SystemExit(2)


def _usage() -> str:
    lines = [f"  {name + ' ' + command.usage:34s}{command.text}" for name, command in COMMANDS.items()]
    head = "usage: scall-jax SUBCOMMAND [flags]\n\nStreaming recommendation under an exact memory budget."
    foot = "scall-jax SUBCOMMAND -h shows the flags of a subcommand, scall-jax --version the version."
    return "\n".join([head, "", "subcommands:", *lines, "", foot])


if __name__ == "__main__":
    main()
