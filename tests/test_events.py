"""Event files for TensorBoard say what metrics.jsonl says, and belong to the run folder."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from scall_jax.analysis import events, figures
from scall_jax.cli.main import main
from scall_jax.run import folder as run_folder
from scall_jax.run import manifest, removal, text_files
from tests.helpers import tiny_arguments


def _read(folder):
    """(tag, step) -> value of all event files of a run, by the format of their records."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(Path(folder, events.NAME).iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def _check(folder, found):
    lines = text_files.read_lines(folder / "metrics.jsonl")
    assert len(lines) == 4
    for line in lines:
        t = line["segment"]
        for part, metric in (("test", "recall@20"), ("valid", "ndcg@20")):
            assert found[f"{part}/{metric}", t] == pytest.approx(line[f"{part}_{metric}"])
        assert found["bytes/budget", t] == line["budget_bytes"] >= found["bytes/table", t] == line["bytes_table"]
        if not line["steps"]:
            assert not any(tag.startswith(("sizes", "training")) for tag, _ in found)
            continue
        with np.load(folder / "sizes" / f"segment-{t:04d}.npz") as stored:
            assert found["sizes of items/percentile 50", t] == np.median(stored["items"])
            assert found["sizes of users/percentile 100", t] == stored["users"].max()
        steps = [step - 20 * t for tag, step in found if tag == "training/loss" and 20 * t < step <= 20 * (t + 1)]
        assert sorted(steps) == [10, 20]
        assert found["training/loss", 20 * t + line["steps"]] == pytest.approx(line["loss"])


def test_a_run_without_the_extra_names_it(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(events.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["run", *tiny_arguments(data, tmp_path / "out"), "--tensorboard"])
    assert 'pip install "scall_jax[tensorboard]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_line_becomes_scalars():
    line = {f"{part}_{metric}": 0.25 for part in ("valid", "test") for metric in ("recall@20", "ndcg@20")}
    line |= {"budget_bytes": 8, "bytes_table": 7, "bytes_at_rest": 9, "bytes_serving": 10, "probe_rewards": [1.0, 4.0]}
    found = events.scalars(line, {"users": np.array([1, 2, 9]), "items": np.zeros(2, int)})
    assert found["test/recall@20"] == 0.25 and found["bytes/at rest"] == 9
    assert (found["search/mean reward"], found["search/best reward"]) == (2.5, 4)
    assert found["sizes of users/percentile 50"] == 2 and not any("items" in tag for tag in found)


@pytest.mark.parametrize("method", ["popularity-all", pytest.param("uniform", marks=pytest.mark.slow)])
def test_event_files_have_what_the_lines_have_and_are_the_runs_own(data, tmp_path, monkeypatch, method):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard")
    monkeypatch.setattr(figures, "has_matplotlib", lambda: False)
    flags = [*tiny_arguments(data, tmp_path), "--method", method, "--fit.layers", "0", "--tensorboard"]
    main(["run", *flags])
    folder = tmp_path / method
    _check(folder, _read(folder))
    (path,) = (folder / events.NAME).iterdir()
    assert path.relative_to(folder).as_posix() in manifest.check(folder).files

    # A finished run is only looked at, and a run that is replaced takes its events along.
    main(["run", *flags, "--resume"])
    _check(folder, _read(folder))
    manifest.check(folder)
    removal.remove_run(folder)
    assert not (folder / events.NAME).exists()


def test_a_run_that_goes_on_keeps_the_events_of_its_segments(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard")
    identity = {"config": {}, "stream": {}, "key": 0}
    run_folder.start(tmp_path, identity)
    (tmp_path / "sizes").mkdir()

    def process(segments):
        with events.EventLog(tmp_path, steps=20) as log:
            for t in segments:
                np.savez(tmp_path / "sizes" / f"segment-{t:04d}.npz", users=np.array([t + 1]), items=np.array([2]))
                log.step(t, 10, 0.5, 0.1)
                line = {f"{part}_{metric}": t for part in ("valid", "test") for metric in ("recall@20", "ndcg@20")}
                line |= dict.fromkeys(("budget_bytes", "bytes_table", "bytes_at_rest", "bytes_serving"), 8)
                line |= {"segment": t, "probe_rewards": [float(t), t + 0.5]}
                log.segment(line)
                with (tmp_path / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                (tmp_path / "users").mkdir(exist_ok=True)
                (tmp_path / "users" / f"segment-{t:04d}.npz").touch()
                run_folder.finish(tmp_path, f"users/segment-{t:04d}.npz")
        run_folder.finish(tmp_path, events.NAME)

    process([0, 1])
    process([2])
    found = _read(tmp_path)
    assert [found["search/reward by probe", n] for n in range(6)] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert [found["sizes of users/percentile 99", t] for t in range(3)] == [1, 2, 3]
    assert [path.name[-2:] for path in sorted((tmp_path / events.NAME).iterdir())] == ["00", "02"]
    manifest.check(tmp_path)
