"""Implicit alternating least squares against float64 numpy, brute force and another library."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, Config, SizesConfig, make_run, run_segments, streams
from scall_jax.methods.registry import METHODS
from scall_jax.recommenders.ials import IalsConfig
from scall_jax.recommenders.ials.batches import Entities, make_others, make_side
from scall_jax.recommenders.ials.blocks import by_blocks
from scall_jax.recommenders.ials.choice import grid, hyper_of
from scall_jax.recommenders.ials.fit import Sweeps, solve
from scall_jax.recommenders.ials.fold_in import fold_in, item_model
from scall_jax.recommenders.ials.gradients import Steps, conjugate_gradients
from scall_jax.recommenders.ials.half_sweep import Approximation, half_sweep
from scall_jax.recommenders.ials.problem import PLAIN, Hyper, Weighting, make_order, make_problem
from scall_jax.recommenders.ials.rows import row_layout, windows, write_windows
from scall_jax.recommenders.ials.systems import times
from scall_jax.run import compilation
from scall_jax.tables.column_blocks import write
from scall_jax.tables.compressed.few_bits import FEW_BITS
from scall_jax.tables.layout import make_layout
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import sized
from tests.helpers import comparable, continued
from tests.ials_reference import A0, LAMBDA, Reference, small_ials_segment, small_ials_stream

SWEEPS = 3
_FIXED = IalsConfig(sweeps=3, half_life=0.5, unobserved=A0, regularisation=LAMBDA)


def _sizes(kind: str) -> tuple[np.ndarray, int]:
    rng, nodes = np.random.default_rng(1), small_ials_stream().capacity.nodes
    shared = (0, 0)
    if kind == "one size":
        own, maximum = np.full(nodes, 14), 14
    elif kind == "two sizes":
        own, maximum = rng.integers(33, 35, nodes), 34
    elif kind == "many sizes":
        own, maximum = rng.integers(1, 17, nodes), 16
    else:
        own, maximum, shared = np.where(rng.random(nodes) < 0.3, 0, rng.integers(1, 13, nodes)), 12, (3, 2)
    return np.concatenate([own, shared]).astype(np.int32), maximum


@pytest.mark.parametrize(
    ("kind", "biased"),
    [
        ("one size", False),
        ("many sizes", True),
        ("shared vectors", True),
        pytest.param("two sizes", True, marks=pytest.mark.slow),
        pytest.param("one size", True, marks=pytest.mark.slow),
    ],
)
def test_a_fit_is_that_of_float64_one_entity_at_a_time(kind, biased):
    (sizes, maximum), stream = _sizes(kind), small_ials_stream()
    users, items = stream.capacity.users, stream.capacity.items
    bias = np.random.default_rng(2).random(items) * 0.3 if biased else np.zeros(items)
    storage = sized(packed(int(sizes.sum()), users, items, maximum), users, maximum)
    layout = storage.layout(jnp.asarray(sizes))
    params = storage.fresh(jax.random.key(1), layout, 0.1)
    hyper = Hyper(*map(jnp.float32, (2.0, A0, LAMBDA, 0.5)))
    # Pairs of the stream are met once or several times.
    counts = kind == "many sizes"
    fit = jax.jit(functools.partial(solve, storage, Sweeps(SWEEPS, 0.0), weighting=Weighting(counts=counts)))
    found = fit(storage.table.to_buffer(params), layout, small_ials_segment(), jnp.asarray(bias, jnp.float32), hyper)

    reference = Reference(storage.vectors(params, layout), sizes, bias, fading=2.0, counts=counts, users_fading=0.5)
    losses = []
    for half in range(2 * SWEEPS + 1):
        if half == 2 * SWEEPS:
            reference.weight = reference.served
        reference.half_sweep(half % 2)
        losses.append(reference.loss())
    vectors = np.asarray(storage.vectors(storage.table.from_buffer(found.params), layout))
    known = np.concatenate(reference.known)
    scale = np.abs(reference.vectors[known]).max()
    assert np.abs(vectors[known] - reference.vectors[known]).max() < 1e-4 * scale
    # The loss after the first half sweep is not known, and none is higher than the one before.
    assert np.isnan(found.losses[0])
    np.testing.assert_allclose(found.losses[1:-1], losses[1:-1], rtol=1e-4)
    assert (np.diff(np.asarray(found.losses[1:-1])) < 1e-5 * losses[-2]).all()
    assert int(found.sweeps) == SWEEPS
    assert float(found.residual) < 1e-4


@pytest.mark.parametrize("regularisation", [LAMBDA, 150 * LAMBDA])
def test_a_fit_stops_when_what_it_explains_settles(regularisation):
    """The loss itself is next to a constant where regularisation leaves vectors next to zero, from the start on."""
    stream = small_ials_stream()
    users, items = stream.capacity.users, stream.capacity.items
    storage = sized(packed(8 * (users + items), users, items, 8), users, 8)
    layout = storage.layout(jnp.array([8] * (users + items) + [0, 0]))
    start = storage.table.to_buffer(storage.fresh(jax.random.key(1), layout, 0.1))
    hyper = Hyper(*map(jnp.float32, (0, A0, regularisation, 0)))
    fit = jax.jit(functools.partial(solve, storage, Sweeps(40, 0.01)))
    found = fit(start, layout, small_ials_segment(), jnp.zeros(items), hyper)
    faded = fit(start, layout, small_ials_segment(), jnp.zeros(items), hyper._replace(fading=jnp.float32(250)))
    assert float(faded.residual) < 1e-4, "weights that float32 hardly tells from 0 are no failure"
    sweeps, losses = int(found.sweeps), np.asarray(found.losses)
    # Without a half-life every pair has weight 1, and so has its term where all vectors are 0.
    explained = int(small_ials_segment().graph.indptr[users]) - losses[1 : 2 * sweeps : 2]
    rises = np.diff(explained) / explained[1:]
    assert sweeps < 40
    assert rises[-1] < 0.01 <= rises[:-1].min()
    if regularisation > LAMBDA:
        assert losses[3] > 0.99 * losses[1], "the loss itself seems to settle at once"
        assert explained[-1] > 2 * explained[1]


def test_vectors_that_vanish_keep_the_direction_of_float64():
    """Under so strong a regularisation zero vectors are best, and what a fit explains is lost in a loss's rounding."""
    stream, sweeps = small_ials_stream(), 8
    users, items = stream.capacity.users, stream.capacity.items
    sizes = np.array([2] * (users + items) + [0, 0])
    storage = sized(packed(2 * (users + items), users, items, 2), users, 2)
    layout = storage.layout(jnp.asarray(sizes))
    params = storage.fresh(jax.random.key(1), layout, 0.1)
    hyper = Hyper(*map(jnp.float32, (0, A0, 1000 * LAMBDA, 0)))
    fit = jax.jit(functools.partial(solve, storage, Sweeps(sweeps, 1e-3)))
    found = fit(storage.table.to_buffer(params), layout, small_ials_segment(), jnp.zeros(items), hyper)

    reference = Reference(storage.vectors(params, layout), sizes, np.zeros(items), fading=0)
    reference.regularisation *= 1000
    for half in range(2 * sweeps + 1):
        reference.half_sweep(half % 2)
    vectors = np.asarray(storage.vectors(storage.table.from_buffer(found.params), layout))
    known = np.concatenate(reference.known)
    scale = np.abs(reference.vectors[known]).max()
    assert scale < 1e-4, "they vanish"
    assert int(found.sweeps) == sweeps
    assert np.abs(vectors[known] - reference.vectors[known]).max() < 1e-3 * scale


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
def test_what_a_half_sweep_explains_is_that_of_float64_however_little_it_is(scale):
    """Users with few interactions are solved for among these, where s of t - s is nearly t."""
    stream, segment, width = small_ials_stream(), small_ials_segment(), 32
    users, nodes = stream.capacity.users, stream.capacity.nodes
    sizes, bias = np.array([width] * nodes + [0, 0], np.int32), np.zeros(stream.capacity.items)
    hyper = Hyper(*map(jnp.float32, (2.0, A0, LAMBDA, 2.0)))
    rows = row_layout(make_layout(jnp.asarray(sizes), users, width), users)
    problem = make_problem(segment, jnp.asarray(bias, jnp.float32), hyper, PLAIN)
    order = make_order(problem, jnp.asarray(sizes[:-2]), users, (width,), math.inf)
    vectors = np.random.default_rng(3).normal(size=(nodes, width)) * 0.3 * scale
    pool = write_windows(
        jnp.zeros(int(sizes.sum()) + width), rows.first[:-2], rows.sizes[:-2], jnp.asarray(vectors, jnp.float32)
    )
    exact = Approximation(math.inf, Steps(jnp.int32(0), jnp.float32(0)), 0)
    half = jax.jit(lambda pool: half_sweep(make_side(problem, rows, order, users, jnp.int32(0)), pool, (width,), exact))
    reference = Reference(vectors, sizes, bias, fading=2.0)
    systems = [reference.system(node, width) for node in reference.known[0]]
    wanted = sum(right @ np.linalg.solve(matrix, right) for matrix, right in systems)
    assert float(half(pool).gain) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    "how",
    [
        {"inexact_steps": 2},
        pytest.param({"inexact_steps": 1, "block": 5}, marks=pytest.mark.slow),
    ],
)
def test_a_fit_by_approximations_ends_near_the_exact_one(how):
    (sizes, maximum), stream = _sizes("shared vectors"), small_ials_stream()
    users, items = stream.capacity.users, stream.capacity.items
    bias = np.random.default_rng(2).random(items) * 0.3
    storage = sized(packed(int(sizes.sum()), users, items, maximum), users, maximum)
    layout = storage.layout(jnp.asarray(sizes))
    params = storage.fresh(jax.random.key(1), layout, 0.1)
    hyper = Hyper(*map(jnp.float32, (2.0, A0, LAMBDA, 2.0)))
    fit = jax.jit(functools.partial(solve, storage, Sweeps(6, 0.0, inexact_from=0, **how)))
    found = fit(storage.table.to_buffer(params), layout, small_ials_segment(), jnp.asarray(bias, jnp.float32), hyper)

    reference = Reference(storage.vectors(params, layout), sizes, bias, fading=2.0)
    for half in range(13):
        reference.half_sweep(half % 2)
    losses = np.asarray(found.losses[1:])
    assert (np.diff(losses) < 1e-5 * losses[-1]).all()
    np.testing.assert_allclose(losses[-1], reference.loss(), rtol=0.01)
    # The users are those of float64 given the items, and the loss is that of the vectors.
    vectors = np.asarray(storage.vectors(storage.table.from_buffer(found.params), layout))
    given = Reference(vectors, sizes, bias, fading=2.0)
    np.testing.assert_allclose(losses[-1], given.loss(), rtol=1e-4)
    given.half_sweep(0)
    assert np.abs(vectors - given.vectors).max() < 1e-3 * np.abs(vectors).max()
    assert 0 < float(found.residual) < 2e-4


def _users_by_approximation(sizes: np.ndarray, maximum: int, block: int):
    """A compiled half sweep for users, (vectors, passes) -> vectors and what it says of them; a reference for it."""
    stream, segment = small_ials_stream(), small_ials_segment()
    users, items = stream.capacity.users, stream.capacity.items
    bias = np.random.default_rng(2).random(items) * 0.3
    hyper = Hyper(*map(jnp.float32, (2.0, A0, LAMBDA, 2.0)))
    rows = row_layout(make_layout(jnp.asarray(sizes), users, maximum), users)
    problem, widths = make_problem(segment, jnp.asarray(bias, jnp.float32), hyper, PLAIN), (maximum,)
    order = make_order(problem, jnp.asarray(sizes[:-2]), users, widths, 0)
    room = jnp.zeros(int(sizes.sum()) + maximum)

    @jax.jit
    def half(vectors, passes):
        pool = write_windows(room, rows.first[:-2], rows.sizes[:-2], vectors)
        approximation = Approximation(0, Steps(passes, jnp.float32(0)), block)
        solved = half_sweep(make_side(problem, rows, order, users, jnp.int32(0)), pool, widths, approximation)
        return windows(solved.pool, rows.first[:-2], rows.sizes[:-2], maximum), solved

    start = np.random.default_rng(3).normal(size=(users + items, maximum)) * 0.3
    start *= np.arange(maximum) < sizes[:-2, None]
    return half, Reference(start, sizes, bias, fading=2.0)


def _users_in_blocks(sizes: np.ndarray, maximum: int, block: int):
    """A function of a bound on interactions, or None, and of passes: users' vectors; a reference for it."""
    stream, segment = small_ials_stream(), small_ials_segment()
    users, items, count = stream.capacity.users, stream.capacity.items, int(small_ials_segment().users)
    bias = np.random.default_rng(2).random(items) * 0.3
    hyper = Hyper(*map(jnp.float32, (2.0, A0, LAMBDA, 2.0)))
    rows = row_layout(make_layout(jnp.asarray(sizes), users, maximum), users)
    problem = make_problem(segment, jnp.asarray(bias, jnp.float32), hyper, PLAIN)
    order = make_order(problem, jnp.asarray(sizes[:-2]), users, (maximum,), 0)
    start = np.random.default_rng(3).normal(size=(users + items, maximum)) * 0.3
    start *= np.arange(maximum) < sizes[:-2, None]
    vectors = jnp.asarray(start, jnp.float32)
    pool = write_windows(jnp.zeros(int(sizes.sum()) + maximum), rows.first[:-2], rows.sizes[:-2], vectors)
    side = make_side(problem, rows, order, users, jnp.int32(0))
    degrees = jnp.diff(problem.indptr)
    fields = (rows.first, rows.sizes, problem.indptr, degrees, problem.regularisation, problem.bias)
    batch = Entities(*(field[:count] for field in fields))
    others = make_others(side, pool, maximum)

    @functools.partial(jax.jit, static_argnums=0)
    def solve_users(degree, passes):
        return by_blocks(side, others, Steps(passes, jnp.float32(0)), block, degree, vectors[:count], batch).x

    return solve_users, Reference(start, sizes, bias, fading=2.0)


def test_a_pass_over_blocks_of_columns_is_that_of_float64():
    """Users of 1 to 12 coordinates with 0 to 50 interactions, in blocks of 5, of which the last two overlap."""
    sizes = np.concatenate([np.random.default_rng(1).integers(1, 13, small_ials_stream().capacity.nodes), [0, 0]])
    solve_users, reference = _users_in_blocks(sizes.astype(np.int32), 12, 5)
    known, losses, wanted = reference.known[0], [reference.loss()], reference.vectors.copy()
    # Interactions that are read once, and interactions that are read for each block.
    found = [np.asarray(solve_users(degree, 1)) for degree in (64, None)]
    later = np.asarray(solve_users(64, 40), np.float64)
    systems = {node: reference.system(node, sizes[node]) for node in known}
    for begin in (0, 5, 7):
        for node, (matrix, right) in systems.items():
            own = slice(begin, min(begin + 5, sizes[node]))
            x = wanted[node, : sizes[node]]
            # A vector that is worse than zero starts from zero.
            x = x.copy() if begin or 2 * right @ x > x @ matrix @ x else np.zeros_like(x)
            x[own] += np.linalg.solve(matrix[own, own], (right - matrix @ x)[own]) if begin < sizes[node] else 0
            wanted[node, : sizes[node]] = x
        reference.vectors = wanted
        losses.append(reference.loss())
    assert (np.diff(losses) < 0).all(), "each block lowers the loss"
    scale = np.abs(wanted[known]).max()
    for vectors in found:
        assert np.abs(vectors - wanted[known]).max() < 1e-4 * scale
    reference.vectors[known] = later
    after = reference.loss()
    reference.half_sweep(0)
    least = reference.loss()
    assert after - least < 1e-3 * least < losses[-1] - least, "one pass is not the solution, and forty are near it"


@pytest.mark.parametrize(
    ("maximum", "block"),
    [pytest.param(12, 12, marks=pytest.mark.slow), pytest.param(36, 0, id="gradients of wide vectors")],
)
def test_approximations_become_the_exact_solve(maximum, block):
    """One pass over one block of all columns; or conjugate gradients that read users' interactions in each step."""
    sizes = np.concatenate(
        [np.random.default_rng(1).integers(1, maximum + 1, small_ials_stream().capacity.nodes), [0, 0]]
    )
    half, reference = _users_by_approximation(sizes.astype(np.int32), maximum, block)
    found, told = half(jnp.asarray(reference.vectors, jnp.float32), jnp.int32(1 if block else 80))
    reference.half_sweep(0)
    known = reference.known[0]
    scale = np.abs(reference.vectors[known]).max()
    assert np.abs(np.asarray(found)[known] - reference.vectors[known]).max() < 1e-3 * scale
    assert float(told.residual) < 1e-3


def test_conjugate_gradients_do_not_start_from_a_vector_that_is_far_too_long():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(3, 8, 8)).astype(np.float32)
    matrix, right = half @ half.transpose(0, 2, 1) + np.eye(8, dtype=np.float32), rng.normal(size=(3, 8))
    right[0] *= 1e-12
    right[1] *= 1e-25
    start = rng.normal(size=(3, 8)).astype(np.float32)
    apply = lambda x, _: times(jnp.asarray(matrix), x)  # noqa: E731
    steps = Steps(jnp.int32(64), jnp.float32(1e-5))
    start = jnp.asarray(start)
    x, residual = conjugate_gradients(apply, lambda x: x, jnp.asarray(right, jnp.float32), start, start, steps)
    wanted = np.linalg.solve(matrix.astype(float), right[..., None])[..., 0]
    np.testing.assert_allclose(
        x / np.abs(wanted).max(1, keepdims=True), wanted / np.abs(wanted).max(1, keepdims=True), atol=1e-3
    )
    assert (np.abs(residual).max(1) <= 1e-5 * np.abs(right).max(1)).all()


def _run(**options) -> tuple[list[dict], Config]:
    base = {"recommender": "ials", "method": "uniform", "ials": _FIXED}
    config = Config(**(base | {"budget": Budget.mean_size(2), "sizes": SizesConfig(maximum=16)} | options))
    return run_segments(config, small_ials_stream(), jax.random.key(0)), config


def _last_state(config: Config):
    run, stream = make_run(config), small_ials_stream()
    state = run.init(jax.random.key(0), stream)
    for segment in stream:
        before, segment = state, jax.tree.map(jnp.asarray, segment)
        state, record = jax.jit(run.step)(before, segment)
    return run, state, segment, record


def test_a_stranger_with_the_rows_of_a_user_gets_the_user_s_vector():
    config = Config(
        recommender="ials", method="uniform", sizes=SizesConfig(maximum=16), ials=_FIXED, budget=Budget.mean_size(6)
    )
    run, state, segment, _ = _last_state(config)
    stream = small_ials_stream()
    arrays = run.method.bookkeeping(state, stream).exporter.export(
        state.params, state.plan, tuple(state.known.tolist())
    )
    users, items = state.known.tolist()
    vectors = arrays["parameters"].reshape(6, users + items).T  # all have one size
    model = item_model(jnp.asarray(vectors[users:]), jnp.zeros(items), items, hyper_of(grid(_FIXED), None))
    graph, period = segment.graph, int(segment.period)
    most = int(np.diff(graph.indptr[: users + 1]).max())
    for user in (0, 3, users - 1):
        first, end = graph.indptr[user : user + 2].tolist()
        met = jnp.zeros(most, jnp.int32).at[: end - first].set(graph.indices[first:end] - stream.capacity.users)
        ages = jnp.zeros(most).at[: end - first].set(segment.ages[first:end] / period)
        np.testing.assert_allclose(fold_in(model, met, ages, end - first), vectors[user], rtol=2e-3, atol=2e-5)
    once = fold_in(model, met, ages, end - first, repeats=jnp.ones(most, jnp.int32))
    np.testing.assert_array_equal(once, fold_in(model, met, ages, end - first))
    # A pair met three times weighs twice as much, which is what half a life less of age does: half-life is .5 segments.
    thrice = fold_in(model, met, ages, end - first, repeats=jnp.full(most, 3))
    np.testing.assert_allclose(thrice, fold_in(model, met, ages - 0.5, end - first), rtol=1e-4, atol=1e-6)
    shorter = fold_in(model, met, ages, end - first, size=4)
    assert (shorter[4:] == 0).all() and (shorter[:4] != 0).all()


def test_recall_follows_from_the_exported_codes_alone():
    config = Config(
        recommender="ials",
        method="uniform",
        budget=Budget.mean_size(2),
        sizes=SizesConfig(maximum=16),
        ials=_FIXED,
        table="packed_int4",
    )
    run, state, segment, record = _last_state(config)
    known = tuple(state.known.tolist())
    users, items = known
    arrays = run.method.bookkeeping(state, small_ials_stream()).exporter.export(state.params, state.plan, known)
    # Sizes are numbers in a list of those that occur, a bit of all numbers in each row.
    rows = np.unpackbits(arrays["metadata_codes"], axis=1, count=users + items, bitorder="little").astype(int)
    sizes = arrays["metadata_values"][(rows << np.arange(len(rows))[:, None]).sum(0)].astype(int)
    assert sum(array.nbytes for name, array in arrays.items() if name.startswith("codes")) <= 8 * (users + items)
    planes = np.unpackbits(arrays["codes"], axis=1, bitorder="little").reshape(len(arrays["codes"]), 4, 8)
    codes = (planes.astype(int) << np.arange(4)[None, :, None]).sum(1).ravel()
    limits = arrays["codes_top"][0] * np.exp2((arrays["codes_scales"].astype(float) - 255) / 16)
    order, place, vectors = np.argsort(-sizes, kind="stable"), 0, np.zeros((users + items, sizes.max()))
    for column in range(sizes.max()):
        count = int((sizes > column).sum())
        vectors[order[:count], column] = (codes[place : place + count] - 7.5) / 8 * limits[:count]
        place += count
    recalls = []
    capacity, graph, test = small_ials_stream().capacity.users, segment.graph, segment.test
    for row in range(int(test.count)):
        user = int(test.users[row])
        scores = vectors[users:] @ vectors[user]
        scores[np.asarray(graph.indices[graph.indptr[user] : graph.indptr[user + 1]]) - capacity] = -np.inf
        relevant = np.asarray(test.items[test.indptr[row] : test.indptr[row + 1]])
        recalls.append(np.isin(np.argsort(-scores, kind="stable")[:20], relevant).sum() / len(relevant))
    np.testing.assert_allclose(record.test.recall[0, 2], np.mean(recalls), rtol=1e-5)


@pytest.mark.slow
def test_choices_are_those_of_the_valid_parts_so_far():
    config = IalsConfig(
        sweeps=2, choice_sweeps=2, choice_width=4, unobserved=A0, regularisation=LAMBDA, users_half_life=1.0
    )
    chosen, _ = _run(ials=config)
    fitness = []
    for half_life in (0.25, 1.0, float("inf")):
        by_hand = dataclasses.replace(config, half_life=half_life, users_half_life=1.0, sweeps=2)
        lines, _ = _run(ials=by_hand, budget=Budget.mean_size(4))
        users = np.array([line["valid_users"] for line in lines])
        recall = np.array([line["valid_recall@20"] + line["valid_ndcg@20"] for line in lines]) / 2
        fitness.append(np.cumsum(users * recall))
    fitness = np.array(fitness)
    picked = [{0.25: 0, 1.0: 1, None: 2}[line["ials_half_life"]] for line in chosen]
    # The fits start from other random vectors than the runs, so that only clear leads are compared.
    ordered = np.sort(fitness, axis=0)
    clear = ordered[-1] - ordered[-2] > 0.05 * ordered[-1]
    assert clear.any()
    assert (fitness.argmax(0)[clear] == np.array(picked)[clear]).all()


@pytest.mark.slow
def test_choices_are_made_by_fits_as_wide_as_the_run():
    """A fit of few coordinates prefers another regularisation than one of many."""

    def chosen(mean, width=None):
        ials = IalsConfig(sweeps=2, choice_sweeps=2, choice_width=width)
        lines, _ = _run(ials=ials, budget=Budget.mean_size(mean), sizes=SizesConfig(maximum=64))
        names = ("ials_half_life", "ials_unobserved", "ials_regularisation", "test_recall@20")
        return [[line[name] for name in names] for line in lines]

    assert chosen(21) == chosen(21, width=16) != chosen(21, width=8)
    assert chosen(2) == chosen(2, width=8)


@pytest.mark.slow
def test_choices_and_sizes_do_not_see_the_test_part():
    config = Config(
        recommender="ials",
        method="scall-random",
        sizes=SizesConfig(maximum=8),
        ials=IalsConfig(sweeps=2, probe_sweeps=1, choice_sweeps=1, choice_width=4, regularisation=LAMBDA),
        search=dataclasses.replace(Config().search, probes=2),
        bias="decayed",
    )
    run, stream = make_run(config), small_ials_stream()
    step = jax.jit(run.step)
    state = run.init(jax.random.key(0), stream)
    for segment in stream:
        segment = jax.tree.map(jnp.asarray, segment)
        garbage = segment._replace(test=jax.tree.map(jnp.zeros_like, segment.test), held_out=segment.held_out * 0)
        (after, record), (other, _) = step(state, segment), step(state, garbage)
        for a, b in zip(jax.tree.leaves((after.recommender, after.plan, after.params)),
                        jax.tree.leaves((other.recommender, other.plan, other.params)), strict=True):  # fmt: skip
            np.testing.assert_array_equal(a, b)
        state = after
    assert int(record.search.count) == 2


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path):
    config = Config(
        recommender="ials",
        method="frequency",
        sizes=SizesConfig(maximum=8),
        table="packed_int2",
        ials=IalsConfig(sweeps=2, choice_sweeps=1, choice_width=4, regularisation=LAMBDA, unobserved=A0),
    )
    stream = small_ials_stream()
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(
        run_segments(config, stream, jax.random.key(0))
    )


@pytest.mark.parametrize(
    ("recommender", "method"),
    [
        ("ials", "spectral"),
        *(
            pytest.param(*names, marks=pytest.mark.slow)
            for names in (("ials", "ducb"), ("ials", "bet"), ("ials", "ciess"), ("mf", "spectral"), ("mf", "ducb"))
        ),
    ],
)
def test_methods_that_choose_sizes_run_on_any_recommender(recommender, method):
    lines, _ = _run(
        recommender=recommender, method=method, search=dataclasses.replace(Config().search, probes=2, probe_steps=4)
    )
    assert all(line["allocated_parameters"] <= line["budget_parameters"] for line in lines)
    assert all(line["bytes_table"] <= line["budget_bytes"] for line in lines)
    assert lines[-1]["bytes_serving"] == lines[-1]["bytes_at_rest"], "the table suffices to serve from"


def test_a_method_whose_vectors_share_parameters_is_refused():
    for method in ("mixed_precision", "pep", "shared_memory", "quotient_remainder"):
        assert method in METHODS
        with pytest.raises(ValueError, match="choose lightgcn or mf"):
            make_run(Config(method=method, recommender="ials"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sweeps": 0},
        {"half_life": 0.0},
        {"unobserved": -1.0},
        {"regularisation": 0.0},
        {"tolerance": -1.0},
        {"solver": "qr"},
    ],
)
def test_values_out_of_range_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"ials {name}="):
        IalsConfig(**wrong)
    with pytest.raises(ValueError, match="unknown recommender 'als': choose one of lightgcn, mf, ials"):
        Config(recommender="als")


@pytest.mark.slow
def test_scores_agree_with_another_library():
    als = pytest.importorskip("implicit.cpu.als")
    from scipy.sparse import csr_matrix

    stream, segment = small_ials_stream(), small_ials_segment()
    users, items = stream.capacity.users, stream.capacity.items
    graph = segment.graph
    row = np.repeat(np.arange(users), np.diff(graph.indptr[: users + 1]))
    met = csr_matrix(
        (np.ones(len(row), np.float32), (row, np.asarray(graph.indices)[: len(row)] - users)), (users, items)
    )[: int(segment.users), : int(segment.items)]
    # Its loss is sum_met (1 + alpha) (s - 1)^2 + sum_others s^2 + weight (|u|^2 + |v|^2). With s = c s' and
    # c = (1 + alpha) / alpha it is, but for a constant, alpha c^2 times ours of s'. Then a0 = 1 / alpha and
    # lambda = weight / (1 + alpha).
    alpha, weight = 4.0, 0.5
    library = als.AlternatingLeastSquares(
        factors=8, regularization=weight, alpha=1 + alpha, iterations=200, use_cg=False, random_state=0
    )
    library.fit(met, show_progress=False)
    theirs = library.user_factors @ library.item_factors.T
    storage = sized(packed(8 * (users + items), users, items, 8), users, 8)
    layout = storage.layout(jnp.array([8] * (users + items) + [0, 0]))
    # Their items, where they have converged to, are where a sweep of ours must leave them.
    own = np.zeros((users + items + 2, 8), np.float32)
    own[users : users + int(segment.items)] = library.item_factors * np.sqrt(alpha / (1 + alpha))
    start = write(storage.table, storage.table.to_buffer(storage.table.zeros()), layout, 0, jnp.asarray(own))
    hyper = Hyper(*map(jnp.float32, (0, 1 / alpha, weight / (1 + alpha), 0)))
    fit = jax.jit(functools.partial(solve, storage, Sweeps(1, 0.0), weighting=Weighting(exponent=0.0)))
    found = fit(start, layout, segment, jnp.zeros(items), hyper)
    vectors = np.asarray(storage.vectors(storage.table.from_buffer(found.params), layout))
    ours = vectors[: int(segment.users)] @ vectors[users : users + int(segment.items)].T * (1 + alpha) / alpha
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_int_storages_say_that_they_round():
    for factory in FEW_BITS.values():
        assert factory.build(100, 5, 5, 8).rounds


@pytest.mark.parametrize("alone", [True, False])
def test_the_regularisation_is_rounded_alike_in_all_programs(alone):
    # Of these 69 items and 0.1 a pair, half of all sums lie between two numbers of float32.
    rows = streams.synthetic(jax.random.key(7), users=300, items=150, interactions=4000, lifetime=0.3)
    first = rows.take(np.argsort(rows.time, kind="stable")[:1400])
    segment = jax.tree.map(jnp.asarray, streams.cut(first, rows=700).segment(0))
    hyper = Hyper(*map(jnp.float32, (0.0001, 0.1, 0.1, 0.0001)))
    items = segment.popularity.shape[1]

    def made(segment, hyper):
        problem = make_problem(segment, jnp.zeros(items), hyper, PLAIN)
        return problem.regularisation if alone else problem

    found = compilation.jit(made)(segment, hyper)
    found = np.asarray(found if alone else found.regularisation)
    # Each operation by itself in float32, as NumPy does it.
    user = np.arange(len(found)) < len(found) - items
    others = np.where(user, segment.items, segment.users).astype(np.float32)
    degrees = np.diff(np.asarray(segment.graph.indptr)).astype(np.float32)
    wanted = np.float32(0.1) * (degrees + np.float32(0.1) * others)
    np.testing.assert_array_equal(found[found > 0], wanted[found > 0])
