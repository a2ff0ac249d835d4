"""The phases of a run as programs, compiled ahead of time, that never hold a large array twice."""

import time
from collections.abc import Callable
from typing import Any

import jax

from scall_jax.methods.state import RunState
from scall_jax.run import compilation, placement, process_memory
from scall_jax.run.step import Record, Run, in_order
from scall_jax.streams import Segment

OnPhase = Callable[[str, str], object]
"""(what is being done: compiling, running or writing; name of the program or of what is written)."""


class CompiledPhases:
    """Programs of a run for states and segments of given shapes.

    Large arrays are donated: the parameters to `fit`, the parameters and the planner's memory to `evaluate` and to the
    searches (`split_donated`).
    """

    params: Any
    """Shapes and dtypes of the parameters that are trained."""
    seconds: dict[str, float]
    """Seconds of each phase of the latest segment."""
    programs: dict[str, jax.stages.Compiled]
    """By name of the phase."""

    def __init__(
        self,
        run: Run,
        state: RunState,
        segment: Segment,
        on_compiled: Callable[[], object] | None = None,
        on_phase: OnPhase | None = None,
    ):
        """Compile all phases.

        Args:
          run: its functions.
          state, segment: arrays or `jax.ShapeDtypeStruct`, of which the shapes and dtypes matter.
          on_compiled: called after each program.
          on_phase: called before each program is compiled, and before it runs.
        """
        start, self.programs, self._on_compiled, self._run = time.perf_counter(), {}, on_compiled, run
        self.seconds, self._on_phase = {}, on_phase or _unheard

        def fit(params, state, segment, prepared):
            return run.fit(state, segment, prepared._replace(params=params))

        def evaluate(own, state, *rest):
            return run.evaluate(state._replace(**own), *rest)

        # The largest program is compiled first: the others reuse the memory that its compilation frees.
        for name in ("search_before", "search_after"):
            search = getattr(run, name)
            if search is not None:
                self._compile(name, _donating(search), *split_donated(state), segment, donate=(0,))
        if run.choose is not None:
            self._compile("choose", run.choose, _choosing(state), segment)
        prepared = self._compile("prepare", run.prepare, state, segment)
        self.params = params = prepared.params
        prepared, state = prepared._replace(params=()), state._replace(params=())
        donated = (0,) if run.method.keeps_shapes else ()
        fit_result = self._compile("fit", fit, params, state, segment, prepared, donate=donated)
        self._compile("evaluate", evaluate, *split_donated(state), segment, prepared, fit_result, donate=(0,))
        self._seconds_compile = time.perf_counter() - start

    def _compile(self, name: str, function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
        """Compile one phase; the shapes and dtypes of its result."""
        self._on_phase("compiling", name)
        mesh, places = self._run.mesh, None
        if mesh.devices > 1:
            arguments = placement.shapes(mesh, arguments)
            places = placement.shardings(mesh, jax.eval_shape(function, *arguments))
        program = compilation.compiled(function, *arguments, donate=donate, out_shardings=places)
        self.programs[name] = program
        if self._on_compiled is not None:
            self._on_compiled()
        found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.out_info)
        return placement.shapes(mesh, found)

    def run_segment(self, state: RunState, segment: Segment) -> tuple[RunState, Record]:
        """Run all phases on one segment.

        Args:
          state: before the segment. Its parameters and planner memory are donated and must not be used afterwards.
          segment: the data, on the device.

        Returns:
          The state after the segment, and its record.
        """
        self.seconds = {}

        def call(name, state, segment, prepared=None, *rest):
            if name == "choose":
                return state._replace(recommender=self._timed(name, _choosing(state), segment).recommender)
            if name == "prepare":
                return self._timed(name, state, segment)
            if prepared is None:
                return self._timed(name, *split_donated(state), segment)
            # `prepare` has copied the parameters into those that are trained; free the old ones for training.
            state = state._replace(params=())
            params, prepared = prepared.params, prepared._replace(params=())
            if name == "fit":
                return self._timed(name, params, state, segment, prepared)
            return self._timed(name, *split_donated(state), segment, prepared, *rest)

        state, record, found = in_order(self._run, call, state, segment)
        return state, record if found is None else record._replace(search=found)

    def _timed(self, name: str, *arguments: Any) -> Any:
        self._on_phase("running", name)
        start = time.perf_counter()
        result = jax.block_until_ready(self.programs[name](*arguments))
        self.seconds[name] = time.perf_counter() - start
        process_memory.trim_heap()
        return result

    def take_seconds_compile(self) -> float:
        """Seconds that compilation took, on the first call; 0 from then on."""
        seconds, self._seconds_compile = self._seconds_compile, 0.0
        return seconds


def _choosing(state: RunState) -> RunState:
    """What a choice reads, which is the same for methods that differ in sizes alone: then they share its program."""
    return state._replace(params=(), plan=(), planner=())


def _unheard(doing: str, name: str) -> None:
    """Nobody wants to know."""


def _donating(search: Callable[[RunState, Segment], Any]) -> Callable[..., Any]:
    return lambda own, state, segment: search(state._replace(**own), segment)


def split_donated(state: RunState) -> tuple[dict[str, Any], RunState]:
    """Separate what a program may overwrite from what the caller keeps.

    Args:
      state: of a run.

    Returns:
      The parameters and the planner's memory by field name, which only the run holds and may donate, and the state
      without them, which contains the caller's key.
    """
    return {"params": state.params, "planner": state.planner}, state._replace(params=(), planner=())
