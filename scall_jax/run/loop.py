"""A run on the host, segment by segment, with a run folder that can be continued."""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scall_jax import tables
from scall_jax.config import Config
from scall_jax.methods.phases import Bookkeeping, Method
from scall_jax.methods.state import RunState
from scall_jax.run import checkpoint, compilation, placement, process_memory, processes, records
from scall_jax.run.config_file import identity_of
from scall_jax.run.folder import named_errors, open_folder
from scall_jax.run.lock import locked
from scall_jax.run.phases import CompiledPhases, OnPhase
from scall_jax.run.segment_files import store_segment
from scall_jax.run.step import Record, Run, make_run
from scall_jax.streams import Segment, Stream
from scall_jax.tables.table import nbytes


def _nothing(*arguments: object) -> None:
    """A hook that nobody gave."""


class Hooks(NamedTuple):
    """Functions of the caller, as `run_segments` describes them; those that were not given do nothing."""

    compiled: Callable[[], object] = _nothing
    segment: Callable[[dict[str, Any]], object] = _nothing
    phase: OnPhase = _nothing


NO_HOOKS = Hooks()
"""Nobody wants to be told."""


def run_segments(
    config: Config,
    stream: Stream,
    key: jax.Array,
    *,
    folder: str | Path | None = None,
    progress: Callable[..., object] | None = None,
    on_probes: Callable[..., object] | None = None,
    on_compiled: Callable[[], object] | None = None,
    on_segment: Callable[[dict[str, Any]], object] | None = None,
    on_phase: OnPhase | None = None,
    method: Method | None = None,
    segments: int | None = None,
) -> list[dict[str, Any]]:
    """Run over a stream segment by segment.

    Args:
      config, stream, key: determine the result.
      folder: run folder. Metrics, sizes and a checkpoint are written there after each segment; a folder that holds some
        segments of the same run is continued.
      progress, on_probes, method: as in `make_run`.
      on_compiled: called after each program is compiled, before any runs; `jax.clear_caches` frees what tracing left.
      on_segment: called with each new line.
      segments: run no further than so many of the first; None for all. With a folder, a later call goes on.
      on_phase: called as on_phase(doing, name) where something begins: doing is compiling, running or writing.

    Returns:
      The lines of `metrics.jsonl`, one per segment; `records.summarise` averages them.

    Raises:
      ValueError: a non-finite loss, or a folder that holds another run, that someone has touched, that another process
        writes, or that cannot be written.
    """
    placement.check_devices(config.mesh)
    folder = None if folder is None else Path(folder)
    with contextlib.ExitStack() as until_the_end:
        if folder is not None:
            # Of several processes the first one has the folder.
            processes.told_by_first(functools.partial(_take, until_the_end, folder))
        run = make_run(config, progress, on_probes, method)
        hooks = Hooks(on_compiled or _nothing, on_segment or _nothing, on_phase or _nothing)
        end = len(stream) if segments is None else min(segments, len(stream))
        return _run_segments(run, config, stream, key, folder, hooks, end)


def _take(until_the_end: contextlib.ExitStack, folder: Path) -> None:
    until_the_end.enter_context(locked(folder))


def _run_segments(
    run: Run,
    config: Config,
    stream: Stream,
    key: jax.Array,
    folder: Path | None,
    hooks: Hooks,
    end: int,
) -> list[dict[str, Any]]:
    def init(key: jax.Array) -> RunState:
        return run.init(key, stream)

    if processes.several():
        processes.require_same("what they run", json.dumps(identity_of(config, stream, key)))
    shapes = jax.eval_shape(init, key)
    books = run.method.bookkeeping(shapes, stream)
    lines = [] if folder is None else processes.told_by_first(lambda: _opened(folder, config, stream, key))
    if len(lines) >= end:
        return lines
    # Compile before allocating the state, so that memory freed by the compiler is reused for it.
    segment = placement.segment_shapes(run.mesh, stream.segment(len(lines)))
    phases = CompiledPhases(run, shapes, segment, hooks.compiled, hooks.phase)
    training = books.training_bytes(shapes, segment, phases.params)
    del segment
    state = _first_state(init, key, hooks)
    if folder is not None and lines:
        state = checkpoint.restore(folder / "checkpoints", len(lines) - 1, state, books.exporter)
    state = placement.put(run.mesh, state)
    for t in range(len(lines), end):
        segment = placement.put_segment(run.mesh, stream.segment(t))
        process_memory.trim_heap()
        state, line, record = one_segment(phases, state, segment)
        seen = placement.on_host(run.mesh, state)
        line |= {"bytes_training": training} | account(books, seen, line, stream)
        if folder is not None:
            hooks.phase("writing", f"segment {t}")
            stored = functools.partial(_stored, folder, books, seen, line, record, segment)
            line |= processes.told_by_first(stored)
            del stored
        lines.append(line)
        hooks.segment(line)
        # Free this segment's arrays before the next one's are made.
        del segment, record, seen
    return lines


def _stored(
    folder: Path, books: Bookkeeping, state: RunState, line: dict[str, Any], record: Record, segment: Segment
) -> dict[str, Any]:
    """Write a segment; its line with the bytes on disk."""
    with named_errors(folder):
        store_segment(folder, books, state, line, record, segment)
    return line


def _opened(folder: Path, config: Config, stream: Stream, key: jax.Array) -> list[dict[str, Any]]:
    with named_errors(folder):
        return open_folder(folder, config, stream, key)


def _first_state(init: Callable[[jax.Array], RunState], key: jax.Array, hooks: Hooks) -> RunState:
    """Compile `init` as one program and drop it; run eagerly, each operation would be compiled and cached."""
    hooks.phase("compiling", "init")
    program = compilation.compiled(init, key)
    hooks.compiled()
    state = jax.block_until_ready(program(key))
    del program
    process_memory.trim_heap()
    return state


def one_segment(phases: CompiledPhases, state: RunState, segment: Segment) -> tuple[RunState, dict[str, Any], Record]:
    """Run a segment.

    Args:
      phases: programs.
      state: before the segment; it is donated.
      segment: the data, on the device.

    Returns:
      The state after the segment, the line of metrics without its account, and the record.

    Raises:
      ValueError: a loss was not finite.
    """
    state, record = phases.run_segment(state, segment)
    records.check(record)
    seconds = phases.seconds
    line = records.as_dict(record) | {
        "bytes_resident": nbytes(state.params),
        "disk_bytes": None,
        "policy_bytes": nbytes(state.planner),
        "seconds_fit": seconds["fit"],
        "seconds_evaluate": seconds["evaluate"],
        "seconds_search": sum(seconds.get(name, 0.0) for name in ("choose", "search_before", "search_after")),
        "seconds_sizes": seconds["prepare"],
        "seconds_compile": phases.take_seconds_compile(),
        "peak_rss_bytes": process_memory.peak_rss_bytes(),
    }
    return state, line, record


def account(books: Bookkeeping, state: RunState, line: dict[str, Any], stream: Stream) -> dict[str, Any]:
    """Bytes of table and serving, counted from the exported arrays, and the bytes that the budget allows.

    Args:
      books: how the method counts.
      state: after a segment.
      line: of `metrics.jsonl` of that segment.
      stream: which has the segment.

    Returns:
      Entries that are added to the line.
    """
    t = line["segment"]
    users, items = np.asarray(state.known).tolist()
    exported = books.exporter.export(state.params, state.plan, (users, items))
    charges = tables.charged(exported)
    charges["metadata"] += books.side_bytes((users, items))
    ways, at_rest = books.serves_by(state.plan, (users, items), stream.graph_bytes(t)), sum(charges.values())
    account = {
        "budget_bytes": books.budget_bytes(t, (users, items)),
        **{f"bytes_{name}": value for name, value in (charges | ways).items()},
        "bytes_table": charges["parameters"] + charges["codes"],
        "bytes_at_rest": at_rest,
        "bytes_serving": at_rest + min(ways.values(), default=0),
        "bytes_replay": stream.replay_bytes(t),
    }
    return account | books.describe(state)
