"""The command that keeps a model up with a growing source."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax

from scall_jax.cli.cli import cli
from scall_jax.cli.compilation_cache import persistent_cache
from scall_jax.cli.flags import Main
from scall_jax.cli.method_flags import check_auto, expand, make_config
from scall_jax.cli.stopping import stop_on_signals
from scall_jax.cli.stream_flags import FLAGS
from scall_jax.run import auto, manifest
from scall_jax.run import folder as run_folder
from scall_jax.run.follow import Pace, Progress, Start, follow
from scall_jax.run.loop import Hooks
from scall_jax.run.processes import ALONE
from scall_jax.streams import following
from scall_jax.streams.following import Source
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.wording import spelled_as_flags

FOLLOW = """
Keep a model up with a growing source: rows are read as they come, and each segment that they complete is run.

    scall-jax follow --data events.csv --cut.rows 5000 --out runs/live
    scall-jax follow --data sqlite:shop.db --source.table events --source.key id --cut.rows 5000 --out runs/live
    scall-jax follow --data postgresql://host/shop --source.table events --source.key id --cut.rows 5000 --out runs/live
    consumer | scall-jax follow --data - --columns.format jsonl --cut.rows 5000 --out runs/live --source.resend rest

The folder is begun once the rows of a first segment have come, and goes on where it is: each row counts once, whenever
the process is stopped. `scall_jax.load` reads the current model from it at any time.
"""
"""What `scall-jax follow` does, as its help shows it."""


@dataclasses.dataclass(frozen=True)
class SourceFlags:
    """Where rows come from, besides --data."""

    table: str | None = None
    """Table of a database, sqlite:PATH or postgresql://HOST/NAME."""
    key: str | None = None
    """Column of --source.table with whole numbers that only grow and no row shares, such as id."""
    lag: float | None = None
    """Seconds for which rows of a table are held back, so that transactions that took smaller keys have ended; default:
    5 for PostgreSQL, 0 for SQLite, whose writers take turns."""
    resend: str | None = None
    """What comes on standard input when a folder goes on: all, every row from the start again; or rest, those that are
    not in the folder. It has no default."""


@dataclasses.dataclass(frozen=True)
class Follow(Main):
    """Flags of `scall-jax follow`: those of a run, which count where it is begun, and its own."""

    SHOWN: ClassVar[dict[str, tuple[str, ...]]] = {
        "source": (
            "data",
            *(f"source.{name}" for name in ("table", "key", "lag", "resend")),
            *(f"columns.{name}" for name in ("user", "item", "timestamp")),
        ),
        "pace": ("poll", "until-idle", "once", "most-rows", "late"),
        "the run, where it is begun": (
            *("cut.rows", "cut.new-entities", "method", "budget.mean-size", "budget.megabytes", "recommender", "table"),
            *("charge", "sizes.maximum", "fit.steps", "bias", "seed"),
        ),
        "results": ("out", "compilation-cache"),
    }
    """Flags that `-h` shows, by title."""

    data: str = "-"
    """A file of CSV or JSON lines to which rows are appended, - for standard input, or a database (--source.table)."""
    method: tuple[str, ...] = (auto.NAME,)
    """The method: auto, or one that has sizes; flags may follow its name after an @, as for scall-jax run."""
    report: bool = False
    """Refused here: `scall-jax update RUN`, without --data, writes the summary and the report of the run."""
    out: Path = Path("runs/live")
    """Folder of the run. It is made by this command, and goes on if it exists; one that scall-jax run made of the first
    rows of the source goes on too."""
    source: SourceFlags = SourceFlags()
    """Where rows come from, besides --data."""
    poll: float = 1.0
    """Seconds between two looks at a source that has nothing new."""
    until_idle: float | None = None
    """End after so many seconds without a new row."""
    once: bool = False
    """End when everything has been read that is there, as from cron; standard input is read to its end."""
    most_rows: int = 10_000
    """Rows that are read and committed at once, at most; the source is read no faster than they are worked in."""
    late: Literal["refuse", "clamp"] = "refuse"
    """What becomes of rows that are earlier than the last row of a segment: an error, or they are placed at the time of
    that row."""


_SPELLED = FLAGS | {name: f"--source.{name}" for name in ("table", "key", "lag", "resend")} | {"late": "--late"}


def follow_job(flags: Follow) -> int:
    """Follow a source.

    Args:
      flags: of the command.

    Returns:
      Rows in the folder.

    Raises:
      ValueError: flags, a source or a folder that cannot be followed.
    """
    if flags.resume or flags.overwrite or flags.protocol != "clean":
        raise ValueError("--resume, --overwrite, --protocol: a folder that is followed goes on, by the clean protocol")
    if flags.report or flags.tensorboard or flags.processes != ALONE or flags.max_memory is not None:
        raise ValueError(
            "--report, --tensorboard, --processes, --max-memory: a source is followed by one process, batch by batch, "
            "without a report or a log: leave them out"
        )
    begun = (flags.out / manifest.NAME).exists()
    start = None if begun else _start(flags)
    pace = Pace(flags.most_rows, flags.poll, flags.until_idle, flags.once, flags.late)
    with (
        spelled_as_flags(_SPELLED),
        contextlib.closing(_source(flags)) as source,
        persistent_cache(flags.compilation_cache) as settled,
        stop_on_signals(lambda: _stopped(flags.out)),
    ):
        told = _Told(source, flags.out)

        def compiled() -> None:
            settled()
            jax.clear_caches()

        rows = follow(source, flags.out, start, pace, Hooks(compiled, phase=told.phase), told.commit)
        told.end(rows)
        return rows


def _start(flags: Follow) -> Start:
    """The run to begin."""
    methods = expand(flags.method)
    if len(methods) != 1:
        raise ValueError(f"--method {' '.join(flags.method)}: give one method")
    cut = {name: value for name, value in dataclasses.asdict(flags.cut).items() if value not in (None, (), 0, False)}
    cut |= {"replay": flags.cut.replay, "replay_by": flags.cut.replay_by}
    others = sorted(set(cut) - {"rows", "new_entities", "replay", "replay_by", "shuffle_ties"})
    if others or ("rows" in cut) == ("new_entities" in cut):
        refused = f"--cut.{others[0].replace('_', '-')}: " if others else ""
        raise ValueError(
            f"{refused}a source that grows is cut as it comes: give --cut.rows, the rows of a segment, or "
            "--cut.new-entities, its new users and items"
        )
    for name, least in (("rows", 10), ("new_entities", 4)):
        if cut.get(name, least) < least:
            raise ValueError(f"--cut.{name.replace('_', '-')} {cut[name]}: at least {least}")
    check_auto(flags, methods[0])
    return Start(make_config(flags, methods[0]), cut, flags.seed)


def _source(flags: Follow) -> Source:
    """The source that the flags name."""
    given: dict[str, Any] = dataclasses.asdict(flags.columns)
    if given.pop("parts") or given.pop("folder"):
        raise ValueError("--columns.parts and --columns.folder: one file is followed")
    given["separator"] = {r"\t": "\t"}.get(given["separator"] or "", given["separator"])
    options = ReadOptions(**given)
    where = flags.source
    if following.is_database(flags.data):
        if where.table is None or where.key is None:
            raise ValueError("--source.table and --source.key: name the table of the database and its growing key")
        database = following.connect(flags.data)
        return following.GrowingTable(database, where.table, where.key, options, where.lag)
    if (where.table, where.key, where.lag) != (None, None, None):
        raise ValueError("--source.table, --source.key, --source.lag: --data sqlite:PATH or postgresql://HOST/NAME")
    if flags.data == "-":
        return following.StandardInput(options, where.resend)
    if where.resend is not None:
        raise ValueError("--source.resend: a file is read from where the folder has come to; only a pipe is not")
    return following.GrowingFile(flags.data, options)


class _Told:
    """Lines about how far the folder has come."""

    def __init__(self, source: Source, folder: Path):
        self._source, self._folder = source, folder
        self._first, self._terminal, self._compiling = True, sys.stdout.isatty(), False
        print(f"following {source.name} into {folder}/")

    def phase(self, doing: str, name: str) -> None:
        """Say once when programs are compiled, which takes a while."""
        if doing == "compiling" and not self._compiling:
            self._print("compiling")
        self._compiling = doing == "compiling"

    def commit(self, progress: Progress) -> None:
        """A line for a segment, and one for a folder that goes on; on a terminal also one that changes, for rows."""
        behind = self._source.behind(progress.offset)
        text = f"{progress.rows:,} rows ({progress.waiting:,} wait)" + (f", {behind} behind" if behind else "")
        if isinstance(self._source, following.StandardInput) and progress.offset is not None:
            text += f"; {progress.offset['rows']:,} rows of the input count"
        if progress.line is not None:
            self._print(f"{_described(progress.line)}; {text}")
        elif self._first:
            self._print(f"goes on after segment {run_folder.finished_segments(self._folder) - 1}; {text}")
        elif self._terminal:
            print(f"\r\033[K{text}", end="", flush=True)
        self._first = False

    def end(self, rows: int) -> None:
        """Say why nothing was made, if so."""
        if not rows:
            self._print("too few rows have come for a first segment: nothing was written, and they will be read again")
        elif self._terminal:
            print()

    def _print(self, text: str) -> None:
        # In one piece, so that a process that is stopped leaves whole lines.
        sys.stdout.write(f"\r\033[K{text}\n" if self._terminal else f"{text}\n")
        sys.stdout.flush()


def _described(line: dict[str, Any]) -> str:
    seconds = sum(line[f"seconds_{name}"] for name in ("fit", "evaluate", "search", "sizes"))
    return (
        f"segment {line['segment']}: {line['users']:,} users, {line['items']:,} items, "
        f"{1e-6 * line['bytes_table']:.3f} of {1e-6 * line['budget_bytes']:.3f} MB, "
        f"recall@20 {line['test_recall@20']:.4f} of {line['test_users']:,} test users, {seconds:.1f} s"
    )


def _stopped(folder: Path) -> str:
    """The line that says how far the folder has come."""
    done = run_folder.finished_segments(folder)
    after = f"after segment {done - 1}" if done else "before the first segment was finished"
    return f"stopped {after}; the same command goes on"


def follow_command(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """The command line `scall-jax follow`; arguments and errors as in `run_command`."""
    cli(Follow, follow_job, FOLLOW, arguments, program)
