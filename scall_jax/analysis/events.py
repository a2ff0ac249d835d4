"""Event files for TensorBoard in a run folder: quality, loss, bytes, sizes and rewards as scalars."""

import importlib.util
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from scall_jax.run import config_file, text_files
from scall_jax.run import folder as run_folder

NAME = "tensorboard"
"""Folder within a run folder; TensorBoard finds it below any folder that holds runs."""

_PERCENTILES = (10, 50, 90, 99, 100)
_BYTES = {"budget": "budget_bytes", "table": "bytes_table", "at rest": "bytes_at_rest", "serving": "bytes_serving"}


def check() -> None:
    """Check that event files can be written.

    Raises:
      ValueError: tensorboardX is not installed.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError('event files need tensorboardX: pip install "scall_jax[tensorboard]"')


def scalars(line: Mapping[str, Any], sizes: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What is shown of a finished segment, by tag.

    Args:
      line: of metrics.
      sizes: i32[users] and i32[items] by side, as `sizes/` has them.

    Returns:
      Qualities of valid and test, the loss, bytes, percentiles of sizes, and the mean and the best reward of a search.
    """
    found = {
        f"{part}/{metric}": line[f"{part}_{metric}"]
        for part in ("valid", "test")
        for metric in ("recall@20", "ndcg@20")
    }
    found |= {f"bytes/{name}": line[key] for name, key in _BYTES.items()}
    for side, own in sizes.items():
        if own.any():
            values = np.percentile(own, _PERCENTILES)
            found |= {f"sizes of {side}/percentile {p}": v for p, v in zip(_PERCENTILES, values, strict=True)}
    if line.get("probe_rewards"):
        rewards = np.array(line["probe_rewards"])
        found |= {"search/mean reward": rewards.mean(), "search/best reward": rewards.max()}
    return {name: float(value) for name, value in found.items()}


class EventLog:
    """Events of one run in this process.

    Each process writes a file of its own, named by the first segment that it runs, and removes those of processes that
    began there or later: what they logged is logged anew.
    """

    def __init__(self, folder: Path, steps: int):
        """Start.

        Args:
          folder: of the run; it need not exist yet.
          steps: training steps of a segment, at most; losses of segment t begin at step t x steps.
        """
        self._folder, self._steps = folder, steps
        self._path = folder / NAME / f"events.out.tfevents.{run_folder.finished_segments(folder):010d}"
        self._probes = 0
        self._writer: Any = None
        # Programs call `step` from threads of their own.
        self._lock = threading.Lock()
        later = [path for path in (folder / NAME).glob("events.*") if path.name >= self._path.name]
        if (folder / config_file.CONFIG).exists():
            run_folder.unlist(folder, *(path.relative_to(folder).as_posix() for path in later))
        for path in later:
            path.unlink()
        for line in text_files.read_lines(folder / run_folder.GROWING):
            self._probes += len(line.get("probe_rewards", ()))

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._writer is not None:
                self._writer.close()

    def callbacks(self, others: Mapping[str, Callable[..., object]]) -> dict[str, Callable[..., object]]:
        """Arguments of `run_segments` that log and then do what others do.

        Args:
          others: such arguments.

        Returns:
          Those, with `on_segment` and `progress` that log. JAX's compilation cache keeps no program that reports steps.
        """
        own = {"on_segment": self.segment, "progress": self.step}
        return dict(others) | {name: _both(log, others.get(name)) for name, log in own.items()}

    def step(self, segment: Any, step: Any, loss: Any, fitness: Any) -> None:
        """Log the state of a fit, after each of its evaluations; the arguments are numbers or scalar arrays."""
        at = int(segment) * self._steps + int(step)
        self._write(at, {"training/loss": float(loss), "training/valid fitness": float(fitness)})

    def segment(self, line: dict[str, Any]) -> None:
        """Log the line of metrics of a finished segment, and its sizes."""
        with np.load(self._folder / "sizes" / f"segment-{line['segment']:04d}.npz") as stored:
            self._write(line["segment"], scalars(line, {side: stored[side] for side in ("users", "items")}))
        for reward in line.get("probe_rewards", ()):
            self._write(self._probes, {"search/reward by probe": reward})
            self._probes += 1

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from tensorboardX.record_writer import RecordWriter  # pyright: ignore[reportMissingImports]

        kept = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        with self._lock:
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = RecordWriter(str(self._path))
                self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=kept))
            self._writer.write(event.SerializeToString())
            self._writer.flush()


def _both(log: Callable[..., object], other: Callable[..., object] | None) -> Callable[..., object]:
    def call(*arguments: Any) -> None:
        log(*arguments)
        if other is not None:
            other(*arguments)

    return call
