import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scall_jax import tables
from scall_jax.recommenders import bpr
from scall_jax.recommenders import embed_blocks as embed
from scall_jax.tables.resize import init
from scall_jax.tables.table import nbytes
from tests.helpers import random_graph, random_sizes

USERS, ITEMS = 14, 11
NODES = USERS + ITEMS


def _pair(rng, maximum, zeros):
    """A packed and a masked table with the same embeddings."""
    sizes = random_sizes(rng, NODES, maximum, zeros)
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


@pytest.mark.parametrize(("maximum", "zeros", "seed"), CASES)
def test_both_tables_read_the_same_embeddings(maximum, zeros, seed):
    packed, masked, layout, pool, full = _pair(np.random.default_rng(seed), maximum, zeros)
    plain = _plain(full, layout.sizes)
    rows = jnp.arange(NODES)
    np.testing.assert_array_equal(packed.lookup(pool, layout, rows), plain)
    np.testing.assert_array_equal(masked.lookup(full, layout, rows), plain)
    for table, params in ((packed, pool), (masked, full)):
        for block in range(table.width // table.columns):
            got = table.gather(table.open(params), layout, block)
            np.testing.assert_array_equal(got, plain[:, block * table.columns : (block + 1) * table.columns])


@pytest.mark.parametrize(("maximum", "zeros", "seed"), CASES)
def test_both_tables_give_the_same_loss_and_gradient(maximum, zeros, seed):
    """And the gradient is that of a dense float64 model, back through reading, propagation and loss."""
    rng = np.random.default_rng(seed)
    packed, masked, layout, pool, full = _pair(rng, maximum, zeros)
    graph, dense = random_graph(rng, USERS, ITEMS, 40)
    user, positive, negative = (jnp.asarray(rng.integers(0, n, 32), jnp.int32) for n in (USERS, ITEMS, ITEMS))
    triples = bpr.Triples(user, positive, negative, jnp.ones(32))
    rows = jnp.concatenate([user, positive + USERS, negative + USERS])
    bias = jnp.asarray(rng.normal(size=ITEMS), jnp.float32)

    def objective(table):
        def loss(params):
            final, own = embed(table, 2, params, layout, graph, rows)
            return bpr.loss(final, own, bias, triples, 0.1)

        return loss

    packed_loss, packed_gradient = jax.value_and_grad(objective(packed))(pool)
    masked_loss, masked_gradient = jax.value_and_grad(objective(masked))(full)
    reference_loss, reference_gradient = _reference(full, layout, dense, triples, bias, rows)
    assert float(packed_loss) == pytest.approx(float(masked_loss), rel=1e-6)
    assert float(packed_loss) == pytest.approx(reference_loss, rel=1e-5)
    np.testing.assert_allclose(masked_gradient, reference_gradient, atol=1e-5)
    # the pool's gradient, written into a masked table, is the masked table's
    zero = jnp.zeros_like(full)
    for block in range(packed.width // packed.columns):
        columns = slice(block * packed.columns, (block + 1) * packed.columns)
        own = packed.lookup(packed_gradient, layout._replace(source=_own(layout)), jnp.arange(NODES + 2))
        zero = zero.at[:, columns].set(own[:, columns])
    np.testing.assert_allclose(zero, masked_gradient, atol=1e-6)


def _own(layout):
    """Places of all vectors by themselves, shared ones included."""
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


def test_packed_table_and_its_moments_hold_the_budget_and_nothing_else():
    sizes = random_sizes(np.random.default_rng(0), NODES, 37, True)
    budget = int(sizes.sum())
    table = tables.packed(budget, USERS, ITEMS, 37)
    params = init(table, jax.random.key(0), table.layout(sizes), 1.0)
    assert nbytes(params) == 4 * budget
    assert np.count_nonzero(params) == budget
    moments = optax.adam(0.1).init(params)
    assert nbytes(moments) == 2 * 4 * budget + 4


@pytest.mark.parametrize("name", ["packed", "masked"])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_resize_keeps_leading_coordinates(name, rotate, zeros):
    rng = np.random.default_rng(3)
    maximum, shrink = 37, 0.5
    before, after = (random_sizes(rng, NODES, maximum, zeros) for _ in range(2))
    known = jnp.asarray(rng.uniform(size=NODES) < 0.8)
    table = tables.TABLES[name](int(max(before.sum(), after.sum())), USERS, ITEMS, maximum)
    old, new = table.layout(before), table.layout(after)
    params = init(table, jax.random.key(1), old, 1.0)
    axes = tables.principal_axes(table, params, old, known.astype(jnp.float32)) if rotate else None
    resized = tables.resize(table, jax.random.key(2), params, old, new, known, shrink=shrink, axes=axes, grow_std=0.0)
    was = np.asarray(table.lookup(params, old, jnp.arange(NODES)))
    was = was @ np.asarray(axes) if rotate else was
    now = np.asarray(table.lookup(resized, new, jnp.arange(NODES)))
    for n in range(NODES):
        if known[n] and after[n] > 0:
            np.testing.assert_allclose(now[n, : after[n]], shrink * was[n, : after[n]], atol=1e-5)
        elif after[n] > 0:
            assert np.abs(now[n, : after[n]]).min() > 0 and 0.0 < np.abs(now[n, : after[n]]).max() < 1
        assert after[n] == 0 or (now[n, int(after[n]) :] == 0).all()


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
