"""The account of bytes: what training holds, and what serving reads, each counted a second way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from scall_jax import Budget, FitConfig, PolicyConfig, SearchConfig, SizesConfig, make_run, run_segments, tables
from scall_jax.config import PrunedConfig
from scall_jax.methods.context import segment_context
from scall_jax.methods.embedding_phases import budget_totals
from scall_jax.recommenders.buffers import to_buffer
from scall_jax.recommenders.lightgcn import LightGcn, embed
from scall_jax.run import checkpoint, records
from scall_jax.streams.segments import compact_graph, compact_graph_bytes
from scall_jax.tables.table import nbytes
from tests.helpers import small_config, small_stream


@pytest.fixture(scope="module")
def stream():
    return small_stream(segments=3)


def _inside(equation):
    """The programs within an equation: bodies of loops, branches, calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            program = getattr(part, "jaxpr", part)
            if hasattr(program, "eqns"):
                yield program


def _loops(program):
    """Outermost loops of a program: the shapes and item sizes that each carries from turn to turn, and its body."""
    for equation in program.eqns:
        carried = None
        if equation.primitive.name == "while":
            carried = equation.outvars
        elif equation.primitive.name == "scan":
            carried = equation.outvars[: equation.params["num_carry"]]
        for body in _inside(equation):
            if carried is None:
                yield from _loops(body)
            else:
                yield [(v.aval.shape, getattr(v.aval.dtype, "itemsize", 8)) for v in carried], body


def _bytes(carried):
    return sum(int(np.prod(shape)) * item for shape, item in carried)


def _trained(loops, shapes):
    """The most bytes that a loop carries of arrays of the parameters' shapes, whatever their leading axis."""
    return max((_bytes(x for x in carried if x[0] in shapes or x[0][1:] in shapes) for carried, _ in loops), default=0)


SEARCHES = [
    ("uniform", {}, 1.0),
    ("binary_hash", {}, 1.0),
    ("pep", {}, 8.0),
    ("mixed_precision", {}, 1.3),
    pytest.param("scall", {}, 1.4, marks=pytest.mark.slow),
    ("scall-random", {"probes_at_once": 3}, 3.2),
    pytest.param("scall-sac", {"probes_at_once": 2}, 3.0, marks=pytest.mark.slow),
    ("bet", {}, 1.4),
    ("ciess", {}, 1.4),
    ("ducb", {}, 1.4),
    ("esapn", {}, 1.4),
]


@pytest.mark.parametrize(("method", "search", "factor"), SEARCHES)
def test_training_bytes_are_the_most_that_any_phase_carries(stream, method, search, factor):
    """Loops of the programs say what lives from step to step; `factor` is by how much a search exceeds the fit."""
    budget = Budget.megabytes(0.002) if method == "binary_hash" else Budget.mean_size(3)
    search = SearchConfig(probes=4, probe_steps=4, **search)
    policy = PolicyConfig(widths=(8,), replay=16)
    config = small_config(method, search=search, policy=policy, budget=budget, pruned=PrunedConfig(width=12))
    run, segment = make_run(config), stream.segment(1)
    state = jax.eval_shape(lambda key: run.init(key, stream), jax.random.key(0))
    prepared = jax.eval_shape(run.prepare, state, segment)
    reported = run.method.bookkeeping(state, stream).training_bytes(state, segment, prepared.params)

    shapes = {leaf.shape for leaf in jax.tree.leaves(prepared.params) if leaf.shape}
    by_fit = _trained(_loops(jax.make_jaxpr(run.fit)(state, segment, prepared).jaxpr), shapes)
    # A storage without a table has a gradient as large as its parameters within each step.
    gradient = 0 if method not in ("binary_hash", "pep", "mixed_precision") else nbytes(prepared.params)
    expected = by_fit + gradient
    if run.search_before is not None:
        program = jax.make_jaxpr(run.search_before)(state, segment).jaxpr
        if method in ("pep", "mixed_precision"):
            carried, _ = max(_loops(program), key=lambda loop: _bytes(loop[0]))
            wide = {shape for shape, _ in carried if len(shape) > 1}
            copies = 3 if method == "pep" else 4  # parameters, moments, and for MPE the best parameters
            held = sum(_bytes([x]) for x in carried if x[0] in wide | shapes)
            held += held // copies
        else:
            held = max(_bytes(carried) + _trained(_loops(body), shapes) for carried, body in _loops(program))
        expected = max(expected, nbytes(state.params) + held)
    assert reported == pytest.approx(expected, rel=0.01, abs=64)
    assert reported >= factor * (by_fit + gradient)


def _pairs(stream, t):
    """The distinct pairs before the cut of a segment, i64[pairs, 2]."""
    rows = slice(0, stream.bounds[t].train)
    return np.unique(np.stack([stream.user[rows], stream.item[rows]], axis=1), axis=0)


def test_the_compact_graph_is_the_graph_and_has_the_bytes_that_are_counted(stream):
    for t, bounds in enumerate(stream.bounds):
        segment, known = stream.segment(t), stream.known(bounds.train)
        compact = compact_graph(segment.graph, stream.capacity.users, known)
        users = np.repeat(np.arange(known[0]), np.diff(compact["offsets"].astype(int)))
        np.testing.assert_array_equal(np.stack([users, compact["items"]], axis=1), _pairs(stream, t))
        # Fewer than 256 items are numbered by one byte.
        expected = 4 * (known[0] + 1) + len(_pairs(stream, t))
        assert stream.graph_bytes(t) == sum(array.nbytes for array in compact.values()) == expected
    assert compact_graph_bytes(10, (1, 256)) == 8 + 10 and compact_graph_bytes(10, (1, 257)) == 8 + 20
    assert compact_graph_bytes(10, (1, 2**16 + 1)) == 8 + 40


def _arrays(folder, segment):
    """Arrays of a checkpoint that serving reads, by name."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(folder.absolute() / "checkpoints" / f"segment-{segment:04d}" / "table")
    return {name: np.asarray(x) for name, x in tree.items() if name not in ("format", "key", "known")}


def _final_vectors(config, stream, state, t):
    """Vectors that LightGCN serves from, f32[known, width], and the columns of them that are in use."""
    segment = jax.tree.map(jnp.asarray, stream.segment(t))
    storage = {"pep": "pruned"}.get(config.method, config.method)
    config = dataclasses.replace(config, table=storage if storage in tables.STORAGES else config.table)
    context = segment_context(config, state, segment)
    storage, layout = context.storage, context.storage.layout(state.plan)
    params = to_buffer(storage, storage.load(state.params, layout))
    known = np.flatnonzero(np.asarray(context.active_mask()))
    model = LightGcn(storage, config.fit.layers)
    vectors = embed(model, params, layout, segment.graph, jnp.asarray(known, jnp.int32)).final
    used = 1 + np.flatnonzero(np.abs(np.asarray(vectors)).max(0) > 0).max()
    return np.asarray(vectors)[:, :used]


ACCOUNTS = [
    pytest.param("frequency", {}, marks=pytest.mark.slow),
    ("frequency", {"layers": 0}),
    pytest.param(
        "uniform", {"bias": "decayed", "charge": "serving", "budget": Budget.mean_size(12)}, marks=pytest.mark.slow
    ),
    ("uniform", {"table": "packed_int8", "charge": "serving", "budget": Budget.mean_size(8)}),
    pytest.param("uniform", {"table": "packed_bfloat16", "charge": "stored"}, marks=pytest.mark.slow),
    ("binary_hash", {"budget": Budget.megabytes(0.002)}),
    ("popularity-all", {}),
    ("ease", {}),
    pytest.param("pep", {"charge": "serving", "budget": Budget.mean_size(12)}, marks=pytest.mark.slow),
    pytest.param("mixed_precision", {"charge": "serving", "budget": Budget.mean_size(6)}, marks=pytest.mark.slow),
    pytest.param("shared_memory", {"charge": "serving", "budget": Budget.mean_size(16)}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "options"), ACCOUNTS)
def test_table_and_serving_are_the_bytes_of_what_is_stored_and_read(
    stream, tmp_path, quick_compilation, method, options
):
    options = dict(options)
    fit = FitConfig(layers=options.pop("layers", 2), batch=64, steps=2, eval_every=2, valid_users=16)
    search = SearchConfig(probes=1, probe_steps=2)
    given = {"budget": Budget.mean_size(4), "sizes": SizesConfig(maximum=24), "search": search, "fit": fit}
    config = small_config(method, **(given | options))
    run = make_run(config)
    state = jax.jit(lambda key: run.init(key, stream))(jax.random.key(0))
    exporter = run.method.bookkeeping(state, stream).exporter

    def look(line):
        t = line["segment"]
        arrays, (users, items) = _arrays(tmp_path, t), stream.known(stream.bounds[t].train)
        sizes = sum(array.nbytes for name, array in arrays.items() if name.startswith("metadata"))
        table = sum(array.nbytes for array in arrays.values()) - sizes
        assert line["bytes_table"] == table
        stored = table + sizes + (4 * items if config.bias == "decayed" else 0)
        assert line["bytes_at_rest"] == stored
        beside, graph = 0, 4 * (users + 1) + len(_pairs(stream, t))
        if method == "popularity-all":
            beside = 4 * items
        elif method == "ease":
            beside = graph
        elif config.fit.layers:
            vectors = _final_vectors(
                config, stream, checkpoint.restore(tmp_path / "checkpoints", t, state, exporter), t
            )
            assert line["bytes_graph"] == graph and line["bytes_final_vectors"] == vectors.nbytes
            beside = min(graph, vectors.nbytes)
        assert line["bytes_serving"] == stored + beside
        looked.append(t)
        if line["budget_bytes"]:
            paid = {"table": table, "stored": stored, "serving": stored + beside}[config.charge]
            assert records.paid_bytes(line, config.charge) == paid <= line["budget_bytes"]
            # A column of `binary_hash` takes as many numbers as it has rows.
            # One coordinate more may bring a second size, and with it a bit for each entity.
            least = 200 if method == "binary_hash" else 32 + (users + items) // 8
            assert paid > line["budget_bytes"] - least

    looked = []
    run_segments(config, stream, jax.random.key(0), folder=tmp_path, on_segment=look)
    assert looked == [0, 1, 2]


def test_a_budget_that_serving_uses_up_is_refused_with_the_figures(stream):
    for layers, refused in ((2, True), (0, False)):
        fit = FitConfig(layers=layers)
        config = small_config("uniform", charge="serving", budget=Budget.mean_size(2), fit=fit)
        if refused:
            users, _ = stream.known(stream.bounds[0].train)
            graph = 4 * (users + 1) + len(_pairs(stream, 0))
            with pytest.raises(ValueError, match=rf"graph or final vectors takes {graph} of \d+ bytes: charge=stored"):
                budget_totals(config, stream)
        else:
            totals = budget_totals(dataclasses.replace(config, charge="stored"), stream)
            assert budget_totals(config, stream) == totals
