"""A table with eviction: who has a row, against dictionaries that see one segment after another; and runs of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, EvictionConfig, SizesConfig, make_run, run_segments, scan, tables
from scall_jax.methods.rivals.eviction import RULES
from scall_jax.tables.compressed.evicting import Rows
from tests.helpers import comparable, continued, small_config, small_stream

WIDTH, BUDGET = 6, 2400
ROWS = (BUDGET - 2 * 4 * WIDTH) // (4 * WIDTH + 8)


@pytest.fixture(scope="module")
def stream():
    return small_stream()


def _config(rule, **options):
    eviction = EvictionConfig(width=WIDTH, lifetime=1.5, half_life=1.0)
    budget = Budget.megabytes(BUDGET / 1e6)
    return small_config(f"evict_{rule}", budget=budget, eviction=eviction, **options)


def _by_dictionaries(rule, stream):
    """Keys and numbers of the rows after each segment, from the rows of the stream."""
    table, found, before = {}, [], 0
    for t, bounds in enumerate(stream.bounds):
        cut, period = bounds.train, bounds.train - before
        rows = np.concatenate([np.arange(bounds.start, bounds.train), stream.replay[t]]).astype(int)
        came, last = {}, {}
        for row in rows:
            for key in ((0, int(stream.user[row])), (1, int(stream.item[row]))):
                came[key] = came.get(key, 0) + 1
        for row in range(cut):
            last[0, int(stream.user[row])] = last[1, int(stream.item[row])] = row
        value = {}
        for key in {*table, *came}:
            count = came.get(key, 0)
            if rule == "count":
                value[key] = table.get(key, 0) + count
            elif rule == "score":
                value[key] = table.get(key, 0) / 2 + count
            else:
                # What came since the last cut is known from the stream, everything else from the table alone.
                since = cut - 1 - last[key]
                age = since if since < period or key not in table else period - table[key]
                if age <= 1.5 * period:
                    value[key] = -age
        best = sorted(value, key=lambda key: (-value[key], key not in table, -last[key], key))[:ROWS]
        table, before = {key: value[key] for key in best}, cut
        found.append(dict(table))
    return found


def _keys(stored):
    return [(int(key >> 31), int(key & (2**31 - 1))) for key in stored["codes_keys"]]


@pytest.mark.parametrize("rule", [pytest.param(x, marks=() if x == "age" else pytest.mark.slow) for x in RULES])
def test_rows_are_those_of_a_dictionary_and_the_account_is_their_bytes(stream, rule):
    run = make_run(_config(rule))
    prepare = jax.jit(run.prepare)
    state = run.init(jax.random.key(0), stream)
    exporter = run.method.bookkeeping(state, stream).exporter
    evicted = 0
    for t, expected in enumerate(_by_dictionaries(rule, stream)):
        segment, known = stream.segment(t), stream.known(stream.bounds[t].train)
        prepared = prepare(state, segment)
        stored = exporter.export(prepared.params, prepared.plan, known)
        keys = _keys(stored)
        assert keys == sorted(expected)
        np.testing.assert_allclose(stored["codes_values"], [expected[key] for key in keys], rtol=1e-6)
        spent = sum(array.nbytes for array in stored.values())
        assert spent == len(keys) * (4 * WIDTH + 8) + 2 * 4 * WIDTH <= BUDGET
        assert (np.asarray(prepared.sizes)[:-2] > 0).sum() == len(keys) == int(prepared.plan.count)
        before = set(_keys(exporter.export(state.params, state.plan, known))) if t else set()
        evicted += len(before - set(keys))
        state = state._replace(
            params=prepared.params, plan=prepared.plan, known=jnp.array([segment.users, segment.items])
        )
    assert evicted > 5


@pytest.mark.slow
def test_vectors_stay_with_their_entities(key):
    storage = tables.storage_factory(_config("count", table="evicting")).build(4, 5, 3, 16)
    old = Rows(jnp.array([1, 3, 6, 8]), jnp.zeros(4), jnp.int32(3))
    new = Rows(jnp.array([0, 3, 5, 6]), jnp.zeros(4), jnp.int32(4))
    params = storage.fresh(key, storage.layout(old), 1.0)
    previous = tables.Previous(params, old, jnp.ones(8, bool), jnp.ones(8))

    class Options:
        shrink, rotation, init_std, grow_std = 0.5, "none", 0.1, 0.01

    started = storage.vectors(storage.warm_start(key, previous, new, Options()), storage.layout(new))
    before = storage.vectors(params, storage.layout(old))
    np.testing.assert_array_equal(started[jnp.array([3, 6])], 0.5 * before[jnp.array([3, 6])])
    # Those without a row read what their side shares.
    np.testing.assert_array_equal(started[jnp.array([1, 2, 4])], jnp.tile(0.5 * params[4], (3, 1)))
    np.testing.assert_array_equal(started[7], 0.5 * params[5])
    assert (started[0] != before[0]).all()


@pytest.mark.slow
def test_a_run_learns_goes_on_from_where_it_stopped_and_is_the_scan(stream, tmp_path):
    config = _config("score", sizes=SizesConfig(maximum=8))
    lines = run_segments(config, stream, jax.random.key(0), folder=tmp_path / "run")
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(lines)
    record = scan(config, stream, jax.random.key(0)).record
    assert record.allocated.tolist() == [line["allocated_parameters"] for line in lines]
    np.testing.assert_allclose(record.loss, [line["loss"] for line in lines], rtol=1e-3)
    assert all(0 < line["bytes_at_rest"] <= line["budget_bytes"] == BUDGET for line in lines)
    assert lines[-1]["entities_without_parameters"] > 20
    assert lines[-1]["test_recall@20"] > 1.2 * 20 / lines[-1]["items"]


def test_values_out_of_range_are_refused():
    for options in ({"width": 0}, {"lifetime": 0.0}, {"half_life": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            EvictionConfig(**options)
