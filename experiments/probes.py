"""How much of a probe's fitness its action explains, from finished searched runs: is there something to find?

    python -m experiments.probes --out runs/scall        # after python -m experiments.scall or compare

A probe's gain is its fitness on valid over that of the uniform probe of its segment, minus one. Pooled over the runs of
one budget, whatever their policy: the spread of gains within a search; how much of it a quadratic function of the three
numbers, fitted on the other runs, explains (at most 0: nothing that carries over from run to run); the mean gain ± its
standard error by fifths of the users' share. Writes probes.md into --out and prints it. Cost: seconds, nothing is
trained. Expect the quadratic to explain little where a segment has few valid users.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import chex
import numpy as np

from scall_jax.analysis import report
from scall_jax.cli.cli import cli, command
from scall_jax.run import folder as run_folder


class Gain(NamedTuple):
    """What a probe gained."""

    run: int
    """Number of its run, from 1."""
    search: int
    """Number of its search, over all runs, from 1."""
    action: list[float]
    """Its action, 3 numbers."""
    gain: float
    """Its fitness by that of the uniform probe, minus one."""
    valid_users: int
    """Valid users of its segment."""


@dataclasses.dataclass(frozen=True)
class Probes:
    """Flags of the report on probes."""

    out: Path = Path("runs/scall")
    """Folder with finished runs at any depth."""
    first: int = 2
    """First segment that counts; before it the embeddings are hardly trained."""
    parts: int = 5
    """Parts of the range of the users' share, a column for each."""


def read(out: Path, first: int) -> dict[str, dict[str, np.ndarray]]:
    """Read the probes of finished runs.

    Args:
      out: folder with finished runs at any depth.
      first: first segment that counts.

    Returns:
      By budget (as JSON) the fields of `Gain` as arrays over n probes: i64[n], action f64[n, 3], gain f64[n].

    Raises:
      ValueError: no run searches with a uniform probe beside it.
    """
    found: dict[str, list[Gain]] = {}
    runs = searches = 0
    for path in sorted(out.rglob("summary.json")):
        budget = json.dumps(json.loads((path.parent / "config.json").read_text())["config"].get("budget"))
        runs += 1
        for line in run_folder.read_lines(path.parent / "metrics.jsonl"):
            # Without valid users fitness is minus the loss, and a ratio of losses is no gain.
            if line["segment"] < first or not line.get("probe_reference", 0) > 0 or len(line["probe_actions"][0]) != 3:
                continue
            searches += 1
            for action, fitness in zip(line["probe_actions"], line["probe_fitness"], strict=True):
                gain = fitness / line["probe_reference"] - 1
                row = Gain(runs, searches, action, gain, line["valid_users"])
                found.setdefault(budget, []).append(row)
    if not found:
        raise ValueError(f"{out} holds no finished run of SCALL's search with --search.reference uniform")
    return {
        key: {name: np.array([getattr(row, name) for row in rows]) for name in Gain._fields}
        for key, rows in found.items()
    }


def quadratic(actions: np.ndarray) -> np.ndarray:
    """Monomials up to the second degree.

    Args:
      actions: f64[n, 3].

    Returns:
      f64[n, 10].
    """
    chex.assert_shape(actions, (None, 3))
    pairs = [actions[:, i] * actions[:, j] for i in range(3) for j in range(i, 3)]
    return np.column_stack([np.ones(len(actions)), actions, *pairs])


def explained(action: np.ndarray, gain: np.ndarray, run_number: np.ndarray) -> float:
    """Part of the gains' variance that a quadratic function of the action explains, fitted on the other runs.

    Args:
      action: f64[n, 3], of each probe.
      gain: f64[n], of each probe.
      run_number: i64[n], the run of each probe.

    Returns:
      At most 1, negative where predicting the mean would be better; nan for one run.
    """
    chex.assert_shape(action, (len(gain), 3))
    chex.assert_equal_shape([gain, run_number])
    if len(np.unique(run_number)) < 2:
        return float("nan")
    features, error = quadratic(action), np.zeros(len(gain))
    for left_out in np.unique(run_number):
        own = run_number == left_out
        weights, *_ = np.linalg.lstsq(features[~own], gain[~own], rcond=None)
        error[own] = gain[own] - features[own] @ weights
    return float(1 - (error**2).sum() / ((gain - gain.mean()) ** 2).sum())


def spread_within(gain: np.ndarray, search: np.ndarray) -> float:
    """Standard deviation of gains around the mean of their search.

    Args:
      gain: f64[n], of each probe.
      search: i64[n], the search of each probe.

    Returns:
      The pooled standard deviation, in the unit of `gain`.
    """
    chex.assert_equal_shape([gain, search])
    number = np.unique(search, return_inverse=True)[1]
    mean = np.bincount(number, gain) / np.bincount(number)
    return float(np.sqrt(((gain - mean[number]) ** 2).sum() / (len(gain) - len(mean))))


def by_share(share: np.ndarray, gain: np.ndarray, parts: int) -> list[str]:
    """Mean gains by the users' share of the budget.

    Args:
      share: f64[n], users' share of each probe, in (0, 1).
      gain: f64[n], of each probe.
      parts: equal parts of (0, 1).

    Returns:
      A cell for each part: mean ± standard error in percent, a dash where no probe lies there.
    """
    chex.assert_equal_shape([share, gain])
    part, cells = np.minimum((share * parts).astype(int), parts - 1), []
    for i in range(parts):
        own = gain[part == i]
        spread = np.std(own, ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.nan
        cells.append(f"{100 * own.mean():+.1f} ± {100 * spread:.1f}" if len(own) else "-")
    return cells


def main(flags: Probes) -> str:
    """Write and print the table, a row per budget; the Markdown text."""
    rows = []
    for budget, found in read(flags.out, flags.first).items():
        size: dict[str, Any] = {k: v for k, v in json.loads(budget).items() if v}
        cells = [
            ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in size.items()),
            str(len(np.unique(found["run"]))),
            str(len(found["gain"])),
            f"{np.median(found['valid_users']):.0f}",
            f"{100 * spread_within(found['gain'], found['search']):.1f}",
            f"{100 * explained(found['action'], found['gain'], found['run']):.1f}",
        ]
        rows.append([*cells, *by_share(found["action"][:, 0], found["gain"], flags.parts)])
    edges = [f"{i / flags.parts:g} to {(i + 1) / flags.parts:g}" for i in range(flags.parts)]
    header = ["budget", "runs", "probes", "valid users", "spread %", "explained %", *(f"rho {edge}" for edge in edges)]
    text = report.markdown(header, rows)
    note = "Gains in percent of the uniform probe's fitness; valid users: the median segment's."
    run_folder.write_atomically(flags.out / "probes.md", f"`{command()}`\n\n{text}\n\n{note}\n")
    print(f"{text}\n\n{note}")
    return text


if __name__ == "__main__":
    cli(Probes, main, __doc__)
