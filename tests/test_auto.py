"""Method auto: the choice follows valid alone, and the folder is that of the leader's model."""

import dataclasses
import json
import re
import shutil
import types

import jax
import numpy as np
import pytest

from scall_jax import Budget, Config, load, streams
from scall_jax.analysis import run_report
from scall_jax.cli.main import main
from scall_jax.recommenders.ials import IalsConfig
from scall_jax.run import auto, choices, config_file, lock, manifest, race, records, removal, run_segments, text_files
from scall_jax.run import folder as run_folder

_CANDIDATES = auto.candidates
_IALS = IalsConfig(sweeps=2, half_life=0.5, unobserved=0.3, regularisation=0.003)


def _config(mean_size: float = 4) -> Config:
    fit = dataclasses.replace(Config().fit, steps=10, eval_every=5)
    return Config(method=auto.NAME, budget=Budget.mean_size(mean_size), ials=_IALS, fit=fit)


@pytest.fixture(scope="module")
def stream():
    rows = streams.synthetic(jax.random.key(0), users=120, items=80, interactions=3000)
    return streams.cut(rows, segments=3)


@pytest.fixture(scope="module")
def few():
    """Two candidates that compile quickly."""
    every = auto.candidates

    def some(config: Config) -> dict[str, Config]:
        names = ("popularity", "ials int4 uniform")
        return {name: candidate for name, candidate in every(config).items() if name in names}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "candidates", some)
        yield some(_config())


@pytest.fixture(scope="module")
def finished(few, stream, tmp_path_factory):
    """A finished run: its lines and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "auto"
    return auto.run_auto(_config(), stream, jax.random.key(0), folder), folder


def test_a_run_serves_by_whoever_leads_on_valid(few, finished, stream, tmp_path):
    (lines, folder), config, key = finished, _config(), jax.random.key(0)
    alone = {name: run_segments(one, stream, key, folder=tmp_path / name) for name, one in few.items()}
    score = dict.fromkeys(alone, 0.0)
    for t, line in enumerate(lines):
        for name, theirs in alone.items():
            part = theirs[t]
            score[name] = score[name] / 2 + part["valid_users"] * (part["valid_recall@20"] + part["valid_ndcg@20"])
        best = max(score, key=lambda name: score[name])
        assert line["auto_leader"] == best
        assert line["test_recall@20"] == alone[best][t]["test_recall@20"]
        assert line["bytes_serving"] == alone[best][t]["bytes_serving"]
        assert line["bytes_serving"] <= line["budget_bytes"]
    leader = lines[-1]["auto_leader"]
    ours, theirs = load(folder).recommend(k=5), load(tmp_path / leader).recommend(k=5)
    assert ours.equals(theirs)
    text = choices.describe(folder)
    assert leader in text.splitlines()[0]
    assert all(name in text for name in alone)
    # Nothing is run again, and the folder is written as it was.
    before = (folder / "metrics.jsonl").read_text()
    assert auto.run_auto(config, stream, key, folder)
    assert (folder / "metrics.jsonl").read_text() == before
    copy = shutil.copytree(folder, tmp_path / "copy")
    auto.remove(copy)
    assert not [path for path in copy.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_second_process_is_refused_before_anything_is_deleted(few, finished, stream, tmp_path):
    config, key, out = _config(), jax.random.key(0), tmp_path / "auto"
    refused, last = [], list(few)[-1]

    def files():
        return {path for path in out.rglob("*") if path.is_file() and path.name != "lock"}

    def run(name, candidate, stream, folder, segments):
        lines = run_segments(candidate, stream, key, folder=folder, segments=segments)
        # While the last candidate is run, no process holds the folder of the first one.
        if name == last:
            before = files()
            with pytest.raises(ValueError, match="candidates is being written by process"):
                auto.remove(out)
            with pytest.raises(ValueError, match="candidates is being written by process"):
                auto.run_auto(config, stream, key, out)
            refused.append(files() == before)
        return lines

    auto.run_auto(config, stream, key, out, run)
    assert refused and all(refused)
    assert all(path.is_dir() for path in (out / choices.CANDIDATES).iterdir())
    # What holds a part of a finished run, such as an update or a report, keeps all of it.
    before = files()
    for part in (out, *choices.candidate_folders(out).values()):
        with lock.locked(part), pytest.raises(ValueError, match=f"{part.name} is being written by process"):
            auto.remove(out)
    assert files() == before and load(out).recommend(k=5).equals(load(finished[1]).recommend(k=5))
    auto.remove(out)
    assert not out.exists() or not list(out.iterdir())


def test_a_leader_without_its_files_is_refused(few, finished, stream, tmp_path):
    out = shutil.copytree(finished[1], tmp_path / "auto")
    removal.remove_run(out)
    name = choices.read_choices(finished[1] / choices.CHOICES)["segments"][1]["leader"]
    path = choices.candidate_folder(out, name) / "sizes" / "segment-0001.npz"
    path.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{path} is missing")):
        auto.run_auto(_config(), stream, jax.random.key(0), out, lambda name, *rest: _lines_of(out, name))


def _lines_of(folder, name):
    return text_files.read_lines(choices.candidate_folder(folder, name) / manifest.GROWING)


def test_the_test_part_chooses_nothing():
    rng = np.random.default_rng(0)

    def line(test: float) -> dict[str, float]:
        valid = rng.random(2)
        return {"valid_users": 9, "valid_recall@20": valid[0], "valid_ndcg@20": valid[1], "test_recall@20": test}

    lines = {name: [line(t) for t in range(5)] for name in "abc"}
    chosen = [choice.leader for choice in race.follow_the_leader(lines)]
    garbage = {name: [one | {"test_recall@20": rng.random()} for one in found] for name, found in lines.items()}
    assert [choice.leader for choice in race.follow_the_leader(garbage)] == chosen
    with pytest.raises(ValueError, match="as many"):
        race.follow_the_leader(lines | {"d": lines["a"][:2]})


def _drawn(names, segments, seed):
    rng = np.random.default_rng(seed)
    values = {name: rng.random((segments, 3)) for name in names}
    users = rng.integers(5, 50, segments)
    keys = ("valid_recall@20", "valid_ndcg@20", "test_recall@20")
    return {
        name: [dict(zip(keys, row, strict=True), valid_users=int(n)) for row, n in zip(found, users, strict=True)]
        for name, found in values.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_those_that_trail_leave_the_race_and_matter_no_more(seed):
    names, segments = ["popularity", *"abcdefg"], 6
    lines = _drawn(names, segments, seed)
    # Simulated apart: fading means on valid, of which the best half of 7, rounded up, go on from the third segment on,
    # until three are left.
    score, running, led, stayed = dict.fromkeys(names, 0.0), list(names), [], dict.fromkeys(names, 0)
    for t in range(segments):
        for name in running:
            line = lines[name][t]
            score[name] = score[name] / 2 + line["valid_users"] * (line["valid_recall@20"] + line["valid_ndcg@20"])
            stayed[name] += 1
        led.append(max(running, key=lambda name: score[name]))
        ranked = sorted((name for name in running if name != "popularity"), key=lambda name: -score[name])
        running = ["popularity", *ranked[: {0: 7, 1: 7, 2: 4}.get(t, 3)]]
    chosen = race.successive_halving(lines, began=7)
    assert [choice.leader for choice in chosen] == led
    assert sorted(stayed.values()) == [3, 3, 3, 4, 6, 6, 6, 6]
    assert [set(choice.valid) for choice in chosen] == [{n for n in names if stayed[n] > t} for t in range(segments)]
    cut = {name: found[: stayed[name]] for name, found in lines.items()}
    assert race.successive_halving(cut, began=7) == chosen
    # Going on later, with the lines of those that still run, is the same race.
    rest = {name: found for name, found in cut.items() if stayed[name] == segments}
    assert race.successive_halving(rest, began=7, first=4) == chosen[4:]


def test_a_run_stops_candidates_that_have_left(finished, stream, tmp_path, monkeypatch):
    monkeypatch.setattr(race, "HELD", 0)
    monkeypatch.setattr(race, "LEAST", 2)
    names, calls = ["popularity", *"abcdefg"], []
    drawn = _drawn(names, len(stream), seed=1)
    lines = {
        name: [dict(real, **line) for real, line in zip(finished[0], found, strict=True)]
        for name, found in drawn.items()
    }
    monkeypatch.setattr(auto, "candidates", lambda config: dict.fromkeys(names, config))
    fits = dict.fromkeys(names, len(stream))
    monkeypatch.setattr(auto, "feasible", lambda found, stream: auto.Feasible(fits, {}))

    def run(name, config, stream, folder, segments):
        calls.append((name, segments))
        return lines[name][:segments]

    out = tmp_path / "auto"
    composed = auto.run_auto(_config(), stream, jax.random.key(0), out, run)
    chosen = race.successive_halving(lines, began=7)
    assert calls == [(name, 1) for name in names] + [(n, t) for t in (2, 3) for n in names if n in chosen[t - 1].valid]
    assert [line["auto_leader"] for line in composed] == [choice.leader for choice in chosen]
    text = choices.describe(out)
    assert all(f"| {name} |" in text for name in names)
    assert sum(f"| {name} | 1 |" in text for name in names) == 3
    calls.clear()
    assert auto.run_auto(_config(), stream, jax.random.key(0), out, run) == composed


def test_those_that_had_left_come_back_where_none_that_stayed_fits(finished, stream, tmp_path, monkeypatch):
    monkeypatch.setattr(race, "HELD", 0)
    for module in (race, auto):
        monkeypatch.setattr(module, "LEAST", 2)
    names, calls, out = ["popularity", *"abcdefg"], [], tmp_path / "auto"
    drawn = _drawn(names, len(stream), seed=1)
    lines = {
        name: [dict(real, **line) for real, line in zip(finished[0], found, strict=True)]
        for name, found in drawn.items()
    }
    before = race.successive_halving({name: found[:2] for name, found in lines.items()}, began=7)
    stay = list(before[1].valid)
    # From the best to the worst, of those that left after the first segment.
    left = sorted(set(names) - set(stay), key=lambda name: -before[0].valid[name])
    monkeypatch.setattr(auto, "candidates", lambda config: dict.fromkeys(names, config))
    fits = {name: 2 if name in stay else len(stream) for name in names}
    monkeypatch.setattr(auto, "feasible", lambda found, stream: auto.Feasible(fits, dict.fromkeys(stay, "too large")))
    diverging: list[str] = []

    def run(name, config, stream, folder, segments):
        calls.append((name, segments))
        if name in diverging and segments == 3:
            folder.mkdir(parents=True)
            (folder / manifest.GROWING).write_text("".join(json.dumps(line) + "\n" for line in lines[name][:2]))
            raise records.Diverged("segment 2, step 3: the loss is not finite")
        return lines[name][:segments]

    composed = auto.run_auto(_config(), stream, jax.random.key(0), out, run)
    segments = choices.read_choices(out / choices.CHOICES)["segments"]
    assert [choice["valid"] for choice in segments[:2]] == [choice.valid for choice in before]
    assert len(left) == 3 and [name for name, count in calls if count == 3] == left[:2] == list(segments[2]["valid"])
    score = {name: race.faded([race.score(line) for line in lines[name]]) for name in left[:2]}
    assert composed[2]["auto_leader"] == max(score, key=lambda name: score[name])
    # Reports count what a candidate has run in the race, and not the segment that it missed.
    assert all(f"| {name} | 2 |" in choices.describe(out) for name in left[:2])
    # The report of a folder reads what it needs of this one.
    shown = "".join(run_report._auto(types.SimpleNamespace(folder=out), []))
    assert all(
        f"<td>{name}</td><td>2</td>" in re.sub(r"\s*<t[dh][^>]*>", "<td>", shown.replace("</th>", "</td>"))
        for name in left[:2]
    )
    assert auto.run_auto(_config(), stream, jax.random.key(0), out, run) == composed
    # Where these do not come to an end, the next ones are asked for.
    diverging += left[:2]
    composed = auto.run_auto(_config(), stream, jax.random.key(0), tmp_path / "other", run)
    assert composed[2]["auto_leader"] == left[2]
    # An update asks for none of them: what it gets must not depend on how rows are batched.
    ended = {name: found[: 2 if name in stay else 3] for name, found in lines.items()}
    assert race.successive_halving(ended, began=7) == before


def test_a_candidate_that_diverges_leaves_and_the_others_go_on(few, finished, stream, tmp_path):
    """It serves no segment from the one on that it does not come to the end of."""
    config, key, calls = _config(), jax.random.key(0), []

    def run(name, candidate, stream, folder, segments):
        calls.append((name, segments))
        if name != race.FLOOR:
            run_segments(candidate, stream, key, folder=folder, segments=2)
            raise records.Diverged("segment 2, step 3: the loss is not finite")
        return run_segments(candidate, stream, key, folder=folder, segments=segments)

    lines = auto.run_auto(config, stream, key, tmp_path / "auto", run)
    whole = [choice["valid"] for choice in choices.read_choices(finished[1] / choices.CHOICES)["segments"]]
    content = choices.read_choices(tmp_path / "auto" / choices.CHOICES)
    assert [choice["valid"] for choice in content["segments"][:2]] == whole[:2]
    assert list(content["segments"][2]["valid"]) == [race.FLOOR] == [lines[2]["auto_leader"]]
    assert content["left_out"] == {"ials int4 uniform": "segment 2, step 3: the loss is not finite"}
    assert calls == [(name, 3) for name in few]

    def fails(*arguments):
        raise records.Diverged("segment 0, step 3: the loss is not finite")

    with pytest.raises(ValueError, match="no candidate of auto comes to an end: segment 0, step 3"):
        auto.run_auto(config, stream, key, tmp_path / "none", fails)
    with pytest.raises(ValueError, match="disk"):
        auto.run_auto(config, stream, key, tmp_path / "disk", _full)


def _full(*arguments):
    raise ValueError("the disk is full")


def test_candidates_that_do_not_fit_are_named(stream):
    every = _CANDIDATES(_config(0.5))
    fits, reasons = auto.feasible(every, stream)
    assert fits["ials int4 uniform"] == len(stream) and "ials int4 uniform" not in reasons
    assert "graph or final vectors" in reasons["lightgcn int2 frequency"] and not fits["lightgcn int2 frequency"]
    nothing = {"lightgcn int2 frequency": every["lightgcn int2 frequency"]}
    with pytest.raises(ValueError, match="no candidate"):
        auto.feasible(nothing, stream)


def test_popularity_needs_the_bytes_of_its_counts_as_others_need_theirs():
    """Four bytes an item: where there are many items, two bytes an entity do not pay for that."""
    rows = streams.synthetic(jax.random.key(0), users=36, items=240, interactions=3000)
    stream = streams.cut(rows, segments=3)
    (users, items), found = stream.known(stream.bounds[0].train), _CANDIDATES(_config(0.5))
    fits, reasons = auto.feasible(found, stream)
    assert 4 * items > 2 * (users + items) and fits["popularity"] == 0 and fits["ials int4 uniform"] == 3
    allowed = (users + items) // 2 * 4
    assert reasons["popularity"] == f"popularity-decayed at segment 0 needs {4 * items} bytes of {allowed}"
    assert auto.feasible(_CANDIDATES(_config(2)), stream).segments["popularity"] == 3


def test_who_takes_part_in_a_segment_does_not_follow_from_later_ones(few, tmp_path):
    """With constant bytes, popularity no longer fits when more items have come; it takes part until then."""
    rows = streams.synthetic(jax.random.key(0), users=60, items=200, interactions=2400, lifetime=0.3)
    rows = rows.take(np.argsort(rows.time, kind="stable"))
    longer = streams.cut(rows, rows=400)
    items = [longer.known(bounds.train)[1] for bounds in longer.bounds]
    config = dataclasses.replace(_config(), budget=Budget.megabytes(1e-6 * (4 * items[2] + 2)))
    fits = auto.feasible(auto.candidates(config), longer).segments
    assert items[2] < items[3] and fits["popularity"] == 3 and len(longer) > 4
    shorter, found = longer.first(3), []
    for number, stream in enumerate((shorter, longer)):
        auto.run_auto(config, stream, jax.random.key(0), tmp_path / str(number))
        found.append(choices.read_choices(tmp_path / str(number) / choices.CHOICES)["segments"])
    assert found[1][:3] == found[0] and "popularity" in found[1][2]["valid"]
    assert all("popularity" not in choice["valid"] for choice in found[1][3:])


def test_an_edited_choice_is_found(finished, tmp_path):
    folder = shutil.copytree(finished[1], tmp_path / "copy")
    path = folder / choices.CHOICES
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"leader": "../../elsewhere"}))
    with pytest.raises(ValueError, match="choices"):
        load(folder)
    assert config_file.read_identity(folder / "config.json")["config"]["method"] == auto.NAME


@pytest.mark.slow
def test_the_command_runs_auto_on_a_file_and_its_candidates_can_be_compared(few, data, tmp_path, capsys):
    out = tmp_path / "runs"
    flags = ["--data", str(data), "--cut.segments", "3", "--out", str(out), "--no-compilation-cache"]
    main(["run", *flags])
    printed = capsys.readouterr().out
    assert "auto serves segments by" in printed and "times the dearest" in printed
    parts = sorted(str(path) for path in (out / "auto" / choices.CANDIDATES).iterdir())
    assert len(parts) == len(few)
    main(["compare", *parts])
    compared = capsys.readouterr().out
    assert all(name in compared for name in few)
    main(["run", *flags, "--resume"])
    assert load(out / "auto").segment == 2
    rows = data.read_text().splitlines()
    last = int(rows[-1].split(",")[2])
    later = [
        f"{user},{item},{last + number}" for number, (user, item, _) in enumerate(x.split(",") for x in rows[1:1500])
    ]
    (tmp_path / "later.csv").write_text("\n".join([rows[0], *later]) + "\n")
    capsys.readouterr()
    main(["update", str(out / "auto"), "--data", str(tmp_path / "later.csv"), "--no-compilation-cache"])
    printed = capsys.readouterr().out
    assert "segment 3 is finished" in printed and "auto serves segments by" in printed and "candidates: " in printed
    assert load(out / "auto").segment == 3
    parts = choices.candidate_folders(out / "auto").values()
    assert all((folder / run_folder.SUMMARY).exists() for folder in (out / "auto", *parts))
    assert (out / "auto" / "report.html").exists()
    main(["compare", *map(str, parts)])
    main(["recommend", str(out / "auto"), "--users", rows[1].split(",")[0]])
    with pytest.raises(SystemExit):
        main(["run", *flags, "--resume"])
    assert "has been updated since the run" in capsys.readouterr().err
