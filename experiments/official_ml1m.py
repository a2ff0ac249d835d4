"""Beside the official implementation of SCALL, on the same rows: MovieLens-1M in the ten segments that it makes.

    python -m experiments.official_ml1m --data official_ml1m_segments.parquet --seeds 0 1 2

The file has columns segment, user, item, timestamp, replay (drawn from earlier segments, put in front) and test (last
20% of the segment), as the official code cut them. Settings as there: largest size 128, LightGCN of 3 layers, batch
2048, mean size 16, power law, 64 groups, 50 steps between evaluations and per probe, at most 12 probes. `published` is
compared with the official figures (one seed, one CPU thread; model and reward selected on test); `clean` selects on the
last eighth of the training rows and ranks all items known. Writes table.md: Recall@20 and NDCG@20 by segment, their
means with and without segment 1, whose 7 users move the mean most, and the seconds and peak memory of the runs. Cost:
some minutes per seed and protocol on two cores. Expect a mean Recall@20 of .127 for published scall-sac and .119 for
uniform, where the official figures are .110 and .092.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from scall_jax import FitConfig, ObserveConfig, SizesConfig
from scall_jax.analysis import report
from scall_jax.cli import commands, method_flags
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli, command
from scall_jax.cli.protocol import PUBLISHED_DIFFERS, by_protocol
from scall_jax.run import records, text_files
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
"""NDCG@20 by segment of the same runs."""

_ROW = ("user", "item", "timestamp")


@dataclasses.dataclass(frozen=True)
class Official(run_flags.Main):
    """Flags; those of `experiments.run` apply where they are not part of the settings."""

    data: str = "official_ml1m_segments.parquet"
    """Path of the file of segments."""
    method: tuple[str, ...] = ("uniform", "scall-sac")
    """Methods to run."""
    protocols: tuple[str, ...] = ("published", "clean")
    """Protocols to run by, published or clean."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs; a run for each."""
    segments: int = 8
    """Segments to run, the first included."""
    fit: FitConfig = FitConfig(learning_rate=0.03, eval_every=50, patience=3, decay_every=200)
    """Training of a segment."""
    observe: ObserveConfig = ObserveConfig(groups=64)
    """What the policy sees."""
    sizes: SizesConfig = SizesConfig(maximum=128)
    """Bounds of sizes."""
    budget: run_flags.BudgetFlags = run_flags.BudgetFlags(mean_size=16)
    """The budget."""
    out: Path = Path("runs/official_ml1m")
    """Folder of the runs and the table."""


def read_segments(path: str, segments: int, published: bool, seed: int) -> Stream:
    """Read the stream of the file, cut as the file says.

    Args:
      path: of the file.
      segments: to read, from the first on.
      published: select models on test, as the official code does.
      seed: of the order of evaluated users.

    Returns:
      Stream.

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
    # The file's ids are by first appearance; leaving out segments leaves gaps among them.
    user_ids, user = _by_appearance(user)
    item_ids, item = _by_appearance(item)
    bounds = _bounds(new["segment"].to_numpy(), new["test"].to_numpy(), segments, published)
    replay = _replayed(frame, new, bounds, path)
    time = new["timestamp"].to_numpy().astype(np.int64) * 1000
    name = Path(path).name
    return Stream(
        user, item, time, user_ids, item_ids, bounds, replay, select_on_test=published, seed=seed, source=name
    )


def _bounds(segment: np.ndarray, test: np.ndarray, segments: int, published: bool) -> tuple[Bounds, ...]:
    """Rows of the segments' parts, from the segment i64[rows] and the part bool[rows] of each row."""
    bounds, start = [], 0
    for t in range(segments):
        rows, tested = int((segment == t).sum()), int(test[segment == t].sum())
        train = start + rows - tested
        valid = train
        if not published:
            train = valid - (valid - start) // 8
        bounds.append(Bounds(start, train, valid, start + rows))
        start += rows
    return tuple(bounds)


def _by_appearance(values: np.ndarray) -> tuple[pl.Series, np.ndarray]:
    ids, first, codes = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    new = np.empty(len(ids), np.int32)
    new[order] = np.arange(len(ids), dtype=np.int32)
    return pl.Series(ids[order]), new[codes]


def _replayed(frame: pl.DataFrame, new: pl.DataFrame, bounds: Sequence[Bounds], path: str) -> tuple[np.ndarray, ...]:
    """Rows of `new` that each segment replays."""
    columns = [frame[name].to_numpy() for name in _ROW]
    bases = [int(column.min()) for column in columns]
    spans = [int(column.max()) - base + 1 for column, base in zip(columns, bases, strict=True)]
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


def _numbered(frame: pl.DataFrame, bases: Sequence[int], spans: Sequence[int]) -> np.ndarray:
    """i64[rows], a number that is the same for rows with the same user, item and timestamp."""
    number = np.zeros(len(frame), np.int64)
    for name, base, span in zip(_ROW, bases, spans, strict=True):
        number = number * span + (frame[name].to_numpy().astype(np.int64) - base)
    return number


def main(flags: Official) -> str:
    """Run all protocols, methods and seeds; the text of table.md."""
    rows, costs = [], []
    for protocol in flags.protocols:
        for method in method_flags.expand(flags.method):
            runs = [_one(flags, protocol, method, seed) for seed in flags.seeds]
            rows += _quality_rows(f"{protocol} {method}", runs, range(1, flags.segments))
            costs.append(_cost_row(f"{protocol} {method}", runs))
    rows += _official_rows(range(1, flags.segments))
    header = ["test", *(f"t={t}" for t in range(1, flags.segments)), "mean", "mean of t > 1"]
    note = "Mean ± standard deviation over seeds. published: model and reward selected on test, as the official code."
    note += f" What still differs from it: {'; '.join(PUBLISHED_DIFFERS)}."
    cost_header = ["seconds, mean over seeds", "fit", "search", "compilation, first seed", "compilation, others"]
    parts = [report.markdown(header, rows), note, report.markdown([*cost_header, "peak MB"], costs)]
    text = "\n\n".join([*parts, "Peak MB: largest resident memory of the process up to the end of these runs."])
    text_files.write_atomically(flags.out / "table.md", f"`{command()}`\n\n{text}\n")
    print(f"\n{text}")
    return text


def _one(flags: Official, protocol: str, method: str, seed: int) -> list[dict[str, Any]]:
    """The lines of metrics of one run."""
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
    cell = by_protocol(cell)
    _, lines = commands.run_method(cell, method_flags.make_config(cell, method), stream, cell.out)
    return lines


def _quality_rows(name: str, runs: Sequence[list[dict[str, Any]]], segments: range) -> list[list[str]]:
    rows = []
    for metric, short in (("recall@20", "R@20"), ("ndcg@20", "N@20")):
        values = np.array([[lines[t][f"test_{metric}"] for t in segments] for lines in runs])
        means = [values.mean(1), values[:, 1:].mean(1) if len(segments) > 1 else np.full(len(runs), np.nan)]
        values = np.column_stack([values, *means])
        spread = values.std(0, ddof=1) if len(runs) > 1 else np.zeros(values.shape[1])
        cells = [f"{mean:.4f} ± {s:.4f}" for mean, s in zip(values.mean(0), spread, strict=True)]
        rows.append([f"{name} {short}", *cells])
    return rows


def _official_rows(segments: range) -> list[list[str]]:
    rows = []
    for name in OFFICIAL:
        for short, figures in (("R@20", OFFICIAL[name]), ("N@20", OFFICIAL_NDCG[name])):
            values = np.array([figures.get(t, np.nan) for t in segments])
            shown = ["-" if np.isnan(x) else f"{x:.4f}" for x in values]
            means = [part[~np.isnan(part)].mean() for part in (values, values[1:]) if not np.isnan(part).all()]
            cells = [f"{mean:.4f}" for mean in means] + ["-"] * (2 - len(means))
            rows.append([f"official {name} {short}", *shown, *cells])
    return rows


def _cost_row(name: str, runs: Sequence[list[dict[str, Any]]]) -> list[str]:
    summaries = [records.summarise(lines) for lines in runs]

    def mean(key: str, part: slice = slice(None)) -> str:
        values = [summary[key] for summary in summaries[part]]
        return f"{np.mean(values):.0f}" if values else "-"

    compilation = mean("seconds_compile", slice(1)), mean("seconds_compile", slice(1, None))
    peak = 1e-6 * max(summary["peak_rss_bytes"] for summary in summaries)
    return [name, mean("seconds_fit"), mean("seconds_search"), *compilation, f"{peak:.0f}"]


if __name__ == "__main__":
    cli(Official, main, __doc__)
