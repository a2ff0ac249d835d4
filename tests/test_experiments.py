"""The experiments at tiny size: what they run and what they write."""

import dataclasses
import importlib
import json
import pkgutil
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest

import experiments
from experiments import (
    ablate_policy,
    ablate_state,
    action_value,
    arena,
    auto_choice,
    bases,
    budget_cut,
    cell_file,
    claims,
    explicit_clicks,
    official_ml1m,
    own_bits,
    prices,
    probe_value,
    rerank,
    rotation,
    scale,
    served_bits,
    serving_speed,
    sweep_budgets,
)
from scall_jax import Config, SizesConfig, tables
from scall_jax.cli.cli import cli
from scall_jax.cli.commands import run_command
from scall_jax.run import text_files
from tests.helpers import small_stream, tiny_arguments

SHORT = ["--search.probes", "1", "--search.probe-steps", "4", "--seeds", "0", "--mean-sizes", "3"]


@pytest.fixture(autouse=True)
def _cache_as_before(quick_compilation):
    """Experiments put the compilation cache into their own folder."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_a_sweep_has_a_line_for_each_method_and_the_ceiling(data, tmp_path, capsys):
    more = ["--method", "uniform", "popularity-all", "--mean-sizes", "1", "4", "--seeds", "0", "1", "--separate"]
    cli(sweep_budgets.Sweep, sweep_budgets.main, arguments=tiny_arguments(data, tmp_path, *more))
    uniform, popular, full = json.loads((tmp_path / "sweep.json").read_text())
    assert np.shape(uniform["recall@20"]) == (2, 2) and full["method"] == "full"
    assert popular == {"method": "popularity-all", "recall@20": popular["recall@20"]} and popular["recall@20"] > 0
    with pytest.raises(SystemExit):
        cli(sweep_budgets.Sweep, sweep_budgets.main, arguments=tiny_arguments(data, tmp_path, *more))
    assert "holds a sweep" in capsys.readouterr().err
    assert uniform["megabytes"][1] == pytest.approx(4 * uniform["megabytes"][0])
    assert len(uniform["seconds_separate"]) == len(uniform["seconds_separate_compile"]) == 4
    assert min(uniform["seconds"], uniform["seconds_compile"], *uniform["seconds_separate"]) > 0
    assert (tmp_path / "sweep.png").exists()
    frame = pl.read_parquet(tmp_path / "sweep.parquet")
    assert frame.group_by("method", maintain_order=True).agg(pl.col("run").n_unique()).rows() == [
        ("uniform", 4),
        ("popularity-all", 1),
        ("full", 1),
    ]
    last = frame.filter(method="uniform", segment=3)
    assert (last["allocated_parameters"] / (last["users"] + last["items"])).to_list() == [1, 1, 4, 4]
    table = (tmp_path / "table.md").read_text()
    assert "| uniform, sum " in table and "| uniform, mapped " in table and f"{popular['recall@20']:.4f}" in table
    alone = tiny_arguments(data, tmp_path / "alone", "--method", "uniform", "--budget.mean-size", "4", "--seed", "1")
    run_command(arguments=alone)
    summary = json.loads((tmp_path / "alone" / "uniform" / "summary.json").read_text())
    assert uniform["recall@20"][1][1] == pytest.approx(summary["mean_test_recall@20"], abs=0.02)


@pytest.mark.slow
def test_rotations_are_compared_cell_by_cell_in_one_file(data, tmp_path, capsys):
    results = tmp_path / "results" / "rotation.parquet"
    tiny = ["--method", "uniform", "frequency", "--mean-sizes", "3", "--results", str(results), "--seeds"]

    def run(*seeds):
        cli(rotation.Rotation, rotation.main, arguments=tiny_arguments(data, tmp_path / "runs", *tiny, *seeds))
        return pl.read_parquet(results)

    first, both = run("0"), run("0", "1")
    # Finished cells are kept as they are, and their run folders are gone.
    assert len(first) == 6 and len(both) == 12 and both.head(6).equals(first)
    assert [path.name for path in (tmp_path / "runs").iterdir() if any(path.rglob("metrics.jsonl"))] == []
    assert both["seed"].to_list() == [0] * 6 + [1] * 6 and both["rotation"].head(3).to_list() == list(tables.ROTATIONS)
    assert len(set(both["cell"])) == 12 and both["by_user"].list.len().n_unique() == 1
    recall = dict(zip(both.select("method", "rotation", "seed").rows(), both["recall@20"], strict=True))
    assert recall["frequency", "none", 0] != recall["frequency", "full", 0]
    text = results.with_suffix(".md").read_text()
    assert capsys.readouterr().out.count("by user R@20 less that of none") == 2
    assert f"{np.mean([recall['frequency', 'blocks', seed] for seed in (0, 1)]):.4f} ±" in text
    with pytest.raises(SystemExit):
        run("0", "--rotations", "full")
    assert "none has to be among them" in capsys.readouterr().err


@pytest.mark.slow
def test_claims_choose_fixed_on_valid_and_go_on_where_they_stopped(data, tmp_path, capsys):
    results = tmp_path / "results" / "claims.parquet"
    tiny = ["--method", "uniform", "frequency", "--few", "shuffled", "--few-seeds", "1", "--shapes", "0.5"]
    tiny += ["--mean-sizes", "3", "--results", str(results), "--seeds"]

    def run(*seeds):
        cli(claims.Claims, claims.main, arguments=tiny_arguments(data, tmp_path / "runs", *tiny, *seeds))
        return pl.read_parquet(results)

    first, both = run("0"), run("0", "1")
    # Two tries of fixed, of which one goes on, then two methods and, by the first seed alone, shuffled and popularity.
    assert len(first) == 6 and len(both) == 9 and both.head(6).equals(first)
    tried = first.filter(pl.col("method").str.starts_with("fixed"))
    best = tried.sort("valid recall@20")["method"][-1]
    assert both.filter(pl.col("seed") == 1)["method"].to_list() == ["uniform", "frequency", best]
    text = results.with_suffix(".md").read_text()
    assert text.count("fixed on valid") == 2 and best in text
    recall = both.filter(pl.col("method") == best)["recall@20"].to_list()
    assert f"{np.mean(recall):.4f} ±" in text
    assert "Beside frequency" in capsys.readouterr().out


@pytest.mark.slow
def test_bases_are_compared_at_the_same_bytes_and_the_same_width(data, tmp_path, capsys):
    results = tmp_path / "results" / "bases.parquet"
    more = [
        "--results",
        str(results),
        "--seeds",
        "0",
        "--mean-sizes",
        "2",
        "--ials.sweeps",
        "2",
        "--ials.choice-sweeps",
        "1",
    ]
    more += ["--method", "uniform", "uniform@recommender=ials,table=packed_int4", "--ials.choice-width", "4"]
    cli(bases.Bases, bases.main, arguments=tiny_arguments(data, tmp_path / "runs", *more))
    found = pl.read_parquet(results)
    assert found.select("mean size", "method").rows() == [
        ("2", "uniform"),
        ("2", "uniform@recommender=ials,table=packed_int4"),
        *(("16", method) for method in bases.BY_WIDTH),
    ]
    assert all(f"{recall:.4f}" in capsys.readouterr().out for recall in found["recall@20"][:1])


@pytest.mark.slow
def test_ablations_change_what_they_say(data, tmp_path, capsys):
    def rows_of(experiment, flags, name, *more):
        path = tmp_path / f"{name}.parquet"
        arguments = tiny_arguments(data, tmp_path / name, *SHORT, "--results", str(path), *more)
        cli(flags, experiment.main, arguments=arguments)
        return pl.read_parquet(path)

    (row,) = rows_of(ablate_policy, ablate_policy.AblatePolicy, "policy", "--only", "map linear").rows(named=True)
    assert (row["variant"], row["mean size"], row["seed"]) == ("map linear", "3", 0)
    changed = {name: x.search for name, x in ablate_policy.variants(ablate_policy.AblatePolicy()).items()}
    assert changed["concentration 10"].concentration == 10 and changed["ours"].concentration is None
    assert changed["map linear"].map == "linear"
    assert (changed["probes previous fresh"].on, changed["probes previous fresh"].start) == ("previous", "fresh")
    states = "state as published", "no parts, one group"
    found = rows_of(ablate_state, ablate_state.AblateState, "state", "--only", *states)
    assert found["variant"].to_list() == list(states) and found["cell"].n_unique() == 2
    assert "R@20 less that of state as published" in capsys.readouterr().out
    assert "no parts, one group" in (tmp_path / "state.md").read_text()
    with pytest.raises(SystemExit):
        more = tiny_arguments(data, tmp_path, "--only", "magic")
        cli(ablate_policy.AblatePolicy, ablate_policy.main, arguments=more)
    assert "no variant starts so" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cut_budget_is_cut_and_comes_back(data, tmp_path):
    more = ["--method", "uniform", "--size", "4", "--cut-size", "2"]
    cli(budget_cut.BudgetCut, budget_cut.main, arguments=tiny_arguments(data, tmp_path, *more))
    lines = {name: text_files.read_lines(tmp_path / "uniform" / name / "metrics.jsonl") for name in ("constant", "cut")}
    for t, (whole, cut) in enumerate(zip(lines["constant"], lines["cut"], strict=True)):
        assert cut["allocated_parameters"] * (2 if t == 1 else 1) == whole["allocated_parameters"]
    assert (tmp_path / "cut.png").exists() and "| uniform, cut" in (tmp_path / "table.md").read_text()


def _official_rows(replayed_time):
    rng = np.random.default_rng(0)
    rows = []
    for segment in range(3):
        own = [(int(rng.integers(30)), int(rng.integers(40)), 100 * segment + i) for i in range(100)]
        if segment:
            rows.append((segment, *rows[0][1:3], replayed_time, True, False))
        rows += [(segment, user, item, time, False, i >= 80) for i, (user, item, time) in enumerate(own)]
    names = ["segment", "user", "item", "timestamp", "replay", "test"]
    return pl.DataFrame(rows, schema=names, orient="row")


@pytest.mark.slow
def test_official_segments_are_taken_as_they_are(data, tmp_path, capsys):
    frame = _official_rows(replayed_time=0)
    path = tmp_path / "rows.parquet"
    frame.write_parquet(path)
    clean, published = (official_ml1m.read_segments(str(path), 3, protocol, 0) for protocol in (False, True))
    for t in range(3):
        assert (published.bounds[t].start, published.bounds[t].train, published.bounds[t].valid) == (
            100 * t,
            100 * t + 80,
            100 * t + 80,
        )
        assert clean.bounds[t].train == 100 * t + 70 and clean.bounds[t].end == 100 * t + 100
        assert published.replay[t].tolist() == ([0] if t else [])
    assert published.select_on_test and not clean.select_on_test
    taken = frame.filter(~pl.col("replay"))
    np.testing.assert_array_equal(published.user_ids.gather(published.user), taken["user"])

    more = ["--segments", "3", "--method", "uniform", "--protocols", "published", "clean", "--seeds", "0", "1"]
    arguments = tiny_arguments(path, tmp_path / "out", *more)
    cli(official_ml1m.Official, official_ml1m.main, arguments=arguments)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| published uniform R@20" in text and "| clean uniform N@20" in text and "0.1931" in text
    assert "compilation, first seed" in text and "mean of t > 1" in text
    summary = json.loads((tmp_path / "out" / "clean" / "uniform-seed1" / "summary.json").read_text())
    assert summary["mean_test_recall@20"] is None or 0 <= summary["mean_test_recall@20"] <= 1

    _official_rows(replayed_time=7777).write_parquet(path)
    with pytest.raises(SystemExit):
        cli(official_ml1m.Official, official_ml1m.main, arguments=arguments)
    assert "replays rows that no earlier segment has" in capsys.readouterr().err


def test_every_experiment_says_its_command_its_cost_and_what_to_expect():
    names = [module.name for module in pkgutil.iter_modules(experiments.__path__)]
    assert {"run", "compare", "arena", "benchmark", "probes"} <= set(names)
    for name in names:
        module = f"experiments.{name}" + (".__main__" if name == "benchmark" else "")
        imported = importlib.import_module(module)
        if not hasattr(imported, "main"):
            continue  # A part that experiments share.
        text = imported.__doc__
        assert f"    python -m experiments.{name}" in text, name
        assert "Cost:" in text and "Expect" in text, name


def test_the_speed_of_requests_is_measured_beside_the_product(capsys):
    tiny = serving_speed.ServingSpeed(users=30, items=400, width=4, k=3, seen=5, known=60, repeats=2, rounds=2)
    result = serving_speed.main(tiny)
    assert min(result.values()) > 0 and result["request, wall"] >= result["request, wall, least"]
    assert f"request, process {result['request, process']:.1f} ms" in capsys.readouterr().out
    model = serving_speed.random_model(tiny)
    frame = model.recommend(model.users.ids[:2], k=395)
    wanted = model.vectors("users")[:2] @ model.vectors("items").T
    wanted[np.arange(2)[:, None], model.seen.items.reshape(60, 5)[:2]] = -np.inf
    assert frame["item"].to_list()[0] == wanted[0].argmax() and len(frame) == np.isfinite(wanted).sum()


@pytest.mark.slow
def test_final_vectors_in_more_bits_rank_more_like_those_in_float32(data, tmp_path):
    more = ["--budget.mean-size", "8", "--bits", "8", "1"]
    cli(served_bits.ServedBits, served_bits.main, arguments=tiny_arguments(data, tmp_path, *more))
    lines = (tmp_path / "table.md").read_text().splitlines()[-3:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    whole, eight, one = (float(row[1]) for row in rows)
    assert [row[0] for row in rows] == ["float32", "8", "1"]
    assert abs(eight - whole) < abs(one - whole) + 0.01 * whole


@pytest.mark.slow
def test_reranking_keeps_the_order_by_mix_1_and_chooses_on_valid(data, tmp_path):
    more = ["--method", "uniform", "--mixes", "1", "0.5", "--depth", "25", "--neighbours", "6"]
    cli(rerank.Rerank, rerank.main, arguments=tiny_arguments(data, tmp_path / "reranked", *more))
    table = (tmp_path / "reranked" / "table.md").read_text()
    assert "| mix 0.5 " in table and "| chosen on valid " in table
    run_command(arguments=tiny_arguments(data, tmp_path / "plain", "--method", "uniform"))
    lines = [json.loads(x) for x in (tmp_path / "plain" / "uniform" / "metrics.jsonl").read_text().splitlines()]
    kept = next(float(row.split("|")[2]) for row in table.splitlines() if row.startswith("| mix 1 "))
    # Two programs round differently, which moves single items.
    assert kept == pytest.approx(np.mean([line["test_recall@20"] for line in lines[1:]]), abs=0.02)


@pytest.mark.slow
def test_explicit_clicks_are_learned_from_in_all_ways(tmp_path):
    """Odd users like one half of the items and rate the other half low, even users the other way round."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, 1500), rng.integers(0, 60, 1500)
    rating = np.where((user % 2 == 1) == (item < 30), 5, 2)
    rows = [f"{u},{i},{r},{1000 + t}" for t, (u, i, r) in enumerate(zip(user, item, rating, strict=True))]
    (tmp_path / "rows.csv").write_text("user,item,rating,timestamp\n" + "\n".join(rows) + "\n")
    flags = ["--data", str(tmp_path / "rows.csv"), "--click-rating", "4", "--cut.segments", "3"]
    more = ["--saros.learning-rate", "1", "--budget.mean-size", "6", "--out", str(tmp_path / "out")]
    cli(explicit_clicks.ExplicitClicks, explicit_clicks.main, arguments=[*flags, *more])
    table = (tmp_path / "out" / "table.md").read_text()
    found = [[x.strip() for x in row.split("|")[1:-1]] for row in table.splitlines() if row.startswith("| ")][1:]
    assert [row[:2] for row in found] == [[e, u] for e in ("explicit", "sampled") for u in ("block", "click")]
    # Without learning 20 of 60 items hold a third of the clicks; non-clicks say which half a user does not like.
    assert min(float(row[2]) for row in found[:2]) > 0.4
    assert all(row[4] == found[0][4] for row in found)
    with pytest.raises(SystemExit):
        cli(explicit_clicks.ExplicitClicks, explicit_clicks.main, arguments=[*flags[:3], "1", *flags[4:], *more])


def test_parts_of_rows_are_read_as_one_table_of_the_size_that_was_asked_for(tmp_path):
    flags = scale.Scale(out=tmp_path)
    scale.write_parts(tmp_path / "rows-3000", 3000)
    found = scale.of_rows(flags, 3000)
    assert found["users"] <= 300 and found["items"] <= 100 and found["users"] > 50
    assert scale.of_polars(flags, 3000)["read s"] > 0


@pytest.mark.slow
def test_measurements_of_scale_are_kept_and_not_made_again(tmp_path, capsys):
    arguments = ["--rows", "2000", "--sizes", "500", "--entities", "300", "--steps", "2", "--batch", "64"]
    arguments += ["--devices", "1", "2", "--shared", "300"]
    arguments += ["--results", str(tmp_path / "scale.parquet"), "--out", str(tmp_path / "out")]
    cli(scale.Scale, scale.main, arguments=arguments)
    text = capsys.readouterr().out
    frame = pl.read_parquet(tmp_path / "scale.parquet")
    shared = [f"shared {name}" for name in ("ials", "mf")]
    assert frame["measured"].to_list() == ["rows", "polars", "sizes", "ials", "mf", *2 * shared]
    made = frame.filter(pl.col("measured").is_in(shared))
    assert (made["fit products"] > 0).all() and (made["evaluate products"] > 0).all()
    assert (made.filter(count=1)["fit exchanges"] == 0).all() and (made.filter(count=2)["fit exchanges"] > 0).all()
    assert frame["restored"].drop_nulls().to_list() == [True] and (frame["peak"] > frame["imports"]).all()
    assert frame.filter(pl.col("measured") == "sizes")["spent"].item() == 1.0
    assert (frame["table"].drop_nulls() <= 1000).all()
    cli(scale.Scale, scale.main, arguments=[*arguments, "--report"])
    assert capsys.readouterr().out in text


@pytest.mark.parametrize("module", [action_value, arena, auto_choice, bases, claims, own_bits, prices, probe_value])
def test_a_report_without_cells_says_so(module, tmp_path, capsys):
    (flags,) = (
        x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__ and _reports(x)
    )
    with pytest.raises(SystemExit):
        cli(flags, module.main, arguments=["--report", "--results", str(tmp_path / "none.parquet")])
    assert "none.parquet has no cells yet: run some, without --report" in capsys.readouterr().err
    assert not list(tmp_path.glob("none*"))


def _reports(flags):
    return "report" in getattr(flags, "__dataclass_fields__", {})


def test_a_cell_that_is_made_anew_takes_the_place_of_that_of_an_earlier_version(tmp_path):
    path, settings = tmp_path / "cells.parquet", ("stream", "seed")
    for cell, seed in (("a", 0), ("b", 1), ("c", 0)):
        cell_file.add(path, {"cell": cell, "stream": "s", "seed": seed, "by_user": []}, settings)
    assert cell_file.read(path)["cell"].to_list() == ["b", "c"]


def test_a_stopped_cell_goes_on_in_its_own_folder_whichever_cells_are_run_then(data, tmp_path, monkeypatch):
    folders = []

    def stopped(cell, config, stream, folder):
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(cell_file.commands, "run_method", stopped)
    for method in ("uniform", "frequency", "uniform"):
        arguments = tiny_arguments(data, tmp_path, "--mean-sizes", "3", "--results", str(tmp_path / "cells.parquet"))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            cli(prices.Prices, prices.main, arguments=[*arguments, "--method", method])
    assert folders[0] == folders[2] != folders[1]


def test_names_of_finished_cells_are_those_of_the_defaults_that_they_were_made_by():
    """A new option is entered in `defaults.json`; where a default changes, one of these numbers is raised, too."""
    kept = json.loads((Path(__file__).parent / "defaults.json").read_text())
    now = json.loads(json.dumps(dataclasses.asdict(Config())))
    numbers = {name: getattr(cell_file, name) for name in ("DEFAULTS", "LEAST_SQUARES")}
    assert numbers | {"config": now} == kept


def test_a_name_of_a_cell_stays_where_an_option_is_new_and_changes_with_every_value(monkeypatch):
    stream, config = small_stream(), Config("frequency", sizes=SizesConfig(power=0.75))
    name = cell_file.identity(config, stream, 0)

    @dataclasses.dataclass(frozen=True)
    class Longer(Config):
        novel: int = 3

    with monkeypatch.context() as patched:
        patched.setattr(cell_file, "Config", Longer)
        for novel, same in ((3, True), (4, False)):
            longer = Longer("frequency", sizes=SizesConfig(power=0.75), novel=novel)
            assert (cell_file.identity(longer, stream, 0) == name) == same
    others = [
        cell_file.identity(config, stream, 1),
        cell_file.identity(config, stream.first(2), 0),
        cell_file.identity(dataclasses.replace(config, method="uniform"), stream, 0),
        cell_file.identity(dataclasses.replace(config, sizes=SizesConfig()), stream, 0),
    ]
    assert len({name, *others}) == 5
