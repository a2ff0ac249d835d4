"""Gains of coordinates against losses in float64, and sizes from gains against brute force."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scall_jax import Budget, Config, make_run, run_segments, streams
from scall_jax.methods.scall.prices import NUMBERS, rule_of
from scall_jax.recommenders.ials import IalsConfig
from scall_jax.recommenders.ials.fit import Sweeps
from scall_jax.recommenders.ials.gains import balanced, truncated, wide_fit
from scall_jax.recommenders.ials.problem import Hyper
from scall_jax.recommenders.recommender import WideFit
from scall_jax.sizes.gains import GainRule, Gains, GainsConfig, shuffled, sizes_by_gains
from scall_jax.sizes.sides import split_sides
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import sized
from tests.helpers import comparable, continued

A0, LAMBDA, FADING, USERS_FADING, WIDTH = 0.3, 0.003, 2.0, 0.5, 16
_FIXED = IalsConfig(sweeps=2, half_life=0.5, unobserved=A0, regularisation=LAMBDA)


@functools.cache
def _stream() -> streams.Stream:
    rows = streams.synthetic(jax.random.key(0), users=70, items=50, interactions=1500)
    return streams.cut(rows, segments=3)


@functools.cache
def _wide() -> tuple[streams.Segment, np.ndarray, WideFit]:
    segment = jax.tree.map(jnp.asarray, _stream().segment(1))
    bias = np.random.default_rng(0).random(_stream().capacity.items).astype(np.float32) * 0.3
    hyper = Hyper(*map(jnp.float32, (FADING, A0, LAMBDA, USERS_FADING)))
    return (
        segment,
        bias,
        jax.jit(wide_fit, static_argnums=(4, 5))(jax.random.key(1), segment, bias, hyper, Sweeps(3, 0.0), WIDTH),
    )


def test_a_gain_is_the_drop_of_the_loss_when_a_coordinate_is_added():
    segment, bias, fit = _wide()
    users, nodes = _stream().capacity.users, _stream().capacity.nodes
    vectors = np.asarray(fit.vectors, np.float64)
    known = [np.arange(int(segment.users)), users + np.arange(int(segment.items))]
    indptr, neighbours = np.asarray(segment.graph.indptr), np.asarray(segment.graph.indices)
    ages = np.asarray(segment.ages, np.float64) / int(segment.period)
    # Users' pairs weigh what they do when users are served.
    weight = 2.0 ** (-ages * np.where(np.arange(len(ages)) < indptr[users], USERS_FADING, FADING))
    beta = np.concatenate([np.zeros(users), bias])
    for node in [*known[0], *known[1]]:
        other = known[1 if node < users else 0]
        entries = slice(indptr[node], indptr[node + 1])
        met, w = neighbours[entries], weight[entries]
        # The entity's own terms of the loss, each the square of a row times its vector less what is wanted.
        penalty = LAMBDA * (len(met) + A0 * len(other))
        rows = [np.sqrt(w)[:, None] * vectors[met], np.sqrt(A0) * vectors[other], np.sqrt(penalty) * np.eye(WIDTH)]
        rows = np.concatenate(rows)
        wanted = [np.sqrt(w) * (1 - beta[met] - beta[node]), -np.sqrt(A0) * (beta[other] + beta[node]), np.zeros(WIDTH)]
        wanted = np.concatenate(wanted)
        least = [(wanted**2).sum()]
        for size in range(1, WIDTH + 1):
            solution = np.linalg.lstsq(rows[:, :size], wanted, rcond=None)[0]
            least.append(((rows[:, :size] @ solution - wanted) ** 2).sum())
        np.testing.assert_allclose(fit.gains[node], -np.diff(least), rtol=1e-3, atol=1e-4 * least[0])
        np.testing.assert_allclose(fit.at_zero[node], least[0], rtol=1e-4)
    unknown = np.setdiff1d(np.arange(nodes), np.concatenate(known))
    assert (np.asarray(fit.gains)[unknown] == 0).all() and (np.asarray(fit.at_zero)[unknown] == 0).all()
    left = 1 - np.asarray(fit.gains, np.float64)[:users].sum() / np.asarray(fit.at_zero, np.float64)[:users].sum()
    np.testing.assert_allclose(fit.residual, left, rtol=1e-4)
    assert 0 < float(fit.residual) < 1


def test_the_leading_coordinates_hold_the_most_of_the_predictions():
    rng = np.random.default_rng(0)
    vectors, users = rng.normal(size=(90, 6)) @ rng.normal(size=(6, 6)), 55
    turned, values = balanced(jnp.asarray(vectors, jnp.float32), users)
    before, after = vectors[:users] @ vectors[users:].T, np.asarray(turned[:users] @ turned[users:].T)
    np.testing.assert_allclose(after, before, atol=1e-4 * abs(before).max())
    np.testing.assert_allclose(values, np.linalg.svd(before)[1][:6], rtol=1e-4, atol=1e-6 * float(values[0]))
    for side in (turned[:users], turned[users:]):
        np.testing.assert_allclose(side.T @ side, np.diag(values), atol=1e-4 * float(values[0]))
    # The best predictions of any rank are those of the leading coordinates (Eckart and Young, 1936).
    best = np.linalg.svd(before)
    rank_2 = (best[0][:, :2] * best[1][:2]) @ best[2][:2]
    np.testing.assert_allclose(turned[:users, :2] @ turned[users:, :2].T, rank_2, atol=1e-3 * abs(before).max())


def test_a_start_has_the_leading_coordinates_of_the_wide_fit():
    segment, _, fit = _wide()
    users, items = _stream().capacity.users, _stream().capacity.items
    known = np.concatenate([np.arange(users) < int(segment.users), np.arange(items) < int(segment.items)])
    sizes = np.where(known, np.random.default_rng(3).integers(0, WIDTH + 5, users + items), 0)
    plan = jnp.asarray(np.concatenate([sizes, [3, 2]]).astype(np.int32))
    storage = sized(packed(int(plan.sum()), users, items, 2 * WIDTH), users, 2 * WIDTH)
    layout = storage.layout(plan)
    table = storage.table
    assert table is not None
    found = storage.vectors(table.from_buffer(truncated(storage, fit.vectors, layout)), layout)
    wanted = np.where(np.arange(WIDTH)[None, :] < sizes[:, None], np.asarray(fit.vectors), 0)
    np.testing.assert_array_equal(found[:, :WIDTH], wanted)
    assert (np.asarray(found[:, WIDTH:]) == 0).all()


def _problem(gains: np.ndarray, users: int, weight: np.ndarray | None = None) -> tuple[Gains, jax.Array, jax.Array]:
    count = len(gains)
    weight = np.ones(count) if weight is None else weight
    found = Gains(jnp.asarray(gains, jnp.float32), jnp.asarray(weight, jnp.float32), jnp.float32(0.5))
    return found, jnp.ones(count, bool), jnp.arange(count, dtype=jnp.int32)


def test_no_allocation_has_more_of_the_gains():
    rng = np.random.default_rng(0)
    sized_by = jax.jit(sizes_by_gains, static_argnums=(4, 7))
    for trial in range(30):
        # Each coordinate is worth less than those before it, so that one price finds the very best.
        gains = -np.sort(-rng.exponential(size=(4, 4)), axis=1)
        weight = rng.exponential(size=4) + 0.1
        rule = GainRule(0.2, float(rng.random()), 0.0, float(rng.uniform(0.2, 0.8)))
        problem, exists, order = _problem(gains, 2, weight)
        total = int(rng.integers(0, 17))
        found = np.asarray(sized_by(problem, rule, jnp.int32(total), None, (0, 4), exists, order, 2))
        side = 2 * np.array([rule.users, rule.users, 1 - rule.users, 1 - rule.users])
        worth = np.cumsum(gains - rule.noise * 0.5, axis=1) * (side / weight**rule.exponent)[:, None]
        worth = np.concatenate([np.zeros((4, 1)), worth], axis=1)
        every = (sizes for sizes in itertools.product(range(5), repeat=4) if sum(sizes) == total)
        best = max(sum(worth[n, size] for n, size in enumerate(sizes)) for sizes in every)
        assert found.sum() == total, trial
        assert sum(worth[n, size] for n, size in enumerate(found)) >= best - 1e-5, trial


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    total=st.integers(0, 400),
    numbers=st.tuples(*[st.floats(0, 1, width=32)] * 5),
    minimum=st.integers(0, 2),
    split=st.booleans(),
)
def test_the_budget_is_spent_exactly_by_any_rule(seed, total, numbers, minimum, split):
    rng = np.random.default_rng(seed)
    gains, exists, order = _problem(rng.exponential(size=(40, 6)) * 10.0 ** rng.uniform(-6, 3), 25)
    users_total = int(split_sides(total, 0.3, 25, 15, minimum, 8)[0]) if split else None
    own = _sized_40(gains, rule_of(jnp.asarray(numbers)), total, users_total, minimum, exists, order)
    assert int(own.sum()) == min(total, 40 * 8)
    assert int(own.max()) <= 8
    assert total < 40 * minimum or int(own.min()) >= minimum


def _sized_40(gains, rule, total, users_total, minimum, exists, order):
    users_total = None if users_total is None else jnp.int32(users_total)
    return _jitted(gains, rule, jnp.int32(total), users_total, (minimum, 8), exists, order, 25)


_jitted = jax.jit(sizes_by_gains, static_argnums=(4, 7))


def test_a_smallest_size_beyond_the_wide_fit_is_refused():
    gains = Gains(jnp.ones((4, 3)), jnp.ones(4), jnp.float32(0.5))
    rule, exists, order = GainRule(0.2, 0.5, 0.0), jnp.ones(4, bool), jnp.arange(4, dtype=jnp.int32)
    with pytest.raises(ValueError, match=r"minimum=4: the wide fit .* has 3 coordinates: raise gains.wide"):
        sizes_by_gains(gains, rule, jnp.int32(8), None, (4, 8), exists, order, 2)


def test_shuffled_gains_are_those_of_another_entity_of_the_same_side():
    rng, users, nodes = np.random.default_rng(0), 40, 70
    active = np.r_[np.arange(40) < 33, np.arange(30) < 21]
    before = Gains(*(jnp.asarray(x, jnp.float32) for x in (rng.random((nodes, 5)), rng.random(nodes), 0.5)))
    found = shuffled(jax.random.key(0), before, jnp.asarray(active), users)
    for side in (slice(0, 33), slice(40, 61)):
        ours, theirs = (np.column_stack([g.by_coordinate[side], g.weight[side]]) for g in (found, before))
        assert not (ours == theirs).all(1).sum() > 5
        np.testing.assert_array_equal(*(np.sort(rows, axis=0) for rows in (ours, theirs)))
        # Rows move as a whole.
        assert {tuple(row) for row in ours} == {tuple(row) for row in theirs}
    # Room for more entities changes nobody's.
    more = Gains(*(jnp.concatenate([x[:40], jnp.ones_like(x[:3]), x[40:]]) for x in before[:2]), before.residual)
    wide = shuffled(jax.random.key(0), more, jnp.asarray(np.r_[active[:40], [False] * 3, active[40:]]), users + 3)
    np.testing.assert_array_equal(wide.weight[:33], found.weight[:33])
    np.testing.assert_array_equal(wide.weight[43:64], found.weight[40:61])


def test_one_size_for_all_is_an_action():
    gains, exists, order = _problem(np.random.default_rng(0).exponential(size=(40, 6)), 25)
    action = dict.fromkeys(NUMBERS, 0.3) | {"mixture": 0.95}
    own = _sized_40(gains, rule_of(jnp.array(list(action.values()))), 120, None, 1, exists, order)
    assert (np.asarray(own) == 3).all()


@pytest.mark.parametrize(
    "wrong", [{"wide": 0.5}, {"sweeps": 0}, {"noise": -1.0}, {"exponent": 2.0}, {"rho": 1.5}, {"start": "warm"}]
)
def test_options_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(GainsConfig(), **wrong)


def _config(method: str, recommender: str, **others) -> Config:
    base = Config()
    return Config(
        method=method,
        budget=Budget.mean_size(3),
        recommender=recommender,
        ials=_FIXED,
        gains=GainsConfig(sweeps=2),
        fit=dataclasses.replace(base.fit, steps=10, eval_every=5),
        search=dataclasses.replace(base.search, probes=3, probe_steps=5),
        **others,
    )


@pytest.mark.parametrize(
    ("method", "recommender"),
    [
        ("gain", "ials"),
        pytest.param("scall-gain", "ials", marks=pytest.mark.slow),
        pytest.param("waterfill", "ials", marks=pytest.mark.slow),
        pytest.param("gain", "lightgcn", marks=pytest.mark.slow),
        pytest.param("scall-gain", "lightgcn", marks=pytest.mark.slow),
    ],
)
def test_sizes_from_gains_spend_the_budget_and_do_not_see_test(method, recommender):
    rows = streams.synthetic(jax.random.key(0), users=70, items=50, interactions=1500)
    stream = streams.cut(rows, segments=3)
    config = _config(method, recommender)
    if recommender == "lightgcn":
        # The fit behind the gains then chooses its own parameters.
        config = dataclasses.replace(config, ials=IalsConfig(choice_sweeps=1, unobserved=A0, regularisation=LAMBDA))
    run = make_run(config)
    step = jax.jit(run.step)
    seen, garbage = run.init(jax.random.key(0), stream), run.init(jax.random.key(0), stream)
    for t in range(3):
        segment = stream.segment(t)
        test = segment.test._replace(items=segment.test.items[::-1].copy() * 0)
        seen, record = step(seen, segment)
        garbage, other = step(garbage, segment._replace(test=test))
        assert int(record.allocated) == int(record.budget)
        np.testing.assert_array_equal(seen.plan, garbage.plan)
        np.testing.assert_array_equal(record.action, other.action)
        np.testing.assert_array_equal(record.search.fitness, other.search.fitness)
        assert int(record.bad_step) == -1
    sizes = np.asarray(seen.plan)
    assert len(np.unique(sizes[sizes > 0])) > 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gain", "scall-gain"])
def test_a_stopped_run_goes_on_to_the_same_bits(method, tmp_path):
    config = _config(method, "lightgcn")
    whole = run_segments(config, _stream(), jax.random.key(0), folder=tmp_path / "whole")
    assert comparable(whole) == continued(config, _stream(), jax.random.key(0), tmp_path)


@pytest.mark.parametrize("faded", [2.0**-40, 2.0**-80, 2.0**-120, 2.0**-140])
def test_an_entity_whose_interactions_have_faded_does_not_blur_the_price_of_the_others(faded):
    """A noise makes its worth as negative as its weight is small: sizes are those of a milder fading."""
    rng, count, width = np.random.default_rng(0), 400, 16
    weight = rng.exponential(10, count) + 0.5
    gains = -np.sort(-rng.exponential(size=(count, width)), axis=1) * (weight / 60)[:, None]
    exists, order = jnp.ones(count, bool), jnp.asarray(rng.permutation(count).astype(np.int32))

    def sizes(factor: float) -> np.ndarray:
        of_each = np.where(np.arange(count) < 5, factor, 1.0)
        found = Gains(*(jnp.asarray(x, jnp.float32) for x in (gains * of_each[:, None], weight * of_each, 0.5)))
        return np.asarray(
            _jitted(found, GainRule(0.1, 1.0, 0.0), jnp.int32(1600), None, (1, width), exists, order, 250)
        )

    np.testing.assert_array_equal(sizes(faded), sizes(2.0**-20))
    assert len(np.unique(sizes(faded))) > 8
