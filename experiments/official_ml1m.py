"""Beside the official implementation of SCALL, on the same rows: MovieLens-1M in ten segments of its own making.

    python -m experiments.official_ml1m --data official_ml1m_segments.parquet --seeds 0 1 2

The file has columns segment, user, item, timestamp, replay (drawn from earlier segments, put in front) and test (last
20% of the segment), as the official code cut them. Settings as there: largest size 128, LightGCN of 3 layers, batch
2048, mean size 16, power law, 64 groups, 50 steps between evaluations and per probe, at most 12 probes. `published` is
compared with the official figures (one seed, one CPU thread; model and reward selected on test); `clean` selects on the
last eighth of the training rows and ranks all items known. Cost: some minutes per seed and protocol on two cores.
"""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import polars as pl

from scall_jax import FitConfig
from scall_jax.analysis import report
from scall_jax.cli import commands
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli, command
from scall_jax.config import SizesConfig
from scall_jax.policies import ObserveConfig
from scall_jax.run import folder as run_folder
from scall_jax.streams.stream import Bounds, Stream

OFFICIAL = {
    "scall": {1: 0.1393, 2: 0.1931, 3: 0.1090, 4: 0.0723, 5: 0.0747, 6: 0.0943, 7: 0.0876},
    "uniform": {1: 0.0698, 2: 0.1430, 3: 0.1001, 4: 0.0704, 5: 0.0779, 6: 0.0979, 7: 0.0828},
}
"""Recall@20 by segment of the official code (commit 15d6eb8) on these rows; one seed."""

OFFICIAL_NDCG = {
    "scall": {1: 0.1553, 2: 0.1585, 3: 0.1648, 4: 0.1293, 5: 0.0914, 6: 0.1050, 7: 0.1837},
    "uniform": {1: 0.1025, 2: 0.1589, 3: 0.1285, 4: 0.1219, 5: 0.0893, 6: 0.1158, 7: 0.1764},
}
"""NDCG@20 of the same runs."""


@dataclasses.dataclass(frozen=True)
class Official(run_flags.Main):
    """Flags; those of `experiments.run` hold where they are not part of the settings."""

    data: str = "official_ml1m_segments.parquet"
    """The file of segments."""
    method: tuple[str, ...] = ("uniform", "scall-sac")
    """Methods."""
    protocols: tuple[str, ...] = ("published", "clean")
    """Protocols."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs."""
    segments: int = 8
    """Segments to run, the first included."""
    fit: FitConfig = FitConfig(learning_rate=0.03, eval_every=50, patience=3, decay_every=200)
    observe: ObserveConfig = ObserveConfig(groups=64)
    sizes: SizesConfig = SizesConfig(maximum=128)
    budget: run_flags.BudgetFlags = run_flags.BudgetFlags(mean_size=16)
    out: Path = Path("runs/official_ml1m")
    """Folder of the runs and the table."""


def read_segments(path: str, segments: int, published: bool, seed: int) -> Stream:
    """The stream of the file, cut as the file says.

    Raises:
      ValueError: missing file or columns; a replayed row that no earlier segment has.
    """
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file")
    frame = pl.read_parquet(path)
    missing = {"segment", "user", "item", "timestamp", "replay", "test"} - set(frame.columns)
    if missing:
        raise ValueError(f"{path}: column {sorted(missing)[0]!r} is missing")
    frame = frame.filter(pl.col("segment") < segments)
    new = frame.filter(~pl.col("replay"))
    user, item = (new[name].to_numpy().astype(np.int64) for name in ("user", "item"))
    # ids of the file are by first appearance already, but for entities whose segments are left out
    user_ids, user = _by_appearance(user)
    item_ids, item = _by_appearance(item)
    segment, test = new["segment"].to_numpy(), new["test"].to_numpy()
    bounds, start = [], 0
    for t in range(segments):
        rows, tested = int((segment == t).sum()), int(test[segment == t].sum())
        train = start + rows - tested
        valid = train
        if not published:
            train = valid - (valid - start) // 8
        bounds.append(Bounds(start, train, valid, start + rows))
        start += rows
    replay = _replayed(frame, new, bounds, path)
    time = new["timestamp"].to_numpy().astype(np.int64) * 1000
    name = Path(path).name
    return Stream(
        user, item, time, user_ids, item_ids, tuple(bounds), replay, select_on_test=published, seed=seed, source=name
    )


def _by_appearance(values):
    ids, first, codes = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    new = np.empty(len(ids), np.int32)
    new[order] = np.arange(len(ids), dtype=np.int32)
    return pl.Series(ids[order]), new[codes]


def _replayed(frame, new, bounds, path):
    """Rows of `new` that each segment replays."""
    bases = [int(frame[name].min()) for name in _ROW]
    spans = [int(frame[name].max()) - base + 1 for name, base in zip(_ROW, bases, strict=True)]
    if math.prod(spans) >= 2**63:
        raise ValueError(f"{path}: ids and timestamps span {spans}: too much for rows to be told apart by 63 bits")
    places, first = np.unique(_numbered(new, bases, spans), return_index=True)
    found = []
    for t, b in enumerate(bounds):
        wanted = _numbered(frame.filter(pl.col("replay") & (pl.col("segment") == t)), bases, spans)
        at = np.searchsorted(places, wanted).clip(max=len(places) - 1)
        rows = first[at]
        if (places[at] != wanted).any() or (rows >= b.start).any():
            raise ValueError(f"{path}: segment {t} replays rows that no earlier segment has")
        found.append(np.sort(rows))
    return tuple(found)


_ROW = ("user", "item", "timestamp")


def _numbered(frame, bases, spans):
    """A number per row, the same for the same user, item and timestamp; i64."""
    number = np.zeros(len(frame), np.int64)
    for name, base, span in zip(_ROW, bases, spans, strict=True):
        number = number * span + (frame[name].to_numpy().astype(np.int64) - base)
    return number


def main(flags: Official) -> str:
    """Run all; the table."""
    rows = []
    for protocol in flags.protocols:
        for method in run_flags.expand(flags.method):
            lines = [_one(flags, protocol, method, seed) for seed in flags.seeds]
            rows += _rows(protocol, method, lines, range(1, flags.segments))
    for name in OFFICIAL:
        segments = [t for t in range(1, flags.segments)]
        for metric, figures in (("R", OFFICIAL[name]), ("N", OFFICIAL_NDCG[name])):
            values = [figures.get(t) for t in segments]
            known = [x for x in values if x is not None]
            shown = ["-" if x is None else f"{x:.4f}" for x in values]
            rows.append([f"official {name} {metric}@20", *shown, f"{np.mean(known):.4f}"])
    text = report.markdown(["test", *(f"t={t}" for t in range(1, flags.segments)), "mean"], rows)
    note = "Mean ± standard deviation over seeds. published: model and reward selected on test, as the official code."
    head = f"`{command('experiments.official_ml1m')}`"
    run_folder.write_atomically(flags.out / "table.md", f"{head}\n\n{text}\n\n{note}\n")
    print(f"\n{text}\n\n{note}")
    return text


def _one(flags, protocol, method, seed):
    stream = read_segments(flags.data, flags.segments, protocol == "published", seed)
    cell = dataclasses.replace(
        flags,
        method=(method,),
        seed=seed,
        resume=True,
        protocol=protocol,
        bias="none",
        search=dataclasses.replace(flags.search, probe_steps=50),
        out=flags.out / protocol / f"{method}-seed{seed}",
    )
    cell.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(flags.out.resolve() / "compiled"))
    cell = run_flags.by_protocol(cell)
    _, lines = commands.run_method(cell, run_flags.make_config(cell, method), stream, cell.out)
    return lines


def _rows(protocol, method, runs, segments):
    rows = []
    for metric, short in (("recall@20", "R@20"), ("ndcg@20", "N@20")):
        values = np.array([[lines[t][f"test_{metric}"] for t in segments] for lines in runs])
        values = np.concatenate([values, values.mean(1, keepdims=True)], axis=1)
        spread = values.std(0, ddof=1) if len(runs) > 1 else np.zeros(values.shape[1])
        cells = [f"{mean:.4f} ± {s:.4f}" for mean, s in zip(values.mean(0), spread, strict=True)]
        rows.append([f"{protocol} {method} {short}", *cells])
    return rows


if __name__ == "__main__":
    cli(Official, main, __doc__)
