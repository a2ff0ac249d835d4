"""Neighbourhoods: lists, reciprocal distances and clusters against dense float64, and memory that grows with n k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from scall_jax.recommenders.reciprocal import NOISE, Lists, clusters, cosine_eps, nearest, reciprocal, rerank

POINTS, WIDTH = 60, 6


@pytest.fixture(scope="module")
def vectors():
    """Five groups of ten points each, and ten apart."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(5, WIDTH))
    grouped = np.repeat(centres, 10, axis=0) + 0.25 * rng.normal(size=(50, WIDTH))
    found = np.concatenate([grouped, rng.normal(size=(10, WIDTH))])
    return found[rng.permutation(POINTS)].astype(np.float32)


def _dense_lists(vectors, k):
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    np.fill_diagonal(distance, -1)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return order, np.maximum(np.take_along_axis(distance, order, axis=1), 0)


def _dense_jaccard(ids, distances):
    """Distances of all pairs, by sums over all points."""
    weights = np.zeros((len(ids), len(ids)))
    np.put_along_axis(weights, ids, np.exp(-distances), axis=1)
    found = np.ones_like(weights)
    for i in range(len(ids)):
        for j in ids[i]:
            if i in ids[j]:
                found[i, j] = 1 - np.minimum(weights[i], weights[j]).sum() / np.maximum(weights[i], weights[j]).sum()
    return found


@pytest.mark.parametrize("k", [8, pytest.param(POINTS, marks=pytest.mark.slow)])
def test_lists_and_reciprocal_distances_are_those_of_numpy(vectors, k):
    lists = nearest(jnp.asarray(vectors), jnp.ones(POINTS, bool), k)
    ids, distances = _dense_lists(vectors, k)
    np.testing.assert_array_equal(lists.ids, ids)
    # A distance comes from 2 - 2 cos, which cancels in float32.
    np.testing.assert_allclose(lists.distances, distances, atol=1e-3)
    ranked, dense = reciprocal(lists), _dense_jaccard(ids, distances)
    own = np.take_along_axis(dense, np.asarray(ranked.ids), axis=1)
    np.testing.assert_allclose(ranked.distances, own, atol=2e-4)
    assert (np.diff(ranked.distances, axis=1) >= 0).all() and (np.sort(ranked.ids) == np.sort(ids)).all()
    if k < POINTS:
        assert ((dense == 1).sum(1) > POINTS - k).any(), "no pair is one-sided"


def test_identical_lists_have_distance_0():
    lists = nearest(jnp.tile(jnp.eye(4), (2, 1)), jnp.ones(8, bool), 8)
    ranked = reciprocal(lists)
    assert (np.asarray(ranked.distances)[:, :2] < 1e-6).all()
    np.testing.assert_array_equal(np.sort(np.asarray(ranked.ids)[:, :2]), [[i % 4, i % 4 + 4] for i in range(8)])


def _dbscan(distance, eps, least):
    """Components of cores by a plain search, and the clusters that a border point may join."""
    near = distance <= eps
    core, label = near.sum(1) >= least, np.full(len(near), NOISE)
    for first in np.flatnonzero(core):
        if label[first] == NOISE:
            stack = [first]
            while stack:
                at = stack.pop()
                if label[at] == NOISE:
                    label[at] = first
                    stack += np.flatnonzero(near[at] & core).tolist()
    border = {i: sorted({label[j] for j in np.flatnonzero(near[i] & core)}) for i in np.flatnonzero(~core)}
    return core, label, border


@pytest.mark.parametrize("eps", [0.45, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.3, 0.6))])
def test_clusters_are_those_of_dense_dbscan(vectors, eps):
    lists = reciprocal(nearest(jnp.asarray(vectors), jnp.ones(POINTS, bool), POINTS))
    found = np.asarray(clusters(lists, jnp.float32(eps)))
    dense = np.zeros((POINTS, POINTS))
    np.put_along_axis(dense, np.asarray(lists.ids), np.asarray(lists.distances), axis=1)
    core, label, border = _dbscan(dense, eps, 4)
    np.testing.assert_array_equal(found[core], label[core])
    for point, joins in border.items():
        assert found[point] == (joins[0] if joins else NOISE)
    theirs = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(dense)
    np.testing.assert_array_equal(np.flatnonzero(core), theirs.core_sample_indices_)
    pairs = {(a, b) for a, b in zip(found[core].tolist(), theirs.labels_[core].tolist(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    np.testing.assert_array_equal(found == NOISE, theirs.labels_ == NOISE)


@pytest.mark.slow
def test_some_clusters_are_found_and_some_points_are_left(vectors):
    lists = reciprocal(nearest(jnp.asarray(vectors), jnp.ones(POINTS, bool), 12))
    found = np.asarray(clusters(lists, jnp.float32(0.5)))
    labels, counts = np.unique(found[found != NOISE], return_counts=True)
    assert len(labels) >= 3 and counts.min() >= 4 and (found == NOISE).any()


@pytest.mark.slow
def test_points_that_are_not_allowed_are_in_no_list(vectors):
    allowed = jnp.arange(POINTS) % 3 > 0
    lists = nearest(jnp.asarray(vectors), allowed, 50)
    ids = np.asarray(lists.ids)
    assert (ids[::3] == NOISE).all() and (ids[1][40:] == NOISE).all() and (ids[1][:40] % 3 > 0).all()
    ranked = reciprocal(lists)
    assert (np.asarray(clusters(ranked, jnp.float32(0.9)))[::3] == NOISE).all()
    assert (np.asarray(ranked.distances)[1][40:] == 1).all()


@pytest.mark.slow
def test_memory_grows_with_n_k():
    """Bytes of a compiled program beside its arguments, by points and by length of the lists."""

    def taken(n, k):
        shape = jax.ShapeDtypeStruct((n, k), jnp.int32), jax.ShapeDtypeStruct((n, k), jnp.float32)

        def program(ids, distances, eps):
            ranked = reciprocal(Lists(ids, distances))
            return clusters(ranked, eps), ranked

        program = jax.jit(program).lower(*shape, jax.ShapeDtypeStruct((), jnp.float32)).compile()
        analysis = program.memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    points = [taken(n, 8) for n in (4000, 8000, 16000)]
    # The slope is that of lists: a few arrays of n x 8 numbers of 4 bytes, where a matrix would take 4 n a point.
    slopes = np.diff(points) / np.diff([4000, 8000, 16000]) / (4 * 8)
    assert slopes[1] == pytest.approx(slopes[0], rel=0.05) and 3 < slopes[1] < 20
    longer = taken(16000, 16)
    assert 1.5 < longer / points[2] < 2.6


def test_the_schedule_rises_falls_and_holds():
    eps = [float(cosine_eps(jnp.int32(t), 40)) for t in range(60)]
    assert eps[0] == pytest.approx(0.4) and eps[20] == pytest.approx(0.7) and max(eps) == eps[20]
    assert eps[30] == pytest.approx(0.55) and eps[30:] == [eps[30]] * 30
    assert all(np.diff(eps[:21]) > 0) and all(np.diff(eps[20:31]) < 0)


@pytest.mark.slow
def test_reranked_lists_are_those_of_numpy(vectors):
    """A user's list against the lists of its items, pair by pair in float64."""
    rng = np.random.default_rng(1)
    items = nearest(jnp.asarray(vectors), jnp.ones(POINTS, bool), 9)
    ids = np.stack([rng.permutation(POINTS)[:12] for _ in range(5)]).astype(np.int32)
    ids[4, 10:] = NOISE
    distances = np.sort(rng.random((5, 12)), axis=1).astype(np.float32)
    for mix in (0.0, 0.6, 1.0):
        got = np.asarray(rerank(Lists(jnp.asarray(ids), jnp.asarray(distances)), items, mix))
        for user in range(5):
            count = 10 if user == 4 else 12
            own = dict(zip(ids[user, :count].tolist(), np.exp(-distances[user].astype(float)), strict=False))
            value = []
            for place, item in enumerate(ids[user, :count].tolist()):
                near = np.asarray(items.ids[item]).tolist()
                theirs = dict(zip(near, np.exp(-np.asarray(items.distances[item], float)), strict=True))
                points = own.keys() | theirs.keys()
                least, most = (sum(f(own.get(x, 0), theirs.get(x, 0)) for x in points) for f in (min, max))
                value.append(mix * place / 12 + (1 - mix) * (1 - least / most))
            order = np.argsort(value, kind="stable")
            assert got[user, :count].tolist() == ids[user][order].tolist(), (mix, user)
            assert (got[user, count:] == NOISE).all()
