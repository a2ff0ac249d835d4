"""The command `scall-jax compare`: finished runs side by side."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from scall_jax.analysis import comparison, comparison_report, report, significance
from scall_jax.cli.cli import Positional, cli
from scall_jax.cli.nearest import advice

COMPARE = """
Finished runs side by side, with tests over users and seeds.

    scall-jax compare runs/demo                                  # the methods of one command
    scall-jax compare runs/seed0 runs/seed1 --against uniform    # several seeds of each
    scall-jax compare runs/demo --html runs/demo.html            # the same, and a page with pictures

A RUN is the folder of a run, or a folder with runs below it. Runs that differ in nothing but their seed are one row.
The difference of each method from the one named by --against is tested with the variance over users and seeds.
"""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Flags of a comparison of finished runs."""

    runs: Positional[tuple[Path, ...]] = ()
    """Folders of runs, or folders with runs below them."""
    against: str | None = None
    """Method that the others are tested against; default: that of the first run."""
    html: Path | None = None
    """File for the comparison as a page with pictures."""


def compare_job(flags: Compare) -> str:
    """Print the comparison of finished runs.

    Args:
      flags: of the comparison.

    Returns:
      What is printed.

    Raises:
      ValueError: no run, a run that is not finished or was touched, or an unknown method.
    """
    if not flags.runs:
        raise ValueError("name at least one run: scall-jax compare RUN...")
    groups = comparison.by_method([comparison.read_run(x) for x in comparison.find_runs(flags.runs)])
    against = next(iter(groups)) if flags.against is None else flags.against
    if against not in groups:
        raise ValueError(f"--against {against}: {advice(against, groups)}")
    warned = [f"- Warning, {text}" for text in comparison.other_users(groups)]
    parts = [comparison.table(groups), *(["\n".join(warned)] if warned else [])]
    if len(groups) > 1:
        lines = comparison.tested_against(groups, against)
        parts += ["\n".join(lines), *([significance.READING] if any(", p " in line for line in lines) else [])]
    text = "\n\n".join([*parts, f"{report.COLUMNS_NOTE}."])
    print(text)
    if flags.html is not None:
        print(f"\npage: {comparison_report.write(flags.html, groups, against)}")
    return text


def compare_command(arguments: Sequence[str] | None = None, program: str = "scall-jax compare") -> None:
    """The command line of `scall-jax compare`.

    Args:
      arguments: flags; None for those of the process.
      program: how the process was started, for help.

    Raises:
      SystemExit: with code 2 for bad input, and with code 0 after help.
    """
    cli(Compare, compare_job, COMPARE, arguments, program)
