"""The folder of a run: what is written to it, how it is opened again, and how it is removed."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np

from scall_jax.config import Config
from scall_jax.methods.phases import Bookkeeping
from scall_jax.methods.state import RunState
from scall_jax.run import checkpoint
from scall_jax.run.step import Record
from scall_jax.streams import Segment, Stream, sides


def store_segment(
    folder: Path, books: Bookkeeping, state: RunState, line: dict, record: Record, segment: Segment
) -> None:
    """Write what a segment leaves behind: sizes, each test user's metrics, the line, and the checkpoint."""
    users, _ = sides(segment)
    known = np.asarray(state.known)
    sizes = books.sizes(state.plan)
    (folder / "sizes").mkdir(exist_ok=True)
    np.savez_compressed(
        folder / "sizes" / f"segment-{line['segment']:04d}.npz",
        users=sizes[: known[0]],
        items=sizes[users : users + known[1]],
        shared=sizes[-2:],
        user_frequency=np.asarray(segment.frequency)[: known[0]],
        item_frequency=np.asarray(segment.frequency)[users : users + known[1]],
    )
    tested = segment.test
    count = int(tested.count)
    (folder / "users").mkdir(exist_ok=True)
    np.savez_compressed(
        folder / "users" / f"segment-{line['segment']:04d}.npz",
        users=np.asarray(tested.users)[:count],
        metrics=np.asarray(record.test.by_user)[:count],
    )
    # The checkpoint is published last, so that a segment that it calls finished has its line and its sizes.
    path = checkpoint.save(folder / "checkpoints", line["segment"], state, books.exporter)
    line["disk_bytes"] = checkpoint.table_bytes(path)
    line["policy_disk_bytes"] = checkpoint.policy_bytes(path)
    append_line(folder / "metrics.jsonl", line)
    checkpoint.publish(path)


def open_folder(folder: Path, config: Config, stream: Stream, key: jax.Array) -> list[dict]:
    """Create a run folder, or return the lines of the segments that it has finished of the same run."""
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
    other["stream"]["source"] = stream.source  # the same rows may lie elsewhere
    for name in ("config", "key", "stream"):
        if other[name] != identity[name]:
            raise ValueError(
                f"{folder} holds another run ({_difference(other, identity, name)}): choose another folder"
            )
    done = checkpoint.finished(folder / "checkpoints")
    lines = [line for line in read_lines(folder / "metrics.jsonl") if done and line["segment"] <= done[-1]]
    if done and [line["segment"] for line in lines] != list(range(done[-1] + 1)):
        raise ValueError(
            f"{folder}: metrics.jsonl has {len(lines)} of the {done[-1] + 1} segments of the checkpoint: "
            "make the run anew in another folder, or delete this one"
        )
    write_atomically(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def read_identity(path: Path) -> dict:
    """What the config.json of a run folder says: `config`, `stream`, `key`.

    Raises:
      ValueError: the file is not that of a run.
    """
    try:
        found = json.loads(path.read_text())
        if {"config", "stream", "key"} <= found.keys() and isinstance(found["stream"], dict):
            return found
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is not that of a run: choose another folder")


def _difference(other, identity, name):
    if not isinstance(other[name], dict):
        return f"{name} {other[name]} there, {identity[name]} here"
    if name == "stream" and other[name].get("segments") == identity[name]["segments"]:
        return "rows, or how they were cut, differ"
    keys = [k for k in identity[name] if other[name].get(k) != identity[name][k]]
    return ", ".join(f"{name}.{k} {other[name].get(k)!r} there, {identity[name][k]!r} here" for k in keys)


def append_line(path: Path, line: dict) -> None:
    """Append one JSON line and have it on disk before returning."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict]:
    """The complete lines of a JSON-lines file; a torn last line is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_atomically(path: Path, text: str) -> None:
    """Write a file that either exists whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def remove_run(folder: Path) -> None:
    """Delete what a run wrote to its folder, and nothing else; its config last."""
    for name in ("summary.json", "metrics.jsonl", "quality.png", "sizes.png", "memory.png", "histories.png"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "sizes", "users"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "config.json").unlink(missing_ok=True)
