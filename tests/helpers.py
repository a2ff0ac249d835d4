"""Small graphs, tables and streams for tests."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import Config, FitConfig, run_segments, streams
from scall_jax.config import SizesConfig
from scall_jax.run import manifest, records
from scall_jax.streams.segments import GraphCapacity, make_graph


def small_stream(segments: int = 4, **options) -> streams.Stream:
    rows = streams.synthetic(jax.random.key(7), users=120, items=80, interactions=4000, **options)
    return streams.cut(rows, segments=segments)


def tiny_arguments(data, out, *more: str) -> list[str]:
    """Flags of an experiment that is over in seconds."""
    tiny = ["--no-report", "--fit.steps", "20", "--fit.eval-every", "10", "--fit.batch", "128", "--sizes.maximum", "32"]
    return ["--data", str(data), "--cut.segments", "4", "--out", str(out), *tiny, *more]


def small_config(method: str = "fixed", **options) -> Config:
    fit = FitConfig(layers=2, batch=128, steps=20, eval_every=10, valid_users=64)
    return Config(method=method, **({"fit": fit, "sizes": SizesConfig(maximum=16)} | options))


def list_files(folder) -> None:
    """Give a folder that a test has filled the manifest of a run's folder."""
    names = [path.name for path in folder.iterdir()]
    manifest.write(folder, manifest.EMPTY._replace(files=manifest.entries(folder, names)))


def comparable(lines: list[dict]) -> list[dict]:
    """Lines of metrics without the keys that differ from one execution to the next."""
    return [{k: v for k, v in line.items() if k not in records.VOLATILE} for line in lines]


def continued(config: Config, stream: streams.Stream, key: jax.Array, folder) -> list[dict]:
    """Comparable lines of a run that was stopped after two segments and continued from its folder."""

    class Stop(Exception):
        pass

    def stop(line):
        if line["segment"] == 1:
            raise Stop

    with contextlib.suppress(Stop):
        run_segments(config, stream, key, folder=folder / "stopped", on_segment=stop)
    return comparable(run_segments(config, stream, key, folder=folder / "stopped"))


def random_graph(rng, users: int, items: int, pairs: int, padding: int = 13):
    """Graph with padded entries, and its dense float64 normalised adjacency."""
    keys = np.unique(rng.integers(0, users, pairs) * items + rng.integers(0, items, pairs))
    user, item = keys // items, keys % items
    by_item = np.lexsort((user, item))
    nodes = users + items
    edges = 2 * len(keys) + padding
    graph = make_graph(user, item, np.arange(len(user)), by_item, GraphCapacity(users, items, edges))
    dense = np.zeros((nodes, nodes))
    dense[user, item + users] = 1
    dense += dense.T
    degree = np.maximum(dense.sum(1), 1)
    return jax.tree.map(jnp.asarray, graph), dense / np.sqrt(np.outer(degree, degree))


def random_sizes(rng, nodes: int, maximum: int, zeros: bool) -> jax.Array:
    """Sizes of N nodes and the two shared vectors."""
    sizes = rng.integers(0 if zeros else 1, maximum + 1, nodes)
    shared = [min(3, maximum), min(5, maximum)] if zeros else [0, 0]
    return jnp.asarray(np.concatenate([sizes, shared]), jnp.int32)


def fitness_of_scores(segment, users: int, scores) -> list[float]:
    """The mean of Recall@20 and NDCG@20 of each user of valid, by scores (user -> [V])."""
    known, fitness = int(segment.items), []
    for q in range(int(segment.valid.count)):
        user = segment.valid.users[q]
        wanted, row = segment.valid.items[segment.valid.indptr[q] : segment.valid.indptr[q + 1]], scores(user)
        met = segment.graph.indices[segment.graph.indptr[user] : segment.graph.indptr[user + 1]] - users
        left = [item for item in range(known) if item not in set(met.tolist())]
        top = sorted(left, key=lambda item, row=row: (-row[item], item))[:20]
        gains = np.isin(top, wanted) / np.log2(np.arange(2, len(top) + 2))
        ideal = (1 / np.log2(np.arange(2, min(20, len(wanted)) + 2))).sum()
        fitness.append((np.isin(top, wanted).sum() / len(wanted) + gains.sum() / ideal) / 2)
    return fitness
