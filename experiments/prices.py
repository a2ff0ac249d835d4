"""What sizes add on top of few bits: one size for all, formulas, and searches over shapes and over prices.

    python -m experiments.prices --cut.new-entities 1600                                          # online-retail
    python -m experiments.prices --data yelp2019_a.parquet --cut.segments 4
    python -m experiments.prices --data movietweetings --cut.segments 8
    python -m experiments.prices --data amazon_beauty.parquet --cut.segments 4 --cut.shuffle-ties

All on implicit alternating least squares in four bits a coordinate, at 2, 4, 8 and 16 bytes an entity, with which
sizes are paid for, too; half-life and weights are chosen by each run. Uniform, frequency (of all interactions so far),
waterfill and gain need no probe. Three controls: one size for all that starts, as gains do, from the leading
coordinates of a wide fit; gains that start from random vectors, as one size for all does; and gains given to other
entities. scall (shapes) and scall-gain (prices) make 24 whole fits a segment, by a Gaussian process, at random and by
SAC. Each cell is a row of --results as soon as it is finished, and is not run again. Writes, beside the file, a table
of all of its cells with tests against one size for all, and one with tests against the first control, and prints the
former. Cost: 48 cells a seed and stream, of 20 seconds (formulas) to 4 minutes (searches) each on one core. Expect
gains ahead at 2 bytes on online-retail and on Yelp, and the start to be worth as much as sizes are.
"""

import dataclasses
import itertools
from pathlib import Path

import polars as pl

from experiments import cell_file, compare
from scall_jax.cli.cli import cli

ROW = ("stream", "flags", "bias", "mean size")
"""Columns that tell settings apart."""

_BASE = "recommender=ials,table=packed_int4,sizes.minimum=0"

METHODS = (
    f"uniform@{_BASE}",
    f"gain@{_BASE},gains.mixture=1",
    f"frequency@{_BASE},sizes.ranking=total",
    f"waterfill@{_BASE}",
    f"gain@{_BASE}",
    f"gain@{_BASE},gains.start=random",
    f"gain@{_BASE},gains.shuffle=true",
    f"scall-gain@{_BASE}",
    f"scall-random@{_BASE},search.actions=prices",
    f"scall@{_BASE}",
    f"scall-random@{_BASE}",
    f"scall-sac@{_BASE},search.actions=prices",
)
"""Methods at the same bytes."""


@dataclasses.dataclass(frozen=True)
class Prices(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    method: tuple[str, ...] = METHODS
    """Methods at the same bytes."""
    mean_sizes: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Budgets, in float32 parameters per entity."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of the runs; a run for each."""
    charge: str = "stored"
    """What the budget pays for: table, stored, replay or serving, as in `experiments.run`."""
    report: bool = False
    """Write the table of what is in the file, and run nothing."""
    results: Path = Path("experiments/results/prices.parquet")
    """File of the finished cells."""
    out: Path = Path("runs/prices")
    """Folder for the run in progress and for compiled programs."""


def cells(flags: Prices) -> list[compare.Cell]:
    """All runs."""
    return cell_file.by_seed(flags, list(itertools.product(flags.mean_sizes, flags.method)), {})


def main(flags: Prices) -> str:
    """Run the cells that are not in the file yet; the text of the table."""
    flags = compare.checked(flags)
    frame = cell_file.finished(flags.results) if flags.report else cell_file.run(flags.results, flags, cells(flags))
    title = "# What sizes add on top of four bits\n\nBy `python -m experiments.prices`; its help has the commands."
    shown = frame.filter(pl.col("method") != METHODS[0])
    same_start = cell_file.comparison(shown, ROW, "method", METHODS[1]) if METHODS[1] in shown["method"] else ""
    below = [f"## Beside one size for all that starts as gains do\n\n{same_start}"] if same_start else []
    return cell_file.publish(flags.results, frame, ROW, METHODS[0], title, below)


if __name__ == "__main__":
    cli(Prices, main, __doc__)
