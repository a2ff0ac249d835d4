"""Methods x budgets x seeds on one stream, cell by cell, with the spread over seeds.

    python -m experiments.compare --method uniform fixed frequency shuffled --mean-sizes 2 4 --seeds 0 1 2 \\
        --data clicks.parquet --out runs/compare

Takes the flags of `experiments.run`, of which it is a loop: a cell is a run folder, finished cells are kept, and an
interrupted one continues. Writes table.md (with the command at its head) and rows.json. Cost: the sum of the runs.
Expect `shuffled` last, and `frequency` above `uniform` from mean size 4 on (online-retail) or at any (Yelp).
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import jax

from scall_jax import Config
from scall_jax.analysis import report
from scall_jax.cli import commands, method_flags, protocol, stream_flags
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli, command
from scall_jax.methods.registry import BASELINES
from scall_jax.run import records, text_files
from scall_jax.streams import Stream

ANY_SIZE = 8.0
"""Mean size on record of runs that no budget binds: the same whatever is asked for, so that they continue."""
REFUSED = ("budget.mean-size", "budget.megabytes", "budget.schedule", "bias", "overwrite", "method")
"""Flags of `experiments.run` that `-h` does not show under its titles: refused, or shown as flags of the comparison."""

Groups = dict[tuple[tuple[str, str], ...], list[Path]]
"""Run folders, one for each seed, by the columns and values of their row of the table."""


class Cell(NamedTuple):
    """One run among many."""

    shown: dict[str, str]
    """Columns and values that tell its row of the table from others."""
    flags: run_flags.Main
    """Flags of the run."""


@dataclasses.dataclass(frozen=True)
class Compare(run_flags.Main):
    """Flags; those of `experiments.run` apply to every cell, except for --budget, --bias and --overwrite, which are
    refused; --seed only cuts the stream."""

    SHOWN: ClassVar[dict[str, tuple[str, ...]]] = {
        "comparison": ("method", "mean-sizes", "seeds", "biases"),
        **{title: tuple(x for x in names if x not in REFUSED) for title, names in run_flags.Main.SHOWN.items()},
    }

    method: tuple[str, ...] = ("uniform", "fixed", "frequency", "shuffled", "popularity")
    """Methods to compare."""
    mean_sizes: tuple[float, ...] = (2.0, 4.0)
    """Budgets, in parameters per entity."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs; a run for each."""
    biases: tuple[str, ...] = ("none",)
    """Item biases to try, none or decayed."""
    out: Path = Path("runs/compare")
    """Folder of the cells and the table."""


C = TypeVar("C", bound=Compare)


def checked(flags: C) -> C:
    """Flags by protocol.

    Raises:
      ValueError: there is nothing to compare, or a flag of `experiments.run` is given that cells would replace.
    """
    for flag in ("method", "mean_sizes", "seeds", "biases"):
        if not getattr(flags, flag):
            raise ValueError(f"--{flag.replace('_', '-')}: name at least one")
    if flags.budget != run_flags.BudgetFlags():
        raise ValueError("--budget.*: runs are compared at --mean-sizes")
    if flags.bias:
        raise ValueError("--bias: runs are compared by --biases")
    if flags.overwrite:
        raise ValueError("--overwrite: finished runs are kept; choose another --out, or delete what is there")
    return protocol.by_protocol(flags)


def cells(flags: Compare) -> list[Cell]:
    """The distinct runs of a comparison; what does not depend on a budget or a seed runs once."""
    found = {}
    for method in method_flags.expand(flags.method):
        outside, full = method in BASELINES, method == "full"
        for bias in flags.biases[:1] if outside else flags.biases:
            for size in (ANY_SIZE,) if outside or full else flags.mean_sizes:
                for seed in flags.seeds[:1] if outside else flags.seeds:
                    shown = {"method": method, "bias": "-" if outside else bias}
                    shown["mean size"] = "-" if outside or full else f"{size:g}"
                    name = "baseline" if outside else f"{bias}-mean{shown['mean size']}-seed{seed}"
                    cell = cell_flags(flags, flags.out / method / name, method, size, seed)
                    cell = dataclasses.replace(cell, bias="none" if outside else bias)
                    found[cell.out] = Cell(shown, cell)
    return list(found.values())


def cell_flags(flags: C, out: Path, method: str, size: float, seed: int) -> C:
    """Flags of one run among many.

    Args:
      flags: of the comparison.
      out: folder of the run.
      method: of the run.
      size: budget in parameters per entity.
      seed: of the run.

    Returns:
      Flags of the same class. A cell is cut by itself, so that flags of the cut after the method's @ hold.
    """
    budget, cut = run_flags.BudgetFlags(mean_size=size), method_flags.for_method(flags, method)[0].cut
    return dataclasses.replace(flags, method=(method,), budget=budget, seed=seed, cut=cut, resume=True, out=out)


def main(flags: Compare) -> list[dict[str, str]]:
    """Run all cells; a row per method, bias and budget."""
    flags = checked(flags)
    return run_cells(flags, cells(flags))


def refuse(flags: Compare, found: Sequence[Cell]) -> tuple[list[Config], dict[run_flags.Cut, Stream]]:
    """Check all cells before any runs.

    Args:
      flags: of the comparison.
      found: its cells.

    Returns:
      Configurations of the cells, and streams by cut.

    Raises:
      ValueError: a cell cannot be run.
    """
    configs = [method_flags.make_config(cell.flags, *cell.flags.method) for cell in found]
    streams = {}
    for cut in dict.fromkeys([flags.cut, *(cell.cut for _, cell in found)]):
        streams[cut] = stream_flags.load_stream(dataclasses.replace(flags, cut=cut))
        stream_flags.check_stream(streams[cut])
    for cut, config in dict.fromkeys(zip([cell.flags.cut for cell in found], configs, strict=True)):
        method_flags.check_run(config, streams[cut])
    return configs, streams


def run_cells(
    flags: Compare, found: Sequence[Cell], below: Callable[[Groups], str] | None = None
) -> list[dict[str, str]]:
    """Run the cells that are not finished, print and write their table.

    Args:
      flags: of the comparison.
      found: its cells.
      below: called with the finished cells' folders; returns text for below the table.

    Returns:
      A row of the table per distinct set of columns.

    Raises:
      ValueError: a cell cannot be run; none has been then.
    """
    configs, streams = refuse(flags, found)
    stream, groups = streams[flags.cut], {}
    warnings: dict[str, list[str]] = {}
    flags.out.mkdir(parents=True, exist_ok=True)
    # Runs that differ in nothing but the seed share their compiled programs.
    jax.config.update("jax_compilation_cache_dir", str(flags.out.resolve() / "compiled"))
    for (shown, cell), config in zip(found, configs, strict=True):
        summary, lines = commands.run_method(cell, config, streams[cell.cut], cell.out)
        groups.setdefault(tuple(shown.items()), []).append((cell.out, summary))
        own = warnings.setdefault(" ".join(value for value in shown.values() if value not in ("-", "none")), [])
        own += [text for text in report.warnings(lines, config) if text not in own]
    found_summaries = {shown: [summary for _, summary in members] for shown, members in groups.items()}
    rows = [dict(shown) | report.row_over_seeds(summaries) for shown, summaries in found_summaries.items()]
    text = report.markdown(list(rows[0]), [list(row.values()) for row in rows])
    counted = f"segments after the first with at least {records.LEAST_USERS} test users"
    note = f"Means over {counted}; by user: over all their users; mean ± standard deviation over seeds; "
    note += f"{report.COLUMNS_NOTE}."
    if flags.cut.published:
        note += " Models and rewards are selected on the test part, as published: figures are optimistic."
    if flags.protocol == "published":
        note += f" What differs from the official code: {'; '.join(protocol.PUBLISHED_DIFFERS)}."
    note = "\n\n".join(filter(None, [note, report.warning_lines(warnings)]))
    if below is not None:
        folders = {shown: [folder for folder, _ in members] for shown, members in groups.items()}
        note += "\n\n" + below(folders)
    title = f"{stream.source}: {len(stream)} segments"
    text_files.write_atomically(flags.out / "table.md", f"# {title}\n\n`{command()}`\n\n{text}\n\n{note}\n")
    text_files.write_atomically(flags.out / "rows.json", json.dumps(rows, indent=1) + "\n")
    print(f"\n{text}\n\n{note}")
    return rows


if __name__ == "__main__":
    cli(Compare, main, __doc__)
