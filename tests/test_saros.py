"""SAROS: its blocks, its step, its thresholds and its prequential metrics against plain numpy, and runs of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, make_run, run_segments, scan, tables
from scall_jax.recommenders.saros import learning
from scall_jax.recommenders.saros.blocks import (
    NOBODY,
    Blocks,
    explicit_blocks,
    segment_blocks,
    thresholds,
    with_exposures,
)
from scall_jax.recommenders.saros.config import SarosConfig
from tests.helpers import comparable, continued, small_config, small_stream

USERS, ITEMS, WIDTH = 3, 9, 4


@pytest.fixture(scope="module")
def stream():
    return small_stream(segments=3)


def _triples(blocks):
    """What the published code makes a step of: each click with all non-clicks of its block."""
    rows = zip(np.asarray(blocks.clicks).tolist(), np.asarray(blocks.exposures).tolist(), strict=True)
    found = []
    for clicks, exposures in rows:
        found += [(click, tuple(j for j in exposures if j != NOBODY)) for click in clicks if click != NOBODY]
    return found


def test_rows_that_say_what_was_clicked_give_the_triples_of_the_published_code():
    click = np.array([0, 0, 1, 1, 0, 1], bool)  # N1 N2 C3 C4 N5 C6
    blocks = explicit_blocks(np.zeros(6, int), np.arange(1, 7), click, np.arange(6, 0, -1))
    assert _triples(blocks) == [(3, (1, 2)), (4, (1, 2)), (6, (5,))]
    assert blocks.age.tolist() == [4, 1]


def test_blocks_of_several_users_come_by_their_last_clicks():
    # User 1 clicks before having left anything, and leaves something after the last click: neither is in a block.
    user = np.array([1, 0, 1, 0, 1, 0, 1])
    click = np.array([1, 0, 0, 1, 1, 1, 0], bool)
    blocks = explicit_blocks(user, np.arange(7), click, np.arange(70, 0, -10))
    assert blocks.user.tolist() == [1, 0]
    assert _triples(blocks) == [(4, (2,)), (3, (1,)), (5, (1,))]
    assert blocks.age.tolist() == [30, 40]


def _storage():
    sizes = jnp.array([WIDTH] * (USERS + ITEMS) + [0, 0], jnp.int32)
    table = tables.packed(WIDTH * (USERS + ITEMS), USERS, ITEMS, WIDTH)
    storage = tables.sized(table, USERS, WIDTH)
    return storage, storage.layout(sizes)


def _numpy_step(vectors, momentum, user, clicks, others, config, bias):
    """One step on float64 vectors of users and items, written out pair by pair."""
    gradient = [np.zeros_like(part) for part in vectors]
    u = vectors[0][user]
    for i, j in itertools.product(clicks, others):
        margin = u @ (vectors[1][i] - vectors[1][j]) + bias[i] - bias[j]
        slope = -1 / (1 + np.exp(margin)) / (len(clicks) * len(others))
        gradient[0][user] += slope * (vectors[1][i] - vectors[1][j])
        gradient[1][i] += slope * u
        gradient[1][j] -= slope * u
    gradient[0][user] += 2 * config.l2 * u
    for items in (clicks, others):
        for item in items:
            gradient[1][item] += 2 * config.l2 * vectors[1][item] / len(items)
    if config.momentum:
        momentum = [config.momentum * m + (1 - config.momentum) * g for m, g in zip(momentum, gradient, strict=True)]
    direction = momentum if config.momentum else gradient
    return [v - config.learning_rate * d for v, d in zip(vectors, direction, strict=True)], momentum


@pytest.mark.parametrize(
    ("update", "momentum"), [pytest.param("block", 0.0, marks=pytest.mark.slow), ("click", 0.0), ("block", 0.8)]
)
def test_steps_are_those_of_numpy(key, update, momentum):
    storage, layout = _storage()
    config = SarosConfig(update=update, momentum=momentum, l2=0.03)
    params = storage.fresh(key, layout, 0.7)
    none = NOBODY
    blocks = Blocks(
        user=jnp.array([1, 2, 1, 0], jnp.int32),
        clicks=jnp.array([[3, 4], [5, none], [6, none], [7, none]], jnp.int32),
        exposures=jnp.array([[1, 2], [none, none], [0, none], [8, 1]], jnp.int32),
        age=jnp.zeros(4, jnp.int32),
        count=jnp.int32(3),  # The last one is not in use, and the second has nothing to be ranked above.
    )
    bias = jnp.linspace(-1, 1, ITEMS)
    learned = jax.jit(
        lambda params: learning.learn(storage, config, learning.start(config, params), layout, blocks, bias)
    )(params)
    found = np.asarray(storage.vectors(learned.params, layout))[:, :WIDTH]

    start = np.asarray(storage.vectors(params, layout), np.float64)[:, :WIDTH]
    vectors = [start[:USERS], start[USERS:]]
    moments = [np.zeros_like(part) for part in vectors]
    steps = [(1, [3, 4], [1, 2])] if update == "block" else [(1, [3], [1, 2]), (1, [4], [1, 2])]
    for user, clicks, others in [*steps, (1, [6], [0])]:
        vectors, moments = _numpy_step(vectors, moments, user, clicks, others, config, np.asarray(bias, np.float64))
    np.testing.assert_allclose(found, np.concatenate(vectors), rtol=2e-5, atol=2e-6)
    assert int(learned.updates) == len(steps) + 1 and int(learned.bad) == -1


def _by_hand(stream, t, config):
    """(user, clicks, age of the first click) of each block of a segment's positives, from the rows of the stream."""
    cut, positives = stream.bounds[t].train, stream.segment(t).positives
    last = {}
    for row, pair in enumerate(zip(stream.user[:cut].tolist(), stream.item[:cut].tolist(), strict=True)):
        last[pair] = row
    blocks, per_user = [], {}
    for place, user in enumerate(positives.users[: positives.count].tolist()):
        items = positives.items[positives.indptr[place] : positives.indptr[place + 1]].tolist()
        rows = sorted((last[user, item], item) for item in items)
        parts = [rows[at : at + config.clicks] for at in range(0, len(rows), config.clicks)]
        per_user[user] = [(part[-1][0], user, [item for _, item in part], cut - part[0][0]) for part in parts]
    lengths = sorted(map(len, per_user.values()))
    least = config.least or lengths[int(0.05 * (len(lengths) - 1) + 0.5)]
    most = config.most or lengths[int(0.95 * (len(lengths) - 1) + 0.5)]
    for parts in per_user.values():
        blocks += parts[:most] if len(parts) >= least else []
    return [(user, items, age) for _, user, items, age in sorted(blocks)]


@pytest.mark.parametrize("options", [{}, {"clicks": 3}, {"least": 4, "most": 6}])
def test_blocks_of_a_segment_are_its_positives_in_time_between_the_thresholds(stream, options):
    config, segment = SarosConfig(**options), stream.segment(1)
    blocks = jax.jit(lambda s: segment_blocks(config, s))(jax.tree.map(jnp.asarray, segment))
    count = int(blocks.count)
    clicks = [[x for x in row if x != NOBODY] for row in np.asarray(blocks.clicks)[:count].tolist()]
    found = list(
        zip(np.asarray(blocks.user)[:count].tolist(), clicks, np.asarray(blocks.age)[:count].tolist(), strict=True)
    )
    assert found == _by_hand(stream, 1, config) and count > 50


def test_thresholds_leave_the_ends_out():
    blocks = jnp.concatenate([jnp.arange(1, 101), jnp.zeros(20, jnp.int32)])
    assert [int(x) for x in thresholds(SarosConfig(), blocks, jnp.int32(100))] == [6, 95]
    assert [int(x) for x in thresholds(SarosConfig(least=2, most=3), blocks, jnp.int32(100))] == [2, 3]


@pytest.mark.slow
def test_exposures_are_drawn_by_frequency_and_never_met(stream):
    config, segment = SarosConfig(exposures=64), jax.tree.map(jnp.asarray, stream.segment(1))
    blocks = with_exposures(jax.random.key(1), segment_blocks(config, segment), segment)
    users = stream.capacity.users
    drawn = np.asarray(blocks.exposures)[: int(blocks.count)]
    indptr, indices = np.asarray(segment.graph.indptr), np.asarray(segment.graph.indices)
    frequency = np.asarray(segment.frequency)[users:].astype(float)
    expected = np.zeros(len(frequency))
    for user, row in zip(np.asarray(blocks.user).tolist(), drawn, strict=False):
        met = indices[indptr[user] : indptr[user + 1]] - users
        assert not np.isin(row[row != NOBODY], met).any()
        free = frequency.copy()
        free[met] = 0
        expected += 64 * free / frequency.sum()
    counts = np.bincount(drawn[drawn != NOBODY], minlength=len(frequency))
    often = expected > 200
    np.testing.assert_allclose(counts[often], expected[often], rtol=0.3)
    assert often.sum() > 5 and counts.sum() == pytest.approx(expected.sum(), rel=0.03)


@pytest.mark.slow
def test_prequential_metrics_are_those_of_numpy(stream, key):
    """Each block is ranked with what was learned from the blocks before it alone."""
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    config, (users, items) = SarosConfig(clicks=2), stream.capacity[:2]
    sizes = jnp.array([WIDTH] * (users + items) + [0, 0], jnp.int32)
    storage = tables.sized(tables.packed(WIDTH * (users + items), users, items, WIDTH), users, WIDTH)
    layout, bias = storage.layout(sizes), jnp.zeros(items)
    params = storage.fresh(key, layout, 0.7)
    blocks = with_exposures(key, segment_blocks(config, segment), segment)._replace(count=jnp.int32(12))
    met = learning.Met(segment.graph, segment.ages, segment.items)

    @jax.jit
    def through(params, blocks, count):
        start = learning.start(config, params)
        return learning.learn(storage, config, start, layout, blocks._replace(count=count), bias, met)

    cut, known, total = stream.bounds[1].train, int(segment.items), np.zeros(2)
    for place in range(12):
        before = through(params, blocks, jnp.int32(place)).params
        vectors = np.asarray(storage.vectors(before, layout), np.float64)
        user, age = int(blocks.user[place]), int(blocks.age[place])
        last = {int(i): row for row, i in enumerate(stream.item[:cut]) if stream.user[row] == user}
        allowed = [i for i in range(known) if not (i in last and cut - last[i] > age)]
        clicks = [x for x in np.asarray(blocks.clicks)[place].tolist() if x != NOBODY]
        top = sorted(allowed, key=lambda i: -vectors[users + i] @ vectors[user])[:20]
        gains = [1 / np.log2(2 + rank) for rank, i in enumerate(top) if i in clicks]
        total += len(gains) / len(clicks), sum(gains) / sum(1 / np.log2(2 + rank) for rank in range(len(clicks)))
    found = np.asarray(through(params, blocks, jnp.int32(12)).found)
    np.testing.assert_allclose(found, [*total, 12], rtol=1e-5)
    assert total[0] > 1


@pytest.mark.slow
def test_a_run_learns_goes_on_from_where_it_stopped_and_is_the_scan(stream, tmp_path):
    saros = SarosConfig(momentum=0.5, passes=4)
    config = small_config("uniform", recommender="saros", saros=saros, budget=Budget.mean_size(6), charge="stored")
    lines = run_segments(config, stream, jax.random.key(0), folder=tmp_path / "run")
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(lines)
    record = scan(config, stream, jax.random.key(0)).record
    assert record.allocated.tolist() == [line["allocated_parameters"] for line in lines]
    np.testing.assert_allclose(record.loss, [line["loss"] for line in lines], rtol=1e-3)
    for line in lines:
        assert line["allocated_parameters"] == line["budget_parameters"]
        assert line["bytes_at_rest"] <= line["budget_bytes"]
        assert line["prequential_blocks"] > 20 and 0 <= line["prequential_ndcg@20"] <= 1
    random = 20 / lines[-1]["items"]
    assert lines[-1]["test_recall@20"] > 1.2 * random and lines[-1]["prequential_recall@20"] > 1.2 * random


def test_training_holds_parameters_best_gradient_and_momentum(stream):
    for momentum, copies in ((0.0, 3), (0.5, 4)):
        config = small_config("uniform", recommender="saros", saros=SarosConfig(momentum=momentum))
        run, segment = make_run(config), stream.segment(1)
        state = jax.eval_shape(lambda key, run=run: run.init(key, stream), jax.random.key(0))
        prepared = jax.eval_shape(run.prepare, state, segment)
        held = run.method.bookkeeping(state, stream).training_bytes(state, segment, prepared.params)
        assert held == copies * 4 * state.params.size


def test_values_out_of_range_are_refused():
    for options in ({"update": "row"}, {"clicks": 0}, {"least": 5, "most": 4}, {"momentum": 1.0}, {"l2": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SarosConfig(**options)
