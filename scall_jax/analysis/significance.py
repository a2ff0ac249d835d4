"""Tests of the difference between the runs of two methods, over users and seeds together, and Holm's correction.

The value of user u under seed s of method m is modelled as

    mean_m + user_u + (user x method)_mu + seed_ms + residual_msu

with random effects for everything but the means: other users and other seeds would have been as good. Both methods
rank the same users, so that user_u cancels in their difference. A test over users with the seeds held fixed leaves
seed_ms out and rejects identical methods far more often than it says, and the more so the more users there are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chex
import numpy as np
from scipy import stats

from scall_jax.methods.registry import BASELINES
from scall_jax.run import manifest

LEAST_SEEDS = 8
"""Seeds of each method that a claim needs. With fewer, the spread over seeds is known too roughly: the test then finds
little, and where the two methods' spreads differ several times, 3 seeds reject identical means in up to 8%, not 5%."""

MARGIN = 0.02
"""Differences that count as none: this part of the other method's mean."""

_ROUNDING = 64 * np.finfo(np.float64).eps
"""Part of a mean within which another mean may be the same, added up otherwise."""

READING = (
    "The difference is between means over users, a user's value being its mean over the segments after the first in "
    "which it is tested. p: that the means are equal, with the variance over users and over seeds. p of "
    f"{100 * MARGIN:g}% or more: that they differ by that part of the other method's mean or more; where it is small, "
    f"the two are equal within {100 * MARGIN:g}%. A claim takes {LEAST_SEEDS} seeds of each method."
)
"""How to read the lines that `sentence` makes, for below them."""


class Difference(NamedTuple):
    """A difference between two means, tested; arrays of the shape of the leading axes, or numbers without any."""

    estimate: Any
    """Mean of ours minus mean of theirs."""
    standard_error: Any
    """Its standard error over users and seeds."""
    freedom: Any
    """Degrees of freedom of this standard error, by Satterthwaite."""
    p_value: Any
    """Two-sided p-value that the means are equal."""
    low: Any
    """Lower end of the 95% confidence interval."""
    high: Any
    """Upper end of the interval."""
    p_equal: Any
    """p-value that the means differ by the margin or more: a small one says that they are equal within the margin."""


class Comparison(NamedTuple):
    """The comparison of the runs of two methods."""

    difference: Difference
    """Of the means over users that `compare_runs` describes, in numbers."""
    seeds: tuple[int | None, int | None]
    """Runs of ours and of theirs; None for a baseline without random numbers."""
    users: int
    """Users that the means are over."""
    margin: float
    """Of `Difference.p_equal`, as a part of the mean of theirs."""

    @property
    def least_seeds(self) -> int | None:
        """The smaller number of seeds; None where neither method has random numbers."""
        return min((seeds for seeds in self.seeds if seeds is not None), default=None)


def compare_means(ours: np.ndarray, theirs: np.ndarray, margin: float = MARGIN) -> Difference:
    """Test the difference between the means of two methods over the same users, with variance over users and seeds.

    The variance of the difference is estimated by expected mean squares,

        V = seeds_a / S_a + seeds_b / S_b + max(users / U - residual_a / (S_a U) - residual_b / (S_b U), 0)

    where seeds_m is the variance over seeds of a method's mean over users, residual_m its mean square of the
    interaction of users and seeds, and users the variance over users of the difference between means over seeds. The
    first two terms contain the residual's part and so does the third, so that it is taken off once; what remains of the
    third estimates the variance of (user x method), which is not negative. The quotient of difference and standard
    error is compared with Student's t at Satterthwaite's (1946) degrees of freedom. Each method has its own variance
    over seeds, as in Welch's test: methods differ in it by several times, and a pooled one then rejects equal means in
    9% of the cases at 3 seeds each, and in 30% at 8 seeds of the steadier method and 3 of the other.

    Equality is tested by two one-sided tests (Schuirmann, 1987), of ours at most 1 - margin times theirs and of ours at
    least 1 + margin times theirs: `p_equal` is the larger of their p-values. Each compares ours with all values of
    theirs scaled, so that it takes account of how uncertain the margin itself is.

    Args:
      ours: f64[..., S_a, U], a value for each seed and user; leading axes are independent data sets.
      theirs: f64[..., S_b, U], of the same users in the same order. Seeds of the two methods are taken to be
        independent; where equal seeds make them alike, as shared random numbers do, the test errs towards finding
        nothing.
      margin: difference that counts as none, as a part of the mean of theirs, which is taken to be positive.

    Returns:
      Difference.

    Raises:
      ValueError: fewer than two seeds of a method, fewer than two users, or a margin that is not positive.

    >>> seeds, users = np.array([[0.0], [0.02], [0.04]]), np.linspace(0, 1, 50)
    >>> found = compare_means(0.1 + seeds + users, seeds + users)
    >>> round(float(found.estimate), 3), round(float(found.freedom), 3), round(float(found.p_value), 4)
    (0.1, 4.0, 0.0036)
    """
    chex.assert_equal_shape_suffix([ours, theirs], 1)
    chex.assert_equal_rank([ours, theirs])
    if min(ours.shape[-2], theirs.shape[-2]) < 2:
        raise ValueError(
            f"{ours.shape[-2]} and {theirs.shape[-2]} seeds: no test is possible without the variance over seeds, "
            f"run at least 2 of each method, and {LEAST_SEEDS} for a claim"
        )
    if ours.shape[-1] < 2:
        raise ValueError(f"{ours.shape[-1]} users: no test is possible, cut the stream so that more are tested")
    if not margin > 0:
        raise ValueError(f"margin={margin}: must be greater than 0")
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    estimate = ours.mean((-2, -1)) - theirs.mean((-2, -1))
    error, freedom = _standard_error(ours, theirs)
    reach = stats.t.ppf(0.975, freedom) * error
    p_value = 2 * np.minimum(_p_above(ours, theirs), _p_above(theirs, ours))
    p_equal = np.maximum(_p_above(ours, (1 - margin) * theirs), _p_above((1 + margin) * theirs, ours))
    return Difference(estimate, error, freedom, np.minimum(p_value, 1.0), estimate - reach, estimate + reach, p_equal)


def _p_above(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """One-sided p-value f64[...] that the mean of `values` is not above that of `others`."""
    error, freedom = _standard_error(values, others)
    means = values.mean((-2, -1)), others.mean((-2, -1))
    difference = means[0] - means[1]
    # Means of the same numbers, added up another number of times, differ by rounding alone.
    rounding = _ROUNDING * np.maximum(np.abs(means[0]), np.abs(means[1]))
    difference = np.where(np.abs(difference) > rounding, difference, 0.0)
    # Without any variance every difference is certain.
    certain = np.where(difference > 0, 0.0, 1.0)
    return np.where(error > rounding, stats.t.sf(difference / np.where(error > 0, error, 1.0), freedom), certain)


def _standard_error(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of the difference between the means, and its degrees of freedom; f64[...] both."""
    users = ours.shape[-1]
    of_users = (ours.mean(-2) - theirs.mean(-2)).var(-1, ddof=1) / users
    seeds, squares, residual = 0.0, of_users**2 / (users - 1), 0.0
    for values in (ours, theirs):
        count = values.shape[-2]
        of_seeds = values.mean(-1).var(-1, ddof=1) / count
        centred = values - values.mean(-1, keepdims=True) - values.mean(-2, keepdims=True)
        interaction = (centred + values.mean((-2, -1), keepdims=True)) ** 2
        degrees = (count - 1) * (users - 1)
        of_residual = interaction.sum((-2, -1)) / degrees / (count * users)
        seeds, residual = seeds + of_seeds, residual + of_residual
        squares = squares + of_seeds**2 / (count - 1) + of_residual**2 / degrees
    variance = seeds + np.maximum(of_users - residual, 0.0)
    return np.sqrt(variance), np.where(variance > 0, variance**2 / np.where(squares > 0, squares, 1.0), users - 1.0)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Correct p-values for their number by the step-down rule of Holm (1979).

    Args:
      p_values: f64[m], of m tests.

    Returns:
      f64[m], corrected p-values in the order given; rejecting those up to a level holds the probability of any false
      rejection at that level.

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p_values, float)
    chex.assert_rank(p, 1)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def by_user(folder: Path, metric: int = 0) -> dict[tuple[int, int], float]:
    """Read a test metric of each user from a run folder.

    Args:
      folder: of a finished run.
      metric: column of `scall_jax.evaluation.BY_USER`: 0 is Recall@20, 1 is NDCG@20.

    Returns:
      The metric by (segment, user); the first segment is left out.

    Raises:
      ValueError: a file of the folder is not what the run wrote.
    """
    manifest.check(folder)
    found: dict[tuple[int, int], float] = {}
    for file in manifest.listed(folder, "users"):
        segment = int(file.stem.removeprefix("segment-"))
        if segment == 0:
            continue
        with np.load(file) as stored:
            values = stored["metrics"][:, metric]
            found |= {(segment, int(user)): float(x) for user, x in zip(stored["users"], values, strict=True)}
    return found


def user_values(folders: Sequence[Path]) -> np.ndarray:
    """The test Recall@20 of each user in runs over one stream.

    A user's value is its mean over the segments after the first in which it is a test user, so that a user counts once
    however often it comes.

    Args:
      folders: finished runs on the same stream.

    Returns:
      f64[S, U], a row for each run; users in ascending order.

    Raises:
      ValueError: a run has no test users, or others than the first run.
    """
    runs = [by_user(folder) for folder in folders]
    keys = sorted(runs[0])
    for run, folder in zip(runs, folders, strict=True):
        if not keys or sorted(run) != keys:
            raise ValueError(
                f"{folder} has {len(run)} test users over its segments, {folders[0]} has {len(keys)}: "
                "compare runs on one stream, cut alike, of which later segments have test users"
            )
    _, place = np.unique([user for _, user in keys], return_inverse=True)
    sums = [np.bincount(place, [run[key] for key in keys]) for run in runs]
    return np.array(sums) / np.bincount(place)


def compare_runs(ours: Sequence[Path], theirs: Sequence[Path], margin: float = MARGIN) -> Comparison:
    """Compare the test Recall@20 of two methods.

    What is compared is the mean over all users who are test users in some segment after the first, each user's value
    being its mean over those segments (`user_values`), and the mean over seeds. A table's Recall@20 is another mean:
    over segments, each of which is a mean over its test users, without segments of few users.

    Args:
      ours: run folders of the one method, one for each seed.
      theirs: run folders of the other method on the same stream.
      margin: difference that counts as none, as a part of the mean of theirs.

    Returns:
      Comparison of `ours` minus `theirs`.

    Raises:
      ValueError: runs on different streams, or fewer than two seeds of a method that is not a baseline.
    """
    values = user_values([*ours, *theirs])
    sides, seeds = [values[: len(ours)], values[len(ours) :]], []
    for number, folders in enumerate((ours, theirs)):
        fixed = len(folders) == 1 and _method(folders[0]) in BASELINES
        seeds.append(None if fixed else len(folders))
        if fixed:
            # A baseline would come out the same for any seed: a second run without variance says so.
            sides[number] = np.repeat(sides[number], 2, axis=0)
    found = Difference(*map(float, compare_means(sides[0], sides[1], margin)))
    return Comparison(found, (seeds[0], seeds[1]), values.shape[1], margin)


def _method(folder: Path) -> str:
    return manifest.read_json(folder / "config.json")["config"]["method"]


def sentence(comparison: Comparison, p_value: float | None = None, p_equal: float | None = None) -> str:
    """Say in a line what a comparison found, and whether it has enough seeds for a claim; `READING` explains it.

    Args:
      comparison: of two methods.
      p_value, p_equal: shown instead of the comparison's, for p-values that were corrected for their number.

    Returns:
      Text without a final full stop.

    >>> found = Difference(0.004, 0.001, 14.0, 0.0012, 0.0019, 0.0061, 0.9)
    >>> print(sentence(Comparison(found, (3, None), 3585, 0.02)).replace("; ", "\\n"))
    Recall@20 +0.0040 (95%: +0.0019 to +0.0061), p 0.0012, p of 2% or more 0.9
    3 and any seeds, 3,585 users
    3 seeds: too few for a claim
    """
    found = comparison.difference
    p_value = found.p_value if p_value is None else p_value
    p_equal = found.p_equal if p_equal is None else p_equal
    seeds = " and ".join("any" if count is None else str(count) for count in comparison.seeds)
    text = (
        f"Recall@20 {found.estimate:+.4f} (95%: {found.low:+.4f} to {found.high:+.4f}), p {p_value:.2g}, "
        f"p of {100 * comparison.margin:g}% or more {p_equal:.2g}; {seeds} seeds, {comparison.users:,} users"
    )
    least = comparison.least_seeds
    return text + (f"; {least} seeds: too few for a claim" if least is not None and least < LEAST_SEEDS else "")


_P_VALUES = ("p_value", "p_equal")


def tested(pairs: Mapping[str, tuple[Sequence[Path], Sequence[Path]]]) -> list[str]:
    """Markdown lines of the tests between pairs of methods, corrected together for their number by Holm's rule.

    Args:
      pairs: run folders of the one method and of the other by the words that name the pair.

    Returns:
      A line for each pair: what the test found, or why there is none.
    """
    found: dict[str, Comparison] = {}
    lines: dict[str, str] = {}
    for name, (ours, theirs) in pairs.items():
        try:
            found[name] = compare_runs(ours, theirs)
        except ValueError as error:
            lines[name] = f"- {name}: {error}"
    differences = [comparison.difference for comparison in found.values()]
    corrected = zip(*(holm([getattr(x, p) for x in differences]) for p in _P_VALUES), strict=True)
    for (name, comparison), p_values in zip(found.items(), corrected, strict=True):
        lines[name] = f"- {name}: {sentence(comparison, *p_values)}"
    return [lines[name] for name in pairs]
