"""Methods x budgets x seeds on one stream, cell by cell, with the spread over seeds.

    python -m experiments.compare --method uniform fixed frequency shuffled --mean-sizes 2 4 --seeds 0 1 2 \\
        --data clicks.parquet --out runs/compare

Takes the flags of `experiments.run`, of which it is a loop: a cell is a run folder, finished cells are kept, an
interrupted one continues. Cost: the sum of the runs. Expect `fixed` and `frequency` above `uniform` and `shuffled`
where capacity binds; the tables in experiments/results were made with the command at their head.
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import jax
import numpy as np

from experiments import run
from scall_jax import records, report
from scall_jax.recommenders.popularity import FLOORS

QUALITY = ("mean_test_recall@20", "mean_test_ndcg@20", "pooled_test_recall@20", "mean_valid_recall@20")


@dataclasses.dataclass(frozen=True)
class Compare(run.Main):
    """Flags; those of `experiments.run` hold for every cell, `seed` only cuts the stream."""

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


def cells(flags: Compare) -> list[tuple[str, run.Main]]:
    """Name and flags of each distinct run; what does not depend on a budget or a seed runs once."""
    found = {}
    for method in run.expand(flags.method):
        floor, full = method in FLOORS, method == "full"
        for bias in flags.biases[:1] if floor else flags.biases:
            for size in flags.mean_sizes[:1] if floor or full else flags.mean_sizes:
                for seed in flags.seeds[:1] if floor else flags.seeds:
                    budget = run.BudgetFlags(mean_size=size)
                    name = "-" if floor or full else f"{size:g}"
                    cell = dataclasses.replace(
                        flags,
                        method=(method,),
                        bias="none" if floor else bias,
                        budget=budget,
                        seed=seed,
                        resume=True,
                        out=flags.out / method / ("floor" if floor else f"{bias}-mean{name}-seed{seed}"),
                    )
                    found[cell.out] = ((method, "-" if floor else bias, name), cell)
    return list(found.values())


def main(flags: Compare) -> list[dict]:
    """Run all cells; a row per method, bias and budget."""
    flags.out.mkdir(parents=True, exist_ok=True)
    # seeds share their compiled programs
    jax.config.update("jax_compilation_cache_dir", str(flags.out.resolve() / "compiled"))
    stream = run.load_stream(flags)
    groups = {}
    for name, cell in cells(flags):
        (method,) = cell.method
        summary, _ = run.run_method(cell, run.make_config(cell, method), stream, cell.out)
        groups.setdefault(name, []).append(summary)
    rows = [_row(name, summaries) for name, summaries in groups.items()]
    command = shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]])
    text = report.markdown(list(rows[0]), [list(row.values()) for row in rows])
    counted = f"segments after the first with at least {records.LEAST_USERS} test users"
    note = f"Means over {counted}; by user: over all their users; mean ± standard deviation over seeds."
    title = f"{stream.source}: {len(stream)} segments"
    records.write_atomically(flags.out / "table.md", f"# {title}\n\n`{command}`\n\n{text}\n\n{note}\n")
    records.write_atomically(flags.out / "rows.json", json.dumps(rows, indent=1) + "\n")
    print(f"\n{text}\n\n{note}")
    return rows


def _row(name, summaries):
    method, bias, size = name
    row = {"method": method, "bias": bias, "mean size": size, "seeds": str(len(summaries))}
    titles = ("Recall@20", "NDCG@20", "by user R@20", "valid R@20")
    for title, metric in zip(titles, QUALITY, strict=True):
        row[title] = _mean_and_spread([summary[metric] for summary in summaries])
    row["fit s"] = f"{np.mean([summary['seconds_fit'] for summary in summaries]):.0f}"
    return row


def _mean_and_spread(values):
    if None in values:  # no segment has enough test users
        return "-"
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


if __name__ == "__main__":
    run.cli(Compare, main, __doc__)
