"""Progress bars over segments and training steps, fed from the host side of a run."""

import sys

from tqdm.auto import tqdm

from scall_jax.streams import Stream


class Progress:
    """Nested bars: segments of the stream, steps of the current fit, probes of the current search."""

    def __init__(self, name: str, stream: Stream, steps: int, probes: int = 0):
        self._quiet = quiet = not sys.stderr.isatty()
        # without a terminal one line per segment is enough
        options = {"file": sys.stderr, "dynamic_ncols": True, "mininterval": 30 if quiet else 0.1}
        self._segments = tqdm(total=len(stream), desc=f"{name:18s}", unit="segment", **options)
        self._steps = tqdm(total=steps, desc="  training", unit="step", leave=False, disable=quiet, **options)
        hidden = quiet or not probes
        self._probes = tqdm(total=probes, desc="  search", unit="probe", leave=False, disable=hidden, **options)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._probes.close()
        self._steps.close()
        self._segments.close()

    @property
    def callbacks(self) -> dict:
        """Arguments of `run_segments`. Without a terminal nothing calls back from inside a compiled program: programs
        that do are not kept in JAX's compilation cache."""
        inside = {} if self._quiet else {"progress": self.step, "on_probes": self.probes}
        return inside | {"on_segment": self.segment}

    def step(self, segment, step, loss, fitness) -> None:
        """After an evaluation during a fit."""
        text = f"segment {int(segment)} loss {float(loss):.3f} valid {float(fitness):.4f}"
        self._refresh(self._steps, int(step), text)

    def probes(self, segment, done, best) -> None:
        """After a round of probes."""
        self._refresh(self._probes, int(done), f"segment {int(segment)} best {float(best):.3f} of the reference")

    def _refresh(self, bar, number: int, text: str) -> None:
        bar.set_postfix_str(text)
        bar.n = number
        bar.refresh()

    def segment(self, line: dict) -> None:
        """After a segment; its line of metrics."""
        self._segments.n = line["segment"]
        held = f"budget {line['allocated_parameters']}/{line['budget_parameters']}"
        self._segments.set_postfix_str(f"recall@20 {line['test_recall@20']:.4f} {held}", refresh=False)
        self._segments.update(1)
