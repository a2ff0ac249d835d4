"""Runs of auto go on: all candidates or none, equal to one run over all rows, and whole for readers at any moment."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from scall_jax import Budget, Config, load, streams
from scall_jax.run import auto, choices, config_file, manifest, open_auto, open_run, records, update
from scall_jax.run import folder as run_folder
from scall_jax.run.follow import Pace, Start, follow
from scall_jax.streams.following import GrowingFile
from scall_jax.streams.options import ReadOptions
from tests.helpers import comparable
from tests.test_update import OF_CAPACITY, _assert_same_model, _assert_same_run

KEY, ROWS, SEGMENT = jax.random.key(3), 1350, 300


@pytest.fixture(scope="module", autouse=True)
def few():
    """Candidates that compile quickly, and of which more than one leads."""
    with pytest.MonkeyPatch.context() as patch:
        names = ("all", "decayed")
        patch.setattr(
            auto,
            "candidates",
            lambda config: {name: dataclasses.replace(config, method=f"popularity-{name}") for name in names},
        )
        yield


@pytest.fixture(scope="module")
def rows():
    found = streams.synthetic(jax.random.key(7), users=150, items=80, interactions=2400, lifetime=0.3)
    return found.take(np.argsort(found.time, kind="stable"))


def _part(rows, start, end=ROWS):
    return rows.take(np.arange(start, end))


def _made(rows, end, folder, **cut):
    config = Config(method=auto.NAME, budget=Budget.mean_size(4))
    auto.run_auto(config, streams.cut(_part(rows, 0, end), rows=SEGMENT, **cut), KEY, folder)
    return folder


@pytest.fixture(scope="module")
def made(rows, tmp_path_factory):
    """A finished run over the first 700 rows, of which 100 wait."""
    return _made(rows, 700, tmp_path_factory.mktemp("made") / "auto")


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """One run over all rows."""
    return _made(rows, ROWS, tmp_path_factory.mktemp("whole") / "auto")


def _path(folder):
    path = choices.choices_path(folder)
    assert path is not None
    return path


def _choices(folder):
    found = choices.read_choices(_path(folder))
    return {name: value for name, value in found.items() if name != "seconds"}


def _names(folder):
    """Of all files but those of a checkpoint's arrays, whose names are random."""
    files = {path for path in folder.rglob("*") if path.is_file() and path.name != "lock" and path.parent.name != "d"}
    return {path.relative_to(folder) for path in files}


def _lines(folder):
    lines = comparable(run_folder.finished_lines(folder, manifest.read(folder)))
    return [{name: value for name, value in line.items() if name not in OF_CAPACITY} for line in lines]


def _assert_same(one, other):
    assert _lines(one) == _lines(other) and _choices(one) == _choices(other)
    # An update does not carry the folders on of those that have left.
    ours, theirs = (choices.candidate_folders(folder) for folder in (one, other))
    for name in _choices(one)["segments"][-1]["valid"]:
        _assert_same_run(ours[name], theirs[name])
    _assert_same_model(load(one), load(other))
    for kind in ("sizes", "users"):
        for path in (one / kind).iterdir():
            with np.load(path) as a, np.load(other / kind / path.name) as b:
                assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_pieces_end_in_the_run_over_all_rows(made, whole, rows, tmp_path):
    folder = shutil.copytree(made, tmp_path / "auto")
    model = load(folder)
    assert len({choice["leader"] for choice in _choices(whole)["segments"]}) > 1
    with update.opened(folder) as run:
        for piece in np.array_split(np.arange(700, ROWS), 5):
            run.add(rows.take(piece), offset=int(piece[-1]))
            model = model.update(rows.take(piece))
    _assert_same(folder, whole)
    _assert_same_model(model, load(folder))
    assert model.origin["method"] == load(folder).origin["method"] == f"popularity-{_choices(folder)['leader']}"
    assert [path.parent for path in folder.rglob(choices.CANDIDATES)] == [_path(folder).parent]
    with update.opened(folder) as run:
        assert run.offset == ROWS - 1 and len(run.growing.waiting) == ROWS % SEGMENT
    # What was made before is not made again from the first rows.
    with pytest.raises(ValueError, match="scall-jax update"):
        _made(rows, 700, folder)
    auto.remove(folder)
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def killed(made, rows, tmp_path_factory):
    """Copies of a folder after each step of an update that completes a segment: what a kill would leave there."""
    place, copies = tmp_path_factory.mktemp("killed"), []
    folder, real = shutil.copytree(made, place / "auto"), {name: getattr(os, name) for name in ("replace", "link")}

    def copied(name):
        def call(*arguments, **options):
            real[name](*arguments, **options)
            # Not after each of the many links.
            if name == "replace" or len(copies) % 7 == 3:
                copies.append(shutil.copytree(folder, place / "copies" / str(len(copies))))

        return call

    unlink = Path.unlink

    def unlinked(path, missing_ok=False):
        unlink(path, missing_ok=missing_ok)
        if choices.CANDIDATES in path.parts and path.name == config_file.CONFIG:
            copies.append(shutil.copytree(folder, place / "copies" / str(len(copies))))

    with pytest.MonkeyPatch.context() as patch, update.opened(folder) as run:
        for name in real:
            patch.setattr(os, name, copied(name))
        patch.setattr(Path, "unlink", unlinked)
        run.add(_part(rows, 700, 1000), offset=1000)
    return folder, copies


def test_a_process_that_is_killed_at_any_step_leaves_a_whole_model_and_goes_on(killed, made, rows):
    folder, copies = killed
    states = [len(run_folder.finished_lines(copy, manifest.read(copy))) for copy in copies]
    assert set(states) == {2, 3}
    # Neighbours differ by one file: the readers are tried at each, what goes on at some of each state.
    expected = {2: load(made).recommend(k=3), 3: load(folder).recommend(k=3)}
    for number, copy in enumerate(copies):
        model = load(copy)
        assert model.segment == states[number] - 1
        assert model.recommend(k=3).equals(expected[states[number]])
        if number % 15 == 0 or number > len(copies) - 2:
            with update.opened(copy) as run:
                assert run.offset == {2: None, 3: 1000}[states[number]]
                run.add(_part(rows, 700, 1000) if run.offset is None else _part(rows, 0, 0), offset=1000)
            _assert_same(copy, folder)
            assert _names(copy) == _names(folder)


def test_the_leader_serves_though_another_candidate_is_damaged(made, rows, tmp_path):
    folder, leader = shutil.copytree(made, tmp_path / "auto"), _choices(made)["leader"]
    (other,) = (part for name, part in choices.candidate_folders(folder).items() if name != leader)
    (other / "sizes" / "segment-0001.npz").write_bytes(b"x")
    model = load(folder)
    assert model.recommend(k=3).equals(load(made).recommend(k=3))
    with pytest.raises(ValueError, match=r"cannot go on.*segment-0001.npz is not what the run wrote"):
        model.update(_part(rows, 700, 900))
    with pytest.raises(ValueError, match=r"segment-0001.npz is not what the run wrote"), update.opened(folder):
        pass


@pytest.mark.slow
def test_rows_that_a_run_has_left_out_are_run_when_it_goes_on(made, rows, tmp_path):
    folder = _made(rows, 700, tmp_path / "auto", max_segments=1)
    with update.opened(folder) as run:
        added = run.add(_part(rows, 0, 0))
        assert (added.rows, len(added.lines), added.waiting) == (0, 1, 100)
    assert _lines(folder) == _lines(made)


def test_an_error_of_one_candidate_leaves_all_as_they_were(made, rows, tmp_path, monkeypatch):
    folder, real, calls = shutil.copytree(made, tmp_path / "auto"), open_run.write_segment, []

    def fails(*arguments):
        calls.append(arguments[0])
        if len(calls) == 2:
            raise ValueError("loss is not finite")
        return real(*arguments)

    with update.opened(folder) as run:
        run.add(_part(rows, 700, 710))
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"}
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="not finite"):
            patch.setattr(open_run, "write_segment", fails)
            run.add(_part(rows, 710, 1000))
        assert {path: path.read_bytes() for path in before} == before
        assert len(_lines(folder)) == 2 and len(run.growing.waiting) == 110
        assert run.add(_part(rows, 710, 1000)).waiting == 100
    assert len(calls) == 2 and len(_lines(folder)) == 3


def test_a_reader_finds_a_whole_model_though_candidates_change_meanwhile(made, rows, tmp_path, monkeypatch):
    folder, read = shutil.copytree(made, tmp_path / "auto"), choices.read_choices

    def late(path):
        patch.undo()
        with update.opened(folder) as run:
            run.add(_part(rows, 700, 900))
        return content

    content = read(_path(folder))
    with pytest.MonkeyPatch.context() as patch:
        # Between the choices and the leader's files comes a commit, which deletes these.
        patch.setattr(choices, "read_choices", late)
        assert load(folder).segment == 2


def test_a_candidate_takes_part_in_the_segments_that_it_comes_to_the_end_of(made, rows, tmp_path, monkeypatch):
    """However rows are batched: one that diverges in the second of three segments runs the first."""
    real, leader, found = open_run.write_segment, str(_choices(made)["leader"]), []

    def fails(folder, books, state, line, *rest):
        if leader in Path(folder).name and line["segment"] == 3:
            raise records.Diverged("segment 3, step 5: the loss is not finite")
        return real(folder, books, state, line, *rest)

    monkeypatch.setattr(open_run, "write_segment", fails)
    for number, ends in enumerate(([900, 1200, 1350], [1350])):
        folder = shutil.copytree(made, tmp_path / str(number))
        with update.opened(folder) as run:
            for start, end in zip([700, *ends], ends, strict=False):
                run.add(_part(rows, start, end))
        assert leader in _choices(folder)["segments"][2]["valid"] and load(folder).segment == 3
        assert leader not in _choices(folder)["segments"][3]["valid"]
        assert _choices(folder)["left_out"] == {leader: "segment 3, step 5: the loss is not finite"}
        assert leader not in choices.latest_folders(folder)
        found.append((_lines(folder), _choices(folder)))
    assert found[0] == found[1]


def test_where_no_candidate_comes_to_an_end_nothing_is_added(made, rows, tmp_path, monkeypatch):
    folder = shutil.copytree(made, tmp_path / "auto")

    def fails(*arguments):
        raise records.Diverged("the loss is not finite")

    with update.opened(folder) as run:
        no_end = r"no candidate of auto comes to an end; .* takes the best of those back"
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=no_end):
            patch.setattr(open_run, "write_segment", fails)
            run.add(_part(rows, 700, 1000))
        assert _choices(folder) == _choices(made) and len(_lines(folder)) == 2
        assert len(run.add(_part(rows, 700, 1000)).lines) == 1


def test_a_candidate_that_fits_no_longer_is_left_out_from_then_on(made, rows, tmp_path, monkeypatch):
    folder, leader = shutil.copytree(made, tmp_path / "auto"), str(_choices(made)["leader"])

    def others(found, stream):
        fits = {name: 2 if name == leader else len(stream) for name in found}
        return auto.Feasible(fits, {leader: "it is too large"} if leader in found else {})

    monkeypatch.setattr(open_auto, "feasible", others)
    with update.opened(folder) as run:
        run.add(_part(rows, 700, 900))
        run.add(_part(rows, 900, 1200))
    found = _choices(folder)
    assert found["left_out"] == {leader: "it is too large"} and leader not in found["segments"][2]["valid"]
    assert found["segments"][:2] == _choices(made)["segments"] and found["segments"][2]["leader"] != leader
    assert f"left out: {leader}" in choices.describe(folder) and load(folder).segment == 3


@pytest.mark.slow
def test_a_follower_of_auto_ends_in_the_run_over_all_rows(rows, whole, tmp_path):
    path, ids = tmp_path / "events.csv", (rows.user_ids.gather(rows.user), rows.item_ids.gather(rows.item))
    # Times are whole seconds, as the file writes them.
    lines = [f"{user},{item},{time}" for user, item, time in zip(*ids, rows.time, strict=True)]
    start = Start(Config(method=auto.NAME, budget=Budget.mean_size(4)), {"rows": SEGMENT}, 3)
    live, told = tmp_path / "live", []
    for end in (500, ROWS):
        path.write_text("\n".join(["user,item,timestamp", *lines[:end]]) + "\n")
        source = GrowingFile(path, ReadOptions())
        assert follow(source, live, start, Pace(170, once=True), tell=told.append) == end
    assert [progress.line["segment"] for progress in told if progress.line] == [0, 1, 2, 3]
    for name in ("auto_leader", "test_recall@20"):
        assert [line[name] for line in _lines(live)] == [line[name] for line in _lines(whole)]
