"""One check of an accelerator, in under eight minutes: what runs there, and how close to the device's own limits.

    export XLA_PYTHON_CLIENT_PREALLOCATE=false
    python -m experiments.device_check

Searched runs by sac and ddpg on three segments, 32 mapped runs (8 budgets x 4 seeds) beside one, and then each part:
training step, evaluation, sizes, sampler, state, policies, resizing. Each is a case of `experiments.benchmark`, in a
process of its own, beside the copy bandwidth and the matrix rate that are measured in the same process. Cases are
compiled side by side and measured one after the other; the most telling come first, since no case is begun after
--minutes. Writes benchmark.json and benchmark.md into --out. Cost: at most --minutes and the last group of cases.
Expect every case to have a row. On a CPU it only shows that all cases run.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.benchmark.__main__ import Benchmark, measure_all
from scall_jax.cli.cli import cli

CASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("searched", ("online-retail", "scall-sac", "3")),
    ("searched", ("online-retail", "scall-ddpg", "3")),
    ("sweep", ("online-retail", "1")),
    ("sweep", ("online-retail", "32")),
    ("step", ("synthetic", "16")),
    ("step", ("synthetic", "sized16")),
    ("evaluation", ("synthetic", "16")),
    ("sizes", ("1e6",)),
    ("sampler", ("1e6",)),
    ("state", ("1e5",)),
    ("policy", ("sac",)),
    ("policy", ("ddpg",)),
    ("policy", ("gp",)),
    ("resize", ("synthetic", "plain")),
    ("resize", ("synthetic", "rotated")),
    ("product", ("synthetic", "64")),
)
"""The cases in the order of what they tell."""


@dataclasses.dataclass(frozen=True)
class DeviceCheck:
    """Flags of the check."""

    minutes: float = 6.5
    """After these no further group of cases is begun."""
    side_by_side: int = 4
    """Cases that are compiled at a time; as many as a quarter of the host's cores."""
    only: tuple[str, ...] = ()
    """Names of the cases to run; all by default."""
    out: Path = Path("runs/device_check")
    """Folder of the results."""


def main(flags: DeviceCheck) -> list[dict[str, Any]]:
    """Measure the cases; a row for each that was measured."""
    chosen = [case for case in CASES if not flags.only or case[0] in flags.only]
    if not chosen:
        raise ValueError(f"--only {' '.join(flags.only)}: choose from {', '.join(sorted({name for name, _ in CASES}))}")
    rows = measure_all(chosen, Benchmark(prepare=flags.side_by_side, out=flags.out), 60 * flags.minutes)
    if len(rows) < len(chosen):
        print(f"{len(chosen) - len(rows)} of {len(chosen)} cases have no row")
    return rows


if __name__ == "__main__":
    cli(DeviceCheck, main, __doc__)
