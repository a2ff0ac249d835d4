"""The stream of a run as files of its folder, so that what was learned can be read by the caller's own ids.

    users.parquet, items.parquet   id (as it was read), row (its number in every array of the run)
    interactions.parquet           user and item (rows of these), time, in the order of the stream
    replay.parquet                 segment, row: the rows that a segment is trained on again; only where there are any
    stream.json                    bounds of the segments, and how the stream was made and cut

They are written once, before the first segment; rows that come later have files of their own (`update_files`). They are
input, not model: no account of bytes counts them. What serving reads of them is charged there as before: the graph, the
bias, or the counts behind popularity.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from scall_jax.run import manifest, parquet
from scall_jax.run.manifest import Manifest
from scall_jax.streams import Bounds, Rule, Stream
from scall_jax.streams.options import ReadOptions

FORMAT = 1
"""Version of these files; others are refused."""

_SIDES = ("users", "items")
_ROWS = "interactions.parquet"


def keep_stream(folder: Path, found: Manifest, stream: Stream) -> None:
    """Write the stream to a run folder that lacks it, or compare ids and times with those that are there.

    Args:
      folder: of a run of this stream.
      found: its manifest, which names no segment that is being written.
      stream: of the run.

    Raises:
      ValueError: the folder has other ids or times for the same rows, or a file of another's where one of these
        belongs.
      OSError: a file cannot be written.
    """
    frames = _frames(stream)
    names = [manifest.STREAM[0], *frames]
    if all(name in found.files for name in names):
        # Rows that wait for the end of a segment may be more by now, and their ids are the last ones.
        end = stream.bounds[-1].end if stream.waits else len(stream.user)
        for side, known in zip(_SIDES, stream.known(end), strict=True):
            there, here = pl.read_parquet(folder / f"{side}.parquet")["id"], frames[f"{side}.parquet"]["id"]
            if not _same_ids(there.head(known), here.head(known)):
                raise ValueError(f"{folder} holds another run (the ids of {side} differ): choose another folder")
        # Equal ids in the same order are equal segments, but what a run says of time would be another file's.
        ours, theirs = pl.read_parquet(folder / _ROWS, columns=["time"])["time"], frames[_ROWS]["time"]
        both = min(len(ours), len(theirs))  # Rows that wait may be more by now.
        other = (ours.head(both) != theirs.head(both)).arg_true()
        if len(other):
            row, there, here = other[0], ours[other[0]], theirs[other[0]]
            difference = f"row {row} by time is of {there} there and of {here} here"
            raise ValueError(f"{folder} holds another run ({difference}): choose another folder")
        return
    for name in names:
        if name not in found.files and (folder / name).exists():
            raise ValueError(f"{folder / name} is in the way, and no file of the run: choose another folder")
    manifest.write(folder, found._replace(writing=manifest.STREAM_NAME))
    about = {
        "format": FORMAT,
        "bounds": [[b.start, b.train, b.valid, b.end] for b in stream.bounds],
        "select_on_test": stream.select_on_test,
        "seed": stream.seed,
        "source": stream.source,
        "notes": list(stream.notes),
        "rule": None if stream.rule is None else stream.rule._asdict(),
        "waits": stream.waits,
        "read_options": None if stream.read_options is None else stream.read_options.chosen,
    }
    manifest.write_durably(folder / manifest.STREAM[0], json.dumps(about) + "\n")
    for name, frame in frames.items():
        parquet.write_durably(folder / name, frame)
    manifest.write(folder, found._replace(files=found.files | manifest.entries(folder, names)))


def _frames(stream: Stream) -> dict[str, pl.DataFrame]:
    """What is written, by the names of the files."""
    frames = {
        f"{side}.parquet": pl.DataFrame({"id": ids, "row": np.arange(len(ids), dtype=np.uint32)})
        for side, ids in zip(_SIDES, (stream.user_ids, stream.item_ids), strict=True)
    }
    time = pl.Series("time", stream.time).cast(pl.Datetime("ms"))
    frames[_ROWS] = pl.DataFrame({"user": stream.user, "item": stream.item, "time": time})
    lengths = [len(rows) for rows in stream.replay]
    if any(lengths):
        segment = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
        frames["replay.parquet"] = pl.DataFrame({"segment": segment, "row": np.concatenate(stream.replay)})
    return frames


def _same_ids(one: pl.Series, other: pl.Series) -> bool:
    return one.dtype == other.dtype and len(one) == len(other) and bool((one == other).all())


def read_stream(folder: Path, found: Manifest) -> Stream:
    """Read the stream that a run was made of.

    Args:
      folder: of a run.
      found: its manifest, of which the files have been checked.

    Returns:
      Stream, equal to the one that was given to the run.

    Raises:
      ValueError: the folder has no stream, or one of another version.
    """
    if manifest.STREAM[0] not in found.files:
        raise ValueError(
            f"{folder / manifest.STREAM[0]} is missing, because an earlier version made the run or it has no segments: "
            "run the same command with --resume, which adds the stream"
        )
    about: dict[str, Any] = manifest.read_json(folder / manifest.STREAM[0])
    missing = [name for name in ("format", "bounds", "select_on_test", "seed", "source", "notes") if name not in about]
    if missing:
        raise ValueError(f"{folder / manifest.STREAM[0]} lacks {missing[0]}: make the run anew in another folder")
    if about["format"] != FORMAT:
        raise ValueError(
            f"{folder / manifest.STREAM[0]}: format {about['format']}, this version reads {FORMAT}: "
            "make the run anew in another folder"
        )
    user_ids, item_ids = (pl.read_parquet(folder / f"{side}.parquet")["id"] for side in _SIDES)
    rows = pl.read_parquet(folder / _ROWS)
    bounds = tuple(Bounds(*numbers) for numbers in about["bounds"])
    return Stream(
        user=rows["user"].to_numpy(),
        item=rows["item"].to_numpy(),
        time=rows["time"].cast(pl.Int64).to_numpy(),
        user_ids=user_ids,
        item_ids=item_ids,
        bounds=bounds,
        replay=_replay(folder, found, len(bounds)),
        select_on_test=about["select_on_test"],
        seed=about["seed"],
        source=about["source"],
        notes=tuple(about["notes"]),
        rule=_rule(about),
        waits=about.get("waits", False),
        read_options=_read_options(about),
    )


def read_options(folder: Path) -> ReadOptions | None:
    """What was said about the file that a run was made of.

    Args:
      folder: of a run, which need not be one.

    Returns:
      Options; None where the run was not made of a file, or by a version that did not keep them.

    Raises:
      ValueError: the file of the folder that has them is damaged.
    """
    path = folder / manifest.STREAM[0]
    return _read_options(manifest.read_json(path)) if path.is_file() else None


def _read_options(about: dict[str, Any]) -> ReadOptions | None:
    """How the file was read; earlier versions did not keep it."""
    found = about.get("read_options")
    if found is None:
        return None
    return ReadOptions(**found | ({"missing": tuple(found["missing"])} if "missing" in found else {}))


def _rule(about: dict[str, Any]) -> Rule | None:
    """How the stream was cut; versions before updates did not keep it."""
    found = about.get("rule")
    return None if found is None else Rule(**found | {"split": tuple(found["split"])})


def _replay(folder: Path, found: Manifest, segments: int) -> tuple[np.ndarray, ...]:
    if "replay.parquet" not in found.files:
        return tuple(np.zeros(0, np.int64) for _ in range(segments))
    rows = pl.read_parquet(folder / "replay.parquet")
    ends = np.searchsorted(rows["segment"].to_numpy(), np.arange(1, segments))
    return tuple(np.split(rows["row"].to_numpy(), ends))
