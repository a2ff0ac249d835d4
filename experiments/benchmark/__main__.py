"""Speed and memory of each part, beside the best that the machine can do.

    python -m experiments.benchmark                            # all cases on the embedded streams
    python -m experiments.benchmark --only step sizes --data yelp.parquet
    python -m experiments.benchmark --data official:official_ml1m_segments.parquet@5 --only step evaluation
    python -m experiments.benchmark --compare old.json         # ratios to an earlier result

Each case runs in a process of its own, warmed up. The table has medians of repeated runs with their quartiles,
compilation apart, and the peak of resident memory beyond that of the imports, or of the device's memory where the
device has its own. `MB moved` and `Mflop` are the bytes and operations that the work needs at least; `by bound` is the
measured time divided by the time that these take at the copy bandwidth and the matrix rate measured in the same
process. Where work is made of sparse products, a dense product or a pass over the parameters, these are measured in the
same process too; `by parts` is the measured time divided by theirs. `times official` is how many times longer the
official implementation of SCALL (commit 15d6eb8) took for the same work on one thread of a shared machine of two cores.
Expect the training step within twice its products, and sizes linear in n. Cost: some 45 minutes for all cases, four of
them the default run. Writes benchmark.json and benchmark.md after each case. For one thread: `taskset -c 0 python -m
...`. On an accelerator, where compilation takes far longer than the measurements, `--prepare 12` prepares 12 cases side
by side before it measures them one after the other; set XLA_PYTHON_CLIENT_PREALLOCATE=false for that.
"""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import cases as benchmark_cases
from experiments.benchmark.cases import CASES
from experiments.benchmark.setting import Work
from scall_jax.analysis import report
from scall_jax.cli.cli import cli, command
from scall_jax.run import process_memory, text_files

OFFICIAL = {
    "step official_ml1m_segments@2": 0.074,
    "step official_ml1m_segments@5": 0.187,
    "step official_ml1m_segments@9": 0.379,
    "evaluation official_ml1m_segments@2": 0.47,
    "evaluation official_ml1m_segments@5": 0.61,
    "evaluation official_ml1m_segments@9": 2.25,
    "sampling official_ml1m_segments@2": 0.037,
    "sampling official_ml1m_segments@5": 0.042,
    "sampling official_ml1m_segments@9": 0.048,
    "reading official_ml1m_segments": 85.0,
    "scall official_ml1m_segments": 1380.0,
    "step yelp2019_a@3": 0.39,
    "evaluation yelp2019_a@3": 3.3,
    "fit yelp2019_a@3": 247.0,
    "sizes 1e5": 0.4,
    "sizes 1e6": 6.5,
    "state 1e5": 2.25,
}
"""Seconds of the official implementation, by the beginning of a case's name; accurate to 30%."""

_PREPARED = "prepared\n"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Flags of the benchmark."""

    only: tuple[str, ...] = ()
    """Beginnings of the names of the cases to measure, their arguments included; by default all are measured."""
    data: tuple[str, ...] = ("online-retail", "movietweetings")
    """Streams besides the synthetic one: names or paths; see `experiments.benchmark.setting`."""
    shapes: tuple[str, ...] = ()
    """Shapes of sizes to keep, of the cases that have them; by default all."""
    repeats: int = 7
    """Measurements of each case."""
    prepare: int = 1
    """Cases that are compiled side by side before they are measured, one after the other."""
    compare: Path | None = None
    """benchmark.json of an earlier run, for a column of ratios to it."""
    out: Path = Path("runs/benchmark")
    """Folder of the results."""


def chosen_cases(flags: Benchmark) -> list[tuple[str, tuple[str, ...]]]:
    """Names and arguments of the cases that the flags ask for."""
    found = benchmark_cases.cases(flags.data, str(flags.out))
    found = [(name, given) for name, given in found if not flags.only or label(name, given).startswith(flags.only)]
    if flags.shapes:
        shaped = ("step", "evaluation", "fit")
        found = [(name, given) for name, given in found if name not in shaped or given[1] in flags.shapes]
    return found


def label(name: str, arguments: tuple[str, ...]) -> str:
    """Name of a case as tables show it: its arguments included, files without folders and endings."""
    words = [Path(x.removeprefix("official:")).name.replace(".parquet", "") for x in arguments]
    return " ".join((name, *words))


def limits() -> dict[str, float]:
    """Measure the copy bandwidth in bytes/s (read and written) and the matrix rate in flop/s in float32."""
    # The arrays are several times as large as the caches.
    length, side = (2**24, 1536) if jax.default_backend() == "cpu" else (2**28, 8192)
    big, square = jnp.ones(length), jax.random.normal(jax.random.key(0), (side, side))
    copy = jax.jit(lambda x: x + 1.0)
    multiply = jax.jit(lambda x: jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST))
    seconds = [_median(Work(f, (x,)), 7)[0] for f, x in ((copy, big), (multiply, square))]
    return {"copy_bytes_per_second": 8 * length / seconds[0], "flops_per_second": 2 * side**3 / seconds[1]}


def _median(work: Work, repeats: int) -> tuple[float, float, float]:
    count = work.repeats or repeats
    if count > 1:
        jax.block_until_ready(work.call(*work.arguments))
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        jax.block_until_ready(work.call(*work.arguments))
        seconds.append(time.perf_counter() - start)
    median, low, high = (float(x) for x in np.quantile(seconds, (0.5, 0.25, 0.75)))
    return median, low, high


def measure(
    name: str, arguments: tuple[str, ...], repeats: int, wait: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Measure one case in this process.

    Args:
      name, arguments: of the case.
      repeats: measurements, unless the case needs fewer.
      wait: called when the case is prepared, before it is measured.

    Returns:
      The case's row of benchmark.json.
    """
    # The host's peak is read first, because asking for a device starts JAX.
    host = process_memory.peak_rss_bytes()
    device = _device_peak()
    work = CASES[name](*arguments)
    wait()
    median, low, high = _median(work, repeats)
    used = process_memory.peak_rss_bytes() - host if device is None else (_device_peak() or 0) - device
    parts = sum(times * _median(part, repeats)[0] / part.per_call for part, times in work.parts)
    best = limits()
    bound = max(work.bytes / best["copy_bytes_per_second"], work.flops / best["flops_per_second"])
    seconds = median / work.per_call
    return {
        "case": label(name, arguments),
        "seconds": seconds,
        "quartiles": [low / work.per_call, high / work.per_call],
        "compile_seconds": work.compile_seconds,
        "bytes": work.bytes / work.per_call,
        "flops": work.flops / work.per_call,
        "by_bound": median / bound if bound else None,
        "by_parts": seconds / parts if parts else None,
        "peak_bytes": used,
        "note": work.note,
    } | best


def _device_peak() -> int | None:
    """Peak bytes of the device's memory so far; None where the device does not report them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def main(flags: Benchmark) -> list[dict[str, Any]]:
    """Measure all cases, each in a process of its own; a row for each."""
    if flags.prepare < 1:
        raise ValueError(f"--prepare {flags.prepare}: must be at least 1")
    chosen = chosen_cases(flags)
    if not chosen:
        raise ValueError(f"--only {' '.join(flags.only)}: no case starts so: choose from {', '.join(CASES)}")
    rows = measure_all(chosen, flags)
    if not rows:
        raise ValueError("no case could be measured: their errors stand above")
    return rows


def measure_all(
    chosen: Sequence[tuple[str, tuple[str, ...]]], flags: Benchmark, seconds: float = float("inf")
) -> list[dict[str, Any]]:
    """Measure cases, each in a process of its own, and print their table.

    Args:
      chosen: names and arguments of the cases.
      flags: of which only, data and shapes do not matter.
      seconds: after these no further group of cases is begun.

    Returns:
      A row for each case that could be measured.
    """
    end = time.perf_counter() + seconds
    old = {row["case"]: row for row in json.loads(flags.compare.read_text())["cases"]} if flags.compare else {}
    flags.out.mkdir(parents=True, exist_ok=True)
    for folder in flags.out.glob("compiled*"):
        shutil.rmtree(folder)
    rows, text = [], ""
    for group in _groups(chosen, flags.prepare):
        if time.perf_counter() > end:
            print(f"out of time before {label(*group[0])}", file=sys.stderr)
            break
        children = [_Child(*case, flags.repeats) for case in group]
        try:
            for child in children:
                child.prepare()
            for child in children:
                row, reason = child.measured()
                if row is None:
                    print(f"{child.name}: failed: {reason}", file=sys.stderr)
                    continue
                rows.append(row)
                print(f"{child.name}: {row['seconds'] * 1e3:.3g} ms", flush=True)
                text = write(flags.out, rows, old)
        finally:
            for child in children:
                child.process.kill()
    print(f"\n{text}")
    return rows


class _Child:
    """A process that prepares a case, and measures it when told to."""

    def __init__(self, name: str, arguments: tuple[str, ...], repeats: int):
        self.name = label(name, arguments)
        command = [sys.executable, "-m", "experiments.benchmark", "--one", json.dumps([name, arguments, repeats])]
        # A file, because a pipe could fill up while this process waits for others; `measured` closes it.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, **pipes)

    def prepare(self) -> None:
        """Wait until the case is prepared, or has failed."""
        assert self.process.stdout is not None
        while self.process.stdout.readline() not in (_PREPARED, ""):
            pass

    def measured(self) -> tuple[dict[str, Any] | None, str]:
        """The case's row; None and the reason where it failed."""
        output = self.process.communicate("measure\n")[0]
        with self.errors:
            self.errors.seek(0)
            reason = (self.errors.read().strip().splitlines() or ["no message"])[-1]
        return (None, reason) if self.process.wait() else (json.loads(output.splitlines()[-1]), "")


def _groups(cases: Sequence[tuple[str, tuple[str, ...]]], most: int) -> list[list[tuple[str, tuple[str, ...]]]]:
    """Consecutive cases that are prepared side by side.

    A case `scall` is prepared alone, because it reads the programs that the one before it compiled.
    """
    groups = []
    for case in cases:
        if not groups or len(groups[-1]) == most or "scall" in (case[0], groups[-1][-1][0]):
            groups.append([])
        groups[-1].append(case)
    return groups


def _one(name: str, arguments: list[str], repeats: int) -> None:
    """The job of a `_Child`."""

    def wait():
        print(f"\n{_PREPARED}", end="", flush=True)
        if not sys.stdin.readline():
            sys.exit("the process that started this one has ended")

    print(f"\n{json.dumps(measure(name, tuple(arguments), repeats, wait))}")


def write(out: Path, rows: list[dict[str, Any]], old: dict[str, dict[str, Any]]) -> str:
    """Write benchmark.json and benchmark.md.

    Args:
      out: folder of the two files.
      rows: of the cases measured so far.
      old: rows of an earlier run by case.

    Returns:
      The text of benchmark.md.
    """
    result = {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0)), "jax": jax.__version__, "cases": rows}
    text_files.write_atomically(out / "benchmark.json", json.dumps(result, indent=1) + "\n")
    copy, rate = (float(np.median([row[key] for row in rows])) for key in ("copy_bytes_per_second", "flops_per_second"))
    head = f"{result['cpu']}, {result['cpus']} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}; "
    head += f"copies {copy / 1e9:.1f} GB/s read and written, multiplies {rate / 1e9:.0f} Gflop/s (medians over cases)"
    text = f"`{command()}`\n\n{head}\n\n{_table(rows, old)}"
    text_files.write_atomically(out / "benchmark.md", text + "\n")
    return text


def cpu_name() -> str:
    """Name of the CPU."""
    path = Path("/proc/cpuinfo")
    names = [x for x in path.read_text().splitlines() if x.startswith("model name")] if path.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def _table(rows: list[dict[str, Any]], old: dict[str, dict[str, Any]]) -> str:
    header = ["case", "ms", "quartiles", "MB moved", "Mflop", "by bound", "by parts", "times official"]
    header += ["compile s", "peak MB", "", *(["by old"] if old else [])]
    body = []
    for row in rows:
        low, high = (f"{1e3 * x:.3g}" for x in row["quartiles"])
        official = [seconds for name, seconds in OFFICIAL.items() if f"{row['case']} ".startswith(f"{name} ")]
        cells = [row["case"], f"{1e3 * row['seconds']:.3g}", f"{low}..{high}"]
        cells += [_number(row["bytes"] / 1e6, ".3g"), _number(row["flops"] / 1e6, ".3g")]
        cells += [_number(row["by_bound"], ".1f"), _number(row["by_parts"], ".2f")]
        cells.append(f"{official[0] / row['seconds']:.0f}" if official and row["seconds"] else "-")
        cells += [f"{row['compile_seconds']:.1f}", f"{row['peak_bytes'] / 1e6:.0f}", row["note"]]
        if old:
            known = old.get(row["case"])
            cells.append(f"{row['seconds'] / known['seconds']:.2f}" if known else "-")
        body.append(cells)
    return report.markdown(header, body)


def _number(value: float | None, form: str) -> str:
    return format(value, form) if value else "-"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _one(*json.loads(sys.argv[2]))
    else:
        cli(Benchmark, main, __doc__)
