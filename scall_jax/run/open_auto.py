"""A run of auto that takes new rows: its candidates go on in copies of their folders, and one commit chooses.

Rows that wait are in the folder of the run alone. A segment that is complete is run by every candidate that has not
left, in a copy of its folder within that of the update: a file that counts never changes, so that a copy is made of
links. The commit of the run's manifest lists the new choices, and with them the copies count and the candidates before
them do not. A process that is killed before it leaves all candidates as they were.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from scall_jax.config import Config
from scall_jax.methods.phases import Method
from scall_jax.run import checkpoint, manifest, text_files
from scall_jax.run.auto import feasible, run_as_far
from scall_jax.run.choices import CHOICES, candidate_folder, choices_path, places, read_choices, remove_candidates
from scall_jax.run.leaders import Parts, composed_lines, copy_results, text_of
from scall_jax.run.lock import locked
from scall_jax.run.loop import NO_HOOKS, Hooks
from scall_jax.run.manifest import GROWING, Manifest, Update
from scall_jax.run.open_run import MethodRunner, OpenRun, Ran, read_run
from scall_jax.run.programs import Programs
from scall_jax.run.race import NONE_LEFT, Choice, running, successive_halving, survivors
from scall_jax.streams import Growing


def open_method(folder: Path, method: Method | None, hooks: Hooks) -> OpenRun:
    """Open the folder of a run of one method, which is locked.

    Args:
      folder, method, hooks: as in `update.opened`.

    Raises:
      ValueError: as `update.opened`.
    """
    config, growing, segments = read_run(folder)
    runner = MethodRunner(Programs(config, method, hooks), checkpoint.read(folder / "checkpoints", segments - 1))
    runner.programs.check(runner.snapshot, growing.stream)
    return OpenRun(folder, config, growing, runner)


def open_auto(folder: Path, hooks: Hooks) -> OpenRun:
    """Open the folder of a run of auto, which is locked, with the candidates that still run.

    Args:
      folder, hooks: as in `update.opened`.

    Raises:
      ValueError: as `update.opened`; a candidate's folder is not that of the run.
    """
    config, growing, _ = read_run(folder, checkpoints=False)
    path = choices_path(folder)
    assert path is not None
    for place in places(folder):
        # What a process has left that was killed before these candidates counted, or after others did no longer.
        if place != path.parent:
            remove_candidates(place)
    content = read_choices(path)
    quiet, runs = hooks._replace(segment=NO_HOOKS.segment), {}
    choices, began = [Choice(**segment) for segment in content["segments"]], content["began"]
    for name in running(content):
        part = candidate_folder(path.parent, name)
        if not (part / manifest.NAME).exists():
            raise ValueError(f"{part} is missing, a candidate of {folder}: restore it, or make the run anew")
        with locked(part):
            runs[name] = open_method(part, None, quiet)
            if runs[name].growing.stream.fingerprint != growing.stream.fingerprint:
                raise ValueError(f"{part} has other segments than {folder}: restore it, or make the run anew")
            # One copy of the stream is enough; the rows that wait are those of the run.
            runs[name] = OpenRun(part, runs[name].config, growing, runs[name].runner)
    runner = AutoRunner(config, path.parent, runs, choices, content["left_out"], began, hooks)
    return OpenRun(folder, config, growing, runner)


class AutoRunner(NamedTuple):
    """Runs segments with the candidates that still run."""

    config: Config
    """Of the run."""
    place: Path
    """Folder in which the candidates are."""
    runs: Mapping[str, OpenRun]
    """The candidates that still run."""
    choices: list[Choice]
    """Of all segments."""
    left_out: dict[str, str]
    """By candidate why it is not run."""
    began: int
    """As in `leaders.Parts`."""
    hooks: Hooks
    """Of the caller."""
    replaces: Path | None = None
    """Folder in which the candidates were before."""

    def run(self, folder: Path, update: Update, new: Growing) -> Ran:
        """As `Runner.run`; a candidate is left out that does not fit into the budget, or come to an end, any longer."""
        place = folder / update.folder
        try:
            fits, reasons = feasible({name: run.config for name, run in self.runs.items()}, new.stream)
        except ValueError as error:
            raise ValueError(f"{error}; {NONE_LEFT}") from error
        staying = [name for name, count in fits.items() if count > update.first]
        runs = {name: self.runs[name].at(candidate_folder(place, name)) for name in staying}
        for name, run in runs.items():
            copy_run(self.runs[name].folder, run.folder)
            if len(text_files.read_lines(run.folder / GROWING)) != update.first:
                raise ValueError(f"{self.runs[name].folder} has been changed meanwhile: open {folder} anew")
            if error := run_as_far(run.add_placed, new, update.first, fits[name]):
                reasons[name] = str(error)
        lines = {name: text_files.read_lines(run.folder / GROWING) for name, run in runs.items()}
        choices = [*self.choices, *successive_halving(lines, self.began, update.first)]
        if len(choices) < update.end:
            raise ValueError("; ".join(["no candidate of auto comes to an end", *reasons.values(), NONE_LEFT]))
        left_out = self.left_out | reasons
        parts = Parts({name: run.folder for name, run in runs.items()}, lines, choices, left_out, self.began)
        names = copy_results(folder, parts, update.first)
        found = composed_lines(self.config, parts, update.first)
        for line in found:
            text_files.append_line(folder / GROWING, line)
            self.hooks.segment(line)
        manifest.write_durably(place / CHOICES, text_of(parts))
        stay = {name: runs[name] for name in survivors(choices[-1].valid, len(choices), self.began)}
        runner = AutoRunner(self.config, place, stay, choices, left_out, self.began, self.hooks, self.place)
        return Ran([GROWING, *names, f"{update.folder}/{CHOICES}"], found, runner)

    def committed(self) -> None:
        """Delete the candidates as they were before."""
        if self.replaces is not None:
            # Where that fails, because another process holds one of them, they are deleted at the next opening.
            with contextlib.suppress(ValueError, OSError):
                remove_candidates(self.replaces)


def copy_run(source: Path, target: Path) -> None:
    """Make a run folder with the files that count in another; none of them is written a second time.

    Args:
      source: of a run.
      target: which does not exist, or has no files.

    Raises:
      ValueError: another process writes to the source.
    """
    with locked(source):
        found = manifest.read(source)
        manifest.refuse_links(source, found.files)
        # What may be moved away may have been since the folder was opened.
        present = {
            name: entry
            for name, entry in found.files.items()
            if not manifest.is_derived(name) or (source / name).exists()
        }
        for name, entry in present.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            if name == GROWING:
                # The one file that is appended to must not be one with the other folder's.
                _write(target / name, (source / name).read_bytes()[: entry.nbytes])
            else:
                _link(source / name, target / name)
        manifest.write(target, Manifest(present, {}, None))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # A file system without links.
        _write(target, source.read_bytes())


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
