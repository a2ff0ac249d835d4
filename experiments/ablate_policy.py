"""What matters in the search: the policy, the concentration, the family of sizes, the map of shapes, the probes.

    python -m experiments.ablate_policy --data yelp2019_a.parquet --cut.segments 4 --only ours concentration

A row per variant, each one change away from `--ours`. Each cell is a row of --results as soon as it is finished, and is
not run again. Writes, beside the file, a table of all of its cells with tests against `ours`, and prints it. Cost: 21
variants of a searched run a seed, of some two minutes each on one core. Expect differences near the spread over seeds:
the optimum is flat.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments import cell_file, compare
from scall_jax import SEARCHED
from scall_jax.cli.cli import cli
from scall_jax.policies import POLICIES, PolicyConfig
from scall_jax.sizes import FAMILIES

ROW = ("stream", "flags", "bias", "mean size")
"""Columns that tell settings apart."""


@dataclasses.dataclass(frozen=True)
class AblatePolicy(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    ours: str = "scall"
    """The method that variants start from."""
    only: tuple[str, ...] = ()
    """Beginnings of the names of the variants to run; by default all run."""
    mean_sizes: tuple[float, ...] = (4.0,)
    """Budgets, in parameters per entity."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of the runs; a run for each."""
    report: bool = False
    """Write the table of what is in the file, and run nothing."""
    results: Path = Path("experiments/results/ablate_policy.parquet")
    """File of the finished cells."""
    out: Path = Path("runs/ablate_policy")
    """Folder for the run in progress and for compiled programs."""


A = TypeVar("A", bound=AblatePolicy)


def variants(flags: AblatePolicy) -> dict[str, AblatePolicy]:
    """Flags of each variant by its name; `--only` is applied."""
    found = {"ours": flags}
    found |= {f"policy {name}": dataclasses.replace(flags, ours=f"scall-{name}") for name in POLICIES}
    found["policy sac published"] = dataclasses.replace(flags, ours="scall-sac", policy=PolicyConfig.published())

    def search(**change: Any) -> AblatePolicy:
        return dataclasses.replace(flags, search=dataclasses.replace(flags.search, **change))

    found |= {f"family {name}": search(family=name) for name in FAMILIES}
    found |= {f"map {name}": search(map=name) for name in ("log", "linear")}
    found |= {f"concentration {x:g}": search(concentration=x) for x in (1.0, 10.0, 100.0)}
    found["concentration learned"] = search(learn_concentration=True)
    for on, start in itertools.product(("previous", "current"), ("fresh", "warm")):
        found[f"probes {on} {start}"] = search(on=on, start=start)
    found["reference last_fit"] = search(reference="last_fit")
    found["random numbers of their own"] = search(common=False)
    return selected(flags, {name: x for name, x in found.items() if name == "ours" or not _same(x, flags)})


def selected(flags: AblatePolicy, found: dict[str, A]) -> dict[str, A]:
    """The variants whose names begin as `--only` says; all without it."""
    return {name: x for name, x in found.items() if not flags.only or name.startswith(flags.only)}


def _same(variant: AblatePolicy, ours: AblatePolicy) -> bool:
    """Whether a variant is ours under another name."""
    policy = SEARCHED.get(variant.ours)
    return policy == SEARCHED.get(ours.ours) and dataclasses.replace(variant, ours=ours.ours) == ours


def cells(flags: AblatePolicy, found: Mapping[str, AblatePolicy]) -> list[compare.Cell]:
    """A cell per seed, budget and variant, seed by seed, so that an unfinished ablation has about as many of each.

    Raises:
      ValueError: there is no variant.
    """
    if not found:
        raise ValueError(f"--only {' '.join(flags.only)}: no variant starts so")
    result = []
    for seed, size, (name, variant) in itertools.product(flags.seeds, flags.mean_sizes, found.items()):
        cell = compare.cell_flags(variant, flags.out, variant.ours, size, seed)
        cell = dataclasses.replace(cell, bias=flags.biases[0])
        result.append(compare.Cell({"bias": flags.biases[0], "mean size": f"{size:g}", "variant": name}, cell))
    return result


def run(flags: AblatePolicy, found: Mapping[str, AblatePolicy], base: str, title: str) -> str:
    """Run the cells that are not in the file yet.

    Args:
      flags: of the ablation.
      found: flags of each variant by its name.
      base: the variant that the others are tested against.
      title: what stands above the table.

    Returns:
      The text of the table.
    """
    if flags.report:
        frame = cell_file.finished(flags.results)
    else:
        frame = cell_file.run(flags.results, flags, cells(flags, found))
    return cell_file.publish(flags.results, frame, ROW, base, title, arm="variant")


def main(flags: AblatePolicy) -> str:
    """Run all variants; the text of the table."""
    flags = compare.checked(flags)
    title = "# What matters in the search\n\nBy `python -m experiments.ablate_policy`; its help says what is compared."
    return run(flags, variants(flags), "ours", title)


if __name__ == "__main__":
    cli(AblatePolicy, main, __doc__)
