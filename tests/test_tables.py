import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scall_jax import tables
from scall_jax.config import WarmStartConfig
from scall_jax.recommenders import LightGcn, bpr
from scall_jax.recommenders.train_step import StepSettings, TrainState, empty_opt_state, train_step
from scall_jax.sizes import allocate
from scall_jax.tables.column_blocks import block_counts, gather, over_column_blocks, over_sided_column_blocks, write
from scall_jax.tables.resize import axes_by_block, init, size_blocks
from scall_jax.tables.table import nbytes
from tests.helpers import random_graph, random_sizes

USERS, ITEMS = 14, 11
NODES = USERS + ITEMS


def _pair(rng, maximum, zeros):
    """A packed and a masked table with the same embeddings."""
    sizes = random_sizes(rng, NODES, np.max(maximum), zeros)
    if np.ndim(maximum):
        by_side = np.repeat(maximum, (USERS, ITEMS))
        sizes = jnp.minimum(sizes, np.append(by_side, maximum))
        maximum = max(maximum)
    packed = tables.packed(int(sizes.sum()), USERS, ITEMS, maximum)
    masked = tables.masked(0, USERS, ITEMS, maximum)
    layout = packed.layout(sizes)
    key = jax.random.key(int(rng.integers(1000)))
    return packed, masked, layout, init(packed, key, layout, 1.0), init(masked, key, layout, 1.0)


def _plain(masked_params, sizes):
    """Embeddings as read, in numpy: own prefix, or the side's shared one."""
    sizes = np.asarray(sizes)
    vectors = np.where(np.arange(masked_params.shape[1]) < sizes[:, None], np.asarray(masked_params), 0)
    reads = [n if sizes[n] else NODES + (n >= USERS) for n in range(NODES)]
    return vectors[reads]


CASES = [(m, z, s) for m in (1, 5, 16, 37) for z in (False, True) for s in (0, 1)]
CASES += [((7, 37), False, 2), ((37, 7), True, 3), ((40, 3), False, 4), ((20, 70), True, 5)]  # by side
QUICK = [(1, False, 0), (5, True, 1), (37, False, 0), (37, True, 1), *CASES[-4::3]]
"""One column block and several, with shared vectors and without, and sides of different widths; the others are slow."""


@pytest.mark.parametrize(
    ("maximum", "zeros", "seed"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_both_tables_read_the_same_embeddings(maximum, zeros, seed):
    packed, masked, layout, pool, full = _pair(np.random.default_rng(seed), maximum, zeros)
    plain = _plain(full, layout.sizes)
    rows = jnp.arange(NODES)
    np.testing.assert_array_equal(packed.lookup(pool, layout, rows), plain)
    np.testing.assert_array_equal(masked.lookup(full, layout, rows), plain)
    # What is added to rows is the transpose of reading them: the gradient of a sum of what they read.
    some = jnp.array([0, NODES - 1, 3, 3])
    values = jnp.asarray(np.random.default_rng(seed + 9).integers(1, 9, (4, packed.width)), jnp.float32)
    for table, params in ((packed, pool), (masked, full)):
        zeros_of = jnp.zeros_like(params)
        added = table.add(zeros_of, layout, some, values[:, : table.lookup(params, layout, some).shape[1]])
        _, transpose = jax.vjp(lambda x, table=table: table.lookup(x, layout, some), zeros_of)
        np.testing.assert_array_equal(added, transpose(values)[0])
    for table, params in ((packed, pool), (masked, full)):
        buffer = table.to_buffer(params)

        def block(first, count, read, table=table, buffer=buffer):
            return jax.lax.dynamic_update_slice(read, gather(table, buffer, layout, first, count), (0, first))

        read = over_column_blocks(table, layout, block, jnp.zeros((NODES, table.width)))
        np.testing.assert_array_equal(read, plain)
        narrow = gather(table, buffer, layout, 0, table.widths[-1])
        np.testing.assert_array_equal(narrow, plain[:, : table.widths[-1]])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["packed", "masked"])
def test_writing_columns_leaves_the_others_alone(name):
    rng = np.random.default_rng(4)
    sizes = random_sizes(rng, NODES, 37, True)
    table = tables.TABLES[name](int(sizes.sum()), USERS, ITEMS, 37)
    layout = table.layout(sizes)
    before = init(table, jax.random.key(0), layout, 1.0)
    values = rng.normal(size=(NODES + 2, 16)).astype(np.float32)
    after = table.from_buffer(write(table, table.to_buffer(before), layout, 5, jnp.asarray(values)))
    has = np.arange(table.width) < np.asarray(sizes)[:, None]
    by_vector = layout._replace(source=_own(layout))
    was, now = (np.asarray(table.lookup(x, by_vector, jnp.arange(NODES + 2))) for x in (before, after))
    expected = was.copy()
    expected[:, 5:21] = values
    np.testing.assert_array_equal(now, np.where(has, expected, 0))


def test_columns_are_changed_alike_where_places_behind_a_table_are_too_many_for_int32(monkeypatch):
    """Such a table does not fit here, so that the limit is lowered instead."""
    module = importlib.import_module("scall_jax.tables.packed")
    rng = np.random.default_rng(5)
    buffer, starts = jnp.asarray(rng.normal(size=20), jnp.float32), jnp.array([2, 7, 9, 9])
    columns = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)

    def rule(old, new):
        return 2 * old + new

    def changed():
        change = functools.partial(module._change_at_once, rule=rule)
        given = buffer, starts, columns
        return jax.make_jaxpr(change)(*given), np.asarray(change(*given))

    expected = np.array(buffer)
    expected[2:7], expected[7:9] = 2 * expected[2:7] + columns[0, :5], 2 * expected[7:9] + columns[1, :2]
    narrow, found = changed()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    monkeypatch.setattr(module, "_INT32_MAX", 20 + columns.size - 1)
    wide, found = changed()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert "u32[3,6]" in str(wide) and "u32[3,6]" not in str(narrow)


@pytest.mark.parametrize("used", [0, 1, 16, 17, 33, 48, 49, 65, 80, 97, 113, 128])
def test_column_blocks_cover_the_columns_in_use_once_and_little_more(used):
    table = tables.packed(used, 1, 0, 128)
    layout = table.layout(jnp.array([used, 0, 0], jnp.int32))

    def block(first, count, visits):
        return jax.lax.dynamic_update_slice(visits, jax.lax.dynamic_slice(visits, (first,), (count,)) + 1, (first,))

    visits = np.asarray(over_column_blocks(table, layout, block, jnp.zeros(128, jnp.int32)))
    covered = -(-used // 16) * 16
    covered += 16 * (covered % 64 == 48)
    np.testing.assert_array_equal(visits, np.arange(128) < covered)


@pytest.mark.parametrize("sizes", [(0, 90), (35, 35), (16, 128), (100, 40), (5, 113), (128, 33), (0, 0)])
def test_column_blocks_of_one_side_come_after_those_of_both(sizes):
    """Each column once and never past the table's end; columns that one side lacks are said to be the other's."""
    table = tables.packed(sum(sizes), 1, 1, 128)
    layout = table.layout(jnp.array([*sizes, 0, 0], jnp.int32))

    def block(first, count, side, visited_by):
        part = jax.lax.dynamic_slice(visited_by, (first,), (count,))
        return jax.lax.dynamic_update_slice(visited_by, jnp.where(part == -1, side, 9), (first,))

    visited_by = np.asarray(over_sided_column_blocks(table, layout, block, jnp.full(128, -1, jnp.int32)))
    used = int((visited_by >= 0).sum())
    assert max(sizes) <= used < max(sizes) + 32 and (visited_by[:used] >= 0).all() and (visited_by < 9).all()
    assert (visited_by[: min(sizes)] == 0).all()
    alone = np.flatnonzero(visited_by > 0)
    assert (visited_by[alone] == 1 + np.argmax(sizes)).all()
    assert len(alone) == 0 or used - len(alone) < min(sizes) + 32


def test_mapped_column_blocks_are_common_to_all_lanes():
    """Under vmap the loops go to the widest lane's end, and every lane reads what it reads alone."""
    rng = np.random.default_rng(8)
    table = tables.packed(NODES * 70, USERS, ITEMS, 70)
    layouts = [table.layout(random_sizes(rng, NODES, m, False)) for m in (9, 70)]
    pools = [init(table, jax.random.key(i), layout, 1.0) for i, layout in enumerate(layouts)]

    def read(pool, layout):
        def block(first, count, out):
            return jax.lax.dynamic_update_slice(
                out, gather(table, table.to_buffer(pool), layout, first, count), (0, first)
            )

        return over_column_blocks(table, layout, block, jnp.zeros((NODES, table.width)))

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(pools, layouts, strict=True))
    mapped = jax.vmap(read)(*stacked)
    for lane, (pool, layout) in enumerate(zip(pools, layouts, strict=True)):
        np.testing.assert_array_equal(mapped[lane], read(pool, layout))


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("maximum", "zeros", "seed"), CASES)
def test_both_tables_give_the_same_loss_and_gradient(maximum, zeros, seed):
    """The gradient is that of a dense float64 model, back through reading, propagation and loss."""
    rng = np.random.default_rng(seed)
    packed, masked, layout, pool, full = _pair(rng, maximum, zeros)
    graph, dense = random_graph(rng, USERS, ITEMS, 40)
    user, positive, negative = (jnp.asarray(rng.integers(0, n, 32), jnp.int32) for n in (USERS, ITEMS, ITEMS))
    triples = bpr.Triples(user, positive, negative, jnp.ones(32))
    rows = jnp.concatenate([user, positive + USERS, negative + USERS])
    bias = jnp.asarray(rng.normal(size=ITEMS), jnp.float32)

    reference_loss, gradient = _reference(full, layout, dense, triples, bias, rows)
    by_vector = layout._replace(source=_own(layout))
    schedule = optax.exponential_decay(0.1, 2, 0.5, staircase=True)
    adam = optax.adam(schedule)
    for table, params in ((packed, pool), (masked, full)):

        def spread(buffer, table=table):
            return np.asarray(table.lookup(table.from_buffer(buffer), by_vector, jnp.arange(NODES + 2)))

        settings = StepSettings(LightGcn(tables.sized(table, USERS, int(np.max(maximum))), 2), schedule, 0.1)

        @jax.jit
        def step(buffer, opt_state, table=table, settings=settings):
            data = layout, graph, triples, bias, jnp.zeros((len(rows), table.width))
            result = train_step(settings, TrainState(buffer, opt_state), *data)
            return result.loss, *result.state

        buffer = table.to_buffer(params)
        loss, moved, opt_state = step(buffer, empty_opt_state(buffer))
        assert float(loss) == pytest.approx(reference_loss, rel=1e-5)
        np.testing.assert_allclose(spread(opt_state.mean), 0.1 * gradient, atol=1e-6)
        np.testing.assert_allclose(spread(opt_state.square), 0.001 * gradient**2, atol=1e-6)
        # Two more steps: what optax makes of the gradients that follow from the optimiser's state.
        expected, state = spread(buffer), adam.init(jnp.asarray(gradient))
        for _ in range(3):
            before = opt_state if int(state[0].count) else empty_opt_state(buffer)
            loss, moved, opt_state = step(moved if int(state[0].count) else buffer, before)
            found = (spread(opt_state.mean) - 0.9 * spread(before.mean)) / 0.1
            updates, state = adam.update(jnp.asarray(found), state)
            clear = np.abs(found) > 1e-3  # of a small gradient Adam's step is the sign, which rounding decides
            expected = np.where(clear, expected + np.asarray(updates), spread(moved))
            np.testing.assert_allclose(spread(moved), expected, atol=2e-4)


def _own(layout):
    """Place of each vector, shared ones included; i32[M]."""
    index = jnp.arange(layout.order.shape[0], dtype=jnp.int32)
    return jnp.zeros_like(index).at[layout.order].set(index)


def _reference(full, layout, dense, triples, bias, rows):
    sizes = np.asarray(layout.sizes)
    mask = np.arange(full.shape[1]) < sizes[:, None]
    reads = np.array([n if sizes[n] else NODES + (n >= USERS) for n in range(NODES)])
    read = np.zeros((NODES, NODES + 2))
    read[np.arange(NODES), reads] = 1
    x = read @ (np.asarray(full, np.float64) * mask)
    smooth = (np.eye(NODES) + dense + dense @ dense) / 3
    final, own = (smooth @ x)[rows], x[rows]
    u, i, j = np.split(final, 3)
    margin = (u * (i - j)).sum(1) + np.asarray(bias, np.float64)[triples.positive] - np.asarray(bias)[triples.negative]
    loss = np.log1p(np.exp(-margin)).mean() + 0.05 * (own**2).sum() / 32
    slope = (-1 / (1 + np.exp(margin)) / 32)[:, None]
    back = np.zeros_like(x)
    np.add.at(back, np.asarray(rows), np.concatenate([slope * (i - j), slope * u, -slope * u]))
    back = smooth.T @ back
    np.add.at(back, np.asarray(rows), 0.1 * own / 32)
    return loss, (read.T @ back) * mask


def test_packed_table_and_its_optimiser_state_hold_the_budget_and_nothing_else():
    sizes = random_sizes(np.random.default_rng(0), NODES, 37, True)
    budget = int(sizes.sum())
    table = tables.packed(budget, USERS, ITEMS, 37)
    params = init(table, jax.random.key(0), table.layout(sizes), 1.0)
    assert nbytes(params) == 4 * budget
    assert np.count_nonzero(params) == budget
    opt_state = optax.adam(0.1).init(params)
    assert nbytes(opt_state) == 2 * 4 * budget + 4


@pytest.mark.parametrize(
    ("zeros", "rotation", "name"),
    [
        pytest.param(zeros, rotation, name, marks=() if zeros == (name == "packed") else pytest.mark.slow)
        for zeros, rotation, name in itertools.product((False, True), tables.ROTATIONS, ("packed", "masked"))
    ],
)
def test_resize_keeps_leading_coordinates(name, rotation, zeros):
    rng = np.random.default_rng(3)
    maximum, shrink = 37, 0.5
    before, after = (random_sizes(rng, NODES, maximum, zeros) for _ in range(2))
    known = jnp.asarray(rng.uniform(size=NODES) < 0.8)
    table = tables.TABLES[name](int(max(before.sum(), after.sum())), USERS, ITEMS, maximum)
    old, new = table.layout(before), table.layout(after)
    params = init(table, jax.random.key(1), old, 1.0)
    weight = known.astype(jnp.float32)
    axes = None if rotation == "none" else tables.principal_axes(table, params, old, weight, rotation)
    scales = tables.ResizeScales(shrink=shrink, grow_std=0.0)
    resized = tables.resize(table, jax.random.key(2), params, old, new, known, axes=axes, scales=scales)
    was = np.asarray(table.lookup(params, old, jnp.arange(NODES)))
    was = was if axes is None else was @ np.asarray(axes)
    now = np.asarray(table.lookup(resized, new, jnp.arange(NODES)))
    for n in range(NODES):
        if known[n] and after[n] > 0:
            np.testing.assert_allclose(now[n, : after[n]], shrink * was[n, : after[n]], atol=1e-5)
        elif after[n] > 0:
            assert np.abs(now[n, : after[n]]).min() > 0 and 0.0 < np.abs(now[n, : after[n]]).max() < 1
        assert after[n] == 0 or (now[n, int(after[n]) :] == 0).all()
    shared = [_shared(table, p, layout) for p, layout in ((params, old), (resized, new))]
    turned = shared[0] if axes is None else shared[0] @ np.asarray(axes)
    for side, size in enumerate(after[-2:].tolist()):
        np.testing.assert_allclose(shared[1][side, :size], shrink * turned[side, :size], atol=1e-5)
        assert size == 0 or np.abs(shared[1][side, :size]).max() > 0


def _shared(table, params, layout):
    """The two shared vectors, f32[2, width]."""
    by_place = np.asarray(table.read(table.to_buffer(params), layout, 0, table.width)).T
    order = table.order(layout).tolist()
    return by_place[[order.index(NODES), order.index(NODES + 1)]]


def test_principal_axes_keep_scores_and_order_the_energy():
    packed, _, layout, pool, full = _pair(np.random.default_rng(5), 20, False)
    weight = np.random.default_rng(6).uniform(size=NODES)
    axes = np.asarray(tables.principal_axes(packed, pool, layout, jnp.asarray(weight, jnp.float32)), np.float64)
    plain = _plain(full, layout.sizes).astype(np.float64)
    np.testing.assert_allclose(axes.T @ axes, np.eye(len(axes)), atol=1e-5)
    turned = plain @ axes
    np.testing.assert_allclose(turned @ turned.T, plain @ plain.T, atol=1e-4)
    energy = weight @ turned**2 / weight.sum()
    expected = np.linalg.eigvalsh((plain.T * weight) @ plain / weight.sum())[::-1]
    np.testing.assert_allclose(energy, expected, atol=1e-5)


def _blocks(sizes, width):
    """Ranges of coordinates between the sizes in use."""
    ends = sorted({0, width, *(int(size) for size in sizes)})
    return [slice(low, high) for low, high in itertools.pairwise(ends)]


@pytest.mark.parametrize("kind", ["random", "equal", "zero"])
def test_axes_by_block_are_those_of_each_block_alone(kind):
    rng, width = np.random.default_rng(0), 37
    layout = tables.packed(100, USERS, ITEMS, width).layout(
        jnp.asarray(np.concatenate([rng.choice([1, 2, 9, 20], NODES), [0, 30]]), jnp.int32)
    )
    block = np.asarray(size_blocks(layout))
    assert np.flatnonzero(np.diff(block, prepend=0)).tolist() == [1, 2, 9, 20, 30]
    padded = len(block)
    # The blocks' energies lie 12 orders of magnitude apart; or all eigenvalues are the same; or there are none.
    root = rng.normal(size=(200, padded)) * 10.0 ** np.where(block % 2, -3, 3)
    moment = {"random": root.T @ root, "equal": np.eye(padded), "zero": np.zeros((padded, padded))}[kind]
    axes = np.asarray(axes_by_block(jnp.asarray(moment, jnp.float32), jnp.asarray(block)), np.float64)
    np.testing.assert_allclose(axes.T @ axes, np.eye(padded), atol=3e-6)
    assert (axes[block[:, None] != block[None, :]] == 0).all()
    for part in _blocks(layout.sizes, padded):
        expected = np.linalg.eigvalsh(moment[part, part])[::-1]
        found = np.diag(axes[:, part].T @ moment @ axes[:, part])
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(expected.max(), 1e-30))


def _skewed(rng, nodes, mean, maximum):
    """Sizes in proportion to the roots of counts that fall as 1 / rank, in random order, and no shared vectors."""
    counts = np.maximum(1000 // np.arange(1, nodes + 1), 1)
    by_rank = allocate(np.sqrt(counts), mean * nodes, 1, maximum)
    return jnp.asarray(np.append(rng.permutation(np.asarray(by_rank)), [0, 0]), jnp.int32)


def _resized_to_the_same(rotation, sizes, name="packed", maximum=64):
    """Embeddings f64[N, width] before and after a resize that changes no size and shrinks nothing."""
    nodes = len(sizes) - 2
    users = nodes // 2
    storage = tables.SIZED[name].build(int(sizes.sum()), users, nodes - users, maximum)
    layout = storage.layout(sizes)
    stored = storage.store(storage.fresh(jax.random.key(1), layout, 1.0), layout)
    # Sizes are proportional to the root of the interactions.
    known, weight = jnp.ones(nodes, bool), sizes[:-2].astype(jnp.float32) ** 2
    previous = tables.Previous(stored, sizes, known, weight)
    options = WarmStartConfig(shrink=1.0, rotation=rotation)
    carried = jax.jit(lambda key: storage.warm_start(key, previous, sizes, options))(jax.random.key(2))
    before = storage.vectors(storage.load(stored, layout), layout)
    return np.asarray(before, np.float64), np.asarray(storage.vectors(carried, layout), np.float64)


UNCHANGED = [(kind, "packed") for kind in ("skewed", "uniform", "two", "any", "none left")]
UNCHANGED += [("any", name) for name in tables.SIZED if name != "packed"]
QUICK_UNCHANGED = [("blocks", kind, "packed") for kind in ("skewed", "any", "none left")]
QUICK_UNCHANGED += [("blocks", "any", "masked"), ("blocks", "any", "packed_bfloat16")]
QUICK_UNCHANGED += [("none", "two", "packed"), ("none", "any", "packed_int8")]


@pytest.mark.parametrize(
    ("rotation", "kind", "name"),
    [
        pytest.param(rotation, *case, marks=() if (rotation, *case) in QUICK_UNCHANGED else pytest.mark.slow)
        for rotation in ("none", "blocks")
        for case in UNCHANGED
    ],
)
def test_with_an_unchanged_plan_resizing_loses_nothing(rotation, kind, name):
    rng, nodes = np.random.default_rng(0), 300
    sizes = {
        "skewed": lambda: _skewed(rng, nodes, 8, 64),
        "uniform": lambda: jnp.full(nodes + 2, 8, jnp.int32).at[-2:].set(0),
        "two": lambda: jnp.asarray(np.append(rng.choice([4, 5], nodes), [0, 0]), jnp.int32),
        "any": lambda: random_sizes(rng, nodes, 64, True),
        "none left": lambda: jnp.asarray(np.append(rng.choice([0, 0, 6], nodes), [4, 2]), jnp.int32),
    }[kind]()
    before, after = _resized_to_the_same(rotation, sizes, name)
    scale = np.sqrt((before**2).sum(1, keepdims=True))
    assert (np.abs(after @ after.T - before @ before.T) <= 4e-6 * (scale @ scale.T)).all()
    np.testing.assert_allclose((after**2).sum(1), (before**2).sum(1), rtol=4e-6)


def test_full_rotation_loses_energy_of_skewed_tables_with_an_unchanged_plan():
    """Why there are `none` and `blocks`: all but the longest vectors lose, and the shortest ones the most."""
    sizes = _skewed(np.random.default_rng(0), 300, 8, 64)
    before, after = _resized_to_the_same("full", sizes)
    kept = (after**2).sum(1) / (before**2).sum(1)
    small = np.asarray(sizes[:-2]) <= np.median(sizes[:-2])
    total = (after**2).sum() / (before**2).sum()
    print(f"full rotation keeps {total:.0%} of the energy, {kept[small].mean():.0%} of the smaller half's")
    assert total < 0.8 and kept[small].mean() < 0.5
    np.testing.assert_allclose(kept[np.asarray(sizes[:-2]) == sizes.max()], 1, rtol=1e-5)
    uniform = jnp.full(302, 8, jnp.int32).at[-2:].set(0)
    before, after = _resized_to_the_same("full", uniform)
    np.testing.assert_allclose((after**2).sum(1), (before**2).sum(1), rtol=1e-5)


def test_wrong_shapes_and_dtypes_are_refused_when_a_program_is_traced():
    """A buffer for parameters, float sizes, masks of counts, axes of another width: named, instead of wrong numbers."""
    table = tables.packed(100, USERS, ITEMS, 37)
    layout = table.layout(jnp.full(NODES + 2, 3, jnp.int32))
    pool, key = table.zeros(), jax.random.key(0)
    buffer = table.to_buffer(pool)
    known, axes = jnp.ones(NODES, bool), jnp.eye(table.width)
    for call in (
        lambda: table.layout(jnp.full(NODES + 2, 3.0)),
        lambda: gather(table, pool, layout, 0, 16),
        lambda: write(table, buffer, layout, 0, jnp.zeros((NODES, 16))),
        lambda: table.pull(jnp.zeros((NODES + 2, 4)), layout),
        lambda: table.lookup(pool, layout, jnp.zeros((2, 2), jnp.int32)),
        lambda: tables.resize(table, key, pool, layout, layout, known.astype(jnp.int32)),
        lambda: tables.resize(table, key, pool, layout, layout, known, axes=axes[1:]),
        lambda: tables.principal_axes(table, pool, layout, jnp.ones(NODES + 2)),
    ):
        with pytest.raises(AssertionError):
            jax.eval_shape(call)


def test_numbers_of_column_blocks_cover_what_is_used():
    for used, expected in ((0, (0, 0, 0)), (1, (0, 0, 1)), (33, (0, 1, 1)), (48, (1, 0, 0)), (128, (2, 0, 0))):
        counts = block_counts((64, 32, 16), jnp.int32(used), 128)
        assert tuple(map(int, counts)) == expected
