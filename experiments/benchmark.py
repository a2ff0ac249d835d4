"""Speed and memory of each part, beside what the machine can do at best.

    python -m experiments.benchmark                            # all cases
    python -m experiments.benchmark --only step sizes --data yelp.parquet ml1m.parquet
    python -m experiments.benchmark --compare old.json         # ratios to an earlier result

One process per case, warmed up; medians of repeated runs with their quartiles, compilation apart, peak resident memory
beyond the imports' own. Beside each the bytes and operations that it must move, and the time that these would take at
the copy bandwidth and the matrix rate measured in the same process: `ratio` is the measured time by that bound. Expect
the training step within a few times the bound, sizes linear in n. Writes benchmark.json and benchmark.md. For one
thread: `taskset -c 0 python -m ...`.
"""

import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import run
from scall_jax import Budget, Config, FitConfig, make_run, records, report, sizes, streams, tables
from scall_jax.actions import sizes_by_action
from scall_jax.config import SearchConfig, SizesConfig
from scall_jax.policies import POLICIES, PolicyConfig, Transition
from scall_jax.recommenders import bpr
from scall_jax.recommenders.fit import make_fit, ranked
from scall_jax.search import make_search
from scall_jax.tables.resize import init as init_params


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Flags."""

    only: tuple[str, ...] = ()
    """Cases whose name starts so; all without."""
    data: tuple[str, ...] = ("online-retail",)
    """Streams whose largest segment is measured: names or paths."""
    repeats: int = 7
    """Measurements of each case."""
    mean_size: float = 16.0
    """Budget of the tables."""
    compare: Path | None = None
    """benchmark.json of an earlier run."""
    out: Path = Path("runs/benchmark")
    """Folder of the results."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing to measure."""

    call: Callable[[], object]
    bytes: float = 0.0  # that must be read or written
    flops: float = 0.0
    per_call: int = 1  # of what is counted, in one call
    compile_seconds: float = 0.0


def _jitted(function, *arguments, **counts) -> Work:
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return Work(lambda: compiled(*arguments), compile_seconds=seconds, **counts)


class Setting:
    """The last segment of a stream with a table of a mean size, uniform sizes."""

    def __init__(self, flags: Benchmark, data: str, maximum: int = 128, table: str = "packed"):
        if data.startswith("synthetic"):
            rows = streams.synthetic(jax.random.key(0), users=12_000, items=8_000, interactions=800_000)
            stream = streams.cut(rows, segments=2)
        else:
            stream = run.load_stream(run.Main(data=data))
        self.stream = stream
        self.config = Config(
            method="uniform", budget=Budget.mean_size(flags.mean_size), sizes=SizesConfig(maximum=maximum), table=table
        )
        self.run = make_run(self.config)
        self.state = self.run.init(jax.random.key(0), stream)
        self.segment = jax.device_put(stream.segment(len(stream) - 1))
        capacity = stream.capacity
        self.storage = tables.STORAGES[table].build(self.state.held.units, capacity.users, capacity.items, maximum)
        self.table = self.storage.blocks
        self.prepared = jax.jit(self.run.prepare)(self.state, self.segment)
        self.layout = self.table.layout(self.prepared.sizes)
        self.nonzeros = int(self.segment.graph.indptr[-1])
        self.nodes = self.table.nodes
        blocks = int(self.layout.blocks)
        self.columns = blocks * self.table.columns

    def fit_work(self, steps: int) -> Work:
        """`steps` training steps and no evaluation."""
        fit = FitConfig(steps=steps, eval_every=steps, valid_users=1)
        function = make_fit(self.storage, fit)
        product = self.nonzeros * (8 + 4) + 2 * 4 * self.nodes * self.columns
        flops = 2 * self.nonzeros * self.columns
        pool = len(self.state.params)
        return _jitted(
            function,
            jax.random.key(0),
            self.prepared.params,
            self.layout,
            self.segment,
            self.prepared.item_bias,
            # three products forward and three backward; Adam reads and writes parameters and two moments
            bytes=steps * (6 * product + 4 * 7 * pool),
            flops=steps * 6 * flops,
            per_call=steps,
        )


def step(flags, data):
    """A LightGCN training step, 3 layers, batch 2048."""
    return Setting(flags, data).fit_work(20)


def sampling(flags, data):
    """Users, positives and negatives of a step."""
    del flags
    setting = Setting(Benchmark(), data)
    segment, users = setting.segment, setting.stream.capacity.users

    def draw(key, segment):
        return bpr.sample(key, segment.positives, segment.graph, users, segment.items, 2048)

    return _jitted(draw, jax.random.key(0), segment, bytes=2048 * 3 * 4.0)


def evaluation(flags, data):
    """Full ranking for all test users of a segment."""
    setting = Setting(flags, data)
    segment = setting.segment
    queries, items = int(segment.test.count), int(segment.items)

    def rank(params, segment):
        return ranked(
            setting.storage, FitConfig(), params, setting.layout, segment, segment.test, setting.prepared.item_bias
        )

    width = setting.columns
    product = setting.nonzeros * 12 + 8 * setting.nodes * width
    return _jitted(
        rank,
        setting.prepared.params,
        segment,
        bytes=3 * product + 4.0 * queries * items,
        flops=2.0 * queries * items * width + 6.0 * setting.nonzeros * width,
    )


def allocation(flags, n):
    """Ranking, expected shares and exact sizes of n entities."""
    del flags
    n = int(float(n))
    rng = np.random.default_rng(0)
    frequency = jnp.asarray(rng.zipf(1.6, n).clip(max=10**6), jnp.int32)

    def both(frequency, recency):
        order = sizes.order_by(frequency, recency, frequency, jnp.ones(n, bool))
        by_rank = sizes.allocate(sizes.expected_shares("powerlaw", 0.5, n), 16 * n, 1, 128)
        return sizes.assign(by_rank, order)

    # sorting reads and writes five keys and an index log2(n) times at worst; the bisection reads the shares 31 times
    return _jitted(both, frequency, jnp.arange(n, dtype=jnp.int32), bytes=4.0 * n * (31 + 8 + 12))


def sampler(flags, n):
    """Dirichlet and multinomial sizes of n entities."""
    del flags
    n = int(float(n))
    shares = sizes.expected_shares("powerlaw", 0.5, n)
    draw = lambda key: sizes.sample(key, shares, 16 * n, 5.0, 1, 128)  # noqa: E731
    return _jitted(draw, jax.random.key(0), bytes=4.0 * n * 4)


def resizing(flags, data, rotate):
    """From one set of sizes to another, with or without rotation."""
    setting = Setting(flags, data)
    key, pool = jax.random.key(1), len(setting.state.params)
    other = jnp.flip(setting.prepared.sizes[:-2])
    other = setting.table.layout(jnp.concatenate([other, setting.prepared.sizes[-2:]]))
    known = jnp.ones(setting.nodes, bool)

    def change(params):
        axes = None
        if rotate == "rotated":
            weight = setting.segment.total.astype(jnp.float32)
            axes = tables.principal_axes(setting.table, params, setting.layout, weight)
        return tables.resize(setting.table, key, params, setting.layout, other, known, axes=axes)

    flops = 4.0 * setting.nodes * setting.columns**2 if rotate == "rotated" else 0.0
    return _jitted(change, setting.prepared.params, bytes=8.0 * pool, flops=flops)


def lookup(flags, data, table):
    """Vectors of 8192 random nodes, all columns."""
    setting = Setting(flags, data, table=table)
    rows = jax.random.randint(jax.random.key(0), (8192,), 0, setting.nodes)
    params = init_params(setting.table, jax.random.key(0), setting.layout, 0.1)
    moved = 8192 * 4.0 * (setting.table.width + flags.mean_size)
    return _jitted(lambda p, r: setting.table.lookup(p, setting.layout, r), params, rows, bytes=moved)


def probes(flags, data, at_once):
    """Probes of 20 steps: 4 under vmap or one after the other."""
    setting = Setting(dataclasses.replace(flags, mean_size=8), data)
    at_once = int(at_once)
    search = SearchConfig(probes=4, probes_at_once=at_once, probe_steps=20)
    config = dataclasses.replace(setting.config, method="scall-random", search=search)
    made = make_search("random", config)
    state = setting.state._replace(chooser=made.init(jax.random.key(0), setting.storage))
    return _jitted(made.search, state, setting.segment, per_call=4)


def policy(flags, name):
    """Learning from one probe, 8 updates of batch 32 on an observation of 388 numbers."""
    del flags
    made = POLICIES[name](PolicyConfig(), 388, 3)
    state = made.init(jax.random.key(0))
    seen = jnp.zeros((1, 388))
    new = Transition(seen, jnp.full((1, 3), 0.5), jnp.ones(1), seen)
    weights = sum(x.size for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))
    return _jitted(lambda s: made.update(s, jax.random.key(1), new), state, bytes=8 * 8.0 * weights)


def action(flags, data):
    """One action to integer sizes of all entities of a segment."""
    setting = Setting(flags, data)

    def give(action, total):
        return sizes_by_action(setting.config, jax.random.key(0), setting.segment, total, action)

    return _jitted(give, jnp.array([0.4, 0.3, 0.3]), setting.state.totals[-1], bytes=4.0 * setting.nodes * 51)


def reading(flags, data):
    """Reading and cutting a stream, all segments' graphs included."""
    del flags

    def all_segments():
        stream = run.load_stream(run.Main(data=data))
        return [stream.segment(t) for t in range(len(stream))]

    return Work(all_segments)


CASES = {
    "step": step,
    "sampling": sampling,
    "evaluation": evaluation,
    "action": action,
    "sizes": allocation,
    "sampler": sampler,
    "resize": resizing,
    "lookup": lookup,
    "probes": probes,
    "policy": policy,
    "reading": reading,
}


def cases(flags: Benchmark) -> list[tuple[str, tuple[str, ...]]]:
    """Names and arguments of all cases asked for."""
    found = []
    for data in ("synthetic", *flags.data):
        found += [(name, (data,)) for name in ("step", "sampling", "evaluation", "action")]
        found += [("resize", (data, rotate)) for rotate in ("plain", "rotated")]
        found += [("lookup", (data, table)) for table in ("packed", "masked")]
    found += [("sizes", (f"1e{k}",)) for k in range(3, 8)]
    found += [("sampler", (f"1e{k}",)) for k in range(3, 7)]
    found += [("probes", ("online-retail", k)) for k in ("1", "4")]
    found += [("policy", (name,)) for name in POLICIES]
    found += [("reading", (data,)) for data in flags.data]
    return [(name, given) for name, given in found if not flags.only or name.startswith(flags.only)]


def limits() -> dict:
    """Copy bandwidth in bytes/s (read and written) and matrix rate in flop/s of this process, now."""
    big = jnp.ones(2**26 // 4)
    square = jnp.ones((1536, 1536))
    copy, multiply = jax.jit(lambda x: x + 1.0), jax.jit(lambda x: x @ x)
    seconds = [_median(lambda f=f, x=x: f(x), 7)[0] for f, x in ((copy, big), (multiply, square))]
    return {"copy_bytes_per_second": 2 * 2**26 / seconds[0], "flops_per_second": 2 * 1536**3 / seconds[1]}


def _median(call, repeats) -> tuple[float, float, float]:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return tuple(float(x) for x in np.quantile(seconds, (0.5, 0.25, 0.75)))


def measure(flags: Benchmark, name: str, arguments: tuple[str, ...]) -> dict:
    """Measure one case in this process."""
    jnp.zeros(1).block_until_ready()
    before = _peak()
    work = CASES[name](flags, *arguments)
    median, low, high = _median(work.call, flags.repeats)
    used = _peak() - before
    best = limits()
    bound = max(work.bytes / best["copy_bytes_per_second"], work.flops / best["flops_per_second"])
    return {
        "case": " ".join((name, *(Path(x).stem if "/" in x else x for x in arguments))),
        "seconds": median / work.per_call,
        "quartiles": [low / work.per_call, high / work.per_call],
        "compile_seconds": work.compile_seconds,
        "bytes": work.bytes / work.per_call,
        "flops": work.flops / work.per_call,
        "bound_seconds": bound / work.per_call or None,
        "ratio": median / bound if bound else None,
        "peak_bytes": used,
    } | best


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(flags: Benchmark) -> list[dict]:
    """Measure all cases, each in a process of its own."""
    chosen = cases(flags)
    if not chosen:
        raise ValueError(f"--only {' '.join(flags.only)}: no case starts so: choose from {', '.join(CASES)}")
    old = {row["case"]: row for row in json.loads(flags.compare.read_text())["cases"]} if flags.compare else {}
    flags.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, arguments in chosen:
        options = json.dumps([name, arguments, flags.repeats, flags.mean_size])
        child = [sys.executable, "-m", "experiments.benchmark", "--one", options]
        done = subprocess.run(child, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} {' '.join(arguments)}: failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{rows[-1]['case']}: {rows[-1]['seconds'] * 1e3:.3g} ms", flush=True)
    result = {"processor": processor(), "cpus": len(os.sched_getaffinity(0)), "jax": jax.__version__, "cases": rows}
    records.write_atomically(flags.out / "benchmark.json", json.dumps(result, indent=1) + "\n")
    text = _table(rows, old)
    head = f"{result['processor']}, {result['cpus']} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}"
    records.write_atomically(flags.out / "benchmark.md", f"{head}\n\n{text}\n")
    print(f"\n{head}\n\n{text}")
    return rows


def processor() -> str:
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    names = [x for x in path.read_text().splitlines() if x.startswith("model name")] if path.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def _table(rows, old):
    header = ["case", "ms", "quartiles", "bound ms", "ratio", "compile s", "peak MB", *(["by old"] if old else [])]
    body = []
    for row in rows:
        low, high = (f"{1e3 * x:.3g}" for x in row["quartiles"])
        bound = "-" if row["bound_seconds"] is None else f"{1e3 * row['bound_seconds']:.3g}"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.1f}"
        cells = [row["case"], f"{1e3 * row['seconds']:.3g}", f"{low}..{high}", bound, ratio]
        cells += [f"{row['compile_seconds']:.1f}", f"{row['peak_bytes'] / 1e6:.0f}"]
        if old:
            known = old.get(row["case"])
            cells.append(f"{row['seconds'] / known['seconds']:.2f}" if known else "-")
        body.append(cells)
    return report.markdown(header, body)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        given = json.loads(sys.argv[2])
        print(json.dumps(measure(Benchmark(repeats=given[2], mean_size=given[3]), given[0], tuple(given[1]))))
    else:
        run.cli(Benchmark, main, __doc__)
