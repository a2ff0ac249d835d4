import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from scall_jax import evaluation
from scall_jax.evaluation import top
from scall_jax.streams import Graph
from scall_jax.streams.segments import GraphCapacity, make_graph, make_ragged_items


def _case(seed, users=23, items=150, known_items=140, width=20, room=400):
    """Scores with many ties (small integers), training items, relevant items disjoint from them."""
    rng = np.random.default_rng(seed)
    vectors = (
        rng.integers(-1, 2, (users, width)).astype(np.float32),
        rng.integers(-1, 2, (items, width)).astype(np.float32),
    )
    bias = rng.integers(-2, 3, items).astype(np.float32)
    met = rng.uniform(size=(users, items)) < rng.uniform(0, 0.9, users)[:, None]
    met[:, known_items:] = False
    relevant = (rng.uniform(size=(users, items)) < 0.1) & ~met
    relevant[:, known_items:] = False
    relevant[::5] = False
    user, item = np.nonzero(met)
    by_item = np.lexsort((user, item))
    graph = make_graph(user, item, np.arange(len(user)), by_item, GraphCapacity(users, items, 2 * len(user) + 9))
    rows = make_ragged_items(*np.nonzero(relevant), room, 400, rng)
    return vectors, bias, met, relevant, graph, rows


def _known(graph):
    return evaluation.KnownGraph(graph, 23, jnp.int32(140))


def _plain(scores, met, relevant, known, k, chosen):
    """Recall and NDCG at k of the chosen users, one user at a time in float64."""
    recalls, gains, shown = [], [], set()
    for u in chosen:
        candidates = [i for i in range(known) if not met[u, i]]
        top = sorted(candidates, key=lambda i: (-scores[u, i], i))[:k]
        shown.update(top)
        hits = [relevant[u, i] for i in top]
        recalls.append(sum(hits) / relevant[u].sum())
        ideal = sum(1 / np.log2(r + 2) for r in range(min(k, relevant[u].sum())))
        gains.append(sum(h / np.log2(r + 2) for r, h in enumerate(hits)) / ideal)
    return np.mean(recalls) if recalls else 0, np.mean(gains) if gains else 0, len(shown) / known


@pytest.mark.parametrize(("seed", "backend"), [(0, "cpu"), (1, "cpu"), (2, "gpu"), (3, "gpu")])
def test_agrees_with_a_plain_implementation_with_ties(seed, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # whether the bias is a column of the product
    (user_vectors, item_vectors), bias, met, relevant, graph, rows = _case(seed)
    padded = jnp.zeros((rows.users.shape[0], 20)).at[: rows.count].set(user_vectors[rows.users[: rows.count]])
    before = {"users_before": 9, "items_before": 60}
    got = jax.jit(lambda g, r: evaluation.evaluate(padded, item_vectors, bias, r, _known(g), **before))(graph, rows)
    scores = user_vectors.astype(np.float64) @ item_vectors.T + bias
    evaluated = np.flatnonzero(relevant.any(1))
    for s, chosen in enumerate((evaluated, evaluated[evaluated >= 9], evaluated[evaluated < 9])):
        assert got.users[s] == len(chosen)
        for k, cutoff in enumerate(evaluation.CUTOFFS):
            recall, ndcg, coverage = _plain(scores, met, relevant, 140, cutoff, chosen)
            assert float(got.recall[s, k]) == pytest.approx(recall, abs=1e-6)
            assert float(got.ndcg[s, k]) == pytest.approx(ndcg, abs=1e-6)
            if s == 0:
                assert float(got.coverage[k]) == pytest.approx(coverage, abs=1e-6)
    new = np.arange(150) >= 60
    for at, u in enumerate(rows.users[: rows.count].tolist()):
        for column, wanted in ((0, relevant), (2, relevant & new), (4, relevant & ~new)):
            chosen = [u] if wanted[u].any() else []
            expected = _plain(scores, met, wanted, 140, 20, chosen)[:2]
            np.testing.assert_allclose(got.by_user[at, column : column + 2], expected, atol=1e-6)


def test_ndcg_agrees_with_scikit_learn():
    (user_vectors, item_vectors), _, met, relevant, graph, rows = _case(9)
    rng = np.random.default_rng(0)
    item_vectors = item_vectors + rng.normal(size=item_vectors.shape).astype(np.float32)  # no ties
    padded = jnp.zeros((rows.users.shape[0], 20)).at[: rows.count].set(user_vectors[rows.users[: rows.count]])
    got = evaluation.evaluate(padded, item_vectors, jnp.zeros(150), rows, _known(graph))
    expected = []
    for u in np.flatnonzero(relevant.any(1)):
        candidates = np.flatnonzero(~met[u, :140])
        if len(candidates) > 1:
            scores = user_vectors[u].astype(np.float64) @ item_vectors[candidates].T
            expected.append(ndcg_score(relevant[u, candidates][None].astype(float), scores[None], k=10))
    assert len(expected) == int(got.users[0])
    assert float(got.ndcg[0, 1]) == pytest.approx(np.mean(expected), abs=1e-6)


def test_segment_candidates_are_the_relevant_items_only():
    (user_vectors, item_vectors), bias, met, relevant, graph, rows = _case(2)
    padded = jnp.zeros((rows.users.shape[0], 20)).at[: rows.count].set(user_vectors[rows.users[: rows.count]])
    got = evaluation.evaluate(padded, item_vectors, bias, rows, _known(graph), candidates="segment")
    outside = met | ~relevant.any(0)
    scores = user_vectors.astype(np.float64) @ item_vectors.T + bias
    recall, ndcg, _ = _plain(scores, outside, relevant, 140, 20, np.flatnonzero(relevant.any(1)))
    assert float(got.recall[0, 2]) == pytest.approx(recall, abs=1e-6)
    assert float(got.ndcg[0, 2]) == pytest.approx(ndcg, abs=1e-6)
    with pytest.raises(ValueError, match="choose all or segment"):
        evaluation.evaluate(padded, item_vectors, bias, rows, _known(graph), candidates="new")


@pytest.mark.parametrize("distinct", [2, 50, 10**6])
def test_top_k_is_exact_with_ties_to_the_lower_column(distinct):
    rng = np.random.default_rng(distinct)
    scores = rng.integers(0, distinct, (40, 64 * 40)).astype(np.float32)
    values, columns = evaluation.top_k(jnp.asarray(scores))
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, 1))


def test_many_blocks_of_users_count_everyone_once(monkeypatch):
    (user_vectors, item_vectors), bias, *_, graph, rows = _case(1)
    padded = jnp.zeros((rows.users.shape[0], 20)).at[: rows.count].set(user_vectors[rows.users[: rows.count]])
    args = (padded, item_vectors, bias, rows, _known(graph))
    whole = evaluation.evaluate(*args)
    most = top.AtOnce(users=1024, scores=7 * top.padded(150, 20), edges=32)  # 7 users at once
    monkeypatch.setattr(top, "at_once", lambda: most)
    for one, many in zip(whole, evaluation.evaluate(*args), strict=True):
        np.testing.assert_allclose(one, many, atol=1e-6)


def test_vectors_that_do_not_fit_are_refused_while_tracing():
    (_, item_vectors), bias, *_, graph, rows = _case(1)
    for users, width, items in ((399, 20, 150), (400, 19, 150), (400, 20, 149)):
        with pytest.raises(AssertionError):
            vectors = jnp.zeros((users, width)), item_vectors[:items]
            jax.eval_shape(lambda u, i: evaluation.evaluate(u, i, bias, rows, _known(graph)), *vectors)
    with pytest.raises(ValueError, match="30 columns"):
        evaluation.top_k(jnp.zeros((2, 30)))


def test_rows_that_count_for_nobody_are_not_masked():
    graph = Graph(jnp.array([0, 2, 3, 3, 3]), jnp.array([2, 3, 3]), jnp.ones(3))
    known, user = evaluation.KnownGraph(graph, 2, jnp.int32(2)), jnp.array([1, 0, 0])
    masked = evaluation.mask_seen_items(jnp.ones((3, 2)), known, user, 0.0, counted=jnp.array([True, True, False]))
    assert masked.tolist() == [[1, 0], [0, 0], [1, 1]]


def test_no_users_gives_zeros():
    (_, item_vectors), bias, *_, graph, rows = _case(1)
    empty = rows._replace(count=np.int32(0), indptr=np.zeros_like(rows.indptr))
    got = evaluation.evaluate(jnp.zeros((400, 20)), item_vectors, bias, empty, _known(graph))
    assert int(got.users.sum()) == 0 and float(got.fitness()) == 0


@pytest.mark.parametrize(("depth", "levels"), [(1, (128, 16)), (20, (4, 2)), (20, (128, 16)), (90, (128, 16))])
def test_the_best_items_are_those_of_a_stable_sort(depth, levels, monkeypatch):
    (user_vectors, item_vectors), bias, met, *_, graph, _ = _case(2)
    monkeypatch.setattr(top, "at_once", lambda: top.AtOnce(users=7, scores=2**20, edges=32))
    monkeypatch.setattr(top, "_LEVELS", levels)
    offsets, items = graph.indptr[:24], graph.indices - 23
    seen = top.KnownGraph(graph._replace(indptr=offsets, indices=items), users=0, items=jnp.int32(140))
    ranked = jax.jit(lambda *arrays: evaluation.best_items(*arrays, depth))
    values, found = ranked(user_vectors, item_vectors, bias, seen)
    scores = np.where(met, -np.inf, user_vectors @ item_vectors.T + bias)
    scores[:, 140:] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, 1))
    finite = np.isfinite(values)
    np.testing.assert_array_equal(np.asarray(found)[finite], expected[finite])


def test_fitness_is_the_mean_of_recall_and_ndcg_at_20_over_all_users():
    recall, ndcg = np.arange(9.0).reshape(3, 3), np.arange(10.0, 19.0).reshape(3, 3)
    zero = np.zeros(3)
    assert evaluation.Metrics(recall, ndcg, zero, zero, np.zeros((1, 6)), 0).fitness() == (2 + 12) / 2
