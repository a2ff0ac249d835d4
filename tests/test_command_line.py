"""What `scall-jax` says before it runs: nearest names, methods, how a file is cut, what a budget is, what is kept."""

import os
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from scall_jax import streams
from scall_jax.cli import compilation_cache, head, list_methods
from scall_jax.cli.commands import run_command
from scall_jax.cli.flags import Main
from scall_jax.cli.main import COMMANDS, main
from scall_jax.cli.method_flags import GROUPS, check_auto, for_method
from scall_jax.methods.registry import METHODS
from scall_jax.sizes.budget import Budget


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comprae", "x"], "unknown subcommand 'comprae': did you mean compare?"),
        (["run", "--methd", "uniform"], "unknown flag --methd: did you mean --method?"),
        (["run", "--fit.step=3"], "unknown flag --fit.step: did you mean --fit.steps?"),
        (["run", "--no-resum"], "unknown flag --no-resum: did you mean --no-resume?"),
        (["run", "--qqqq"], "unknown flag --qqqq: --help-all shows all flags"),
        (["run", "--method", "frequncy"], "unknown method 'frequncy': did you mean frequency?"),
        (["run", "--method", "uniform@tabel=packed"], "--tabel is no flag: did you mean table?"),
        (["run", "--method", "atuo"], "unknown method 'atuo': did you mean auto?"),
        (["methods", "atuo"], "unknown method 'atuo': did you mean auto?"),
        (["methods", "popularty"], "unknown method 'popularty': did you mean popularity?"),
        (["methods", "scal"], "unknown method 'scal': did you mean scall?"),
        (["compare"], "name at least one run"),
        (["report", "nowhere"], "nowhere: no run is in this folder"),
    ],
)
def test_an_unknown_name_gets_the_nearest(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_limit_that_is_no_number_is_named(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("user,item,timestamp\n1,2,3\n")
    with pytest.raises(SystemExit):
        main(["run", "--data", str(tmp_path / "rows.csv"), "--max-memory", "nan", "--out", str(tmp_path / "out")])
    assert "--max-memory: nan MB, must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--recommender", "ials"], "recommender ials"),
        (["--method", "auto", "--table", "packed_int4"], "table packed_int4"),
        (["--method", "auto@charge=stored"], "charge stored"),
        (["--method", "uniform", "auto", "--bias", "none"], "bias none"),
    ],
)
@pytest.mark.parametrize("command", ["run", "follow"])
def test_auto_refuses_what_it_would_not_heed(tmp_path, capsys, command, flags, value):
    (tmp_path / "rows.csv").write_text("user,item,timestamp\n1,2,3\n")
    if command == "follow":
        flags = [flag for flag in flags if flag != "uniform"] + ["--cut.rows", "10", "--once"]
    with pytest.raises(SystemExit) as stop:
        main([command, "--data", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out"), *flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"--{value}: method auto chooses" in error
    assert f"uniform@{value.replace(' ', '=')}" in error and not (tmp_path / "out").exists()


def test_a_flag_of_several_values_has_one_after_an_at():
    assert for_method(Main(), "uniform@budget.schedule=8")[0].budget.budget() == Budget.schedule([Budget.mean_size(8)])
    assert for_method(Main(), "scall-sac@policy.widths=64")[0].policy.widths == (64,)
    with pytest.raises(ValueError, match=r"policy\.widths=x: a value of type int$"):
        for_method(Main(), "scall-sac@policy.widths=x")


def test_auto_takes_what_it_heeds():
    for flags in (Main(), Main(charge="serving"), Main(protocol="published")):
        check_auto(flags, "auto@ials.sweeps=3")
    check_auto(Main(recommender="ials"), "uniform")


def test_every_method_and_every_command_has_a_line(capsys):
    assert set(list_methods.TEXTS) == {*METHODS, "auto"}
    main(["methods"])
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(lines) == sorted([*METHODS, "auto"])
    main(["methods", "auto", "popularity"])
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert lines == ["auto", *GROUPS["popularity"]]
    main(["-h"])
    text = capsys.readouterr().out
    assert all(f"  {name} {command.usage}" in text and command.text in text for name, command in COMMANDS.items())


def test_help_needs_none_of_the_libraries():
    code = (
        "import sys; from scall_jax.cli.main import main; main(['-h']); assert not {'jax', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def _rows(users: int, count: int) -> streams.Interactions:
    rng = np.random.default_rng(0)
    return streams.from_arrays(rng.integers(0, users, count), rng.integers(0, 3000, count), np.arange(count))


def _least(rows: streams.Interactions, segments: int) -> int:
    return min(int(streams.cut(rows, segments=segments).test(t).count) for t in range(1, segments))


@pytest.mark.parametrize(("users", "enough"), [(900, 200), (180, 100), (60, 20)])
def test_a_file_is_cut_into_the_most_segments_that_have_test_users_enough(users, enough):
    rows = _rows(users, 9000)
    stream = streams.cut(rows, segments="auto")
    assert _least(rows, len(stream)) >= enough
    assert len(stream) == 12 or _least(rows, len(stream) + 1) < enough
    (note,) = stream.notes
    assert f"cut into {len(stream)} segments" in note and f"at least {enough} test users" in note
    assert f"(the least: {_least(rows, len(stream))})" in note
    # It is the stream that the number alone gives.
    assert stream.fingerprint == streams.cut(rows, segments=len(stream)).fingerprint


def test_a_file_runs_without_any_other_flag_and_piped_output_has_plain_lines(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_command(["--data", str(data), "--method", "popularity-segment", "--no-report"])
    printed = capsys.readouterr()
    first, second, *_ = printed.out.splitlines()
    found = re.search(r"4,000 interactions, 124 users, 70 items, 2020-.* to 2020-.*, (\d+) segments; budget", first)
    assert found and f"cut into {found[1]} segments of equally many rows" in second and "--cut.segments" in second
    lines = printed.err.splitlines()
    assert lines[0] == "popularity-segment: compiling" and lines[1].startswith("popularity-segment: compiled in ")
    assert [line.split(": ")[1] for line in lines[2:]] == [
        f"segment {t} ({t + 1} of {found[1]})" for t in range(int(found[1]))
    ]
    assert "\r" not in printed.err and (tmp_path / "runs" / "demo" / "popularity-segment" / "summary.json").exists()


def test_the_ruler_has_the_bytes_of_the_budget():
    stream = streams.cut(_rows(100, 3000), segments=3)
    entities = sum(stream.known(stream.bounds[-1].train))
    lines = head.ruler(stream, Budget.megabytes(0.1)).splitlines()
    cells = {line[2:22].strip(): line[22:].split() for line in lines[1:]}
    assert f"for each of {entities:,} users and items" in lines[0]
    assert cells["MB"] == ["0.025", "0.05", "[0.1]", "0.2", "0.4"]
    assert float(cells["bytes an entity"][2].strip("[]")) == pytest.approx(1e5 / entities, rel=1e-3)
    assert float(cells["mean size (float32)"][3]) == pytest.approx(2 * 25_000 / entities, rel=1e-2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of a user who has configured none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield compilation_cache.cache_folder()
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.compilation_cache.reset_cache()


def test_compiled_programs_are_kept_in_the_users_folder(cache, tmp_path):
    assert cache.is_relative_to(tmp_path)
    with compilation_cache.persistent_cache() as settled:
        jax.jit(lambda x: x * 3 + 1).lower(2.0).compile()
        settled()
        assert list(cache.glob("*-cache")) and jax.config.values["jax_compilation_cache_dir"] == str(cache)
    assert list(cache.glob("*-cache")) and not list(cache.glob("running-*"))
    assert jax.config.values["jax_compilation_cache_dir"] is None
    with compilation_cache.persistent_cache(False):
        assert jax.config.values["jax_compilation_cache_dir"] is None


def test_a_cache_that_is_configured_stays(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "other"))
    with compilation_cache.persistent_cache():
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "other")
    assert not cache.exists()


def test_what_a_killed_process_left_half_written_is_removed(cache):
    cache.mkdir(parents=True)
    (cache / "whole-cache").write_text("whole")
    time.sleep(0.02)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    marks = [cache / f"running-{os.uname().nodename}-{number}" for number in (gone.pid, os.getppid())]
    for mark in marks:
        mark.touch()
    time.sleep(0.02)
    (cache / "half-cache").write_text("ha")
    with compilation_cache.persistent_cache():
        assert (cache / "whole-cache").exists() and not (cache / "half-cache").exists()
    assert not marks[0].exists() and marks[1].exists()


def test_the_cache_is_bounded_and_what_was_used_last_stays(tmp_path):
    for age, name in enumerate("abcd"):
        path = tmp_path / name / f"{name}-cache"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    compilation_cache.trim(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.rglob("*-cache")) == ["a-cache", "b-cache"]
