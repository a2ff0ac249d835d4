"""The folder of a run: what is written to it, how a run is continued from it, and how it is removed.

`manifest` lists every file with a hash and `lock` keeps other processes out: a folder that someone touched is refused
with the file's name.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scall_jax.config import Config
from scall_jax.methods.phases import Bookkeeping
from scall_jax.methods.state import RunState
from scall_jax.run import checkpoint, manifest
from scall_jax.run.lock import NAME as LOCK
from scall_jax.run.lock import locked
from scall_jax.run.manifest import GROWING, Manifest
from scall_jax.run.step import Record
from scall_jax.run.stream_files import keep_stream
from scall_jax.run.update_files import read_kept
from scall_jax.streams import Segment, Stream, sides

CONFIG = "config.json"
"""Name of the file that says what a run is."""
_KEPT = (CONFIG, *manifest.STREAM, "sizes/", "users/", "tensorboard/")

SUMMARY = "summary.json"
"""Name of the file that marks a finished run."""


def store_segment(
    folder: Path,
    books: Bookkeeping,
    state: RunState,
    line: dict[str, Any],
    record: Record,
    segment: Segment,
) -> None:
    """Write the results of a segment: sizes, metrics of each test user, a line of metrics, and the checkpoint.

    Args:
      folder: of the run.
      books: how the method counts and exports.
      state: after the segment.
      line: of `metrics.jsonl`; the keys `disk_bytes` and `policy_disk_bytes` are filled in.
      record: of the segment.
      segment: the data.
    """
    name, before = f"segment-{line['segment']:04d}", manifest.read(folder)
    manifest.write(folder, before._replace(obsolete={}, writing=name))
    names, path = write_segment(folder, books, state, line, record, segment)
    checkpoint.publish(path)
    # A segment is finished when the manifest says so. The checkpoint before it stays until then.
    commit(folder, before, [GROWING, *names, f"checkpoints/{name}"], stays)


def stays(name: str) -> bool:
    """Whether a listed file stays as it is while segments are added to a run that has not been updated."""
    return name.startswith(_KEPT)


def write_segment(
    folder: Path,
    books: Bookkeeping,
    state: RunState,
    line: dict[str, Any],
    record: Record,
    segment: Segment,
) -> tuple[list[str], Path]:
    """Write the files of a segment, which do not count yet; the arguments are those of `store_segment`.

    Returns:
      Paths of its sizes and its users' metrics, and the pending checkpoint.
    """
    users, _ = sides(segment)
    known, name = np.asarray(state.known), f"segment-{line['segment']:04d}"
    names = [f"sizes/{name}.npz", f"users/{name}.npz"]
    manifest.refuse_links(folder, [GROWING, *names, f"checkpoints/.pending/{name}"])
    sizes, frequency = books.sizes(state.plan), np.asarray(segment.frequency)
    (folder / "sizes").mkdir(exist_ok=True)
    np.savez_compressed(
        folder / "sizes" / f"{name}.npz",
        users=sizes[: known[0]],
        items=sizes[users : users + known[1]],
        shared=sizes[-2:],
        user_frequency=frequency[: known[0]],
        item_frequency=frequency[users : users + known[1]],
    )
    count = int(segment.test.count)
    tested, metrics = np.asarray(segment.test.users)[:count], np.asarray(record.test.by_user)[:count]
    store_user_metrics(folder, line["segment"], tested, metrics)
    path = checkpoint.save(folder / "checkpoints", line["segment"], state, books.exporter)
    line["disk_bytes"] = checkpoint.table_bytes(path)
    line["policy_disk_bytes"] = checkpoint.policy_bytes(path)
    append_line(folder / GROWING, line)
    return names, path


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


def store_user_metrics(folder: Path, segment: int, users: np.ndarray, metrics: np.ndarray) -> None:
    """Write users/segment-NNNN.npz, which `scall_jax.analysis.significance` and `experiments.strata` read.

    Args:
      folder: of the run.
      segment: its number, from 0.
      users: i32[Q], ids of the test users.
      metrics: f32[Q, 6], the columns `scall_jax.evaluation.BY_USER` of each.
    """
    (folder / "users").mkdir(exist_ok=True)
    path = folder / "users" / f"segment-{segment:04d}.npz"
    np.savez_compressed(path, users=users, metrics=metrics)


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
            difference = _difference(other, identity, name)
            raise ValueError(f"{folder} holds another run ({difference}): choose another folder")
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


def identity_of(config: Config, stream: Stream, key: jax.Array) -> dict[str, Any]:
    """What determines a run's result: the content of its config.json.

    Args:
      config, stream, key: of the run.

    Returns:
      A dictionary as JSON reads it, with the keys that `read_identity` names and the versions that computed.
    """
    of_config = dataclasses.asdict(config)
    # The result is the same on any number of devices, and a run may go on on another.
    del of_config["mesh"]
    identity = {
        "config": of_config,
        "stream": {"source": stream.source, "segments": len(stream), "fingerprint": stream.fingerprint},
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    return json.loads(json.dumps(identity))


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


def read_identity(path: Path) -> dict[str, Any]:
    """Read the config.json of a run folder.

    Args:
      path: of the file.

    Returns:
      A dictionary with the keys `config`, `stream` and `key`, which together determine the run's result; of a run that
      has been updated, the stream is the one that it has come to.

    Raises:
      ValueError: the file does not describe a run.
    """
    try:
        found = json.loads(path.read_text())
        if {"config", "stream", "key"} <= found.keys() and isinstance(found["stream"], dict):
            return found | {"stream": found["stream"] | _updated(path.parent)}
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is not that of a run: choose another folder")


def updates(folder: Path) -> int:
    """How many updates a run has had; 0 where there is no run.

    Args:
      folder: of the run.
    """
    try:
        kept = read_kept(folder, manifest.read(folder))
    except (ValueError, FileNotFoundError):
        return 0
    return 0 if kept is None else kept.number


def _updated(folder: Path) -> dict[str, Any]:
    """What updates have changed of a run's stream."""
    kept = read_kept(folder, manifest.read(folder)) if (folder / manifest.UPDATES).exists() else None
    return {} if kept is None else {"segments": len(kept.bounds), "fingerprint": kept.fingerprint}


def require(found: Any, names: Iterable[str], path: Path) -> dict[str, Any]:
    """Check that the content of a JSON file has what a reader needs of it.

    Args:
      found: what was parsed.
      names: keys that it must have.
      path: of the file, for messages.

    Returns:
      The content.

    Raises:
      ValueError: it is no object, or lacks a key.
    """
    missing = [name for name in names if name not in found] if isinstance(found, dict) else ["an object"]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}: it is of another version; make the run anew in another folder")
    return found


def config_of(stored: dict[str, Any], path: Path) -> Config:
    """The configuration that a config.json describes.

    Args:
      stored: `read_identity(path)["config"]`.
      path: of the file, for messages.

    Returns:
      Config, equal to the run's.

    Raises:
      ValueError: fields or values that this version does not know.

    >>> from scall_jax import Budget
    >>> config = Config("uniform", Budget.schedule([Budget.mean_size(2), Budget.megabytes(1)]))
    >>> config_of(json.loads(json.dumps(dataclasses.asdict(config))), Path("config.json")) == config
    True
    """
    try:
        return _built(Config, stored)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is of another version ({error}): make the run anew in another folder") from None


def _built(kind: Any, value: Any) -> Any:
    """A value of a type annotation from what JSON made of it."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        kinds = typing.get_type_hints(kind)
        return kind(**{name: _built(kinds[name], inner) for name, inner in value.items()})
    if isinstance(value, list):
        inner = (typing.get_args(kind) or (Any,))[0]
        return tuple(_built(inner, one) for one in value)
    return value


def _difference(other: dict[str, Any], identity: dict[str, Any], name: str) -> str:
    if not isinstance(other[name], dict):
        return f"{name} {other[name]} there, {identity[name]} here"
    if name == "stream" and other[name].get("segments") == identity[name]["segments"]:
        return "rows, or how they were cut, differ"
    keys = [k for k in identity[name] if other[name].get(k) != identity[name][k]]
    return ", ".join(f"{name}.{k} {other[name].get(k)!r} there, {identity[name][k]!r} here" for k in keys)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a dictionary as one JSON line and wait until it is on disk.

    Args:
      path: of the file, which is created where it does not exist.
      line: what JSON can hold.

    Raises:
      ValueError: a number is not finite, which JSON cannot hold; nothing is written then.
    """
    text = json.dumps(line, allow_nan=False) + "\n"
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, nbytes: int | None = None) -> list[dict[str, Any]]:
    """Read a JSON-lines file.

    Args:
      path: of the file; a missing file has no lines.
      nbytes: bytes from its beginning that count; None for all of them.

    Returns:
      The complete lines; a last line that was cut off while it was written is left out.

    Raises:
      ValueError: another line is no JSON, or a byte is not UTF-8; the message names the file and the place.
    """
    try:
        text = path.read_bytes()[:nbytes].decode("utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8: {_DAMAGED}") from None
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            if not text.endswith("\n") and number == text.count("\n") + 1:
                break
            raise ValueError(f"{path}: line {number} is no JSON: {_DAMAGED}") from None
    return lines


_DAMAGED = "restore the file, or make the run anew in another folder"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader finds either all of the new text or the old file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def remove_run(folder: Path) -> None:
    """Delete what a run wrote to its folder, and nothing else.

    Args:
      folder: of a run; without config and manifest nothing is deleted.

    Raises:
      ValueError: the folder has no manifest of this version, or a link leads out of it, or another process writes to
        it; nothing has been deleted then.
    """
    if holds_something(folder):
        with held(folder):
            remove_held(folder)


def holds_something(folder: Path) -> bool:
    """Whether a folder has a config or a manifest, of a run or of what is left of one.

    Args:
      folder: which need not exist.
    """
    return (folder / CONFIG).exists() or (folder / manifest.NAME).exists()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from a run folder that is to be removed.

    Args:
      folder: of a run.

    Raises:
      ValueError: the folder has no manifest of this version, or a link leads out of it, or another process writes to
        it.
    """
    with locked(folder):
        found = manifest.read(folder)
        manifest.refuse_links(folder, [*found.files, *found.obsolete])
        yield


def remove_held(folder: Path) -> None:
    """As `remove_run`, of a folder that is `held`."""
    found = manifest.read(folder)
    if found.writing is not None:
        manifest.delete_left_over(folder, found.writing)
    names = [name for name in (*found.files, *found.obsolete) if name != CONFIG]
    manifest.delete(folder, [*names, *([GROWING] if found.writing not in (None, manifest.STREAM_NAME) else [])])
    # The config goes last: as long as it is there, an interrupted removal is recognised as a run's folder.
    manifest.delete(folder, [f"{CONFIG}.tmp", f"{manifest.NAME}.tmp", CONFIG, manifest.NAME])
    (folder / LOCK).unlink(missing_ok=True)
