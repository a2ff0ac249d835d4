"""Re-ranking of users' lists by the neighbours of their items: quality before and after, of the same vectors.

    python -m experiments.rerank --cut.new-entities 1600 --budget.mean-size 8 --sizes.maximum 16
    python -m experiments.rerank --data yelp2019_a.parquet --cut.segments 4 --recommender ials --table packed_int4

Takes the flags of `experiments.run` with one method. After each segment the best `--depth` items of every user are put
into a new order by the reciprocal Jaccard distance of the user's list and each item's `--neighbours` nearest items
(arXiv 2307.14278, for a user in the place of an image), mixed with the place in the list by each of `--mixes`. The mix
that has been best on the valid parts so far, 1 among them, which keeps the order, ranks test. Prints test Recall@20 and
NDCG@20, means over segments after the first. Cost: one run, and a few seconds a segment. Expect little: vectors that
were trained to rank already know most of what their neighbours say.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import make_run
from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import method_flags, stream_flags
from scall_jax.cli.cli import cli, command
from scall_jax.evaluation import KnownGraph
from scall_jax.evaluation.top import best_items
from scall_jax.recommenders.reciprocal import NOISE, Lists, nearest, rerank
from scall_jax.recommenders.served import Served
from scall_jax.run.text_files import write_atomically
from scall_jax.streams import RaggedItems, Segment

DEPTH = 20
"""Length of the lists that are judged."""


@dataclasses.dataclass(frozen=True)
class Rerank(run_flags.Main):
    """Flags; those of `experiments.run` apply, with one method."""

    method: tuple[str, ...] = ("uniform",)
    """The method."""
    depth: int = 60
    """Items of a user's list that are put into a new order."""
    neighbours: int = 20
    """Items in an item's own list, itself included."""
    mixes: tuple[float, ...] = (1.0, 0.9, 0.7, 0.5, 0.0)
    """Weights of the place in the list, 0 to 1."""
    out: Path = Path("runs/rerank")
    """Folder of the table."""


def lists_of(served: Served, segment: Segment, depth: int, neighbours: int) -> tuple[Lists, Lists]:
    """The best items of every user with their distances, and the nearest items of every item.

    Args:
      served: vectors of a fitted recommender.
      segment: the data, of which the graph is read.
      depth: items of a user; static.
      neighbours: items of an item; static.

    Returns:
      Lists of the users, and of the items.
    """
    known = KnownGraph(segment.graph, served.users.shape[0], segment.items)
    scores, ids = best_items(served.users, served.items, served.bias, known, depth)
    users, items = (x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in served[:2])
    cosine = jnp.einsum("uw,umw->um", users, items[ids])
    there = jnp.isfinite(scores)
    ranked = Lists(jnp.where(there, ids, NOISE), jnp.where(there, jnp.sqrt(jnp.maximum(2 - 2 * cosine, 0.0)), 2.0))
    active = jnp.arange(served.items.shape[0]) < segment.items
    return ranked, nearest(served.items, active, neighbours)


def judged(ids: np.ndarray, relevant: RaggedItems) -> np.ndarray:
    """Mean Recall@20 and NDCG@20 of lists.

    Args:
      ids: i32[U, m], lists of all users, best first.
      relevant: users and the items to be found.

    Returns:
      f64[2]; zeros without users.
    """
    found, discount = [], 1 / np.log2(np.arange(2, DEPTH + 2))
    users, indptr, items = (np.asarray(x) for x in relevant[:3])
    for number in range(int(relevant.count)):
        wanted = items[indptr[number] : indptr[number + 1]]
        hits = np.isin(ids[users[number], :DEPTH], wanted)
        ideal = discount[: min(len(wanted), DEPTH)].sum()
        found.append((hits.sum() / len(wanted), (hits * discount[: len(hits)]).sum() / ideal))
    return np.mean(found, axis=0) if found else np.zeros(2)


def main(flags: Rerank) -> list[list[str]]:
    """Train, put the lists of each segment into new orders, and print the table; its lines."""
    (method,), stream = flags.method, stream_flags.load_stream(flags)
    if 1.0 not in flags.mixes or not all(0 <= mix <= 1 for mix in flags.mixes):
        raise ValueError(f"--mixes {flags.mixes}: weights from 0 to 1, with 1, which keeps the order")
    if min(flags.depth, flags.neighbours) < 2:
        raise ValueError(f"--depth {flags.depth} --neighbours {flags.neighbours}: at least 2")
    config = method_flags.make_config(flags, method)
    method_flags.check_run(config, stream)
    run = make_run(config)
    if run.method.serve is None:
        raise ValueError(f"--method {method}: it has no lists of its own")
    step, serve = jax.jit(run.step), jax.jit(run.method.serve, static_argnums=3)
    depth, neighbours = (min(x, stream.capacity.items) for x in (flags.depth, flags.neighbours))
    lists = jax.jit(functools.partial(lists_of, depth=depth, neighbours=neighbours))
    order = jax.jit(rerank)
    state, valid, test = run.init(jax.random.key(flags.seed), stream), [], []
    books = run.method.bookkeeping(state, stream)
    for segment in stream:
        segment = jax.tree.map(jnp.asarray, segment)
        state, record = step(state, segment)
        served = serve(state, segment, record.popularity, books.width(state.plan))
        ranked, of_items = lists(served, segment)
        orders = [np.asarray(order(ranked, of_items, mix)) for mix in flags.mixes]
        for found, part in ((valid, segment.valid), (test, segment.test)):
            found.append([judged(ids, part) for ids in orders])
    # What leads on the valid parts up to a segment ranks its test part.
    so_far, after = np.cumsum(np.array(valid)[:, :, 0], axis=0), np.array(test)
    chosen = [after[t, int(row.argmax())] for t, row in enumerate(so_far)]
    rows = {f"mix {mix:g}": after[1:, number].mean(0) for number, mix in enumerate(flags.mixes)}
    rows |= {"chosen on valid": np.mean(chosen[1:], axis=0)}
    lines = [[name, f"{recall:.4f}", f"{ndcg:.4f}"] for name, (recall, ndcg) in rows.items()]
    text = report.markdown(["order", "Recall@20", "NDCG@20"], lines)
    title = f"{stream.source}: {len(stream)} segments, {method}, lists of {depth}, {neighbours} neighbours"
    flags.out.mkdir(parents=True, exist_ok=True)
    write_atomically(flags.out / "table.md", f"# {title}\n\n`{command()}`\n\n{text}\n")
    print(f"{title}\n\n{text}")
    return lines


if __name__ == "__main__":
    cli(Rerank, main, __doc__)
