"""The phases of a run as programs, compiled ahead of time and without holding anything large twice."""

import time
from collections.abc import Callable

import jax

from scall_jax.methods.state import RunState
from scall_jax.run import compilation, process_memory
from scall_jax.run.step import Record, Run, in_order
from scall_jax.streams import Segment


class CompiledPhases:
    """Programs of a run for states and segments of given shapes.

    What is large is donated: the parameters to `fit`, the parameters and the planner's memory to `evaluate` and to the
    searches (`split_donated`).
    """

    def __init__(
        self,
        run: Run,
        state: RunState,
        segment: Segment,
        on_compiled: Callable[[], object] | None = None,
    ):
        """Compile all phases.

        Args:
          run: its functions.
          state, segment: of which the shapes matter.
          on_compiled: called after each program.
        """
        start, self._programs, self._on_compiled, self._run = time.perf_counter(), {}, on_compiled, run
        self.seconds: dict[str, float] = {}
        """Seconds of each phase of the latest segment."""

        def fit(params, state, segment, prepared):
            return run.fit(state, segment, prepared._replace(params=params))

        def evaluate(own, state, *rest):
            return run.evaluate(state._replace(**own), *rest)

        # The largest program is compiled first: memory that its compilation frees holds the others afterwards.
        for name in ("search_before", "search_after"):
            if getattr(run, name) is not None:
                self._compile(name, _donating(getattr(run, name)), *split_donated(state), segment, donate=(0,))
        prepared = self._compile("prepare", run.prepare, state, segment)
        self.params = params = prepared.params
        """Shapes of the parameters that are trained."""
        prepared, state = prepared._replace(params=()), state._replace(params=())
        donated = (0,) if run.method.keeps_shapes else ()
        fit_result = self._compile("fit", fit, params, state, segment, prepared, donate=donated)
        self._compile("evaluate", evaluate, *split_donated(state), segment, prepared, fit_result, donate=(0,))
        self._seconds_compile = time.perf_counter() - start

    def _compile(self, name, function, *arguments, donate=()):
        """Shapes of the result."""
        self._programs[name] = program = compilation.compiled(function, *arguments, donate=donate)
        if self._on_compiled is not None:
            self._on_compiled()
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.out_info)

    def run_segment(self, state: RunState, segment: Segment) -> tuple[RunState, Record]:
        """Run all phases on one segment; what of the state is donated must not be used again."""
        self.seconds = {}

        def call(name, state, segment, prepared=None, *rest):
            if name == "prepare":
                return self._timed(name, state, segment)
            if prepared is None:
                return self._timed(name, *split_donated(state), segment)
            # The parameters have been carried over into those that are trained: training needs the room.
            state = state._replace(params=())
            params, prepared = prepared.params, prepared._replace(params=())
            if name == "fit":
                return self._timed(name, params, state, segment, prepared)
            return self._timed(name, *split_donated(state), segment, prepared, *rest)

        state, record, found = in_order(self._run, call, state, segment)
        return state, record if found is None else record._replace(search=found)

    def _timed(self, name: str, *arguments):
        start = time.perf_counter()
        result = jax.block_until_ready(self._programs[name](*arguments))
        self.seconds[name] = time.perf_counter() - start
        process_memory.trim_heap()
        return result

    def take_seconds_compile(self) -> float:
        """Seconds of compilation, the first time; 0 from then on."""
        seconds, self._seconds_compile = self._seconds_compile, 0.0
        return seconds


def _donating(search):
    return lambda own, state, segment: search(state._replace(**own), segment)


def split_donated(state: RunState) -> tuple[dict, RunState]:
    """What of a state is the run's own and may be donated, and the rest of it, which holds the caller's key."""
    return {"params": state.params, "planner": state.planner}, state._replace(params=(), planner=())
