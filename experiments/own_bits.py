"""Bits and width together: one price for a bit beside one number of bits for all, at the same bytes.

    python -m experiments.own_bits --cut.new-entities 1600                                          # online-retail
    python -m experiments.own_bits --data yelp2019_a.parquet --cut.segments 4

On least squares and on LightGCN, at 1, 2, 4 and 8 bytes an entity: one size for all in 1, 2 and 4 bits a coordinate,
sizes by gains in 1, 2 and 4 bits, and sizes and bits by gains (`gain-bits`). Half-life and weights are chosen by each
run. Each cell is a row of --results as soon as it is finished, and is not run again. Writes, beside the file, a table
of all of its cells with tests against one size in four bits on least squares, and prints it. Cost: 56 cells a seed and
stream, of 10 to 60 seconds each on one core. Expect bits of their own to matter where there are few bytes.
"""

import dataclasses
import itertools
from pathlib import Path

from experiments import cell_file, compare
from scall_jax.cli.cli import cli

ROW = ("stream", "flags", "bias", "mean size")
"""Columns that tell settings apart."""

_SIZES = [f"{method}@table=packed_int{bits},sizes.minimum=0" for method in ("uniform", "gain") for bits in (4, 2, 1)]

METHODS = tuple(
    method.replace("@", f"@recommender={base},", 1) if "@" in method else f"{method}@recommender={base}"
    for base in ("ials", "lightgcn")
    for method in (*_SIZES, "gain-bits")
)
"""Methods at the same bytes."""


@dataclasses.dataclass(frozen=True)
class OwnBits(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    method: tuple[str, ...] = METHODS
    """Methods at the same bytes."""
    mean_sizes: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Budgets, in float32 parameters per entity."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of the runs; a run for each."""
    report: bool = False
    """Write the table of what is in the file, and run nothing."""
    results: Path = Path("experiments/results/own_bits.parquet")
    """File of the finished cells."""
    out: Path = Path("runs/own_bits")
    """Folder for the run in progress and for compiled programs."""


def cells(flags: OwnBits) -> list[compare.Cell]:
    """All runs."""
    return cell_file.by_seed(flags, list(itertools.product(flags.mean_sizes, flags.method)), {})


def main(flags: OwnBits) -> str:
    """Run the cells that are not in the file yet; the text of the table."""
    flags = compare.checked(flags)
    frame = cell_file.finished(flags.results) if flags.report else cell_file.run(flags.results, flags, cells(flags))
    title = "# Bits and width together\n\nBy `python -m experiments.own_bits`; its help has the commands."
    return cell_file.publish(flags.results, frame, ROW, METHODS[0], title)


if __name__ == "__main__":
    cli(OwnBits, main, __doc__)
