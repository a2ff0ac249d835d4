"""The report on probes, against scikit-learn and by hand."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.preprocessing import PolynomialFeatures

from experiments import probes
from scall_jax.cli.cli import cli


def _drawn(noise):
    rng = np.random.default_rng(0)
    action, run_number = rng.uniform(size=(240, 3)), np.repeat(np.arange(6), 40)
    gain = 0.1 - ((action - [0.3, 0.5, 0.6]) ** 2).sum(1) + noise * rng.normal(size=240)
    return action, gain, run_number


@pytest.mark.parametrize("noise", [0.0, 0.2, 5.0])
def test_explained_agrees_with_scikit_learn(noise):
    action, gain, run_number = _drawn(noise)
    features = PolynomialFeatures(2).fit_transform(action)
    model = LinearRegression(fit_intercept=False)
    predicted = cross_val_predict(model, features, gain, groups=run_number, cv=LeaveOneGroupOut())
    wanted = 1 - ((gain - predicted) ** 2).sum() / ((gain - gain.mean()) ** 2).sum()
    assert probes.explained(action, gain, run_number) == pytest.approx(wanted, abs=1e-9)
    assert wanted > 1 - 1e-9 if noise == 0 else wanted < (0.8 if noise < 1 else 0.05)
    assert np.isnan(probes.explained(action, gain, np.zeros(240, int)))


def test_spread_and_parts_by_hand():
    gain, search = np.array([0.0, 0.2, 1.0, 1.4]), np.array([3, 3, 7, 7])
    assert probes.spread_within(gain, search) == pytest.approx(np.sqrt((0.02 + 0.08) / 2))
    share = np.array([0.1, 0.3, 0.9, 1.0])
    assert probes.by_share(share, gain, 2) == ["+10.0 ± 10.0", "+120.0 ± 20.0"]
    assert probes.by_share(share[:1], gain[:1], 2) == ["+0.0 ± nan", "-"]


def test_reads_the_searches_of_finished_runs(tmp_path, capsys):
    for name, rows in (("a", [(1, 0.2), (2, 0.2), (3, 0.0), (4, -0.7)]), ("b", [(2, 0.4)])):
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
        (folder / "config.json").write_text(json.dumps({"config": {"budget": {"size": 4.0, "mb": None, "steps": []}}}))
        (folder / "summary.json").write_text("{}")
    (found,) = probes.read(tmp_path, first=2).values()
    np.testing.assert_allclose(found["gain"], [0, 0.5, -0.5, -0.25])  # segment 1 and those without a reference are out
    np.testing.assert_array_equal(found["run"], [1, 1, 2, 2])
    np.testing.assert_array_equal(found["valid_users"], 20)
    cli(probes.Probes, probes.main, arguments=["--out", str(tmp_path), "--parts", "2"])
    assert "| size 4 " in (tmp_path / "probes.md").read_text()
    assert "-25.0 ± 25.0" in capsys.readouterr().out


def test_without_searches_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli(probes.Probes, probes.main, arguments=["--out", str(tmp_path)])
    assert "no finished run" in capsys.readouterr().err
