"""Should embeddings be turned to principal axes before sizes change: not at all, block by block, or in full?

    python -m experiments.rotation --mean-sizes 4                                             # online-retail
    python -m experiments.rotation --data yelp2019_a.parquet --mean-sizes 2 8 --fit.steps 1000

Methods x rotations x mean sizes x seeds, with the flags of `experiments.compare`. Each cell is a row of --results as
soon as it is finished; a cell that is there is not run again, so that the experiment goes on where it stopped, and
several streams share one file. Prints a table of all of the file's cells, and writes it beside the file as Markdown:
Recall@20 by rotation, and the difference of `blocks` and `full` from `none` with the variance over users and over
seeds. Cost: the sum of the runs; at 8 seeds 72 cells for each mean size, of about one minute on online-retail, two on
Yelp at mean size 2 and four at 8 (1,000 steps), on one core: nine hours for the two commands. Expect `uniform` the same
under all three, since it loses nothing by them, and `frequency` and `fixed`, whose sizes differ, level or worse under
`full`.
"""

import dataclasses
import itertools
from pathlib import Path

from experiments import cell_file, compare
from scall_jax.cli.cli import cli
from scall_jax.run.text_files import write_atomically
from scall_jax.tables import ROTATIONS

ROW = ("stream", "flags", "most steps", "method", "mean size")
"""Columns that tell rows of the table apart."""


@dataclasses.dataclass(frozen=True)
class Rotation(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    method: tuple[str, ...] = ("uniform", "frequency", "fixed")
    """Methods to compare."""
    rotations: tuple[str, ...] = ROTATIONS
    """Rotations to compare; none has to be among them."""
    mean_sizes: tuple[float, ...] = (4.0,)
    """Budgets, in parameters per entity."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of the runs; a run for each."""
    results: Path = Path("experiments/results/rotation.parquet")
    """File of the finished cells."""
    out: Path = Path("runs/rotation")
    """Folder for the run in progress and for compiled programs."""


def cells(flags: Rotation) -> list[compare.Cell]:
    """The runs of the comparison, seed by seed, so that an unfinished one has about as many of each kind.

    Raises:
      ValueError: there is nothing to compare rotations with.
    """
    if "none" not in flags.rotations:
        raise ValueError(f"--rotations {' '.join(flags.rotations)}: none has to be among them")
    found = []
    choices = itertools.product(flags.seeds, flags.mean_sizes, flags.method, flags.rotations)
    for seed, size, method, rotation in choices:
        cell = compare.cell_flags(flags, flags.out, method, size, seed)
        warm_start = dataclasses.replace(cell.warm_start, rotation=rotation)
        cell = dataclasses.replace(cell, bias=flags.biases[0], warm_start=warm_start)
        shown = {"most steps": str(flags.fit.steps), "method": method, "mean size": f"{size:g}", "rotation": rotation}
        found.append(compare.Cell(shown, cell))
    return found


def main(flags: Rotation) -> str:
    """Run the cells that are not in the file yet; the text of the table."""
    flags = compare.checked(flags)
    frame = cell_file.run(flags.results, flags, cells(flags))
    text = f"{cell_file.comparison(frame, ROW, 'rotation', 'none')}\n\n{cell_file.note(frame)}"
    write_atomically(flags.results.with_suffix(".md"), f"# Rotation before resizing\n\n{text}\n")
    print(f"\n{text}")
    return text


if __name__ == "__main__":
    cli(Rotation, main, __doc__)
