import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from scall_jax import streams, tables
from scall_jax.recommenders import FitConfig, bpr, embed, make_fit, opened, propagate, smooth
from scall_jax.recommenders import graph as graphs
from scall_jax.recommenders.fit import learning_rate
from scall_jax.recommenders.lightgcn import rows_from, smooth_side, smooth_to_side
from scall_jax.streams.segments import make_rows
from scall_jax.tables.resize import init
from tests.helpers import random_graph, random_sizes, small_stream


@pytest.mark.parametrize("method", ["csr", "segment_sum", "auto"])
@pytest.mark.parametrize("columns", [1, 16, 33])
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
    for method in ("csr", "segment_sum"):
        np.testing.assert_array_equal(propagate(graph, jnp.ones((5, 4)), method), np.zeros((5, 4)))


def test_propagation_under_vmap_over_embeddings_and_over_graphs():
    rng = np.random.default_rng(0)
    graphs, dense = zip(*(random_graph(rng, 20, 10, 60, padding=400) for _ in range(2)), strict=True)
    length = min(g.indices.shape[0] for g in graphs)
    graphs = [g._replace(indices=g.indices[:length], values=g.values[:length]) for g in graphs]
    x = rng.normal(size=(2, 30, 5)).astype(np.float32)
    for method in ("csr", "segment_sum"):
        one_graph = jax.vmap(lambda x, m=method: propagate(graphs[0], x, m))(x)
        np.testing.assert_allclose(one_graph, dense[0] @ x, atol=1e-5)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)
        each = jax.vmap(lambda g, x, m=method: propagate(g, x, m))(stacked, x)
        np.testing.assert_allclose(each, np.stack(dense) @ x, atol=1e-5)
    with pytest.raises(ValueError, match="choose auto"):
        propagate(graphs[0], x[0], "cusparse")


@pytest.fixture(params=["csr", "segment_sum"])
def product(request, monkeypatch):
    """`propagate` as it is on a CPU, and as it is elsewhere."""
    monkeypatch.setitem(graphs._PRODUCTS, "csr", graphs._PRODUCTS[request.param])


@pytest.mark.usefixtures("product")
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
    final, own = embed(storage, layers, opened(storage, params), layout, graph, rows)
    np.testing.assert_allclose(final, (operator @ x)[rows], atol=1e-5)
    np.testing.assert_allclose(own, x[rows], atol=1e-6)
    np.testing.assert_allclose(smooth(graph, jnp.asarray(x, jnp.float32), layers), operator @ x, atol=1e-5)


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_half_products_from_a_side_and_back_to_it(side, layers):
    """The embedding of one side's columns and its transpose, against a dense matrix; a product does half the rows."""
    rng = np.random.default_rng(layers)
    users, items = 30, 20
    graph, dense = random_graph(rng, users, items, 200)
    operator = sum(np.linalg.matrix_power(dense, k) for k in range(layers + 1)) / (layers + 1)
    own = {0: slice(None), 1: slice(users), 2: slice(users, None)}[side]
    x, g = rng.normal(size=(2, users + items, 5)).astype(np.float32)
    x[np.setdiff1d(np.arange(users + items), np.arange(users + items)[own])] = 0
    np.testing.assert_allclose(smooth_side(graph, x, layers, users, jnp.int32(side)), operator @ x, atol=1e-5)
    back = smooth_to_side(graph, g, layers, users, jnp.int32(side))
    np.testing.assert_allclose(back[own], (operator.T @ g)[own], atol=1e-5)
    halves = [int(np.diff(rows_from(graph, users, jnp.int32(side), other).indptr).sum()) for other in (False, True)]
    assert halves == [int(graph.indptr[-1]) // (2 if side else 1)] * 2


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
    graph = streams.segments.make_graph((user, item), (user[by_item], item[by_item]), 40, 70, 2 * len(user) + 5)
    positives = make_rows(user, item, len(user) + 3)
    return met, jax.tree.map(jnp.asarray, graph), jax.tree.map(jnp.asarray, positives)


@pytest.mark.parametrize("source", ["segment", "all"])
def test_a_million_negatives_are_unmet_and_uniform(crowded, source):
    met, graph, positives = crowded
    batch = 2**20
    draw = jax.jit(lambda key: bpr.sample(key, positives, graph, 40, jnp.int32(30), batch, source))
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
            seen, expected = counts[user, choices, k], per_user[user] / choices.sum()
            assert np.abs(seen - expected).max() < 6 * np.sqrt(expected)


def test_random_integers_are_the_upper_half_of_a_product():
    rng = np.random.default_rng(0)
    bits = np.concatenate([[0, 2**32 - 1, 2**31], rng.integers(0, 2**32, 5000)]).astype(np.uint32)
    count = np.concatenate([[1, 2**31 - 1, 3], rng.integers(1, 2**31, 2500), rng.integers(1, 3000, 2500)])
    got = bpr.below(jnp.asarray(bits), jnp.asarray(count, jnp.int32))
    np.testing.assert_array_equal(got, [int(b) * int(c) >> 32 for b, c in zip(bits, count, strict=True)])


def test_items_beyond_the_known_ones_are_never_drawn(crowded):
    _, graph, positives = crowded
    # 5 more items of capacity that do not exist yet: same rows, items known 30 of 35
    triples = bpr.sample(jax.random.key(1), positives, graph, 40, jnp.int32(30), 10000)
    assert int(triples.negative.max()) < 30


def test_fit_learns_planted_tastes_and_a_broken_gradient_does_not():
    """Two groups of users with disjoint tastes: random ranking finds 20 of 80 items, a fit nearly all."""
    stream = small_stream(segments=2, strength=12.0, zipf=0.2, drift=0.0, tastes=3, lifetime=5.0)
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    users, items = stream.capacity.users, stream.capacity.items
    sizes = jnp.concatenate([jnp.full(users + items, 8), jnp.zeros(2, int)]).astype(jnp.int32)
    table = tables.packed(int(sizes.sum()), users, items, 8)
    layout = table.layout(sizes)
    params = init(table, jax.random.key(0), layout, 0.1)
    config = FitConfig(layers=2, batch=512, steps=300, eval_every=50, patience=10)
    given = jax.random.key(1), table.open(params), layout, segment, jnp.zeros(items)
    fitted = jax.jit(make_fit(tables.sized(table, users, 8), config))(*given)
    assert float(fitted.fitness) > 0.38
    assert int(fitted.bad_step) == -1

    broken = table._replace(pull=lambda values, layout: table.pull(-values, layout))
    worse = jax.jit(make_fit(tables.sized(broken, users, 8), config))(*given)
    assert float(worse.fitness) < 0.3


def test_non_finite_loss_stops_the_fit_and_names_the_step():
    stream = small_stream(segments=2)
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    users, items = stream.capacity.users, stream.capacity.items
    sizes = jnp.concatenate([jnp.full(users + items, 4), jnp.zeros(2, int)]).astype(jnp.int32)
    table = tables.packed(int(sizes.sum()), users, items, 4)
    config = FitConfig(layers=1, batch=64, steps=100, eval_every=10)
    params = table.open(table.zeros().at[0].set(jnp.nan))
    fitted = make_fit(tables.sized(table, users, 4), config)(
        jax.random.key(0), params, table.layout(sizes), segment, jnp.zeros(items)
    )
    assert int(fitted.bad_step) == 0 and int(fitted.steps) == 10
