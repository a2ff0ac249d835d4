"""The command `scall-jax report`: report.html of run folders, written anew."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from scall_jax.analysis import comparison, run_report
from scall_jax.cli.cli import Positional, cli


@dataclasses.dataclass(frozen=True)
class Report:
    """Flags of the command."""

    runs: Positional[tuple[Path, ...]] = ()
    """Folders of runs, or folders with runs below them."""


def report_job(flags: Report) -> list[Path]:
    """Write report.html to each folder.

    Args:
      flags: which folders.

    Returns:
      Paths of the files.

    Raises:
      ValueError: no run, or one that is not finished or was touched.
    """
    if not flags.runs:
        raise ValueError("name at least one run: scall-jax report RUN...")
    written = []
    for folder in comparison.find_runs(flags.runs):
        written.append(run_report.write(folder))
        print(written[-1])
    return written


def report_command(arguments: Sequence[str] | None = None, program: str = "scall-jax report") -> None:
    """The command line of `scall-jax report`.

    Args:
      arguments: flags; None for those of the process.
      program: how the process was started, for help.

    Raises:
      SystemExit: with code 2 for bad input, and with code 0 after help.
    """
    cli(Report, report_job, "Write report.html of finished runs anew.", arguments, program)
