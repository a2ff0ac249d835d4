"""Following a growing source: rows are read as fast as segments are run, and a commit says how far the source was read.

The offset of the source is kept in the run folder by the commit that adds the rows (`update`), so that a process that
is killed at any moment goes on behind the last row that counts. No commit completes more than one segment: what a
segment is run on does not depend on how the rows came, nor on where the process was stopped before.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import polars as pl

from scall_jax import streams
from scall_jax.config import Config
from scall_jax.run import auto, manifest
from scall_jax.run.folder import named_errors
from scall_jax.run.lock import NAME as LOCK
from scall_jax.run.lock import locked
from scall_jax.run.loop import NO_HOOKS, Hooks, run_segments
from scall_jax.run.programs import Programs
from scall_jax.run.update import OpenRun, opened
from scall_jax.streams.following import Batch, Offset, Source
from scall_jax.streams.growing import Growing, Late, advance, joined, numbered, rows_of, same_rows
from scall_jax.streams.rule import Rule
from scall_jax.streams.wording import DataWarning


class Start(NamedTuple):
    """The run that is begun where there is none."""

    config: Config
    """What is done to the stream."""
    cut: dict[str, Any]
    """How it is cut: arguments of `streams.cut`; `rows` or `new_entities` is given, and no other rule."""
    seed: int
    """Of everything random."""


class Pace(NamedTuple):
    """How a source is read, and when that ends."""

    most: int = 10_000
    """Rows that are read and committed at once, at most."""
    poll: float = 1.0
    """Seconds between two looks at a source that has nothing new."""
    until_idle: float | None = None
    """End after so many seconds without a new row; None goes on."""
    once: bool = False
    """End when everything has been read that is there."""
    late: Late = "refuse"
    """What becomes of rows from before the last segment, as in `streams.advance`."""


class Progress(NamedTuple):
    """How far a folder has come, as it is told after each commit."""

    line: dict[str, Any] | None
    """Line of `metrics.jsonl` of the segment that has been completed; None if rows only wait."""
    rows: int
    """Rows in the folder."""
    waiting: int
    """Those of them that wait for the next segment."""
    offset: Offset | None
    """How far the source was read."""


P = TypeVar("P")

Tell = Callable[[Progress], object]

_PACE = Pace()


def follow(
    source: Source,
    folder: str | Path,
    start: Start | None,
    pace: Pace = _PACE,
    hooks: Hooks = NO_HOOKS,
    tell: Tell | None = None,
) -> int:
    """Keep a run folder up with a growing source.

    Args:
      source: of rows.
      folder: of a run that an earlier call has begun; of a finished run over the first rows of the source; or one that
        does not exist yet or is empty.
      start: the run to begin; None where there is one.
      pace: how the source is read, and when the call returns; by default it does not.
      hooks: functions that are called while segments are run.
      tell: called after each commit, and when a folder that goes on has been read.

    Returns:
      Rows in the folder; 0 where the source ended before the first segment was complete, and nothing was written.

    Raises:
      ValueError: a bad row or a source that was changed, as `Source.read`; a folder that something else has written; a
        method that cannot go on; late rows. The folder is as it was after the last commit.
    """
    folder, tell = Path(folder), tell or (lambda progress: None)
    if pace.most < 1 or not pace.poll > 0:
        raise ValueError(f"{pace.most} rows at once, {pace.poll} s between polls: at least 1, and more than 0")
    _refuse_a_file(folder)
    begun = None
    if not (folder / manifest.NAME).exists():
        if start is None:
            raise ValueError(f"{folder} holds no run: give `start`, which says what is to be begun there")
        begun = _begin(source, folder, start, pace, hooks)
        if begun is None:
            _warn_of_a_rest(source, None)
            return 0
    with opened(folder, hooks=hooks) as run:
        if run.offset is None:
            run.add(run.growing.waiting.clear(), offset=_behind_the_run(source, run, pace))
        tell(_progress(run, begun))

        def placed(rows: pl.DataFrame) -> Growing:
            return advance(run.growing, rows, pace.late, source.name)

        for batch, new in _batches(source, pace, lambda: run.offset, lambda: _room(run), placed):
            lines = run.add_placed(new, batch.offset).lines
            tell(_progress(run, lines[-1] if lines else None))
        _warn_of_a_rest(source, run.offset)
        return _progress(run, None).rows


def _refuse_a_file(folder: Path) -> None:
    """Check that a folder is none of a file's name, nor below one."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        raise ValueError(f"{there} is a file, not a folder: choose another folder to write the run to")


def _rest(source: Source, offset: Offset | None) -> str:
    """What lies behind an offset, in words; empty for nothing."""
    found = source.behind(offset)
    return "" if found.startswith("0 ") else found


def _warn_of_a_rest(source: Source, offset: Offset | None) -> None:
    """Say what a source that has ended leaves unread: a last line without an end may be a part of a row."""
    if source.ended and (rest := _rest(source, offset)):
        warnings.warn(
            f"{source.name}: its last {rest} are no whole row, as the line has no end, and are left out: end each row "
            "with a line break",
            DataWarning,
            stacklevel=3,
        )


def _behind_the_run(source: Source, run: OpenRun, pace: Pace) -> Offset:
    """The offset behind the rows of a run that another command made of the beginning of the source.

    Raises:
      ValueError: the source has other rows, or fewer, or a last one without an end of its line.
    """
    known = rows_of(run.growing)
    read, at = _first(source, pace, known.height)
    count = 0 if read is None else read.height
    if count < known.height and (rest := _rest(source, at)):
        raise ValueError(
            f"{source.name} has {count:,} whole rows of the {known.height:,} in {run.folder}, and {rest} behind them "
            "that are none, as the line has no end: end it with a line break"
        )
    if read is None or at is None or not same_rows(read, known):
        raise ValueError(
            f"{run.folder} was made by another command, and its {known.height:,} rows are not the first of "
            f"{source.name}: give the source that it was made of, or choose another folder, and the source is read "
            "from its start"
        )
    return at


def _first(source: Source, pace: Pace, count: int) -> tuple[pl.DataFrame | None, Offset | None]:
    """So many rows of a source from its start, or those that there are, and the offset behind them."""
    rows, at = None, None
    while rows is None or rows.height < count:
        batch = source.read(at, min(pace.most, count - (0 if rows is None else rows.height)))
        if batch.read or batch.offset != at:
            rows, at = _with(rows, batch), batch.offset
        elif source.ended or not batch.held:
            break
        else:
            source.wait(pace.poll)
    return rows, at


def _progress(run: OpenRun, line: dict[str, Any] | None) -> Progress:
    waiting = len(run.growing.waiting)
    return Progress(line, len(run.growing.stream.user) + waiting, waiting, run.offset)


def _room(run: OpenRun) -> int:
    """Rows that complete one segment at most, beside those that wait."""
    rule = run.growing.rule
    return rule.rows - len(run.growing.waiting) if rule.rows is not None else _few(rule)


def _few(rule: Rule) -> int:
    """Rows that bring fewer users and items than two segments have: each row brings two at most."""
    assert rule.new_entities is not None
    return max(1, (rule.new_entities - 2) // 2)


def _batches(
    source: Source,
    pace: Pace,
    offset: Callable[[], Offset | None],
    room: Callable[[], int],
    placed: Callable[[pl.DataFrame], P],
) -> Iterator[tuple[Batch, P]]:
    """Batches that are not empty, and what `placed` makes of their rows, until there is an end."""
    last = time.monotonic()
    while True:
        before = offset()
        batch, found = _up_to_a_bad_row(source, before, min(pace.most, room()), placed)
        if batch.read or batch.offset != before:
            yield batch, found
            last = time.monotonic()
            continue
        idle = time.monotonic() - last
        if source.ended or (pace.once and not batch.held) or (pace.until_idle is not None and idle >= pace.until_idle):
            return
        left = pace.poll if pace.until_idle is None else min(pace.poll, max(pace.until_idle - idle, 0.001))
        source.wait(left)


def _up_to_a_bad_row(
    source: Source, offset: Offset | None, most: int, placed: Callable[[pl.DataFrame], P]
) -> tuple[Batch, P]:
    """A batch, of fewer rows where one of them is bad or late: that one is an error when it comes first."""
    while True:
        try:
            batch = source.read(offset, most)
            return batch, placed(batch.rows)
        except ValueError:
            if most == 1:
                raise
            most //= 2


def _begin(source: Source, folder: Path, start: Start, pace: Pace, hooks: Hooks) -> dict[str, Any] | None:
    """Make the folder with the first segment, whose line is returned; None where the source ends before it is complete.

    It is made under another name and moved as a whole, since a folder that lacks the offset could not go on.
    """
    if folder.exists():
        _refuse_filled(folder)
    if start.config.method != auto.NAME:
        Programs(start.config)  # A method that cannot go on is refused before anything is read.
    found = _first_rows(source, start, pace)
    if found is None:
        return None
    first, rest, offset = found
    making = folder.with_name(f"{folder.name}.starting")
    auto.remove(making)
    rows = streams.from_arrays(first["user"], first["item"], first["time"].to_numpy(), source.name)
    stream = streams.cut(rows, seed=start.seed, **start.cut)
    line = _first_segment(start, stream, making, hooks)
    try:
        with opened(making, hooks=hooks) as run:
            run.add(rest, offset=offset)
            _put_in_place(making, folder)
    except ValueError:
        with contextlib.suppress(ValueError, OSError):
            auto.remove(making)
            making.rmdir()
        raise
    return line


def _refuse_filled(folder: Path) -> None:
    """Check that nothing but a lock is in a folder in which a run is to be begun."""
    if (folder / manifest.NAME).exists():
        raise ValueError(f"{folder} holds a run that another process has begun meanwhile: the same command goes on")
    if any(file.name != LOCK for file in folder.iterdir()):
        raise ValueError(f"{folder} holds something else than a run: choose another folder")


def _put_in_place(making: Path, folder: Path) -> None:
    """Move a run, which is locked where it was made, to its folder."""
    with named_errors(folder, "nothing was begun; choose another folder, or start again"), locked(folder):
        # Another process may have begun a run here since the first look, and may keep it up: its lock must stay.
        _refuse_filled(folder)
        (folder / LOCK).unlink()
        os.replace(making, folder)
        manifest.sync_folder(folder.parent)


def _first_segment(start: Start, stream: streams.Stream, folder: Path, hooks: Hooks) -> dict[str, Any]:
    """Run a stream of one segment: its line."""
    key = jax.random.key(start.seed)

    def run(config: Config, folder: Path, hooks: Hooks) -> list[dict[str, Any]]:
        on = {"on_compiled": hooks.compiled, "on_segment": hooks.segment, "on_phase": hooks.phase}
        return run_segments(config, stream, key, folder=folder, **on)

    if start.config.method != auto.NAME:
        return run(start.config, folder, hooks)[-1]
    quiet = hooks._replace(segment=NO_HOOKS.segment)
    line = auto.run_auto(start.config, stream, key, folder, lambda _, config, *rest: run(config, rest[1], quiet))[-1]
    hooks.segment(line)
    return line


def _first_rows(source: Source, start: Start, pace: Pace) -> tuple[pl.DataFrame, pl.DataFrame, Offset] | None:
    """The rows of the first segment, those that were read beyond it, and the offset behind all; None without an end."""
    rows: pl.DataFrame | None = None
    at: list[Offset | None] = [None]
    rule = Rule(start.cut.get("rows"), start.cut.get("new_entities"), (0.7, 0.1, 0.2), 0.0, False, False, 0)

    def room() -> int:
        return _few(rule) if rule.rows is None else rule.rows - (0 if rows is None else rows.height)

    for batch, _ in _batches(source, pace, lambda: at[0], room, lambda rows: rows):
        rows, at[0] = _with(rows, batch), batch.offset
        if rows is None or (rule.rows is not None and rows.height < rule.rows):
            continue
        ordered = rows[np.argsort(rows["time"].to_numpy(), kind="stable")]
        ends = rule.complete(0, _known(ordered)) if rule.rows is None else [rule.rows]
        if ends and batch.offset is not None:
            return ordered[: ends[0]], ordered[ends[0] :], batch.offset
    return None


def _with(rows: pl.DataFrame | None, batch: Batch) -> pl.DataFrame | None:
    if not batch.rows.height:
        return rows
    return batch.rows if rows is None else joined(rows, batch.rows)


def _known(rows: pl.DataFrame) -> np.ndarray:
    """Users and items that have appeared after each row; i64[rows]."""
    codes = (numbered(rows[side].clear(), rows[side])[0] for side in ("user", "item"))
    return np.asarray(sum(np.maximum.accumulate(code.astype(np.int64)) + 1 for code in codes))
