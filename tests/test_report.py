"""The table of a run shows what its figures rest on, from real small runs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from scall_jax import Budget, Config, FitConfig, SizesConfig, make_run, run_segments, streams
from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import method_flags, protocol
from scall_jax.cli.commands import run_command
from scall_jax.run import records
from tests.helpers import small_config, small_stream, tiny_arguments


@pytest.fixture(scope="module")
def stream():
    return small_stream(segments=4)


def popularity(stream, **options):
    config = Config("popularity-all", **options)
    return run_segments(config, stream, jax.random.key(0)), config


def test_rows_that_no_metric_counts_are_counted_by_their_reason(stream):
    lines, _ = popularity(stream)
    dropped, rows = 0, 0
    for t, (bounds, line) in enumerate(zip(stream.bounds, lines, strict=True)):
        trained = set(zip(stream.user[: bounds.train].tolist(), stream.item[: bounds.train].tolist(), strict=True))
        users, items = ({pair[side] for pair in trained} for side in (0, 1))
        for part, start, end in (("valid", bounds.train, bounds.valid), ("test", bounds.valid, bounds.end)):
            pairs = list(zip(stream.user[start:end].tolist(), stream.item[start:end].tolist(), strict=True))
            known = [(u, i) for u, i in pairs if u in users and i in items]
            seen = [pair for pair in known if pair in trained]
            counts = [line[f"{prefix}{part}_rows"] for prefix in ("", "unknown_", "seen_")]
            assert counts == [len(pairs), len(pairs) - len(known), len(seen)]
            left = {pair for pair in known if pair not in trained}
            assert line[f"{part}_users"] == len({u for u, _ in left})
        if t > 0 and line["test_users"] >= records.LEAST_USERS:
            dropped, rows = dropped + counts[1] + counts[2], rows + counts[0]
    summary = records.summarise(lines)
    assert 0 < summary["dropped_share"] < 1 and summary["dropped_share"] == pytest.approx(dropped / rows)
    assert records.summarise([{k: v for k, v in x.items() if k != "test_rows"} for x in lines])["dropped_share"] is None


def test_a_record_with_a_number_that_is_not_finite_is_refused(stream):
    run = make_run(Config("popularity-all"))
    state = jax.eval_shape(lambda key: run.init(key, stream), jax.random.key(0))
    shapes = jax.eval_shape(run.step, state, jax.tree.map(np.asarray, stream.segment(1)))[1]
    record = jax.tree.map(lambda x: np.zeros((3, *x.shape), x.dtype), shapes)
    record = record._replace(segment=np.arange(3), bad_step=np.full(3, -1))
    records.check(record)
    floats = [at for at, x in enumerate(jax.tree.leaves(record)) if x.dtype.kind == "f" and x.size]
    assert len(floats) >= 10
    for at in floats:
        leaves, structure = jax.tree.flatten(record)
        leaves[at] = leaves[at].copy()
        leaves[at].reshape(3, -1)[1, 0] = np.nan if at % 2 else np.inf
        with pytest.raises(ValueError, match=r"segment 1: [a-z._]+ is not finite"):
            records.check(jax.tree.unflatten(structure, leaves))


@pytest.mark.slow
def test_the_table_of_a_searched_run_shows_test_users_dropped_rows_and_seconds_of_search(data, tmp_path, capsys):
    more = ["--method", "popularity-all", "scall-random", "--search.probes", "2", "--search.probe-steps", "2"]
    run_command(arguments=tiny_arguments(data, tmp_path, *more))
    printed = capsys.readouterr().out
    table = [[x.strip() for x in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]
    header, *rows = table
    for row, method in zip(rows, ("popularity-all", "scall-random"), strict=True):
        shown = dict(zip(header, row, strict=True))
        summary = json.loads((tmp_path / method / "summary.json").read_text())
        lines = records.averaged(
            [json.loads(line) for line in (tmp_path / method / "metrics.jsonl").read_text().splitlines()]
        )
        users = [line["test_users"] for line in lines]
        assert shown["test users"] == f"{min(users)}-{max(users)}"
        assert shown["dropped"] == f"{summary['dropped_share']:.0%}"
        assert shown["search s"] == f"{summary['seconds_search']:.1f}"
        assert (summary["seconds_search"] > 0) == (method == "scall-random")
    # The stream has 150 users, of whom fewer are in a segment's test part.
    assert "under 100 test users" in printed and printed.count("- Warning: ") == 1
    assert "under 100 test users" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_budget_that_cannot_be_spent_is_said(stream, data, tmp_path, capsys):
    run_command(
        arguments=tiny_arguments(data, tmp_path, "--method", "uniform", "popularity-all", "--budget.megabytes", "4")
    )
    lines = [json.loads(line) for line in (tmp_path / "uniform" / "metrics.jsonl").read_text().splitlines()]
    used = 4e-6 * 32 * (lines[-1]["users"] + lines[-1]["items"])
    said = f"- Warning, uniform: every segment: all sizes are at the maximum 32: {used:.2g} of 4 MB used"
    assert said in capsys.readouterr().out and said in (tmp_path / "table.md").read_text()
    config = small_config("uniform", budget=Budget.megabytes(0.01))
    constant = run_segments(config, stream, jax.random.key(0))
    full = [x["segment"] for x in constant if 64 * (x["users"] + x["items"]) < 10_000]
    (said,) = (text for text in report.warnings(constant, config) if "maximum" in text)
    assert 0 < len(full) < 4 and said.startswith(f"segment {full[0]}:" if len(full) == 1 else f"segments {full[0]}, ")


def test_bytes_that_a_storage_leaves_are_said(stream):
    fit = FitConfig(layers=0, steps=2, eval_every=2)
    config = small_config("quotient_remainder", budget=Budget.mean_size(40), sizes=SizesConfig(maximum=16), fit=fit)
    lines = run_segments(config, stream, jax.random.key(0))
    spent = [line["bytes_parameters"] + line["bytes_codes"] for line in lines]
    left = [t for t, line in enumerate(lines) if spent[t] < 0.95 * line["budget_bytes"]]
    assert left == [2, 3]
    (said,) = (text for text in report.warnings(lines, config) if "MB used" in text)
    budget = lines[-1]["budget_bytes"]
    assert said == f"segments 2, 3: bytes are left: {1e-6 * spent[-1]:.2g} of {1e-6 * budget:.3g} MB used"
    enough = small_config("uniform", budget=Budget.mean_size(4), fit=fit)
    assert not any("MB" in x for x in report.warnings(run_segments(enough, stream, jax.random.key(0)), enough))


def test_auto_has_spent_what_serving_takes():
    line = {"segment": 1, "users": 9, "items": 9, "test_users": 200, "budget_bytes": 1000, "bytes_table": 100}
    lines = [line | {"segment": t, "bytes_serving": 990} for t in range(2)]
    assert report.warnings(lines, Config("auto")) == []
    (said,) = report.warnings([x | {"bytes_serving": 500} for x in lines], Config("auto"))
    assert said == "every segment: bytes are left: 0.0005 of 0.001 MB used"


def test_means_that_few_users_decide_are_said():
    rows = streams.synthetic(jax.random.key(7), users=400, items=80, interactions=8000)
    lines, config = popularity(streams.cut(rows, segments=4))
    users = [line["test_users"] for line in lines]
    few = [t for t in range(1, 4) if records.LEAST_USERS <= users[t] < 100]
    warned = [text for text in report.warnings(lines, config) if "test users" in text]
    assert bool(few) == bool(warned)
    (first,) = report.warnings([line | {"test_users": 100 - (line["segment"] == 2)} for line in lines], config)
    assert first == "segment 2: under 100 test users (99) decide a mean"
    assert report.warnings([line | {"test_users": 100} for line in lines], config) == []


@pytest.mark.parametrize(
    ("items", "candidates", "certain"),
    [pytest.param(20, "all", True, marks=pytest.mark.slow), (30, "all", False), (30, "segment", True)],
)
def test_recall_that_is_next_to_certain_is_said(items, candidates, certain):
    rng = np.random.default_rng(0)
    count = 6000
    # All items come early; later ones are drawn from the first 15.
    item = np.where(np.arange(count) < 3000, np.arange(count) % items, rng.integers(0, 15, count))
    rows = streams.from_arrays(rng.integers(0, 900, count), item, np.arange(count))
    stream = streams.cut(rows, segments=2)
    lines, config = popularity(stream, candidates=candidates)
    assert lines[1]["test_candidates"] == (items if candidates == "all" else len(set(stream.segment(1).test.items)))
    found = [text for text in report.warnings(lines, config) if "Recall@20 is next to certain" in text]
    assert len(found) == certain
    if certain:
        assert f"({lines[1]['test_candidates']})" in found[0] and lines[1]["test_recall@20"] > 0.99


def test_a_published_run_prints_what_differs_from_the_official_code_and_so_do_the_docs(data, tmp_path, capsys):
    run_command(arguments=tiny_arguments(data, tmp_path, "--method", "popularity-all", "--protocol", "published"))
    printed = capsys.readouterr().out
    pages = Path(__file__).parent.parent / "docs"
    text = " ".join((pages / "methods.md").read_text().replace("`", "").split())
    assert len(protocol.PUBLISHED_DIFFERS) > 5
    for difference in protocol.PUBLISHED_DIFFERS:
        assert f"- {difference}\n" in printed and f"- {difference}" in text
    assert "figures are optimistic" in printed
    run_command(arguments=tiny_arguments(data, tmp_path / "clean", "--method", "popularity-all"))
    assert "official code" not in capsys.readouterr().out


def test_what_is_published_is_set():
    flags = protocol.by_protocol(run_flags.Main(protocol="published"))
    config = method_flags.make_config(flags, "scall-sac")
    assert config.fit.l2 == 2e-4  # The official loss has 1e-4 of the whole squared norm, here half of it counts.
    assert config.policy.xavier and config.policy.distinct and config.policy.widths == (512, 512)
    assert config.search.most_ratio is None and config.search.settled_rounds == 4
    assert config.candidates == "segment" and flags.cut.published
