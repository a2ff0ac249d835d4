"""Methods x budgets x seeds on one stream, cell by cell, with the spread over seeds.

    python -m experiments.compare --method uniform fixed frequency shuffled --mean-sizes 2 4 --seeds 0 1 2 \\
        --data clicks.parquet --out runs/compare

Takes the flags of `experiments.run`, of which it is a loop: a cell is a run folder, finished cells are kept, an
interrupted one continues. Cost: the sum of the runs. Expect `shuffled` last, and `frequency` above `uniform` from mean
size 4 on (online-retail) or at any (Yelp); the tables in experiments/results were made with the command at their head.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from scall_jax.analysis import report
from scall_jax.cli import commands
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli, command
from scall_jax.methods.registry import BASELINES
from scall_jax.run import folder as run_folder
from scall_jax.run import records

ANY_SIZE = 8.0
"""Mean size on record of runs that no budget binds: the same whatever is asked for, so that they continue."""
QUALITY = ("mean_test_recall@20", "mean_test_ndcg@20", "pooled_test_recall@20", "mean_valid_recall@20")


@dataclasses.dataclass(frozen=True)
class Compare(run_flags.Main):
    """Flags; those of `experiments.run` hold for every cell but --budget, --bias and --overwrite, which are refused.
    --seed only cuts the stream."""

    method: tuple[str, ...] = ("uniform", "fixed", "frequency", "shuffled", "popularity")
    """Methods to compare."""
    mean_sizes: tuple[float, ...] = (2.0, 4.0)
    """Budgets, in parameters per entity."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs."""
    biases: tuple[str, ...] = ("none",)
    """Item biases to try."""
    out: Path = Path("runs/compare")
    """Folder of the cells and the table."""


def checked(flags: Compare) -> Compare:
    """Flags by protocol.

    Raises:
      ValueError: nothing to compare, or a flag of `experiments.run` that cells would replace.
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
    return run_flags.by_protocol(flags)


def cells(flags: Compare) -> list[tuple[dict, run_flags.Main]]:
    """Columns and flags of each distinct run; what does not depend on a budget or a seed runs once."""
    found = {}
    for method in run_flags.expand(flags.method):
        outside, full = method in BASELINES, method == "full"
        for bias in flags.biases[:1] if outside else flags.biases:
            for size in (ANY_SIZE,) if outside or full else flags.mean_sizes:
                for seed in flags.seeds[:1] if outside else flags.seeds:
                    shown = {"method": method, "bias": "-" if outside else bias}
                    shown["mean size"] = "-" if outside or full else f"{size:g}"
                    name = "reference" if outside else f"{bias}-mean{shown['mean size']}-seed{seed}"
                    cell = cell_flags(flags, flags.out / method / name, method, size, seed)
                    found[cell.out] = (shown, dataclasses.replace(cell, bias="none" if outside else bias))
    return list(found.values())


def cell_flags(flags: Compare, out: Path, method: str, size: float, seed: int) -> run_flags.Main:
    """Flags of one run among many."""
    budget = run_flags.BudgetFlags(mean_size=size)
    return dataclasses.replace(flags, method=(method,), budget=budget, seed=seed, resume=True, out=out)


def main(flags: Compare) -> list[dict]:
    """Run all cells; a row per method, bias and budget."""
    flags = checked(flags)
    return run_cells(flags, cells(flags), "experiments.compare")


def refuse(flags: Compare, found: list[tuple[dict, run_flags.Main]]) -> tuple[list, dict]:
    """Configurations of the cells, and streams by cut.

    Raises:
      ValueError: a cell cannot be run; none has been.
    """
    configs = [run_flags.make_config(cell, *cell.method) for _, cell in found]
    stream = run_flags.load_stream(flags)
    run_flags.check_stream(stream)
    streams = {flags.cut: stream}
    for _, cell in found:
        if cell.cut not in streams:
            streams[cell.cut] = run_flags.load_stream(dataclasses.replace(flags, cut=cell.cut))
    for cut, config in dict.fromkeys(zip([cell.cut for _, cell in found], configs, strict=True)):
        run_flags.check_run(config, streams[cut])
    return configs, streams


def run_cells(flags: Compare, found: list[tuple[dict, run_flags.Main]], module: str, report_more=None) -> list[dict]:
    """Run cells that are not finished, print and write their table; a row per distinct set of columns.

    `report_more(rows, groups)` may return text for below the table; groups maps columns to the cells' folders.
    """
    configs, streams = refuse(flags, found)
    stream, groups = streams[flags.cut], {}
    flags.out.mkdir(parents=True, exist_ok=True)
    # seeds share their compiled programs
    jax.config.update("jax_compilation_cache_dir", str(flags.out.resolve() / "compiled"))
    for (shown, cell), config in zip(found, configs, strict=True):
        summary, _ = commands.run_method(cell, config, streams[cell.cut], cell.out)
        groups.setdefault(tuple(shown.items()), []).append((cell.out, summary))
    rows = [dict(shown) | _row([summary for _, summary in members]) for shown, members in groups.items()]
    text = report.markdown(list(rows[0]), [list(row.values()) for row in rows])
    counted = f"segments after the first with at least {records.LEAST_USERS} test users"
    note = f"Means over {counted}; by user: over all their users; mean ± standard deviation over seeds."
    if flags.cut.published:
        note += " Models and rewards are selected on the test part, as published: figures are optimistic."
    if report_more is not None:
        folders = {shown: [folder for folder, _ in members] for shown, members in groups.items()}
        note += "\n\n" + report_more(rows, folders)
    title = f"{stream.source}: {len(stream)} segments"
    run_folder.write_atomically(flags.out / "table.md", f"# {title}\n\n`{command(module)}`\n\n{text}\n\n{note}\n")
    run_folder.write_atomically(flags.out / "rows.json", json.dumps(rows, indent=1) + "\n")
    print(f"\n{text}\n\n{note}")
    return rows


def _row(summaries):
    row = {"seeds": str(len(summaries))}
    titles = ("Recall@20", "NDCG@20", "by user R@20", "valid R@20")
    for title, metric in zip(titles, QUALITY, strict=True):
        row[title] = report.mean_and_spread([summary[metric] for summary in summaries])
    for title, metric in (("fit s", "seconds_fit"), ("search s", "seconds_search")):
        row[title] = f"{np.mean([summary[metric] for summary in summaries]):.0f}"
    return row


if __name__ == "__main__":
    cli(Compare, main, __doc__)
