"""What the policy needs to see: the variants of the published ablation of the state, and a state without information.

    python -m experiments.ablate_state --data yelp.parquet --mean-sizes 4 --fit.steps 1000

A row per variant. Cost: 5 variants x seeds searched runs. Expect no difference beyond the spread over seeds: within a
segment the search is nearly a bandit.
"""

import dataclasses
from pathlib import Path

from experiments import ablate_policy, compare
from scall_jax import ObserveConfig
from scall_jax.cli.cli import cli


@dataclasses.dataclass(frozen=True)
class AblateState(ablate_policy.AblatePolicy):
    """Flags; all those of `experiments.compare` apply."""

    ours: str = "scall-sac"
    """The method, one whose policy is a network."""
    out: Path = Path("runs/ablate_state")
    """Folder of the cells and the table."""


def main(flags: AblateState) -> list[dict[str, str]]:
    """Run all variants; a row per variant and budget."""
    flags = compare.checked(flags)
    groups = flags.observe.groups
    states = {
        "state as published": ObserveConfig(groups),
        "gini for size spread": ObserveConfig(groups, spread=False, gini=True),
        "gini for mean embedding": ObserveConfig(groups, embedding=False, gini=True),
        "all parts": ObserveConfig(groups, gini=True),
        "no parts, one group": ObserveConfig(1, embedding=False, spread=False),
    }
    found = {name: dataclasses.replace(flags, observe=state) for name, state in states.items()}
    return compare.run_cells(flags, ablate_policy.cells(flags, ablate_policy.selected(flags, found)))


if __name__ == "__main__":
    cli(AblateState, main, __doc__)
