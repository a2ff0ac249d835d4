"""Quality against memory: one compiled program, mapped over budgets and seeds.

    python -m experiments.sweep_budgets                            # online-retail, uniform and frequency, 5 budgets
    python -m experiments.sweep_budgets --method uniform scall --seeds 0 1 2 --out runs/sweep-scall

Writes sweep.png (Recall@20 by megabytes; methods that no budget binds are horizontal lines, by the first seed),
sweep.parquet (the frame of all runs: a row per method, run and segment), table.md and sweep.json, and replaces those of
another sweep with --overwrite only. `--separate` also makes the runs one by one, each compiled for its own budget, and
records their seconds, compilation apart. Cost: the steps of all runs, and one compilation for all budgets of a method.
Expect Recall@20 of uniform sizes to rise from .061 at mean size 1 to .079 at 16 (online-retail, --fit.steps 100), and
five mapped runs to take 79% of the time of the same runs one by one on two CPU cores (experiments/results/sweep.md).
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import polars as pl

from scall_jax import Budget, Config, scan
from scall_jax.analysis import plots, report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import method_flags, protocol, stream_flags
from scall_jax.cli.cli import cli, command
from scall_jax.methods.registry import BASELINES
from scall_jax.run import records, text_files
from scall_jax.run.scan import ScanProgram, check_sweep, scan_program, sweep_program
from scall_jax.run.step import Record
from scall_jax.streams import Stream

OUTSIDE = (*BASELINES, "full")
"""Methods that no budget binds."""


@dataclasses.dataclass(frozen=True)
class Sweep(run_flags.Main):
    """Flags; those of `experiments.run` apply, except for --budget; --seed only cuts the stream."""

    method: tuple[str, ...] = ("uniform", "frequency")
    """Methods to run."""
    mean_sizes: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """Budgets, in parameters per entity."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs; a run for each."""
    full: bool = True
    """Also run the full-size model."""
    separate: bool = False
    """Also make each run separately, and compare the times."""
    out: Path = Path("runs/sweep")
    """Folder of the results."""


class Swept(NamedTuple):
    """The runs of one method."""

    row: dict[str, Any]
    """What sweep.json says of them."""
    frame: pl.DataFrame
    """A row per run and segment."""


def main(flags: Sweep) -> list[dict[str, Any]]:
    """Sweep each method; a row per method, as in sweep.json."""
    flags, stream, configs = _checked(flags)
    runs = [(size, seed) for size in flags.mean_sizes for seed in flags.seeds]
    first_seed = flags.seeds[0]
    rows, frames, series, levels = [], [], {}, {}
    for method, config in configs.items():
        if method in OUTSIDE:
            swept = _outside(config, stream, first_seed)
            levels[_level_name(config, stream)] = swept.row["recall@20"]
        else:
            swept = _swept(config, stream, runs, flags)
            recalls = np.array(swept.row["recall@20"])
            spread = recalls.std(1, ddof=1) if len(flags.seeds) > 1 else np.zeros(len(recalls))
            series[method] = (swept.row["megabytes"], recalls.mean(1), spread)
        rows.append(swept.row)
        frames.append(swept.frame.with_columns(pl.lit(method).alias("method")))
        print(f"{method}: {json.dumps(swept.row)}")
        text_files.write_atomically(flags.out / "sweep.json", json.dumps(rows, indent=1) + "\n")
    pl.concat(frames, how="diagonal_relaxed").write_parquet(flags.out / "sweep.parquet")
    title = f"{stream.source}, last segment's memory"
    plots.plot_lines(
        flags.out / "sweep.png", series, title, f"budget (10^6 bytes, {flags.charge})", "test Recall@20", levels
    )
    head = f"# {stream.source}: {len(stream)} segments, mapped over budgets and seeds\n\n`{command()}`"
    text_files.write_atomically(flags.out / "table.md", f"{head}\n\n{to_markdown(rows)}\n")
    return rows


def _checked(flags: Sweep) -> tuple[Sweep, Stream, dict[str, Config]]:
    """Flags by protocol, the stream, and the methods' configurations; refuses what cannot run before anything runs."""
    flags = protocol.by_protocol(flags)
    if flags.budget != run_flags.BudgetFlags():
        raise ValueError("--budget.*: budgets are swept by --mean-sizes")
    for flag in ("method", "mean_sizes", "seeds"):
        if not getattr(flags, flag):
            raise ValueError(f"--{flag.replace('_', '-')}: name at least one")
    if (flags.out / "sweep.json").exists() and not flags.overwrite:
        raise ValueError(f"{flags.out} holds a sweep: --overwrite it, or choose another --out")
    methods = [*method_flags.expand(flags.method), *(["full"] if flags.full else [])]
    configs = {method: method_flags.make_config(flags, method) for method in methods}
    for seed in flags.seeds:
        method_flags.make_config(dataclasses.replace(flags, seed=seed), methods[0])
    stream = stream_flags.load_stream(flags)
    stream_flags.check_stream(stream)
    for method, config in configs.items():
        if method in OUTSIDE:
            method_flags.check_run(config, stream)
            continue
        check_sweep(config)
        for size in flags.mean_sizes:
            method_flags.check_run(dataclasses.replace(config, budget=Budget.mean_size(size)), stream)
    flags.out.mkdir(parents=True, exist_ok=True)
    return flags, stream, configs


def _swept(config: Config, stream: Stream, runs: Sequence[tuple[float, int]], flags: Sweep) -> Swept:
    """One method at all budgets by all seeds; `runs` are pairs of mean size and seed."""
    budgets = [Budget.mean_size(size) for size, _ in runs]
    keys = [jax.random.key(seed) for _, seed in runs]
    record, seconds = timed(sweep_program(config, stream, keys, budgets))
    frame = records.frame(record, budgets)
    recalls = [_mean_recall(frame.filter(run=number)) for number in range(len(runs))]
    entities = sum(stream.known(stream.bounds[-1].train))
    row = {
        "method": config.method,
        "mean_sizes": flags.mean_sizes,
        "seeds": flags.seeds,
        "recall@20": np.reshape(np.array(recalls, float), (len(flags.mean_sizes), -1)).tolist(),
        "seconds": seconds["run"],
        "seconds_compile": seconds["compile"],
        "megabytes": [4e-6 * size * entities for size in flags.mean_sizes],
    }
    return Swept(row | (_separately(config, stream, runs) if flags.separate else {}), frame)


def _outside(config: Config, stream: Stream, seed: int) -> Swept:
    """A method that no budget binds, by one seed."""
    frame = scan(config, stream, jax.random.key(seed)).frame
    return Swept({"method": config.method, "recall@20": _mean_recall(frame)}, frame)


def _level_name(config: Config, stream: Stream) -> str:
    """Name of a horizontal line in the plot."""
    if config.method != "full":
        return config.method
    megabytes = 4e-6 * sum(stream.known(stream.bounds[-1].train)) * config.sizes.maximum
    return f"full, table {megabytes:.3g} MB"


def timed(program: ScanProgram) -> tuple[Record, dict[str, float]]:
    """Compile and run a program.

    Args:
      program: of `scan_program` or `sweep_program`.

    Returns:
      Its records, checked, and its seconds by `compile` and `run`.

    Raises:
      ValueError: a loss was not finite.
    """
    start = time.perf_counter()
    compiled = program.function.lower(*program.arguments).compile()
    seconds = {"compile": time.perf_counter() - start}
    start = time.perf_counter()
    _, record = jax.block_until_ready(compiled(*program.arguments))
    seconds["run"] = time.perf_counter() - start
    records.check(record)
    return record, seconds


def _separately(config: Config, stream: Stream, runs: Sequence[tuple[float, int]]) -> dict[str, list[float]]:
    """Seconds of the runs one after the other, each compiled for its own budget."""
    found = []
    for size, seed in runs:
        own = dataclasses.replace(config, budget=Budget.mean_size(size))
        found.append(timed(scan_program(own, stream, jax.random.key(seed)))[1])
    return {
        "seconds_separate": [x["run"] for x in found],
        "seconds_separate_compile": [x["compile"] for x in found],
    }


def _mean_recall(frame: pl.DataFrame) -> float | None:
    """Mean test Recall@20 over the segments of one run; None where no segment counts."""
    return records.summarise(frame.to_dicts())["mean_test_recall@20"]


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown table of a sweep: a row per method and budget, then the seconds of each method's runs.

    Args:
      rows: as in sweep.json.

    Returns:
      The table; seconds of a budget are sums over seeds of the runs made separately, where these were made.
    """
    body = []
    for row in rows:
        if row["method"] in OUTSIDE:
            body.append([row["method"], "-", "-", report.mean_and_spread([row["recall@20"]]), "-", "-"])
            continue
        separate, compilation = (
            np.reshape(row[key], (len(row["mean_sizes"]), -1)).sum(1) if key in row else None
            for key in ("seconds_separate", "seconds_separate_compile")
        )
        for i, size in enumerate(row["mean_sizes"]):
            quality = f"{row['megabytes'][i]:.3g}", report.mean_and_spread(row["recall@20"][i])
            times = ["-" if x is None else f"{x[i]:.1f}" for x in (separate, compilation)]
            body.append([row["method"], f"{size:g}", *quality, *times])
        if separate is not None and compilation is not None:
            body.append([f"{row['method']}, sum", "", "", "", f"{separate.sum():.1f}", f"{compilation.sum():.1f}"])
        mapped = f"{row['seconds']:.1f}", f"{row['seconds_compile']:.1f}"
        body.append([f"{row['method']}, mapped", "", "", "", *mapped])
    return report.markdown(["method", "mean size", "budget MB", "Recall@20", "run s", "compilation s"], body)


if __name__ == "__main__":
    cli(Sweep, main, __doc__)
