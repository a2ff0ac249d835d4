"""Progress of a run: bars and what is being done on a terminal, and plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from scall_jax.streams import Stream

_TICK = 0.5  # seconds between updates of the time that something has taken
_WORDS = {
    "search_before": "searching sizes",
    "search_after": "searching sizes",
    "choose": "choosing the recommender's parameters",
    "prepare": "planning sizes",
    "fit": "training",
    "evaluate": "evaluating",
    "init": "the first state",
}


class Progress:
    """Segments of the stream, and what is being done: compiling, searching, training, evaluating, writing."""

    def __init__(self, name: str, stream: Stream, steps: int, probes: int = 0, inside: bool = False):
        """Start.

        Args:
          name: of the run, in front of everything.
          stream: that the run goes over.
          steps: training steps of a segment, at most.
          probes: of a segment, at most; 0 without a search.
          inside: on a terminal, show steps and probes too, which compiled programs report. JAX's compilation cache does
            not keep such programs.
        """
        self._name, self._total, self._start = name, len(stream), time.perf_counter()
        self._compiling: float | None = None
        terminal = sys.stderr.isatty()
        options: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True, "disable": not terminal}
        self._lines = not terminal
        self._segments = tqdm(total=len(stream), desc=f"{name:18s}", unit="segment", **options)
        self._doing = tqdm(total=0, bar_format="  {desc}", leave=False, **options)
        self._inside = terminal and inside
        own: dict[str, Any] = options | {"leave": False, "disable": not self._inside}
        self._steps = tqdm(total=steps, desc="  training", unit="step", **own)
        own["disable"] = not (self._inside and probes)
        self._probes = tqdm(total=probes, desc="  search", unit="probe", **own)
        self._phase, self._since, self._over = "", self._start, threading.Event()

    def __enter__(self) -> "Progress":
        if not self._lines:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for bar in (self._probes, self._steps, self._doing, self._segments):
            bar.close()

    @property
    def callbacks(self) -> dict[str, Callable[..., object]]:
        """Arguments of `run_segments`."""
        inside: dict[str, Callable[..., object]] = {}
        if self._inside:
            inside = {"progress": self.step, "on_probes": self.probes}
        return inside | {"on_segment": self.segment, "on_phase": self.phase}

    def phase(self, doing: str, name: str) -> None:
        """Show what begins.

        Args:
          doing: compiling, running or writing.
          name: of the program, or of what is written.
        """
        words, now = _WORDS.get(name, name), time.perf_counter()
        if self._lines and doing == "compiling" and self._compiling is None:
            self._compiling = now
            self._print("compiling")
        if self._lines and doing == "running" and self._compiling:
            self._print(f"compiled in {now - self._compiling:.1f} s")
            self._compiling = 0.0
        self._phase, self._since = words if doing == "running" else f"{doing}: {words}", now
        self._show_phase()

    def step(self, segment: Any, step: Any, loss: Any, fitness: Any) -> None:
        """Show the state of a fit, after each of its evaluations; the arguments are numbers or scalar arrays."""
        text = f"segment {int(segment)} loss {float(loss):.3f} valid {float(fitness):.4f}"
        self._refresh(self._steps, int(step), text)

    def probes(self, segment: Any, done: Any, best: Any) -> None:
        """Show the state of a search, after each round of probes; the arguments are numbers or scalar arrays."""
        self._refresh(self._probes, int(done), f"segment {int(segment)} best {float(best):.3f} of the reference")

    def _refresh(self, bar: Any, number: int, text: str) -> None:
        bar.set_postfix_str(text)
        bar.n = number
        bar.refresh()

    def segment(self, line: dict[str, Any]) -> None:
        """Show the line of metrics of a finished segment."""
        quality = f"recall@20 {line['test_recall@20']:.4f}"
        if self._lines:
            budget = 1e-6 * line["budget_bytes"]
            memory = f", {1e-6 * line['bytes_table']:.3f} of {budget:.3f} MB" if budget else ""
            seconds = sum(line[f"seconds_{name}"] for name in ("fit", "evaluate", "search", "sizes"))
            of_users = f"{quality} of {line['test_users']:,} test users{memory}, {seconds:.1f} s"
            self._print(f"segment {line['segment']} ({line['segment'] + 1} of {self._total}): {of_users}")
        self._segments.n = line["segment"]
        self._segments.set_postfix_str(quality, refresh=False)
        self._segments.update(1)

    def _print(self, text: str) -> None:
        # In one piece, so that a process that is stopped leaves whole lines.
        sys.stderr.write(f"{self._name}: {text}\n")
        sys.stderr.flush()

    def _tick(self) -> None:
        while not self._over.wait(_TICK):
            self._show_phase()

    def _show_phase(self) -> None:
        self._doing.set_description_str(f"{self._phase}, {time.perf_counter() - self._since:.0f} s")
