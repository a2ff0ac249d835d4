"""Paired tests between runs."""

import numpy as np
import pytest
from scipy import stats

from scall_jax.analysis import significance


@pytest.mark.parametrize(("n", "shift"), [(3, 0.5), (40, 0.1), (15_249, 0.016), (200_000, 0.0003)])
def test_p_values_are_those_of_student(n, shift):
    differences = shift + np.random.default_rng(n).normal(size=n)
    expected = stats.ttest_1samp(differences, 0.0).pvalue
    assert significance.paired_t(differences) == pytest.approx(expected, rel=1e-6)


def test_p_values_without_spread_or_pairs():
    assert significance.paired_t(np.zeros(5)) == significance.paired_t(np.array([0.3])) == 1.0


def _run(folder, values):
    """A run with the test metrics of some users by segment."""
    (folder / "users").mkdir(parents=True)
    for segment, by_user in values.items():
        metrics = np.array([[x, 0.0] for x in by_user.values()], np.float32)
        np.savez(folder / "users" / f"segment-{segment:03}.npz", users=np.array(list(by_user)), metrics=metrics)
    return folder


def test_users_count_alike_however_many_segments_they_come_in(tmp_path):
    first = {0: {1: 0.0}, 1: {1: 0.5, 2: 0.1, 3: 0.1}, 2: {1: 0.5}}
    other = {0: {1: 1.0}, 1: {1: 0.4, 2: 0.3, 3: 0.2}, 2: {1: 0.5}}
    ours = [_run(tmp_path / f"ours{seed}", first) for seed in range(2)]
    theirs = [_run(tmp_path / f"theirs{seed}", other) for seed in range(2)]
    found = significance.compare_runs(ours, theirs)
    per_user = [0.05, -0.2, -0.1]  # segment 0 does not count
    assert found["count"] == 3 and found["difference"] == pytest.approx(np.mean(per_user))
    assert found["users"] == pytest.approx(stats.ttest_1samp(per_user, 0.0).pvalue, rel=1e-5)
    assert found["seeds"] == 1.0
    assert significance.compare_runs(ours, theirs[:1])["seeds"] is None
    assert significance.compare_runs(ours[:1], theirs[:1])["seeds"] is None
