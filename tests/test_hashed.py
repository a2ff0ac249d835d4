import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, FitConfig, run_segments, sweep, tables
from scall_jax.tables.compressed import hashed
from tests.helpers import comparable, continued, small_config, small_stream

NAMES = ("binary_hash", "binary_hash_skip", "quotient_remainder")


@pytest.fixture(scope="module")
def stream():
    return small_stream()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 12])
def test_block_indices_tell_all_ids_apart_and_are_the_bits(skip, blocks):
    ids = np.arange(2**12)
    code = hashed.mix(ids, 12)
    assert len(set(code.tolist())) == len(ids)
    positions = hashed.block_bits(12, blocks, skip)
    assert sorted(p for block in positions for p in block) == list(range(12))
    index = np.stack([hashed.block_index(code, p) for p in positions], axis=1)
    assert len(np.unique(index, axis=0)) == len(ids)
    for k, block in enumerate(positions):
        assert index[:, k].max() == 2 ** len(block) - 1
    for i in (0, 1, 77, 4095):
        digits = f"{code[i]:012b}"[::-1]
        assert index[i].tolist() == [int("".join(digits[p] for p in reversed(block)), 2) for block in positions]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parameters", [200, 900, 5000])
def test_vectors_are_sums_or_products_of_distinct_rows(name, parameters):
    users, items = 90, 37
    storage = tables.STORAGES[name].build(parameters, users, items, 20)
    columns = hashed.columns_within(storage, jnp.int32(parameters))
    params = storage.fresh(jax.random.key(0), columns, 1.0)
    assert params.size <= parameters and 0 < columns <= params.shape[1]
    got = np.asarray(storage.vectors(params, columns))
    # An entity's vector is linear in each row, so perturbing the rows in turn shows which ones it reads.
    reads = np.stack(
        [np.abs(storage.vectors(params.at[row].add(1.0), columns) - got).max(1) > 1e-6 for row in range(len(params))],
        axis=1,
    )
    assert not (reads[:users].any(0) & reads[users:].any(0)).any()  # the sides share nothing
    assert len(np.unique(reads, axis=0)) == users + items  # and no two entities read the same rows
    plain = np.asarray(params, np.float64)
    plain[:, int(columns) :] = 0
    for node in (0, 1, 50, 89, 90, 126):
        chosen = plain[reads[node]]
        expected = chosen.prod(0) if name == "quotient_remainder" else chosen.sum(0)
        np.testing.assert_allclose(got[node], expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_initial_vectors_have_the_standard_deviation(name):
    storage = tables.STORAGES[name].build(40_000, 900, 700, 64)
    columns = hashed.columns_within(storage, jnp.int32(40_000))
    vectors = np.asarray(storage.vectors(storage.fresh(jax.random.key(0), columns, 0.1), columns))[:, : int(columns)]
    assert vectors.std() == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_stay_within_every_budget_and_go_to_disk_and_back(name):
    users, items = 300, 200
    for parameters in (80, 333, 1000, 50_000):
        storage = tables.STORAGES[name].build(parameters, users, items, 64)
        for total in (parameters // 2, parameters):
            plan = hashed.columns_within(storage, jnp.int32(total))
            params = storage.fresh(jax.random.key(1), plan, 0.1)
            stored = storage.store(params, plan)
            exported = storage.export(stored, plan, (250, 100))
            assert sum(tables.charged(exported).values()) == 4 * int(storage.allocated(plan)) <= 4 * total
            again, columns = storage.restore(exported, (250, 100))
            np.testing.assert_array_equal(again, stored)
            assert columns == plan
            np.testing.assert_array_equal(storage.vectors(again, columns), storage.vectors(params, plan))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("bits", "short"), [(12, 1), (12, 5), (13, 6), (2, 1)])
def test_two_uneven_blocks_tell_all_ids_apart(bits, short, skip):
    code = hashed.mix(np.arange(2**bits), bits)
    positions = hashed.uneven_bits(bits, short, skip)
    assert [len(block) for block in positions] == [bits - short, short]
    index = np.stack([hashed.block_index(code, p) for p in positions], axis=1)
    assert len(np.unique(index, axis=0)) == 2**bits


@pytest.mark.parametrize("capacity", [1, 2, 3, 40, 4336, 5746, 2**12])
def test_codes_are_a_bijection_and_no_row_is_left_unread(capacity):
    code, bits = hashed.binary_codes(capacity), hashed.bits_for(capacity)
    assert sorted(code.tolist()) == list(range(capacity))
    splits = [hashed.block_bits(bits, blocks, skip) for blocks in range(1, bits + 1) for skip in (False, True)]
    splits += [hashed.uneven_bits(bits, short, False) for short in range(1, bits // 2)]
    for split in splits:
        for positions in split:
            index = hashed.block_index(code, positions)
            rows = hashed.rows_of_block(capacity, positions)
            assert rows == index.max() + 1
            neighbours = positions == list(range(positions[0], positions[0] + len(positions)))
            assert len(np.unique(index)) == rows or not neighbours


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("users, items", [(5746, 4336), (25_000, 25_000), (700, 40)])
def test_rows_are_chosen_so_that_the_budget_is_spent(name, users, items):
    for mean_size in (0.5, 1, 2, 4, 8, 16, 32):
        capacity = int(mean_size * (users + items))
        storage = tables.STORAGES[name].build(capacity, users, items, 128)
        spent = int(storage.allocated(hashed.columns_within(storage, jnp.int32(capacity))))
        assert 0.85 * capacity < spent <= capacity, mean_size


def test_budgets_that_leave_a_segment_nothing_are_refused(stream):
    config = small_config("binary_hash", budget=Budget.schedule([Budget.megabytes(0.0004), Budget.megabytes(0.02)]))
    with pytest.raises(ValueError, match="give every segment the same"):
        run_segments(config, stream, jax.random.key(0))


def test_a_budget_below_one_column_is_refused():
    with pytest.raises(ValueError, match="raise the budget"):
        tables.STORAGES["binary_hash"].build(5, 300, 200, 64)


@pytest.mark.parametrize(
    "name",
    [
        "binary_hash_skip",  # the others have quick runs in test_account.py and test_golden.py
        *(pytest.param(x, marks=pytest.mark.slow) for x in NAMES if x != "binary_hash_skip"),
    ],
)
def test_runs_learn_within_the_budget_and_continue(stream, tmp_path, name):
    fit = FitConfig(layers=1, batch=256, steps=60, eval_every=20, learning_rate=0.05, valid_users=64)
    config = small_config(name, fit=fit, budget=Budget.megabytes(0.004))
    lines = run_segments(config, stream, jax.random.key(0), folder=tmp_path / "run")
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(lines)
    for line in lines:
        assert 500 < line["allocated_parameters"] <= line["budget_parameters"] == 1000
        assert line["bytes_at_rest"] == 4 * line["allocated_parameters"] <= line["budget_bytes"]
    still = small_config(name, fit=FitConfig(layers=1, batch=256, steps=1, learning_rate=1e-9, valid_users=64))
    untrained = run_segments(still, stream, jax.random.key(0))
    # In the first segments there are hardly more than 20 items to rank.
    ours, theirs = (np.mean([x["valid_recall@20"] for x in found[2:]]) for found in (lines, untrained))
    assert ours > 1.1 * theirs


def test_sweeps_are_for_storage_whose_shapes_do_not_follow_the_budget(stream):
    with pytest.raises(ValueError, match="one by one"):
        sweep(small_config("binary_hash"), stream, [jax.random.key(0)], [Budget.mean_size(4)])
