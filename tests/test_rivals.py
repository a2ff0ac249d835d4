import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import arena
from scall_jax import Budget, SizesConfig, run_segments, tables
from scall_jax.analysis import memory_curves as memory
from scall_jax.analysis import report, significance
from scall_jax.methods.rivals import spectral
from tests.helpers import comparable, continued, small_config, small_stream


@pytest.fixture(scope="module")
def stream():
    return small_stream()


def _greedy(value, total, minimum, maximum):
    """One coordinate at a time from a heap."""
    result = np.full(len(value), minimum)
    heap = [(-row[minimum], n) for n, row in enumerate(value)] if minimum < maximum else []
    heapq.heapify(heap)
    while result.sum() < total and heap:
        _, n = heapq.heappop(heap)
        result[n] += 1
        if result[n] < maximum:
            heapq.heappush(heap, (-value[n][result[n]], n))
    return result


@pytest.mark.parametrize("total", [30, 31, 77, 150, 239, 240])
def test_spectral_is_the_greedy_rule(total):
    rng = np.random.default_rng(total)
    value = np.minimum.accumulate(rng.random((30, 8)), axis=1).astype(np.float32)
    order = jnp.arange(30)
    bounds = SizesConfig(minimum=1, maximum=8)
    ours = spectral.greedy(bounds, jnp.asarray(value), jnp.int32(total), jnp.ones(30, bool), order)
    np.testing.assert_array_equal(ours, _greedy(value, total, 1, 8))


def test_spectral_sum_is_exact_where_values_tie_or_vanish():
    for value in (jnp.zeros((20, 8)), jnp.ones((20, 8))):
        for total in (0, 5, 20, 21, 99, 160, 500):
            active_mask = jnp.arange(20) < 18
            bounds = SizesConfig(minimum=1, maximum=8)
            got = np.asarray(spectral.greedy(bounds, value, jnp.int32(total), active_mask, jnp.arange(20)))
            assert got.sum() == min(total, 18 * 8)
            assert got.max() <= 8 and (got[18:] == 0).all()


def test_energies_are_weighted_squares_and_estimates_follow_the_spectrum():
    vectors = jnp.array([[2.0, 1.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    got = np.asarray(spectral.energies(vectors, jnp.array([2, 1, 0]), jnp.array([1.0, 2.0, 3.0])))
    spectrum = np.array([(1 * 4 + 2 * 16) / 3, 1.0])
    np.testing.assert_allclose(got[0, :2], [4, 1])
    np.testing.assert_allclose(got[1, :2], [32, 2 * 16 / spectrum[0] * spectrum[1]], rtol=1e-6)
    np.testing.assert_allclose(got[2, :2], 3 * spectrum, rtol=1e-6)
    assert (np.diff(got, axis=1) <= 0).all()


@pytest.mark.parametrize("size", [pytest.param(0.6, marks=pytest.mark.slow), 3.0])
def test_spectral_gives_out_the_budget(stream, size):
    lines = run_segments(small_config("spectral", budget=Budget.mean_size(size)), stream, jax.random.key(0))
    assert all(line["allocated_parameters"] == line["budget_parameters"] for line in lines)
    assert size < 1 or lines[-1]["largest_size"] > 6


@pytest.mark.parametrize(
    "name",
    [pytest.param("packed_int8", marks=pytest.mark.slow), "packed_bfloat16"],  # test_few_bits.py has eight bits
)
def test_low_precision_goes_to_disk_and_back_within_its_bytes(name):
    known = (14, 11)
    for metadata in (False, True):
        factory = tables.STORAGES[name]
        nbytes = 1500
        budget_units = factory.budget_units(nbytes, known, 37, metadata)
        sizes = np.zeros(27, np.int32)
        sizes[:25] = budget_units // 25
        sizes[: budget_units % 25] += 1
        storage = factory.build(budget_units, 14, 11, 37)
        layout = storage.layout(jnp.asarray(sizes))
        stored = storage.store(storage.fresh(jax.random.key(0), layout, 1.0), layout)
        exported = storage.export(stored, sizes, known)
        spent = tables.charged(exported)
        assert nbytes - 64 <= spent["parameters"] + spent["codes"] + (27 if metadata else 0) <= nbytes
        assert spent["metadata"] <= 27
        again, plan = storage.restore(exported, known)
        jax.tree.map(np.testing.assert_array_equal, again, stored)
        np.testing.assert_array_equal(plan, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("table", ["packed_int8", "packed_bfloat16"])
def test_low_precision_runs_hold_more_coordinates_in_the_same_bytes(stream, tmp_path, table):
    config = small_config("uniform", table=table, budget=Budget.mean_size(5), charge="stored")
    lines = run_segments(config, stream, jax.random.key(0), folder=tmp_path / "run")
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(lines)
    for line in lines:
        assert line["bytes_at_rest"] <= line["budget_bytes"]
        assert line["allocated_parameters"] > 1.3 * line["budget_bytes"] / 4
    shown = 1e6 * report.describe("uniform", lines)["table_mb"]
    assert shown == pytest.approx(lines[-1]["bytes_at_rest"] - lines[-1]["bytes_metadata"])
    assert 0.7 * lines[-1]["budget_bytes"] < shown <= lines[-1]["budget_bytes"]  # the rest are sizes and steps
    plain = run_segments(small_config("uniform", budget=Budget.mean_size(5)), stream, jax.random.key(0))
    assert lines[-1]["test_recall@20"] > 0.8 * plain[-1]["test_recall@20"]


@pytest.mark.slow
@pytest.mark.parametrize("mean_size", [0.5, 1.0, 1.2, 4.0])
def test_int8_spends_small_budgets_too(stream, mean_size):
    """Where not every vector gets a coordinate, not every vector needs a step."""
    config = small_config("uniform", table="packed_int8", budget=Budget.mean_size(mean_size), charge="stored")
    for line in run_segments(config, stream, jax.random.key(0))[2:]:
        assert 0.9 * line["budget_bytes"] < line["bytes_at_rest"] <= line["budget_bytes"]


def test_areas_and_values_per_megabyte():
    assert memory.area([1, 2, 4], [0.1, 0.3, 0.2]) == pytest.approx((0.2 * 1 + 0.25 * 2) / 3)
    assert memory.area([1, 2, 4], [0.1, 0.3, 0.2], logarithmic=True) == pytest.approx((0.2 + 0.25) / 2)
    assert memory.per_megabyte([2, 8], [0.2, 0.4]) == pytest.approx((0.1, 0.05))
    with pytest.raises(ValueError, match="ascending"):
        memory.area([2, 1], [0.1, 0.2])


def test_areas_are_of_methods_with_both_ends():
    found = {
        "all": arena.Curve([1.0, 2.0, 4.0], mean=[0.1, 0.3, 0.2], spread=[0.0] * 3, last=[0.1, 0.1, 0.1]),
        "two": arena.Curve([1.0, 4.0], mean=[0.2, 0.4], spread=[0.0] * 2, last=[0.1, 0.3]),
        "late": arena.Curve([2.0, 4.0], mean=[0.9, 0.9], spread=[0.0] * 2, last=[0.9, 0.9]),
    }
    table = arena.areas(found, "r", "stored").splitlines()
    assert "per MB (stored), least" in table[0] and table[0].startswith("| r over MB (stored) ")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table[2:]]
    assert [row[:2] for row in rows] == [["two", "0.3000"], ["all", "0.2333"]]
    assert arena.areas({"two": arena.Curve([1.0], mean=[0.2], spread=[0.0], last=[0.1])}, "r", "stored") == ""


def test_holm_is_the_least_level_at_which_the_steps_reject():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    corrected = significance.holm(p)
    levels = np.linspace(0.0005, 1, 20000)
    for i in range(5):
        rejected = [i in _rejected(p, level) for level in levels]
        assert corrected[i] == pytest.approx(levels[np.argmax(rejected)], abs=1e-4)


def _rejected(p, level):
    found = set()
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > level / (len(p) - step) + 1e-12:
            break
        found.add(i)
    return found
