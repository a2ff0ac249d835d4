"""Progress bars over segments and training steps, fed from the host side of a run."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from scall_jax.streams import Stream


class Progress:
    """Nested bars: segments of the stream, steps of the current fit, probes of the current search."""

    def __init__(self, name: str, stream: Stream, steps: int, probes: int = 0):
        """Open the bars.

        Args:
          name: of the run, in front of the bar.
          stream: that the run goes over.
          steps: training steps of a segment, at most.
          probes: of a segment, at most; 0 without a search.
        """
        self._quiet = quiet = not sys.stderr.isatty()
        # Without a terminal one line per segment is enough.
        options = {"file": sys.stderr, "dynamic_ncols": True, "mininterval": 30 if quiet else 0.1}
        self._segments = tqdm(total=len(stream), desc=f"{name:18s}", unit="segment", **options)
        self._steps = tqdm(total=steps, desc="  training", unit="step", leave=False, disable=quiet, **options)
        hidden = quiet or not probes
        self._probes = tqdm(total=probes, desc="  search", unit="probe", leave=False, disable=hidden, **options)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._probes.close()
        self._steps.close()
        self._segments.close()

    @property
    def callbacks(self) -> dict[str, Callable[..., object]]:
        """Arguments of `run_segments`.

        Without a terminal no compiled program calls back, because JAX's compilation cache does not keep programs that
        do.
        """
        inside: dict[str, Callable[..., object]] = {}
        if not self._quiet:
            inside = {"progress": self.step, "on_probes": self.probes}
        return inside | {"on_segment": self.segment}

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
        self._segments.n = line["segment"]
        spent = f"budget {line['allocated_parameters']}/{line['budget_parameters']}"
        self._segments.set_postfix_str(f"recall@20 {line['test_recall@20']:.4f} {spent}", refresh=False)
        self._segments.update(1)
