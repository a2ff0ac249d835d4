"""What `experiments.benchmark` measures: a function per case that returns the `Work`; see `benchmark_setting`."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import official_ml1m
from experiments.benchmark.setting import Setting, Work, jitted, lowered, repeated, stream_of
from scall_jax import Budget, Config, FitConfig, policies, run_segments, sizes, tables
from scall_jax.cli import commands
from scall_jax.cli import flags as run_flags
from scall_jax.config import SearchConfig
from scall_jax.methods.context import segment_context
from scall_jax.methods.scall.actions import sizes_by_action
from scall_jax.methods.scall.search import scall_planner
from scall_jax.policies import POLICIES, PolicyConfig, Transition
from scall_jax.recommenders import bpr, from_buffer
from scall_jax.recommenders.fit import evaluate_params, make_fit
from scall_jax.run import compilation, process_memory
from scall_jax.run.scan import sweep_program


def product(data, width):
    """One sparse product."""
    return Setting(data).product(int(width))


def step(data, shape):
    """A training step: LightGCN, 3 layers, batch 2048."""
    setting, steps = Setting(data, shape), 50
    pool = 4.0 * int(setting.prepared.sizes.sum())
    # Adam reads and writes parameters and two moments
    adam = repeated(lambda x: x + 1.0, jnp.ones(int(3 * pool / 4)), bytes=6 * pool)
    products = setting.products(3, 3)
    return setting.fit(
        FitConfig(steps=steps, eval_every=steps, valid_users=1),
        bytes=steps * (sum(n * x.bytes / x.per_call for x, n in products) + 7 * pool),
        flops=steps * sum(n * x.flops / x.per_call for x, n in products),
        per_call=steps,
        parts=(*products, (adam, 1)),
        said=setting.said,
    )


def fit(data, shape):
    """500 training steps with an evaluation after every 50."""
    setting = Setting(data, shape)
    return dataclasses.replace(
        setting.fit(FitConfig(steps=500, eval_every=50, patience=500)), repeats=1, said=f"{setting.entities} entities"
    )


def sampling(data):
    """Users, positives and negatives of a step."""
    setting = Setting(data)

    def draw(key, segment):
        return bpr.sample(key, segment.positives, segment.graph, setting.users, segment.items, 2048)

    return jitted(draw, jax.random.key(0), setting.segment, bytes=2048 * 3 * 4.0)


def evaluation(data, shape):
    """Full ranking for all test users of a segment, embeddings included."""
    setting = Setting(data, shape)
    segment = setting.segment
    queries, items = int(segment.test.count), int(segment.items)
    options = {"candidates": setting.config.candidates}

    def rank(params, segment):
        given = setting.storage, FitConfig(), params, setting.layout, segment, [segment.test]
        return evaluate_params(*given, setting.prepared.item_bias, **options)

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
        said=f"{queries} users, {items} items",
    )


def _zipf(n):
    """Frequencies of n entities, most of them 0 or tied."""
    return jnp.asarray(np.random.default_rng(0).zipf(1.6, n).clip(max=10**6) - 1, jnp.int32)


def allocation(n):
    """Ranking, expected shares and exact sizes of n entities."""
    n = int(float(n))
    frequency, active_mask = _zipf(n), jnp.ones(n, bool)

    def both(frequency, recency, shape):
        order = sizes.order_by(frequency, recency, frequency, active_mask)
        by_rank = sizes.allocate(sizes.expected_shares("powerlaw", shape, n), 16 * n, 1, 128)
        return sizes.assign(by_rank, order)

    # keys of 8 bytes pass log2(n) times through a sort; shares are made, read some 10 times and sizes given out
    moved = 16.0 * n * np.log2(n) + 4.0 * n * 14
    return jitted(both, frequency, jnp.arange(n, dtype=jnp.int32), jnp.float32(0.5), bytes=moved)


def state(n):
    """What a policy sees of n users and items, half each; 64 groups, Gini coefficients included."""
    half = int(float(n)) // 2
    config = policies.ObserveConfig(groups=64, gini=True)

    def seen(frequency, sized):
        side = policies.Side(frequency, sized, jnp.ones(half, bool), jnp.int32(half), jnp.zeros(128))
        return policies.observe(config, side, side._replace(frequency=frequency[::-1]), jnp.float32(1), 128)

    return jitted(seen, _zipf(half), jnp.full(half, 16, jnp.int32), bytes=2 * 8.0 * half * np.log2(half))


def sampler(n):
    """Dirichlet and multinomial sizes of n entities."""
    n = int(float(n))
    shares = sizes.expected_shares("powerlaw", 0.5, n)
    draw = lambda key: sizes.sample(key, shares, 16 * n, 5.0, 1, 128)  # noqa: E731
    return jitted(draw, jax.random.key(0), bytes=4.0 * n * 4)


def action(data):
    """One action to integer sizes of all entities of a segment."""
    setting = Setting(data)

    def give(action, total):
        return sizes_by_action(setting.config, jax.random.key(0), setting.segment, total, action)

    n = setting.nodes
    return jitted(give, jnp.array([0.4, 0.3, 0.3]), setting.state.totals[-1], bytes=16.0 * n * np.log2(n) + 56.0 * n)


def resizing(data, rotate):
    """From one set of sizes to another, with or without rotation."""
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


def lookup(data, kind):
    """Vectors of 8192 random nodes, all columns: of a table, or of a pool in pages of 1, 4 or 8 floats."""
    rows, width = 8192, 128
    if kind in tables.TABLES:
        setting = Setting(data, "sized16", table=kind)
        params = from_buffer(setting.storage, setting.prepared.params)
        read = lambda p, r: setting.table.lookup(p, setting.layout, r)  # noqa: E731
    else:
        setting = Setting(data, "sized16")
        page = int(kind.removeprefix("pages"))
        pages = -(-setting.prepared.sizes[:-2] // page)
        first = jnp.cumsum(pages) - pages
        params = jnp.ones((int(pages.sum()), page))
        read = lambda p, r: _read_pages(p, first[r], pages[r], width // page)  # noqa: E731
    at = jax.random.randint(jax.random.key(0), (rows,), 0, setting.nodes)
    held = float(setting.prepared.sizes[at].sum())
    return jitted(read, params, at, bytes=4.0 * (rows * width + held))


def _read_pages(pool, first, count, most):
    within = jnp.arange(most)[None, :]
    read = pool.at[first[:, None] + within].get(mode="fill", fill_value=0.0)
    return jnp.where((within < count[:, None])[:, :, None], read, 0.0).reshape(first.shape[0], -1)


def probes(data, at_once):
    """Probes of 20 steps, 4 of them: at once or one after the other."""
    search = SearchConfig(probes=4, probes_at_once=int(at_once), probe_steps=20, reference="last_fit")
    setting = Setting(data, "8")
    config = dataclasses.replace(setting.config, method="scall-random", search=search)
    made = scall_planner("random", config)
    state = setting.state._replace(planner=made.init(jax.random.key(0), setting.storage))

    def search(state, segment):
        return made.search_before(segment_context(config, state, segment))

    return jitted(search, state, setting.segment, per_call=4)


def sweep(data, count):
    """Runs of 20 steps a segment in one program: `1`, or `32`: 8 budgets by 4 seeds."""
    stream = stream_of(data)[0]
    config = Config("uniform", fit=FitConfig(steps=20, eval_every=20))
    pairs = [(size, seed) for size in (1, 2, 3, 4, 6, 8, 12, 16) for seed in range(4)] if count == "32" else [(8, 0)]
    keys, budgets = [jax.random.key(seed) for _, seed in pairs], [Budget.mean_size(size) for size, _ in pairs]
    said = f"{len(pairs)} runs of {len(stream)} segments"
    return lowered(*sweep_program(config, stream, keys, budgets), repeats=2, said=said)


def policy(name):
    """Learning from one probe: 8 updates of batch 32 on an observation of 388 numbers."""
    made = POLICIES[name](PolicyConfig(), 388, 3)
    begun = made.init(jax.random.key(0))
    seen = jnp.zeros((1, 388))
    new = Transition(seen, jnp.full((1, 3), 0.5), jnp.ones(1), seen)
    weights = sum(x.size for x in jax.tree.leaves(begun) if jnp.issubdtype(x.dtype, jnp.floating))
    return jitted(lambda s: made.update(s, jax.random.key(1), new), begun, bytes=8 * 8.0 * weights)


def reading(data):
    """Reading and cutting a stream, all segments' graphs built one after the other."""

    def all_segments():
        stream = stream_of(data)[0]
        return sum(int(segment.graph.indptr[-1]) for segment in stream)

    return Work(all_segments, repeats=3)


def memory(data):
    """Bytes that training holds for each byte of the budget, compiled for five budgets."""
    stream, at, _ = stream_of(data)
    capacity, segment = stream.capacity, stream.segment(at)
    held = []
    for size in (4, 8, 16, 32, 64):
        budget_units = size * capacity.nodes
        storage = tables.STORAGES["packed"].build(budget_units, capacity.users, capacity.items, 128)
        params = jax.eval_shape(lambda s=storage: s.table.to_buffer(s.empty()))
        layout = jax.eval_shape(lambda s=storage: s.layout(s.plan()))
        train = make_fit(storage, FitConfig(valid_users=256))
        fit = compilation.jit(lambda p, k, *rest, f=train: f(k, p, *rest), donate=(0,))
        compiled = fit.lower(params, jax.random.key(0), layout, segment, jnp.zeros(capacity.items)).compile()
        found = compiled.memory_analysis()
        total = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        held.append((4 * budget_units, total - found.alias_size_in_bytes))
    budgets, totals = np.array(held, float).T
    slope, rest = np.polyfit(budgets, totals, 1)
    entities = stream.known(stream.bounds[at].train)
    said = f"{slope:.2f} bytes a byte of budget, {rest / 1e6:.0f} MB beside, {sum(entities)} entities"
    return Work(lambda: 0, repeats=1, said=said)


def scall(data, at_once, compiled):
    """SCALL by the official settings: 8 segments, 12 probes of 50 steps each.

    `compiled`: a folder for compiled programs, or `plain`, which keeps none; compiling is part of the time.
    """
    flags = official_ml1m.Official(data=data.removeprefix("official:"))
    search = dataclasses.replace(flags.search, probe_steps=50)
    cell = run_flags.by_protocol(dataclasses.replace(flags, search=search, protocol="published", bias="none"))
    cell = dataclasses.replace(cell, search=dataclasses.replace(cell.search, probes_at_once=int(at_once)))
    process_memory.limit_heap()
    kept = compiled != "plain"
    said = "compiled before" if kept and Path(compiled).exists() else "compiled and kept" if kept else "compiled"
    if kept:
        jax.config.update("jax_compilation_cache_dir", compiled)

    def whole():
        stream = official_ml1m.read_segments(flags.data, 8, True, 0)
        config, key = run_flags.make_config(cell, "scall-sac"), jax.random.key(0)
        return len(run_segments(config, stream, key, on_compiled=jax.clear_caches))

    return Work(whole, repeats=1, said=said)


def default_run(out):
    """The whole of `make run`."""
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
    "run": default_run,
}


def cases(data: tuple[str, ...], out: str) -> list[tuple[str, tuple[str, ...]]]:
    """Names and arguments of all cases for some streams."""
    ordinary = ["synthetic", *(name for name in data if not name.startswith("official:"))]
    official = [name for name in data if name.startswith("official:")]
    found = []
    for name in ordinary:
        found += [("product", (name, width)) for width in ("16", "32", "64", "128")]
        found += [("step", (name, shape)) for shape in ("16", "64", "128", "sized16")]
        found += [("sampling", (name,)), ("action", (name,)), ("memory", (name,))]
        found += [("evaluation", (name, shape)) for shape in ("16", "128", "sized16")]
        found += [("resize", (name, rotate)) for rotate in ("plain", "rotated")]
        found += [("lookup", (name, kind)) for kind in ("packed", "masked", "pages1", "pages4", "pages8")]
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
            # the second time, the first one's programs are there
            folders = ("plain", f"{out}/compiled", f"{out}/compiled")
            found += [("scall", (name, "1", folder)) for folder in folders] + [("scall", (name, "4", "plain"))]
    return found
