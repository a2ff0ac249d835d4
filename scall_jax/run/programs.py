"""Programs: a run's compiled programs, which run further segments of a stream that grows."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.phases import Bookkeeping, Method
from scall_jax.methods.registry import method_of
from scall_jax.methods.state import RunState
from scall_jax.run import placement, process_memory
from scall_jax.run.checkpoint import Snapshot, revive
from scall_jax.run.loop import NO_HOOKS, Hooks, account, one_segment
from scall_jax.run.phases import CompiledPhases
from scall_jax.run.step import Record, make_run
from scall_jax.streams import Segment, Stream


class Step(NamedTuple):
    """What a segment leaves."""

    state: RunState
    """After the segment. The next segment overwrites it."""
    line: dict[str, Any]
    """Of `metrics.jsonl`."""
    record: Record
    """Of the segment."""
    segment: Segment
    """The data."""
    books: Bookkeeping
    """How the method counts and exports."""


class Programs:
    """A run's compiled programs, kept as long as the shapes of a growing stream stay the same."""

    serve: Callable[..., Any] | None
    """`MethodPhases.serve`, compiled when it is called."""

    def __init__(
        self,
        config: Config,
        method: Method | None = None,
        hooks: Hooks = NO_HOOKS,
        progress: Callable[..., object] | None = None,
        on_probes: Callable[..., object] | None = None,
    ):
        """Compile nothing yet.

        Args:
          config, method, progress, on_probes: as in `make_run`.
          hooks: functions of the caller.

        Raises:
          ValueError: a method whose storage is made for all of a stream, so that it cannot go on.
        """
        if not (method or method_of(config.method)).budget_is_data:
            raise ValueError(
                f"method {config.method} cannot go on: the shapes of its storage follow from the whole stream and its "
                "budget; make the run anew with all rows, or choose a method with sizes"
            )
        self.config, self.run, self.hooks = config, make_run(config, progress, on_probes, method), hooks
        self.serve = None if self.run.method.serve is None else jax.jit(self.run.method.serve, static_argnums=3)
        self._phases: CompiledPhases | None = None
        self._shapes: Any = None

    def template(self, stream: Stream) -> tuple[RunState, Bookkeeping]:
        """Shapes of a state on a stream, with the values of `RunState.totals`, and the method's bookkeeping.

        Args:
          stream: which need not be the one that programs were compiled for.

        Raises:
          ValueError: a budget that does not suffice for some segment.
        """
        key = jax.random.key(0)  # The key of a template says which kind of key there is.
        shapes = jax.eval_shape(lambda key: self.run.init(key, stream), key)
        books = self.run.method.bookkeeping(shapes, stream)
        return shapes._replace(key=key, totals=jnp.asarray(books.totals())), books

    def check(self, found: Snapshot, stream: Stream) -> None:
        """Check that a state fits the shapes that the growing stream has.

        Args:
          found: the state after the stream's last segment.
          stream: whose capacities are powers of two.

        Raises:
          ValueError: the method remembers something for each entity of the stream that it was run on.
        """
        template, _ = self.template(stream)
        leaves = jax.tree.leaves((template.planner, template.recommender))
        sizes = {f"{i:04d}": leaf.size for i, leaf in enumerate(leaves) if leaf.size}
        if sizes != {name: leaf.size for name, leaf in found.memory.items()}:
            raise ValueError(
                f"method {self.config.method} cannot go on: what it remembers has a place for each user and item of "
                "the stream that it was run on; make the run anew with all rows"
            )

    def advance(self, found: Snapshot, stream: Stream, first: int) -> Iterator[Step]:
        """Run the segments of a stream from one on.

        Args:
          found: the state after the segment before.
          stream: with these segments.
          first: number of the first of them.

        Yields:
          What each segment leaves, to be used before the next one is asked for.

        Raises:
          ValueError: a budget that does not suffice for some segment, before any is run; a non-finite loss.
        """
        template, books = self.template(stream)
        mesh = self.run.mesh
        placement.check_devices(mesh)
        segment = placement.segment_shapes(mesh, stream.segment(first))
        phases = self._compiled(template, segment)
        training = books.training_bytes(template, segment, phases.params)
        state = placement.put(mesh, revive(found, template, books.exporter))
        for t in range(first, len(stream)):
            segment = placement.put_segment(mesh, stream.segment(t))
            process_memory.trim_heap()
            state, line, record = one_segment(phases, state, segment)
            line |= {"bytes_training": training} | account(books, state, line, stream)
            self.hooks.segment(line)
            yield Step(state, line, record, segment, books)

    def _compiled(self, state: RunState, segment: Segment) -> CompiledPhases:
        """Programs for these shapes: those that there are, if they fit."""
        leaves, structure = jax.tree.flatten((state, segment))
        shapes = structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
        if self._phases is None or shapes != self._shapes:
            # Free the old programs before others are compiled.
            self._phases = None
            self._phases = CompiledPhases(self.run, state, segment, self.hooks.compiled, self.hooks.phase)
            self._shapes = shapes
        return self._phases
