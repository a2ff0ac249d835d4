"""The budget halves mid-stream and later returns: what is lost, and how fast it comes back.

    python -m experiments.budget_cut                       # online-retail, mean size 8, 8 then 4 then 8

Writes a folder per method and budget, table.md (Recall@20 before, during and after the cut) and the plot cut.png of
test Recall@20 by segment with and without the cut. Cost: two runs per method. Expect a fall at the cut that is smaller
for sized tables, and a return within a segment or two.
"""

import dataclasses
from pathlib import Path
from typing import Any

from scall_jax.analysis import plots, report
from scall_jax.cli import commands, method_flags, protocol, stream_flags
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli, command
from scall_jax.run import records, text_files
from scall_jax.streams import Stream


@dataclasses.dataclass(frozen=True)
class BudgetCut(run_flags.Main):
    """Flags; those of `experiments.run` apply, except for budgets."""

    method: tuple[str, ...] = ("uniform", "scall")
    """Methods to run."""
    size: float = 8.0
    """Parameters per entity before and after the cut."""
    cut_size: float = 4.0
    """Parameters per entity during the cut."""
    cut_from: int | None = None
    """First segment of the cut; default: a third of the stream."""
    cut_until: int | None = None
    """First segment after the cut; default: two thirds of the stream."""
    out: Path = Path("runs/budget_cut")
    """Folder of the runs, the table and the plot."""


def main(flags: BudgetCut) -> dict[str, list[dict[str, Any]]]:
    """Run with and without the cut; the lines of metrics by run."""
    flags = protocol.by_protocol(flags)
    stream = stream_flags.load_stream(flags)
    cut = _cut(flags, stream)
    budgets = _budgets(flags, stream, cut)
    found = {}
    for method in method_flags.expand(flags.method):
        for name, budget in budgets.items():
            cell = dataclasses.replace(flags, budget=budget, method=(method,), out=flags.out / method / name)
            config = method_flags.make_config(cell, method)
            _, found[f"{method}, {name}"] = commands.run_method(cell, config, stream, cell.out)
    title = f"{stream.source}: mean size {flags.size:g}, cut {flags.cut_size:g}"
    plots.plot_quality(flags.out / "cut.png", found, title)
    text = _table(found, {"before": range(1, cut.start), "during": cut, "after": range(cut.stop, len(stream))})
    text_files.write_atomically(flags.out / "table.md", f"# {title}\n\n`{command()}`\n\n{text}\n")
    print(f"\n{text}")
    return found


def _cut(flags: BudgetCut, stream: Stream) -> range:
    """Segments of the cut."""
    start = len(stream) // 3 if flags.cut_from is None else flags.cut_from
    end = 2 * len(stream) // 3 if flags.cut_until is None else flags.cut_until
    if not 0 <= start < end <= len(stream):
        raise ValueError(f"cut from segment {start} until {end}: need 0 <= from < until <= {len(stream)} segments")
    return range(start, end)


def _budgets(flags: BudgetCut, stream: Stream, cut: range) -> dict[str, run_flags.BudgetFlags]:
    """The budgets by name; refuses what no method can use before anything runs."""
    sizes = [flags.cut_size if t in cut else flags.size for t in range(len(stream))]
    budgets = {
        "constant": run_flags.BudgetFlags(mean_size=flags.size),
        "cut": run_flags.BudgetFlags(schedule=tuple(sizes)),
    }
    if flags.budget != run_flags.BudgetFlags():
        raise ValueError("--budget.*: give --size and --cut-size")
    for method in method_flags.expand(flags.method):
        for budget in budgets.values():
            method_flags.check_run(method_flags.make_config(dataclasses.replace(flags, budget=budget), method), stream)
    return budgets


def _table(found: dict[str, list[dict[str, Any]]], parts: dict[str, range]) -> str:
    rows = []
    for name, lines in found.items():
        means = [
            records.summarise([line for line in lines if line["segment"] in part])["mean_test_recall@20"]
            for part in parts.values()
        ]
        rows.append([name, *("-" if mean is None else f"{mean:.4f}" for mean in means)])
    return report.markdown(["Recall@20", *parts], rows)


if __name__ == "__main__":
    cli(BudgetCut, main, __doc__)
