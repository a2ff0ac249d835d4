"""Tests that need eight devices, which a CPU is made to be: `test_mesh.py` starts them in a process of their own.

XLA_FLAGS=--xla_force_host_platform_device_count=8 NPROC=32 python -m pytest -o addopts="" -q tests/on_devices.py
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from scall_jax import Budget, Config, FitConfig, SearchConfig, SizesConfig, evaluation, load, run_segments, streams
from scall_jax.evaluation import top
from scall_jax.ops import devices
from scall_jax.ops.devices import IN_PARTS, WHOLE, MeshConfig, on_devices
from scall_jax.ops.sums import BLOCK, padded_product, padded_sum
from scall_jax.recommenders.buffers import as_served, to_stored
from scall_jax.recommenders.graph import own_rows, propagate
from scall_jax.recommenders.ials.batches import batch_numbers, make_side
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.ials.gradients import Steps
from scall_jax.recommenders.ials.half_sweep import Approximation, Solved, half_sweep
from scall_jax.recommenders.ials.problem import Problem, make_order
from scall_jax.recommenders.ials.rows import RowLayout, changed, pool_part, row_layout, to_rows
from scall_jax.recommenders.lightgcn import rows_from
from scall_jax.run import compilation, make_run, placement
from scall_jax.run.exchange_order import ordered
from scall_jax.run.phases import CompiledPhases
from scall_jax.streams import Graph
from scall_jax.tables.compressed import few_bits
from scall_jax.tables.compressed.few_bits import Coded
from scall_jax.tables.packed import packed
from scall_jax.tables.packed_parts import packed_part
from tests.exchanges import unordered
from tests.helpers import comparable
from tests.test_evaluation import _case

# There are more users than a block of sums has.
USERS, ITEMS, ROWS = 1500, 250, 8000
IALS = IalsConfig(sweeps=2, half_life=1.0, users_half_life=1.0, unobserved=0.1, regularisation=0.01)


@pytest.fixture(scope="module")
def stream():
    rows = streams.synthetic(jax.random.key(0), users=USERS, items=ITEMS, interactions=ROWS)
    return streams.cut(rows, segments=3, max_segments=2)


def _nbytes_by_device(array):
    """Bytes of an array on each of its devices, in the order of their numbers."""
    return [np.asarray(part.data).nbytes for part in sorted(array.addressable_shards, key=lambda x: x.device.id)]


class _Run:
    """A run's programs; called, it runs the stream and gives the last state, record and segment."""

    def __init__(self, stream, method, count, mean_size=5, **options):
        options = {"ials": IALS, "sizes": SizesConfig(maximum=16), "recommender": "ials"} | options
        config = Config(method, Budget.mean_size(mean_size), mesh=MeshConfig(count), **options)
        self.stream, self.run, self.key = stream, make_run(config), jax.random.key(1)
        segment = placement.segment_shapes(self.run.mesh, stream.segment(0))
        self.phases = CompiledPhases(self.run, jax.eval_shape(self.init, self.key), segment)

    def init(self, key):
        return self.run.init(key, self.stream)

    def __call__(self):
        state = placement.put(self.run.mesh, jax.jit(self.init)(self.key))
        record, segment = None, None
        for t in range(len(self.stream)):
            segment = placement.put_segment(self.run.mesh, self.stream.segment(t))
            state, record = self.phases.run_segment(state, segment)
        return state, record, segment


def _same(one, many):
    """The same sizes, bit for bit, and metrics to 1e-5."""
    (state, record, _), (other, found, _) = one, many
    np.testing.assert_array_equal(state.plan, other.plan)
    for name in ("valid", "test"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
            getattr(record, name)._asdict(),
            getattr(found, name)._asdict(),
        )
    np.testing.assert_allclose(record.loss, found.loss, rtol=1e-5)
    assert int(record.steps) == int(found.steps)
    users = int(record.test.users[0])
    assert users > 50, "metrics of nobody agree whatever was fitted"
    used, stored, others = int(state.plan.sum()), state.params, other.params
    if not isinstance(stored, Coded):
        np.testing.assert_allclose(
            *(np.asarray(x.astype(jnp.float32))[:used] for x in (stored, others)), atol=1e-4, rtol=_rounding(stored)
        )
        return
    # A last bit of a coordinate at the border of two codes may make it the other one.
    groups = used // 8
    assert (np.asarray(stored.codes)[:groups] != np.asarray(others.codes)[:groups]).mean() < 0.01
    assert (np.asarray(stored.scales) != np.asarray(others.scales)).mean() < 0.01


def _rounding(stored):
    """Relative difference of two neighbours of bfloat16, or nothing."""
    return 2.0**-7 if stored.dtype == jnp.bfloat16 else 0.0


def test_a_run_on_two_devices_has_the_sizes_and_metrics_of_one_and_half_of_the_bytes_on_each(stream):
    # One width compiles soonest.
    narrow = {"sizes": SizesConfig(maximum=8)}
    one, two = _Run(stream, "frequency", 1, **narrow), _Run(stream, "frequency", 2, **narrow)
    result, other = one(), two()
    _same(result, other)
    again = two()
    # Runs repeat their bits.
    np.testing.assert_array_equal(other[0].params, again[0].params)
    jax.tree.map(np.testing.assert_array_equal, other[1], again[1])
    state, _, segment = other
    for array, before in (
        (state.params, result[0].params),
        (segment.graph.indices, result[2].graph.indices),
        (segment.graph.values, result[2].graph.values),
        (segment.ages, result[2].ages),
        (segment.repeats, result[2].repeats),
    ):
        # What is padded for equal parts is a block of entries for each device at most.
        assert _nbytes_by_device(array) == [array.nbytes // 2] * 2
        assert before.nbytes <= array.nbytes <= before.nbytes + 2 * 4 * BLOCK


_SHORT = FitConfig(batch=512, steps=4, eval_every=2)
_TWO_AT_ONCE = SearchConfig(probes=4, probes_at_once=2)


@pytest.mark.parametrize(
    ("method", "count", "options"),
    [
        ("gain", 2, {}),
        ("uniform", 2, {"recommender": "mf", "fit": _SHORT}),
        ("frequency", 2, {"recommender": "lightgcn", "fit": _SHORT, "bias": "decayed"}),
        pytest.param("scall", 2, {"search": _TWO_AT_ONCE}, marks=pytest.mark.slow),
        pytest.param("scall-gain", 2, {"table": "packed_int4", "bias": "decayed"}, marks=pytest.mark.slow),
        pytest.param(
            "scall-sac", 2, {"recommender": "lightgcn", "fit": _SHORT, "search": _TWO_AT_ONCE}, marks=pytest.mark.slow
        ),
        pytest.param("waterfill", 8, {"table": "packed_bfloat16"}, marks=pytest.mark.slow),
    ],
)
def test_exchanges_of_a_run_come_one_after_another_and_it_repeats_its_bits(method, count, options, stream):
    run = _Run(stream, method, count, **options)
    exchanges = {}
    for name, program in run.phases.programs.items():
        exchanges[name], pairs = unordered(program.as_text())
        assert not pairs, name
    assert exchanges["fit"] > 5 and exchanges["evaluate"] > 5 and exchanges.get("search_before", 9) > 5
    first, second, third = (run() for _ in range(3))
    for other in (second, third):
        jax.tree.map(np.testing.assert_array_equal, first[0].params, other[0].params)
        jax.tree.map(np.testing.assert_array_equal, first[1].test, other[1].test)


@jax.jit
def _exchanging(values, count):
    """Exchanges in loops, branches and functions, none of which needs to wait for another."""
    mesh = MeshConfig(2)

    def on_one(part):
        def step(x):
            return devices.together(mesh, x) / 2

        looped = jax.lax.while_loop(lambda c: c[0] < count, lambda c: (c[0] + 1, step(c[1])), (0, part[0]))[1]
        scanned, steps = jax.lax.scan(lambda c, x: (step(c), devices.most(mesh, x)), part[1], part, reverse=True)
        fixed = jax.lax.fori_loop(0, 3, lambda i, x: step(x) + i, part[2])
        chosen = jax.lax.cond(count > 1, lambda x: devices.everyone(mesh, x), lambda x: jnp.tile(x, 2), part)
        inner = jax.jit(step)(part[3:])
        several = devices.together(mesh, (part.astype(jnp.bfloat16), part[:0], part > 2))
        zeros = devices.everyone(mesh, -0.0 * jnp.abs(part))
        # Lanes go on for as many steps as each needs, the same on all devices.
        one_lane = functools.partial(jax.lax.while_loop, lambda x: x < count, lambda x: step(x) + 1)
        in_lanes = jax.vmap(one_lane)(jnp.arange(3.0))
        return looped, scanned, steps, fixed, chosen, inner, several, zeros, in_lanes

    found = on_devices(mesh, on_one, (values,), IN_PARTS, WHOLE)
    return found, devices.gathered(mesh, values), devices.with_length(mesh, values, 6)


@pytest.mark.parametrize("count", [0, 3])
def test_exchanges_are_given_an_order_that_a_cpu_keeps(count):
    place = devices.sharding(MeshConfig(2), IN_PARTS)
    values, count = jax.device_put(jnp.linspace(-1.0, 5.0, 12), place), jnp.int32(count)
    expected = _exchanging(values, count)
    exchanges, pairs = unordered(_exchanging.lower(values, count).compile().as_text())
    assert exchanges >= 9 and pairs
    program = compilation.compiled(_exchanging, values, count)
    found, pairs = unordered(program.as_text())
    assert found >= exchanges and not pairs
    # Bits, since a zero is equal to one of the other sign.
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(program(values, count)), strict=True):
        assert one.dtype == other.dtype and np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_exchanges_that_no_order_can_be_given_to_are_refused():
    mesh, values = MeshConfig(2), jnp.arange(4.0)

    def traced(on_one):
        trace = jax.jit(lambda x: on_devices(mesh, on_one, (x,), IN_PARTS, IN_PARTS)).trace(values)
        return ordered(trace.jaxpr, jax.tree.structure(trace.out_info))

    assert traced(lambda x: 2 * x) is None
    in_condition = traced(
        lambda x: jax.lax.while_loop(lambda x: devices.together(mesh, x.sum()) < 50, lambda x: 2 * x, x)
    )
    with pytest.raises(ValueError, match=r"condition of a loop exchanges.*ops\.devices\.loop"):
        jax.eval_shape(in_condition, values)

    passed_on = traced(lambda x: jax.lax.ppermute(x, devices.ROWS, [(0, 1), (1, 0)]))
    with pytest.raises(ValueError, match="devices exchange by ppermute"):
        jax.eval_shape(passed_on, values)

    @jax.custom_jvp
    def special(x):
        return devices.together(mesh, x)

    special.defjvp(lambda primals, tangents: (special(*primals), tangents[0]))
    with pytest.raises(ValueError, match="custom_jvp_call has exchanges"):
        jax.eval_shape(traced(special), values)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("at_once", [2**16, 64])
def test_few_bits_are_coded_and_decoded_in_parts_as_the_whole_is(count, at_once, monkeypatch):
    monkeypatch.setattr(few_bits, "_AT_ONCE", at_once)
    rng, users, items, width = np.random.default_rng(0), 37, 61, 12
    own = np.where(rng.random(users + items + 2) < 0.3, 0, rng.integers(0, width + 1, users + items + 2))
    capacity = -(-(int(own.sum()) + 5) // 8) * 8
    values = np.zeros(capacity, np.float32)
    values[: own.sum()] = rng.standard_normal(own.sum()) * rng.choice([0.01, 1, 5], own.sum())
    mesh, shape = MeshConfig(count), (capacity, users, items, width)
    for bits in (1, 4):
        one, several = (few_bits._few_bits(bits, devices, *shape) for devices in (1, count))
        layout = one.layout(jnp.asarray(own, jnp.int32))
        params = (x.table.to_buffer(jnp.asarray(values)) for x in (one, several))
        expected = jax.jit(functools.partial(to_stored, one))(next(params), layout)
        found = jax.jit(functools.partial(to_stored, several, mesh=mesh))(next(params), layout)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        served = jax.jit(lambda stored, layout, x=several: as_served(x, stored, layout, mesh)[1])(found, layout)
        assert _nbytes_by_device(served) == [served.nbytes // count] * count
        np.testing.assert_array_equal(served[:capacity], one.load(expected, layout))
        assert not np.asarray(served[capacity:]).any()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_vectors_are_rounded_in_parts_as_codes_give_them_back(count):
    rng, users, items, width = np.random.default_rng(0), 37, 61, 12
    own = np.where(rng.random(users + items + 2) < 0.3, 0, rng.integers(0, width + 1, users + items + 2))
    table, mesh = packed(int(own.sum()) + 5, users, items, width), MeshConfig(count)
    layout, capacity = table.layout(jnp.asarray(own, jnp.int32)), table.zeros().size
    pool = table.zeros().at[: own.sum()].set(jnp.asarray(rng.standard_normal(own.sum()), jnp.float32))
    before = to_rows(table, table.to_buffer(pool), layout, capacity)
    back = few_bits.decode(few_bits.encode(pool, layout, 3), layout, capacity)
    expected = to_rows(table, table.to_buffer(back), layout, capacity)
    rows, length = row_layout(layout, users), count * pool_part(table, capacity, mesh)
    which = jnp.arange(users + items + 2) >= users

    def on_one(part):
        largest = devices.most(mesh, jnp.abs(part).max())
        return changed(mesh, part, rows, which, lambda x, sizes: few_bits.round_rows(x, sizes, 3, largest), width)

    found = jax.jit(lambda x: on_devices(mesh, on_one, (x,), (IN_PARTS,), IN_PARTS))(
        jnp.pad(before, (0, length - before.size))
    )
    of_users = jnp.arange(before.size) < int(own[:users].sum())
    np.testing.assert_array_equal(found[: before.size], jnp.where(of_users, before, expected))


def test_parts_get_another_length():
    mesh = MeshConfig(4)
    values = jax.device_put(jnp.arange(40.0).reshape(20, 2), devices.sharding(mesh, IN_PARTS))
    for length in (4, 16, 20, 24, 80):
        found = jax.jit(lambda x, n=length: devices.with_length(mesh, x, n))(values)
        np.testing.assert_array_equal(found, devices.with_length(devices.ONE, values, length))
        np.testing.assert_array_equal(found[:20], values[:length])
        assert found.shape == (length, 2) and float(jnp.abs(found[20:]).sum()) == 0
        assert _nbytes_by_device(found) == [found.nbytes // 4] * 4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uniform", "frequency", "gain"])
@pytest.mark.parametrize("solver", ["auto", "exact"])
def test_runs_on_several_devices_are_that_of_one(method, solver, stream):
    options = {"ials": IalsConfig(**(vars(IALS) | {"solver": solver}))}
    one = _Run(stream, method, 1, **options)()
    for count in {"auto": (2, 4), "exact": (8,)}[solver]:
        many = _Run(stream, method, count, **options)()
        _same(one, many)
        assert _nbytes_by_device(many[0].params) == [many[0].params.nbytes // count] * count


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        # Systems so wide that interactions are read again in each step.
        {"sizes": SizesConfig(maximum=40), "ials": IalsConfig(**(vars(IALS) | {"narrowest": 40}))},
        # Entities without a vector of their own, solved for in blocks of columns.
        {"sizes": SizesConfig(minimum=0, maximum=16), "ials": IalsConfig(**(vars(IALS) | {"solver": "blocks"}))},
        # The run chooses its own parameters, and a bias.
        {"ials": IalsConfig(sweeps=2, choice_sweeps=1), "bias": "decayed"},
    ],
    ids=["wide", "shared and blocks", "choices"],
)
def test_other_runs_on_four_devices_are_those_of_one(options, stream):
    _same(_Run(stream, "frequency", 1, **options)(), _Run(stream, "frequency", 4, **options)())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "method", "count"), [("int4", "gain", 4), ("int1", "frequency", 8), ("bfloat16", "uniform", 2)]
)
def test_runs_in_few_bits_on_several_devices_are_that_of_one(table, method, count, stream):
    # Few bytes, so that sizes differ.
    options = {"table": f"packed_{table}", "mean_size": {"int1": 0.3, "int4": 0.8, "bfloat16": 2.5}[table]}
    _same(_Run(stream, method, 1, **options)(), _Run(stream, method, count, **options)())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "method", "options"),
    [
        (2, "frequency", {}),
        (8, "uniform", {"recommender": "mf", "positives": "all"}),
        # Columns that users alone have, so that half of a product's rows are left out, and sizes of 0.
        (4, "fixed", {"sizes": SizesConfig(minimum=0, maximum=40, rho=0.7)}),
        (4, "frequency", {"table": "packed_int2", "mean_size": 0.6, "bias": "decayed"}),
    ],
    ids=["float32", "mf", "sides", "few bits and a bias"],
)
def test_training_by_gradients_on_several_devices_is_that_of_one(count, method, options, stream):
    options = {"recommender": "lightgcn"} | options
    positives = options.pop("positives", "segment")
    options["fit"] = FitConfig(steps=30, eval_every=15, batch=256, positives=positives)
    one, many = (_Run(stream, method, n, **options)() for n in (1, count))
    _same(one, many)
    assert int(one[1].steps) == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "method", "recommender"), [(4, "scall", "ials"), (2, "scall-gain", "lightgcn"), (2, "scall-sac", "mf")]
)
def test_searches_on_several_devices_are_that_of_one(count, method, recommender, stream):
    fit = FitConfig(steps=20, eval_every=10, batch=256)
    options = {"recommender": recommender, "fit": fit, "search": SearchConfig(probes=4)}
    one, many = (_Run(stream, method, n, **options)() for n in (1, count))
    _same(one, many)
    for name in ("action", "allocated", "reward"):
        np.testing.assert_allclose(getattr(one[1].search, name), getattr(many[1].search, name), atol=1e-4)
    assert np.ptp(np.asarray(one[1].search.reward)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("table", "mean_size"), [("packed", 5), ("packed_int4", 0.8)])
def test_a_run_that_was_stopped_goes_on_on_other_devices_and_is_loaded_on_one(
    table, mean_size, stream, tmp_path, monkeypatch
):
    options = {"ials": IALS, "sizes": SizesConfig(maximum=8), "recommender": "ials", "table": table}
    options["budget"] = Budget.mean_size(mean_size)
    one, two = (Config("frequency", mesh=MeshConfig(count), **options) for count in (1, 2))
    key, folder = jax.random.key(1), tmp_path / "two"
    expected = run_segments(one, stream, key, folder=tmp_path / "one")
    assert len(run_segments(two, stream, key, folder=folder, segments=1)) == 1
    found = run_segments(two, stream, key, folder=folder)
    for line, other in zip(expected, found, strict=True):
        assert line["allocated_parameters"] == other["allocated_parameters"]
        assert line["bytes_table"] == other["bytes_table"]
        assert line["test_recall@20"] == pytest.approx(other["test_recall@20"], abs=1e-5)
    run_segments(two, stream, key, folder=tmp_path / "other", segments=1)
    assert comparable(run_segments(one, stream, key, folder=tmp_path / "other")) == comparable(found)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    user = stream.user_ids[:3].to_list()
    models = load(tmp_path / "one"), load(folder)
    items, others = (model.recommend(user, k=5) for model in models)
    assert items.equals(others)


def test_sums_on_eight_devices_have_the_bits_of_one_device():
    mesh, rng = MeshConfig(8), np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(11 * BLOCK - 5, 3)), jnp.float32)
    whole = devices.whole_parts(mesh, values, BLOCK)
    found = on_devices(mesh, lambda part: padded_sum(part, mesh), (whole,), IN_PARTS, WHOLE)
    np.testing.assert_array_equal(found, padded_sum(values))
    # Blocks are dealt out: device d has blocks d, d + 8, ...
    dealt = whole.reshape(-1, 8, BLOCK, 3).swapaxes(0, 1).reshape(whole.shape)
    product = on_devices(mesh, lambda part: padded_product(part, part, mesh), (dealt,), IN_PARTS, WHOLE)
    np.testing.assert_array_equal(product, padded_product(values, values))


def test_devices_read_each_others_parts_and_leave_a_loop_together():
    mesh = MeshConfig(8)
    values = jnp.arange(64, dtype=jnp.float32) ** 2
    wanted = jax.random.randint(jax.random.key(0), (8, 5), 0, 64)

    def on_one(part, wanted):
        found = devices.ask(mesh, wanted, lambda at: devices.part_of(mesh, part, at))

        def step(state):
            # Each step asks the others, so that who needs few steps stays with who needs many.
            count, total = state
            return count + 1, total + devices.together(mesh, part.sum())

        count, total = devices.loop(mesh, lambda s: s[0] <= devices.number(mesh), step, (jnp.int32(0), jnp.float32(0)))
        return found, count[None], total[None]

    found, counts, totals = on_devices(mesh, on_one, (values, wanted), (IN_PARTS, IN_PARTS), IN_PARTS)
    np.testing.assert_array_equal(found, values[wanted])
    assert counts.tolist() == [8] * 8
    np.testing.assert_array_equal(totals, [8 * float(values.sum())] * 8)


def _with_room(mesh, x):
    return devices.whole_parts(mesh, jnp.concatenate([x, jnp.zeros_like(x)]))


def test_products_of_rows_on_eight_devices_have_the_bits_of_one_device():
    mesh, rng = MeshConfig(8), np.random.default_rng(1)
    met = rng.random((300, 41)) < 0.05
    # This row is longer than a device's part.
    met[:, 7] = True
    met[5] = False
    across = scipy.sparse.csr_matrix(met.astype(np.float32) * rng.random(met.shape, np.float32))
    matrix = scipy.sparse.bmat([[None, across], [across.T, None]], "csr")
    graph = Graph(*(jnp.asarray(x) for x in (matrix.indptr, matrix.indices, matrix.data)))
    # As much room behind the entries, so that some devices have none.
    graph = graph._replace(indices=_with_room(mesh, graph.indices), values=_with_room(mesh, graph.values))
    x = jnp.asarray(rng.normal(size=(341, 5)), jnp.float32)
    specs = Graph(WHOLE, IN_PARTS, IN_PARTS)
    for side in (0, 1, 2):

        def product(graph, x, mesh, side=side, method="auto"):
            rows = rows_from(own_rows(mesh, graph, 300), 300, jnp.int32(side), other=False)
            return propagate(rows, x, method, mesh)

        found = on_devices(mesh, lambda graph, x: product(graph, x, mesh), (graph, x), (specs, WHOLE), WHOLE)
        np.testing.assert_array_equal(found, product(graph, x, devices.ONE))
        if not side:
            by_chunks = functools.partial(product, mesh=mesh, method="chunks")
            chunked = on_devices(mesh, by_chunks, (graph, x), (specs, WHOLE), WHOLE)
            np.testing.assert_allclose(chunked, found, rtol=1e-5, atol=1e-5)
        expected = matrix @ np.asarray(x)
        expected[{0: slice(0), 1: slice(300, None), 2: slice(300)}[side]] = 0
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_parts_of_a_packed_table_read_and_change_as_the_whole_one_does():
    mesh, rng = MeshConfig(8), np.random.default_rng(2)
    sizes = jnp.asarray(np.append(rng.integers(0, 21, 90), [3, 0]), jnp.int32)
    table = packed(int(sizes.sum()) + 11, users=60, items=30, maximum=20, multiple=8)
    part, layout = packed_part(table, mesh), table.layout(sizes)
    buffers = tuple(
        table.to_buffer(jnp.asarray(rng.normal(size=table.zeros().shape), jnp.float32).at[int(sizes.sum()) :].set(0))
        for _ in range(2)
    )
    values, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((92, 10), 92))

    def rule(old, new):
        return 0.5 * old[0] + new, old[1] - new**2

    def on_one(table, buffers, params, first):
        changed = table.update(buffers, layout, first, values, rule, (weight, params))
        return table.read(params, layout, first, 10), changed

    for first in (0, 10):
        given = buffers, buffers[0], jnp.int32(first)
        expected, changed = on_one(table, *given)
        found, others = on_devices(
            mesh,
            functools.partial(on_one, part),
            given,
            ((IN_PARTS, IN_PARTS), IN_PARTS, WHOLE),
            (WHOLE, (IN_PARTS, IN_PARTS)),
        )
        np.testing.assert_array_equal(found, expected)
        assert float(jnp.abs(changed[0] - buffers[0]).max()) > 0
        for one, other in zip(changed, others, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_ranking_on_three_devices_is_that_of_one_with_ties_between_blocks_of_items(monkeypatch):
    (user_vectors, item_vectors), bias, _, _, graph, rows = _case(3, items=1500, known_items=1400, room=2000)
    known = evaluation.KnownGraph(graph, 23, jnp.int32(1400))
    padded = jnp.zeros((rows.users.shape[0], 20)).at[: rows.count].set(user_vectors[rows.users[: rows.count]])
    before = {"users_before": 9, "items_before": 60}
    one = jax.jit(lambda: evaluation.evaluate(padded, item_vectors, bias, rows, known, **before))()
    # Blocks of 640 of the items and of some users.
    monkeypatch.setattr(top, "at_once", lambda: top.AtOnce(4, 2**12, 64))
    mesh = MeshConfig(3)
    parts = devices.whole_parts(mesh, jnp.concatenate([user_vectors, item_vectors]))
    vectors = evaluation.VectorsInParts(parts, IN_PARTS, lambda part, at: devices.part_of(mesh, part, at), 20)
    cut = graph._replace(
        indices=devices.whole_parts(mesh, graph.indices), values=devices.whole_parts(mesh, graph.values)
    )
    known = evaluation.KnownGraph(cut, 23, jnp.int32(1400))
    found = jax.jit(
        lambda: evaluation.evaluate_in_parts(
            mesh, vectors, jnp.asarray(bias), rows, known, used_width=jnp.int32(20), **before
        )
    )()
    assert float(one.recall[0, -1]) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one._asdict(), found._asdict())


NODES, USER_NODES, ENTRIES, WIDTH = 70_000, 50_000, 2**20, 64


def _half_sweep_text(mesh):
    """The compiled half sweep over a table of 2^22 coordinates and 2^20 entries; nothing is run."""

    def on_one(problem, rows, pool):
        order = make_order(problem, rows.sizes[:-2], USER_NODES, (WIDTH,), 16)
        side = make_side(problem, rows, order, USER_NODES, jnp.int32(0), mesh)
        return half_sweep(side, pool, (WIDTH,), Approximation(16, Steps(jnp.int32(2), jnp.float32(0)), 0))

    def shape(*dims, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype)

    entries, per_node = shape(ENTRIES), shape(NODES)
    problem = Problem(
        shape(NODES + 1, dtype=jnp.int32),
        shape(ENTRIES, dtype=jnp.int32),
        entries,
        entries,
        per_node,
        shape(NODES, dtype=bool),
        shape(),
        per_node,
        shape(),
    )
    specs = Problem(WHOLE, *[IN_PARTS] * 3, *[WHOLE] * 5)
    by_vector = shape(NODES + 2, dtype=jnp.int32)
    rows = RowLayout(by_vector, by_vector, shape(NODES, dtype=jnp.int32))

    def spread(*given):
        return on_devices(mesh, on_one, given, (specs, WHOLE, IN_PARTS), Solved(IN_PARTS, WHOLE, WHOLE, WHOLE))

    return jax.jit(spread).lower(problem, rows, shape(2**22)).compile().as_text()


def _numbers(text, operation):
    """Numbers of each result of an operation of a compiled program, tuples counted one by one."""
    found = []
    for line in text.splitlines():
        made = re.search(rf"= (.*?) {operation}(?:-start)?\(", line)
        if made:
            found += [
                int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\[([\d,]*)\]", made[1])
            ]
    return found


@pytest.mark.slow
def test_a_half_sweep_reads_no_more_of_the_others_at_once_than_a_batch():
    text = _half_sweep_text(MeshConfig(4))
    gathered, summed = _numbers(text, "all-gather"), _numbers(text, "all-reduce")
    assert gathered and max(gathered) <= batch_numbers()
    # A batch's vectors are the most that is asked for; beside them what a place of the order has is put together.
    assert sorted(n for n in summed if n > batch_numbers()) in ([], [4 * (NODES + batch_numbers() // 128)])
    # The bound is no idle one: a batch asks for at least half of it.
    assert max(n for n in summed if n <= batch_numbers()) >= batch_numbers() // 2
    # It is less than a part of the table.
    assert batch_numbers() < 2**22 // 4 and batch_numbers() < NODES * WIDTH // 4
    assert not re.search(r"(all-to-all|reduce-scatter|collective-permute)", text)


@pytest.mark.slow
@pytest.mark.parametrize("table", ["packed", "packed_bfloat16"])
def test_a_fit_and_its_ranking_gather_no_more_of_the_others_at_once_than_a_batch(table):
    """Compiled, not run: of a table of three to six batches, on four devices."""
    rows = streams.synthetic(jax.random.key(0), users=60_000, items=9_000, interactions=250_000)
    stream = streams.cut(rows, segments=2, max_segments=1)
    phases = _Run(stream, "frequency", 4, mean_size=32, table=table, sizes=SizesConfig(maximum=64)).phases
    buffer = phases.params.size
    assert buffer > 2.5 * batch_numbers()
    for name in ("fit", "evaluate"):
        text = phases.programs[name].as_text()
        gathered, summed = _numbers(text, "all-gather"), _numbers(text, "all-reduce")
        assert gathered and max(gathered) <= batch_numbers()
        # What is asked for is a batch's vectors, a part of the table where its length changes, or numbers by entity.
        entities = sum(stream.known(stream.bounds[0].train))
        assert summed and max(summed) <= max(batch_numbers(), buffer // 4, 6 * entities) < buffer / 2
