"""The command `scall-jax update`: a finished run is kept up with its stream."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from scall_jax import streams
from scall_jax.analysis import run_report
from scall_jax.cli.cli import Positional, cli
from scall_jax.cli.commands import finish_run
from scall_jax.cli.compilation_cache import persistent_cache
from scall_jax.cli.flags import Columns
from scall_jax.cli.stopping import stop_on_signals
from scall_jax.run import choices, config_file, manifest, stream_files, update
from scall_jax.run import folder as run_folder
from scall_jax.run.loop import Hooks
from scall_jax.streams import Growing
from scall_jax.streams.growing import advance, as_frame, rows_of, same_rows
from scall_jax.streams.options import OF_ROWS
from scall_jax.streams.wording import spelled_as_flags

UPDATE = """
Add new rows to a finished run. Segments that are complete then are cut by the run's own rule and run; the rest of the
rows wait in the folder. The file has new rows alone, or those of the run in front of them. All of it is done, or
nothing. Without --data no rows are added: only the summary and the report are written, also those of a folder that
scall-jax follow keeps, which takes its rows from its source alone.

    scall-jax update runs/clicks/uniform --data tomorrow.csv --columns.user uid --columns.item sku
    scall-jax update runs/live     # the summary and the report
"""
"""What `scall-jax update` does, as its help shows it."""


@dataclasses.dataclass(frozen=True)
class Update:
    """Flags of `scall-jax update`."""

    run: Positional[Path] = Path(".")
    """Folder of a finished run, such as runs/demo/uniform."""
    data: str = ""
    """Path of a file of interactions; without one, only the summary and the report of the run are written."""
    late: Literal["refuse", "clamp"] = "refuse"
    """What becomes of rows earlier than the last row of a segment: an error, or they are placed at its time."""
    columns: Columns = Columns()
    """How the file is read."""
    inherit_columns: bool = True
    """Where these flags do not say otherwise, the file has the columns, units and missing values of the run's file, and
    the same rows count."""
    max_memory: float | None = None
    """Megabytes (10^6 bytes) that reading the file may take; default: half of what the machine has."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next update compiles less."""


_FLAGS = {field.name: f"--columns.{field.name.replace('_', '-')}" for field in dataclasses.fields(Columns)}
_FLAGS |= {"late": "--late", "max_memory": "--max-memory", "k_core": "--cut.k-core"}


def update_job(flags: Update) -> update.Added:
    """Add the rows of a file to a run, and print what was done.

    Args:
      flags: of the update; without a file only the summary and the report are written.

    Returns:
      What was done.

    Raises:
      ValueError: a folder or a file that cannot be used, or a folder whose rows come from a source that is followed;
        the folder is then as it was. Or the summary or the report cannot be written; the message says whether rows
        have been added, which then are not to be added again.
    """
    start = time.perf_counter()
    before = run_folder.updates(flags.run)
    with (
        spelled_as_flags(_FLAGS),
        persistent_cache(flags.compilation_cache) as settled,
        stop_on_signals(lambda: _STOPPED[run_folder.updates(flags.run) > before]),
    ):
        rows = _read(flags) if flags.data else None
        with update.opened(flags.run, hooks=Hooks(compiled=settled, segment=_print_segment)) as run:
            parts = choices.latest_folders(flags.run) | {"": flags.run}
            made = {name: _made(part) for name, part in parts.items()}
            if rows is None:
                added = update.Added(0, (), len(run.growing.waiting))
                # Whoever asks for nothing else wants the report, too.
                made[""] = made[""]._replace(page=True)
            else:
                added = _added(flags, rows, run)
            stream = run.growing.stream
        # An update that was killed after its commit has left no summary; this one ends its work.
        if rows is None or added.lines or not all(found.whole for found in made.values()):
            with _said_what_counts(flags.run, added.rows):
                _finish_all(flags.run, stream, made)
    if rows is None:
        print(f"the summary and the report of {flags.run} are written; {added.waiting:,} rows wait for a segment")
    else:
        _print(flags.run, added, time.perf_counter() - start)
    return added


def _added(flags: Update, rows: streams.Interactions, run: update.OpenRun) -> update.Added:
    """Add the rows that the run does not have."""
    if run.offset is not None:
        raise ValueError(
            f"{flags.run} keeps how far its source has been read, and would read rows of {flags.data} once more: it "
            "goes on with scall-jax follow; scall-jax update without --data writes its summary and its report"
        )
    new, known = unknown_rows(rows, run.growing, flags.data)
    if known:
        print(f"{known:,} rows of {flags.data} are those of the run; {len(new):,} are new")
    return run.add_placed(advance(run.growing, new, flags.late, flags.data))


def _print_segment(line: dict[str, Any]) -> None:
    print(f"segment {line['segment']}: test recall@20 {line['test_recall@20']:.4f}, {line['test_users']} test users")


@contextlib.contextmanager
def _said_what_counts(folder: Path, rows: int) -> Iterator[None]:
    """Within this context, which follows a commit, errors say that its rows are not to be added again."""
    count = f"the {rows:,} new rows were added, and are not to be added again; " if rows else ""
    way = f"{count}scall-jax update {folder}, without --data, writes the summary and the report"
    try:
        with run_folder.named_errors(folder, way):
            yield
    except ValueError as error:
        # Errors of the system have become one of these, which says so already.
        raise error if way in str(error) else ValueError(f"{error}; {way}") from error


_STOPPED = {
    False: "stopped; nothing was added, and the same command goes on",
    True: "stopped after the rows were added, which are not to be added again",
}
"""What is said after a signal, by whether the rows count."""


def _read(flags: Update) -> streams.Interactions:
    inherited = _inherited(flags) if flags.inherit_columns else {}
    if inherited:
        said = ", ".join(f"{_FLAGS[name]} {_shown(value)}" for name, value in inherited.items())
        print(f"read as the file of the run, with {said}; --no-inherit-columns does not")
    options: dict[str, Any] = dataclasses.asdict(flags.columns) | inherited | {"max_memory": flags.max_memory}
    parts = options.pop("parts")
    return streams.read([flags.data, *parts] if parts else flags.data, **options)


def _inherited(flags: Update) -> dict[str, Any]:
    """Options by which the run's file was read, and about which the flags say nothing."""
    kept, default = stream_files.read_options(flags.run), Columns()
    found = {} if kept is None else {name: value for name, value in kept.chosen.items() if name in OF_ROWS}
    given = {name for name in OF_ROWS if getattr(flags.columns, name) != getattr(default, name)}
    if given & {"time_unit", "time_format"}:
        # One of them excludes the other.
        given |= {"time_unit", "time_format"}
    return {name: value for name, value in found.items() if name not in given}


def _shown(value: Any) -> str:
    return " ".join(map(repr, value)) if isinstance(value, list) else str(value)


class _Made(NamedTuple):
    """What was made of a run when it was finished, which segments put out of date."""

    label: str
    """What the run is called in tables: by its summary; where that is missing by its folder, if that is called by the
    method, or else by the method."""
    whole: bool
    """Whether it has a summary."""
    page: bool
    """Whether it has a report."""


def _made(folder: Path) -> _Made:
    path = folder / run_folder.SUMMARY
    if path.exists():
        label = manifest.read_json(path)["method"]
    else:
        method = config_file.read_identity(folder / config_file.CONFIG)["config"]["method"]
        name = folder.resolve().name
        label = name if name.split("@")[0] == method else method
    return _Made(label, path.exists(), (folder / run_report.NAME).exists())


def _finish_all(folder: Path, stream: streams.Stream, made: Mapping[str, _Made]) -> None:
    """Make anew what belongs to a run and, if it is one of auto, to its candidates."""
    parts = choices.latest_folders(folder)
    for name, part in (parts | {"": folder}).items():
        _finish(part, stream, made[name])
    if parts:
        print(f"\n{choices.describe(folder)}\ncandidates: {next(iter(parts.values())).parent}/")


def _finish(folder: Path, stream: streams.Stream, before: _Made) -> None:
    """Make it anew."""
    config = config_file.config_of(
        config_file.read_identity(folder / config_file.CONFIG)["config"], folder / config_file.CONFIG
    )
    lines = run_folder.finished_lines(folder, manifest.read(folder))
    finish_run(config, stream, folder, before.label, lines)
    if before.page:
        run_report.write(folder)


def _print(folder: Path, added: update.Added, seconds: float) -> None:
    segments = [line["segment"] for line in added.lines]
    done = "no segment is complete" if not segments else f"segments {segments[0]} to {segments[-1]} are finished"
    done = f"segment {segments[0]} is finished" if len(segments) == 1 else done
    print(f"{added.rows:,} new rows: {done}; {added.waiting:,} rows wait for the next one ({seconds:.1f} s)")
    last = run_folder.finished_lines(folder, manifest.read(folder))[-1]
    entities = f"{last['users']:,} users and {last['items']:,} items"
    if last["budget_bytes"]:
        print(f"budget: {last['bytes_table']:,} of {last['budget_bytes']:,} bytes of table, {entities}")
    else:
        print(f"no budget: the method has no table; {entities}")


def unknown_rows(rows: streams.Interactions, run: Growing, source: str) -> tuple[pl.DataFrame, int]:
    """The rows of a file that a run does not have.

    A file begins with all rows of the run, in any order, where its first row in time is that of the run.

    Args:
      rows: of the file.
      run: the stream as far as it has come.
      source: name of the file.

    Returns:
      The new rows in their order, and how many rows of the file the run has.

    Raises:
      ValueError: the file begins like the run, and then differs from it.
    """
    given = as_frame(rows, source)
    known = _texts(rows_of(run))
    count = len(known)
    # New rows behind those of the run may be earlier than the last ones of these, as long as those wait.
    if same_rows(given[:count], known):
        return _by_time(given[count:]), count
    given = _by_time(given)
    first = _texts(given[:1])
    # Rows of equal time may stand in another order.
    if not known.filter(pl.col("time") == known["time"][0]).join(first, on=known.columns).height:
        return given, 0
    if not same_rows(given[:count], known):
        found = _texts(given[:count])
        shorter = min(len(found), count)
        differs = (found[:shorter] != known[:shorter]).select(pl.any_horizontal(pl.all()))
        at = differs.to_series().arg_true()
        where = f"row {int(at[0])} in the order of time differs" if len(at) else f"it has {len(given):,} rows"
        raise ValueError(
            f"{source} begins like the run, whose first {count:,} rows it must then have, but {where}: give the file "
            "of the run with new rows behind, or new rows alone"
        )
    return given[count:], count


def _by_time(rows: pl.DataFrame) -> pl.DataFrame:
    return rows[np.argsort(rows["time"].to_numpy(), kind="stable")]


def _texts(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(pl.col("user").cast(pl.String), pl.col("item").cast(pl.String), "time")


def update_command(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """The command line `scall-jax update`; arguments and errors as in `run_command`."""
    cli(Update, update_job, UPDATE, arguments, program)
