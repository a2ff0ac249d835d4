import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import make_run, tables
from scall_jax.methods.context import segment_context
from scall_jax.methods.rivals.minhash_plan import minhash_planner
from scall_jax.streams.segments import GraphCapacity, make_graph
from scall_jax.tables import SharedMemoryConfig
from scall_jax.tables.compressed import minhash
from scall_jax.tables.compressed.shared_memory import Cells, refit_cells
from tests.helpers import small_config, small_stream

_MASK = 2**32 - 1


def _sets(rng, users, items):
    """Random item sets of users, from nearly equal to disjoint, as a graph and as plain sets of nodes."""
    rows = []
    for user in range(users):
        common = set(range(20)) if user % 2 else set(range(10, 30))
        drop = rng.random() * 0.8
        rows.append({i for i in common if rng.random() > drop} | {int(x) for x in rng.integers(30, items, user % 5)})
        rows[-1] |= {user % items}
    pairs = np.array([(u, i) for u, row in enumerate(rows) for i in sorted(row)])
    by_item = np.lexsort((pairs[:, 0], pairs[:, 1]))
    graph = make_graph(*pairs.T, np.arange(len(pairs)), by_item, GraphCapacity(users, items, 2 * len(pairs) + 7))
    neighbours = [{users + i for i in row} for row in rows]
    neighbours += [{u for u, row in enumerate(rows) if i in row} for i in range(items)]
    return jax.tree.map(jnp.asarray, graph), neighbours


@pytest.mark.parametrize("hashes", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_cells_are_shared_as_often_as_similar_sets_say(hashes):
    users, items, keys, width, cells = 24, 40, 400, 4000, 300
    graph, neighbours = _sets(np.random.default_rng(0), users, items)
    signature = minhash.signatures(graph, users + items, users, keys)
    chosen = minhash.chosen_keys(width, keys, hashes)
    cell = np.asarray(minhash.locations(signature, chosen, jnp.int32(cells)))
    errors, spread = [], []
    for a in range(users + items):
        for b in range(a):
            if not neighbours[a] or not neighbours[b]:
                continue
            jaccard = len(neighbours[a] & neighbours[b]) / len(neighbours[a] | neighbours[b])
            same = jaccard + (1 - jaccard) / 2**minhash.KEY_BITS
            errors.append((cell[a] == cell[b]).mean() - (same**hashes + (1 - same**hashes) / cells))
            spread.append(same**hashes)
    assert np.ptp(spread) > 0.5  # there are similar and dissimilar pairs
    assert np.abs(errors).max() < 0.12  # 400 keys: four deviations of a similarity are 0.1
    assert abs(np.mean(errors)) < 0.01


def _mix(x):
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def _salt(use, number):
    return (use + 0x9E3779B1 * number) & _MASK


def _plain_location(keys, chosen, coordinate, cells):
    """JumpBackHash, level by level."""
    code = _salt(0x94D049BB, coordinate)
    for k in chosen[coordinate]:
        code = (_mix(code ^ int(keys[k])) + 0x94D049BB) & _MASK

    def draw(number):
        return _mix((code + number * 0x632BE5AB) & _MASK)

    for level in reversed(range((cells - 1).bit_length())):
        first, number = 2**level, 33
        if not draw(0) & first:
            continue
        cell = first + draw(level + 1) % first
        while cell >= cells:
            cell, number = draw(number) % (2 * first), number + 1
        if cell >= first:
            return cell
    return 0


def test_locations_are_those_of_plain_integers():
    users, items, keys = 9, 40, 6
    graph, neighbours = _sets(np.random.default_rng(1), users, items)
    signature = np.asarray(minhash.signatures(graph, users + items, users, keys))
    for node, found in enumerate(neighbours):
        for k in range(keys if found else 0):
            salt = _salt(0x9E3779B9, k)
            numbers = [x if x < users else x - users + 2**31 for x in map(int, found)]
            least = min(_mix((_mix(x ^ salt) + salt) & _MASK) for x in numbers)
            assert signature[node, k] == _mix(least ^ salt) >> 24
    chosen = minhash.chosen_keys(10, keys, 2)
    for cells in (1, 7, 65, 100, 128):
        got = np.asarray(minhash.locations(jnp.asarray(signature), chosen, jnp.int32(cells)))
        for node in (0, 4, 8, 20):
            assert got[node].tolist() == [_plain_location(signature[node], chosen, i, cells) for i in range(10)]


def test_cells_are_uniform_and_only_those_of_new_cells_move():
    signature = minhash.own_signatures(3000, 3000, 8)
    chosen = minhash.chosen_keys(16, 8, 2)
    few, many = (np.asarray(minhash.locations(signature, chosen, jnp.int32(m))) for m in (60, 90))
    for cell, m in ((few, 60), (many, 90)):
        count = np.bincount(cell.ravel(), minlength=m)
        assert len(count) == m
        # Coordinates of one entity and of equal keys are not independent: the bound is wider than chi-square's 2 m.
        assert ((count - count.mean()) ** 2 / count.mean()).sum() < 3 * m
    moved = few != many
    assert (many[moved] >= 60).all() and moved.mean() == pytest.approx(1 / 3, abs=0.02)


def test_refitted_cells_are_least_squares():
    rng = np.random.default_rng(0)
    nodes, width, cells = 7, 5, 11
    cell = rng.integers(0, cells - 1, (nodes, width))  # the last cell is read by nobody
    vectors, weight = rng.normal(size=(nodes, width)), rng.integers(0, 4, nodes).astype(float)
    reads = np.zeros((nodes * width, cells))
    reads[np.arange(nodes * width), cell.ravel()] = 1
    root = np.sqrt(np.repeat(weight, width))
    best = np.linalg.lstsq(root[:, None] * reads, root * vectors.ravel(), rcond=None)[0]
    empty = np.full(cells, 7.0, np.float32)
    got = refit_cells(*(jnp.asarray(x, jnp.float32) for x in (vectors, weight)), jnp.asarray(cell), jnp.asarray(empty))
    used = (np.repeat(weight, width) @ reads) > 0
    np.testing.assert_allclose(got, np.where(used, best, 7.0), atol=1e-5)
    assert not used[-1]


def test_carried_vectors_keep_their_cells_and_new_ones_are_drawn():
    storage = tables.STORAGES["shared_memory"].build(900, 30, 20, 16)
    own = storage.plan().signatures
    old, new = Cells(jnp.int32(600), own), Cells(jnp.int32(900), own)
    params = storage.fresh(jax.random.key(0), storage.layout(old), 1.0)
    options = small_config().warm_start
    known = jnp.arange(50) < 45
    moved = storage.warm_start(jax.random.key(1), tables.Previous(params, old, known, jnp.ones(50)), new, options)
    before, after = (np.asarray(storage.vectors(p, storage.layout(q))) for p, q in ((params, old), (moved, new)))
    same = np.asarray(storage.layout(old).cell == storage.layout(new).cell)
    stayed = same & np.asarray(known)[:, None]
    assert stayed.mean() > 0.5
    np.testing.assert_allclose(after[stayed], options.shrink * before[stayed], rtol=1e-4, atol=1e-6)
    # A coordinate that moves takes its value along; values that meet in a new cell are averaged.
    went = ~same & np.asarray(known)[:, None]
    assert np.corrcoef(after[went], before[went])[0, 1] > 0.7
    assert np.count_nonzero(params) == 600 and np.count_nonzero(moved) <= 900


def test_signatures_follow_the_interactions_until_they_are_frozen():
    stream = small_stream()
    config = small_config("shared_memory", table="shared_memory", shared_memory=SharedMemoryConfig(least=8))
    planner = minhash_planner(config)
    run = make_run(config)
    state = run.init(jax.random.key(0), stream)
    plan_by = jax.jit(lambda *setting: planner.plan(segment_context(config, *setting), jax.random.key(0)))
    own = np.asarray(minhash.own_signatures(stream.capacity.nodes, stream.capacity.users, 8))
    frozen, previous = np.zeros(stream.capacity.nodes, bool), None
    changed = 0
    for segment in stream:
        segment = jax.tree.map(jnp.asarray, segment)
        plan, _ = plan_by(state, segment)
        signature, degree = np.asarray(plan.signatures), np.diff(segment.graph.indptr)
        assert (signature[degree == 0] == own[degree == 0]).all()
        if previous is not None:
            np.testing.assert_array_equal(signature[frozen], previous[frozen])
            changed += (signature != previous)[~frozen & (degree > 0)].any(1).sum()
        frozen |= degree >= 8
        state = state._replace(plan=plan)
        state = state._replace(planner=planner.update(segment_context(config, state, segment), None))
        np.testing.assert_array_equal(state.planner, frozen)
        previous = signature
    assert frozen.sum() > 50 and changed > 50


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="have as many"):
        SharedMemoryConfig(hashes=9)
    with pytest.raises(ValueError, match="width=0"):
        SharedMemoryConfig(width=0)
