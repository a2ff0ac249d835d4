"""The folder of a run: how it is made, how a run is continued in it, and which of its files count.

`manifest` lists every file with a hash and `lock` keeps other processes out: a folder that someone touched is refused
with the file's name.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from scall_jax.config import Config
from scall_jax.run import manifest
from scall_jax.run.config_file import CONFIG, difference, identity_of, read_identity
from scall_jax.run.lock import locked
from scall_jax.run.manifest import GROWING, Manifest
from scall_jax.run.stream_files import keep_stream
from scall_jax.run.text_files import read_lines
from scall_jax.run.update_files import read_kept
from scall_jax.streams import Stream

_KEPT = (CONFIG, *manifest.STREAM, "sizes/", "users/", "tensorboard/")

SUMMARY = "summary.json"
"""Name of the file that marks a finished run."""


def stays(name: str) -> bool:
    """Whether a listed file stays as it is while segments are added to a run that has not been updated."""
    return name.startswith(_KEPT)


def commit(folder: Path, before: Manifest, names: Iterable[str], kept: Callable[[str], bool]) -> None:
    """List files that have been written, and delete those that do not count any longer.

    Args:
      folder: of a run.
      before: its manifest.
      names: paths of the files, or of folders of them.
      kept: whether a file that was listed counts still. The rest is deleted: the last checkpoint, and a summary, which
        a run that goes on has no longer.
    """
    written = manifest.entries(folder, names)
    still = {file: entry for file, entry in before.files.items() if kept(file)}
    # What an earlier commit could not delete is the run's own still.
    gone = before.obsolete | before.files
    obsolete = {file: entry for file, entry in gone.items() if file not in {*still, *written}}
    manifest.write(folder, Manifest(still | written, obsolete, None))
    manifest.delete(folder, obsolete)


def open_folder(folder: Path, config: Config, stream: Stream, key: jax.Array) -> list[dict[str, Any]]:
    """Create a run folder, or continue the run that is in it.

    Args:
      folder: to be created where it does not exist.
      config, stream, key: of the run, stored in config.json and compared with what is stored there.

    Returns:
      The lines of metrics of the segments that are finished; none for a new run.

    Raises:
      ValueError: the folder holds another run, or a file of it is not what the run wrote; the message names the file.
    """
    identity = identity_of(config, stream, key)
    path = folder / CONFIG
    manifest.refuse_links(folder, [CONFIG, manifest.NAME, *manifest.STREAM])
    if is_new(folder):
        start(folder, identity)
    found = manifest.check(folder)
    refuse_updated(folder, found)
    other = read_identity(path)
    # The same rows may have been read from another path.
    other["stream"]["source"] = stream.source
    for name in ("config", "key", "stream"):
        if other[name] != identity[name]:
            reason = difference(other, identity, name)
            raise ValueError(f"{folder} holds another run ({reason}): choose another folder")
    lines = recover(folder, found)
    keep_stream(folder, manifest.read(folder), stream)
    return lines


def refuse_updated(folder: Path, found: Manifest) -> None:
    """Check that no rows have been added to a run, which then is more than a run over its stream.

    Args:
      folder: of the run.
      found: its manifest.

    Raises:
      ValueError: it has been updated.
    """
    if any(name.startswith(f"{manifest.UPDATES}/") for name in found.files):
        raise ValueError(f"{folder} has been updated since the run: go on with scall-jax update")


def is_new(folder: Path) -> bool:
    """Whether a folder holds no run, or no more of one than a process that was killed while it made or removed it left.

    Args:
      folder: which need not exist.

    Raises:
      ValueError: the manifest is damaged.
    """
    if (folder / CONFIG).exists():
        return False
    # The config is written last and removed last but for the manifest; a run that lost only its config is no new one.
    return not (folder / manifest.NAME).exists() or not any((folder / x).exists() for x in manifest.read(folder).files)


def start(folder: Path, identity: dict[str, Any]) -> None:
    """Make a run folder without segments.

    Args:
      folder: created where it does not exist.
      identity: the content of config.json, with the keys that `read_identity` names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(identity, indent=2) + "\n"
    entry = manifest.Entry(len(text.encode()), hashlib.sha256(text.encode()).hexdigest())
    manifest.write(folder, manifest.EMPTY._replace(files={CONFIG: entry}))
    manifest.write_durably(folder / CONFIG, text)


@contextlib.contextmanager
def named_errors(folder: Path, way_on: str = manifest.FINISHED_IS_KEPT) -> Iterator[None]:
    """Within this context, errors of the operating system are a line that names a file or the folder, and the way on.

    A write that finds the disk full raises an error without the name of a file.

    Args:
      folder: that is written to.
      way_on: what the message ends with.

    Raises:
      ValueError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else folder
        reason = error.strerror or " ".join(str(error).split())
        raise ValueError(f"{place} cannot be written ({reason}): {way_on}") from error


def recover(folder: Path, found: Manifest, checkpoints: bool = True) -> list[dict[str, Any]]:
    """Delete what is left of something that was being written.

    Args:
      folder: of a run, which this process has locked.
      found: its manifest.
      checkpoints: whether the run has one, as all but those of auto do.

    Returns:
      Lines of the finished segments.

    Raises:
      ValueError: there are not as many lines as segments.
    """
    if found.writing is not None:
        manifest.delete_left_over(folder, found.writing)
    manifest.delete(folder, found.obsolete)
    growing = folder / GROWING
    if growing.exists():
        os.truncate(growing, found.files[GROWING].nbytes if GROWING in found.files else 0)
    lines = read_lines(growing)
    stored = {file.split("/")[1] for file in found.files if file.startswith("checkpoints/")}
    if checkpoints and stored != ({f"segment-{len(lines) - 1:04d}"} if lines else set()):
        raise ValueError(
            f"{growing} has {len(lines)} segments and the checkpoint is {', '.join(sorted(stored)) or 'missing'}: "
            "make the run anew in another folder"
        )
    # Files that may be moved away, and have been, are taken off the list, so that the folder can be copied by it.
    gone = {name for name in found.files if manifest.is_derived(name) and not (folder / name).exists()}
    kept = {name: entry for name, entry in found.files.items() if name not in gone}
    if found.writing is not None or found.obsolete or len(kept) < len(manifest.read(folder).files):
        manifest.write(folder, Manifest(kept, {}, None))
    return lines


def finished_lines(folder: Path, found: Manifest) -> list[dict[str, Any]]:
    """Lines of the finished segments, of a folder that is read and not written to.

    Args:
      folder: of a run.
      found: its manifest.

    Returns:
      As `read_lines`, without what a segment that is being written has appended.
    """
    finished = found.files[GROWING].nbytes if GROWING in found.files else 0
    return read_lines(folder / GROWING, finished) if finished else []


def finished_segments(folder: Path) -> int:
    """How many segments of a run are finished, those of a run that is being written included.

    Args:
      folder: of a run; 0 where there is none.
    """
    path = folder / manifest.NAME
    try:
        while True:
            before = path.stat().st_mtime_ns
            found = sum(name.startswith("users/") for name in manifest.read(folder).files)
            # A segment may have been finished while the manifest was read.
            if path.stat().st_mtime_ns == before:
                return found
    except (ValueError, FileNotFoundError):
        return 0


def unlist(folder: Path, *names: str) -> None:
    """Take files off a run's list before they are written anew, so that the folder stays valid in between.

    Args:
      folder: of a run.
      names: paths in it, listed or not.
    """
    with locked(folder):
        found = manifest.read(folder)
        kept = {name: entry for name, entry in found.files.items() if name not in names}
        if len(kept) < len(found.files):
            manifest.write(folder, found._replace(files=kept))


def finish(folder: Path, *names: str) -> None:
    """List files that belong to a run beside those of its segments, such as its summary.

    Args:
      folder: of a run.
      names: paths in it; those that do not exist are left out.

    Raises:
      ValueError: a path is a link, or the folder has no manifest.
    """
    with locked(folder):
        found = manifest.read(folder)
        manifest.refuse_links(folder, names)
        written = manifest.entries(folder, [name for name in names if (folder / name).exists()])
        manifest.write(folder, found._replace(files=found.files | written))


@contextlib.contextmanager
def making(folder: Path, segments: int, *names: str) -> Iterator[None]:
    """Make files anew that belong to a run beside those of its segments, such as its summary, under its lock.

    Args:
      folder: of a run.
      segments: that the run has finished; what is made is of them.
      names: paths in it; those that are not made are left out.

    Raises:
      ValueError: another process writes to the folder, or has written to it since; a path is a link.
    """
    with locked(folder):
        found = manifest.read(folder)
        if len(finished_lines(folder, found)) != segments:
            raise ValueError(f"{folder} has been changed by another process: --resume the run, or make it anew")
        manifest.refuse_links(folder, names)
        kept = {name: entry for name, entry in found.files.items() if name not in names}
        if len(kept) < len(found.files):
            manifest.write(folder, found._replace(files=kept))
        yield
        written = manifest.entries(folder, [name for name in names if (folder / name).exists()])
        manifest.write(folder, found._replace(files=kept | written))


def updates(folder: Path) -> int:
    """How many updates a run has had; 0 where there is no run.

    Args:
      folder: of the run.
    """
    try:
        kept = read_kept(folder, manifest.read(folder))
    except (ValueError, FileNotFoundError, NotADirectoryError):
        return 0
    return 0 if kept is None else kept.number
