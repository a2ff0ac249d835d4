"""What matters in the search: the policy, the concentration, the family of sizes, the map of shapes, the probes.

    python -m experiments.ablate_policy --data yelp.parquet --mean-sizes 4 --fit.steps 1000

A row per variant, each one change away from `--ours`. Cost: 21 variants x seeds searched runs. Expect differences
near the spread over seeds: the optimum is flat.
"""

import dataclasses
import itertools
from pathlib import Path

from experiments import compare
from scall_jax import SEARCHED
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli
from scall_jax.policies import POLICIES, PolicyConfig
from scall_jax.sizes import FAMILIES


@dataclasses.dataclass(frozen=True)
class AblatePolicy(compare.Compare):
    """Flags; those of `experiments.compare` hold."""

    ours: str = "scall"
    """The method that variants start from."""
    only: tuple[str, ...] = ()
    """Run the variants whose name starts so; all without."""
    mean_sizes: tuple[float, ...] = (4.0,)
    """Budgets, in parameters per entity."""
    out: Path = Path("runs/ablate_policy")
    """Folder of the cells and the table."""


def variants(flags: AblatePolicy) -> dict[str, run_flags.Main]:
    """Name and flags of each variant."""
    found = {"ours": flags}
    found |= {f"policy {name}": dataclasses.replace(flags, ours=f"scall-{name}") for name in POLICIES}
    found["policy sac published"] = dataclasses.replace(flags, ours="scall-sac", policy=PolicyConfig.published())

    def search(**change):
        return dataclasses.replace(flags, search=dataclasses.replace(flags.search, **change))

    found |= {f"family {name}": search(family=name) for name in FAMILIES}
    found |= {f"map {name}": search(map=name) for name in ("log", "linear")}
    found |= {f"concentration {x:g}": search(concentration=x) for x in (1.0, 10.0, 100.0)}
    found["concentration learned"] = search(learn_concentration=True)
    for on, start in itertools.product(("previous", "current"), ("fresh", "warm")):
        found[f"probes {on} {start}"] = search(on=on, start=start)
    found["reference last_fit"] = search(reference="last_fit")
    found["random numbers of their own"] = search(common=False)
    found = {name: x for name, x in found.items() if name == "ours" or not _same(x, flags)}
    if flags.only:
        found = {name: x for name, x in found.items() if name.startswith(flags.only)}
    return found


def _same(variant, ours):
    """Whether a variant is ours under another name."""
    policy = SEARCHED.get(variant.ours)
    return policy == SEARCHED.get(ours.ours) and dataclasses.replace(variant, ours=ours.ours) == ours


def cells(flags: compare.Compare, found: dict[str, compare.Compare]) -> list[tuple[dict, run_flags.Main]]:
    """A cell per variant, budget and seed.

    Raises:
      ValueError: no variant.
    """
    if not found:
        raise ValueError(f"--only {' '.join(flags.only)}: no variant starts so")
    result = []
    for name, variant in found.items():
        for size in flags.mean_sizes:
            for seed in flags.seeds:
                out = flags.out / name.replace(" ", "-") / f"mean{size:g}-seed{seed}"
                cell = compare.cell_flags(variant, out, variant.ours, size, seed)
                cell = dataclasses.replace(cell, bias=flags.biases[0])
                result.append(({"variant": name, "mean size": f"{size:g}"}, cell))
    return result


def main(flags: AblatePolicy) -> list[dict]:
    """Run all variants."""
    flags = compare.checked(flags)
    return compare.run_cells(flags, cells(flags, variants(flags)), "experiments.ablate_policy")


if __name__ == "__main__":
    cli(AblatePolicy, main, __doc__)
