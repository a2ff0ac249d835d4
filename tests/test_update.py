"""Rows that come after a run: in pieces they lead to what one run over all of them leads to, once, or not at all."""

import errno
import json
import os
import re
import shutil

import jax
import numpy as np
import polars as pl
import pytest

from scall_jax import METHODS, Budget, SizesConfig, load, run_segments, streams
from scall_jax.cli import update_command
from scall_jax.cli.main import main
from scall_jax.cli.update_command import unknown_rows
from scall_jax.methods.registry import method_of
from scall_jax.run import checkpoint, compilation, config_file, manifest, open_run, stream_files, text_files, update
from scall_jax.run import folder as run_folder
from tests import golden
from tests.helpers import comparable, small_config

KEY, ROWS, SEGMENT = jax.random.key(3), 3000, 350
OF_CAPACITY = ("bytes_resident", "bytes_training")
"""Entries of a line that count the room for entities to come."""


@pytest.fixture(scope="module")
def rows():
    """In the order of time; users are text and items numbers."""
    found = streams.synthetic(jax.random.key(7), users=150, items=80, interactions=ROWS)
    found = found.take(np.argsort(found.time, kind="stable"))
    return streams.from_arrays([f"u{x:03d}" for x in found.user], 3 * found.item + 1, found.time)


def _part(rows, start, end=ROWS):
    return rows.take(np.arange(start, end))


def _frame(user, item, time):
    return pl.DataFrame({"user": user, "item": item, "time": time})


def _bytes(folder):
    """Content of all files; of the manifest what counts."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return found | {manifest.NAME: manifest.read(folder).files, "lock": b""}


def _made(config, rows, end, folder):
    run_segments(config, streams.cut(_part(rows, 0, end), rows=SEGMENT), KEY, folder=folder)
    return folder


@pytest.fixture(scope="module")
def made(rows, tmp_path_factory):
    """A finished run over the first 1000 rows, of which 300 wait."""
    return _made(small_config("popularity-decayed"), rows, 1000, tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def _assert_same_run(one, other):
    lines, others = (comparable(text_files.read_lines(x / manifest.GROWING)) for x in (one, other))
    for line, expected in zip(lines, others, strict=True):
        assert {k: v for k, v in line.items() if k not in OF_CAPACITY} == {
            k: v for k, v in expected.items() if k not in OF_CAPACITY
        }
    states = [checkpoint.read(x / "checkpoints", len(lines) - 1) for x in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)
    for path in [*(one / "sizes").iterdir(), *(one / "users").iterdir()]:
        with np.load(path) as a, np.load(other / path.parent.name / path.name) as b:
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name])
    assert (
        config_file.read_identity(one / "config.json")["stream"]
        == (config_file.read_identity(other / "config.json")["stream"])
    )


@pytest.mark.parametrize(
    "rule", [{"rows": 300}, {"new_entities": 60}, {"rows": 300, "published": True}, {"new_entities": 60, "replay": 2}]
)
def test_a_stream_in_pieces_is_cut_as_in_one(rows, rule):
    whole = streams.cut(rows, **rule)
    # A first part that ends with a complete segment, which is what pieces go on from.
    first = whole.bounds[1].end
    grown = streams.growing(streams.cut(_part(rows, 0, first), **rule))
    assert len(grown.stream) == 2 and not len(grown.waiting)
    for piece in np.array_split(np.arange(first, ROWS), 23):
        grown = streams.advance(grown, rows.take(piece[::-1]))
    found, complete = grown.stream, len(whole) - ("new_entities" in rule)
    assert found.bounds == whole.bounds[:complete] and len(found.user) + len(grown.waiting) == ROWS
    end = found.bounds[-1].end
    for name in ("user", "item", "time"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[:end])
    assert found.user_ids.equals(whole.user_ids[: len(found.user_ids)])
    assert [x.tolist() for x in found.replay] == [x.tolist() for x in whole.replay[:complete]]
    assert sorted(grown.waiting["time"]) == whole.time[end:].tolist()


def test_rows_that_are_left_are_said_and_wait(rows):
    stream = streams.cut(_part(rows, 0, 1000), rows=SEGMENT)
    assert len(stream) == 2 and "the last 300 rows" in stream.notes[-1]
    assert len(streams.growing(stream).waiting) == 300 and not streams.growing(stream).stream.notes
    with pytest.raises(ValueError, match="1000 rows do not make a segment of rows=1001 rows"):
        streams.cut(_part(rows, 0, 1000), rows=1001)
    with pytest.raises(ValueError, match="k_core=2"):
        streams.growing(streams.cut(rows, rows=SEGMENT, k_core=2))


def test_segments_of_equal_parts_go_on_with_as_many_rows_as_the_last(rows):
    grown = streams.growing(streams.cut(_part(rows, 0, 1000), segments=4))
    grown = streams.advance(grown, _part(rows, 1000, 1600))
    assert [b.end - b.start for b in grown.stream.bounds] == [250] * 6 and len(grown.waiting) == 100


def test_ids_that_turn_out_to_be_text_are_text_from_then_on():
    stream = streams.cut(streams.from_arrays([1, 2] * 20, [5, 6, 7, 8] * 10, np.arange(40)), rows=20)
    grown = streams.advance(streams.growing(stream), _frame(["3", "b"] * 10, [5, 9] * 10, range(40, 60)))
    assert grown.stream.user_ids.to_list() == ["1", "2", "3", "b"] and grown.stream.item_ids.to_list() == [
        5,
        6,
        7,
        8,
        9,
    ]


@pytest.mark.parametrize("unit", [10**3, 10**6])
def test_times_in_another_unit_are_refused_and_do_not_stop_the_clock(rows, unit):
    """Integers that a cast of dates in microseconds or nanoseconds makes."""
    grown = streams.growing(streams.cut(_part(rows, 0, 700), rows=SEGMENT))
    now = 1_700_000_000_000
    with pytest.raises(ValueError, match=rf"row 0: {unit * now} .*after the year 9999.*integers in milliseconds"):
        streams.advance(grown, _frame(["u000"], [1], [unit * now]))
    assert streams.advance(grown, _frame(["u000"], [1], [now])).waiting["time"].to_list() == [now]


def test_floats_that_are_whole_numbers_are_the_ids_of_integers():
    stream = streams.cut(streams.from_arrays([1.0, 2.0] * 20, [5, 6, 7, 8] * 10, np.arange(40)), rows=20)
    grown = streams.advance(streams.growing(stream), _frame([1, 3] * 10, [5.0, 9.0] * 10, range(40, 60)))
    assert grown.stream.user_ids.to_list() == [1, 2, 3] and grown.stream.item_ids.to_list() == [5, 6, 7, 8, 9]
    for wrong in (1.5, float("inf"), 2.0**60):
        with pytest.raises(ValueError, match=r"row 1, column 'user': .*give integers or text"):
            streams.from_arrays([1.0, wrong], [5, 6], [0, 1])


def test_late_rows_are_refused_with_their_number_or_placed_at_the_clock(rows):
    grown = streams.growing(streams.cut(_part(rows, 0, 700), rows=SEGMENT))
    late = _frame(["new", "u000", "u001"], [1, 1, 4], [grown.clock - 1, grown.clock, 7])
    with pytest.raises(ValueError, match=r"2 of 3 new row.*user 'new', item 1.*late='clamp'"):
        streams.advance(grown, late)
    assert streams.advance(grown, late, "clamp").waiting["time"].to_list() == [grown.clock] * 3
    # The name is that of the new rows, and not that of the run's file.
    given = streams.from_arrays(["new"], [1], np.array([7]), "tomorrow.csv")
    for wrong, source, said in (
        (late, None, "new rows: 2"),
        (late, "x.csv", "x.csv: 2"),
        (given, None, "tomorrow.csv: 1"),
    ):
        with pytest.raises(ValueError, match=f"^{said} of"):
            streams.advance(grown, wrong, "refuse", source)


def test_pieces_end_in_the_run_over_all_rows(folder, rows, tmp_path, monkeypatch):
    """Programs are compiled anew only when something has doubled."""
    compiled, compile_ = [], compilation.compiled
    whole = _made(small_config("popularity-decayed"), rows, ROWS, tmp_path / "whole")
    monkeypatch.setattr(compilation, "compiled", lambda *args, **kw: compiled.append(0) or compile_(*args, **kw))
    with update.opened(folder) as run:
        for number, piece in enumerate(np.array_split(np.arange(1000, ROWS), 50)):
            run.add(rows.take(piece), offset={"row": int(piece[-1]), "piece": number})
    _assert_same_run(folder, whole)
    # prepare, fit and evaluate, for capacities of twice the first segments' rows, and of twice as many.
    assert len(compiled) <= 3 * (1 + np.ceil(np.log2(ROWS / 1000)))
    with update.opened(folder) as run:
        assert run.offset == {"row": ROWS - 1, "piece": 49} and len(run.growing.waiting) == ROWS % SEGMENT
    with pytest.raises(ValueError, match="scall-jax update"):
        run_segments(small_config("popularity-decayed"), streams.cut(rows, rows=SEGMENT), KEY, folder=folder)


def test_a_small_batch_writes_its_own_rows_alone(folder, rows):
    with update.opened(folder) as run:
        run.add(_part(rows, 1000, 1010))
        before = _bytes(folder)
        run.add(_part(rows, 1010, 1020))
        after = _bytes(folder)
    assert {name for name in after if after[name] != before.get(name)} - {manifest.NAME} == {
        "updates/000002/waiting.parquet",
        "updates/000002/state.json",
    }
    assert set(before) - set(after) == {"updates/000001/state.json"}


@pytest.mark.parametrize("place", ["write_update", "commit", "write_segment"])
def test_an_update_that_is_killed_or_fails_leaves_the_folder_as_it_was(place, folder, rows, tmp_path, monkeypatch):
    before, real = _bytes(folder), getattr(open_run, place)
    new, waiting = (_part(rows, 1000, 1100), 50) if place == "write_segment" else (_part(rows, 1000, 1020), 320)

    def killed(*arguments):
        if place == "commit":
            shutil.copytree(folder, tmp_path / "killed")
        else:
            real(*arguments)
            shutil.copytree(folder, tmp_path / "killed")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), update.opened(folder) as run:
        patched.setattr(open_run, place, killed)
        run.add(new, offset=1)
    assert _bytes(folder) == before
    assert set(_bytes(tmp_path / "killed")) > set(before)
    # What was killed goes on as if it had not been begun.
    for path in (folder, tmp_path / "killed"):
        with update.opened(path) as run:
            assert run.offset is None and run.add(new, offset=1).waiting == waiting
    _assert_same_run(folder, tmp_path / "killed")


def test_a_full_disk_adds_nothing_and_says_so(folder, rows, monkeypatch):
    before = _bytes(folder)

    def full(*arguments):
        raise pl.exceptions.ComputeError("underlying IO error:\n No space left on device")

    with update.opened(folder) as run:
        with monkeypatch.context() as patched:
            patched.setattr(pl.DataFrame, "write_parquet", full)
            with pytest.raises(
                ValueError, match=r"waiting\.parquet cannot be written \(.*No space.*: nothing was added"
            ):
                run.add(_part(rows, 1000, 1020))
        assert _bytes(folder) == before
        assert run.add(_part(rows, 1000, 1020)).waiting == 320


@pytest.mark.parametrize("fails", ["delete", "after"])
def test_rows_count_once_whatever_comes_after_their_commit(fails, folder, rows, tmp_path, monkeypatch):
    """Files that cannot be deleted, and an interrupt, between the manifest and the end of the call."""
    plain, real = shutil.copytree(folder, tmp_path / "plain"), open_run.commit

    def committed(*arguments):
        with monkeypatch.context() as patched:
            if fails == "delete":
                patched.setattr(manifest, "delete", refused)
            real(*arguments)
        raise KeyboardInterrupt

    def refused(*arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x")

    with update.opened(folder) as run:
        with monkeypatch.context() as patched:
            patched.setattr(open_run, "commit", committed)
            if fails == "delete":
                assert run.add(_part(rows, 1000, 1100), offset=1).waiting == 50
            else:
                with pytest.raises(KeyboardInterrupt):
                    run.add(_part(rows, 1000, 1100), offset=1)
        assert run.offset == 1
        assert run.add(_part(rows, 1100, 1120), offset=2).waiting == 70
    with update.opened(plain) as run:
        for first, end in ((1000, 1100), (1100, 1120)):
            run.add(_part(rows, first, end), offset=end)
    _assert_same_run(folder, plain)
    for path in (folder, plain):
        assert set(_bytes(path)) - set(manifest.read(path).files) == {manifest.NAME, "lock"}


def test_a_full_disk_is_named_and_leaves_the_folder_as_it_was(folder, rows, monkeypatch):
    before = _bytes(folder)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(open_run, "write_update", full)
    with (
        update.opened(folder) as run,
        pytest.raises(ValueError, match=f"{folder.name}.*No space left.*add the rows again"),
    ):
        run.add(_part(rows, 1000, 1020))
    assert _bytes(folder) == before


def test_errors_leave_the_folder_as_it_was(folder, rows):
    before = _bytes(folder)
    with update.opened(folder) as run:
        for wrong, message in (
            (_frame(["a"], [1], [5]), "earlier than the last row"),
            (_frame([None], [1], [run.growing.clock]), "the id is missing"),
            (_frame(["a"], [1.5], [run.growing.clock]), "give integers or text"),
            (pl.DataFrame({"user": ["a"], "item": [1]}), "no column 'time'"),
        ):
            with pytest.raises(ValueError, match=message):
                run.add(wrong)
        with pytest.raises(ValueError, match="being written"), update.opened(folder):
            pass
    assert _bytes(folder) == before


def test_a_method_whose_storage_is_made_for_the_whole_stream_is_refused(folder):
    hashed = next(method for method in map(method_of, METHODS) if not method.budget_is_data)
    before = _bytes(folder)
    with pytest.raises(ValueError, match="cannot go on"), update.opened(folder, method=hashed):
        pass
    assert _bytes(folder) == before


def _assert_same_model(one, other):
    for name in ("popularity", "seen", "stored", "waiting"):
        for a, b in zip(*(jax.tree.leaves(getattr(x, name)) for x in (one, other)), strict=True):
            if isinstance(a, np.ndarray):
                np.testing.assert_array_equal(a, b)
    assert one.table.equals(other.table) and one.segment == other.segment
    assert one.recommend(k=5).equals(other.recommend(k=5))


def test_an_updated_model_is_that_of_the_updated_folder(folder, rows):
    model, first = load(folder), load(folder)
    for start in (1000, 1040, 1080):
        model = model.update(_part(rows, start, start + 40))
    assert first.segment == 1 and model.segment == 2
    with update.opened(folder) as run:
        run.add(_part(rows, 1000, 1120))
    _assert_same_model(model, load(folder))
    _assert_same_model(first, first.update(_part(rows, 0, 0)))


def test_a_model_knows_the_held_out_rows_of_its_last_segment_where_nothing_waits(folder, rows):
    """As one that is served while a follower adds rows; a run that has ended is as its last evaluation was."""
    finished = load(folder)
    with update.opened(folder) as run:
        run.add(_part(rows, 1000, 1050))
        assert run.growing.stream.bounds[-1].end == 1050 and not len(run.growing.waiting)
    model = load(folder)
    found = model.recommend(model.users.ids, k=80)
    met = pl.DataFrame(
        {
            "user": _part(rows, 0, 1050).user_ids.gather(rows.user[:1050]),
            "item": rows.item_ids.gather(rows.item[:1050]),
        }
    )
    assert not len(found.join(met, on=["user", "item"]))
    _assert_same_model(finished.update(_part(rows, 1000, 1050)), model)


def test_rows_that_wait_count_until_their_segment_is_complete(folder, rows):
    model = load(folder)
    item, other = model.items.ids[7], model.recommend(["nobody"], k=1)["item"][0]
    assert not isinstance(model.going_on, str)
    clock = model.going_on.growing.clock + 10**10
    after = model.update(_frame(["nobody"] * 30, [other] + [item] * 29, [clock] * 30))
    assert after.segment == model.segment and other in model.recommend(["nobody"], k=5)["item"].to_list()
    assert not {other, item} & set(after.recommend(["nobody"], k=30)["item"])
    half_life = int(after.popularity_name.removeprefix("decayed-"))
    met = [*_part(rows, 0, 1000).item_ids.gather(_part(rows, 0, 1000).item), other, *[item] * 29]
    expected = sum(2 ** (-(len(met) - 1 - place) / half_life) for place, one in enumerate(met) if one == item)
    assert after.popularity[7] == pytest.approx(expected, rel=1e-5) and expected > model.popularity[7] + 20


def test_the_command_knows_the_rows_of_the_run(folder, rows, tmp_path, capsys):
    def written(start, end):
        part, path = _part(rows, start, end), tmp_path / "rows.csv"
        users, items = part.user_ids.gather(part.user), part.item_ids.gather(part.item)
        pl.DataFrame({"user": users, "item": items, "timestamp": part.time}).write_csv(path)
        return ["update", str(folder), "--data", str(path), "--no-compilation-cache"]

    main(written(0, 1100))
    out = capsys.readouterr().out
    assert "1,000 rows of" in out and "100 are new" in out and "segment 2 is finished; 50 rows wait" in out
    summary = (folder / run_folder.SUMMARY).read_bytes()
    # An update that is killed after its commit leaves no summary, which the next one writes.
    run_folder.unlist(folder, run_folder.SUMMARY)
    main(written(1100, 1120))
    assert "20 new rows: no segment is complete; 70 rows wait" in capsys.readouterr().out
    assert (folder / run_folder.SUMMARY).read_bytes() == summary
    # A folder that has been renamed since is called by its method.
    renamed = folder.rename(tmp_path / "renamed")
    run_folder.unlist(renamed, run_folder.SUMMARY)
    main(["update", str(renamed), *written(1120, 1125)[2:]])
    assert (renamed / run_folder.SUMMARY).read_bytes() == summary
    renamed.rename(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(written(0, 900))
    assert "it has 900 rows" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(written(500, 600))
    assert re.search(r"rows\.csv: 100 of 100 new row\(s\) are earlier", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["updat"])
    assert "did you mean update?" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ValueError("it is being written")])
def test_an_error_after_the_commit_says_that_the_rows_count(error, folder, rows, tmp_path, capsys, monkeypatch):
    part, path = _part(rows, 1000, 1100), tmp_path / "rows.csv"
    users, items = part.user_ids.gather(part.user), part.item_ids.gather(part.item)
    pl.DataFrame({"user": users, "item": items, "timestamp": part.time}).write_csv(path)

    def fails(*arguments):
        raise error

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(update_command, "finish_run", fails)
        main(["update", str(folder), "--data", str(path), "--no-compilation-cache"])
    said = capsys.readouterr().err
    assert "the 100 new rows were added, and are not to be added again" in said and said.count("\n") == 1
    with update.opened(folder) as run:
        assert len(run.growing.waiting) == 50
    assert not (folder / run_folder.SUMMARY).exists()
    # What is said ends the work, and adds nothing.
    main(["update", str(folder), "--no-compilation-cache"])
    assert "summary and the report" in capsys.readouterr().out
    assert (folder / run_folder.SUMMARY).exists() and (folder / "report.html").exists()
    with update.opened(folder) as run:
        assert len(run.growing.waiting) == 50


def test_the_command_finds_new_rows_behind_those_of_the_run_that_are_earlier_than_its_last(folder, rows):
    with update.opened(folder) as run:
        given = _part(rows, 0, 1010)
        given.time[1004] = given.time[990]
        assert given.time[990] > run.growing.clock and given.time[990] < given.time[999]
        # The rows of the run may stand in the order of their file, whichever that is.
        order = np.concatenate([np.arange(1000)[::-1], np.arange(1000, 1010)])
        for file in (given, given.take(order)):
            new, known = unknown_rows(file, run.growing, "rows.csv")
            assert known == 1000 and new["time"].to_list() == sorted(given.time[1000:].tolist())
        # A file with the newest rows in front is put in order first.
        new, known = unknown_rows(_part(rows, 0, 1010).take(np.arange(1010)[::-1]), run.growing, "rows.csv")
        assert known == 1000 and len(new) == 10
        given.time[5] += 1
        with pytest.raises(ValueError, match=r"rows\.csv begins like the run"):
            unknown_rows(given, run.growing, "rows.csv")
        assert run.add(new).rows == 10


def test_the_command_reads_as_the_file_of_the_run_was_read(rows, tmp_path, capsys):
    def written(start, end):
        part, path = _part(rows, start, end), tmp_path / f"rows-{start}.csv"
        ratings = np.where(np.arange(start, end) % 10 == 0, 1, 5)
        uid, sku = part.user_ids.gather(part.user), part.item_ids.gather(part.item)
        pl.DataFrame({"uid": uid, "sku": sku, "timestamp": part.time, "rating": ratings}).write_csv(path)
        return path

    options = {"user": "uid", "item": "sku", "min_rating": 3, "missing": ("-",)}
    stream = streams.cut(streams.read(written(0, 1000), **options), rows=SEGMENT)
    folder = tmp_path / "run"
    run_segments(small_config("popularity-decayed"), stream, KEY, folder=folder)
    assert stream_files.read_options(folder) == stream.read_options
    command = ["update", str(folder), "--no-compilation-cache", "--data"]
    main([*command, str(written(1000, 1050))])
    out = capsys.readouterr().out
    assert "--columns.min-rating 3, --columns.missing '-'; --no-inherit-columns does not" in out
    assert "45 new rows" in out
    # Flags say otherwise, of one option or of all.
    main([*command, str(written(1050, 1100)), "--columns.min-rating", "0"])
    assert "50 new rows" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, str(written(1100, 1150)), "--no-inherit-columns"])
    assert "no column" in capsys.readouterr().err
    # A folder of an earlier version has none of it.
    content = manifest.read_json(folder / "stream.json")
    del content["read_options"]
    (folder / "stream.json").write_text(json.dumps(content))
    found = manifest.read(folder)
    manifest.write(folder, found._replace(files=found.files | manifest.entries(folder, ["stream.json"])))
    assert stream_files.read_options(folder) is None
    main([*command, str(written(1150, 1200)), "--columns.user", "uid", "--columns.item", "sku"])
    assert "50 new rows" in capsys.readouterr().out


@pytest.mark.slow
def test_pieces_of_ease_have_the_metrics_of_one_run_and_its_weights_but_for_rounding(rows, tmp_path):
    """It inverts a matrix that is larger where there is room for items to come."""
    config = small_config("ease")
    whole, pieces = _made(config, rows, ROWS, tmp_path / "whole"), _made(config, rows, 1000, tmp_path / "pieces")
    with update.opened(pieces) as run:
        for piece in np.array_split(np.arange(1000, ROWS), 20):
            run.add(rows.take(piece))
    lines = [text_files.read_lines(folder / manifest.GROWING) for folder in (pieces, whole)]
    assert [line["test_recall@20"] for line in lines[0]] == pytest.approx([line["test_recall@20"] for line in lines[1]])
    one, other = (checkpoint.read(x / "checkpoints", len(lines[0]) - 1).stored for x in (pieces, whole))
    np.testing.assert_allclose(one["parameters"], other["parameters"], atol=1e-5)
    assert one["parameters_ridge"] == other["parameters_ridge"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        small_config("frequency"),
        small_config("uniform", recommender="ials", table="packed_int4"),
        small_config("uniform", bias="decayed", recommender="mf"),
        small_config("gain", recommender="ials", table="packed_int4", bias="decayed"),
        # Few bytes for an entity once there are many: widths of fits must not follow the room for entities to come.
        small_config(
            "gain",
            recommender="ials",
            table="packed_int4",
            budget=Budget.megabytes(0.002),
            sizes=SizesConfig(maximum=64),
        ),
        small_config("gain", recommender="mf"),
        small_config("scall-gp", recommender="mf", search=golden._SEARCH, policy=golden._POLICY),
        small_config("scall-sac", recommender="mf", search=golden._SEARCH, policy=golden._POLICY),
    ],
    ids=["lightgcn", "ials", "mf", "gain-ials", "gain-ials-bytes", "gain-mf", "scall-gp", "scall-sac"],
)
def test_twenty_pieces_end_in_the_model_of_one_run(config, rows, tmp_path):
    whole, pieces = _made(config, rows, ROWS, tmp_path / "whole"), _made(config, rows, 1000, tmp_path / "pieces")
    model = load(pieces)
    with update.opened(pieces) as run:
        for piece in np.array_split(np.arange(1000, ROWS), 20):
            run.add(rows.take(piece))
            model = model.update(rows.take(piece))
    _assert_same_run(pieces, whole)
    _assert_same_model(model, load(pieces))
    _assert_same_model(load(pieces), load(whole))
    clock = int(rows.time[-1])
    new = model.update(_frame(["zoe"] * 2, model.items.ids[:2], [clock] * 2)).recommend(["zoe"], k=3)
    assert new["source"].to_list() == ["folded in"] * 3
