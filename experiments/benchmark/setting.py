"""What the cases of `experiments.benchmark` are made of: a `Work` to measure, and the `Setting` that most of them need.

Streams are named as `experiments.run` names them, or `synthetic` (20,000 nodes, 1 million graph entries), or
`official:PATH@t`: segment t of the published protocol, for the file of `experiments.official_ml1m` or, for another, cut
at 10,000 new entities. Without @t it is the last segment.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import official_ml1m
from scall_jax import Budget, Config, FitConfig, make_run, streams, tables
from scall_jax.cli import flags as run_flags
from scall_jax.config import SizesConfig
from scall_jax.recommenders import propagate, with_chunks
from scall_jax.recommenders.fit import make_fit
from scall_jax.recommenders.lightgcn import rows_from
from scall_jax.run import compilation
from scall_jax.tables.column_blocks import columns_of, sided_counts


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing to measure."""

    call: Callable[..., object]
    arguments: tuple = ()
    bytes: float = 0.0  # that must be read or written
    flops: float = 0.0
    per_call: int = 1  # of what is counted, in one call
    compile_seconds: float = 0.0
    repeats: int | None = None  # measurements, where fewer than asked for are enough
    parts: tuple = ()  # (Work, times): what the work is made of at the least, measured too
    said: str = ""  # what there is to say beside the time


def lowered(program, arguments: tuple, **counts) -> Work:
    """Work of a jitted function."""
    start = time.perf_counter()
    made = program.lower(*arguments).compile()
    return Work(made, arguments, compile_seconds=time.perf_counter() - start, **counts)


def jitted(function, *arguments, **counts) -> Work:
    """Work of a function, compiled."""
    return lowered(compilation.jit(function), arguments, **counts)


def repeated(function, *arguments, bytes: float = 0.0, flops: float = 0.0) -> Work:
    """Work of a function whose result becomes its last argument, many times in one call: to call costs, too."""
    times = 10 if jax.default_backend() == "cpu" else 100

    def all_times(*given):
        return jax.lax.fori_loop(0, times, lambda _, last: function(*given[:-1], last), given[-1])

    return jitted(all_times, *arguments, bytes=times * bytes, flops=times * flops, per_call=times)


def stream_of(data: str) -> tuple[streams.Stream, int, bool]:
    """Stream, segment and whether by the published protocol."""
    official = data.startswith("official:")
    path, _, at = data.removeprefix("official:").partition("@")
    if data == "synthetic":
        stream = streams.cut(_random_rows(12_000, 8_000, 560_000), segments=2)
    elif official and Path(path).name == "official_ml1m_segments.parquet":
        stream = official_ml1m.read_segments(path, 10, True, 0)
    elif official:
        stream = run_flags.load_stream(
            run_flags.Main(data=path, cut=run_flags.Cut(published=True, new_entities=10_000))
        )
    else:
        stream = run_flags.load_stream(run_flags.Main(data=path))
    return stream, int(at) if at else len(stream) - 1, official


def _random_rows(users: int, items: int, count: int) -> streams.Interactions:
    """Rows of users and items drawn by themselves, both with activities that fall by rank; what costs depend on."""
    rng = np.random.default_rng(0)
    drawn = []
    for n in (users, items):
        activity = np.arange(1, n + 1) ** -0.5
        drawn.append(rng.choice(n, count, p=activity / activity.sum()))
    return streams.from_arrays(*drawn, np.arange(count), "synthetic")


class Setting:
    """A segment of a stream with a table.

    `shape` says how: `16` uniform sizes 16; `middle16` the middle of the published actions at mean size 16; `sized16`
    the default action of `fixed`, skewed.
    """

    def __init__(self, data: str, shape: str = "16", maximum: int = 128, table: str = "packed", method=None):
        self.stream, at, official = stream_of(data)
        name = shape.rstrip("0123456789")
        options = {"": {}, "sized": {}, "middle": {"rho": 0.5, "user_shape": 15.05, "item_shape": 15.05}}[name]
        self.config = Config(
            method=method or ("fixed" if name else "uniform"),
            budget=Budget.mean_size(float(shape.removeprefix(name))),
            sizes=SizesConfig(maximum=maximum, **options),
            table=table,
            candidates="segment" if official else "all",
        )
        run_of = make_run(self.config)
        self.state = run_of.init(jax.random.key(0), self.stream)
        self.segment = jax.device_put(self.stream.segment(at))
        self.graph = jax.jit(with_chunks)(self.segment.graph)
        capacity = self.stream.capacity
        self.users, self.items = capacity.users, capacity.items
        self.storage = tables.storage_factory(self.config).build(
            self.state.held.budget_units, self.users, self.items, maximum
        )
        self.table = self.storage.table
        self.prepared = jitted(run_of.prepare, self.state, self.segment).call(self.state, self.segment)
        self.layout = self.storage.layout(self.prepared.plan)
        self.nonzeros = int(self.segment.graph.indptr[-1])
        self.nodes = self.storage.nodes
        self.entities = int(self.segment.users + self.segment.items)
        common, alone, self.side = sided_counts(self.table, self.layout)
        self.column_blocks = [(w, int(n), int(m)) for w, n, m in zip(self.table.widths, common, alone, strict=True)]
        self.columns = sum(width * (here + beyond) for width, here, beyond in self.column_blocks)
        self.said = f"{self.columns} columns, {int(columns_of(self.table.widths, alone))} of them of one side"

    def product(self, width: int, side: int = 0, other: bool = False) -> Work:
        """One sparse product of the graph with `width` columns; of half of it from a side (`lightgcn.rows_from`)."""
        graph = rows_from(self.graph, self.users, jnp.int32(side), other)
        nonzeros = int(graph.indptr[-1] - graph.indptr[0])
        return repeated(
            propagate,
            graph,
            jnp.ones((self.nodes, width)),
            bytes=8.0 * nonzeros + 8.0 * self.nodes * width,
            flops=2.0 * nonzeros * width,
        )

    def products(self, forward: int, back: int = 0) -> tuple:
        """(product, times) over all columns in use, some from embeddings and some back to them."""
        found = []
        for width, here, beyond in self.column_blocks:
            if here:
                found.append((self.product(width), (forward + back) * here))
            if beyond:
                # every second product is to the other side
                for other, times in ((True, (forward + 1) // 2 + back // 2), (False, forward // 2 + (back + 1) // 2)):
                    found.append((self.product(width, int(self.side), other), times * beyond))
        return tuple(found)

    def fit(self, config: FitConfig, **counts) -> Work:
        """Training by a configuration."""
        function = make_fit(self.storage, config, None, self.config.candidates)
        arguments = self.prepared.params, self.layout, self.segment, self.prepared.item_bias
        return jitted(function, jax.random.key(0), *arguments, **counts)
