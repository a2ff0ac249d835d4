"""Tests between runs, held against simulations whose answer is known."""

import json

import jax
import numpy as np
import pytest
from scipy import stats

from experiments import identical
from scall_jax import Budget, FitConfig, sweep
from scall_jax.analysis import significance
from scall_jax.cli.cli import cli
from tests.helpers import list_files, small_config, small_stream, tiny_arguments

USERS = 200
SEEDS_DOMINATE = {"of_seeds": 0.5, "of_users": 0.1, "residual": 0.5}
USERS_DOMINATE = {"of_seeds": 0.0, "of_users": 0.5, "residual": 0.3}
BOTH = {"of_seeds": 0.035, "of_users": 0.3, "residual": 0.5}


@pytest.fixture(params=[500, pytest.param(3000, marks=pytest.mark.slow)])
def replicates(request):
    return request.param


def simulate(replicates, seeds, of_seeds, of_users, residual, effect=0.0, ratio=1.0):
    """Replicates of two methods with means 3 + effect and 3: f64[replicates, S_a, U] and f64[replicates, S_b, U].

    `of_seeds` is the standard deviation over seeds of a method's mean, `ratio` times that for the second method.
    """
    rng = np.random.default_rng(0)
    common, made = rng.normal(size=(replicates, 1, USERS)), []
    for count, mean, spread in zip(seeds, (3 + effect, 3), (of_seeds, ratio * of_seeds), strict=True):
        own = of_users * rng.normal(size=(replicates, 1, USERS))
        drawn = spread * rng.normal(size=(replicates, count, 1))
        made.append(mean + common + own + drawn + residual * rng.normal(size=(replicates, count, USERS)))
    return made


def assert_rate(hits, low, high):
    """The part of hits lies between the bounds, give or take three binomial standard deviations."""
    rate, slack = hits.mean(), 3 * np.sqrt(high * (1 - high) / len(hits))
    assert low - slack <= rate <= high + slack, rate


@pytest.mark.parametrize("variances", [SEEDS_DOMINATE, USERS_DOMINATE, BOTH], ids=["seeds", "users", "both"])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_equal_means_are_rejected_as_often_as_the_level_says(replicates, seeds, variances):
    found = significance.compare_means(*simulate(replicates, (seeds, seeds), **variances))
    # With few seeds of spreads that are not known to be equal the test is a little cautious.
    assert_rate(found.p_value < 0.05, {3: 0.03, 5: 0.04, 8: 0.05}[seeds], 0.05)
    inside = (found.low < 0) & (found.high > 0)
    np.testing.assert_array_equal(inside, found.p_value > 0.05)


@pytest.mark.parametrize(("seeds", "bound"), [((8, 8), 0.05), ((3, 3), 0.08), ((8, 3), 0.08), ((3, 8), 0.05)])
def test_methods_may_differ_in_their_spread_over_seeds(replicates, seeds, bound):
    for variances in (SEEDS_DOMINATE, BOTH):
        ours, theirs = simulate(replicates, seeds, **variances, ratio=6.0)
        assert_rate(significance.compare_means(ours, theirs).p_value < 0.05, 0.0, bound)
    # A variance pooled over both methods does not hold the level.
    pooled = stats.ttest_ind(ours.mean(-1), theirs.mean(-1), axis=-1).pvalue
    if seeds == (8, 3):
        assert (pooled < 0.05).mean() > 0.15


def test_users_may_have_values_that_are_mostly_zero(replicates):
    """As Recall@20 has, with the seed moving how likely a hit is."""
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(2):
        rate = 0.1 * np.exp(rng.normal(size=(replicates, 1, USERS)) + 0.1 * rng.normal(size=(replicates, 8, 1)))
        hits.append(rng.binomial(3, np.minimum(rate, 1), size=(replicates, 8, USERS)) / 3)
    assert_rate(significance.compare_means(*hits).p_value < 0.05, 0.04, 0.05)


def test_with_the_seeds_held_fixed_identical_methods_would_be_rejected(replicates):
    ours, theirs = simulate(replicates, (3, 3), **SEEDS_DOMINATE)
    per_user = ours.mean(1) - theirs.mean(1)
    assert (stats.ttest_1samp(per_user, 0.0, axis=-1).pvalue < 0.05).mean() > 0.5


@pytest.mark.parametrize("variances", [SEEDS_DOMINATE, USERS_DOMINATE, BOTH], ids=["seeds", "users", "both"])
def test_an_effect_of_three_and_a_half_standard_errors_is_found(replicates, variances):
    """At 8 seeds, in 85% of the cases; the standard error is the true one, from the variances of the simulation."""
    of_seeds, of_users, residual = variances.values()
    error = np.sqrt(2 * of_seeds**2 / 8 + 2 * of_users**2 / USERS + 2 * residual**2 / (8 * USERS))
    ours, theirs = simulate(replicates, (8, 8), **variances, effect=3.5 * error)
    found = significance.compare_means(ours, theirs)
    assert (found.p_value < 0.05).mean() > 0.85
    assert np.mean(found.estimate) == pytest.approx(3.5 * error, rel=0.03)
    assert np.mean(found.standard_error**2) == pytest.approx(error**2, rel=0.05)


@pytest.mark.parametrize("variances", [SEEDS_DOMINATE, USERS_DOMINATE, BOTH], ids=["seeds", "users", "both"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_difference_at_the_margin_is_seldom_taken_for_equality(replicates, variances, sign):
    small = {name: 0.05 * value for name, value in variances.items()}
    at_margin = significance.compare_means(*simulate(replicates, (8, 8), **small, effect=sign * 0.06), margin=0.02)
    assert_rate(at_margin.p_equal < 0.05, 0.0, 0.05)
    equal = significance.compare_means(*simulate(replicates, (8, 8), **small), margin=0.02)
    assert (equal.p_equal < 0.05).mean() > 0.9


def test_without_users_in_common_variance_it_is_the_test_of_welch():
    """Where nothing but seeds varies, users are copies of each other, and the textbook's test over seeds is exact."""
    rng = np.random.default_rng(2)
    seeds = rng.normal(size=(5, 1)), 0.3 + 2 * rng.normal(size=(8, 1))
    found = significance.compare_means(*(x + np.arange(50.0) for x in seeds))
    known = stats.ttest_ind(*(x.ravel() for x in seeds), equal_var=False)
    assert found.p_value == pytest.approx(known.pvalue) and found.freedom == pytest.approx(known.df)
    interval = known.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_methods_without_random_numbers_are_compared_over_users():
    values = np.random.default_rng(3).normal(size=(2, 60))
    found = significance.compare_means(*(np.repeat(x[None], 2, axis=0) for x in values))
    assert found.p_value == pytest.approx(stats.ttest_rel(*values).pvalue)
    same = significance.compare_means(np.ones((2, 9)), np.ones((2, 9)))
    assert (same.p_value, same.p_equal) == (1.0, 0.0)
    other = significance.compare_means(np.full((2, 9), 1.5), np.ones((2, 9)))
    assert (other.p_value, other.p_equal) == (0.0, 1.0)


def test_error_and_freedom_are_those_of_all_mean_squares_written_out():
    """The variance of the docstring and Satterthwaite's degrees of freedom, entry by entry."""
    rng, users = np.random.default_rng(5), 6
    methods = [rng.normal(size=(seeds, users)) + 3 * rng.normal(size=users) for seeds in (3, 5)]
    apart = [np.mean([row[u] for row in methods[0]]) - np.mean([row[u] for row in methods[1]]) for u in range(users)]
    parts, freedoms, taken_off = [], [], 0.0
    for values in methods:
        seeds, mean = len(values), values.mean()
        means = [row.mean() for row in values]
        parts.append(sum((m - mean) ** 2 for m in means) / (seeds - 1) / seeds)
        freedoms.append(seeds - 1)
        rest = [values[s][u] - means[s] - values[:, u].mean() + mean for s in range(seeds) for u in range(users)]
        residual = sum(x**2 for x in rest) / ((seeds - 1) * (users - 1)) / (seeds * users)
        taken_off += residual
        parts.append(residual)
        freedoms.append((seeds - 1) * (users - 1))
    of_users = sum((x - np.mean(apart)) ** 2 for x in apart) / (users - 1) / users
    variance = parts[0] + parts[2] + of_users - taken_off
    squares = of_users**2 / (users - 1) + sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    found = significance.compare_means(*methods)
    assert of_users > taken_off and found.standard_error == pytest.approx(variance**0.5)
    assert found.freedom == pytest.approx(variance**2 / squares)


def test_without_any_variance_a_difference_is_certain_and_freedom_is_that_of_the_users():
    found = significance.compare_means(np.full((2, 8), 2.0), np.ones((2, 8)), margin=0.5)
    assert (found.standard_error, found.freedom, found.p_value, found.p_equal) == (0.0, 7.0, 0.0, 1.0)
    assert (found.low, found.high) == (1.0, 1.0)


@pytest.mark.parametrize(("ours", "theirs"), [(3, 7), (6, 7), (2, 3), (5, 9)])
def test_one_result_that_is_repeated_is_no_difference(ours, theirs):
    """Its means over 3 and over 7 seeds differ by rounding, which is no evidence."""
    for seed in range(20):
        row = np.random.default_rng(seed).random((1, 500)) * 0.1
        found = significance.compare_means(row.repeat(ours, 0), row.repeat(theirs, 0))
        assert found.p_value == 1 and found.p_equal < 1e-9


def test_two_users_are_enough_and_one_is_not_in_any_data_set():
    assert np.isfinite(significance.compare_means(*np.random.default_rng(6).normal(size=(2, 3, 2))).p_value)
    with pytest.raises(ValueError, match="1 users"):
        significance.compare_means(*np.zeros((2, 4, 3, 1)))


def test_corrected_p_values_are_at_most_one_and_the_fewer_seeds_count():
    assert significance.holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    found = significance.compare_means(*np.random.default_rng(7).normal(size=(2, 3, 9)))
    assert significance.Comparison(found, (5, 3), 9, 0.02).least_seeds == 3


@pytest.mark.parametrize(
    ("shapes", "margin", "message"),
    [
        (((1, 9), (1, 9)), 0.02, "1 and 1 seeds: no test is possible"),
        (((8, 9), (1, 9)), 0.02, "run at least 2 of each"),
        (((3, 1), (3, 1)), 0.02, "1 users"),
        (((3, 9), (3, 9)), 0.0, "margin=0.0"),
    ],
)
def test_what_cannot_be_tested_is_refused(shapes, margin, message):
    with pytest.raises(ValueError, match=message):
        significance.compare_means(*map(np.zeros, shapes), margin)


def _run(folder, values, method="uniform"):
    """A run with the test metrics of some users by segment."""
    (folder / "users").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": {"method": method}}))
    for segment, by_user in values.items():
        metrics = np.array([[x, 0.0] for x in by_user.values()], np.float32)
        np.savez(folder / "users" / f"segment-{segment:03}.npz", users=np.array(list(by_user)), metrics=metrics)
    list_files(folder)
    return folder


def test_users_count_alike_however_many_segments_they_come_in(tmp_path):
    def values(shift):
        return {0: {1: 9.0}, 1: {1: 0.5 + shift, 2: 0.1, 3: 0.1}, 2: {1: 0.5}}

    ours = [_run(tmp_path / f"ours{seed}", values(shift)) for seed, shift in enumerate((0.0, 0.2))]
    theirs = [_run(tmp_path / f"theirs{seed}", values(-0.1)) for seed in range(2)]
    found = significance.compare_runs(ours, theirs)
    # Segment 0 does not count, and user 1 is the mean of its two segments.
    np.testing.assert_allclose(significance.user_values(ours), [[0.5, 0.1, 0.1], [0.6, 0.1, 0.1]], rtol=1e-6)
    assert found.users == 3 and found.seeds == (2, 2) and found.least_seeds == 2
    assert found.difference.estimate == pytest.approx(((0.55 - 0.45) + 0 + 0) / 3)
    assert "2 seeds: too few for a claim" in significance.sentence(found)


def test_a_baseline_needs_one_run_and_other_methods_two(tmp_path):
    ours = [_run(tmp_path / f"ours{seed}", {1: {1: seed / 10, 2: 0.2, 3: 0.4}}) for seed in range(8)]
    popular = _run(tmp_path / "popular", {1: {1: 0.1, 2: 0.1, 3: 0.1}}, method="popularity-all")
    found = significance.compare_runs(ours, [popular])
    assert found.seeds == (8, None) and "too few" not in significance.sentence(found)
    lines = significance.tested({"a - b": (ours[:1], ours[1:2]), "a - popular": (ours, [popular])})
    assert lines[0].startswith("- a - b: 1 and 1 seeds: no test is possible") and "8 and any seeds" in lines[1]
    elsewhere = _run(tmp_path / "elsewhere", {1: {1: 0.1, 2: 0.1, 4: 0.1}})
    with pytest.raises(ValueError, match="compare runs on one stream"):
        significance.compare_runs(ours, [elsewhere, elsewhere])


def test_tests_of_a_budget_are_corrected_together(tmp_path):
    rng = np.random.default_rng(4)
    runs = {
        name: [_run(tmp_path / f"{name}{s}", {1: dict(enumerate(rng.normal(m, 1, 40)))}) for s in range(3)]
        for name, m in (("a", 0.0), ("b", 0.4), ("c", 0.5))
    }
    pairs = {f"a - {name}": (runs["a"], runs[name]) for name in "bc"}
    p_values = [significance.compare_runs(*pair).difference.p_value for pair in pairs.values()]
    shown = [float(line.split(", p ")[1].split(",")[0]) for line in significance.tested(pairs)]
    assert shown == pytest.approx(significance.holm(p_values), rel=0.06) and max(shown) > max(p_values) - 1e-9


def test_splits_are_all_ways_to_take_two_groups():
    all_ways = identical.splits(6, 3, 100)
    assert all_ways.shape == (10, 2, 3)
    assert len({frozenset(map(frozenset, way.tolist())) for way in all_ways}) == 10
    some = identical.splits(12, 3, 50)
    assert len({frozenset(map(frozenset, way.tolist())) for way in some}) == 50
    assert all(len(set(way.ravel())) == 6 for way in some)
    rng = np.random.default_rng(5)
    values = rng.normal(size=(400, 30)) + rng.normal(size=(400, 1))
    rejected, _ = identical.rates(values, np.arange(400).reshape(50, 2, 4))
    assert rejected[0] < 0.16 and rejected[2] <= rejected[1] <= rejected[0]


@pytest.mark.slow
def test_identical_runs_are_made_once_and_their_rate_is_printed(data, tmp_path, capsys, quick_compilation):
    more = ["--method", "uniform", "--seeds", "0", "1", "2", "3", "--per-side", "2", "3", "--fit.layers", "0"]
    before = jax.config.jax_compilation_cache_dir
    try:
        cli(identical.Identical, identical.main, arguments=tiny_arguments(data, tmp_path, *more))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    text = (tmp_path / "identical" / "table.md").read_text()
    assert "| uniform " in text and "| 2 and 2 |" in text and "3 and 3" not in text
    assert "% rejected at 0.05" in capsys.readouterr().out
    assert len(list(tmp_path.glob("uniform/none-mean2-seed*/summary.json"))) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per-side", "1"], "at least 2"),
        (["--seeds", "0", "1", "2"], "3 are not enough"),
        (["--method", "popularity"], "the same for every seed"),
    ],
)
def test_what_cannot_be_split_is_refused(data, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        cli(identical.Identical, identical.main, arguments=tiny_arguments(data, tmp_path, *flags))
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_identical_real_runs_are_rejected_as_often_as_the_level_says():
    """Forty runs of matrix factorisation that differ in nothing but their key."""
    stream, runs = small_stream(segments=4), 40
    config = small_config("uniform", fit=FitConfig(layers=0, batch=128, steps=30, eval_every=30, valid_users=64))
    keys = [jax.random.key(seed) for seed in range(runs)]
    record = sweep(config, stream, keys, [Budget.mean_size(2)] * runs).record
    values = np.zeros((runs, int(stream.capacity.users)))
    tested = np.zeros(values.shape[1])
    for t in range(1, len(stream)):
        part = stream.segment(t).test
        users = np.asarray(part.users)[: int(part.count)]
        values[:, users] += np.asarray(record.test.by_user)[:, t, : len(users), 0]
        tested[users] += 1
    values = values[:, tested > 0] / tested[tested > 0]
    for per_side in (3, 5, 8):
        chosen = identical.splits(runs, per_side, 1000)
        rejected, _ = identical.rates(values, chosen)
        fixed = [stats.ttest_rel(values[a].mean(0), values[b].mean(0)).pvalue < 0.05 for a, b in chosen]
        print(f"{per_side} against {per_side}: {rejected[0]:.3f} rejected, {np.mean(fixed):.3f} with seeds held fixed")
        assert rejected[0] < 0.09 and rejected[0] < np.mean(fixed)
