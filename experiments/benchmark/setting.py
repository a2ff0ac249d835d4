"""What the cases of `experiments.benchmark` share: a `Work` to measure, and the `Setting` that most of them need.

Streams are named as `experiments.run` names them, or `synthetic` (20,000 nodes, 1 million graph entries), or
`official:PATH@t`: segment t of the published protocol, for the file of `experiments.official_ml1m` or, for another, cut
at 10,000 new entities. Without @t it is the last segment.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import official_ml1m
from scall_jax import Budget, Config, FitConfig, SizesConfig, make_run, streams, tables
from scall_jax.cli import flags as run_flags
from scall_jax.cli import stream_flags
from scall_jax.recommenders import propagate, with_chunks
from scall_jax.recommenders.fit import make_fit
from scall_jax.recommenders.lightgcn import rows_from
from scall_jax.run import compilation
from scall_jax.tables.column_blocks import columns_of, sided_counts


@dataclasses.dataclass(frozen=True)
class Work:
    """One piece of work to measure."""

    call: Callable[..., Any]
    """Does the work."""
    arguments: tuple[Any, ...] = ()
    """Arguments of `call`."""
    bytes: float = 0.0
    """Bytes that a call must read or write at least."""
    flops: float = 0.0
    """Floating-point operations that a call needs at least."""
    per_call: int = 1
    """How often the work is done in one call."""
    compile_seconds: float = 0.0
    """Seconds that compiling `call` took."""
    repeats: int | None = None
    """Measurements, where fewer are enough than the flags ask for."""
    parts: tuple[tuple["Work", float], ...] = ()
    """(Work, times): parts that the work consists of at least, which are measured too."""
    note: str = ""
    """Text for the last column of the table."""


def lowered(program: jax.stages.Wrapped, arguments: tuple[Any, ...], **fields: Any) -> Work:
    """Compile a jitted function.

    Args:
      program: the function.
      arguments: of the function.
      **fields: of the `Work`.

    Returns:
      Work.
    """
    start = time.perf_counter()
    compiled = program.lower(*arguments).compile()
    return Work(compiled, arguments, compile_seconds=time.perf_counter() - start, **fields)


def jitted(function: Callable[..., Any], *arguments: Any, **fields: Any) -> Work:
    """As `lowered`, of a function that is not jitted yet."""
    return lowered(compilation.jit(function), arguments, **fields)


def repeated(function: Callable[..., Any], *arguments: Any, bytes: float = 0.0, flops: float = 0.0) -> Work:
    """Compile a function that is called many times in one program, because a call of a program has its own cost.

    Args:
      function: its result becomes its last argument in the next call.
      *arguments: of the first call.
      bytes, flops: of one call.

    Returns:
      Work.
    """
    times = 10 if jax.default_backend() == "cpu" else 100

    def all_times(*given):
        return jax.lax.fori_loop(0, times, lambda _, last: function(*given[:-1], last), given[-1])

    return jitted(all_times, *arguments, bytes=times * bytes, flops=times * flops, per_call=times)


def stream_of(data: str) -> tuple[streams.Stream, int, bool]:
    """Read a stream.

    Args:
      data: its name, as the module's docstring says.

    Returns:
      The stream, the number of a segment, and whether the stream is cut by the published protocol.
    """
    official = data.startswith("official:")
    path, _, at = data.removeprefix("official:").partition("@")
    if data == "synthetic":
        stream = streams.cut(_random_rows(12_000, 8_000, 560_000), segments=2)
    elif official and Path(path).name == "official_ml1m_segments.parquet":
        stream = official_ml1m.read_segments(path, 10, True, 0)
    elif official:
        stream = stream_flags.load_stream(
            run_flags.Main(data=path, cut=run_flags.Cut(published=True, new_entities=10_000))
        )
    else:
        stream = stream_flags.load_stream(run_flags.Main(data=path))
    return stream, int(at) if at else len(stream) - 1, official


def _random_rows(users: int, items: int, count: int) -> streams.Interactions:
    """Rows whose users and items are drawn independently, with activities that fall by rank as in real streams."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> np.ndarray:
        activity = np.arange(1, n + 1) ** -0.5
        return rng.choice(n, count, p=activity / activity.sum())

    return streams.from_arrays(draw(users), draw(items), np.arange(count), "synthetic")


class Setting:
    """A segment of a stream with a table, ready to be trained on."""

    def __init__(self, data: str, shape: str = "16", maximum: int = 128, table: str = "packed"):
        """Read the stream and prepare its segment.

        Args:
          data: name of the stream.
          shape: of the sizes: `16` is uniform sizes 16, `sized16` the skewed default action of `fixed` at mean size 16,
            `middle16` the middle of the published actions at mean size 16.
          maximum: largest size.
          table: name of the storage.
        """
        self.stream, at, official = stream_of(data)
        name = shape.rstrip("0123456789")
        options = {"": {}, "sized": {}, "middle": {"rho": 0.5, "user_shape": 15.05, "item_shape": 15.05}}[name]
        self.config = Config(
            method="fixed" if name else "uniform",
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
            self.state.capacity.budget_units, self.users, self.items, maximum
        )
        assert self.storage.table is not None
        self.table = self.storage.table
        self.prepared = jitted(run_of.prepare, self.state, self.segment).call(self.state, self.segment)
        self.layout = self.storage.layout(self.prepared.plan)
        self.nonzeros = int(self.segment.graph.indptr[-1])
        self.nodes = self.storage.nodes
        self.entities = int(self.segment.users + self.segment.items)
        shared, sided, self.side = sided_counts(self.table, self.layout)
        # Width of the blocks, and how many have both sides and one side.
        self.column_blocks = [(w, int(n), int(m)) for w, n, m in zip(self.table.widths, shared, sided, strict=True)]
        self.columns = sum(width * (both + one) for width, both, one in self.column_blocks)
        self.note = f"{self.columns} columns, {int(columns_of(self.table.widths, sided))} of them of one side"

    def product(self, width: int, side: int = 0, other: bool = False) -> Work:
        """One sparse product.

        Args:
          width: columns of the dense factor.
          side, other: the part of the graph, as in `lightgcn.rows_from`; by default all of it.

        Returns:
          Work.
        """
        graph = rows_from(self.graph, self.users, jnp.int32(side), other)
        nonzeros = int(graph.indptr[-1] - graph.indptr[0])
        return repeated(
            propagate,
            graph,
            jnp.ones((self.nodes, width)),
            bytes=8.0 * nonzeros + 8.0 * self.nodes * width,
            flops=2.0 * nonzeros * width,
        )

    def products(self, forward: int, back: int = 0) -> tuple[tuple[Work, float], ...]:
        """The sparse products of a propagation.

        Args:
          forward: layers of the propagation.
          back: layers of its gradient.

        Returns:
          (product, times) for each kind of column block in use.
        """
        found = []
        for width, both, one in self.column_blocks:
            if both:
                found.append((self.product(width), (forward + back) * both))
            if one:
                # Blocks of one side: every second product is to the other side.
                for other, times in ((True, (forward + 1) // 2 + back // 2), (False, forward // 2 + (back + 1) // 2)):
                    found.append((self.product(width, int(self.side), other), times * one))
        return tuple(found)

    def fit(self, config: FitConfig, **fields: Any) -> Work:
        """Compile training by a configuration; `fields` are those of the `Work`."""
        function = make_fit(self.storage, config, None, self.config.candidates)
        arguments = self.prepared.params, self.layout, self.segment, self.prepared.item_bias
        return jitted(function, jax.random.key(0), *arguments, **fields)
