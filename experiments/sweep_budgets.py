"""Quality against memory: one compiled program, mapped over budgets and seeds.

    python -m experiments.sweep_budgets                            # online-retail, uniform and frequency, 5 budgets
    python -m experiments.sweep_budgets --method uniform scall --mean-sizes 1 2 4 8 16 --seeds 0 1 2

Writes `sweep.png` (Recall@20 by megabytes, the full-size model as a line) and `sweep.json`. `--separate` also makes the
runs one by one, each compiled for its own budget, and records their seconds, compilation apart. Cost: the steps of all
runs; one compilation for all budgets.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments import run
from scall_jax import Budget, records, report, scan
from scall_jax.loop import scan_program, sweep_program
from scall_jax.run import Record


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
        budgets = [Budget.mean_size(size) for size, _ in pairs]
        keys = [jax.random.key(seed) for _, seed in pairs]
        record, seconds = timed(*sweep_program(config, stream, keys, budgets))
        recalls = np.array([_mean_recall(jax.tree.map(lambda x, i=i: x[i], record)) for i in range(len(pairs))])
        recalls = recalls.reshape(len(flags.mean_sizes), -1)
        spread = recalls.std(1, ddof=1) if len(flags.seeds) > 1 else np.zeros(len(recalls))
        memory = [4e-6 * size * entities for size in flags.mean_sizes]
        series[method] = (memory, recalls.mean(1), spread)
        row = {"method": method, "mean_sizes": flags.mean_sizes, "megabytes": memory, "seeds": flags.seeds}
        row |= {"recall@20": recalls.tolist(), "seconds": seconds["run"], "seconds_compile": seconds["compile"]}
        if flags.separate:
            row |= _separately(config, stream, pairs)
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


def timed(program: Callable, arguments: tuple) -> tuple[Record, dict[str, float]]:
    """Records of a program, checked, and its seconds: `compile` and `run`."""
    start = time.perf_counter()
    compiled = program.lower(*arguments).compile()
    seconds = {"compile": time.perf_counter() - start}
    start = time.perf_counter()
    _, record = jax.block_until_ready(compiled(*arguments))
    seconds["run"] = time.perf_counter() - start
    records.check(record)
    return record, seconds


def _separately(config, stream, pairs) -> dict[str, list[float]]:
    """Seconds of the runs one after the other, each compiled for its own budget."""
    found = []
    for size, seed in pairs:
        own = dataclasses.replace(config, budget=Budget.mean_size(size))
        found.append(timed(*scan_program(own, stream, jax.random.key(seed)))[1])
    return {
        "seconds_separate": [x["run"] for x in found],
        "seconds_separate_compile": [x["compile"] for x in found],
    }


def _mean_recall(record) -> float:
    lines = [records.as_dict(jax.tree.map(lambda x, t=t: x[t], record)) for t in range(len(record.segment))]
    return records.summarise(lines)["mean_test_recall@20"]


if __name__ == "__main__":
    run.cli(Sweep, main, __doc__)
