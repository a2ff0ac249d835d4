"""Coherence of users as a weight of their frequency, against dense float64 co-occurrence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, SizesConfig, run_segments, scan, streams
from scall_jax.methods.coherence import RESOLUTION, SIGNS, importance, mean_lift
from tests.helpers import comparable, continued, small_config, small_stream

USERS, ITEMS = 60, 60


@pytest.fixture(scope="module")
def stream():
    """Users below 30 keep to one of five groups of twelve items, the others take any; all have eight rows a segment."""
    rng = np.random.default_rng(0)
    user = np.tile(rng.permutation(np.repeat(np.arange(USERS), 2)), 8)
    group = np.where(user < USERS // 2, user % 5, rng.integers(0, 5, len(user)))
    item = 12 * group + rng.integers(0, 12, len(user))
    return streams.cut(streams.from_arrays(user, item, np.arange(len(user))), segments=2)


def _dense(stream, t):
    """Mean lift of each user's pairs, and the diagonal's part, pair by pair."""
    cut = stream.bounds[t].train
    met = np.zeros((stream.capacity.users, stream.capacity.items))
    met[stream.user[:cut], stream.item[:cut]] = 1
    having = met.sum(0)
    both = met.T @ met
    known, lift, whole = stream.known(cut)[0], np.ones(len(met)), np.zeros(len(met))
    for user, row in enumerate(met):
        items = np.flatnonzero(row)
        ratio = both[np.ix_(items, items)] / np.outer(having[items], having[items])
        if len(items) > 1:
            pairs = len(items) * (len(items) - 1)
            lift[user] = known * (ratio.sum() - np.trace(ratio)) / pairs
            whole[user] = known * ratio.sum() / pairs
    return lift, whole


@pytest.fixture(scope="module")
def estimate(stream):
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    return np.asarray(jax.jit(mean_lift)(segment)), np.asarray(jax.jit(importance)(segment)), segment


def test_the_estimate_is_the_mean_lift_up_to_the_deviation_of_its_signs(stream, estimate):
    lift, whole = _dense(stream, 1)
    deviation = np.sqrt(2 / SIGNS) * whole
    error = (estimate[0] - lift) / np.maximum(deviation, 1e-6)
    assert np.abs(error).max() < 4.5 and np.sqrt((error**2).mean()) < 1.3
    assert np.abs(error).max() > 0.1, "an estimate by signs is not exact"


def test_importance_raises_coherent_users_and_keeps_items_and_the_users_total(stream, estimate):
    lift, found, segment = estimate
    frequency, users = np.asarray(segment.frequency), stream.capacity.users
    np.testing.assert_array_equal(found[users:], RESOLUTION * frequency[users:])
    assert found[:users].sum() == pytest.approx(RESOLUTION * frequency[:users].sum(), rel=0.02)
    mean = (frequency[:users] * lift).sum() / frequency[:users].sum()
    weight = np.clip(lift.astype(float) / mean, 1 / 8, 8)
    np.testing.assert_allclose(found[:users], RESOLUTION * frequency[:users] * weight, atol=1)
    raw = np.array([int(x) for x in stream.user_ids.to_list()])
    each = found[:users] / np.maximum(frequency[:users], 1)
    assert each[raw < USERS // 2].mean() > 1.5 * each[raw >= USERS // 2].mean()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["frequency", "scall-random"])
def test_runs_by_coherence_spend_the_budget_learn_go_on_and_are_the_scan(method, tmp_path):
    stream, key = small_stream(), jax.random.key(0)
    config = small_config(method, budget=Budget.mean_size(5), sizes=SizesConfig(maximum=16, ranking="coherence"))
    lines = run_segments(config, stream, key, folder=tmp_path / "run")
    assert all(line["allocated_parameters"] == line["budget_parameters"] for line in lines)
    assert lines[-1]["test_recall@20"] > 1.2 * 20 / lines[-1]["items"]
    assert continued(config, stream, key, tmp_path) == comparable(lines)
    record = scan(config, stream, key).record
    assert record.allocated.tolist() == [line["allocated_parameters"] for line in lines]
    np.testing.assert_allclose(record.loss, [line["loss"] for line in lines], rtol=1e-3)
