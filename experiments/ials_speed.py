"""Seconds of one fit by implicit alternating least squares, beside the library `implicit` on the same objective.

    pip install "scall_jax[als]"
    python -m experiments.ials_speed --data yelp2019_a.parquet --cut.segments 4

All distinct interactions before the last segment's cut, one width for all, no fading, the same confidence and
regularisation, as many sweeps, float32 throughout, by exact solves, by conjugate gradients and by blocks of columns,
on as many threads as there are cores to run on. Each figure is the fastest of --repeats; compilation stands apart. The
objective that each has reached is computed in float64 from its factors. The bound is the time of the products and
steps of the conjugate gradients alone, on arrays that stay in the caches: what is beyond it is gathers, writes and
Gram matrices.
Cost: four minutes on two cores at the default widths, most of it compilation. Expect conjugate gradients to reach the
objective of exact solves first, sooner than the library's, and blocks of columns to be slower than exact solves.
"""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import stream_flags
from scall_jax.cli.cli import cli
from scall_jax.recommenders.ials.batches import CHUNK, batch_numbers, batch_size, most_entities
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.ials.fit import solve, sweeps_of
from scall_jax.recommenders.ials.gradients import MATRICES_TO, Steps, conjugate_gradients
from scall_jax.recommenders.ials.problem import DUAL_DEGREES, Hyper, Weighting
from scall_jax.recommenders.ials.systems import EXACT, times
from scall_jax.streams import Segment
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import sized

SOLVERS = ("exact", "cg", "blocks")
"""Ours, by `--ials.solver`; `--ials.cg-steps` and `--ials.block` apply."""


@dataclasses.dataclass(frozen=True)
class IalsSpeed(run_flags.Main):
    """Flags; of those of `experiments.run` the ones of the stream apply."""

    widths: tuple[int, ...] = (16, 32, 64)
    """Coordinates of every vector."""
    sweeps: int = 8
    """Solves of all users and all items."""
    confidence: float = 10.0
    """Weight of an interaction beside that of a pair's zero, which is 1."""
    weight: float = 10.0
    """Weight of the squared vectors."""
    repeats: int = 3
    """Fits of which the fastest counts."""
    processor_time: bool = False
    """Count the processor's seconds, of all threads, instead of the clock's: for a machine with other work."""


def objective(flags: IalsSpeed, segment: Segment, users: int, of_users: np.ndarray, of_items: np.ndarray) -> float:
    """The library's objective in float64: f32[users, D] and f32[items, D] as it scales them."""
    graph, (u, v) = segment.graph, (np.asarray(x, np.float64) for x in (of_users, of_items))
    row = np.repeat(np.arange(len(u)), np.diff(np.asarray(graph.indptr)[: len(u) + 1]))
    met = np.einsum("ed,ed->e", u[row], v[np.asarray(graph.indices)[: len(row)] - users])
    total = ((1 + flags.confidence) * (1 - met) ** 2 - met**2).sum() + np.sum((u.T @ u) * (v.T @ v))
    return float(total + flags.weight * ((u**2).sum() + (v**2).sum()))


def fastest(flags: IalsSpeed, fit: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest of some calls, and the last result."""
    seconds, result = [], None
    now = time.process_time if flags.processor_time else time.perf_counter
    for _ in range(flags.repeats):
        start = now()
        result = jax.block_until_ready(fit())
        seconds.append(now() - start)
    return min(seconds), result


def by_us(flags: IalsSpeed, segment: Segment, width: int, solver: str) -> dict[str, float]:
    """Seconds of compilation and of a fit, and the objective."""
    users, items = segment.frequency.shape[0] - segment.popularity.shape[1], segment.popularity.shape[1]
    storage = sized(packed(width * (users + items), users, items, width), users, width)
    layout = storage.layout(jnp.array([width] * (users + items) + [0, 0]))
    assert storage.table is not None
    start = storage.table.to_buffer(storage.fresh(jax.random.key(flags.seed), layout, 0.1))
    # Ours is the library's, divided: the factors' scale absorbs the rest.
    c = (1 + flags.confidence) / flags.confidence
    hyper = Hyper(*map(jnp.float32, (0.0, 1 / flags.confidence, flags.weight / (1 + flags.confidence), 0.0)))
    length = sweeps_of(dataclasses.replace(flags.ials, solver=solver, tolerance=0.0, narrowest=width), flags.sweeps)
    fit = jax.jit(functools.partial(solve, storage, length, weighting=Weighting(0.0)))
    arguments = start, layout, segment, jnp.zeros(items), hyper
    begun = time.perf_counter()
    program = fit.lower(*arguments).compile()
    compiled = time.perf_counter() - begun
    seconds, found = fastest(flags, lambda: program(*arguments))
    vectors = np.asarray(storage.vectors(storage.table.from_buffer(found.params), layout)) * np.sqrt(c)
    known = vectors[: int(segment.users)], vectors[users : users + int(segment.items)]
    return {"compile s": compiled, "s": seconds, "objective": objective(flags, segment, users, *known)}


def bound(flags: IalsSpeed, segment: Segment, width: int) -> float:
    """Seconds of the arithmetic of a fit by conjugate gradients: its batches, each with the same arrays."""
    users, degrees = segment.frequency.shape[0] - segment.popularity.shape[1], np.diff(np.asarray(segment.graph.indptr))
    key = jax.random.key(flags.seed)
    seconds = 0.0
    for begin, known in zip((0, users), _known(segment), strict=True):
        found = np.sort(degrees[begin : begin + known])[::-1]
        for low, high in itertools.pairwise((0, *DUAL_DEGREES, found.max())):
            own, bounded = found[(found > low) & (found <= high)], high <= DUAL_DEGREES[-1]
            rows = min(batch_numbers() // (high * width), most_entities()) if bounded else batch_size(width)
            batches = -(-len(own) // rows)
            chunks = 0 if bounded else sum(-(-int(own[at]) // CHUNK) for at in range(0, len(own), rows))
            matrices = not bounded and width <= MATRICES_TO
            program = jax.jit(functools.partial(_arithmetic, batches, chunks, matrices))
            met = jax.random.normal(key, (rows, CHUNK if chunks else high, width))
            seconds += fastest(flags, functools.partial(program, met))[0]
    return flags.sweeps * seconds


def _arithmetic(batches: int, chunks: int, matrices: bool, met: jax.Array) -> jax.Array:
    """The products and steps of some batches with the vectors f32[B, K, width] of the interactions, or with as many
    chunks of them in all, where there are chunks; either in each step, or by matrices that are made of them once."""
    rows, _, width = met.shape
    gram, steps = 100.0 * jnp.eye(width), Steps(jnp.int32(IalsConfig.cg_steps), jnp.float32(0))

    def squares(_, matrix):
        return matrix + jnp.einsum("bki,bkj->bij", met, met, precision=EXACT)

    def add(_, x):
        # Each product is of the one before, so that none is made once for all.
        return x + 1e-3 * jnp.einsum("bki,bk->bi", met, times(met, x), precision=EXACT)

    def one(_, x):
        matrix = jnp.broadcast_to(gram, (rows, width, width)) + x[:, :, None]

        def apply(x, image):
            if matrices:
                return times(matrix, x)
            return jax.lax.fori_loop(0, -(-chunks // batches) if chunks else 1, add, image + x)

        def precondition(x):
            return jnp.matmul(x, gram, precision=EXACT)

        return conjugate_gradients(apply, precondition, x, 0.5 * x, precondition(0.5 * x), steps)[0]

    start = jnp.ones((rows, width))
    if matrices:
        start += jax.lax.fori_loop(0, chunks, squares, jnp.zeros((rows, width, width))).sum(2)
    return jax.lax.fori_loop(0, batches, one, start)


def by_library(flags: IalsSpeed, segment: Segment, width: int, gradients: bool) -> dict[str, float]:
    """Seconds of a fit by `implicit`, and the objective."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares  # pyright: ignore[reportMissingImports]
        from scipy.sparse import csr_matrix
    except ImportError:
        raise ValueError('experiments.ials_speed needs the library implicit: pip install "scall_jax[als]"') from None
    users, (known, items) = segment.frequency.shape[0] - segment.popularity.shape[1], _known(segment)
    graph = segment.graph
    row = np.repeat(np.arange(known), np.diff(np.asarray(graph.indptr)[: known + 1]))
    column = np.asarray(graph.indices)[: len(row)] - users
    met = csr_matrix((np.ones(len(row), np.float32), (row, column)), (known, items))

    def fit():
        model = AlternatingLeastSquares(
            factors=width,
            regularization=flags.weight,
            alpha=1 + flags.confidence,
            iterations=flags.sweeps,
            use_cg=gradients,
            num_threads=len(os.sched_getaffinity(0)),
            random_state=flags.seed,
        )
        model.fit(met, show_progress=False)
        return np.asarray(model.user_factors), np.asarray(model.item_factors)

    seconds, found = fastest(flags, fit)
    return {"s": seconds, "objective": objective(flags, segment, users, *found)}


def _known(segment: Segment) -> tuple[int, int]:
    return int(segment.users), int(segment.items)


def main(flags: IalsSpeed) -> str:
    """Time all widths; the text of the table."""
    stream = stream_flags.load_stream(flags)
    segment = jax.tree.map(jnp.asarray, stream.segment(len(stream) - 1))
    lines = []
    for width in flags.widths:
        ours = [by_us(flags, segment, width, solver) for solver in SOLVERS]
        library = [by_library(flags, segment, width, gradients) for gradients in (False, True)]
        least = bound(flags, segment, width)
        seconds = [f"{found['s']:.2f}" for found in (*ours, *library)]
        exact, cg, _ = (found["s"] for found in ours)
        ratios = [exact / library[0]["s"], cg / library[1]["s"], cg / least]
        compiled = " / ".join(f"{found['compile s']:.1f}" for found in ours)
        reached = [f"{found['objective']:.0f}" for found in (*ours, *library)]
        lines.append([str(width), *seconds, *(f"{ratio:.2f}" for ratio in ratios), compiled, *reached])
    names = [*SOLVERS, "implicit exact", "implicit cg"]
    head = ["width", *(f"{name} s" for name in names), "exact / its exact", "cg / its cg", "cg / bound", "compile s"]
    head += [f"{name} loss" for name in names]
    text = report.markdown(head, lines)
    pairs = int(segment.graph.indptr[-1]) // 2
    print(f"{stream.source}: {pairs:,} pairs, {sum(_known(segment)):,} entities, {flags.sweeps} sweeps\n\n{text}")
    return text


if __name__ == "__main__":
    cli(IalsSpeed, main, __doc__)
