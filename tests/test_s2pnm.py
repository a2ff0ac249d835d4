"""S2PNM: its network in float64, causality, the number of weights, a cycle, histories, and the account."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, FitConfig, SequenceConfig, SizesConfig, make_run, run_segments, scan, streams
from scall_jax.methods.rivals.s2pnm import last_items
from scall_jax.recommenders.next_item_loss import next_item_loss
from scall_jax.recommenders.sequence_recommender import make_sequence_step, optimiser, sequence_loss
from scall_jax.recommenders.train_step import TrainState
from scall_jax.tables.sequence import Histories, SequenceParams, bytes_of, sequence
from scall_jax.tables.sequence_network import SequenceNetwork, dense_parameters, init_dense, outputs
from tests.helpers import comparable, continued, small_config, small_stream

ITEMS, WIDTH, LENGTH = 12, 6, 5


@pytest.fixture(scope="module")
def stream():
    return small_stream()


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(1), 3)
    items = 0.5 * jax.random.normal(keys[0], (ITEMS, WIDTH))
    # Weights that start at 0 or 1, biases and scales, must be told apart too.
    dense = init_dense(keys[1], WIDTH, LENGTH)
    return SequenceParams(items, jnp.linspace(-1, 1, ITEMS), dense + 0.1 * jax.random.normal(keys[2], dense.shape))


def _tree(dense):
    """The weights by name, f64."""
    network = SequenceNetwork(WIDTH, LENGTH)
    zeros = jnp.zeros((1, LENGTH, WIDTH)), jnp.zeros((1, LENGTH), bool)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *zeros)
    leaves, at = [], 0
    for leaf in jax.tree.leaves(shapes):
        leaves.append(np.asarray(dense[at : at + leaf.size], np.float64).reshape(leaf.shape))
        at += leaf.size
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)["params"]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def _affine(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _plain(params, history):
    """The network of one sequence, place by place."""
    p, d = _tree(params.dense), WIDTH
    gru = next(value for name, value in p.items() if "GRU" in name)
    there = history >= 0
    x = np.where(there[:, None], np.sqrt(d) * np.asarray(params.items, np.float64)[np.maximum(history, 0)], 0.0)
    h, states = np.zeros(d), []
    for row in x:
        r, z = (_sigmoid(_affine(row, gru[f"i{k}"]) + _affine(h, gru[f"h{k}"])) for k in "rz")
        n = np.tanh(_affine(row, gru["in"]) + r * _affine(h, gru["hn"]))
        h = (1 - z) * n + z * h
        states.append(h)
    h = np.array(states)
    s = np.where(there[:, None], np.concatenate([h, p["position"]], 1), 0.0)
    normed = _norm(s, p["LayerNorm_0"])
    q, k, v = _affine(normed, p["query"]), _affine(s, p["key"]), _affine(s, p["value"])
    made = []
    for t in range(LENGTH):
        scores = np.array([q[t] @ k[u] / np.sqrt(d) if u <= t and there[u] else -1e9 for u in range(LENGTH)])
        weights = np.exp(scores - scores.max())
        made.append(weights / weights.sum() @ v + normed[t, :d])
    base = _norm(np.array(made), p["LayerNorm_1"])
    g = _affine(np.maximum(_affine(base, p["first"]), 0), p["second"]) + base
    z = _norm(np.concatenate([g, h, g - h, g * h], 1), p["LayerNorm_2"])
    return _affine(_sigmoid(_affine(z, p["selection"])), p["dictionary"]) + x


@pytest.mark.slow
def test_the_network_is_the_published_one(params):
    for history in ([-1, -1, 3, 7, 3], [5, 1, 2, 3, 4]):
        got = np.asarray(outputs(params.dense, params.items, jnp.array([history])))[0]
        there = np.array(history) >= 0
        np.testing.assert_allclose(got[there], _plain(params, np.array(history))[there], rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_outputs_up_to_a_place_do_not_know_what_comes_after_it(params):
    one, other = jnp.array([[-1, 2, 5, 7, 1]]), jnp.array([[-1, 2, 5, 7, 9]])
    a, b = (np.asarray(outputs(params.dense, params.items, x))[0] for x in (one, other))
    np.testing.assert_array_equal(a[1:4], b[1:4])
    assert (a[4] != b[4]).all()


@pytest.mark.parametrize(("width", "length"), [(6, 5), (10, 30)])
def test_there_are_24_d_squared_weights_and_some_biases(width, length):
    network = SequenceNetwork(width, length)
    zeros = jnp.zeros((1, length, width)), jnp.zeros((1, length), bool)
    leaves = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0), *zeros))
    matrices = sum(leaf.size for leaf in leaves if leaf.ndim == 2 and leaf.shape[0] != length)
    assert matrices == 24 * width**2
    assert sum(leaf.size for leaf in leaves) == dense_parameters(width, length) == matrices + (26 + length) * width


@pytest.mark.slow
def test_the_loss_is_that_of_numpy(params):
    histories, bias, known = jnp.array([[-1, -1, 3, 7, 3, 1], [-1] * 5 + [4]]), jnp.linspace(1, 0, ITEMS), 9
    got = sequence_loss(params, histories, bias, jnp.int32(known))
    expected = []
    for t, wanted in ((2, 7), (3, 3), (4, 1)):
        out = _plain(params, np.asarray(histories)[0, :-1])[t]
        scores = np.asarray(params.items, np.float64) @ out + np.asarray(params.bias + bias, np.float64)
        p = np.exp(scores[:known]) / np.exp(scores[:known]).sum()
        expected.append(-np.log(p[wanted] + 1e-5))
    assert float(got) == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_loss_in_blocks_and_its_gradients_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    places, items, known, width = 150, 40, 33, 6  # more than two blocks, the last one not full
    made, vectors = (jnp.asarray(rng.normal(size=(n, width)), jnp.float32) for n in (places, items))
    offset = jnp.where(jnp.arange(items) < known, jnp.asarray(rng.normal(size=items), jnp.float32), -jnp.inf)
    following, there = jnp.asarray(rng.integers(0, known, places), jnp.int32), jnp.asarray(rng.random(places) < 0.9)

    def formula(made, vectors, offset):
        p = jax.nn.softmax(made @ vectors.T + offset[None, :], axis=-1)[jnp.arange(places), following]
        return 0.5 * jnp.where(there, -jnp.log(p + 1e-5), 0).sum()

    def in_blocks(made, vectors, offset, there=there):
        return 0.5 * next_item_loss(made, vectors, offset, following, there)

    given = made, vectors, offset
    for got, expected in zip(
        *(jax.tree.leaves(jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*given)) for f in (in_blocks, formula)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    nobody = jax.value_and_grad(in_blocks, (0, 1, 2))(*given, jnp.zeros(places, bool))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(nobody))


@pytest.mark.slow
def test_a_cycle_is_learned_to_the_last_item(key):
    """Users go i, i + 1, i + 2, ...: after training, the next item is always ranked first."""
    config = SequenceConfig(length=LENGTH, batch=32, learning_rate=0.02)
    storage = sequence(config, 8, 24, ITEMS)
    starts = np.arange(24) % ITEMS
    items = jnp.array((starts[:, None] + np.arange(LENGTH + 1)) % ITEMS, jnp.int32)
    plan = Histories(items, jnp.array([24, ITEMS]))
    rows = streams.from_arrays(np.repeat(np.arange(24), 6), np.asarray(items).ravel(), np.arange(144))
    segment = jax.tree.map(jnp.asarray, streams.cut(rows, segments=1).segment(0))
    users = jnp.arange(24, dtype=jnp.int32)
    segment = segment._replace(items=jnp.int32(ITEMS), positives=segment.positives._replace(users=users))
    segment = segment._replace(positives=segment.positives._replace(count=jnp.int32(24)))
    start = storage.fresh(key, plan, 0.3)
    step, bias = make_sequence_step(config), jnp.zeros(ITEMS)

    @jax.jit
    def train(state):
        def one(i, state):
            return step(jax.random.fold_in(key, i), state, plan, segment, bias).state

        return jax.lax.fori_loop(0, 300, one, state)

    trained = train(TrainState(start, optimiser(config).init(start))).params
    vectors = np.asarray(storage.vectors(trained, plan))
    best = (vectors[:24] @ vectors[24:].T).argmax(1)
    np.testing.assert_array_equal(best, (starts + LENGTH + 1) % ITEMS)


def test_histories_are_the_last_items_by_time(stream):
    for t in (1, 3):
        segment, cut = jax.tree.map(jnp.asarray, stream.segment(t)), stream.bounds[t].train
        got = np.asarray(last_items(segment, 7))
        for user in range(stream.capacity.users):
            last = {}
            for row in np.flatnonzero(stream.user[:cut] == user):
                last[int(stream.item[row])] = row
            expected = sorted(last, key=last.get)[-7:]
            assert got[user].tolist() == [-1] * (7 - len(expected)) + expected


def _config(**options):
    fit = FitConfig(steps=30, eval_every=15, valid_users=64)
    given = {"fit": fit, "budget": Budget.megabytes(0.02), "sizes": SizesConfig(maximum=32)}
    return small_config("s2pnm", s2pnm=SequenceConfig(length=6, batch=32), **(given | options))


@pytest.mark.slow
def test_the_width_is_the_largest_that_fits_and_the_account_is_the_bytes(stream):
    run = make_run(_config())
    state = run.init(jax.random.key(0), stream)
    known = [stream.known(bounds.train) for bounds in stream.bounds]
    width = state.capacity.budget_units
    assert max(bytes_of(width, 6, n) for n in known) <= 20_000 < max(bytes_of(width + 1, 6, n) for n in known)
    prepare, exporter = jax.jit(run.prepare), run.method.bookkeeping(state, stream).exporter
    for t, n in enumerate(known):
        prepared = prepare(state, stream.segment(t))
        exported = exporter.export(prepared.params, prepared.plan, n)
        spent = sum(array.nbytes for array in exported.values())
        assert spent == bytes_of(width, 6, n) <= 20_000
        storage = sequence(SequenceConfig(length=6), width, *stream.capacity[:2])
        assert int(storage.allocated(prepared.plan)) == spent
        params, plan = exporter.restore(exported, n)
        exists = jnp.arange(stream.capacity.items) < n[1]
        np.testing.assert_array_equal(params.items, jnp.where(exists[:, None], prepared.params.items, 0.0))
        np.testing.assert_array_equal(plan.items[:, 1:], prepared.plan.items[:, 1:])
    with pytest.raises(ValueError, match="bytes an entity: raise the budget"):
        make_run(_config(budget=Budget.megabytes(0.001))).init(jax.random.key(0), stream)


@pytest.mark.slow
def test_a_run_learns_goes_on_from_where_it_stopped_and_is_the_scan(stream, tmp_path):
    config = _config(charge="stored")
    lines = run_segments(config, stream, jax.random.key(0), folder=tmp_path / "run")
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(lines)
    assert all(line["bytes_at_rest"] <= line["budget_bytes"] for line in lines)
    assert lines[-1]["test_recall@20"] > 1.2 * 20 / lines[-1]["items"]
    record = scan(config, stream, jax.random.key(0)).record
    np.testing.assert_allclose(record.loss, [line["loss"] for line in lines], rtol=1e-2)


def test_values_out_of_range_are_refused():
    for name, value in (("length", 0), ("batch", 0), ("learning_rate", 0.0)):
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(SequenceConfig(), **{name: value})
