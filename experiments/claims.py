"""The comparisons that claims about methods rest on: sizes by formulas, by searches and at random, at the same budgets.

    python -m experiments.claims                                                     # online-retail
    python -m experiments.claims --data yelp2019_a.parquet --cut.segments 4 --fit.steps 1000

Uniform, frequency^.5, `fixed` with the action that is best on valid by the first seed, scall and scall-random by all
seeds; shuffled and scall-sac, which cost as much and say less, by the first of them; popularity once.
Each cell is a row of --results as soon as it is finished; a cell that is there is not run again, so that the comparison
goes on where it stopped, and several streams share one file. Writes, beside the file, tables of all of its cells with
tests against uniform and against frequency, and prints them. Cost: 52 cells for each mean size, of some 100 seconds
each on online-retail at mean size 8, on one core; on Yelp several times as much. Expect sizes by frequency ahead of
uniform from mean size 4 on, shuffled behind, and searches level with frequency.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from experiments import cell_file, compare
from scall_jax.analysis import figures, plots
from scall_jax.cli.cli import cli
from scall_jax.config import SizesConfig
from scall_jax.run.text_files import write_atomically

ROW = ("stream", "flags", "most steps", "bias", "mean size")
"""Columns that tell settings apart."""


@dataclasses.dataclass(frozen=True)
class Claims(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    method: tuple[str, ...] = ("uniform", "frequency", "scall", "scall-random")
    """Methods that run by all seeds."""
    few: tuple[str, ...] = ("shuffled", "scall-sac")
    """Methods that run by the first seeds."""
    few_seeds: int = 3
    """How many these are."""
    floors: tuple[str, ...] = ("popularity-decayed",)
    """Methods without random numbers, which run once."""
    mean_sizes: tuple[float, ...] = (2.0, 4.0, 8.0)
    """Budgets, in parameters per entity."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of the runs; a run for each."""
    shares: tuple[float, ...] = (0.35, 0.6)
    """Users' shares of the budget of `fixed` that are tried."""
    shapes: tuple[float, ...] = (0.25, 0.5, 1.5)
    """Shapes of `fixed`, the same on both sides, that are tried."""
    report: bool = False
    """Write the tables of what is in the file, and run nothing."""
    results: Path = Path("experiments/results/claims.parquet")
    """File of the finished cells."""
    out: Path = Path("runs/claims")
    """Folder for the run in progress and for compiled programs."""


def cell(flags: Claims, method: str, size: float, seed: int, sizes: SizesConfig, label: str) -> compare.Cell:
    """One run, shown under a label."""
    run = compare.cell_flags(flags, flags.out, method, size, seed)
    run = dataclasses.replace(run, bias=flags.biases[0], sizes=sizes)
    shown = {"most steps": str(flags.fit.steps), "bias": flags.biases[0], "mean size": f"{size:g}", "method": label}
    return compare.Cell(shown, run)


def tries(flags: Claims, size: float) -> list[compare.Cell]:
    """Runs of `fixed` by the first seed, one for each action that is tried."""
    found = []
    for rho, shape in itertools.product(flags.shares, flags.shapes):
        sizes = dataclasses.replace(flags.sizes, rho=rho, user_shape=shape, item_shape=shape)
        found.append(cell(flags, "fixed", size, flags.seeds[0], sizes, f"fixed {rho:g} {shape:g}"))
    return found


def by_all_seeds(flags: Claims, size: float, best: compare.Cell) -> list[compare.Cell]:
    """Runs at one budget, seed by seed, so that an unfinished comparison has about as many of each method."""
    found = []
    for number, seed in enumerate(flags.seeds):
        methods = flags.method + (flags.few if number < flags.few_seeds else ()) + (() if number else flags.floors)
        found += [cell(flags, method, size, seed, flags.sizes, method) for method in methods]
        found.append(cell(flags, "fixed", size, seed, best.flags.sizes, best.shown["method"]))
    return found


def best_on_valid(frame: pl.DataFrame, tried: Sequence[compare.Cell], names: Sequence[str]) -> compare.Cell:
    """The tried run with the largest valid Recall@20.

    Args:
      frame: rows of the file.
      tried: the runs.
      names: what the file knows each of them by.
    """
    valid = dict(zip(frame["cell"], frame["valid recall@20"], strict=True))
    return max(zip(tried, names, strict=True), key=lambda pair: valid[pair[1]])[0]


def tables(frame: pl.DataFrame) -> str:
    """Markdown of all cells of the file: actions of `fixed` that are not the best on valid are left out."""
    is_fixed = pl.col("method").str.starts_with("fixed ")
    first = frame.filter(is_fixed).filter(pl.col("seed") == pl.col("seed").min().over(ROW))
    kept = first.sort("valid recall@20").group_by(ROW, maintain_order=True).last().select(*ROW, "method")
    rest, fixed = frame.filter(~is_fixed), frame.filter(is_fixed).join(kept, on=[*ROW, "method"], how="semi")
    shown = pl.concat([rest, fixed.with_columns(method=pl.lit("fixed on valid"))])
    parts = [
        f"## Beside {base}\n\n{cell_file.comparison(shown, ROW, 'method', base)}" for base in ("uniform", "frequency")
    ]
    chosen = [f"- {' '.join(map(str, row[:-1]))}: {row[-1]}" for row in sorted(kept.rows())]
    chosen_text = "Actions of fixed (users' share, shape) that are best on valid by the first seed:"
    return "\n\n".join([*parts, cell_file.note(frame), f"{chosen_text}\n\n" + "\n".join(chosen)])


def plot(path: Path, frame: pl.DataFrame, stream: str) -> None:
    """Plot the Recall@20 of a stream's methods by bytes for each entity; fixed actions are left out."""
    curves: dict[str, dict[float, list[float]]] = {}
    chosen = (pl.col("stream") == stream) & ~pl.col("method").str.starts_with("fixed ")
    for size, method, recall in frame.filter(chosen).select("mean size", "method", "recall@20").rows():
        curves.setdefault(method, {}).setdefault(4 * float(size), []).append(recall)
    plots.plot_budgets(path, curves, f"{stream}, mean and standard deviation over seeds")


def main(flags: Claims) -> str:
    """Run the cells that are not in the file yet; the text of the tables."""
    flags = compare.checked(flags)
    frame = cell_file.finished(flags.results) if flags.report else cell_file.read(flags.results)
    for size in () if flags.report else flags.mean_sizes:
        tried = tries(flags, size)
        frame = cell_file.run(flags.results, flags, tried)
        best = best_on_valid(frame, tried, cell_file.names(flags, tried))
        frame = cell_file.run(flags.results, flags, by_all_seeds(flags, size, best))
    text = tables(frame)
    write_atomically(flags.results.with_suffix(".md"), f"# Methods at the same budgets\n\n{text}\n")
    if figures.has_matplotlib():
        for stream in frame["stream"].unique():
            plot(flags.results.with_name(f"claims-{stream}.png"), frame, stream)
    print(f"\n{text}")
    return text


if __name__ == "__main__":
    cli(Claims, main, __doc__)
