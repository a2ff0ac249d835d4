"""The experiment on what there is to find on least squares: its table by made-up fits, and the fits themselves."""

import dataclasses

import jax
import numpy as np
import polars as pl
import pytest

from experiments import action_value, cell_file
from scall_jax import Budget, run_segments
from scall_jax.recommenders.ials.config import IalsConfig
from tests.helpers import small_config, small_stream, tiny_arguments


def _frame(names, valid, test):
    """Rows of f64[T, W, S]; segments are numbered from 1."""
    segments, _, seeds = valid.shape
    return pl.DataFrame(
        [
            {
                "commit": "x",
                "stream": "made up",
                "setting": "made up",
                "mean size": 1.0,
                "seed": seed,
                "segment": t + 1,
                "ways": names,
                "valid fitness": valid[t, :, seed].tolist(),
                "test recall@20": test[t, :, seed].tolist(),
            }
            for seed in reversed(range(seeds))
            for t in reversed(range(segments))
        ]
    )


def test_the_table_says_what_was_put_in():
    """Prices are worth up to 10% and valid sees it; shapes lose 5%, and valid takes noise for their order."""
    rng, seeds = np.random.default_rng(0), 8
    names = [*(f"shape-{i}" for i in range(16)), *(f"price-{i}" for i in range(16)), *action_value.RULES]
    worth = np.ones(len(names))
    worth[:16], worth[16:32] = 0.95, np.linspace(0.9, 1.1, 16)
    worth[names.index("price-8")] = 1.02
    worth[names.index("gain")] = 1.04
    test = 0.1 * worth[None, :, None] * (1 + 0.003 * rng.normal(size=(3, len(names), seeds)))
    seen = np.where([name.startswith("shape") for name in names], 0.95, worth)
    valid = 0.1 * seen[None, :, None] * (1 + 0.003 * rng.normal(size=(3, len(names), seeds)))
    frame = _frame(names, valid, test)
    ways, by_valid, by_test = action_value._arrays(frame)
    assert ways == names
    np.testing.assert_array_equal(by_valid, valid)
    np.testing.assert_array_equal(by_test, test)
    lines = action_value.tables(frame).split("\n")
    rows = {line.split("|")[1].strip(): [x.strip() for x in line.split("|")[2:]] for line in lines if line[:1] == "|"}
    assert float(rows["price"][2].split()[0]) == pytest.approx(10, abs=0.3)
    assert float(rows["price"][4].split()[0]) == pytest.approx(10, abs=0.3)
    # Uniform is among the ways, and is what a choice among worse shapes comes to.
    assert float(rows["shape"][2].split()[0]) == pytest.approx(0, abs=0.3)
    assert float(rows["gain"][1].split()[0]) == pytest.approx(4, abs=0.3)
    # The eighth of these prices is one size for all, from the start of gains: 2% of the 4 are the start's.
    assert float(rows["gain"][2].split()[0]) == pytest.approx(100 * (1.04 / 1.02 - 1), abs=0.3)
    assert rows["frequency"][2] == rows["frequency"][1]
    assert float(rows["price"][0]) > 0.9
    # One seed that lacks a segment does not count.
    _, fewer, _ = action_value._arrays(frame.filter((pl.col("seed") != 3) | (pl.col("segment") != 2)))
    np.testing.assert_array_equal(fewer, np.delete(valid, 3, axis=2))


@pytest.mark.slow
def test_the_rule_of_one_size_is_measured_as_its_run_is():
    stream = small_stream()
    ials = IalsConfig(sweeps=2, half_life=1.0, users_half_life=1.0, unobserved=0.1, regularisation=0.01)
    config = small_config("uniform", recommender="ials", table="packed_int4", ials=ials)
    lines = run_segments(config, stream, jax.random.key(0))
    functions = action_value.fitter(config, stream)
    state = functions.init(0)
    for t, line in enumerate(lines):
        segment = jax.tree.map(jax.numpy.asarray, stream.segment(t))
        state = functions.choose(state, segment)
        state, values = functions.measure(state, segment, *functions.plans(state, segment)("uniform", None))
        np.testing.assert_allclose(values[1:], [line["valid_recall@20"], line["test_recall@20"]], rtol=1e-6)


def test_ways_differ_in_sizes_and_where_they_say_so_in_where_fits_start():
    """A price that weighs no gains is the rule of one size, and shapes start from vectors of the same spread."""
    stream = small_stream()
    ials = IalsConfig(sweeps=1, half_life=1.0, users_half_life=1.0, unobserved=0.1, regularisation=0.01)
    config = small_config("uniform", recommender="ials", table="packed_int4", ials=ials, budget=Budget.mean_size(1.0))
    functions = action_value.fitter(config, stream)
    state = functions.init(0)
    for t in range(2):
        segment = jax.tree.map(jax.numpy.asarray, stream.segment(t))
        plan_of = functions.plans(functions.choose(state, segment), segment)
        plan, start = plan_of("uniform", None)
        leading = plan_of("price-8", action_value.ways(16).prices[8])
        np.testing.assert_array_equal(plan, leading[0])
        assert (np.asarray(start) != np.asarray(leading[1])).any()
        priced, priced_start = plan_of("price-0", np.array([0.5, 0.5, 0.5, 1.0, 0.0], np.float32))
        shaped, shaped_start = plan_of("shape-0", np.full(3, 0.5, np.float32))
        np.testing.assert_array_equal(plan, priced)
        np.testing.assert_array_equal(start, priced_start)
        assert (np.asarray(shaped) != np.asarray(plan)).any()
        spreads = [np.std(x[np.asarray(x) != 0]) for x in map(np.asarray, (start, shaped_start))]
        assert spreads[1] == pytest.approx(spreads[0], rel=0.1)
        state, _ = functions.measure(state, segment, plan, start)


@pytest.mark.slow
def test_every_way_spends_the_budget_and_rows_are_kept(data, tmp_path, capsys):
    results = tmp_path / "cells.parquet"
    arguments = [*tiny_arguments(data, tmp_path), "--results", str(results), "--mean-sizes", "2", "--seeds", "0", "1"]
    arguments += ["--actions", "2", "--ials.sweeps", "1", "--ials.half-life", "1", "--ials.unobserved", "0.1"]
    action_value.cli(action_value.ActionValue, action_value.main, action_value.__doc__, arguments)
    text = capsys.readouterr().out
    assert "mean size 2, 2 seeds" in text and "best on test" in text
    frame = cell_file.read(results)
    assert frame.height == 6 and set(frame["ways"].list.len()) == {8}
    before = results.stat().st_mtime_ns
    action_value.cli(action_value.ActionValue, action_value.main, action_value.__doc__, [*arguments, "--report"])
    assert results.stat().st_mtime_ns == before and capsys.readouterr().out == text

    stream = small_stream()
    config = small_config("uniform", recommender="ials", table="packed_int4")
    config = dataclasses.replace(config, sizes=dataclasses.replace(config.sizes, minimum=0))
    functions, segment = action_value.fitter(config, stream), jax.tree.map(jax.numpy.asarray, stream.segment(2))
    plan_of = functions.plans(functions.choose(functions.init(0), segment), segment)
    found = action_value.ways(2)
    actions = [*found.shapes, *found.prices, *[None] * len(action_value.RULES)]
    spent = [int(plan_of(*way)[0].sum()) for way in zip(found.names, actions, strict=True)]
    # Vectors without coordinates need no scale, which pays for a coordinate more here and there.
    assert min(spent) > 0 and max(spent) / min(spent) < 1.2
