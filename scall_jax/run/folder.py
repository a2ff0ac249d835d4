"""The folder of a run: what is written to it, how a run is continued from it, and how it is removed."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scall_jax.config import Config
from scall_jax.methods.phases import Bookkeeping
from scall_jax.methods.state import RunState
from scall_jax.run import checkpoint
from scall_jax.run.step import Record
from scall_jax.streams import Segment, Stream, sides

_FILES = ("summary.json", "metrics.jsonl", "quality.png", "sizes.png", "memory.png", "histories.png")
_FOLDERS = ("checkpoints", "sizes", "users")


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
    users, _ = sides(segment)
    known = np.asarray(state.known)
    sizes, frequency = books.sizes(state.plan), np.asarray(segment.frequency)
    (folder / "sizes").mkdir(exist_ok=True)
    np.savez_compressed(
        folder / "sizes" / f"segment-{line['segment']:04d}.npz",
        users=sizes[: known[0]],
        items=sizes[users : users + known[1]],
        shared=sizes[-2:],
        user_frequency=frequency[: known[0]],
        item_frequency=frequency[users : users + known[1]],
    )
    count = int(segment.test.count)
    tested, metrics = np.asarray(segment.test.users)[:count], np.asarray(record.test.by_user)[:count]
    store_user_metrics(folder, line["segment"], tested, metrics)
    # The checkpoint is published last, so that a segment that it calls finished has its line and its sizes.
    path = checkpoint.save(folder / "checkpoints", line["segment"], state, books.exporter)
    line["disk_bytes"] = checkpoint.table_bytes(path)
    line["policy_disk_bytes"] = checkpoint.policy_bytes(path)
    append_line(folder / "metrics.jsonl", line)
    checkpoint.publish(path)


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
      ValueError: the folder holds another run, or has lost lines of metrics.
    """
    identity = {
        "config": dataclasses.asdict(config),
        "stream": {"source": stream.source, "segments": len(stream), "fingerprint": stream.fingerprint},
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    identity = json.loads(json.dumps(identity))
    path = folder / "config.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(identity, indent=2) + "\n")
    other = read_identity(path)
    # The same rows may have been read from another path.
    other["stream"]["source"] = stream.source
    for name in ("config", "key", "stream"):
        if other[name] != identity[name]:
            difference = _difference(other, identity, name)
            raise ValueError(f"{folder} holds another run ({difference}): choose another folder")
    return _finished_lines(folder)


def _finished_lines(folder: Path) -> list[dict[str, Any]]:
    """Lines up to the last checkpoint; later ones, of a segment whose checkpoint was not published, are deleted."""
    done = checkpoint.finished(folder / "checkpoints")
    lines = [line for line in read_lines(folder / "metrics.jsonl") if done and line["segment"] <= done[-1]]
    if done and [line["segment"] for line in lines] != list(range(done[-1] + 1)):
        raise ValueError(
            f"{folder}: metrics.jsonl has {len(lines)} of the {done[-1] + 1} segments of the checkpoint: "
            "make the run anew in another folder, or delete this one"
        )
    write_atomically(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def read_identity(path: Path) -> dict[str, Any]:
    """Read the config.json of a run folder.

    Args:
      path: of the file.

    Returns:
      A dictionary with the keys `config`, `stream` and `key`, which together determine the run's result.

    Raises:
      ValueError: the file does not describe a run.
    """
    try:
        found = json.loads(path.read_text())
        if {"config", "stream", "key"} <= found.keys() and isinstance(found["stream"], dict):
            return found
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is not that of a run: choose another folder")


def _difference(other: dict[str, Any], identity: dict[str, Any], name: str) -> str:
    if not isinstance(other[name], dict):
        return f"{name} {other[name]} there, {identity[name]} here"
    if name == "stream" and other[name].get("segments") == identity[name]["segments"]:
        return "rows, or how they were cut, differ"
    keys = [k for k in identity[name] if other[name].get(k) != identity[name][k]]
    return ", ".join(f"{name}.{k} {other[name].get(k)!r} there, {identity[name][k]!r} here" for k in keys)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a dictionary as one JSON line and wait until it is on disk."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file.

    Args:
      path: of the file; a missing file has no lines.

    Returns:
      The complete lines; a last line that was cut off while it was written is left out.
    """
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader finds either all of the new text or the old file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def remove_run(folder: Path) -> None:
    """Delete what a run wrote to its folder, and nothing else."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    # The config goes last: as long as it is there, an interrupted removal is recognised as a run's folder.
    (folder / "config.json").unlink(missing_ok=True)
