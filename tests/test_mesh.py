"""Runs over several devices: `on_devices.py` in a process with eight of them, and what is refused."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from scall_jax import Budget, Config, FitConfig, run_segments, streams
from scall_jax.cli.main import main
from scall_jax.ops.devices import MeshConfig
from scall_jax.run import placement, scan
from scall_jax.run.placement import check_devices

ROOT = Path(__file__).parent.parent


def _pytest(marks):
    flags = os.environ["XLA_FLAGS"].replace("device_count=2", "device_count=8")
    assert "device_count=8" in flags
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", "tests/on_devices.py"]
    done = subprocess.run(
        [*command, "-m", marks],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "NPROC": "32", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_on_eight_devices():
    _pytest("not slow")


@pytest.mark.slow
def test_on_eight_devices_the_rest():
    _pytest("slow")


def test_a_number_of_devices_that_there_is_not_is_refused_with_the_way_out(monkeypatch):
    with pytest.raises(ValueError, match=r"mesh devices=0: must be at least 1"):
        MeshConfig(0)
    with pytest.raises(ValueError, match=r"mesh devices=64: this process has 2 \(cpu\): give at most 2.*NPROC=256"):
        check_devices(MeshConfig(64))
    monkeypatch.setattr(placement, "_threads", lambda: 7)
    with pytest.raises(ValueError, match=r"mesh devices=2: 7 threads are too few .*NPROC=8"):
        check_devices(MeshConfig(2))
    monkeypatch.setattr(placement, "_threads", lambda: 8)
    check_devices(MeshConfig(2))


def test_the_command_line_refuses_before_anything_is_compiled(data, tmp_path, capsys):
    def error(*flags):
        with pytest.raises(SystemExit) as end:
            main(["run", "--data", str(data), "--out", str(tmp_path / "out"), "--cut.segments", "3", *flags])
        assert end.value.code == 2
        return capsys.readouterr().err

    flags = ("--recommender", "ials", "--method", "uniform")
    assert "mesh devices=64: this process has 2" in error(*flags, "--mesh.devices", "64")
    assert "mesh devices=0: must be at least 1" in error(*flags, "--mesh.devices", "0")
    assert "mesh.devices=2: recommender saros runs on one device: choose ials" in error(
        "--method", "uniform", "--recommender", "saros", "--mesh.devices", "2"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recommender": "saros"}, "recommender saros runs on one device: choose ials or lightgcn or mf,"),
        ({"fit": FitConfig(rounding="within"), "recommender": "mf"}, "fit.rounding within runs on one device"),
        ({"recommender": "lightgcn", "fit": FitConfig(served_bits=4)}, "fit.served_bits=4 is for one device"),
        ({"table": "masked"}, "table masked runs on one device: choose packed or packed_bfloat16 or "),
        ({"table": "packed_bits"}, "table packed_bits runs on one device"),
        ({"method": "spectral"}, "method spectral runs on one device: choose uniform or "),
        ({"method": "popularity-all"}, "method popularity-all runs on one device"),
        ({"method": "auto"}, "method auto runs on one device"),
    ],
)
def test_what_runs_on_one_device_is_refused_by_name(options, message):
    given = {"method": "gain", "recommender": "ials", "table": "packed"} | options
    with pytest.raises(ValueError, match=message):
        Config(mesh=MeshConfig(2), **given)
    assert Config(**given).mesh.devices == 1


def test_runs_without_so_many_devices_and_scans_are_refused():
    rows = streams.synthetic(jax.random.key(0), users=30, items=20, interactions=400)
    stream = streams.cut(rows, segments=2)
    config = Config("uniform", Budget.mean_size(2), recommender="ials", mesh=MeshConfig(16))
    with pytest.raises(ValueError, match="mesh devices=16: this process has 2"):
        run_segments(config, stream, jax.random.key(0))
    with pytest.raises(ValueError, match=r"mesh.devices=16: a compiled scan runs on one device: use run_segments"):
        scan(config, stream, jax.random.key(0))
    assert dataclasses.replace(config, mesh=MeshConfig()).mesh.devices == 1
