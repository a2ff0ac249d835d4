"""Paired tests between the runs of two methods, over users and over seeds, and their correction for many tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import chex
import numpy as np
from scipy import special


class Comparison(TypedDict):
    """The comparison of two methods."""

    difference: float
    """Mean over users of their mean difference over segments and seeds."""
    users: float
    """Two-sided p-value that this difference is 0 for users like these, given the runs' seeds."""
    count: int
    """Number of users."""
    seeds: float | None
    """Two-sided p-value over pairs of one seed's mean over all (segment, user); None with fewer than two pairs."""


def by_user(folder: Path, metric: int = 0) -> dict[tuple[int, int], float]:
    """Read a test metric of each user from a run folder.

    Args:
      folder: of a finished run.
      metric: column of `scall_jax.evaluation.BY_USER`: 0 is Recall@20, 1 is NDCG@20.

    Returns:
      The metric by (segment, user); the first segment is left out.
    """
    found: dict[tuple[int, int], float] = {}
    for file in sorted((folder / "users").glob("segment-*.npz")):
        segment = int(file.stem.removeprefix("segment-"))
        if segment == 0:
            continue
        with np.load(file) as stored:
            values = stored["metrics"][:, metric]
            found |= {(segment, int(user)): float(x) for user, x in zip(stored["users"], values, strict=True)}
    return found


def paired_t(differences: np.ndarray) -> float:
    """Two-sided p-value of Student's t test that the mean of paired differences is 0.

    Args:
      differences: f64[n], one for each pair.

    Returns:
      The p-value; 1 with fewer than two pairs, or where all differences are equal.

    >>> round(paired_t(np.array([0.1, 0.2, 0.0, 0.1])), 4)
    0.0917
    """
    chex.assert_rank(differences, 1)
    n = len(differences)
    if n < 2 or np.ptp(differences) == 0:
        return 1.0
    t = np.mean(differences) / (np.std(differences, ddof=1) / np.sqrt(n))
    df = n - 1
    return float(special.betainc(df / 2, 0.5, df / (df + t * t)))


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


def compare_runs(ours: Sequence[Path], theirs: Sequence[Path]) -> Comparison:
    """Compare the test Recall@20 of two methods user by user.

    Args:
      ours: run folders of the one method, one for each seed.
      theirs: run folders of the other method on the same stream, with the same seeds in the same order, or one.

    Returns:
      Comparison of `ours` minus `theirs`.
    """
    a, b = ([by_user(folder) for folder in folders] for folders in (ours, theirs))
    keys = sorted(a[0])
    values = [np.array([[run[key] for key in keys] for run in runs]) for runs in (a, b)]
    difference = values[0] - values[1] if len(a) == len(b) else values[0].mean(0, keepdims=True) - values[1].mean(0)
    users, place = np.unique([user for _, user in keys], return_inverse=True)
    per_user = np.bincount(place, difference.mean(0)) / np.bincount(place)
    return {
        "difference": float(per_user.mean()),
        "users": paired_t(per_user),
        "count": len(users),
        "seeds": paired_t(difference.mean(1)) if len(a) == len(b) > 1 else None,
    }
