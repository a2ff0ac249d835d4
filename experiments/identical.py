"""Identical runs against each other: how often does the test of significance reject what is equal?

    python -m experiments.identical                                   # uniform sizes on online-retail, 16 seeds
    python -m experiments.identical --method uniform frequency --data yelp.parquet --out runs/identical-yelp

Takes the flags of `experiments.compare` and its cells: finished runs are kept, those of an earlier comparison in --out
included, and an interrupted one continues. Then every method is compared with itself: its seeds are split into two
groups of --per-side in all ways (at most --most-splits of them, drawn at random), and each split is tested as two
methods would be. Writes identical/table.md into --out and prints it. Splits share runs, so that the rates of a row hang
together: `apart` is the number of splits of which no two share any. Cost: the sum of the runs, about half a minute each
by default; the tests take seconds. Expect rejections in about 5% of the splits at .05, give or take as much, and
equality within 2% to be accepted seldom where a mean varies by more than 1% from seed to seed.
"""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np

from experiments import compare
from scall_jax.analysis import report, significance
from scall_jax.cli import method_flags
from scall_jax.cli.cli import cli
from scall_jax.methods.registry import BASELINES

LEVELS = (0.05, 0.01, 0.001)
"""Levels at which rejections are counted."""


@dataclasses.dataclass(frozen=True)
class Identical(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    method: tuple[str, ...] = ("uniform",)
    """Methods to compare with themselves."""
    mean_sizes: tuple[float, ...] = (2.0,)
    """Budgets, in parameters per entity."""
    seeds: tuple[int, ...] = tuple(range(16))
    """Seeds of the runs; a run for each."""
    per_side: tuple[int, ...] = (2, 3, 5, 8)
    """Seeds of each of the two groups; those that need more seeds than there are are left out."""
    most_splits: int = 2000
    """Splits to test, at most."""
    out: Path = Path("runs/identical")
    """Folder of the cells; tables go to identical/ in it."""


def splits(runs: int, per_side: int, most: int) -> np.ndarray:
    """Ways to take two groups of runs that share none.

    Args:
      runs: number of runs.
      per_side: runs of each group.
      most: ways to return; where there are more, as many different ones at random.

    Returns:
      i64[ways, 2, per_side], numbers of runs; the order of the two groups and within them does not matter.

    >>> splits(4, 2, most=10).tolist()
    [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 3], [1, 2]]]
    """
    ways = math.comb(runs, per_side) * math.comb(runs - per_side, per_side) // 2
    if ways <= most:
        firsts = itertools.combinations(range(runs), per_side)
        pairs = ((a, b) for a in firsts for b in itertools.combinations(range(a[0] + 1, runs), per_side))
        return np.array([pair for pair in pairs if not set(pair[0]) & set(pair[1])])
    rng, found = np.random.default_rng(0), set()
    while len(found) < most:
        drawn = rng.permutation(runs)[: 2 * per_side]
        found.add(tuple(sorted(tuple(sorted(half.tolist())) for half in (drawn[:per_side], drawn[per_side:]))))
    return np.array(sorted(found))


def rates(values: np.ndarray, chosen: np.ndarray) -> tuple[list[float], float]:
    """How often the test rejects, and accepts equality within `significance.MARGIN`.

    Args:
      values: f64[runs, U], of each run and user.
      chosen: i64[ways, 2, per_side], of `splits`.

    Returns:
      Parts of the ways that are rejected at each of `LEVELS`, and the part of which equality is accepted at .05.
    """
    found = [significance.compare_means(values[ours], values[theirs]) for ours, theirs in chosen]
    p_values, p_equal = np.array([x.p_value for x in found]), np.array([x.p_equal for x in found])
    return [float((p_values < level).mean()) for level in LEVELS], float((p_equal < LEVELS[0]).mean())


def identical(flags: Identical, folders: compare.Groups) -> str:
    """Markdown table of the rates of each method and budget."""
    rows = []
    for key, runs in folders.items():
        values = significance.user_values(runs)
        for per_side in flags.per_side:
            if 2 * per_side > len(runs):
                continue
            chosen = splits(len(runs), per_side, flags.most_splits)
            rejected, accepted = rates(values, chosen)
            shown = [dict(key)["method"], dict(key)["mean size"], f"{per_side} and {per_side}", str(len(chosen))]
            cells = [str(len(runs) // (2 * per_side)), *(f"{100 * x:.1f}" for x in rejected), f"{100 * accepted:.1f}"]
            rows.append([*shown, *cells])
    header = ["method against itself", "mean size", "seeds", "splits", "apart"]
    header += [f"% rejected at {level:g}" for level in LEVELS]
    return report.markdown([*header, f"% equal within {100 * significance.MARGIN:g}%"], rows)


def main(flags: Identical) -> str:
    """Run all cells and compare them with themselves; the table of rates."""
    flags = compare.checked(flags)
    if min(flags.per_side, default=0) < 2:
        raise ValueError("--per-side: at least 2, since no test is possible with fewer seeds")
    if 2 * min(flags.per_side) > len(flags.seeds):
        raise ValueError(f"--seeds: {len(flags.seeds)} are not enough for two groups of {min(flags.per_side)}")
    if flags.most_splits < 1:
        raise ValueError(f"--most-splits {flags.most_splits}: at least 1")
    if not_random := set(method_flags.expand(flags.method)) & set(BASELINES):
        raise ValueError(f"--method {' '.join(sorted(not_random))}: a baseline is the same for every seed")
    texts: list[str] = []

    def below(folders: compare.Groups) -> str:
        texts.append(identical(flags, folders))
        return texts[0]

    compare.run_cells(dataclasses.replace(flags, out=flags.out / "identical"), compare.cells(flags), below)
    return texts[0]


if __name__ == "__main__":
    cli(Identical, main, __doc__)
