"""What matters in the search: the policy, the concentration, the family of sizes, the map of shapes, the probes.

    python -m experiments.ablate_policy --data yelp.parquet --mean-sizes 4 --fit.steps 1000

A row per variant, each one change away from `--ours`. Cost: 21 variants x seeds searched runs. Expect differences
near the spread over seeds: the optimum is flat.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments import compare
from scall_jax import SEARCHED
from scall_jax.cli.cli import cli
from scall_jax.policies import POLICIES, PolicyConfig
from scall_jax.sizes import FAMILIES


@dataclasses.dataclass(frozen=True)
class AblatePolicy(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    ours: str = "scall"
    """The method that variants start from."""
    only: tuple[str, ...] = ()
    """Beginnings of the names of the variants to run; by default all run."""
    mean_sizes: tuple[float, ...] = (4.0,)
    """Budgets, in parameters per entity."""
    out: Path = Path("runs/ablate_policy")
    """Folder of the cells and the table."""


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
    """A cell per variant, budget and seed.

    Raises:
      ValueError: there is no variant.
    """
    if not found:
        raise ValueError(f"--only {' '.join(flags.only)}: no variant starts so")
    result = []
    for name, variant in found.items():
        for size, seed in itertools.product(flags.mean_sizes, flags.seeds):
            out = flags.out / name.replace(" ", "-") / f"mean{size:g}-seed{seed}"
            cell = compare.cell_flags(variant, out, variant.ours, size, seed)
            cell = dataclasses.replace(cell, bias=flags.biases[0])
            result.append(compare.Cell({"variant": name, "mean size": f"{size:g}"}, cell))
    return result


def main(flags: AblatePolicy) -> list[dict[str, str]]:
    """Run all variants; a row per variant and budget."""
    flags = compare.checked(flags)
    return compare.run_cells(flags, cells(flags, variants(flags)))


if __name__ == "__main__":
    cli(AblatePolicy, main, __doc__)
