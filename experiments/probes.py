"""How much of a probe's fitness its action explains, from finished searched runs: is there something to find?

    python -m experiments.probes --out runs/compare      # after python -m experiments.compare with searches

A probe's gain is its fitness on valid over that of the uniform probe of its segment, minus one. All probes of a search
share that one uniform probe and with it its noise, so that gains are comparable within a search and not between
searches. Pooled over the runs of one budget, whatever their policy: what all probes together gain over all uniform
ones; the spread of gains within a search; how much of that a quadratic function of the three numbers, fitted on the
other runs, explains (0 or less: nothing that carries over from run to run); how much better probes of each fifth of the
users' share are than the mean one of their search. ± is the standard error over searches, by which these differ as
wholes. Writes probes.md into --out and prints it. Cost: seconds, nothing is trained. Expect the quadratic to explain
little where a segment has few valid users.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chex
import numpy as np

from scall_jax import SEARCHED
from scall_jax.analysis import report
from scall_jax.cli.cli import cli, command
from scall_jax.run import manifest, text_files


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
    reference: float
    """Fitness of the uniform probe of its search."""
    valid_users: int
    """Valid users of its segment."""


@dataclasses.dataclass(frozen=True)
class Probes:
    """Flags of the report on probes."""

    out: Path = Path("runs/compare")
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
        manifest.check(path.parent)
        config = json.loads((path.parent / "config.json").read_text())["config"]
        # Other methods probe, too: their numbers are no shapes, and other references no uniform probe.
        search = config["search"]
        if config["method"] not in set(SEARCHED) - {"scall-gain"} or (search["actions"], search["reference"]) != (
            "shapes",
            "uniform",
        ):
            continue
        budget = json.dumps(config.get("budget"))
        runs += 1
        for line in text_files.read_lines(path.parent / "metrics.jsonl"):
            # Without valid users fitness is minus the loss, and a ratio of losses is no gain.
            if line["segment"] < first or not line.get("probe_reference", 0) > 0 or len(line["probe_actions"][0]) != 3:
                continue
            searches += 1
            for action, fitness in zip(line["probe_actions"], line["probe_fitness"], strict=True):
                gain = fitness / line["probe_reference"] - 1
                row = Gain(runs, searches, action, gain, line["probe_reference"], line["valid_users"])
                found.setdefault(budget, []).append(row)
    if not found:
        raise ValueError(f"{out} holds no finished run of SCALL's search with --search.reference uniform")
    return {
        key: {name: np.array([getattr(row, name) for row in rows]) for name in Gain._fields}
        for key, rows in found.items()
    }


def quadratic(actions: np.ndarray) -> np.ndarray:
    """Monomials of the first and the second degree.

    Args:
      actions: f64[n, 3].

    Returns:
      f64[n, 9].
    """
    chex.assert_shape(actions, (None, 3))
    pairs = [actions[:, i] * actions[:, j] for i in range(3) for j in range(i, 3)]
    return np.column_stack([actions, *pairs])


def centred(values: np.ndarray, search: np.ndarray) -> np.ndarray:
    """Values less the mean of their search, which is what they tell apart from what a search's probes share.

    Args:
      values: f64[n] or f64[n, k], of each probe.
      search: i64[n], the search of each probe.

    Returns:
      An array of the same shape.

    >>> centred(np.array([1.0, 3.0, 8.0]), np.array([5, 5, 2])).tolist()
    [-1.0, 1.0, 0.0]
    """
    chex.assert_equal_shape_prefix([values, search], 1)
    _, number, count = np.unique(search, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), *values.shape[1:]))
    np.add.at(sums, number, values)
    return values - (sums.T / count).T[number]


def explained(found: Mapping[str, np.ndarray]) -> float:
    """Part of the gains' variance within searches that a quadratic function of the action explains.

    Gains and monomials are centred within each search, as for a model with a constant of its own for each search: the
    noise of the reference is the same for all probes of a search and does not count as unexplained. The function is
    fitted on the other runs.

    Args:
      found: fields of `Gain`, of which run, search, action and gain count.

    Returns:
      At most 1, negative where no function at all would be better; nan for one run.
    """
    gain, run = found["gain"], found["run"]
    chex.assert_shape(found["action"], (len(gain), 3))
    chex.assert_equal_shape([gain, run, found["search"]])
    if len(np.unique(run)) < 2:
        return float("nan")
    features, gain = centred(quadratic(found["action"]), found["search"]), centred(gain, found["search"])
    error = np.zeros(len(gain))
    for left_out in np.unique(run):
        own = run == left_out
        weights, *_ = np.linalg.lstsq(features[~own], gain[~own], rcond=None)
        error[own] = gain[own] - features[own] @ weights
    return float(1 - (error**2).sum() / (gain**2).sum())


def spread_within(gain: np.ndarray, search: np.ndarray) -> float:
    """Standard deviation of gains around the mean of their search.

    Args:
      gain: f64[n], of each probe.
      search: i64[n], the search of each probe.

    Returns:
      The pooled standard deviation, in the unit of `gain`.
    """
    chex.assert_equal_shape([gain, search])
    return float(np.sqrt((centred(gain, search) ** 2).sum() / (len(gain) - len(np.unique(search)))))


def over_uniform(found: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Fitness of all searches' mean probes relative to that of their uniform probes together, minus one.

    A mean of ratios would be too large by the variance of the references' noise, a ratio of sums is not.

    Args:
      found: fields of `Gain`, of which search, gain and reference count.

    Returns:
      The gain, and its standard error over searches; nan for one search.
    """
    _, first, number = np.unique(found["search"], return_index=True, return_inverse=True)
    reference = found["reference"][first]
    fitness = reference * (1 + np.bincount(number, found["gain"]) / np.bincount(number))
    ratio, count = fitness.sum() / reference.sum(), len(first)
    error = np.std(fitness - ratio * reference, ddof=1) / np.sqrt(count) / reference.mean() if count > 1 else np.nan
    return float(ratio - 1), float(error)


def by_share(share: np.ndarray, gain: np.ndarray, search: np.ndarray, parts: int) -> list[str]:
    """How much better probes of each part of the range of the users' share are than the mean probe of their search.

    Args:
      share: f64[n], users' share of each probe, in (0, 1).
      gain: f64[n], of each probe.
      search: i64[n], the search of each probe.
      parts: equal parts of (0, 1).

    Returns:
      A cell for each part: gain ± standard error in percent, a dash where no probe lies there.
    """
    chex.assert_equal_shape([share, gain, search])
    part = np.minimum((share * parts).astype(int), parts - 1)
    effects, errors = part_effects(part, gain, search, parts)
    cells = [f"{100 * effect:+.1f} ± {100 * error:.1f}" for effect, error in zip(effects, errors, strict=True)]
    return [cell if (part == number).any() else "-" for number, cell in enumerate(cells)]


def part_effects(part: np.ndarray, gain: np.ndarray, search: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Constants of parts in a model of gains with a constant for each search and one for each part.

    Args:
      part: i64[n], the part of each probe, below `parts`.
      gain: f64[n], of each probe.
      search: i64[n], the search of each probe.
      parts: number of parts.

    Returns:
      f64[parts], the constants by least squares, which average 0 over all probes, and f64[parts], their standard errors
      where searches are independent (the sandwich of Liang and Zeger, 1986, with their number over one less); nan for a
      single search, which says nothing of how searches differ.

    >>> effects, _ = part_effects(np.array([0, 1, 0, 1]), np.array([1.0, 3.0, 9.0, 11.0]), np.array([0, 0, 1, 1]), 2)
    >>> effects.round(6).tolist()
    [-1.0, 1.0]
    """
    chex.assert_equal_shape([part, gain, search])
    inside = np.eye(parts)[part]
    design, gain = centred(inside, search), centred(gain, search)
    to_average_zero = np.eye(parts) - inside.mean(0)
    linear = to_average_zero @ np.linalg.pinv(design.T @ design) @ design.T  # gains to constants
    effects = linear @ gain
    influence = linear * (gain - design @ effects)
    count = len(np.unique(search))
    by_search = np.zeros((count, parts))
    np.add.at(by_search, np.unique(search, return_inverse=True)[1], influence.T)
    # Residuals are fitted to the same searches, so that few of them seem to differ less than they do.
    more = count / (count - 1) if count > 1 else np.nan
    return effects, np.sqrt(more * (by_search**2).sum(0))


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
            "{:+.1f} ± {:.1f}".format(*(100 * x for x in over_uniform(found))),
            f"{100 * spread_within(found['gain'], found['search']):.1f}",
            f"{100 * explained(found):.1f}",
        ]
        rows.append([*cells, *by_share(found["action"][:, 0], found["gain"], found["search"], flags.parts)])
    edges = [f"{i / flags.parts:g} to {(i + 1) / flags.parts:g}" for i in range(flags.parts)]
    header = ["budget", "runs", "probes", "valid users", "over uniform %", "spread %", "explained %"]
    text = report.markdown([*header, *(f"rho {edge} %" for edge in edges)], rows)
    note = (
        "Percent of the uniform probe's fitness, ± standard error over searches; valid users: the median segment's. "
        "Explained: part of the variance within searches. rho: against the mean probe of the same search."
    )
    text_files.write_atomically(flags.out / "probes.md", f"`{command()}`\n\n{text}\n\n{note}\n")
    print(f"{text}\n\n{note}")
    return text


if __name__ == "__main__":
    cli(Probes, main, __doc__)
