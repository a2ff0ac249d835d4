"""The rows that have come since a run, as files of its folder.

Each update has a folder `updates/NNNNNN`, and writes no file of another:

    rows.parquet      the rows of the segments that it completed, in the order of the stream: user and item, which are
                      the caller's ids, and time
    replay.parquet    rows: for each of these segments a list, the rows of the stream that it is trained on again
    waiting.parquet   rows that have arrived and are in no segment yet, in the order in which they arrived
    state.json        which of these files count, the bounds of all segments, and how far the caller's source was read

Only the last update's state.json counts. Rows that wait are written anew when a segment is cut, and after every
`_MOST_FILES` updates; else an update writes no more than its own rows.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from scall_jax.run import manifest, parquet
from scall_jax.run.manifest import Manifest, Update
from scall_jax.run.stream_files import read_stream
from scall_jax.streams import Bounds, Capacity, Growing, Stream, growing
from scall_jax.streams.growing import joined, numbered

FORMAT = 1
"""Version of these files; others are refused."""

_MOST_FILES = 32
"""Files of rows that wait, at most."""
_STATE, _ROWS, _WAITING, _REPLAY = "state.json", "rows.parquet", "waiting.parquet", "replay.parquet"


class Kept(NamedTuple):
    """What a folder has of the rows that came since the run."""

    number: int
    """Updates so far."""
    rows: tuple[str, ...]
    """Files of rows of segments."""
    replay: tuple[str, ...]
    """Files of rows that are trained on again."""
    waiting: tuple[str, ...]
    """Files of rows that wait."""
    bounds: tuple[Bounds, ...]
    """Of all segments."""
    waits: int
    """Rows that wait."""
    capacity: Capacity
    """Of the stream (`Stream.reserved`)."""
    fingerprint: str
    """Of the stream up to the last segment."""
    offset: Any
    """How far the source of the rows has been read, as the caller gave it."""


def read_kept(folder: Path, found: Manifest) -> Kept | None:
    """What a folder has of the rows that came since the run; None where nothing was added.

    Args:
      folder: of a run.
      found: its manifest.

    Raises:
      ValueError: the files are of another version.
    """
    names = [name for name in found.files if name.startswith(f"{manifest.UPDATES}/") and name.endswith(f"/{_STATE}")]
    if not names:
        return None
    content = manifest.read_json(folder / names[0])
    if content.pop("format") != FORMAT:
        raise ValueError(f"{folder / names[0]}: format {FORMAT} is what this version reads: make the run anew")
    files = {name: tuple(content[name]) for name in ("rows", "replay", "waiting")}
    bounds = tuple(Bounds(*numbers) for numbers in content["bounds"])
    return Kept(**content | files | {"bounds": bounds, "capacity": Capacity(*content["capacity"])})


def read_growing(folder: Path, found: Manifest) -> Growing:
    """Read the stream of a run with all that has come since.

    Args:
      folder: of a run.
      found: its manifest, of which the files have been checked.

    Returns:
      The segments of the run and of its updates, and the rows that wait.

    Raises:
      ValueError: the folder has no stream, or one that cannot go on.
    """
    begun = growing(read_stream(folder, found))
    kept = read_kept(folder, found)
    if kept is None:
        return begun
    stream = begun.stream
    # Rows that waited at the end of the run have been written anew.
    waiting = _read(folder, kept.waiting, begun.waiting.clear())
    rows = _read(folder, kept.rows, begun.waiting.clear())
    user, user_ids = numbered(stream.user_ids, rows["user"])
    item, item_ids = numbered(stream.item_ids, rows["item"])
    replay = list(stream.replay)
    for name in kept.replay:
        lists = pl.read_parquet(folder / name)["rows"]
        replay += [part.to_numpy() for part in lists]
    return Growing(
        dataclasses.replace(
            stream,
            user=np.concatenate([stream.user, user]),
            item=np.concatenate([stream.item, item]),
            time=np.concatenate([stream.time, rows["time"].to_numpy()]),
            user_ids=user_ids,
            item_ids=item_ids,
            bounds=kept.bounds,
            replay=tuple(replay),
            reserved=kept.capacity,
        ),
        waiting,
    )


def _read(folder: Path, names: tuple[str, ...], empty: pl.DataFrame) -> pl.DataFrame:
    found = empty
    for name in names:
        found = joined(found, pl.read_parquet(folder / name))
    return found


def write_update(
    folder: Path, update: Update, before: Kept | None, old: Growing, new: Growing, offset: Any
) -> tuple[list[str], list[str]]:
    """Write the files of an update; they count once the manifest lists them.

    Args:
      folder: of a run.
      update: what is being written.
      before: what the folder has.
      old: the stream before the update.
      new: the stream after it.
      offset: how far the source has been read, anything that JSON holds.

    Returns:
      Paths of the files that were written, and of all files of updates that count now.
    """
    (folder / update.folder).mkdir(parents=True, exist_ok=True)
    kept = before or Kept(0, (), (), (), old.stream.bounds, 0, old.stream.capacity, old.stream.fingerprint, None)
    cut = len(new.stream) > len(old.stream)
    rows, replay = kept.rows, kept.replay
    if cut:
        rows = (*rows, _write(folder, f"{update.folder}/{_ROWS}", _new_rows(old.stream, new.stream)))
        again = pl.DataFrame({"rows": pl.Series(new.stream.replay[len(old.stream) :], dtype=pl.List(pl.Int64))})
        replay = (*replay, _write(folder, f"{update.folder}/{_REPLAY}", again))
    # The first update takes over what waited at the end of the run.
    anew = cut or before is None or len(kept.waiting) >= _MOST_FILES
    waiting = new.waiting if anew else new.waiting[len(old.waiting) :]
    waits = () if anew else kept.waiting
    if len(waiting):
        waits = (*waits, _write(folder, f"{update.folder}/{_WAITING}", waiting))
    of_stream = (new.stream.capacity, new.stream.fingerprint) if cut else (kept.capacity, kept.fingerprint)
    state = Kept(update.number, rows, replay, waits, new.stream.bounds, len(new.waiting), *of_stream, offset)
    bounds = [dataclasses.astuple(part) for part in state.bounds]
    name = f"{update.folder}/{_STATE}"
    manifest.write_durably(folder / name, json.dumps({"format": FORMAT, **state._asdict(), "bounds": bounds}) + "\n")
    counts = [*rows, *replay, *waits, name]
    return [file for file in counts if file.startswith(f"{update.folder}/")], counts


def _new_rows(old: Stream, new: Stream) -> pl.DataFrame:
    part = slice(len(old.user), None)
    return pl.DataFrame(
        {
            "user": new.user_ids.gather(new.user[part]),
            "item": new.item_ids.gather(new.item[part]),
            "time": pl.Series(new.time[part], dtype=pl.Int64),
        }
    )


def _write(folder: Path, name: str, frame: pl.DataFrame) -> str:
    parquet.write_durably(folder / name, frame)
    return name
