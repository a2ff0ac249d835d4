"""Paired tests between the runs of two methods: over users, and over seeds."""

from pathlib import Path

import numpy as np
from scipy import special


def by_user(folder: Path, metric: int = 0) -> dict[tuple[int, int], float]:
    """Test Recall@20 (metric 0) or NDCG@20 (1) of each (segment, user) of a run, the first segment left out."""
    found = {}
    for file in sorted((folder / "users").glob("segment-*.npz")):
        segment = int(file.stem.removeprefix("segment-"))
        if segment == 0:
            continue
        with np.load(file) as stored:
            values = stored["metrics"][:, metric]
            found |= {(segment, int(user)): float(x) for user, x in zip(stored["users"], values, strict=True)}
    return found


def paired_t(differences: np.ndarray) -> float:
    """Two-sided p-value of Student's test that the mean of paired differences is 0; 1 where they are all equal."""
    n = len(differences)
    if n < 2 or np.ptp(differences) == 0:
        return 1.0
    t = np.mean(differences) / (np.std(differences, ddof=1) / np.sqrt(n))
    df = n - 1
    return float(special.betainc(df / 2, 0.5, df / (df + t * t)))


def compare_runs(ours: list[Path], theirs: list[Path]) -> dict:
    """Runs of two methods with the same seeds in the same order.

    Returns:
      `difference`, the mean over users of their means over segments and seeds, and p-values: `users`, that this
      difference is 0 for users like these, the runs' seeds given; `seeds`, pairs of one seed's mean over all (segment,
      user), None where there are no two pairs. `count` of users.
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
