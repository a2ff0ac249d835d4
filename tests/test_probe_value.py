"""The experiment on what there is to find: its figures on made-up trainings whose answer is known, and one training."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cell_file, probe_value
from scall_jax.methods.context import segment_context
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.buffers import to_buffer
from scall_jax.recommenders.fit import make_fit
from tests.helpers import small_config, small_stream, tiny_arguments


def _trainings(segments, ways, seeds, effect, noise, seed_noise=0.05, key=0):
    """f64[T, W, S]: 0.2 with independent parts of the way (by segment), of the seed, and of both."""
    rng = np.random.default_rng(key)
    of_ways = effect * rng.normal(size=(segments, ways, 1))
    of_seeds = seed_noise * rng.normal(size=(segments, 1, seeds))
    return 0.2 + of_ways + of_seeds + noise * rng.normal(size=(segments, ways, seeds)), of_ways


def test_reliability_is_the_part_of_the_ways_and_not_that_of_the_seeds():
    many = [_trainings(1, 19, 8, 0.003, 0.004, key=k)[0][0] for k in range(400)]
    expected = 0.003**2 / (0.003**2 + 0.004**2)
    assert np.mean([probe_value.reliability(x) for x in many]) == pytest.approx(expected, abs=0.02)
    nothing = [probe_value.reliability(_trainings(1, 19, 8, 0.0, 0.004, key=k)[0][0]) for k in range(400)]
    assert np.mean(nothing) < 0.03


def test_rank_correlation_leaves_out_the_probes_own_seed():
    # A probe agrees with itself, which must not count.
    nothing = [
        probe_value.rank_correlation(x, x) for x in (_trainings(1, 19, 8, 0, 0.01, key=k)[0][0] for k in range(200))
    ]
    assert abs(np.mean(nothing)) < 0.1
    assert probe_value.rank_correlation(*[_trainings(1, 19, 8, 0.01, 1e-6)[0][0]] * 2) == pytest.approx(1)


def test_the_oracle_finds_what_is_there_and_nothing_where_there_is_nothing():
    values, effects = _trainings(3, 16, 8, 0.01, 0.002, seed_noise=0.0)
    gain = probe_value.cross_fitted(values, values, base=0)
    truth = (effects.max((1, 2)) - effects[:, 0, 0]) / (0.2 + effects[:, 0, 0])
    assert gain.mean() == pytest.approx(truth.mean(), abs=0.01)
    noise = [_trainings(3, 16, 8, 0, 0.01, key=k)[0] for k in range(100)]
    nothing = [probe_value.cross_fitted(x, x, base=0).mean() for x in noise]
    assert abs(np.mean(nothing)) < 0.005  # choosing by test itself would gain some 5%
    assert len(gain) == 70


def test_one_way_for_all_segments_gains_less_where_segments_differ():
    values, _ = _trainings(6, 16, 8, 0.01, 1e-5, seed_noise=0.0)
    own, static = (probe_value.cross_fitted(values, values, 0, static).mean() for static in (False, True))
    assert static < own - 0.02


def test_more_probes_find_more():
    values, effects = _trainings(4, 16, 8, 0.01, 1e-6, seed_noise=0.0)
    gains = [probe_value.best_of(values, values, 0, count) for count in (1, 4, 15)]
    assert gains[0] < gains[1] < gains[2]
    truth = ((effects.max((1, 2)) - effects[:, 0, 0]) / (0.2 + effects[:, 0, 0])).mean()
    assert gains[2] == pytest.approx(truth, rel=0.05)


def test_the_best_of_some_is_the_mean_over_all_sets_of_so_many_without_the_base():
    values, _ = _trainings(2, 6, 3, 0.01, 0.01)
    probe, base, wanted = values + np.random.default_rng(0).normal(0, 0.01, values.shape), 2, []
    for t, seed, tried in itertools.product(range(2), range(3), itertools.combinations((0, 1, 3, 4, 5), 3)):
        others = np.delete(values[t], seed, axis=1).mean(1)
        best = max(tried, key=lambda way, t=t, seed=seed: probe[t, way, seed])
        wanted.append(others[best] / others[base] - 1)
    assert probe_value.best_of(probe, values, base, 3) == pytest.approx(np.mean(wanted))


@pytest.mark.slow
@pytest.mark.parametrize("warm", [False, True])
def test_a_training_is_that_of_a_fit_at_each_length(warm):
    stream = small_stream()
    config = small_config("uniform")
    (way,) = [way for way in probe_value.ways(config, 2) if way.name == "sobol-1"]
    state = probe_value.states_before(config, stream, [1], warm)[1]
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    context = segment_context(config, state, segment)
    total, shared = context.budget()
    own, key = way.sizes(segment, total), jax.random.key(3)
    assert int(own.sum()) == int(total)
    got = np.asarray(jax.jit(probe_value.trajectory(config, (3, 10), warm))(key, state, segment, own))

    storage, sizes = context.storage, jnp.concatenate([own, shared])
    start = (context.warm_params if warm else context.fresh_params)(sizes, derive(key, Purpose.TABLE))
    for k, length in enumerate((3, 10)):
        fit_config = dataclasses.replace(config.fit, steps=length, eval_every=length, valid_users=10**6)
        fit = jax.jit(make_fit(storage, fit_config))
        bias, _ = context.item_bias()
        result = fit(derive(key, Purpose.FIT), to_buffer(storage, start), storage.layout(sizes), segment, bias)
        assert got[k, 0] == pytest.approx(float(result.fitness), abs=1e-6)


@pytest.mark.slow
def test_trainings_are_kept_and_not_made_again(data, tmp_path, capsys):
    results = tmp_path / "cells.parquet"
    arguments = [*tiny_arguments(data, tmp_path), "--results", str(results), "--mean-sizes", "2", "--segments", "1"]
    arguments += ["--actions", "2", "--seeds", "0", "1", "--lengths", "2", "4"]
    probe_value.cli(probe_value.ProbeValue, probe_value.main, probe_value.__doc__, arguments)
    text = capsys.readouterr().out
    assert "mean size 2, 2 seeds" in text and "best on test" in text
    frame = cell_file.read(results)
    assert frame.height == 10
    assert frame["way"].n_unique() == 5
    before = results.stat().st_mtime_ns
    probe_value.cli(probe_value.ProbeValue, probe_value.main, probe_value.__doc__, [*arguments, "--report"])
    assert results.stat().st_mtime_ns == before
    assert capsys.readouterr().out == text
