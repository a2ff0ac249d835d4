"""Keeping a run folder up with its stream: rows are added, and segments that are complete are run, in one commit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from scall_jax.methods.phases import Method
from scall_jax.run import checkpoint, manifest
from scall_jax.run import folder as run_folder
from scall_jax.run.auto import CHOICES
from scall_jax.run.checkpoint import Snapshot
from scall_jax.run.folder import commit, named_errors, stays, write_segment
from scall_jax.run.lock import locked
from scall_jax.run.loop import NO_HOOKS, Hooks
from scall_jax.run.manifest import GROWING, Update
from scall_jax.run.programs import Programs
from scall_jax.run.update_files import read_growing, read_kept, write_update
from scall_jax.streams import Growing, Interactions, advance
from scall_jax.streams.growing import Late


class Added(NamedTuple):
    """What an update did."""

    rows: int
    """Rows that were added."""
    lines: tuple[dict[str, Any], ...]
    """Lines of `metrics.jsonl` of the segments that were completed."""
    waiting: int
    """Rows that are in no segment yet."""


class OpenRun:
    """A run folder that takes new rows; made by `opened`."""

    def __init__(self, folder: Path, method: Method | None, hooks: Hooks):
        """Read a finished run, whose folder is locked; see `opened`."""
        self.folder = folder
        found = manifest.check(folder)
        if CHOICES in found.files:
            raise ValueError(
                f"{folder} is a run of auto, which takes no new rows: make it anew with all rows, or run and update "
                "one method"
            )
        identity = run_folder.read_identity(folder / run_folder.CONFIG)
        self.config = run_folder.config_of(identity["config"], folder / run_folder.CONFIG)
        lines = run_folder.recover(folder, found)
        if len(lines) != identity["stream"]["segments"]:
            segments = identity["stream"]["segments"]
            raise ValueError(f"{folder} has {len(lines)} of {segments} segments: finish the run first, with --resume")
        found = manifest.read(folder)
        self._kept = read_kept(folder, found)
        self._growing = read_growing(folder, found)
        self._snapshot = checkpoint.read(folder / "checkpoints", len(lines) - 1)
        self._programs = Programs(self.config, method, hooks)
        self._programs.check(self._snapshot, self._growing.stream)

    @property
    def growing(self) -> Growing:
        """The stream as far as it has come."""
        return self._growing

    @property
    def offset(self) -> Any:
        """How far the source of the rows has been read, as it was given with the last rows; None at first."""
        return None if self._kept is None else self._kept.offset

    def add(self, rows: Interactions | pl.DataFrame, *, offset: Any = None, late: Late = "refuse") -> Added:
        """Add rows to the folder, and run the segments that they complete.

        All of it counts at once or not at all: a process that is killed, and an error, leave the folder as it was.

        Args:
          rows, late: as in `streams.advance`.
          offset: how far the caller's source has been read with these rows: anything that JSON holds, or None to leave
            what there is. It is kept together with the rows, so that a caller who goes on from `offset` gives each row
            once.

        Returns:
          What was done.

        Raises:
          ValueError: rows that cannot be placed, a budget that does not suffice any longer, or a non-finite loss.
        """
        new = advance(self._growing, rows, late)
        count = len(new.stream.user) + len(new.waiting) - len(self._growing.stream.user) - len(self._growing.waiting)
        if not count and offset in (None, self.offset):
            return Added(0, (), len(new.waiting))
        number = 1 if self._kept is None else self._kept.number + 1
        update = Update(number, len(self._growing.stream), len(new.stream))
        with named_errors(self.folder, "nothing was added; add the rows again once it can be written"):
            before = manifest.read(self.folder)
            manifest.refuse_links(self.folder, [update.folder])
            manifest.write(self.folder, before._replace(writing=update.name))
            try:
                names, lines, snapshot = self._run(new)
                written, counts = write_update(
                    self.folder, update, self._kept, self._growing, new, self.offset if offset is None else offset
                )
                # Segments make what was drawn from the run's lines, such as its summary, out of date.
                cut = bool(lines)
                commit(
                    self.folder,
                    before,
                    [*names, *written],
                    lambda name: name in counts or (stays(name) if cut else not name.startswith(manifest.UPDATES)),
                )
            except BaseException:
                run_folder.recover(self.folder, manifest.read(self.folder))
                raise
            self._growing, self._snapshot = new, snapshot
            self._kept = read_kept(self.folder, manifest.read(self.folder))
            return Added(count, tuple(lines), len(new.waiting))

    def _run(self, new: Growing) -> tuple[list[str], list[dict[str, Any]], Snapshot]:
        """Run the segments that are new, and write their files: paths, lines, and the state after them."""
        first, end = len(self._growing.stream), len(new.stream)
        names, lines, snapshot = [], [], self._snapshot
        if first == end:
            return names, lines, snapshot
        for step in self._programs.advance(snapshot, new.stream, first):
            self._programs.hooks.phase("writing", f"segment {step.line['segment']}")
            files, path = write_segment(self.folder, step.books, step.state, step.line, step.record, step.segment)
            names += files
            lines.append(step.line)
            if step.line["segment"] == end - 1:
                snapshot = checkpoint.snapshot(step.state, step.books.exporter)
                checkpoint.publish(path)
            else:
                checkpoint.discard(path)
        return [GROWING, *names, f"checkpoints/segment-{end - 1:04d}"], lines, snapshot


@contextlib.contextmanager
def opened(folder: str | Path, *, method: Method | None = None, hooks: Hooks = NO_HOOKS) -> Iterator[OpenRun]:
    """Open a run folder to add rows to it; until the end no other process can write to it.

    Programs are compiled when the first segment is complete, and are kept for the next ones.

    Args:
      folder: of a finished run.
      method: a method that `METHODS` does not list, as in `run_segments`.
      hooks: functions that are called while segments are run.

    Yields:
      The run; `OpenRun.add` adds rows.

    Raises:
      ValueError: the folder holds no finished run, is being written by another process, or its method or its stream
        cannot go on; the message says why.

    >>> import tempfile, jax
    >>> from scall_jax import Config, run_segments, streams
    >>> rows = streams.synthetic(jax.random.key(0), users=100, items=50, interactions=1000)
    >>> stream = streams.cut(rows, rows=300)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = run_segments(Config("popularity-all"), stream, jax.random.key(0), folder=folder)
    ...     with opened(folder) as run:
    ...         later = pl.DataFrame({"user": [1] * 250, "item": list(range(250)), "time": run.growing.clock + 10**9})
    ...         before, added = len(run.growing.waiting), run.add(later, offset={"line": 250})
    ...         before, added.rows, [line["segment"] for line in added.lines], added.waiting, run.offset
    (100, 250, [3], 50, {'line': 250})
    """
    path = Path(folder)
    if not (path / manifest.NAME).exists():
        raise ValueError(f"{path} is no run folder: give one that has a {manifest.NAME}, such as runs/demo/uniform")
    with locked(path):
        yield OpenRun(path, method, hooks)
