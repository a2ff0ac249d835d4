import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import polars as pl
import pytest

import scall_jax
from experiments import arena, cell_file, claims, compare, strata, sweep_budgets
from experiments.benchmark import __main__ as benchmark
from scall_jax.analysis import about, events, run_report
from scall_jax.cli import commands, help_page, method_flags, progress
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli
from scall_jax.cli.commands import run_command
from scall_jax.cli.main import main
from scall_jax.methods.registry import METHODS
from scall_jax.run import folder as run_folder
from scall_jax.run import manifest, text_files
from scall_jax.sizes import FAMILIES
from scall_jax.streams import FORMATS
from tests.helpers import comparable, tiny_arguments


def test_main_job_writes_a_complete_run_folder(data, tmp_path, capsys):
    codes = "uniform@table=packed_int4,budget.mean-size=2"
    more = ["--method", "uniform", codes, "popularity", "--budget.mean-size", "4", "--fit.layers", "0"]
    main(["run", *tiny_arguments(data, tmp_path, *more)])
    printed = capsys.readouterr().out
    assert "| uniform " in (tmp_path / "table.md").read_text()
    for method in ("uniform", codes, "popularity-all", "popularity-segment", "popularity-decayed"):
        assert f"| {method} " in printed
        folder = tmp_path / method
        lines = text_files.read_lines(folder / "metrics.jsonl")
        assert [line["segment"] for line in lines] == [0, 1, 2, 3]
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["segments"] == 4 and summary["method"] == method
        wanted = ["config.json", "quality.png"]
        if not method.startswith("popularity"):
            wanted += ["sizes.png", "memory.png", "checkpoints/segment-0003"]
            entities = [line["users"] + line["items"] for line in lines]
            nbytes = 8 if method == codes else 16
            assert all(line["budget_bytes"] == nbytes * n for line, n in zip(lines, entities, strict=True))
            assert all(line["bytes_table"] <= line["budget_bytes"] for line in lines)
        for name in wanted:
            assert (folder / name).exists(), name
    for key in [
        "segment",
        "users",
        "items",
        "interactions",
        "budget_parameters",
        "allocated_parameters",
        "bytes_table",
        "bytes_serving",
        "disk_bytes",
        "entities_without_parameters",
        "valid_recall@20",
        "valid_ndcg@20",
        "test_recall@20",
        "test_ndcg@20",
        "test_users",
        "seconds_fit",
        "seconds_evaluate",
        "seconds_search",
        "seconds_compile",
        "peak_rss_bytes",
    ]:
        assert key in lines[0]


@pytest.mark.slow
def test_with_a_terminal_progress_is_shown_from_inside_the_programs(data, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress.Progress, "_refresh", lambda self, bar, number, text: shown.append(text))
    more = "--method scall-random --search.probes 2 --search.probe-steps 2 --cut.max-segments 2 --no-compilation-cache"
    run_command(arguments=tiny_arguments(data, tmp_path, *more.split()))
    jax.effects_barrier()
    assert sum(text.startswith("segment 1 loss") for text in shown) == 2
    assert sum(text.startswith("segment 1 best") for text in shown) == 2


@pytest.mark.slow
def test_compare_runs_each_cell_once_and_gives_the_spread(data, tmp_path, capsys):
    arguments = tiny_arguments(
        data, tmp_path, "--method", "uniform", "popularity-all", "--mean-sizes", "2", "--seeds", "0", "1"
    )
    before = jax.config.jax_compilation_cache_dir
    try:
        cli(compare.Compare, compare.main, arguments=arguments)
        first = capsys.readouterr().out
        stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*/checkpoints/segment-0003")}
        cli(compare.Compare, compare.main, arguments=arguments)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(r["method"], r["mean size"], r["seeds"]) for r in rows] == [
        ("uniform", "2", "2"),
        ("popularity-all", "-", "1"),
    ]
    cells = tmp_path.glob("uniform/none-mean2-seed*/summary.json")
    recalls = [json.loads(cell.read_text())["mean_test_recall@20"] for cell in cells]
    assert len(recalls) == 2
    mean, spread = map(float, rows[0]["Recall@20"].split(" ± "))
    assert mean == pytest.approx(sum(recalls) / 2, abs=5e-5)
    assert spread == pytest.approx(abs(recalls[0] - recalls[1]) / 2**0.5, abs=5e-5)
    # Nothing has been trained again.
    assert stamps and stamps == {p: p.stat().st_mtime_ns for p in stamps}
    assert capsys.readouterr().out.split("\n\n")[-2:] == first.split("\n\n")[-2:]


def test_compare_has_one_cell_for_what_a_flag_does_not_change():
    flags = compare.Compare(method=("uniform", "full", "popularity"), mean_sizes=(1.0, 2.0), seeds=(0, 1))
    names = [tuple(shown.values()) for shown, _ in compare.cells(flags)]
    assert {name: names.count(name) for name in names} == {
        ("uniform", "none", "1"): 2,
        ("uniform", "none", "2"): 2,
        ("full", "none", "-"): 2,
        ("popularity-all", "-", "-"): 1,
        ("popularity-segment", "-", "-"): 1,
        ("popularity-decayed", "-", "-"): 1,
    }
    # No budget binds these runs, so their folders are the same whatever sizes are asked for.
    others = compare.cells(dataclasses.replace(flags, mean_sizes=(3.0,)))
    unbound = lambda found: [(cell.out, cell.budget) for shown, cell in found if shown["mean size"] == "-"]  # noqa: E731
    assert unbound(others) == unbound(compare.cells(flags))


def test_a_finished_folder_is_not_overwritten_unasked(data, tmp_path, capsys):
    tiny = tiny_arguments(data, tmp_path)
    arguments = [*tiny, "--method", "popularity-all"]
    run_command(arguments=arguments)
    with pytest.raises(SystemExit) as stop:
        run_command(arguments=arguments)
    assert stop.value.code == 2
    assert "holds a finished run" in capsys.readouterr().err
    summary = tmp_path / "popularity-all" / "summary.json"
    before = summary.read_text()
    for wrong, message in (
        (["popularity-all", "--resume", "--seed", "1"], "holds another run"),
        (["popularity-all", "uniform", "--overwrite", "--budget.mean-size", "1e9"], "must lie between 1 and"),
        (["popularity-all", "--resume", "--overwrite"], "give one of them"),
    ):
        with pytest.raises(SystemExit):
            run_command(arguments=[*tiny, "--method", *wrong])
        assert message in capsys.readouterr().err
        # A refused command leaves the finished run unchanged.
        assert summary.read_text() == before
    run_command(arguments=[*arguments, "--resume"])
    run_command(arguments=[*arguments, "--overwrite"])


def test_what_follows_from_the_rest_may_be_moved_away(data, tmp_path, capsys):
    assert {about.NAME, run_report.NAME, events.NAME} < set(manifest.DERIVED)
    lines = data.read_text().splitlines(keepends=True)
    ordered = sorted(lines[1:], key=lambda line: int(line.split(",")[2]))
    early, late = tmp_path / "early.csv", tmp_path / "late.csv"
    early.write_text("".join([lines[0], *ordered[:3000]]))
    late.write_text("".join([lines[0], *ordered[3000:]]))
    log = ["--tensorboard"] if importlib.util.find_spec("tensorboardX") else []
    arguments = tiny_arguments(early, tmp_path, "--method", "popularity-decayed", "--report", *log)
    run_command(arguments=arguments)
    folder = tmp_path / "popularity-decayed"
    expected = scall_jax.load(folder).recommend(k=5)

    def without():
        for name in manifest.DERIVED:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return folder

    assert any(manifest.is_derived(name) for name in manifest.check(folder).files)
    page = folder / run_report.NAME
    page.write_text("changed")
    with pytest.raises(ValueError, match=r"report\.html is not what the run wrote: restore or delete the file"):
        scall_jax.load(folder)
    assert scall_jax.load(without()).recommend(k=5).equals(expected)
    scall_jax.load(folder).export(tmp_path / "exported")
    main(["report", str(folder)])
    assert page.exists() and page.name in manifest.check(folder).files
    without()
    run_command(arguments=[*arguments, "--resume"])
    listed = manifest.read(folder).files
    assert page.name in listed and all((folder / name).exists() for name in listed)
    without()
    main(["update", str(folder), "--data", str(late), "--no-compilation-cache"])
    assert "finished; " in capsys.readouterr().out
    listed = manifest.read(folder).files
    assert all((folder / name).exists() for name in listed) and scall_jax.load(folder).segment > 3
    # Without data nothing goes on.
    (folder / run_folder.SUMMARY).unlink()
    with pytest.raises(ValueError, match=r"summary\.json is missing"):
        scall_jax.load(folder)


HEAD = "user,item,timestamp\n1,2,3\n"
ROWS = "user,item,timestamp\n" + "".join(f"{k},{k},{k}\n" for k in range(50))


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (HEAD + "1,2,soon\n", [], "row 3, column 'timestamp'"),
        (HEAD, [], "too short"),
        ("", [], "empty"),
        (HEAD, ["--budget.mean-size", "0"], "greater than 0"),
        (HEAD, ["--budget.megabytes", "-3"], "greater than 0"),
        (HEAD, ["--budget.mean-size", "4", "--budget.megabytes", "3"], "give one of"),
        (HEAD, ["--sizes.minimum", "9", "--sizes.maximum", "8"], "minimum=9, maximum=8"),
        (HEAD, ["--method", "magic"], "unknown method 'magic': choose one of uniform"),
        (HEAD, ["--method", "uniform@tables=packed"], "method 'uniform@tables=packed': --tables is no flag"),
        (HEAD, ["--method", "uniform@fit.steps=many"], "--fit.steps=many: a value of type int"),
        (HEAD, ["--method", "uniform@bits"], "'bits' is not of the form flag=value"),
        (HEAD, ["--columns.user", "uid"], "no column 'uid'"),
        (HEAD, ["--seed", "-1"], "seed -1"),
        (HEAD, ["--method"], "--method: name at least one"),
        (ROWS, [], "no segment after the first has 20 test users"),
        (ROWS, ["--cut.new-entities", "15000"], "one segment, and the first"),
        (None, [], "no such file"),
    ],
)
def test_bad_input_ends_with_a_message_and_code_2(tmp_path, capsys, content, flags, message):
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        run_command(arguments=["--data", str(path), "--out", str(tmp_path / "out"), *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("experiment", "flags", "message"),
    [
        (compare.Compare, ["--method", "popularity-all", "magic"], "unknown method 'magic'"),
        (compare.Compare, ["--seeds"], "--seeds: name at least one"),
        (compare.Compare, ["--method", "popularity-all", "uniform", "--mean-sizes", "1e9"], "must lie between 1 and"),
        (compare.Compare, ["--budget.megabytes", "4"], "--budget.*: runs are compared at --mean-sizes"),
        (compare.Compare, ["--bias", "decayed"], "--bias: runs are compared by --biases"),
        (compare.Compare, ["--overwrite"], "--overwrite: finished runs are kept"),
        (claims.Claims, ["--seeds"], "--seeds: name at least one"),
        (run_flags.Main, ["--method", "popularity-all", "binary_hash", "--budget.megabytes", ".00002"], "needs"),
        (sweep_budgets.Sweep, ["--method", "uniform", "binary_hash"], "shapes of its storage follow from the budget"),
        (sweep_budgets.Sweep, ["--seeds", "0", "4294967296"], "seed 4294967296: must lie between"),
        (sweep_budgets.Sweep, ["--cut.segments", "1"], "one segment, and the first"),
        (sweep_budgets.Sweep, ["--budget.mean-size", "4"], "--budget.*: budgets are swept by --mean-sizes"),
        (arena.Arena, ["--method", "uniform", "--mean-sizes", "2", "2.0001"], "--mean-sizes 2 and 2.0001 are both"),
        (arena.Arena, ["--method", "popularity-all", "magic"], "unknown method 'magic'"),
        (arena.Arena, ["--method", "uniform", "--mean-sizes", "0"], "greater than 0"),
        (arena.Arena, ["--method", "uniform", "--mean-sizes", "0.005"], "no method can use its budget"),
    ],
)
def test_comparisons_refuse_before_they_run(data, tmp_path, capsys, experiment, flags, message):
    job = commands.run_job if experiment is run_flags.Main else sys.modules[experiment.__module__].main
    with pytest.raises(SystemExit) as stop:
        cli(experiment, job, arguments=tiny_arguments(data, tmp_path / "out", *flags))
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # test_stopping.py ends a process in the same places, and test_folder.py in more of them
@pytest.mark.parametrize(("method", "segments"), [("popularity-decayed", 12), ("fixed", 4)])
def test_kill_and_resume_reach_the_same_records(data, tmp_path, method, segments):
    """kill -9 while segments are being written, then --resume."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ["--method", method, "--cut.segments", str(segments)]
    run_command(arguments=tiny_arguments(data, whole, *more))
    command = [sys.executable, "-m", "experiments.run", *tiny_arguments(data, parts, *more, "--resume")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    metrics = parts / method / "metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(text_files.read_lines(metrics)) < segments
    assert not (parts / method / "summary.json").exists()
    run_command(arguments=tiny_arguments(data, parts, *more, "--resume"))
    one, other = (comparable(text_files.read_lines(p / method / "metrics.jsonl")) for p in (whole, parts))
    assert one == other and len(one) == segments


@pytest.fixture
def _compilation_cache_as_before():
    """Comparisons put the compilation cache into their own folder."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def _run_arena(data, tmp_path, *more):
    """The rows of an arena's file after a run of it."""
    results = tmp_path / "arena.parquet"
    arguments = tiny_arguments(data, tmp_path / "runs", *more, "--results", str(results))
    cli(arena.Arena, arena.main, arguments=arguments)
    return pl.read_parquet(results)


@pytest.mark.slow
def test_arena_gives_every_method_the_same_bytes(data, tmp_path, capsys, _compilation_cache_as_before):
    methods = ["--method", "uniform", "binary_hash", "full", "popularity-all", "--mean-sizes", "0.1", "2", "4"]
    frame = _run_arena(data, tmp_path, *methods, "--seeds", "0", "1")
    # Seed by seed; a budget that a method cannot use is a row by itself, with the reason.
    first = frame.filter(pl.col("recall@20").is_not_null() & (pl.col("seed") == 0))
    assert first["method"].to_list() == ["uniform"] * 2 + ["binary_hash"] * 2 + ["full", "popularity-all"]
    assert frame.filter(pl.col("refused").is_not_null())["mean size"].unique().to_list() == ["0.1"]
    sized = frame.filter((pl.col("MB") != "-") & pl.col("recall@20").is_not_null())
    assert sized.group_by("method").len().sort("method").rows() == [("binary_hash", 4), ("uniform", 4)]
    budget = sized["MB"].cast(float)
    assert (sized["table MB"] <= 1.001 * budget).all() and (sized["table MB"] > 0.8 * budget).all()
    assert (sized["serving MB"] > sized["table MB"]).all()
    printed = capsys.readouterr().out
    assert "uniform, mean size 0.1: budget" in printed
    assert all(f"| {metric} over MB (budget)" in printed for metric in ("recall@20", "ndcg@20"))
    assert "AUC-A log" in printed and "table MB" in printed
    assert len(list(tmp_path.glob("arena-*.png"))) == 1
    assert _run_arena(data, tmp_path, *methods, "--seeds", "0", "1").equals(frame)


@pytest.mark.slow
def test_arena_exchanges_replay_for_width(data, tmp_path, capsys, _compilation_cache_as_before):
    methods = ["--method", "uniform", "popularity-all", "--mean-sizes", "0.05", "16", "--replays", "0.25", "0.5"]
    frame = _run_arena(data, tmp_path, *methods, "--seeds", "0", "--cut.segments", "2")
    ran = frame.filter(pl.col("recall@20").is_not_null())
    assert ran.select("method", "replay", "mean size").rows() == [
        ("uniform", "0.25", "16"),
        ("uniform", "0.5", "16"),
        ("popularity-all", "-", "-"),
    ]
    # The rows of replay are paid for before the table.
    assert ran["table MB"][1] < ran["table MB"][0] < float(ran["MB"][0])
    printed = capsys.readouterr().out
    assert "uniform, replay 0.5, mean size 0.05: " in printed and "| replay |" in printed
    flags = arena.Arena(method=("uniform", "popularity-all"), mean_sizes=(2.0,), seeds=(0,), replays=(0.0, 0.1))
    cells = [(arena.label(shown), cell.cut.replay, cell.charge) for shown, cell in arena._all_cells(flags)]
    wanted = [("uniform, replay 0", 0.0, "replay"), ("uniform, replay 0.1", 0.1, "replay")]
    assert cells == [*wanted, ("popularity-all", flags.cut.replay, "stored")]


def test_flags_of_the_cut_after_an_at_hold_for_a_cell_and_are_refused_for_runs_of_one_stream(capsys):
    flags = arena.Arena(method=("uniform", "uniform@cut.replay-by=neighbourhood"), mean_sizes=(2.0,), seeds=(0,))
    assert [cell.cut.replay_by for _, cell in compare.cells(flags)] == ["uniform", "neighbourhood"]
    for option, name in (("cut.replay=0.5", "cut"), ("seed=1", "seed"), ("resume=true", "resume")):
        with pytest.raises(SystemExit):
            run_command(arguments=["--method", f"uniform@{option}", "--out", "never"])
        assert f"--{name} after an @: it is the same for all methods" in capsys.readouterr().err


def test_a_file_of_cells_keeps_a_refused_one_until_it_has_run_and_tells_other_flags_apart(tmp_path):
    path = tmp_path / "cells.parquet"
    shown = {"cell": "a", "method": "reid", "by_user": []}
    cell_file.add(path, shown | {"refused": "too few bytes"})
    cell_file.add(path, {"cell": "b", "method": "uniform", "recall@20": 0.1, "by_user": [0.1]})
    cell_file.add(path, shown | {"recall@20": 0.2, "by_user": [0.2]})
    found = cell_file.read(path)
    assert found.select("cell", "recall@20", "refused").rows() == [("b", 0.1, None), ("a", 0.2, None)]
    flags = arena.Arena(charge="serving", cut=run_flags.Cut(segments=4), mean_sizes=(1.0,))
    assert cell_file.shared_flags(flags) == "cut.segments=4 charge=serving"
    assert cell_file.shared_flags(arena.Arena()) == "-"


def test_a_method_with_more_seeds_than_others_keeps_its_area():
    rows = [
        {"line": line, "MB": mb, "budget MB": mb, "recall@20": 0.1, "last recall@20": 0.1}
        for line, seeds in (("one", 1), ("five", 5))
        for mb in ("0.1002", "1.603")
        for _ in range(seeds)
    ]
    table = arena.areas(arena.curves(pl.DataFrame(rows), "recall@20"), "r", "budget")
    assert "| one " in table and "| five " in table


@pytest.mark.slow
def test_strata_add_up_to_the_metrics_of_their_runs(data, tmp_path, capsys, _compilation_cache_as_before):
    more = ["--method", "uniform", "popularity-all", "--mean-sizes", "2", "--seeds", "0", "1"]
    cli(compare.Compare, compare.main, arguments=tiny_arguments(data, tmp_path, *more))
    capsys.readouterr()
    cli(strata.Strata, strata.main, arguments=tiny_arguments(data, tmp_path))
    printed, frame = capsys.readouterr().out, pl.read_parquet(tmp_path / "strata.parquet")
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert sum("uniform/" in row and " ± " in row for row in rows) == 2 * 5
    assert all(row in (tmp_path / "strata.md").read_text() for row in rows)
    assert "recall@20 by mean conditional surprise (our reading of arXiv 2410.02453)" in printed
    for (folder, segment, split), part in frame.group_by("folder", "segment", "split"):
        if split != "relevant items":
            line = text_files.read_lines(tmp_path / folder / "metrics.jsonl")[segment]
            assert part["users"].sum() == line["test_users"]
            mean = part["ndcg@20"].dot(part["users"]) / line["test_users"]
            assert mean == pytest.approx(line["test_ndcg@20"], abs=1e-6)
    with pytest.raises(SystemExit):
        cli(strata.Strata, strata.main, arguments=[*tiny_arguments(data, tmp_path), "--seed", "1"])
    assert "give the stream, cut and seed" in capsys.readouterr().err


@pytest.mark.slow
def test_benchmark_measures_compares_and_keeps_what_it_has(tmp_path, capsys):
    more = ["--only", "policy grid", "state", "--repeats", "2", "--prepare", "2"]
    cli(benchmark.Benchmark, benchmark.main, arguments=["--out", str(tmp_path / "a"), *more])
    first = json.loads((tmp_path / "a" / "benchmark.json").read_text())
    assert [row["case"] for row in first["cases"]] == ["state 1e5", "policy grid"]
    assert all(row["seconds"] > 0 and row["peak_bytes"] >= 0 for row in first["cases"])
    capsys.readouterr()
    compared = ["--out", str(tmp_path / "b"), "--compare", str(tmp_path / "a" / "benchmark.json"), *more]
    cli(benchmark.Benchmark, benchmark.main, arguments=compared)
    assert "by old" in (tmp_path / "b" / "benchmark.md").read_text()
    with pytest.raises(SystemExit):
        cli(benchmark.Benchmark, benchmark.main, arguments=["--out", str(tmp_path), "--only", "magic"])
    assert "no case starts so" in capsys.readouterr().err
    failing = benchmark._Child("state", ("many",), 2)
    failing.prepare()
    assert failing.measured() == (None, "ValueError: could not convert string to float: 'many'")
    groups = benchmark._groups([("a", ()), ("b", ()), ("c", ()), ("scall", ("1",)), ("scall", ("2",)), ("d", ())], 2)
    assert [[name for name, _ in group] for group in groups] == [["a", "b"], ["c"], ["scall"], ["scall"], ["d"]]


def test_the_short_help_has_text_and_default_for_each_flag_and_the_names_to_choose(capsys):
    for arguments in (["-h"], ["--method", "uniform", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(["run", *arguments])
        assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = {line.split()[0] for line in text.splitlines() if line.startswith("  --")}
    usual = {f"--{name}" for names in run_flags.Main.SHOWN.values() for name in names}
    assert flags == usual and 15 <= len(usual) <= 25
    words = " ".join(text.split())
    assert "usage: scall-jax run [flags]" in words
    assert "--sizes.maximum N " in words and "(default: 128)" in words and "--resume Continue" in words
    assert "Constant size of the table in 10^6 bytes, instead of a mean size. (default: none)" in words
    for names in (METHODS, FORMATS, FAMILIES, method_flags.GROUPS):
        assert all(name in words for name in names)
    assert "a choice among methods on valid: auto " in words


def test_the_help_of_a_comparison_shows_its_own_flags_with_its_own_defaults(capsys):
    with pytest.raises(SystemExit):
        cli(arena.Arena, arena.main, arena.__doc__, ["-h"], "python -m experiments.arena")
    text = capsys.readouterr().out
    assert all(f"--{name} " in text for name in ("mean-sizes", "replays", "results", "report", "fit.steps"))
    assert "(default: 0.5 2.0 8.0)" in text and "(default: 300)" in text
    assert "--budget" not in text and "--overwrite" not in text


def test_every_flag_has_a_text(capsys):
    for flags in (run_flags.Main, arena.Arena, claims.Claims, strata.Strata, sweep_budgets.Sweep):
        assert [flag.name for flag in help_page.all_flags(flags) if not flag.text] == []
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help-all"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{flag.name}" in text for flag in help_page.all_flags(run_flags.Main))


def test_the_console_command_knows_its_subcommands(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"scall-jax {scall_jax.__version__}\n"
    for arguments in ([], ["--help"]):
        main(arguments)
        assert "run methods over a stream" in capsys.readouterr().out
    for wrong, hint in (("rnu", "did you mean run?"), ("--verison", "did you mean --version?"), ("q", "choose one of")):
        with pytest.raises(SystemExit) as stop:
            main([wrong])
        assert stop.value.code == 2
        assert f"unknown subcommand {wrong!r}: {hint}" in capsys.readouterr().err


WITHOUT_MATPLOTLIB = """
import importlib, pkgutil, sys
sys.modules["matplotlib"] = None
import scall_jax
for module in pkgutil.walk_packages(scall_jax.__path__, "scall_jax."):
    importlib.import_module(module.name)
print("scall_jax.analysis.report" in sys.modules, "scall_jax.cli.main" in sys.modules)
"""


@pytest.mark.slow  # test_architecture.py imports it without all that the extras bring
def test_the_package_imports_without_matplotlib():
    command = [sys.executable, "-c", WITHOUT_MATPLOTLIB]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True"]


def test_a_run_without_matplotlib_has_no_plots_and_says_so(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run_command(tiny_arguments(data, tmp_path, "--method", "popularity-all", "--cut.segments", "2"))
    assert 'pip install "scall_jax[plot]"' in capsys.readouterr().out
    assert (tmp_path / "popularity-all" / "summary.json").exists() and not list(tmp_path.rglob("*.png"))
    with pytest.raises(ValueError, match="plots need matplotlib"):
        commands.plots.plot_quality(tmp_path / "x.png", {}, "title")
