"""Quality against memory: one compiled program, mapped over budgets and seeds.

    python -m experiments.sweep_budgets                            # online-retail, uniform and frequency, 5 budgets
    python -m experiments.sweep_budgets --method uniform scall --seeds 0 1 2 --out runs/sweep-scall

Writes `sweep.png` (Recall@20 by megabytes; what no budget binds is a line, by the first seed) and `sweep.json`, and
replaces those of another sweep with --overwrite only. `--separate` also makes the runs one by one, each compiled for
its own budget, and records their seconds, compilation apart. Cost: the steps of all runs; one compilation for all
budgets.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from scall_jax import Budget, scan
from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli
from scall_jax.methods.registry import BASELINES
from scall_jax.run import folder as run_folder
from scall_jax.run import records
from scall_jax.run.scan import check_sweep, scan_program, sweep_program
from scall_jax.run.step import Record

OUTSIDE = (*BASELINES, "full")
"""Methods that no budget binds."""


@dataclasses.dataclass(frozen=True)
class Sweep(run_flags.Main):
    """Flags; those of `experiments.run` hold, --budget apart; --seed only cuts the stream."""

    method: tuple[str, ...] = ("uniform", "frequency")
    """Methods."""
    mean_sizes: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """Budgets, in parameters per entity."""
    seeds: tuple[int, ...] = (0,)
    """Of the runs."""
    full: bool = True
    """Also run the full-size model."""
    separate: bool = False
    """Also make each run by itself, and compare the times."""
    out: Path = Path("runs/sweep")
    """Folder of the results."""


def main(flags: Sweep) -> list[dict]:
    """Sweep each method; a row per method."""
    stream, configs = _checked(flags)
    entities = sum(stream.known(stream.bounds[-1].train))
    pairs = [(size, seed) for size in flags.mean_sizes for seed in flags.seeds]
    rows, series, levels = [], {}, {}
    for method, config in configs.items():
        if method in OUTSIDE:
            row, name = _outside(config, stream, flags.seeds[0])
            levels[name] = row["recall@20"]
        else:
            row = _swept(config, stream, pairs, flags)
            recalls = np.array(row["recall@20"])
            spread = recalls.std(1, ddof=1) if len(flags.seeds) > 1 else np.zeros(len(recalls))
            row["megabytes"] = [4e-6 * size * entities for size in flags.mean_sizes]
            series[method] = (row["megabytes"], recalls.mean(1), spread)
        rows.append(row)
        print(f"{method}: {json.dumps(row)}")
        run_folder.write_atomically(flags.out / "sweep.json", json.dumps(rows, indent=1) + "\n")
    title = f"{stream.source}, last segment's memory"
    report.plot_lines(flags.out / "sweep.png", series, title, "table, MB (10^6 bytes)", "test Recall@20", levels)
    return rows


def _checked(flags):
    """The stream, and the methods' configurations; what cannot be swept is refused before anything runs."""
    flags = run_flags.by_protocol(flags)
    if flags.budget != run_flags.BudgetFlags():
        raise ValueError("--budget.*: budgets are swept by --mean-sizes")
    for flag in ("method", "mean_sizes", "seeds"):
        if not getattr(flags, flag):
            raise ValueError(f"--{flag.replace('_', '-')}: name at least one")
    if (flags.out / "sweep.json").exists() and not flags.overwrite:
        raise ValueError(f"{flags.out} holds a sweep: --overwrite it, or choose another --out")
    methods = dict.fromkeys([*run_flags.expand(flags.method), *(["full"] if flags.full else [])])
    configs = {method: run_flags.make_config(flags, method) for method in methods}
    for seed in flags.seeds:
        run_flags.make_config(dataclasses.replace(flags, seed=seed), next(iter(methods)))
    stream = run_flags.load_stream(flags)
    run_flags.check_stream(stream)
    for method, config in configs.items():
        if method in OUTSIDE:
            run_flags.check_run(config, stream)
            continue
        check_sweep(config)
        for size in flags.mean_sizes:
            run_flags.check_run(dataclasses.replace(config, budget=Budget.mean_size(size)), stream)
    flags.out.mkdir(parents=True, exist_ok=True)
    return stream, configs


def _swept(config, stream, pairs, flags) -> dict:
    """One method at all budgets by all seeds."""
    budgets = [Budget.mean_size(size) for size, _ in pairs]
    keys = [jax.random.key(seed) for _, seed in pairs]
    record, seconds = timed(*sweep_program(config, stream, keys, budgets))
    recalls = [_mean_recall(jax.tree.map(lambda x, i=i: x[i], record)) for i in range(len(pairs))]
    row = {"method": config.method, "mean_sizes": flags.mean_sizes, "seeds": flags.seeds}
    row |= {"recall@20": np.reshape(recalls, (len(flags.mean_sizes), -1)).tolist()}
    row |= {"seconds": seconds["run"], "seconds_compile": seconds["compile"]}
    return row | (_separately(config, stream, pairs) if flags.separate else {})


def _outside(config, stream, seed) -> tuple[dict, str]:
    """A method that no budget binds, by one seed; its row, and its name in the plot."""
    record = scan(config, stream, jax.random.key(seed)).record
    name = config.method
    if name == "full":
        name += f", {4e-6 * sum(stream.known(stream.bounds[-1].train)) * config.sizes.maximum:.3g} MB"
    return {"method": config.method, "recall@20": _mean_recall(record)}, name


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
    cli(Sweep, main, __doc__)
