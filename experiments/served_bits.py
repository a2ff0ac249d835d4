"""LightGCN's final vectors in 1 to 8 bits: quality and bytes of serving, of the same trained tables.

    python -m experiments.served_bits --cut.new-entities 1600 --sizes.maximum 16 --budget.mean-size 16 --fit.steps 200
    python -m experiments.served_bits --data yelp2019_a.parquet --cut.segments 4 --sizes.maximum 16 \\
        --budget.mean-size 16 --fit.steps 200

Takes the flags of `experiments.run` with one method. Each segment is trained once, and then ranked by final vectors in
float32 and in each number of bits of --bits; `--fit.served-bits`, which also stops early by what it serves, is left
unset. Prints a table with Recall@20 and NDCG@20, means over segments after the first, and the bytes after the last
segment. Cost: one run, and an evaluation for each number of bits. Expect three bits to lose under 1%, and one bit 6 to
8%.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import Config, make_run
from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import method_flags, stream_flags
from scall_jax.cli.cli import cli, command
from scall_jax.methods.context import segment_context, served_bias
from scall_jax.methods.state import RunState
from scall_jax.recommenders.buffers import as_served
from scall_jax.recommenders.judge import evaluate_params
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.run.text_files import write_atomically
from scall_jax.streams import Segment
from scall_jax.tables.compressed.few_bits import rows_bytes


@dataclasses.dataclass(frozen=True)
class ServedBits(run_flags.Main):
    """Flags; those of `experiments.run` apply, with one method of LightGCN that chooses sizes."""

    method: tuple[str, ...] = ("uniform",)
    """The method."""
    bits: tuple[int, ...] = (8, 4, 3, 2, 1)
    """Bits of a coordinate."""
    out: Path = Path("runs/served-bits")
    """Folder of the table."""


def quality(config: Config, bits: int | None, state: RunState, segment: Segment) -> jax.Array:
    """Test Recall@20 and NDCG@20 of a state that has been trained on a segment, f32[2]."""
    context = segment_context(config, state, segment)
    layout = context.storage.layout(state.plan)
    storage, params = as_served(context.storage, state.params, layout)
    _, row = context.item_bias()
    bias = served_bias(config, context.recommender(), state, segment, row)
    model = LightGcn(storage, config.fit.layers)
    (test,) = evaluate_params(model, params, layout, segment, [segment.test], bias, bits)
    return jnp.stack([test.recall[0, -1], test.ndcg[0, -1]])


def main(flags: ServedBits) -> list[list[str]]:
    """Train, rank in all numbers of bits, and print the table; its lines."""
    (method,), stream = flags.method, stream_flags.load_stream(flags)
    config = method_flags.make_config(flags, method)
    method_flags.check_run(config, stream)
    if config.recommender != "lightgcn" or not config.fit.layers:
        raise ValueError("experiments.served_bits ranks by vectors that propagation makes: leave out --recommender")
    run = make_run(config)
    step = jax.jit(run.step)
    judges = {bits: jax.jit(functools.partial(quality, config, bits)) for bits in (None, *flags.bits)}
    state, found = run.init(jax.random.key(flags.seed), stream), {bits: [] for bits in judges}
    for number, segment in enumerate(stream):
        segment = jax.tree.map(jnp.asarray, segment)
        state, _ = step(state, segment)
        if number:
            for bits, judge in judges.items():
                found[bits].append(np.asarray(judge(state, segment)))
    known = tuple(state.known.tolist())
    books = run.method.bookkeeping(state, stream)
    ways: dict[str, Any] = books.serves_by(state.plan, known, stream.graph_bytes(len(stream) - 1))
    width, whole, lines = books.width(state.plan), np.mean(found[None], 0), []
    for bits, values in found.items():
        final = 4 * sum(known) * width if bits is None else rows_bytes(bits, sum(known), width)
        recall, ndcg = np.mean(values, 0)
        cells = [f"{recall:.4f}", f"{recall / whole[0]:.1%}", f"{ndcg:.4f}", f"{1e-6 * final:.3f}"]
        lines.append(["float32" if bits is None else str(bits), *cells, f"{1e-6 * min(final, ways['graph']):.3f}"])
    head = ["bits", "Recall@20", "of float32", "NDCG@20", "final vectors MB", "beside the table MB"]
    text = report.markdown(head, lines)
    title = f"{stream.source}: {len(stream)} segments, {method}, width {width}, graph {1e-6 * ways['graph']:.3f} MB"
    flags.out.mkdir(parents=True, exist_ok=True)
    write_atomically(flags.out / "table.md", f"# {title}\n\n`{command()}`\n\n{text}\n")
    print(f"{title}\n\n{text}")
    return lines


if __name__ == "__main__":
    cli(ServedBits, main, __doc__)
