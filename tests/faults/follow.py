"""Kill a follower again and again while its source grows: every row counts once, and the model is that of a quiet run.

    python -m tests.faults.follow --kills 200 --rows 50000
    python -m tests.faults.follow --kills 50 --rows 50000 --source postgresql
    python -m tests.faults.follow --kills 50 --rows 10000 --method auto

Each life of the follower ends by SIGKILL at a random moment: while it starts, or some milliseconds after a write of the
manifest, which begins or ends a commit. What was to be read next is appended in pieces that end within lines. Prints
where the kills fell, and what was compared. Cost: about 10 s of a core for a kill. Expect: `equal`, and exit code 0.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_START = ["--fit.steps", "10", "--fit.eval-every", "10"]
_START += ["--fit.batch", "64", "--sizes.maximum", "4", "--budget.mean-size", "2", "--seed", "3"]
FLAGS = [*_START, "--poll", "0.05", "--most-rows", "150"]
"""A model that is trained in a moment, and commits that are smaller than a segment."""
METHODS = {"uniform": "uniform@recommender=mf", "auto": "auto"}
"""Methods as the command gets them: auto chooses its recommender by itself."""
_FIRST = 4  # kills in the first segment after which it is let pass
_TICK = 0.002  # seconds between two looks at the follower
_PATIENCE = 20.0  # seconds without a write after which it is taken to wait for rows


class Feed(NamedTuple):
    """A source that is made to grow."""

    flags: list[str]
    """How the follower is told of it."""
    grow: Callable[[int], object]
    """grow(n) appends until n parts of the whole are there; parts are bytes of a file, or rows of a table."""
    parts: int
    """In all."""
    read: Callable[[dict], int]
    """Parts behind an offset."""


def rows_of_test(number: int, seed: int = 0) -> list[tuple[str, str, int]]:
    """Rows in the order of time, with ties; some users and items appear late."""
    draw, time_, rows = random.Random(seed), 1_600_000_000, []
    for at in range(number):
        known = 40 + at // 50
        rows.append((f"u{int(known * draw.random() ** 2)}", f"i{int((20 + at // 100) * draw.random() ** 2)}", time_))
        time_ += draw.choice([0, 0, 1, 2, 5])
    return rows


@contextlib.contextmanager
def fed_file(folder: Path, rows: list[tuple[str, str, int]]) -> Iterator[Feed]:
    """A CSV file."""
    path = folder / "events.csv"
    data = "".join(f"{u},{i},{t}\n" for u, i, t in [("user", "item", "timestamp"), *rows]).encode()

    def grow(parts: int) -> None:
        with path.open("ab") as file:
            file.write(data[file.tell() : parts])

    yield Feed(["--data", str(path)], grow, len(data), lambda offset: offset["bytes"])


@contextlib.contextmanager
def fed_sqlite(folder: Path, rows: list[tuple[str, str, int]]) -> Iterator[Feed]:
    """A table of SQLite."""
    path = folder / "events.db"

    def run(text: str, some: list[tuple]) -> None:
        # A connection is not carried over to the followers, which are forks.
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executemany(text, some)
            connection.commit()

    run("CREATE TABLE events (id INTEGER PRIMARY KEY, user TEXT, item TEXT, timestamp INTEGER)", [()])
    flags = ["--data", f"sqlite:{path}", "--source.table", "events", "--source.key", "id"]
    text, done = "INSERT INTO events (user, item, timestamp) VALUES (?, ?, ?)", [0]

    def grow(parts: int) -> None:
        run(text, rows[done[0] : parts])
        done[0] = max(done[0], parts)

    yield Feed(flags, grow, len(rows), lambda offset: offset["rows"])


@contextlib.contextmanager
def fed_postgresql(folder: Path, rows: list[tuple[str, str, int]]) -> Iterator[Feed]:
    """A table of a PostgreSQL server."""
    import psycopg

    from tests import postgresql

    with postgresql.server() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute('CREATE TABLE events (id bigserial PRIMARY KEY, "user" text, item text, timestamp bigint)')
        flags = ["--data", url, "--source.table", "events", "--source.key", "id", "--source.lag", "0.2"]
        done = [0]

        def grow(parts: int) -> None:
            text = 'INSERT INTO events ("user", item, timestamp) VALUES (%s, %s, %s)'
            with connection.transaction():
                connection.cursor().executemany(text, rows[done[0] : parts])
            done[0] = max(done[0], parts)

        yield Feed(flags, grow, len(rows), lambda offset: offset["rows"])


FEEDS = {"file": fed_file, "sqlite": fed_sqlite, "postgresql": fed_postgresql}


def started(arguments: list[str], log: Path) -> int:
    """The process of a follower: a fork, since importing takes seconds. No thread runs in this process."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from scall_jax.cli.main import main

        main(["follow", *arguments])
        os._exit(0)
    except SystemExit as error:
        os._exit(int(error.code or 0))
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)


def ended(process: int) -> int | None:
    """Exit code of a process, -9 after SIGKILL; None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def stamp(out: Path) -> tuple[int, int]:
    """Changes when a manifest is written."""
    for folder in (out, out.with_name(out.name + ".starting")):
        with contextlib.suppress(FileNotFoundError):
            status = (folder / "manifest.json").stat()
            return status.st_ino, status.st_mtime_ns
    return 0, 0


def place(out: Path) -> str:
    """Where a kill fell, by what it left."""
    if not (out / "manifest.json").exists():
        return "first segment" if stamp(out) != (0, 0) else "before the first write"
    content = json.loads((out / "manifest.json").read_text())
    if content["writing"]:
        _, _, first, end = content["writing"].split("-")
        return "writing a segment" if first != end else "writing rows"
    return "deleting" if any((out / name).exists() for name in content["obsolete"]) else "between commits"


def life(
    feed: Feed, arguments: list[str], out: Path, goal: int, draw: random.Random, wait: float, least: int = 0
) -> tuple[str, float]:
    """One life of the follower, of `least` writes; where its kill fell, and seconds to its first manifest."""
    before, begun, fed = stamp(out), time.monotonic(), feed.read(offset_of(out))
    # A kill falls before the first write, soon after it, or after one of the next ones; a first segment has eight.
    writes = max(least, draw.choice([0, 1, 3, draw.randint(2, 5), draw.randint(2, 12)]))
    kill_at = begun + draw.uniform(0, wait) if writes == 0 else None
    steps, first = sorted(draw.randint(fed, goal) for _ in range(6)), wait
    process = started(arguments, out.parent / "log")
    feed.grow(steps[0])
    seen, next_grow, last = 0, begun, begun
    while (code := ended(process)) is None:
        time.sleep(_TICK)
        now, found = time.monotonic(), stamp(out)
        if found != before:
            before, seen, last = found, seen + 1, now
            first = now - begun if seen == 1 else first
            if seen >= writes and kill_at is None:
                kill_at = now + draw.choice([0, draw.uniform(0, 0.02), draw.uniform(0, 0.5)])
        if steps and now >= next_grow:
            feed.grow(steps.pop(0))
            next_grow = now + draw.uniform(0, 0.2 + wait / 8)
        if not steps and kill_at is None and now > max(next_grow, last) + _PATIENCE:
            kill_at = now  # It has nothing to do any more.
        if kill_at is not None and now >= kill_at:
            os.kill(process, signal.SIGKILL)
            kill_at = float("inf")
    if code != -signal.SIGKILL:
        raise SystemExit(f"the follower ended with code {code}:\n{(out.parent / 'log').read_text()[-3000:]}")
    return place(out), first


def offset_of(out: Path) -> dict:
    """The offset in a folder, read from its files alone."""
    for path in sorted((out / "updates").glob("*/state.json")):
        listed = json.loads((out / "manifest.json").read_text())["files"]
        if path.relative_to(out).as_posix() in listed:
            return json.loads(path.read_text())["offset"]
    return {"bytes": 0, "rows": 0}


def quiet(feed: Feed, arguments: list[str], out: Path) -> None:
    """A follower that reads all that is left, and ends."""
    feed.grow(feed.parts)
    process = started([*arguments, "--once"], out.parent / "log")
    while (code := ended(process)) is None:
        time.sleep(0.05)
    if code:
        raise SystemExit(f"the follower ended with code {code}:\n{(out.parent / 'log').read_text()[-3000:]}")


def stray_files(folder: Path) -> list[str]:
    """Files of a run folder that its manifest does not list."""
    runs = [path.parent for path in folder.rglob("manifest.json")]
    listed = {run / name for run in runs for name in json.loads((run / "manifest.json").read_text())["files"]}
    listed |= {run / name for run in runs for name in ("manifest.json", "lock")}
    files = {path for path in folder.rglob("*") if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in files - listed)


def _arrays(snapshots: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Arrays of the states of a run, or of all candidates of one of auto, by candidate and name."""
    every = {name: {"key": x.key, "known": x.known} | x.stored | dict(x.memory) for name, x in snapshots.items()}
    return {(name, of): array for name, arrays in every.items() for of, array in arrays.items()}


def compare(folders: dict[Path, Feed], rows: list[tuple[str, str, int]]) -> list[str]:
    """What is wrong with two folders, of which nobody stopped the second; empty where they are equal."""
    import numpy as np

    from scall_jax.run import checkpoint, choices, manifest
    from scall_jax.run import folder as run_folder
    from scall_jax.run.update_files import read_growing
    from tests.helpers import comparable

    wrong, snapshots, lines = [], [], []
    for folder, feed in folders.items():
        found = manifest.check(folder)
        grown = read_growing(folder, found)
        stream = grown.stream
        columns = [
            [*stream.user_ids.gather(stream.user).to_list(), *grown.waiting["user"].to_list()],
            [*stream.item_ids.gather(stream.item).to_list(), *grown.waiting["item"].to_list()],
            [*stream.time.tolist(), *grown.waiting["time"].to_list()],
        ]
        if [*zip(*columns, strict=True)] != [(u, i, 1000 * t) for u, i, t in rows]:
            wrong.append(f"{folder.name}: rows are missing, come twice or are in another order ({len(columns[0])})")
        if feed.read(offset_of(folder)) != feed.parts:
            wrong.append(f"{folder.name}: the offset is {offset_of(folder)}")
        if stray := stray_files(folder):
            wrong.append(f"{folder.name}: files that nobody lists: {stray[:5]}")
        lines.append(comparable(run_folder.finished_lines(folder, found)))
        parts = choices.candidate_folders(folder, found) or {"": folder}
        read = {name: checkpoint.read(part / "checkpoints", len(stream) - 1) for name, part in parts.items()}
        snapshots.append(read)
    if lines[0] != lines[1]:
        first = next((t for t, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), "the end")
        wrong.append(f"metrics differ from segment {first} on")
    one, two = map(_arrays, snapshots)
    if one.keys() != two.keys() or any(np.asarray(one[k]).tobytes() != np.asarray(two[k]).tobytes() for k in one):
        wrong.append("the models differ")
    print(f"{len(rows)} rows, {len(lines[0])} segments, {len(one)} arrays of the model: ", end="")
    return wrong


def some_candidates() -> None:
    """Give auto, in this process and its forks, two candidates that compile in a moment."""
    from scall_jax.run import auto

    names = ("all", "decayed")
    auto.candidates = lambda config: {name: dataclasses.replace(config, method=f"popularity-{name}") for name in names}


def run(source: str, method: str, kills: int, rows: int, segment: int, seed: int, folder: Path) -> list[str]:
    """Kill followers, let the last one finish, and compare; what is wrong."""
    import scall_jax.cli.follow  # noqa: F401  (what the forks need)

    if method == "auto":
        some_candidates()
    draw, places = random.Random(seed), collections.Counter()
    given, out, whole = rows_of_test(rows, seed), folder / "live", folder / "whole"
    (folder / "quiet").mkdir()
    with FEEDS[source](folder, given) as feed, fed_file(folder / "quiet", given) as other:
        own = [*FLAGS, "--method", METHODS[method], "--cut.rows", str(segment)]
        # It also fills the cache of compiled programs.
        quiet(other, [*other.flags, *own, "--out", str(whole)], whole)
        arguments, wait = [*feed.flags, *own], 8.0
        for kill in range(kills):
            goal = feed.parts * (kill + 1) // (kills + 1)
            # Kills in the first segment are of one kind, and begin it anew: some of them are enough.
            least = 10 if not out.exists() and places["first segment"] >= _FIRST else 0
            found, first = life(feed, [*arguments, "--out", str(out)], out, goal, draw, wait, least)
            places[found] += 1
            wait = 0.7 * wait + 0.3 * first
            if sys.stdout.isatty() or kill % 5 == 4:
                print(f"{kill + 1} kills, {feed.read(offset_of(out))} of {feed.parts} read: {dict(places)}", flush=True)
        quiet(feed, [*arguments, "--out", str(out)], out)
        wrong = compare({out: feed, whole: other}, given)
    print("; ".join(wrong) or "equal", dict(places), flush=True)
    return wrong


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=FEEDS, default="file")
    parser.add_argument("--method", choices=METHODS, default="uniform")
    for name, default in (("kills", 200), ("rows", 50_000), ("segment", 500), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        # Programs are compiled once, and in a moment.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
        wrong = run(flags.source, flags.method, flags.kills, flags.rows, flags.segment, flags.seed, Path(folder))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
