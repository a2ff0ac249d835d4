"""Quality against memory: one compiled program, mapped over budgets and seeds.

    python -m experiments.sweep_budgets                            # online-retail, uniform and frequency, 5 budgets
    python -m experiments.sweep_budgets --method uniform scall --mean-sizes 1 2 4 8 16 --seeds 0 1 2

Writes `sweep.png` (Recall@20 by megabytes, the full-size model as a line) and `sweep.json`. `--separate` also makes the
runs one by one and prints the ratio of the times. Cost: the steps of all runs; one compilation for all budgets.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np

from experiments import run
from scall_jax import Budget, records, report, scan, sweep


@dataclasses.dataclass(frozen=True)
class Sweep(run.Main):
    """Flags; those of `experiments.run` hold, budgets apart."""

    method: tuple[str, ...] = ("uniform", "frequency")
    """Methods."""
    mean_sizes: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """Budgets, in parameters per entity."""
    seeds: tuple[int, ...] = (0,)
    """Of the runs."""
    full: bool = True
    """Also run the full-size model, for the line."""
    separate: bool = False
    """Also make each run by itself, and compare the times."""
    out: Path = Path("runs/sweep")
    """Folder of the results."""


def main(flags: Sweep) -> list[dict]:
    """Sweep each method; a row per method and budget."""
    flags = run.by_protocol(flags)
    stream = run.load_stream(flags)
    flags.out.mkdir(parents=True, exist_ok=True)
    entities = sum(stream.known(stream.bounds[-1].train))
    rows, series = [], {}
    for method in run.expand(flags.method):
        pairs = [(size, seed) for size in flags.mean_sizes for seed in flags.seeds]
        config = run.make_config(flags, method)
        start = time.perf_counter()
        budgets = [Budget.mean_size(size) for size, _ in pairs]
        _, record = sweep(config, stream, [jax.random.key(seed) for _, seed in pairs], budgets)
        seconds = time.perf_counter() - start
        recalls = np.array([_mean_recall(jax.tree.map(lambda x, i=i: x[i], record)) for i in range(len(pairs))])
        recalls = recalls.reshape(len(flags.mean_sizes), -1)
        spread = recalls.std(1, ddof=1) if len(flags.seeds) > 1 else np.zeros(len(recalls))
        memory = [4e-6 * size * entities for size in flags.mean_sizes]
        series[method] = (memory, recalls.mean(1), spread)
        row = {"method": method, "mean_sizes": flags.mean_sizes, "megabytes": memory, "seeds": flags.seeds}
        row |= {"recall@20": recalls.tolist(), "seconds": seconds}
        if flags.separate:
            row["seconds_separate"] = _separately(config, stream, pairs)
        rows.append(row)
        print(f"{method}: {json.dumps(row)}")
    level = None
    if flags.full:
        _, record = scan(run.make_config(flags, "full"), stream, jax.random.key(flags.seeds[0]))
        level = (f"full, {4e-6 * entities * flags.sizes.maximum:.3g} MB", _mean_recall(record))
        rows.append({"method": "full", "recall@20": level[1]})
        print(f"full: {level[1]:.4f}")
    title = f"{stream.source}, last segment's memory"
    report.plot_lines(flags.out / "sweep.png", series, title, "table, MB (10^6 bytes)", "test Recall@20", level)
    records.write_atomically(flags.out / "sweep.json", json.dumps(rows, indent=1) + "\n")
    return rows


def _separately(config, stream, pairs) -> float:
    """Seconds of the runs one after the other, each compiled for its own budget."""
    start = time.perf_counter()
    for size, seed in pairs:
        own = dataclasses.replace(config, budget=Budget.mean_size(size))
        jax.block_until_ready(scan(own, stream, jax.random.key(seed)))
    return time.perf_counter() - start


def _mean_recall(record) -> float:
    lines = [records.as_dict(jax.tree.map(lambda x, t=t: x[t], record)) for t in range(len(record.segment))]
    return records.summarise(lines)["mean_test_recall@20"]


if __name__ == "__main__":
    run.cli(Sweep, main, __doc__)
