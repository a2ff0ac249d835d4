"""A run folder that takes new rows: they count, with the segments that they complete, in one commit or not at all."""

import copy
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import polars as pl

from scall_jax.config import Config
from scall_jax.run import checkpoint, config_file, manifest
from scall_jax.run import folder as run_folder
from scall_jax.run.checkpoint import Snapshot
from scall_jax.run.choices import CHOICES
from scall_jax.run.folder import commit, named_errors, stays
from scall_jax.run.manifest import GROWING, Manifest, Update
from scall_jax.run.programs import Programs
from scall_jax.run.segment_files import write_segment
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


class Ran(NamedTuple):
    """Segments that have been run and do not count yet."""

    names: list[str]
    """Paths of the files that were written."""
    lines: list[dict[str, Any]]
    """Of `metrics.jsonl`."""
    runner: "Runner"
    """What runs the segments after them."""


class Runner(Protocol):
    """Runs the segments of an open run; it is not changed by that."""

    def run(self, folder: Path, update: Update, new: Growing) -> Ran:
        """Run segments.

        Args:
          folder: of the run, in which files may be written that `manifest.left_over` knows by the update.
          update: which has one segment at least.
          new: the stream with these segments.

        Raises:
          ValueError: a budget that does not suffice any longer, or a non-finite loss.
        """
        ...

    def committed(self) -> None:
        """What this runner has run counts from now on."""
        ...


class MethodRunner(NamedTuple):
    """Runs segments with one method."""

    programs: Programs
    """Of the method."""
    snapshot: Snapshot
    """The state after the last segment."""

    def run(self, folder: Path, update: Update, new: Growing) -> Ran:
        """As `Runner.run`."""
        names, lines, snapshot = [], [], self.snapshot
        for step in self.programs.advance(snapshot, new.stream, update.first):
            self.programs.hooks.phase("writing", f"segment {step.line['segment']}")
            files, path = write_segment(folder, step.books, step.state, step.line, step.record, step.segment)
            names += files
            lines.append(step.line)
            if step.line["segment"] == update.end - 1:
                snapshot = checkpoint.snapshot(step.state, step.books.exporter)
                checkpoint.publish(path)
            else:
                checkpoint.discard(path)
        names = [GROWING, *names, f"checkpoints/segment-{update.end - 1:04d}"]
        return Ran(names, lines, MethodRunner(self.programs, snapshot))

    def committed(self) -> None:
        """Nothing is left to be done."""


class OpenRun:
    """A run folder that takes new rows; made by `update.opened`."""

    def __init__(self, folder: Path, config: Config, growing: Growing, runner: Runner):
        """See `read_run`; the folder is locked, and nothing in it is being written."""
        self.folder, self.config = folder, config
        self._growing, self.runner = growing, runner
        self._kept = read_kept(folder, manifest.read(folder))

    @property
    def growing(self) -> Growing:
        """The stream as far as it has come."""
        return self._growing

    @property
    def offset(self) -> Any:
        """How far the source of the rows has been read, as it was given with the last rows; None at first."""
        return None if self._kept is None else self._kept.offset

    def at(self, folder: Path) -> "OpenRun":
        """The same run in a copy of its folder."""
        found = copy.copy(self)
        found.folder = folder
        return found

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
        return self.add_placed(advance(self._growing, rows, late), offset)

    def add_placed(self, new: Growing, offset: Any = None) -> Added:
        """As `add`, with rows that are in the stream already.

        Args:
          new: what has become of `growing` with them.
          offset: as in `add`.

        Returns, Raises: as `add`.
        """
        count = len(new.stream.user) + len(new.waiting) - len(self._growing.stream.user) - len(self._growing.waiting)
        # Rows that a run has left out, by its largest number of segments, may complete some without a new one.
        cut = len(new.stream) > len(self._growing.stream)
        if not count and not cut and offset in (None, self.offset):
            return Added(0, (), len(new.waiting))
        number = 1 if self._kept is None else self._kept.number + 1
        update = Update(number, len(self._growing.stream), len(new.stream))
        with named_errors(self.folder, "nothing was added; add the rows again once it can be written"):
            before = manifest.read(self.folder)
            manifest.refuse_links(self.folder, [update.folder])
            manifest.write(self.folder, before._replace(writing=update.name))
            ran = Ran([], [], self.runner)
            try:
                if cut:
                    ran = self.runner.run(self.folder, update, new)
                self._commit(before, update, new, ran, self.offset if offset is None else offset)
                self._go_on(new, ran)
            except BaseException as error:
                found = manifest.read(self.folder)
                if not any(name.startswith(f"{update.folder}/") for name in found.files):
                    run_folder.recover(self.folder, found, checkpoints=not _is_auto(before))
                    raise
                # The rows count. What they put out of date, and could not be deleted, is deleted at the next opening.
                self._go_on(new, ran)
                if not isinstance(error, OSError):
                    raise
            if cut:
                self.runner.committed()
            return Added(count, tuple(ran.lines), len(new.waiting))

    def _go_on(self, new: Growing, ran: Ran) -> None:
        """Take up the stream, the runner and the files as they are once new rows count."""
        self._growing, self.runner = new, ran.runner
        self._kept = read_kept(self.folder, manifest.read(self.folder))

    def _commit(self, before: Manifest, update: Update, new: Growing, ran: Ran, offset: Any) -> None:
        written, counts = write_update(self.folder, update, self._kept, self._growing, new, offset)
        cut = bool(ran.lines)

        def kept(name: str) -> bool:
            # Segments make what was drawn from the run's lines, such as its summary, out of date.
            return stays(name) if cut else not name.startswith(manifest.UPDATES) or Path(name).name == CHOICES

        commit(self.folder, before, [*ran.names, *written], lambda name: name in counts or kept(name))


def _is_auto(found: Manifest) -> bool:
    return any(Path(name).name == CHOICES for name in found.files)


def read_run(folder: Path, checkpoints: bool = True) -> tuple[Config, Growing, int]:
    """Read a finished run, whose folder this process has locked, and delete what a process that was killed has left.

    Args:
      folder: of the run.
      checkpoints: as in `folder.recover`.

    Returns:
      Its configuration, its stream, and how many segments it has.

    Raises:
      ValueError: the folder holds no finished run, or its stream cannot go on.
    """
    found = manifest.check(folder)
    identity = config_file.read_identity(folder / config_file.CONFIG)
    config = config_file.config_of(identity["config"], folder / config_file.CONFIG)
    lines = run_folder.recover(folder, found, checkpoints)
    if len(lines) != identity["stream"]["segments"]:
        segments = identity["stream"]["segments"]
        raise ValueError(f"{folder} has {len(lines)} of {segments} segments: finish the run first, with --resume")
    return config, read_growing(folder, manifest.read(folder)), len(lines)
