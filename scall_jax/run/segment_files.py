"""The files that a run writes to its folder for each segment."""

from pathlib import Path
from typing import Any

import numpy as np

from scall_jax.methods.phases import Bookkeeping
from scall_jax.methods.state import RunState
from scall_jax.run import checkpoint, manifest
from scall_jax.run.folder import commit, stays
from scall_jax.run.manifest import GROWING
from scall_jax.run.step import Record
from scall_jax.run.text_files import append_line
from scall_jax.streams import Segment, sides


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
