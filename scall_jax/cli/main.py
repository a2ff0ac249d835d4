"""The console command `scall-jax`: one word for the job, then its flags."""

import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import scall_jax
from scall_jax.cli.commands import run_command
from scall_jax.cli.serving_commands import export_command, recommend_command


class Command(NamedTuple):
    """A subcommand."""

    text: str
    """What it does, in one line."""
    run: Callable[..., None]
    """run(arguments, program=...) does it; bad input ends with a message and exit code 2."""


COMMANDS = {
    "run": Command("run methods over a stream of interactions within a memory budget", run_command),
    "recommend": Command("recommend items by the model that a run has left", recommend_command),
    "export": Command("write a run's model to a folder that needs no JAX", export_command),
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
        COMMANDS[name].run(rest, program=f"scall-jax {name}")
    else:
        near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"error: unknown subcommand {name!r}: {hint}", file=sys.stderr)
        raise SystemExit(2)


def _usage() -> str:
    lines = [f"  {name:12s}{command.text}" for name, command in COMMANDS.items()]
    head = "usage: scall-jax SUBCOMMAND [flags]\n\nStreaming recommendation under an exact memory budget."
    foot = "scall-jax SUBCOMMAND -h shows the flags of a subcommand, scall-jax --version the version."
    return "\n".join([head, "", "subcommands:", *lines, "", foot])


if __name__ == "__main__":
    main()
