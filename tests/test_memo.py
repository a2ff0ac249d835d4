"""A model that expands: frozen columns stay bit for bit, sizes add up, rotations keep scores, norms are aligned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, ExpandableConfig, FitConfig, SizesConfig, make_run, run_segments, scan, tables
from scall_jax.recommenders import bpr
from scall_jax.recommenders.lightgcn import LightGcn, embed
from scall_jax.recommenders.make_step import make_step, optimiser
from scall_jax.recommenders.train_step import TrainState
from scall_jax.tables import expandable
from scall_jax.tables.table import nbytes
from tests.helpers import comparable, continued, small_config, small_stream

FIT = FitConfig(layers=0, batch=128, steps=20, eval_every=10, valid_users=64)
MEMO = ExpandableConfig(columns=6, kept=0.3, frozen=0.6)


@pytest.fixture(scope="module")
def stream():
    return small_stream()


def _config(**options):
    given = {"memo": MEMO, "fit": FIT, "budget": Budget.mean_size(7.3), "sizes": SizesConfig(maximum=12)}
    return small_config("memo", **(given | options))


@pytest.fixture(scope="module")
def states(stream):
    """What is stored after each segment, and the state; trained for a few steps without layers."""
    run = make_run(_config(charge="stored"))
    step, state = jax.jit(run.step), run.init(jax.random.key(0), stream)
    exporter, found = run.method.bookkeeping(state, stream).exporter, []
    for t in range(len(stream)):
        state, record = step(state, stream.segment(t))
        known = stream.known(stream.bounds[t].train)
        found.append((state, exporter.export(state.params, state.plan, known), record, known))
    return run, exporter, found


def _storage(states, stream):
    """The storage of the runs."""
    wide = states[2][0][0].capacity.budget_units
    return expandable.expandable(MEMO, *stream.capacity[:2], wide, 12)


def test_frozen_columns_stay_bit_for_bit_and_are_some(states):
    frozen = [exported["parameters_frozen"] for _, exported, *_ in states[2]]
    columns = [exported["metadata_columns"] for _, exported, *_ in states[2]]
    assert len(frozen[0]) == 0 and len(frozen[1]) and len(columns[-1]) > len(columns[1])
    for (before, those), (after, these) in zip(
        zip(frozen, columns, strict=True), list(zip(frozen, columns, strict=True))[1:], strict=False
    ):
        assert before.tobytes() == after[: len(before)].tobytes()
        np.testing.assert_array_equal(these[: len(those)], those)


def test_sizes_add_up_to_the_budget_and_the_account_to_the_arrays(states, stream):
    config = _config(charge="stored")
    for t, (state, exported, record, known) in enumerate(states[2]):
        budget = 4 * config.budget.parameters(t, sum(known))
        assert int(record.allocated) == int(record.budget) == (budget - 8 * MEMO.columns) // 4
        coordinates = sum(a.size for name, a in exported.items() if name.startswith("parameters"))
        assert coordinates == int(record.allocated)
        assert sum(a.nbytes for a in exported.values()) <= budget
        # Frozen columns are at most their part of the budget.
        assert len(exported["parameters_frozen"]) <= MEMO.frozen * int(record.budget)
        users = stream.capacity.users
        vectors = _storage(states, stream).vectors(state.params, state.plan)
        exists = np.r_[0 : known[0], users : users + known[1]]
        assert (np.abs(np.asarray(vectors)[exists]) > 0).sum() == coordinates


def test_what_is_exported_is_restored_bit_for_bit(states):
    for state, exported, _, known in states[2]:
        params, plan = states[1].restore(exported, known)
        np.testing.assert_array_equal(params, state.params)
        for name in ("frozen", "had_by", "columns", "width", "extra", "known"):
            np.testing.assert_array_equal(getattr(plan, name), getattr(state.plan, name))


def test_a_rotation_keeps_scores_and_sorts_axes(key):
    users, items = 9, 7
    block = jax.random.normal(key, (users + items, 5)) * jnp.array([[0.1, 3.0, 1.0, 0.5, 7.0]])
    known = jnp.array([users, items])
    storage = expandable.expandable(MEMO, users, items, 5, 5)
    plan = storage.plan()._replace(width=jnp.int32(4), known=known)
    turned = np.asarray(expandable.rotated(block, plan, users), np.float64)
    before = np.asarray(block, np.float64)[:, :4]
    np.testing.assert_allclose(
        turned[:users] @ turned[users:].T, before[:users] @ before[users:].T, rtol=1e-4, atol=1e-4
    )
    assert (turned[:, 4] == 0).all()
    # The energies on the axes are the eigenvalues of the sum of both sides' normalised Gram matrices.
    sides = [part.T @ part / np.trace(part.T @ part) for part in (before[:users], before[users:])]
    energy = sum((part**2).sum(0) / (part**2).sum() for part in (turned[:users], turned[users:]))
    np.testing.assert_allclose(energy[:4], np.linalg.eigvalsh(sum(sides))[::-1], rtol=1e-4)


def test_new_items_are_as_long_as_older_ones_in_the_mean(states, stream):
    users, aligned = stream.capacity.users, 0
    storage = _storage(states, stream)
    for state, *_ in states[2][1:]:
        vectors = np.asarray(storage.vectors(state.params, state.plan), np.float64)[users:]
        norms, (old, known) = (
            np.linalg.norm(vectors, axis=1),
            (int(x[1]) for x in (state.plan.before, state.plan.known)),
        )
        if known > old:
            assert norms[old:known].mean() == pytest.approx(norms[:old].mean(), rel=1e-4)
            aligned += 1
    assert aligned


@pytest.mark.slow
def test_training_has_the_second_loss_and_holds_nothing_for_frozen_columns(states, stream, key):
    run, _, found = states
    segment = jax.tree.map(jnp.asarray, stream.segment(2))
    state = found[1][0]
    prepared = run.prepare(state, segment)
    storage = _storage(states, stream)
    # A budget of 5 columns needs no more than 8, though sizes up to 12 are allowed.
    assert prepared.params.shape == (storage.nodes, 8) and storage.width == 14
    held = run.method.bookkeeping(state, stream).training_bytes(state, segment, prepared.params)
    assert held == 5 * nbytes(prepared.params)

    state, bias = TrainState(prepared.params, optimiser(FIT).init(prepared.params)), jnp.zeros(stream.capacity.items)
    with_second, alone = (
        float(make_step(s, FIT)(key, state, prepared.plan, segment, bias).loss)
        for s in (storage, storage._replace(auxiliary=None))
    )
    known = bpr.KnownGraph(segment.graph, stream.capacity.users, segment.items)
    triples = bpr.sample(key, segment.positives, known, FIT.batch, FIT.positives)
    rows = bpr.nodes(triples, stream.capacity.users)
    final = embed(LightGcn(storage, 0), prepared.params, prepared.plan, segment.graph, rows).final
    newest = np.asarray(final, np.float64)[:, int(prepared.plan.columns) :]
    user, positive, negative = np.split(newest, 3)
    margin, weight = (user * (positive - negative)).sum(1), np.asarray(triples.weight, np.float64)
    second = (weight * np.log1p(np.exp(-margin))).sum() / weight.sum()
    assert int(prepared.plan.columns) > 0 and with_second - alone == pytest.approx(second, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [0, 2])
def test_a_run_learns_goes_on_from_where_it_stopped_and_is_the_scan(stream, tmp_path, layers):
    config = _config(charge="stored", fit=dataclasses.replace(FIT, layers=layers))
    lines = run_segments(config, stream, jax.random.key(0), folder=tmp_path / "run")
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(lines)
    assert all(line["bytes_at_rest"] <= line["budget_bytes"] for line in lines)
    assert lines[-1]["test_recall@20"] > 1.2 * 20 / lines[-1]["items"]
    record = scan(config, stream, jax.random.key(0)).record
    assert record.allocated.tolist() == [line["allocated_parameters"] for line in lines]
    np.testing.assert_allclose(record.loss, [line["loss"] for line in lines], rtol=1e-3)


def test_values_out_of_range_are_refused():
    for name, value in (("columns", 0), ("kept", 1.0), ("frozen", 0.0), ("auxiliary", -1.0)):
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(ExpandableConfig(), **{name: value})
    storage = tables.storage_factory(_config(table="expandable")).build(2, 5, 3, 2)
    with pytest.raises(ValueError, match="restore with the stream"):
        storage.restore({"parameters": np.zeros((8, 3), np.float32)}, (5, 3))
