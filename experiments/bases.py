"""Recommenders and bits a coordinate at the same bytes, and LightGCN's tables in few bits at the same widths.

    python -m experiments.bases --cut.new-entities 1600                               # online-retail
    python -m experiments.bases --data yelp2019_a.parquet --cut.segments 4 --fit.steps 400

One size for all on LightGCN and on implicit alternating least squares, in float32 and in four bits, and sizes by
frequency in float32, at 8 and 32 bytes an entity; and at a mean size of 16 the table of LightGCN in float32, two bits
and one (5 and 3 bytes an entity). Half-life and weights are chosen by each run. Each cell is a row of --results as soon
as it is finished, and is not run again. Writes, beside the file, a table of all of its cells with tests against uniform
sizes of LightGCN in float32, and prints it. Cost: 12 cells a seed, of 15 to 60 seconds each on one core. Expect four
bits and least squares far ahead at 8 bytes, and two bits level with float32.
"""

import dataclasses
from pathlib import Path

from experiments import cell_file, compare
from scall_jax.cli.cli import cli

ROW = ("stream", "flags", "most steps", "bias", "mean size")
"""Columns that tell settings apart."""

BY_BYTES = (
    "uniform",
    "frequency",
    "uniform@table=packed_int4",
    "uniform@recommender=ials",
    "uniform@recommender=ials,table=packed_int4",
)
"""Methods at the same bytes."""

BY_WIDTH = (
    "uniform",
    "uniform@table=packed_int2,budget.part=0.07825",
    "uniform@table=packed_int1,budget.part=0.047",
)
"""Methods with tables of the same width, 16: a vector in two bits takes 5 bytes of 64, in one bit 3."""


@dataclasses.dataclass(frozen=True)
class Bases(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    method: tuple[str, ...] = BY_BYTES
    """Methods at the same bytes."""
    mean_sizes: tuple[float, ...] = (2.0, 8.0)
    """Budgets, in float32 parameters per entity."""
    by_width: tuple[str, ...] = BY_WIDTH
    """Methods at the same width."""
    width: float = 16.0
    """Budget of these, before the part that each of them names."""
    seeds: tuple[int, ...] = tuple(range(5))
    """Seeds of the runs; a run for each."""
    report: bool = False
    """Write the table of what is in the file, and run nothing."""
    results: Path = Path("experiments/results/bases.parquet")
    """File of the finished cells."""
    out: Path = Path("runs/bases")
    """Folder for the run in progress and for compiled programs."""


def cells(flags: Bases) -> list[compare.Cell]:
    """All runs."""
    settings = [(size, method) for size in flags.mean_sizes for method in flags.method]
    settings += [(flags.width, method) for method in flags.by_width]
    return cell_file.by_seed(flags, settings, {"most steps": str(flags.fit.steps)})


def main(flags: Bases) -> str:
    """Run the cells that are not in the file yet; the text of the table."""
    flags = compare.checked(flags)
    frame = cell_file.finished(flags.results) if flags.report else cell_file.run(flags.results, flags, cells(flags))
    title = "# Recommenders and bits at the same bytes\n\nBy `python -m experiments.bases`; its help has the commands."
    return cell_file.publish(flags.results, frame, ROW, "uniform", title)


if __name__ == "__main__":
    cli(Bases, main, __doc__)
