"""The phases of a run as programs, compiled ahead of time and without holding anything large twice."""

import time
from collections.abc import Callable

import jax

from scall_jax import compilation, heap
from scall_jax.run import Run
from scall_jax.state import RunState
from scall_jax.streams import Segment


class Phases:
    """Programs of a run for states and segments of given shapes, called by the name of the phase.

    The first argument of all but `prepare` is donated: `fit` takes the parameters apart from the rest of what is
    prepared, `evaluate` and `search` the parameters and the chooser's memory apart from the rest of a state (`apart`).
    """

    def __init__(
        self,
        run: Run,
        state: RunState,
        segment: Segment,
        trains: bool = True,
        on_compiled: Callable[[], object] | None = None,
    ):
        """Compile all phases; of `state` and `segment` the shapes matter.

        `trains`: parameters keep their shapes. `on_compiled` is called after each program.
        """
        start, self._programs, self._on_compiled = time.perf_counter(), {}, on_compiled

        def fit(params, state, segment, prepared):
            return run.fit(state, segment, prepared._replace(params=params))

        def evaluate(own, state, *rest):
            return run.evaluate(state._replace(**own), *rest)

        def search(own, state, segment):
            return run.search(state._replace(**own), segment)

        # the largest first: what its compilation takes for a moment holds the others afterwards
        if run.search is not None:
            self._compile("search", search, *apart(state), segment, donate=(0,))
        prepared = self._compile("prepare", run.prepare, state, segment)
        params, prepared, state = prepared.params, prepared._replace(params=()), state._replace(params=())
        fitted = self._compile("fit", fit, params, state, segment, prepared, donate=(0,) if trains else ())
        self._compile("evaluate", evaluate, *apart(state), segment, prepared, fitted, donate=(0,))
        self._seconds_compile = time.perf_counter() - start

    def _compile(self, name, function, *arguments, donate=()):
        """Shapes of the result."""
        self._programs[name] = program = compilation.compiled(function, *arguments, donate=donate)
        if self._on_compiled is not None:
            self._on_compiled()
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.out_info)

    def __call__(self, name: str, *arguments):
        """Result and seconds of one phase."""
        start = time.perf_counter()
        result = jax.block_until_ready(self._programs[name](*arguments))
        seconds = time.perf_counter() - start
        heap.give_back()
        return result, seconds

    def take_seconds_compile(self) -> float:
        """Seconds of compilation, the first time; 0 from then on."""
        seconds, self._seconds_compile = self._seconds_compile, 0.0
        return seconds


def apart(state: RunState) -> tuple[dict, RunState]:
    """What of a state is the run's own and may be donated, and the rest of it, which holds the caller's key."""
    return {"params": state.params, "chooser": state.chooser}, state._replace(params=(), chooser=())
