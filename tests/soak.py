"""A long run: a thousand segments with the path that goes segment by segment.

    python -m tests.soak [--segments 1000] [--keep-lines]

Cost: 5 to 20 minutes of one core. Expect: for LightGCN and for least squares a slope of resident memory over the last
half of the segments near 0 bytes a segment, no program compiled after the first segment, and the budget met at each.
Lines of metrics, which a run returns, are emptied as they come, and their size is printed; --keep-lines leaves them.
"""

import argparse
import math
import os
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from scall_jax import Budget, Config, FitConfig, SizesConfig, run_segments, streams
from scall_jax.recommenders.ials.config import IalsConfig


def resident_bytes() -> int:
    """Resident memory of this process, from /proc."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def config_of(recommender: str) -> Config:
    """A cheap configuration in which nothing is chosen."""
    return Config(
        "frequency",
        budget=Budget.mean_size(3),
        sizes=SizesConfig(maximum=8),
        fit=FitConfig(layers=1, batch=32, steps=4, eval_every=4, valid_users=32),
        recommender=recommender,
        ials=IalsConfig(sweeps=1, half_life=math.inf, unobserved=0.1, regularisation=0.01),
    )


def soak(recommender: str, stream: streams.Stream, keep_lines: bool) -> None:
    """Run one recommender over the stream and print what it took."""
    memory, compiled, exact, of_lines = [], Counter(), 0, 0

    def on_event(name: str, seconds: float, **details: object) -> None:
        compiled[len(memory)] += name == "/jax/core/compile/backend_compile_duration"

    def on_segment(line: dict) -> None:
        nonlocal exact, of_lines
        memory.append(resident_bytes())
        exact += line["allocated_parameters"] == line["budget_parameters"]
        exact -= not math.isfinite(line["loss"])
        of_lines += sys.getsizeof(line) + sum(map(sys.getsizeof, line.values()))
        if not keep_lines:
            line.clear()

    jax.monitoring.register_event_duration_secs_listener(on_event)
    run_segments(config_of(recommender), stream, jax.random.key(0), on_segment=on_segment)
    half = len(memory) // 2
    slope = np.polyfit(np.arange(half, len(memory)), memory[half:], 1)[0]
    print(
        f"{recommender}: {len(memory)} segments, budget met exactly in {exact}, "
        f"{compiled[0]} programs compiled before the first segment has ended and "
        f"{compiled.total() - compiled[0]} after it, resident MB {memory[0] / 1e6:.1f} after the first "
        f"segment, {memory[half] / 1e6:.1f} in the middle, {memory[-1] / 1e6:.1f} at the end, "
        f"slope over the last half {slope:.0f} bytes a segment; a line of metrics has {of_lines // len(memory)} bytes"
        + (", which are kept" if keep_lines else ", which are not kept"),
        flush=True,
    )


def main() -> None:
    """Parse the number of segments and run both recommenders."""
    parser = argparse.ArgumentParser(description="A long run")
    parser.add_argument("--segments", type=int, default=1000)
    parser.add_argument("--keep-lines", action="store_true", help="leave the lines as a caller gets them")
    parser.add_argument("--only", choices=("ials", "lightgcn"), nargs="*", default=["ials", "lightgcn"])
    flags = parser.parse_args()
    segments = flags.segments
    rows = streams.synthetic(jax.random.key(0), users=200, items=120, interactions=30 * segments)
    stream = streams.cut(rows, segments=segments)
    for recommender in flags.only:
        soak(recommender, stream, flags.keep_lines)


if __name__ == "__main__":
    main()
