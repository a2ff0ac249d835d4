import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from scall_jax import Budget, make_run, run_segments, streams, sweep, tables
from scall_jax.config import SizesConfig
from scall_jax.evaluation import KnownGraph
from scall_jax.methods.context import item_bias
from scall_jax.recommenders import FitConfig, LightGcn, bpr, embed, make_fit, propagate, smooth, to_buffer, with_chunks
from scall_jax.recommenders import graph as graphs
from scall_jax.recommenders.fit import _Evaluated, _initial, _judge
from scall_jax.recommenders.gradient_recommender import BIAS_WEIGHTS
from scall_jax.recommenders.judge import evaluate_params
from scall_jax.recommenders.lightgcn import rows_from, smooth_side, smooth_to_side
from scall_jax.recommenders.make_step import learning_rate
from scall_jax.recommenders.popularity import best_half_life
from scall_jax.recommenders.train_step import TrainState
from scall_jax.streams.segments import make_ragged_items
from scall_jax.tables.resize import init
from tests.helpers import fitness_of_scores, random_graph, random_sizes, small_config, small_stream

METHODS = ("csr", "chunks") if jax.default_backend() == "cpu" else ("chunks",)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("columns", [*(pytest.param(x, marks=pytest.mark.slow) for x in (1, 16)), 33])
def test_propagation_agrees_with_scipy(method, columns):
    rng = np.random.default_rng(columns)
    graph, dense = random_graph(rng, 60, 40, 500)
    x = rng.normal(size=(100, columns))
    expected = scipy.sparse.csr_matrix(dense) @ x
    got = jax.jit(lambda g, x: propagate(g, x, method))(graph, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    cotangent = rng.normal(size=expected.shape)
    _, vjp = jax.vjp(lambda x: propagate(graph, x, method), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(vjp(jnp.asarray(cotangent, jnp.float32))[0], dense.T @ cotangent, atol=1e-5)


def test_propagation_of_a_graph_without_entries():
    graph, _ = random_graph(np.random.default_rng(0), 3, 2, 0)
    for method in METHODS:
        np.testing.assert_array_equal(propagate(graph, jnp.ones((5, 4)), method), np.zeros((5, 4)))


def test_chunks_of_long_rows_are_added_up_level_by_level(monkeypatch):
    """The chunks are made once for all rows and used for some of them."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rng = np.random.default_rng(0)
    users, items = 3, 3000
    graph, dense = random_graph(rng, users, items, 7000)
    x = rng.normal(size=(users + items, 4)).astype(np.float32)
    whole = with_chunks(graph)
    assert with_chunks(whole) is whole and len(whole.chunks) == 4
    assert int(jnp.diff(graph.indptr)[:users].min()) > 8**3
    for chunked in (graph, whole):
        for side, other in itertools.product((0, 1, 2), (False, True)):
            rows = rows_from(chunked, users, jnp.int32(side), other)
            expected = np.where((np.diff(rows.indptr) > 0)[:, None], dense @ x, 0)
            np.testing.assert_allclose(jax.jit(propagate)(rows, x), expected, atol=1e-5)
    # A value that is not finite reaches its neighbours alone.
    spoilt = jax.jit(propagate)(whole, jnp.asarray(x).at[0].set(jnp.inf))
    np.testing.assert_array_equal(~np.isfinite(spoilt).all(1), dense[:, 0] > 0)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert with_chunks(graph) is graph


def test_propagation_under_vmap_over_embeddings_and_over_graphs(monkeypatch):
    rng = np.random.default_rng(0)
    graphs, dense = zip(*(random_graph(rng, 20, 10, 60, padding=400) for _ in range(2)), strict=True)
    length = min(g.indices.shape[0] for g in graphs)
    graphs = [g._replace(indices=g.indices[:length], values=g.values[:length]) for g in graphs]
    x = rng.normal(size=(2, 30, 5)).astype(np.float32)
    for method in METHODS:
        one_graph = jax.vmap(lambda x, m=method: propagate(graphs[0], x, m))(x)
        np.testing.assert_allclose(one_graph, dense[0] @ x, atol=1e-5)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)
        each = jax.vmap(lambda g, x, m=method: propagate(g, x, m))(stacked, x)
        np.testing.assert_allclose(each, np.stack(dense) @ x, atol=1e-5)
    with pytest.raises(ValueError, match="choose auto"):
        propagate(graphs[0], x[0], "cusparse")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="on a CPU only"):
        propagate(graphs[0], x[0], "csr")


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("most", [(70, 70), (9, 70), (70, 20)])
def test_embedding_agrees_with_float64(layers, most):
    rng = np.random.default_rng(layers)
    users, items = 30, 20
    graph, dense = random_graph(rng, users, items, 200)
    sizes = jnp.minimum(random_sizes(rng, users + items, 70, False), np.append(np.repeat(most, (users, items)), (0, 0)))
    table = tables.packed(int(sizes.sum()), users, items, 70)
    storage, layout = tables.sized(table, users, 70), table.layout(sizes)
    params = init(table, jax.random.key(0), layout, 1.0)
    rows = jnp.asarray(rng.integers(0, users + items, 40), jnp.int32)
    x = np.asarray(table.lookup(params, layout, jnp.arange(users + items)), np.float64)
    operator = sum(np.linalg.matrix_power(dense, k) for k in range(layers + 1)) / (layers + 1)
    final, own = embed(LightGcn(storage, layers), to_buffer(storage, params), layout, graph, rows)
    np.testing.assert_allclose(final, (operator @ x)[rows], atol=1e-5)
    np.testing.assert_allclose(own, x[rows], atol=1e-6)
    np.testing.assert_allclose(smooth(graph, jnp.asarray(x, jnp.float32), layers), operator @ x, atol=1e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layers", [*(pytest.param(x, marks=pytest.mark.slow) for x in (0, 1)), 2, 3])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_half_products_from_a_side_and_back_to_it(side, layers):
    """The embedding of one side's columns and its transpose, against a dense matrix; a product does half the rows."""
    rng = np.random.default_rng(layers)
    users, items = 30, 20
    graph, dense = random_graph(rng, users, items, 200)
    operator = sum(np.linalg.matrix_power(dense, k) for k in range(layers + 1)) / (layers + 1)
    own = {0: slice(None), 1: slice(users), 2: slice(users, None)}[side]
    x = rng.normal(size=(users + items, 5)).astype(np.float32)
    x[np.setdiff1d(np.arange(users + items), np.arange(users + items)[own])] = 0
    np.testing.assert_allclose(smooth_side(graph, x, layers, users, jnp.int32(side)), operator @ x, atol=1e-5)
    rows, g = rng.integers(0, users + items, 60), rng.normal(size=(60, 5)).astype(np.float32)
    dense_g = np.zeros((users + items, 5))
    np.add.at(dense_g, rows, g)  # some nodes occur more than once
    back = smooth_to_side(graph, jnp.asarray(rows, jnp.int32), g, layers, users, jnp.int32(side))
    np.testing.assert_allclose(back[own], (operator.T @ dense_g)[own], atol=1e-5)
    halves = [int(np.diff(rows_from(graph, users, jnp.int32(side), other).indptr).sum()) for other in (False, True)]
    assert halves == [int(graph.indptr[-1]) // (2 if side else 1)] * 2


def test_accelerators_take_sums_of_chunks(monkeypatch):
    graph, _ = random_graph(np.random.default_rng(0), 3, 2, 4)
    for factor, method in enumerate(graphs._PRODUCTS):
        monkeypatch.setitem(graphs._PRODUCTS, method, lambda graph, x, factor=factor: factor * x)
    for backend, method in (("cpu", "csr"), ("gpu", "chunks"), ("tpu", "chunks")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert propagate(graph, jnp.ones((5, 2)))[0, 0] == list(graphs._PRODUCTS).index(method)


def test_the_learning_rate_falls_in_stairs_to_its_floor_or_stays():
    falling = learning_rate(FitConfig(learning_rate=0.02, decay=0.5, decay_every=10, least_learning_rate=0.004))
    np.testing.assert_allclose([falling(k) for k in (0, 9, 10, 25, 1000)], [0.02, 0.02, 0.01, 0.005, 0.004], rtol=1e-6)
    steady = learning_rate(FitConfig(learning_rate=0.02, decay=1.0))
    np.testing.assert_allclose([steady(k) for k in (0, 10_000)], 0.02)
    for decay in (0.0, 1.5):
        with pytest.raises(ValueError, match="decay="):
            FitConfig(decay=decay)


@pytest.fixture(scope="module")
def crowded():
    """40 users of whom some met nearly all of 30 items; two met all."""
    rng = np.random.default_rng(0)
    chance = np.concatenate([np.full(20, 0.2), np.full(18, 0.95), np.ones(2)])
    met = rng.uniform(size=(40, 30)) < chance[:, None]
    met[:, 0] = True
    user, item = np.nonzero(met)
    by_item = np.lexsort((user, item))
    graph = streams.segments.make_graph(
        user, item, np.arange(len(user)), by_item, streams.segments.GraphCapacity(40, 30, 2 * len(user) + 5)
    )
    positives = make_ragged_items(user, item, len(user) + 3, 45)
    return met, jax.tree.map(jnp.asarray, graph), jax.tree.map(jnp.asarray, positives)


@pytest.mark.parametrize("source", ["segment", "all"])
def test_a_million_negatives_are_unmet_and_uniform(crowded, source):
    met, graph, positives = crowded
    batch = 2**20
    draw = jax.jit(lambda key: bpr.sample(key, positives, KnownGraph(graph, 40, jnp.int32(30)), batch, source))
    triples = jax.tree.map(np.asarray, draw(jax.random.key(0)))
    served = triples.weight > 0
    np.testing.assert_array_equal(served, ~met.all(1)[triples.user])
    assert not met[triples.user[served], triples.negative[served]].any()
    assert met[triples.user, triples.positive].all()
    counts = np.zeros((40, 30, 2))
    for k, item in enumerate((triples.positive, triples.negative)):
        np.add.at(counts[..., k], (triples.user[served], item[served]), 1)
    per_user = np.bincount(triples.user, minlength=40)
    assert np.abs(per_user - batch / 40).max() < 6 * np.sqrt(batch / 40)
    for user in np.flatnonzero(~met.all(1)):
        for k, choices in enumerate((met[user], ~met[user])):
            found, expected = counts[user, choices, k], per_user[user] / choices.sum()
            assert np.abs(found - expected).max() < 6 * np.sqrt(expected)


def test_random_integers_are_the_upper_half_of_a_product():
    rng = np.random.default_rng(0)
    bits = np.concatenate([[0, 2**32 - 1, 2**31], rng.integers(0, 2**32, 5000)]).astype(np.uint32)
    count = np.concatenate([[1, 2**31 - 1, 3], rng.integers(1, 2**31, 2500), rng.integers(1, 3000, 2500)])
    got = bpr.below(jnp.asarray(bits), jnp.asarray(count, jnp.int32))
    np.testing.assert_array_equal(got, [int(b) * int(c) >> 32 for b, c in zip(bits, count, strict=True)])


def test_items_beyond_the_known_ones_are_never_drawn(crowded):
    _, graph, positives = crowded
    # 5 more items of capacity that do not exist yet: same rows, items known 30 of 35
    triples = bpr.sample(jax.random.key(1), positives, KnownGraph(graph, 40, jnp.int32(30)), 10000)
    assert int(triples.negative.max()) < 30


def _planted():
    """A segment with groups of users of disjoint tastes, a table for it, and what a fit is given."""
    stream = small_stream(segments=2, strength=12.0, zipf=0.2, drift=0.0, tastes=3, lifetime=5.0)
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    users, items = stream.capacity.users, stream.capacity.items
    sizes = jnp.concatenate([jnp.full(users + items, 8), jnp.zeros(2, int)]).astype(jnp.int32)
    table = tables.packed(int(sizes.sum()), users, items, 8)
    layout = table.layout(sizes)
    params = init(table, jax.random.key(0), layout, 0.1)
    return table, users, (jax.random.key(1), table.to_buffer(params), layout, segment, jnp.zeros(items))


PLANTED = FitConfig(layers=2, batch=512, steps=300, eval_every=50, patience=10)


def test_fit_learns_planted_tastes():
    """Random ranking finds 20 of 80 items, a fit nearly all."""
    table, users, given = _planted()
    storage, (*_, layout, segment, bias) = tables.sized(table, users, 8), given
    fit_result = jax.jit(make_fit(storage, PLANTED))(*given)
    assert float(fit_result.fitness) > 0.38
    assert int(fit_result.bad_step) == -1

    # Parts that are ranked together get the same metrics as each by itself.
    model = LightGcn(storage, layers=2)
    together = evaluate_params(model, fit_result.params, layout, segment, [segment.valid, segment.test], bias)
    for part, metrics in zip((segment.valid, segment.test), together, strict=True):
        (alone,) = evaluate_params(model, fit_result.params, layout, segment, [part], bias)
        chex.assert_trees_all_close(metrics, alone, atol=1e-6)


@pytest.mark.slow
def test_a_fit_that_ruins_the_parameters_returns_the_best_ones():
    """Of a learning rate that is too large: the fit ends by patience."""
    table, users, given = _planted()
    storage, (*_, layout, segment, bias) = tables.sized(table, users, 8), given
    harsh = FitConfig(layers=2, batch=512, steps=3000, eval_every=10, patience=1, learning_rate=3.0, decay=1.0)
    ruined = jax.jit(make_fit(storage, harsh))(*given)
    assert int(ruined.best_step) < int(ruined.steps) < 3000
    (again,) = evaluate_params(LightGcn(storage, layers=2), ruined.params, layout, segment, [segment.valid], bias)
    assert float(again.fitness()) == pytest.approx(float(ruined.fitness), abs=1e-6)


@pytest.mark.slow
def test_a_broken_gradient_does_not_learn_planted_tastes():
    table, users, given = _planted()
    broken = table._replace(pull=lambda values, layout: table.pull(-values, layout))
    worse = jax.jit(make_fit(tables.sized(broken, users, 8), PLANTED))(*given)
    assert float(worse.fitness) < 0.3


def test_the_best_parameters_on_valid_are_the_result():
    state, found = _initial(jnp.float32(0), lambda params: (), 1), []
    rounds = [(0.2, 1.0), (0.3, 0.5), (0.25, 0.499), (0.3, 0.4), (0.1, 0.41), (0.4, 0.41)]
    for number, (fitness, loss) in enumerate(rounds, 1):
        evaluated = _Evaluated(jnp.float32(loss), jnp.float32(fitness), jnp.int32(-1), jnp.zeros((1, 2)))
        state = _judge(state, TrainState(jnp.float32(number), ()), jnp.int32(10 * number), evaluated)
        found.append((float(state.best_params), int(state.best_step), int(state.stale), bool(state.falling)))
        assert float(state.first_fitness) == pytest.approx(0.2)
    assert found == [(1, 10, 0, 1), (2, 20, 0, 1), (2, 20, 1, 0), (2, 20, 2, 1), (2, 20, 3, 0), (6, 60, 0, 0)]


def test_the_weight_of_the_bias_is_the_one_that_has_ranked_best_so_far():
    stream = small_stream(segments=3)
    config = small_config("uniform", bias="decayed", recommender="mf", budget=Budget.mean_size(4))
    run = make_run(config)
    state, step, totals = run.init(jax.random.key(0), stream), jax.jit(run.step), np.zeros(len(BIAS_WEIGHTS))
    users, valid = stream.capacity.users, []
    for segment in stream:
        state, record = step(state, jax.tree.map(jnp.asarray, segment))
        known = tuple(np.asarray(state.known).tolist())
        exporter = run.method.bookkeeping(state, stream).exporter
        # All have one size: a column of the table after another.
        table = exporter.export(state.params, state.plan, known)["parameters"].reshape(4, sum(known)).T.astype(float)
        bias = np.log1p(np.asarray(segment.popularity[int(record.popularity)], float))[: known[1]]

        def scores(user, weight, table=table, bias=bias, first=known[0]):
            return table[first:] @ table[user] + weight * bias

        found = [fitness_of_scores(segment, users, functools.partial(scores, weight=weight)) for weight in BIAS_WEIGHTS]
        totals += [sum(each) for each in found]
        assert np.ptp([sum(each) for each in found]) > 1e-3
        np.testing.assert_allclose(state.recommender, totals, rtol=1e-4)
        valid.append((found[totals.argmax()], np.asarray(record.valid.by_user)))
    for mine, by_user in valid:
        np.testing.assert_allclose(by_user[: len(mine), :2].mean(1), mine, atol=1e-5)


def test_the_decay_that_ranks_best_on_valid_is_chosen():
    stream = small_stream()
    segment, users = stream.segment(2), stream.capacity.users
    best = [np.mean(fitness_of_scores(segment, users, lambda _, row=row: row)) for row in segment.popularity[2:]]
    assert np.ptp(best) > 1e-3
    found = int(best_half_life(jax.tree.map(jnp.asarray, segment), 4096))
    assert best[found - 2] == pytest.approx(max(best), abs=1e-6)
    bias, row = item_bias(small_config(bias="decayed"), jax.tree.map(jnp.asarray, segment))
    assert int(row) == found
    np.testing.assert_allclose(bias, np.log1p(segment.popularity[found]), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="programs of a CPU run there alone")
def test_runs_agree_by_the_programs_of_either_backend(monkeypatch):
    """Sizes whose largest differ by side: half products, in training and in ranking."""
    stream = small_stream(segments=2)
    bounds = SizesConfig(maximum=64, rho=0.9, user_shape=0.3, item_shape=3.0)
    config = small_config("fixed", sizes=bounds, budget=Budget.mean_size(12))
    run, segment = make_run(config), stream.segment(0)
    sizes = run.prepare(run.init(jax.random.key(0), stream), segment).sizes
    users, items = (int(x.max()) for x in jnp.split(sizes[:-2], [stream.capacity.users]))
    assert (users > 16) != (items > 16)
    found = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        found.append(run_segments(config, stream, jax.random.key(0)))
    for one, other in zip(*found, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["test_recall@20"] == pytest.approx(other["test_recall@20"], abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="programs of a CPU run there alone")
def test_sweeps_agree_by_the_programs_of_either_backend(monkeypatch):
    """Products, changes of the table and ranking under `vmap`."""
    stream = small_stream(segments=2)
    config = small_config("frequency")
    keys, budgets = [jax.random.key(seed) for seed in (0, 1)], [Budget.mean_size(size) for size in (2, 5)]
    found = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        found.append(sweep(config, stream, keys, budgets).record)
    np.testing.assert_allclose(found[0].loss, found[1].loss, rtol=1e-4)
    np.testing.assert_allclose(found[0].test.recall, found[1].test.recall, atol=0.01)


def test_non_finite_loss_stops_the_fit_and_names_the_step():
    stream = small_stream(segments=2)
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    users, items = stream.capacity.users, stream.capacity.items
    sizes = jnp.concatenate([jnp.full(users + items, 4), jnp.zeros(2, int)]).astype(jnp.int32)
    table = tables.packed(int(sizes.sum()), users, items, 4)
    config = FitConfig(layers=1, batch=64, steps=100, eval_every=10)
    params = table.to_buffer(table.zeros().at[0].set(jnp.nan))
    fit_result = make_fit(tables.sized(table, users, 4), config)(
        jax.random.key(0), params, table.layout(sizes), segment, jnp.zeros(items)
    )
    assert int(fit_result.bad_step) == 0 and int(fit_result.steps) == 10


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("bigear", {"recommender": "mf"}, "method bigear is trained in a way of its own"),
        ("s2pnm", {"recommender": "saros"}, "method s2pnm is trained in a way of its own"),
        ("s2pnm", {"fit": FitConfig(served_bits=4)}, "method s2pnm is trained in a way of its own"),
        ("uniform", {"recommender": "ials", "fit": FitConfig(rounding="within")}, "makes no steps within rounding"),
        ("uniform", {"recommender": "saros", "fit": FitConfig(rounding="within")}, "makes no steps within rounding"),
        ("uniform", {"recommender": "mf", "fit": FitConfig(rounding="within")}, "does not round what it is trained in"),
    ],
)
def test_what_a_recommender_would_not_read_is_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        run_segments(small_config(method, **options), small_stream(), jax.random.key(0))
