"""What the policy needs to see: the variants of the published ablation of the state, and a state without information.

    python -m experiments.ablate_state --data yelp2019_a.parquet --cut.segments 4
    python -m experiments.ablate_state --data yelp2019_a.parquet --cut.segments 4 --ours scall-ddpg

A row per variant. Each cell is a row of --results as soon as it is finished, and is not run again. Writes, beside the
file, a table of all of its cells with tests against the parts as published, and prints it. It is the published
ablation of what is observed, within the search of this project: 64 windows of frequency where 256 are published, a
dozen probes a segment, and a discount of 0, so that the next state has no influence. Cost: 5 variants of a
searched run a seed, of some three minutes each on one core. Expect no difference beyond the spread over seeds: within
a segment the search is nearly a bandit.
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
    seeds: tuple[int, ...] = tuple(range(5))
    """Seeds of the runs; a run for each."""
    results: Path = Path("experiments/results/ablate_state.parquet")
    """File of the finished cells."""
    out: Path = Path("runs/ablate_state")
    """Folder for the run in progress and for compiled programs."""


BASE = "parts as published"
"""The variant that the others are tested against."""


def main(flags: AblateState) -> str:
    """Run all variants; the text of the table."""
    flags = compare.checked(flags)
    groups = flags.observe.groups
    states = {
        BASE: ObserveConfig(groups),
        "gini for size spread": ObserveConfig(groups, spread=False, gini=True),
        "gini for mean embedding": ObserveConfig(groups, embedding=False, gini=True),
        "all parts": ObserveConfig(groups, gini=True),
        "no parts, one group": ObserveConfig(1, embedding=False, spread=False),
    }
    found = {name: dataclasses.replace(flags, observe=state) for name, state in states.items()}
    title = "# What the policy needs to see\n\nBy `python -m experiments.ablate_state`; its help says what is compared."
    return ablate_policy.run(flags, ablate_policy.selected(flags, found), BASE, title)


if __name__ == "__main__":
    cli(AblateState, main, __doc__)
