"""Bits of its own for each vector: codes against NumPy, the price of a bit against brute force, and runs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, Config, SizesConfig, run_segments, streams, tables
from scall_jax.recommenders.ials import IalsConfig
from scall_jax.run import make_run
from scall_jax.sizes.bit_gains import ROUNDING, Coordinates, first_that_fit, sizes_and_bits, worth_in_bits
from scall_jax.sizes.gains import GainsConfig
from scall_jax.tables.compressed import few_bits
from scall_jax.tables.compressed.own_bits import SCALE_BITS, BitPlan, bits_of, own_bits
from tests.helpers import comparable, continued

USERS, ITEMS, MAXIMUM = 14, 11, 9


def _plan(seed: int, kinds=(1, 2, 3, 4, 8)) -> BitPlan:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, MAXIMUM + 1, USERS + ITEMS + 2).astype(np.int32)
    sizes[[USERS - 1, USERS + ITEMS - 1]] = 0  # The last entity of each side is not known yet.
    bits = np.where(sizes > 0, rng.choice(kinds, len(sizes)), 0).astype(np.int32)
    return BitPlan(jnp.asarray(sizes), jnp.asarray(bits))


@pytest.mark.parametrize("seed", [0, 1])
def test_codes_are_those_that_numpy_reads(seed):
    plan, known = _plan(seed), (USERS - 1, ITEMS - 1)
    room = -(-int(bits_of(plan)) // 8) + 3
    storage = tables.STORAGES["packed_bits"].build(room, USERS, ITEMS, MAXIMUM)
    layout, table = storage.layout(plan), storage.table
    assert table is not None
    pool = jnp.where(
        jnp.arange(table.zeros().size) < plan.sizes.sum(),
        jax.random.normal(jax.random.key(seed), table.zeros().shape),
        0,
    )
    stored = jax.jit(storage.store)(pool, layout)
    exported = storage.export(stored, plan, known)
    charged = tables.charged(exported)
    assert charged["codes"] == int(storage.allocated(plan)) + 4
    again, restored = storage.restore(exported, known)
    jax.tree.map(np.testing.assert_array_equal, (again, restored), (stored, plan))

    sizes, bits = (np.asarray(x) for x in plan)
    flat, at = np.unpackbits(exported["codes"], bitorder="little"), 0
    order = np.argsort(-sizes, kind="stable")
    places = [(vector, column) for column in range(MAXIMUM) for vector in order if sizes[vector] > column]
    codes = np.zeros((len(sizes), MAXIMUM), int)
    for plane in range(8):
        for vector, column in places:
            if bits[vector] > plane:
                codes[vector, column] |= int(flat[at]) << plane
                at += 1
    assert at == (sizes * bits).sum()
    limits = np.zeros(len(sizes))
    count = (sizes > 0).sum()
    limits[order[:count]] = exported["codes_top"][0] * np.exp2((exported["codes_scales"].astype(float) - 255) / 16)
    loaded = jax.jit(storage.load)(stored, layout)
    for vector, column in places:
        half = 2.0 ** (bits[vector] - 1)
        wanted = (codes[vector, column] - half + 0.5) * limits[vector] / half
        place = int(layout.starts[column]) + int(np.flatnonzero(order == vector)[0])
        np.testing.assert_allclose(loaded[place], wanted, rtol=1e-5)


def test_with_the_same_bits_everywhere_they_are_the_codes_of_few_bits():
    plan = _plan(3, kinds=(3,))
    storage = tables.STORAGES["packed_bits"].build(200, USERS, ITEMS, MAXIMUM)
    other = tables.STORAGES["packed_int3"].build(int(plan.sizes.sum()), USERS, ITEMS, MAXIMUM)
    count, table = int(plan.sizes.sum()), storage.table
    assert table is not None
    pool = jnp.zeros(table.zeros().size).at[:count].set(jax.random.normal(jax.random.key(0), (count,)))
    ours = storage.load(storage.store(pool, storage.layout(plan)), storage.layout(plan))
    layout = other.layout(plan.sizes)
    np.testing.assert_array_equal(ours[:count], other.load(other.store(pool[:count], layout), layout))


def test_errors_of_rounding_are_those_of_the_theory():
    vectors = jax.random.normal(jax.random.key(0), (4, 20_000))
    for bits, expected in ROUNDING.items():
        rounded = few_bits.round_rows(vectors, 20_000, bits)
        wrong = float(((rounded - vectors) ** 2).mean() / (vectors**2).mean())
        # The grid of limits is coarse: 2% off the best limit matters where there are many codes.
        assert wrong == pytest.approx(expected, rel=0.06 if bits < 8 else 0.3)


def test_what_rounding_takes_away_is_the_loss_of_random_errors():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 30))
    matrix, x = root @ root.T, rng.normal(size=4)
    gains = np.linalg.solve(np.linalg.cholesky(matrix), matrix @ x) ** 2
    found = Coordinates(*(jnp.asarray(v[None], jnp.float32) for v in (gains, x, np.diag(matrix))))
    worth = np.asarray(worth_in_bits(found, (2,)))[0, 0]
    for size in (1, 3, 4):
        scale = np.sqrt(ROUNDING[2] * (x[:size] ** 2).mean())
        errors = scale * rng.normal(size=(400_000, size))
        raised = np.einsum("ni,ij,nj->n", errors, matrix[:size, :size], errors).mean()
        assert worth[size - 1] == pytest.approx(gains[:size].sum() - raised, rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_no_allocation_of_as_many_bits_is_worth_more(seed):
    rng = np.random.default_rng(seed)
    entities, kinds, most, scale = 4, (1, 2, 4), 3, 8
    gains = -np.sort(-rng.gamma(0.5, size=(entities, most)), axis=1)
    found = Coordinates(*(jnp.asarray(v, jnp.float32) for v in (gains, np.sqrt(gains), np.ones_like(gains))))
    worth = np.asarray(worth_in_bits(found, kinds))
    options = [(0.0, 0)] + [((b, d), kinds[b] * (d + 1) + scale) for b in range(3) for d in range(most)]

    def value(entity, option):
        return 0.0 if option[1] == 0 else worth[entity, option[0][0], option[0][1]]

    every = [
        (sum(value(e, o) for e, o in enumerate(chosen)), sum(o[1] for o in chosen))
        for chosen in itertools.product(options, repeat=entities)
    ]
    exists, order = jnp.ones(entities, bool), jnp.arange(entities)
    for total in (0, 9, 20, 33, 47, 80):
        sizes, bits = (
            np.asarray(x) for x in sizes_and_bits(jnp.asarray(worth), kinds, jnp.int32(total), scale, exists, order)
        )
        spent = int((sizes * bits + np.where(sizes > 0, scale, 0)).sum())
        assert spent <= total and ((sizes == 0) == (bits == 0)).all()
        own = sum(worth[e, kinds.index(b), s - 1] for e, (s, b) in enumerate(zip(sizes, bits, strict=True)) if s)
        best = max(v for v, cost in every if cost <= total)
        # A price finds the best allocation but for the last choice, which may not fit.
        less = max((v for v, cost in every if cost <= spent - most * max(kinds) - scale), default=0.0)
        assert own >= best - worth.max() and own >= less


@pytest.mark.parametrize("seed", range(3))
def test_no_more_bits_are_given_out_than_there_are(seed):
    # Many entities with worths next to each other: in float32 what is wanted is not quite monotone in the price.
    rng = np.random.default_rng(seed)
    gains = np.repeat(-np.sort(-rng.gamma(0.5, size=(40, 12)), axis=1), 100, axis=0) * rng.uniform(
        0.999, 1.001, (4000, 1)
    )
    worth = worth_in_bits(
        Coordinates(*(jnp.asarray(v, jnp.float32) for v in (gains, np.sqrt(gains), np.ones_like(gains)))), (1, 2, 4)
    )
    order, exists = jnp.asarray(rng.permutation(4000)), jnp.ones(4000, bool)
    for total in (4001, 30_011, 60_007, 99_991, 150_001):
        sizes, bits = sizes_and_bits(worth, (1, 2, 4), jnp.int32(total), 8, exists, order)
        spent = int((sizes * bits + jnp.where(sizes > 0, 8, 0)).sum())
        assert total - 120 < spent <= total


def test_bits_are_counted_beyond_the_largest_signed_number():
    cost, order = jnp.full(3, 2**30, jnp.uint32), jnp.arange(3)
    assert first_that_fit(cost, 100, order).tolist() == [False] * 3
    assert first_that_fit(cost, jnp.uint32(2**31), order).tolist() == [True, True, False]
    worth = jnp.broadcast_to(jnp.arange(1.0, 513.0), (2, 1, 512))
    with pytest.raises(ValueError, match=r"2 entities with up to 2147483904 each add up to more than 2\^32 - 1"):
        sizes_and_bits(worth, (2**22,), jnp.int32(100), 256, jnp.ones(2, bool), jnp.arange(2))
    with pytest.raises(ValueError, match="300000000 bytes of packed_bits: their bits are counted to 2"):
        own_bits(300_000_000, 10, 10, 16)
    # A budget beyond what all entities can have makes no larger arrays.
    assert tables.STORAGES["packed_bits"].capacity([100, 300_000_000], [(3, 2), (6, 4)], 16) == 12 * 17
    assert tables.STORAGES["packed_bits"].capacity([100, 150], [(3, 2), (6, 4)], 16) == 150


def test_entities_that_do_not_exist_get_nothing():
    worth = worth_in_bits(Coordinates(*(jnp.ones((5, 3)) for _ in range(3))), (1, 4))
    exists = jnp.array([True, False, True, False, True])
    sizes, bits = sizes_and_bits(worth, (1, 4), jnp.int32(60), 8, exists, jnp.array([4, 2, 0, 1, 3]))
    assert sizes[jnp.array([1, 3])].tolist() == bits[jnp.array([1, 3])].tolist() == [0, 0]
    assert sizes.sum() > 3


def _config(charge: str, recommender: str = "ials") -> Config:
    return Config(
        method="gain-bits",
        recommender=recommender,
        charge=charge,
        budget=Budget.mean_size(0.8),
        sizes=SizesConfig(maximum=12),
        gains=GainsConfig(sweeps=2),
        ials=IalsConfig(sweeps=2, half_life=0.5, unobserved=0.3, regularisation=0.003, users_half_life=1.0),
    )


@pytest.fixture(scope="module")
def stream():
    rows = streams.synthetic(jax.random.key(0), users=70, items=50, interactions=1500)
    return streams.cut(rows, segments=3)


@pytest.mark.parametrize("charge", ["table", "stored"])
def test_runs_keep_to_their_bytes_and_go_on_to_the_same_bits(charge, stream, tmp_path):
    config, key = _config(charge), jax.random.key(0)
    lines = run_segments(config, stream, key, folder=tmp_path / "run")
    for line in lines:
        spent = line["bytes_table" if charge == "table" else "bytes_at_rest"]
        assert line["budget_bytes"] - 16 < spent <= line["budget_bytes"]
    if charge == "table":
        assert continued(config, stream, key, tmp_path) == comparable(lines)


def test_entities_differ_in_bits_and_in_size(stream):
    run = make_run(_config("table"))
    state = run.init(jax.random.key(0), stream)
    for t in range(2):
        state, _ = jax.jit(run.step)(state, jax.tree.map(jnp.asarray, stream.segment(t)))
    sizes, bits = (np.asarray(x) for x in state.plan)
    assert len(set(sizes[:-2].tolist())) > 3 and len(set(bits[:-2].tolist())) > 2
    assert (sizes * bits + SCALE_BITS * (sizes > 0)).sum() <= 8 * int(state.totals[1])
