"""Run folders: what is written is listed with its hash, and what is not what the run wrote is refused by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from scall_jax import run_segments
from scall_jax.methods.state import RunState
from scall_jax.recommenders.baseline import Exporter
from scall_jax.run import checkpoint, folder, lock, manifest, removal, segment_files, text_files
from tests.helpers import comparable, small_config, small_stream

CONFIG = small_config("popularity-decayed")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def stream():
    return small_stream(segments=3)


class _KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def made(stream, tmp_path_factory):
    """Folders of a run that was stopped after its first or second segment of three, and of a whole one."""
    root = tmp_path_factory.mktemp("made")

    def stop(line):
        shutil.copytree(root / "whole", root / f"{line['segment']}")

    run_segments(CONFIG, stream, KEY, folder=root / "whole", on_segment=stop)
    return root


def _stopped(made: Path, path: Path, after: int = 1) -> Path:
    """A folder of a run that was stopped after two of three segments."""
    return shutil.copytree(made / f"{after}", path)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != lock.NAME)


def test_the_manifest_lists_every_file_and_nothing_else(made, tmp_path):
    path = _stopped(made, tmp_path / "run")
    listed = set(manifest.read(path).files)
    assert listed == {file.relative_to(path).as_posix() for file in _files(path)} - {manifest.NAME}
    assert {"config.json", "metrics.jsonl", "sizes/segment-0001.npz", "users/segment-0000.npz"} <= listed
    assert not any(name.startswith("checkpoints/segment-0000") for name in listed)


def test_a_flipped_bit_anywhere_is_found_and_the_file_is_named(stream, made, tmp_path):
    path = _stopped(made, tmp_path / "run")
    rng = np.random.default_rng(0)
    for file in _files(path):
        whole = file.read_bytes()
        at = int(rng.integers(len(whole)))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        if file.name == manifest.NAME and manifest_reads(path):
            # A flip in the space between words, or in what names no hash, changes nothing that is believed.
            file.write_bytes(whole)
            continue
        with pytest.raises(ValueError, match=file.name):
            run_segments(CONFIG, stream, KEY, folder=path)
        file.write_bytes(whole)
    assert len(run_segments(CONFIG, stream, KEY, folder=path)) == 3


def manifest_reads(path: Path) -> bool:
    try:
        manifest.check(path)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("change", ["truncated", "missing", "swapped", "edited"])
def test_what_someone_touched_is_refused(stream, made, tmp_path, change):
    path = _stopped(made, tmp_path / "run")
    if change == "edited":
        file = path / "metrics.jsonl"
        text = file.read_text()
        file.write_text(text.replace('"interactions": 1', '"interactions": 2', 1))
        assert file.read_text() != text
    elif change == "swapped":
        file = path / "sizes" / "segment-0000.npz"
        file.write_bytes((path / "sizes" / "segment-0001.npz").read_bytes())
    else:
        file = path / "users" / "segment-0001.npz"
        file.write_bytes(file.read_bytes()[:-1]) if change == "truncated" else file.unlink()
    with pytest.raises(ValueError, match=file.name):
        run_segments(CONFIG, stream, KEY, folder=path)


def test_a_hash_is_what_finds_it(stream, made, tmp_path, monkeypatch):
    """Without hashes an edited digit would be believed."""
    path = _stopped(made, tmp_path / "run")
    file = path / "metrics.jsonl"
    file.write_text(file.read_text().replace('"interactions": 1', '"interactions": 2', 1))
    monkeypatch.setattr(manifest, "check", manifest.read)
    assert len(run_segments(CONFIG, stream, KEY, folder=path)) == 3


_WRITES = [
    (segment_files.np, "savez_compressed"),
    (segment_files, "append_line"),
    (checkpoint, "save"),
    (checkpoint, "publish"),
    (manifest, "write"),
    (manifest, "delete"),
]


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", range(len(_WRITES)), ids=[name for _, name in _WRITES])
def test_a_run_that_was_killed_anywhere_goes_on_to_the_same_records(stream, made, tmp_path, monkeypatch, place, after):
    module, name = _WRITES[place]
    whole = comparable(text_files.read_lines(made / "whole" / "metrics.jsonl"))
    real, count = getattr(module, name), 0

    def killed(*arguments, **options):
        nonlocal count
        count += 1
        # The second call or a later one: inside of a segment after the first.
        if count == 4 and not after:
            raise _KilledError
        result = real(*arguments, **options)
        if count == 4:
            raise _KilledError
        return result

    path = tmp_path / "killed"
    calls = 4 if name in ("savez_compressed", "write", "delete") else 2
    count = 4 - calls
    with monkeypatch.context() as patched:
        patched.setattr(module, name, killed)
        with pytest.raises(_KilledError):
            run_segments(CONFIG, stream, KEY, folder=path)
    assert len(manifest.read(path).files) > 0
    assert comparable(run_segments(CONFIG, stream, KEY, folder=path)) == whole
    # Nothing is left over, apart from the names that Orbax draws for its files.
    roots = made / "whole", path
    names = [{file.relative_to(root).as_posix().split("/d/")[0] for file in _files(root)} for root in roots]
    assert names[0] == names[1]
    assert set(manifest.read(path).files) == {file.relative_to(path).as_posix() for file in _files(path)} - {
        manifest.NAME
    }


def test_a_torn_line_is_written_again(stream, made, tmp_path):
    path = _stopped(made, tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"segment": 2, "torn')
    whole = text_files.read_lines(made / "whole" / "metrics.jsonl")
    assert comparable(run_segments(CONFIG, stream, KEY, folder=path)) == comparable(whole)


def test_a_second_process_is_refused_with_the_first_ones_number(stream, tmp_path):
    code = "import sys, pathlib; from scall_jax.run.lock import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {first.pid} on "):
            run_segments(CONFIG, stream, KEY, folder=tmp_path / "run")
        # The system frees the lock of a process that is killed.
        first.kill()
    assert len(run_segments(CONFIG, stream, KEY, folder=tmp_path / "run")) == 3


def test_what_is_made_at_the_end_is_made_under_the_lock(made, tmp_path):
    path = shutil.copytree(made / "whole", tmp_path / "run")
    segments = len(text_files.read_lines(path / manifest.GROWING))
    with folder.making(path, segments, "summary.json"):
        with pytest.raises(ValueError, match=f"written by process {os.getpid()}"), lock.locked(path):
            pass
        (path / "summary.json").write_text("{}")
    assert "summary.json" in manifest.check(path).files
    # Another process has taken the folder over in the meantime: nothing of the ended run is written into it.
    with pytest.raises(ValueError, match="changed by another process"), folder.making(path, segments + 1, "page.html"):
        (path / "page.html").write_text("of another run")
    assert not (path / "page.html").exists() and "page.html" not in manifest.check(path).files


def test_links_are_not_followed(stream, made, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    for name in ("checkpoints", "sizes", "metrics.jsonl"):
        path = _stopped(made, tmp_path / f"run-{name}", after=0)
        (path / name).rename(path / "aside")
        os.symlink(outside if name != "metrics.jsonl" else outside / "kept", path / name)
        with pytest.raises(ValueError, match="symbolic link"):
            run_segments(CONFIG, stream, KEY, folder=path)
        with pytest.raises(ValueError, match="symbolic link"):
            removal.remove_run(path)
    path = tmp_path / "config"
    path.mkdir()
    os.symlink(outside / "new", path / "config.json")
    with pytest.raises(ValueError, match="symbolic link"):
        run_segments(CONFIG, stream, KEY, folder=path)
    assert [file.name for file in outside.iterdir()] == ["kept"] and (outside / "kept").read_text() == "kept"


def test_a_manifest_cannot_point_outside(stream, made, tmp_path):
    path = _stopped(made, tmp_path / "run", after=0)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    found = manifest.read(path)
    for name in ("../victim", str(victim)):
        manifest.write(path, found._replace(obsolete={name: manifest.Entry(4, "0")}))
        with pytest.raises(ValueError, match="outside"):
            run_segments(CONFIG, stream, KEY, folder=path)
        with pytest.raises(ValueError, match="outside"):
            removal.remove_run(path)
    assert victim.read_text() == "kept"


def test_removing_a_run_leaves_what_it_did_not_write(stream, made, tmp_path):
    path = _stopped(made, tmp_path / "run")
    for name in ("notes.txt", "sizes/mine.npz", "checkpoints/segment-0099/mine"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("kept")
    removal.remove_run(path)
    left = {file.relative_to(path).as_posix() for file in _files(path)}
    assert left == {"notes.txt", "sizes/mine.npz", "checkpoints/segment-0099/mine"}
    assert len(run_segments(CONFIG, stream, KEY, folder=path)) == 3


def test_a_folder_without_a_manifest_is_refused(stream, made, tmp_path):
    path = _stopped(made, tmp_path / "run")
    (path / manifest.NAME).unlink()
    for use in (lambda: run_segments(CONFIG, stream, KEY, folder=path), lambda: removal.remove_run(path)):
        with pytest.raises(ValueError, match=r"manifest\.json is missing"):
            use()
    for text in ("", "[]", "{}", '{"format": 99}', "\xff", json.dumps({"format": 1, "files": {"a": 3}})):
        (path / manifest.NAME).write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"manifest\.json"):
            run_segments(CONFIG, stream, KEY, folder=path)


@pytest.mark.parametrize("spoilt", ["table", "search", "metrics"])
def test_numbers_that_are_not_finite_are_never_written(spoilt, tmp_path):
    """The table and its bfloat16 form, what a search remembers, and a line of metrics."""
    if spoilt == "metrics":
        with pytest.raises(ValueError, match="not JSON compliant"):
            text_files.append_line(tmp_path / "metrics.jsonl", {"test_recall@20": float("nan")})
        assert not (tmp_path / "metrics.jsonl").exists()
        return
    exporter = Exporter(lambda params, plan, known: {"parameters": np.asarray(params)}, lambda exported, known: None)
    state = RunState(jax.random.key(0), np.zeros(3, np.float32), (), np.array([1, 2]), np.array([3]))
    unmade = np.array([-np.inf, 1.0], np.float32)  # the reward of a probe that has not been made
    checkpoint.save(tmp_path, 0, state._replace(planner=unmade), exporter)
    for value in (np.nan, np.inf, -np.inf)[: 3 if spoilt == "table" else 2]:
        bad = np.array([0.0, value], np.float32)
        forms = (bad, bad.astype(jax.numpy.bfloat16)) if spoilt == "table" else (bad,)
        for form in forms:
            changed = {"params" if spoilt == "table" else "planner": form}
            with pytest.raises(ValueError, match=f"segment-0001: .*{spoilt} has numbers that are not finite"):
                checkpoint.save(tmp_path, 1, state._replace(**changed), exporter)
    assert [path.name for path in (tmp_path / ".pending").iterdir()] == ["segment-0000"]


def test_folders_without_files_that_a_killed_process_left_go_with_what_it_was_writing(tmp_path):
    """Orbax makes a folder, and then files in it; a process can be killed in between."""
    inner = tmp_path / "checkpoints" / ".pending" / "segment-0003" / "table.tmp" / "ocdbt"
    inner.mkdir(parents=True)
    kept = tmp_path / "checkpoints" / "segment-0002"
    kept.mkdir()
    manifest.delete_left_over(tmp_path, "segment-0003")
    assert kept.exists() and not (tmp_path / "checkpoints" / ".pending").exists()
    # What is no part of it stays.
    stranger = tmp_path / "checkpoints" / ".pending" / "notes"
    inner.mkdir(parents=True)
    stranger.write_text("mine")
    manifest.delete_left_over(tmp_path, "segment-0003")
    assert stranger.read_text() == "mine" and not inner.parent.parent.exists()
