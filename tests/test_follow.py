"""Following a source: each row counts once wherever the process ended, and readers find whole models."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

import scall_jax
from scall_jax import Budget, Config, run_segments, streams
from scall_jax.analysis import comparison
from scall_jax.cli.follow import follow_command
from scall_jax.cli.main import main
from scall_jax.run import checkpoint, manifest
from scall_jax.run import folder as run_folder
from scall_jax.run import follow as follow_module
from scall_jax.run.follow import Pace, Start, follow
from scall_jax.run.lock import locked
from scall_jax.run.update import opened
from scall_jax.run.update_files import read_growing
from scall_jax.streams.following import GrowingFile, StandardInput
from scall_jax.streams.options import ReadOptions
from tests import postgresql
from tests.faults import follow as faults
from tests.helpers import comparable

ROWS = faults.rows_of_test(1000)
START = Start(Config("popularity-decayed", Budget.mean_size(2)), {"rows": 300}, 0)
ONCE = Pace(most=170, once=True)


def written(path, rows):
    path.write_text("".join(f"{u},{i},{t}\n" for u, i, t in [("user", "item", "timestamp"), *rows]))
    return path


def source(path):
    return GrowingFile(path, ReadOptions())


def rows_in(folder):
    """All rows of a folder, those that wait at the end."""
    found = read_growing(folder, manifest.check(folder))
    ids = (of.gather(codes).to_list() for of, codes in (
        (found.stream.user_ids, found.stream.user), (found.stream.item_ids, found.stream.item)))  # fmt: skip
    return [*zip(*ids, (found.stream.time // 1000).tolist(), strict=True)] + [
        (user, item, time // 1000) for user, item, time in found.waiting.rows()
    ]


def lines_of(folder):
    return comparable(run_folder.finished_lines(folder, manifest.read(folder)))


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A folder, its source, and copies of it after each write of a manifest: what a kill would leave there."""
    place = tmp_path_factory.mktemp("followed")
    path, copies = written(place / "events.csv", ROWS), []
    replace = os.replace

    def replaced(here, there):
        replace(here, there)
        if Path(there).name == manifest.NAME:
            copies.append(place / "copies" / str(len(copies)))
            for folder in place.glob("live*"):
                shutil.copytree(folder, copies[-1] / folder.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        told = []
        assert follow(source(path), place / "live", START, ONCE, tell=told.append) == 1000
    return place / "live", path, copies, told


def test_a_folder_has_every_row_and_is_told_of_after_each_commit(followed):
    folder, path, _, told = followed
    assert rows_in(folder) == ROWS
    assert [progress.line["segment"] for progress in told if progress.line] == [0, 1, 2]
    # A commit has 170 rows at most, and completes one segment.
    assert [progress.rows for progress in told] == [300, 470, 600, 770, 900, 1000]
    assert [progress.waiting for progress in told] == [0, 170, 0, 170, 0, 100]
    assert told[-1].offset["bytes"] == path.stat().st_size
    with opened(folder) as run:
        assert run.offset == told[-1].offset


def test_a_process_that_ends_at_any_write_goes_on_to_the_same_folder(followed):
    folder, path, copies, _ = followed
    states = [(sorted(x.name for x in copy.iterdir()), faults.place(copy / "live")) for copy in copies]
    assert {state for _, state in states} == {
        "first segment", "writing rows", "writing a segment", "deleting"}  # fmt: skip
    # The first of each kind.
    chosen = {state: copy for copy, (_, state) in reversed(list(zip(copies, states, strict=True)))}
    for state, copy in chosen.items():
        follow(source(path), copy / "live", START, ONCE)
        assert (rows_in(copy / "live"), lines_of(copy / "live")) == (ROWS, lines_of(folder)), state
        assert not faults.stray_files(copy / "live"), state


def test_a_model_is_whole_though_a_commit_comes_between(followed, tmp_path, monkeypatch):
    folder, path, _, _ = followed
    shutil.copytree(folder, tmp_path / "live")
    more = [(u, i, t + 10**6) for u, i, t in ROWS[:200]]
    written(path.with_name("more.csv"), [*ROWS, *more])
    read = checkpoint.read

    def late(place, segment):
        monkeypatch.setattr(checkpoint, "read", read)
        assert follow(source(path.with_name("more.csv")), tmp_path / "live", START, ONCE) == 1200
        return read(place, segment)

    monkeypatch.setattr(checkpoint, "read", late)
    # The checkpoint that the reader is about to read is gone then.
    model = scall_jax.load(tmp_path / "live")
    assert model.segment == 3
    again = scall_jax.load(tmp_path / "live")
    assert model.recommend(["u1"], 5).equals(again.recommend(["u1"], 5))
    (next((tmp_path / "live" / "checkpoints").rglob("manifest.ocdbt"))).write_bytes(b"x")
    with pytest.raises(ValueError, match="is not what the run wrote"):
        scall_jax.load(tmp_path / "live")


def test_folders_and_sources_that_do_not_belong_together_are_refused(followed, tmp_path):
    folder, path, _, _ = followed
    shutil.copytree(folder, tmp_path / "live")
    changed = written(tmp_path / "events.csv", [("x" + ROWS[0][0][1:], *ROWS[0][1:]), *ROWS[1:]])
    with pytest.raises(ValueError, match="the file was replaced or changed: at its start"):
        follow(source(changed), tmp_path / "live", START, ONCE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds something else than a run"):
        follow(source(path), tmp_path / "other", START, ONCE)
    late = written(tmp_path / "late.csv", ROWS[:300] + ROWS[:1])
    with pytest.raises(ValueError, match="earlier than the last row of a segment"):
        follow(source(late), tmp_path / "late", START, ONCE)
    # What came before the late row is there.
    assert rows_in(tmp_path / "late") == ROWS[:300]
    assert follow(source(late), tmp_path / "late", START, ONCE._replace(late="clamp")) == 301
    assert rows_in(tmp_path / "late")[300] == (*ROWS[0][:2], ROWS[299][2])


def test_a_run_over_the_first_rows_of_a_source_goes_on(followed, tmp_path):
    folder, path, _, _ = followed
    begun = streams.cut(streams.read(written(tmp_path / "begun.csv", ROWS[:700])), rows=300)
    run_segments(START.config, begun, jax.random.key(0), folder=tmp_path / "run")
    other = shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert follow(source(path), tmp_path / "run", None, ONCE) == 1000
    assert (rows_in(tmp_path / "run"), lines_of(tmp_path / "run")) == (ROWS, lines_of(folder))
    for wrong in (ROWS[:600], [*ROWS[:699], ("u0", "i0", ROWS[699][2])]):
        with pytest.raises(ValueError, match=r"another command, and its 700 rows are not .*choose"):
            follow(source(written(tmp_path / "wrong.csv", wrong)), other, None, ONCE)
    with pytest.raises(ValueError, match="holds no run"):
        follow(source(path), tmp_path / "nothing", None, ONCE)


def piped(path):
    """The bytes of a file in a pipe that is closed behind them."""
    read, write = os.pipe()
    os.write(write, path.read_bytes())
    os.close(write)
    return StandardInput(ReadOptions(), descriptor=read)


@pytest.mark.parametrize("of", [source, piped])
@pytest.mark.parametrize(
    ("bad", "message"),
    [(("u1", "i1", "then"), r"row 432"), (ROWS[0], r"(events.csv|input): 1 of 1 new row\(s\) are earlier than")],
)
def test_rows_in_front_of_a_bad_one_are_in_the_folder(tmp_path, of, bad, message):
    path = written(tmp_path / "events.csv", [*ROWS[:430], bad, *ROWS[430:600]])
    with pytest.raises(ValueError, match=message):
        follow(of(path), tmp_path / "live", START, ONCE)
    assert rows_in(tmp_path / "live") == ROWS[:430]
    if of is source:
        written(path, ROWS[:600])
        assert follow(of(path), tmp_path / "live", START, ONCE) == 600


@pytest.mark.parametrize("of", [source, piped])
def test_a_bad_row_behind_the_first_segment_does_not_keep_it_out(tmp_path, of):
    path = written(tmp_path / "events.csv", [*ROWS[:310], ("u1", "i1", "then"), *ROWS[310:320]])
    start = START._replace(cut={"new_entities": 40})
    with pytest.raises(ValueError, match="row 312"):
        follow(of(path), tmp_path / "live", start, Pace(once=True))
    assert rows_in(tmp_path / "live") == ROWS[:310]


@pytest.mark.parametrize("keeps_on", [True, False])
def test_a_second_follower_leaves_the_first_one_its_lock(tmp_path, monkeypatch, keeps_on):
    """The second has found no run yet when the first one begins it."""
    path, live, first = written(tmp_path / "events.csv", ROWS[:400]), tmp_path / "live", follow_module._first_segment
    with contextlib.ExitStack() as held:

        def slow(*arguments):
            monkeypatch.setattr(follow_module, "_first_segment", first)
            follow(source(path), live, START, ONCE)
            if keeps_on:
                held.enter_context(opened(live))
            return first(*arguments)

        monkeypatch.setattr(follow_module, "_first_segment", slow)
        said = "is being written by process" if keeps_on else "another process has begun meanwhile"
        with pytest.raises(ValueError, match=said):
            follow(source(path), live, START, ONCE)
        if keeps_on:
            with pytest.raises(ValueError, match="is being written by"), locked(live):
                pass
    assert rows_in(live) == ROWS[:400] and sorted(x.name for x in tmp_path.iterdir()) == ["events.csv", "live"]
    assert follow(source(path), live, START, ONCE) == 400


def test_update_adds_nothing_to_a_folder_that_is_followed_and_finishes_it(followed, tmp_path, capsys):
    folder, live, more = followed[0], tmp_path / "live", [(u, i, t + 10**6) for u, i, t in ROWS[:200]]
    shutil.copytree(folder, live)
    tomorrow = written(tmp_path / "tomorrow.csv", more)
    with pytest.raises(SystemExit):
        main(["update", str(live), "--data", str(tomorrow), "--no-compilation-cache"])
    assert "goes on with scall-jax follow" in capsys.readouterr().err
    assert rows_in(live) == ROWS
    with pytest.raises(ValueError, match="scall-jax update, without --data"):
        comparison.read_run(live)
    main(["update", str(live), "--no-compilation-cache"])
    assert comparison.read_run(live).summary["method"] == "popularity-decayed" and (live / "report.html").exists()
    grown = written(tmp_path / "events.csv", [*ROWS, *more])
    assert follow(source(grown), live, START, ONCE) == 1200
    assert rows_in(live) == [*ROWS, *more]


def test_a_last_row_without_an_end_of_its_line_is_said(tmp_path):
    begun = streams.cut(streams.read(written(tmp_path / "begun.csv", ROWS[:700])), rows=300)
    run_segments(START.config, begun, jax.random.key(0), folder=tmp_path / "run")
    open_ended = written(tmp_path / "open.csv", ROWS[:700])
    open_ended.write_text(open_ended.read_text().removesuffix("\n"))
    with pytest.raises(ValueError, match=r"699 whole rows of the 700 in .*end it with a line break"):
        follow(source(open_ended), tmp_path / "run", None, ONCE)
    read, write = os.pipe()
    os.write(write, open_ended.read_bytes())
    os.close(write)
    left = len(open_ended.read_bytes().split(b"\n")[-1])
    with pytest.warns(streams.DataWarning, match=rf"standard input: its last {left} bytes are no whole row"):
        assert follow(StandardInput(ReadOptions(), descriptor=read), tmp_path / "piped", START, ONCE) == 699
    os.close(read)


@pytest.mark.slow
def test_segments_by_new_entities_do_not_depend_on_how_rows_come(tmp_path):
    path, start = tmp_path / "events.csv", START._replace(cut={"new_entities": 24})
    follow(source(written(path, ROWS)), tmp_path / "whole", start, ONCE)
    for end in (130, 500, 1000):
        follow(source(written(path, ROWS[:end])), tmp_path / "parts", start, ONCE._replace(most=33))
    assert len(lines_of(tmp_path / "whole")) > 2
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "parts")
    assert rows_in(tmp_path / "whole") == rows_in(tmp_path / "parts") == ROWS


def arguments(path, out, *more):
    flags = ["--method", "popularity-decayed", "--cut.rows", "300", "--budget.mean-size", "2", "--most-rows", "170"]
    return ["--data", str(path), "--out", str(out), *flags, *more]


def test_the_command(tmp_path, capsys):
    path, out = written(tmp_path / "events.csv", ROWS[:200]), tmp_path / "live"
    follow_command(arguments(path, out, "--once"))
    assert "too few rows have come for a first segment: nothing was written" in capsys.readouterr().out
    assert not out.exists()
    written(path, ROWS[:400])
    follow_command(arguments(path, out, "--until-idle", "0.01"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"following {path} into {out}/"
    assert "segment 0: " in printed[-1] and f"300 rows (0 wait), {_bytes(300, 400):,} bytes behind" in printed[-1]
    written(path, ROWS[:600])
    follow_command(arguments(path, out, "--once"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == f"goes on after segment 0; 400 rows (100 wait), {_bytes(400, 600):,} bytes behind"
    assert printed[-1].startswith("segment 1: ") and printed[-1].endswith("600 rows (0 wait), 0 bytes behind")


def _bytes(start, end):
    return sum(len(f"{u},{i},{t}\n") for u, i, t in ROWS[start:end])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cut.segments", "3"], "--cut.segments: a source that grows is cut as it comes: give --cut.rows"),
        (["--cut.rows", "3"], "--cut.rows 3: at least 10"),
        (["--method", "auto", "pep"], "--method auto pep: give one method"),
        (["--resume"], "a folder that is followed goes on"),
        (["--report"], "followed by one process"),
        (["--tensorboard"], "followed by one process"),
        (["--max-memory", "100"], "followed by one process"),
        (["--source.table", "x"], "--data sqlite:PATH or postgresql://HOST/NAME"),
        (["--source.resend", "all"], "only a pipe is not"),
        (["--method", "pep"], "method pep cannot go on"),
        (["--data", "sqlite:events.db"], "--source.table and --source.key: name the table"),
        (["--most-rows", "0"], "0 rows at once"),
        (["--data", "."], ".: a folder, not a file: name one file"),
        (["--out", __file__], f"{__file__} is a file, not a folder"),
        (["--out", f"{__file__}/live"], f"{__file__} is a file, not a folder"),
    ],
)
def test_flags_that_cannot_be_followed(tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        follow_command(arguments(written(tmp_path / "events.csv", ROWS), tmp_path / "live", "--once", *more))
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [*((kind, "uniform") for kind in faults.FEEDS), ("file", "auto")])
def test_kills(kind, method):
    if kind == "postgresql" and postgresql.missing():
        pytest.skip(str(postgresql.missing()))
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.follow", "--source", kind, "--method", method]
    done = subprocess.run([*command, "--kills", "3", "--rows", "2000"], capture_output=True, text=True)
    assert done.returncode == 0 and "equal" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line(tmp_path, number):
    path = written(tmp_path / "events.csv", ROWS[:400])
    command = [sys.executable, "-W", "ignore", "-m", "scall_jax.cli.main", "follow"]
    command += arguments(path, tmp_path / "live")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("segment 0"):
            break
    process.send_signal(number)
    _, error = process.communicate()
    assert (process.returncode, error) == (128 + number, "stopped after segment 0; the same command goes on\n")


@pytest.mark.slow
def test_readers_in_a_loop_find_whole_models_while_a_follower_writes(tmp_path):
    path = written(tmp_path / "events.csv", faults.rows_of_test(6000))
    config = Config("popularity-decayed", Budget.mean_size(2))
    start, seen, failed = START._replace(config=config, cut={"rows": 100}), [], []
    over = threading.Event()

    def reads():
        try:
            while not over.is_set():
                if (tmp_path / "live" / manifest.NAME).exists():
                    model = scall_jax.load(tmp_path / "live")
                    assert np.isfinite(model.recommend(["u1"], 3)["score"].to_numpy()).all()
                    seen.append(model.segment)
        except Exception as error:
            failed.append(error)

    reader = threading.Thread(target=reads)
    reader.start()
    follow(source(path), tmp_path / "live", start, Pace(once=True))
    over.set()
    reader.join()
    assert not failed
    assert seen == sorted(seen) and len(set(seen)) > 2
