"""The report on probes, against simulations whose answer is known, scikit-learn and by hand."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures

from experiments import probes
from scall_jax.cli.cli import cli
from tests.helpers import list_files

SHARE = 0.45
"""Part of the variance within searches that actions explain in simulations."""


def _simulated(reference_noise, seed=0, runs=15, searches=12, probes=12):
    """Fields of `Gain` of searches whose uniform probe has a fitness of .1 and noise of its own."""
    rng = np.random.default_rng(seed)
    shape = (runs, searches, probes)
    action = rng.uniform(size=(*shape, 3))
    signal = -((action - [0.3, 0.5, 0.6]) ** 2).sum(-1)
    signal *= np.sqrt(SHARE) / signal.std()
    fitness = 0.1 * (1 + 0.06 * (signal + np.sqrt(1 - SHARE) * rng.normal(size=shape)))
    reference = 0.1 * (1 + reference_noise * rng.normal(size=(runs, searches, 1)))
    run = np.broadcast_to(np.arange(runs)[:, None, None], shape)
    search = np.broadcast_to(np.arange(runs * searches).reshape(runs, searches, 1), shape)
    fields = {"run": run, "search": search, "gain": fitness / reference - 1}
    fields["reference"] = np.broadcast_to(reference, shape)
    return {name: values.ravel() for name, values in fields.items()} | {"action": action.reshape(-1, 3)}


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.06, 0.1])
def test_explained_is_the_known_share_however_noisy_the_reference(noise):
    found = [probes.explained(_simulated(noise, seed)) for seed in range(10)]
    assert np.mean(found) == pytest.approx(SHARE, abs=0.02)


def test_nothing_is_explained_where_actions_do_not_matter():
    drawn = _simulated(0.06)
    drawn["gain"] = np.random.default_rng(1).permutation(drawn["gain"])
    assert -0.03 < probes.explained(drawn) < 0.01
    assert np.isnan(probes.explained(_simulated(0.0, runs=1)))


def test_explained_is_that_of_a_regression_with_a_constant_for_each_search():
    drawn = _simulated(0.06, runs=4, searches=2)
    one_hot = np.eye(8)[drawn["search"]]
    features = np.column_stack([PolynomialFeatures(2, include_bias=False).fit_transform(drawn["action"]), one_hot])
    error, total = 0.0, 0.0
    for run in range(4):
        own = drawn["run"] == run
        fitted = LinearRegression(fit_intercept=False).fit(features[~own], drawn["gain"][~own])
        left = drawn["gain"][own] - features[own, :9] @ fitted.coef_[:9]
        for search in np.unique(drawn["search"][own]):
            here = drawn["search"][own] == search
            error += left[here].var() * here.sum()
            total += drawn["gain"][own][here].var() * here.sum()
    assert probes.explained(drawn) == pytest.approx(1 - error / total, abs=1e-9)


def test_spread_is_that_within_searches():
    gain, search = np.array([0.0, 0.2, 1.0, 1.4]), np.array([3, 3, 7, 7])
    assert probes.spread_within(gain, search) == pytest.approx(np.sqrt((0.02 + 0.08) / 2))


def test_the_gain_over_uniform_is_right_and_its_error_too():
    """The true gain is the mean signal, and a mean of ratios would be 1% above it."""
    drawn = [_simulated(0.1, seed) for seed in range(200)]
    truth = 0.06 * np.mean([-((x["action"] - [0.3, 0.5, 0.6]) ** 2).sum(-1).mean() for x in drawn])
    truth *= np.sqrt(SHARE) / np.std(np.concatenate([((x["action"] - [0.3, 0.5, 0.6]) ** 2).sum(-1) for x in drawn]))
    found = np.array([probes.over_uniform(x) for x in drawn])
    assert found[:, 0].mean() == pytest.approx(truth, abs=3 * found[:, 0].std() / np.sqrt(200))
    assert np.mean([x["gain"].mean() for x in drawn]) > truth + 0.006
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.15)


def test_effects_of_the_share_do_not_depend_on_the_reference_and_their_errors_hold():
    """Half the searches probe large shares only and have a high reference, which is no effect of the share."""
    rng, all_effects, all_errors = np.random.default_rng(2), [], []
    for _ in range(300):
        search = np.repeat(np.arange(60), 8)
        large = search % 2 == 1
        part = np.where(large, rng.integers(1, 3, 480), rng.integers(0, 2, 480))
        of_search = np.where(np.arange(60) % 2 == 1, -0.1, 0.0) + 0.05 * rng.normal(size=60)
        gain = np.array([0.0, 0.01, 0.03])[part] + of_search[search] + 0.05 * rng.normal(size=480)
        effects, errors = probes.part_effects(part, gain, search, 3)
        all_effects.append(effects)
        all_errors.append(errors)
        share = np.bincount(part) / 480
        assert (effects * share).sum() == pytest.approx(0)
    mean = np.mean(all_effects, axis=0)
    np.testing.assert_allclose(mean - mean[0], [0, 0.01, 0.03], atol=0.002)
    np.testing.assert_allclose(np.mean(all_errors, axis=0), np.std(all_effects, axis=0), rtol=0.15)


def test_a_part_without_probes_has_a_dash():
    share = np.array([0.1, 0.3, 0.9, 1.0])
    gain, search = np.array([0.0, 0.2, 1.0, 1.4]), np.array([3, 3, 7, 7])
    assert probes.by_share(share, gain, search, 2)[0].startswith("+0.0 ±")
    assert probes.by_share(share[:2], gain[:2], search[:2], 2) == ["+0.0 ± nan", "-"]


def test_reads_the_searches_of_finished_runs(tmp_path, capsys):
    for name, rows in (
        ("a", [(1, 0.2), (2, 0.2), (3, 0.0), (4, -0.7)]),
        ("b", [(2, 0.4)]),
        ("other", [(2, 0.4)]),
        ("prices", [(2, 0.4)]),
    ):
        lines = [
            {
                "segment": segment,
                "probe_reference": reference,
                "probe_actions": [[0.1, 0.5, 0.5], [0.9, 0.5, 0.5]],
                "probe_fitness": [0.2, 0.3],
                "valid_users": 10 * segment,
            }
            for segment, reference in rows
        ]
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        search = {"actions": "shapes", "reference": "uniform"}
        config = {"method": "scall", "search": search, "budget": {"size": 4.0, "mb": None, "steps": []}}
        # Other methods probe, too, and prices are no shapes.
        config |= {"other": {"method": "ducb"}, "prices": {"search": search | {"actions": "prices"}}}.get(name, {})
        (folder / "config.json").write_text(json.dumps({"config": config}))
        (folder / "summary.json").write_text("{}")
        list_files(folder)
    (found,) = probes.read(tmp_path, first=2).values()
    np.testing.assert_allclose(found["gain"], [0, 0.5, -0.5, -0.25])  # segment 1 and those without a reference are out
    np.testing.assert_array_equal(found["run"], [1, 1, 2, 2])
    np.testing.assert_array_equal(found["valid_users"], 20)
    cli(probes.Probes, probes.main, arguments=["--out", str(tmp_path), "--parts", "2"])
    assert "| size 4 " in (tmp_path / "probes.md").read_text()
    # The mean probe has .25 in every search; the references are .2 and .4 where they are positive.
    assert " -16.7 ± " in capsys.readouterr().out


def test_without_searches_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli(probes.Probes, probes.main, arguments=["--out", str(tmp_path)])
    assert "no finished run" in capsys.readouterr().err
