import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import tables
from scall_jax.methods.rivals.pep import learn_thresholds
from scall_jax.tables import PrunedConfig
from scall_jax.tables.compressed.pruned import keep, prune, pruned, thresholded
from tests.helpers import small_config


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_pruned_values_and_gradients_are_those_of_plain_numpy():
    rng = np.random.default_rng(0)
    v, s, g = rng.normal(size=(9, 7)), rng.normal(size=(9, 7)), rng.normal(size=(9, 7))
    left = np.abs(v) > _sigmoid(s)
    assert 10 < left.sum() < 50
    value, back = jax.vjp(prune, jnp.asarray(v, jnp.float32), jnp.asarray(s, jnp.float32))
    dv, ds = back(jnp.asarray(g, jnp.float32))
    np.testing.assert_allclose(value, np.where(left, np.sign(v) * (np.abs(v) - _sigmoid(s)), 0), atol=1e-6)
    np.testing.assert_allclose(dv, np.where(left, g, 0), atol=1e-6)
    slope = _sigmoid(s) * (1 - _sigmoid(s))
    np.testing.assert_allclose(ds, np.where(left, -np.sign(v) * slope * g, 0), atol=1e-6)


def test_the_farthest_beyond_their_thresholds_are_kept_exactly_as_many_as_are_paid_for():
    rng = np.random.default_rng(0)
    v, s = rng.normal(size=(12, 9)).astype(np.float32), rng.normal(size=(12, 1)).astype(np.float32)
    v[3] = 0
    active_mask = np.arange(12) < 10
    kept_of = jax.jit(lambda v, s, active_mask, count: keep(v, s, active_mask, count, 150))
    beyond = np.where(active_mask[:, None], np.abs(v) - _sigmoid(s), -np.inf)
    for values, count in ((v, 1), (v, 37), (v, 89), (v, 90), (v, 150), (0 * v, 40)):
        kept = kept_of(values, s, active_mask, count)
        sizes, total = np.asarray(kept.sizes), min(count, 90)
        assert sizes.sum() == total and (sizes[10:] == 0).all()
        node = np.repeat(np.arange(14), sizes)
        mask = np.zeros((12, 9), bool)
        mask[node, np.asarray(kept.positions)[:total]] = True
        assert mask.sum() == total  # no coordinate twice
        if values is v and count < 90:
            np.testing.assert_array_equal(mask, beyond >= np.sort(beyond.ravel())[-total])
        assert (np.diff(np.asarray(kept.positions)[:total].astype(int))[np.diff(node) == 0] > 0).all()


def test_kept_values_are_looked_up_go_to_disk_and_back_and_cost_five_bytes():
    users, items, known = 8, 6, (7, 5)
    rng = np.random.default_rng(1)
    active_mask = jnp.concatenate([jnp.arange(users) < 7, jnp.arange(items) < 5])
    storage = pruned(60, users, items, 40, PrunedConfig(width=10))
    plan = keep(jnp.asarray(rng.normal(size=(14, 10)), jnp.float32), jnp.zeros((1, 1)), active_mask, 50, 60)
    layout = storage.layout(plan)
    params = storage.fresh(jax.random.key(0), layout, 1.0)
    vectors, back = jax.vjp(lambda p: storage.vectors(p, layout), params)
    mask = np.asarray(vectors) != 0
    sizes = np.asarray(plan.sizes)
    np.testing.assert_array_equal(mask.sum(1), sizes[:-2])
    np.testing.assert_array_equal(np.asarray(vectors)[mask], params[:50])
    g = jnp.asarray(rng.normal(size=(14, 10)), jnp.float32)
    np.testing.assert_array_equal(back(g)[0], np.concatenate([np.asarray(g)[mask], np.zeros(10)]).astype(np.float32))
    exported = storage.export(params, plan, known)
    assert tables.charged(exported) == {"parameters": 4 * 50, "codes": 50, "metadata": 12 + 2}
    again, plan_again = storage.restore(exported, known)
    np.testing.assert_array_equal(again, params)
    jax.tree.map(np.testing.assert_array_equal, plan_again, plan)
    factory = tables.storage_factory(small_config(table="pruned", pruned=PrunedConfig(width=10)))
    assert factory.budget_units(264, known, 40, True) == factory.budget_units(268, known, 40, True) == 50
    assert factory.budget_units(263, known, 40, True) == 49
    assert factory.budget_units(264, known, 40, False) == 52
    with pytest.raises(ValueError, match="with the budget that the run was started with"):
        storage.restore(exported | {"parameters": exported["parameters"][:-1]}, known)


def test_training_under_the_mask_starts_where_the_search_did():
    users, items = 5, 4
    options = PrunedConfig(width=6, thresholds="entity", start=-7.0, decay=0.01)
    storage = pruned(40, users, items, 6, options)
    full = thresholded(storage, users, options)
    rng = np.random.default_rng(2)
    active_mask, key, warm = jnp.ones(9, bool), jax.random.key(3), small_config().warm_start
    old, new = (
        keep(jnp.asarray(rng.normal(size=(9, 6)), jnp.float32).at[1].set(0.0), jnp.zeros((1, 1)), active_mask, n, 40)
        for n in (30, 22)
    )
    for start in ("fresh", "warm"):
        if start == "fresh":
            table = full.fresh(key, old, 0.1)
            params = storage.fresh(key, storage.layout(new), 0.1)
        else:
            stored = storage.fresh(jax.random.key(0), storage.layout(old), 0.5)
            known = jnp.arange(9) != 8
            previous = tables.Previous(stored, old, known, jnp.ones(9))
            table = full.warm_start(key, previous, new, warm)
            params = storage.warm_start(key, previous, new, warm)
            before = np.asarray(storage.vectors(stored, storage.layout(old)))
            kept = (before != 0) & np.asarray(known)[:, None]
            values = np.asarray(table["values"])
            np.testing.assert_allclose(values[kept], warm.shrink * before[kept], rtol=1e-6)
            lost = ~kept & (kept.any(1))[:, None]
            assert 0 < np.abs(values[lost]).max() < 5 * warm.grow_std
            assert np.abs(values[~kept.any(1)]).max() > 5 * warm.grow_std  # one unknown, and one without coordinates
        squares = (np.asarray(table["values"], np.float64) ** 2).sum() + 9 * 7**2
        assert full.penalty(table, new) == pytest.approx(0.5 * 0.01 * squares, rel=1e-5)
        assert table["thresholds"].shape == (9, 1) and (table["thresholds"] == -7).all()
        masked = np.where(np.asarray(storage.vectors(jnp.ones(40), storage.layout(new))) == 1, table["values"], 0)
        np.testing.assert_array_equal(storage.vectors(params, storage.layout(new)), masked)


def test_thresholds_are_learned_until_what_is_left_fits():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(10, 8)), jnp.float32)
    params = {"values": values, "thresholds": jnp.full((10, 8), -4.0)}
    active_mask = jnp.arange(10) < 9

    def step(number, params, opt_state):
        return params | {"thresholds": params["thresholds"] + 0.25}, opt_state

    run = jax.jit(lambda count: learn_thresholds(step, (), params, active_mask, count, 12))
    left = [(np.abs(values[:9]) > _sigmoid(-4.0 + 0.25 * k)).sum() for k in range(13)]
    for count in (0, left[5], left[5] - 1, 72):
        found, made = run(count)
        expected = next((k for k in range(12) if left[k] <= count), 12)
        assert made == expected
        np.testing.assert_allclose(found["thresholds"], -4 + 0.25 * expected)


def test_options_out_of_range_are_refused():
    for options, message in (({"width": 257}, "positions are bytes"), ({"thresholds": "user"}, "choose one of global")):
        with pytest.raises(ValueError, match=message):
            PrunedConfig(**options)
