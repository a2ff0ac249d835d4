"""The stream in a run folder: the caller's ids, rows and bounds come back as they were, or the folder is refused."""

import dataclasses

import jax
import numpy as np
import polars as pl
import pytest

from scall_jax import run_segments, streams
from scall_jax.run import manifest, removal, stream_files
from tests.helpers import small_config

CONFIG, KEY = small_config("popularity-all"), jax.random.key(0)


@pytest.fixture(scope="module")
def stream():
    """Users are text and items numbers; some rows are replayed."""
    rows = streams.synthetic(jax.random.key(3), users=40, items=30, interactions=900)
    users = [f"ann-{code:03d}" for code in rows.user]
    return streams.cut(streams.from_arrays(users, 7 * rows.item + 1, rows.time), segments=3, replay=20)


@pytest.fixture(scope="module")
def made(stream, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "run"
    run_segments(CONFIG, stream, KEY, folder=path)
    return path


def _read(path):
    return stream_files.read_stream(path, manifest.check(path))


def test_the_stream_comes_back_as_it_was(stream, made):
    found = _read(made)
    assert found.fingerprint == stream.fingerprint
    for field in dataclasses.fields(stream):
        one, other = getattr(found, field.name), getattr(stream, field.name)
        if field.name == "replay":
            assert [x.tolist() for x in one] == [x.tolist() for x in other] and sum(map(len, one)) > 0
        elif isinstance(other, np.ndarray | pl.Series):
            assert one.dtype == other.dtype
            assert list(one) == list(other)
        else:
            assert one == other
    for leaf, other in zip(jax.tree.leaves(found.segment(2)), jax.tree.leaves(stream.segment(2)), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_the_files_hold_the_callers_ids_and_are_listed(stream, made):
    users = pl.read_parquet(made / "users.parquet")
    assert users["id"].to_list() == stream.user_ids.to_list() and users["row"].to_list() == list(range(len(users)))
    assert pl.read_parquet(made / "items.parquet")["id"].dtype.is_integer()
    assert set(manifest.STREAM) <= set(manifest.read(made).files)


def test_other_ids_for_the_same_rows_are_refused(stream, made):
    renamed = dataclasses.replace(stream, user_ids=stream.user_ids.reverse())
    assert renamed.fingerprint == stream.fingerprint
    with pytest.raises(ValueError, match="ids of users differ"):
        run_segments(CONFIG, renamed, KEY, folder=made)
    assert len(run_segments(CONFIG, stream, KEY, folder=made)) == 3


def test_a_run_that_was_interrupted_goes_on_though_rows_have_come_that_wait(tmp_path):
    """A row of a new user behind the last whole segment; other ids within it are another run's still."""
    rows = streams.synthetic(jax.random.key(3), users=40, items=30, interactions=900)
    users = [f"ann-{code:03d}" for code in rows.user]
    path = tmp_path / "run"

    def cut(users):
        count = len(users)
        items, times = np.resize(rows.item, count), np.append(rows.time, rows.time[-1:])[:count]
        return streams.cut(streams.from_arrays(users, items, times), rows=400)

    run_segments(CONFIG, cut(users), KEY, folder=path)
    lines = run_segments(CONFIG, cut([*users, "bob"]), KEY, folder=path)
    assert len(lines) == 2
    with pytest.raises(ValueError, match="holds another run"):
        run_segments(CONFIG, cut([*users[:5], "bob", *users[6:]]), KEY, folder=path)


def test_other_times_for_the_same_rows_are_refused(stream, made):
    later = stream.time.copy()
    later[-1] += 1000
    moved = dataclasses.replace(stream, time=later)
    assert moved.fingerprint == stream.fingerprint
    with pytest.raises(ValueError, match=f"row {len(later) - 1} by time is of .* there and of .* here"):
        run_segments(CONFIG, moved, KEY, folder=made)


def test_a_run_without_the_stream_gets_it_when_it_goes_on(stream, tmp_path):
    run_segments(CONFIG, stream, KEY, folder=tmp_path / "run")
    found = manifest.read(tmp_path / "run")
    manifest.delete(tmp_path / "run", manifest.STREAM)
    manifest.write(
        tmp_path / "run", found._replace(files={k: v for k, v in found.files.items() if k not in manifest.STREAM})
    )
    with pytest.raises(ValueError, match="--resume"):
        _read(tmp_path / "run")
    run_segments(CONFIG, stream, KEY, folder=tmp_path / "run")
    assert _read(tmp_path / "run").fingerprint == stream.fingerprint


def test_a_file_of_someone_else_is_not_overwritten(stream, tmp_path):
    (tmp_path / "users.parquet").write_text("mine")
    with pytest.raises(ValueError, match=r"users\.parquet is in the way"):
        run_segments(CONFIG, stream, KEY, folder=tmp_path)
    removal.remove_run(tmp_path)
    assert (tmp_path / "users.parquet").read_text() == "mine"


def test_a_run_that_was_killed_while_writing_the_stream_goes_on(stream, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def killed(frame, file):
        file.write(b"half")
        raise KilledError

    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(pl.DataFrame, "write_parquet", killed)
        with pytest.raises(KilledError):
            run_segments(CONFIG, stream, KEY, folder=path)
    assert (path / "users.parquet").read_bytes() == b"half"
    assert len(run_segments(CONFIG, stream, KEY, folder=path)) == 3
    assert _read(path).fingerprint == stream.fingerprint
    removal.remove_run(path)
    assert not list(path.iterdir())
