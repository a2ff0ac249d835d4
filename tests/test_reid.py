"""Tail entities that share rows: who joins whom, what moves with them, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, ClusterConfig, FitConfig, SizesConfig, make_run, run_segments, scan, tables
from scall_jax.methods.rivals.reid import leaders, tail_mask
from scall_jax.recommenders.reciprocal import NOISE, clusters, nearest, reciprocal
from scall_jax.tables.compressed.clustered import Shared, shared_rows
from tests.helpers import comparable, continued, small_config, small_stream

REID = ClusterConfig(tail=0.6, neighbours=12, least_eps=0.6, most_eps=0.9, period=4)


@pytest.fixture(scope="module")
def stream():
    return small_stream()


def _config(**options):
    fit = FitConfig(layers=0, batch=128, steps=20, eval_every=10, valid_users=64)
    given = {"reid": REID, "fit": fit, "budget": Budget.mean_size(6), "sizes": SizesConfig(maximum=12)}
    return small_config("reid", **(given | options))


def test_rows_go_to_groups_and_columns_to_what_the_budget_pays():
    leader, active = jnp.array([0, 1, 0, 1, 4, 5, 4, 7]), jnp.arange(8) < 7
    shared = shared_rows(leader, active, jnp.int32(31), 12)
    assert shared.row.tolist() == [0, 1, 0, 1, 2, 3, 2, 8]
    assert (int(shared.rows), int(shared.columns)) == (4, 7)


def test_the_tail_has_the_fewest_rows():
    total, recency = jnp.array([4, 1, 3, 1, 9, 0]), jnp.array([9, 5, 1, 3, 9, 0])
    active = jnp.array([True] * 5 + [False])
    assert np.flatnonzero(tail_mask(total, recency, active, 0.4)).tolist() == [1, 3]
    assert np.flatnonzero(tail_mask(total, recency, active, 0.2)).tolist() == [3]


@pytest.mark.slow
def test_groups_are_clusters_of_rows_and_keep_who_shares_already():
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(4, 5)), 8, axis=0)
    vectors = (centres + 0.1 * rng.normal(size=(32, 5))).astype(np.float32)
    vectors[[5, 6, 20]] = vectors[3]  # They read the same row.
    row = np.arange(32)
    row[[5, 6, 20]] = 3
    row[30] = 32  # New: it has no row yet.
    tail = np.ones(32, bool)
    tail[[0, 6]] = False
    got = np.asarray(leaders(jnp.asarray(vectors), jnp.asarray(row), jnp.asarray(tail), jnp.float32(0.8), 12))

    points = [n for n in range(32) if tail[n] and row[n] < 32 and n not in (5, 20)]
    lists = nearest(jnp.asarray(vectors[points]), jnp.ones(len(points), bool), 12)
    label = np.asarray(clusters(reciprocal(lists), jnp.float32(0.8)))
    groups = {}
    for number, point in enumerate(points):
        groups.setdefault(("own", point) if label[number] == NOISE else label[number], set()).add(point)
    for members in groups.values():
        if 3 in members:
            members |= {5, 20}
        assert {int(got[n]) for n in members} == {min(members)}
    assert [got[n] for n in (0, 6, 30)] == [0, 6, 30] and len(groups) < 12


def test_a_row_starts_from_the_mean_of_its_entities_and_leaves_with_them(key):
    storage = tables.STORAGES["clustered"].build(4, 3, 3, 4)
    full = jnp.int32(6)
    old = Shared(jnp.array([0, 0, 1, 2, 3, 6]), jnp.int32(4), jnp.int32(3))
    new = Shared(jnp.array([0, 1, 2, 3, 3, 4]), jnp.int32(5), jnp.int32(4))
    params = storage.store(storage.fresh(key, old, 1.0), old)
    known = jnp.array([True] * 5 + [False])

    class Options:
        shrink, rotation, init_std, grow_std = 0.5, "none", 0.1, 0.0

    started = storage.warm_start(key, tables.Previous(params, old, known, jnp.ones(6)), new, Options())
    found, before = (np.asarray(storage.vectors(*pair)) for pair in ((started, new), (params, old)))
    np.testing.assert_array_equal(found[:3, :3], 0.5 * before[:3, :3])  # Users 0 and 1 part, each with a copy.
    np.testing.assert_allclose(found[3, :3], 0.25 * (before[3] + before[4])[:3], rtol=1e-6)
    np.testing.assert_array_equal(found[3], found[4])
    assert (found[:5, 3] == 0).all() and (found[5] != 0).all() and int(full) == storage.nodes


@pytest.mark.slow
def test_the_account_is_the_bytes_of_the_arrays_and_rows_are_shared(stream):
    run = make_run(_config())
    step, state = jax.jit(run.step), run.init(jax.random.key(0), stream)
    exporter, shared = run.method.bookkeeping(state, stream).exporter, []
    for t, bounds in enumerate(stream.bounds):
        state, record = step(state, stream.segment(t))
        known = stream.known(bounds.train)
        exported = exporter.export(state.params, state.plan, known)
        budget = 4 * 6 * sum(known)
        spent = sum(array.nbytes for array in exported.values())
        assert spent == 4 * int(record.allocated) + 4 * sum(known) <= budget
        rows, columns = exported["parameters"].shape
        assert columns == 12 or budget - spent < 4 * rows
        shared.append(sum(known) - rows)
        params, plan = exporter.restore(exported, known)
        np.testing.assert_array_equal(params, state.params)
        jax.tree.map(np.testing.assert_array_equal, plan, state.plan)
    assert shared[0] == 0 and shared[-1] > 10


@pytest.mark.slow
def test_a_run_learns_goes_on_from_where_it_stopped_and_is_the_scan(stream, tmp_path):
    config = _config(charge="stored")
    lines = run_segments(config, stream, jax.random.key(0), folder=tmp_path / "run")
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(lines)
    assert lines[-1]["test_recall@20"] > 1.2 * 20 / lines[-1]["items"]
    record = scan(config, stream, jax.random.key(0)).record
    assert record.allocated.tolist() == [line["allocated_parameters"] for line in lines]


def test_what_cannot_be_is_refused(stream):
    for name, value in (("tail", 2.0), ("neighbours", 1), ("least_eps", 0.8), ("most_eps", 1.0)):
        with pytest.raises(ValueError, match=name):
            ClusterConfig(**{name: value})
    with pytest.raises(ValueError, match="raise the budget to 8 bytes"):
        make_run(_config(budget=Budget.mean_size(1.5))).init(jax.random.key(0), stream)
