"""The cases of `experiments.benchmark`: a function each that prepares a `Work`; streams are named as in `setting`."""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import official_ml1m
from experiments.benchmark.setting import Setting, Work, jitted, lowered, repeated, stream_of
from scall_jax import (
    Budget,
    Config,
    FitConfig,
    PolicyConfig,
    SearchConfig,
    make_run,
    policies,
    run_segments,
    sizes,
    tables,
)
from scall_jax.cli import commands, method_flags, protocol, stream_flags
from scall_jax.cli import flags as run_flags
from scall_jax.evaluation import KnownGraph
from scall_jax.methods.context import segment_context
from scall_jax.methods.scall.actions import sizes_by_action
from scall_jax.methods.scall.search import scall_planner
from scall_jax.policies import POLICIES, Transition
from scall_jax.recommenders import bpr, from_buffer
from scall_jax.recommenders.fit import make_fit
from scall_jax.recommenders.judge import evaluate_params
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.run import compilation, process_memory
from scall_jax.run.phases import CompiledPhases
from scall_jax.run.scan import sweep_program


def product(data: str, width: str) -> Work:
    """One sparse product of the graph with `width` columns."""
    return Setting(data).product(int(width))


def step(data: str, shape: str) -> Work:
    """A training step: LightGCN, 3 layers, batch 2048."""
    setting, steps = Setting(data, shape), 50
    pool = 4.0 * int(setting.prepared.sizes.sum())
    # Adam reads and writes the parameters and two moments.
    adam = repeated(lambda x: x + 1.0, jnp.ones(int(3 * pool / 4)), bytes=6 * pool)
    products = setting.products(3, 3)
    return setting.fit(
        FitConfig(steps=steps, eval_every=steps, valid_users=1),
        bytes=steps * (sum(n * x.bytes / x.per_call for x, n in products) + 7 * pool),
        flops=steps * sum(n * x.flops / x.per_call for x, n in products),
        per_call=steps,
        parts=(*products, (adam, 1)),
        note=setting.note,
    )


def fit(data: str, shape: str) -> Work:
    """500 training steps with an evaluation after every 50."""
    setting = Setting(data, shape)
    return dataclasses.replace(
        setting.fit(FitConfig(steps=500, eval_every=50, patience=500)), repeats=1, note=f"{setting.entities} entities"
    )


def sampling(data: str) -> Work:
    """Drawing the users, positives and negatives of a step."""
    setting = Setting(data)

    def draw(key, segment):
        known = KnownGraph(segment.graph, setting.users, segment.items)
        return bpr.sample(key, segment.positives, known, 2048)

    return jitted(draw, jax.random.key(0), setting.segment, bytes=2048 * 3 * 4.0)


def evaluation(data: str, shape: str) -> Work:
    """Full ranking for all test users of a segment, embeddings included."""
    setting = Setting(data, shape)
    segment = setting.segment
    queries, items = int(segment.test.count), int(segment.items)

    def rank(params, segment):
        model = LightGcn(setting.storage, FitConfig().layers)
        given = model, params, setting.layout, segment, [segment.test]
        return evaluate_params(*given, setting.prepared.item_bias, candidates=setting.config.candidates)

    exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    dense = jitted(exact, jnp.ones((queries, setting.columns)), jnp.ones((setting.columns, items)))
    products = setting.products(3)
    return jitted(
        rank,
        setting.prepared.params,
        segment,
        bytes=sum(n * x.bytes / x.per_call for x, n in products) + 4.0 * queries * items,
        flops=2.0 * queries * items * setting.columns + sum(n * x.flops / x.per_call for x, n in products),
        parts=(*products, (dense, 1)),
        note=f"{queries} users, {items} items",
    )


def _zipf(n: int) -> jax.Array:
    """i32[n], frequencies of entities, most of them 0 or tied."""
    return jnp.asarray(np.random.default_rng(0).zipf(1.6, n).clip(max=10**6) - 1, jnp.int32)


def allocation(count: str) -> Work:
    """Ranking, expected shares and exact sizes of many entities."""
    n = int(float(count))
    frequency, active_mask = _zipf(n), jnp.ones(n, bool)

    def both(frequency, recency, shape):
        order = sizes.order_by(frequency, recency, frequency, active_mask)
        by_rank = sizes.allocate(sizes.expected_shares("powerlaw", shape, n), 16 * n, 1, 128)
        return sizes.assign(by_rank, order)

    # A sort passes keys of 8 bytes log2(n) times; then shares are written, read some 10 times, and sizes written.
    moved = 16.0 * n * np.log2(n) + 4.0 * n * 14
    return jitted(both, frequency, jnp.arange(n, dtype=jnp.int32), jnp.float32(0.5), bytes=moved)


def state(count: str) -> Work:
    """The observation of a policy, of users and items, half each; 64 groups, Gini coefficients included."""
    half = int(float(count)) // 2
    config = policies.ObserveConfig(groups=64, gini=True)

    def observation(frequency, sized):
        side = policies.Side(frequency, sized, jnp.ones(half, bool), jnp.int32(half), jnp.zeros(128))
        return policies.observe(config, side, side._replace(frequency=frequency[::-1]), jnp.float32(1), 128)

    return jitted(observation, _zipf(half), jnp.full(half, 16, jnp.int32), bytes=2 * 8.0 * half * np.log2(half))


def sampler(count: str) -> Work:
    """Dirichlet and multinomial sizes of many entities."""
    n = int(float(count))
    shares = sizes.expected_shares("powerlaw", 0.5, n)
    draw = lambda key: sizes.sample(key, shares, 16 * n, 5.0, (1, 128))  # noqa: E731
    return jitted(draw, jax.random.key(0), bytes=4.0 * n * 4)


def action(data: str) -> Work:
    """Integer sizes of all entities of a segment from one action."""
    setting = Setting(data)

    def give(action, total):
        return sizes_by_action(setting.config, jax.random.key(0), setting.segment, total, action)

    n = setting.nodes
    return jitted(give, jnp.array([0.4, 0.3, 0.3]), setting.state.totals[-1], bytes=16.0 * n * np.log2(n) + 56.0 * n)


def resizing(data: str, rotate: str) -> Work:
    """Resizing a table; `rotate` is `rotated` or `plain`."""
    setting = Setting(data, "sized16")
    table, key = setting.table, jax.random.key(1)
    own, shared = setting.prepared.sizes[:-2], setting.prepared.sizes[-2:]
    other = table.layout(jnp.concatenate([jnp.flip(own), shared]))
    known = jnp.ones(setting.nodes, bool)
    pool = from_buffer(setting.storage, setting.prepared.params)

    def change(params):
        axes = None
        if rotate == "rotated":
            weight = setting.segment.total.astype(jnp.float32)
            axes = tables.principal_axes(table, params, setting.layout, weight)
        return tables.resize(table, key, params, setting.layout, other, known, axes=axes)

    flops = 4.0 * setting.nodes * setting.columns**2 if rotate == "rotated" else 0.0
    return jitted(change, pool, bytes=8.0 * len(pool), flops=flops)


def lookup(data: str, source: str) -> Work:
    """Vectors of 8192 random nodes, all columns: of a table, or of a pool in pages of 1, 4 or 8 floats (`pages4`)."""
    rows, width = 8192, 128
    if source in tables.TABLES:
        setting = Setting(data, "sized16", table=source)
        params = from_buffer(setting.storage, setting.prepared.params)
        read = lambda p, r: setting.table.lookup(p, setting.layout, r)  # noqa: E731
    else:
        setting = Setting(data, "sized16")
        page = int(source.removeprefix("pages"))
        pages = -(-setting.prepared.sizes[:-2] // page)
        first = jnp.cumsum(pages) - pages
        params = jnp.ones((int(pages.sum()), page))
        read = lambda p, r: _read_pages(p, first[r], pages[r], width // page)  # noqa: E731
    at = jax.random.randint(jax.random.key(0), (rows,), 0, setting.nodes)
    coordinates = float(setting.prepared.sizes[at].sum())
    return jitted(read, params, at, bytes=4.0 * (rows * width + coordinates))


def _read_pages(pool: jax.Array, first: jax.Array, count: jax.Array, most: int) -> jax.Array:
    """f32[R, most x page], the pages of R nodes: `count` i32[R] pages from page `first` i32[R] on, then zeros."""
    within = jnp.arange(most)[None, :]
    read = pool.at[first[:, None] + within].get(mode="fill", fill_value=0.0)
    return jnp.where((within < count[:, None])[:, :, None], read, 0.0).reshape(first.shape[0], -1)


def probes(data: str, at_once: str) -> Work:
    """Four probes of 20 steps, `at_once` of them mapped together."""
    search = SearchConfig(probes=4, probes_at_once=int(at_once), probe_steps=20, reference="last_fit")
    setting = Setting(data, "8")
    config = dataclasses.replace(setting.config, method="scall-random", search=search)
    planner = scall_planner("random", config)
    state = setting.state._replace(planner=planner.init(jax.random.key(0), setting.storage))

    def searched(state, segment):
        assert planner.search_before is not None
        return planner.search_before(segment_context(config, state, segment))

    return jitted(searched, state, setting.segment, per_call=4)


def sweep(data: str, count: str) -> Work:
    """Runs of 20 steps a segment in one program: `1` run, or `32`, which are 8 budgets by 4 seeds."""
    stream = stream_of(data)[0]
    config = Config("uniform", fit=FitConfig(steps=20, eval_every=20))
    pairs = [(size, seed) for size in (1, 2, 3, 4, 6, 8, 12, 16) for seed in range(4)] if count == "32" else [(8, 0)]
    keys, budgets = [jax.random.key(seed) for _, seed in pairs], [Budget.mean_size(size) for size, _ in pairs]
    note = f"{len(pairs)} runs of {len(stream)} segments"
    return lowered(*sweep_program(config, stream, keys, budgets), repeats=2, note=note)


def policy(name: str) -> Work:
    """Learning from one probe: 8 updates of batch 32 on an observation of 388 numbers."""
    learner = POLICIES[name](PolicyConfig(), 388, 3)
    state = learner.init(jax.random.key(0))
    observation = jnp.zeros((1, 388))
    new = Transition(observation, jnp.full((1, 3), 0.5), jnp.ones(1), observation)
    weights = sum(x.size for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))
    return jitted(lambda s: learner.update(s, jax.random.key(1), new), state, bytes=8 * 8.0 * weights)


def reading(data: str) -> Work:
    """Reading and cutting a stream, and building all segments' graphs one after the other."""

    def all_segments():
        stream = stream_of(data)[0]
        return sum(int(segment.graph.indptr[-1]) for segment in stream)

    return Work(all_segments, repeats=3)


def memory(data: str) -> Work:
    """Bytes that training allocates for each byte of the budget, by the compiler's account for five budgets."""
    stream, at, _ = stream_of(data)
    capacity, segment = stream.capacity, stream.segment(at)
    points = []
    for size in (4, 8, 16, 32, 64):
        budget_units = size * capacity.nodes
        storage = tables.STORAGES["packed"].build(budget_units, capacity.users, capacity.items, 128)
        params = jax.eval_shape(lambda s=storage: s.table.to_buffer(s.empty()))
        layout = jax.eval_shape(lambda s=storage: s.layout(s.plan()))
        train = make_fit(storage, FitConfig(valid_users=256))
        fit = compilation.jit(lambda p, k, *rest, f=train: f(k, p, *rest), donate=(0,))
        compiled = fit.lower(params, jax.random.key(0), layout, segment, jnp.zeros(capacity.items)).compile()
        found = compiled.memory_analysis()
        assert found is not None
        total = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        points.append((4 * budget_units, total - found.alias_size_in_bytes))
    budgets, totals = np.array(points, float).T
    slope, rest = np.polyfit(budgets, totals, 1)
    entities = stream.known(stream.bounds[at].train)
    note = f"{slope:.2f} bytes a byte of budget, {rest / 1e6:.0f} MB beside, {sum(entities)} entities"
    return Work(lambda: 0, repeats=1, note=note)


def scall(data: str, at_once: str, compiled: str) -> Work:
    """SCALL by the official settings: 8 segments with 12 probes of 50 steps each; compilation is part of the time.

    Args:
      data: file of segments, after `official:`.
      at_once: probes that are mapped together.
      compiled: folder of compiled programs, or `plain`, with which none are kept.

    Returns:
      Work.
    """
    flags = official_ml1m.Official(data=data.removeprefix("official:"))
    search = dataclasses.replace(flags.search, probe_steps=50)
    cell = protocol.by_protocol(dataclasses.replace(flags, search=search, protocol="published", bias="none"))
    cell = dataclasses.replace(cell, search=dataclasses.replace(cell.search, probes_at_once=int(at_once)))
    process_memory.limit_heap()
    note = "compiled"
    if compiled != "plain":
        note = "compiled before" if Path(compiled).exists() else "compiled and kept"
        jax.config.update("jax_compilation_cache_dir", compiled)

    def whole():
        stream = official_ml1m.read_segments(flags.data, 8, True, 0)
        config, key = method_flags.make_config(cell, "scall-sac"), jax.random.key(0)
        return len(run_segments(config, stream, key, on_compiled=jax.clear_caches))

    return Work(whole, repeats=1, note=note)


def searched(data: str, method: str, segments: str) -> Work:
    """Some segments of a stream with 12 probes of 50 steps each, and 200 steps of training, compiled programs."""
    stream = stream_flags.load_stream(
        run_flags.Main(
            data=data, cut=run_flags.Cut(new_entities=stream_flags.NEW_ENTITIES[data], max_segments=int(segments))
        )
    )
    config = Config(method, fit=FitConfig(steps=200))
    start = time.perf_counter()
    run = make_run(config)
    state = run.init(jax.random.key(0), stream)
    segment = jax.tree.map(jnp.asarray, stream.segment(0))
    phases = CompiledPhases(run, state, segment)
    seconds = time.perf_counter() - start

    def whole():
        state = run.init(jax.random.key(0), stream)
        for segment in stream:
            state, record = phases.run_segment(state, jax.device_put(segment))
        return record

    return Work(whole, repeats=1, compile_seconds=seconds, note=f"{segments} segments")


def default_run(out: str) -> Work:
    """All of `make run`."""
    process_memory.limit_heap()
    return Work(functools.partial(commands.run_job, run_flags.Main(out=Path(out) / "demo", overwrite=True)), repeats=1)


CASES = {
    "product": product,
    "step": step,
    "fit": fit,
    "sampling": sampling,
    "evaluation": evaluation,
    "action": action,
    "sizes": allocation,
    "state": state,
    "sampler": sampler,
    "resize": resizing,
    "lookup": lookup,
    "probes": probes,
    "sweep": sweep,
    "policy": policy,
    "reading": reading,
    "memory": memory,
    "scall": scall,
    "searched": searched,
    "run": default_run,
}
"""The cases by name."""


def cases(data: tuple[str, ...], out: str) -> list[tuple[str, tuple[str, ...]]]:
    """All cases.

    Args:
      data: streams besides the synthetic one.
      out: folder of the results.

    Returns:
      Name and arguments of each case.
    """
    ordinary = ["synthetic", *(name for name in data if not name.startswith("official:"))]
    official = [name for name in data if name.startswith("official:")]
    found = []
    for name in ordinary:
        found += [("product", (name, width)) for width in ("16", "32", "64", "128")]
        found += [("step", (name, shape)) for shape in ("16", "64", "128", "sized16")]
        found += [("sampling", (name,)), ("action", (name,)), ("memory", (name,))]
        found += [("evaluation", (name, shape)) for shape in ("16", "128", "sized16")]
        found += [("resize", (name, rotate)) for rotate in ("plain", "rotated")]
        found += [("lookup", (name, source)) for source in ("packed", "masked", "pages1", "pages4", "pages8")]
        found += [("probes", (name, at_once)) for at_once in ("1", "4")]
        if name != "synthetic":
            found += [("reading", (name,)), ("sweep", (name, "1")), ("sweep", (name, "32"))]
    found += [("sizes", (f"1e{k}",)) for k in range(3, 8)]
    found += [("sampler", (f"1e{k}",)) for k in range(3, 7)]
    found += [("state", ("1e5",))]
    found += [("policy", (name,)) for name in POLICIES]
    found += [("run", (out,))]
    for name in official:
        if "@" in name:
            found += [("step", (name, shape)) for shape in ("4", "16", "middle16", "sized16")]
            found += [("evaluation", (name, shape)) for shape in ("4", "16", "middle16", "sized16")]
            found += [("sampling", (name,)), ("fit", (name, "4")), ("memory", (name,))]
        else:
            found += [("reading", (name,))]
            # The second time, the programs that the first one compiled are read.
            folders = ("plain", f"{out}/compiled", f"{out}/compiled")
            found += [("scall", (name, "1", folder)) for folder in folders] + [("scall", (name, "4", "plain"))]
    return found
