"""report.html: one file without anything from elsewhere, with every picture, whose figures are counted another way."""

import collections
import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from scall_jax import run_segments, streams
from scall_jax.analysis import about, comparison, page, pictures, run_report, significance
from scall_jax.cli.commands import run_command
from scall_jax.cli.main import main
from scall_jax.run import folder as run_folder
from scall_jax.run import manifest
from scall_jax.run.stream_files import read_stream
from tests.helpers import small_config, tiny_arguments

VOID = {"meta", "link", "br", "img"}


class Parsed(html.parser.HTMLParser):
    """Tags that are not closed in order, pictures by their label, ids and references of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.wrong, self.ids, self.refers, self.drawn = [], [], [], [], collections.Counter()
        self.label = ""
        self.feed(text)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        self._attributes(attrs)
        if tag == "svg":
            self.label = dict(attrs)["aria-label"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._attributes(attrs)

    def _attributes(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "srcset", "xlink:href", "data", "action"):
                self.refers.append(value)
            if name == "d":
                self.drawn[self.label] += 1

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Two methods with their reports, and the one of them on another seed."""
    root = tmp_path_factory.mktemp("made")
    flags = ["--method", "fixed", "popularity-all", "--cut.segments", "3", "--fit.layers", "0", "--report"]
    run_command(arguments=tiny_arguments(data, root / "seed0", *flags))
    other_seed(root / "seed0" / "fixed", root / "seed1" / "fixed")
    return root


def other_seed(run: Path, copy: Path) -> None:
    """A run as it may have come out for another seed: other figures, and no report."""
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    config, summary = (json.loads((copy / name).read_text()) for name in ("config.json", "summary.json"))
    (copy / "config.json").write_text(json.dumps(config | {"key": [0, 1]}))
    summary["mean_test_recall@20"] += 0.02
    (copy / "summary.json").write_text(json.dumps(summary))
    rng = np.random.default_rng(0)
    for path in (copy / "users").iterdir():
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez_compressed(path, **arrays | {"metrics": arrays["metrics"] * rng.uniform(0.8, 1.2, (1, 6))})
    files = {name for name in manifest.read(run).files if name != "report.html"}
    manifest.write(copy, manifest.EMPTY._replace(files=manifest.entries(copy, sorted(files))))


@pytest.fixture(scope="module")
def run(made):
    return comparison.read_run(made / "seed0" / "fixed")


def check_page(text: str, titles: list[str]) -> Parsed:
    """Asserts that a page is well formed and self-contained, and that it has these pictures, which are not empty."""
    parsed = Parsed(text)
    assert parsed.wrong == []
    assert [x for x in parsed.refers if not x.startswith("#") and x != "data:,"] == []
    assert {x[1:] for x in parsed.refers if x.startswith("#")} <= set(parsed.ids)
    assert [x for x, count in collections.Counter(parsed.ids).items() if count > 1] == []
    # Names of XML dialects are no references.
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text) and "@import" not in text
    assert all(x.startswith("#") for x in re.findall(r"url\(([^)]*)\)", text)) and "<script" not in text
    assert set(titles) <= set(parsed.drawn) and min(parsed.drawn.values()) > 5
    assert "/tmp/" not in text and len(text) < 3_000_000
    return parsed


EVERY = ["Quality on test by segment", "Test users by segment", "Budget and real bytes by segment"]
EVERY += ["New and known users", "Quality by users' activity"]
SIZED = ["Sizes by rank", "Users' sizes over segments", "Items' sizes over segments", "Who grew and who shrank"]


def test_the_report_of_a_run_is_one_whole_file_with_every_picture(made, run):
    text = (run.folder / "report.html").read_text()
    check_page(text, EVERY + SIZED)
    assert "fixed on rows.csv" in text and "Rewards" not in text
    assert f"{run.summary['mean_test_recall@20']:.4f}" in text and run.identity["stream"]["fingerprint"] in text
    assert "report.html" in manifest.check(run.folder).files
    # A baseline has no sizes.
    parsed = check_page((made / "seed0" / "popularity-all" / "report.html").read_text(), EVERY)
    assert not set(SIZED) & set(parsed.drawn)
    assert not (made / "seed1" / "fixed" / "report.html").exists()


def test_the_report_is_written_anew_from_the_folder_alone(made, run, tmp_path, capsys):
    folder = shutil.copytree(run.folder, tmp_path / "fixed")
    before = (folder / "report.html").read_text()
    (folder / "report.html").write_text("touched")
    main(["report", str(tmp_path)])
    assert (folder / "report.html").read_text() == before
    manifest.check(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["report", str(folder)])
    assert stop.value.code == 2 and "summary.json is missing" in capsys.readouterr().err


def test_what_a_killed_update_has_left_is_no_part_of_a_report_or_a_comparison(made, run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "fixed")
    manifest.write(folder, manifest.read(folder)._replace(writing="update-0001-0003-0004"))
    last = len(run.lines) - 1
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(run.lines[-1] | {"segment": last + 1}) + "\n")
    for kind in ("users", "sizes"):
        shutil.copyfile(folder / kind / f"segment-{last:04d}.npz", folder / kind / f"segment-{last + 1:04d}.npz")
    found = comparison.read_run(folder)
    assert found.lines == run.lines and len(run_report.read_steps(found)) == len(run.lines)
    assert {segment for segment, _ in significance.by_user(folder)} == set(range(1, last + 1))


def test_notes_and_flags_show_no_folder_of_anybody(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    source = "/home/ann/my data/x.csv"
    notes = (f"{source}: fields are separated by ';'", "rows far apart")
    stream = dataclasses.replace(read_stream(folder, manifest.read(folder)), source=source, notes=notes)
    about.write(folder, stream, "scall-jax run --data=/home/ann/x.csv", "0")
    text = run_report.build(run._replace(folder=folder))
    assert "/home" not in text and "my data" not in text and "--data=x.csv" in text
    assert "x.csv: fields are separated by" in text and "rows far apart" in text


def test_the_parts_of_segments_are_said_as_they_were_cut(tmp_path):
    rows = streams.synthetic(jax.random.key(3), users=40, items=30, interactions=900)
    for split, said in (((0.5, 0.25, 0.25), "first 50%"), ((0.75, 0.0, 0.25), "last 25% (test)")):
        stream = streams.cut(rows, segments=3, split=split)
        folder = tmp_path / said
        run_segments(small_config("popularity-all"), stream, jax.random.key(0), folder=folder)
        assert said in run_report._parts(folder) and ("optimistic" in run_report._parts(folder)) == (not split[1])


def test_what_a_search_did_is_shown(run):
    def searched(line):
        tried = [[0.2, 0.4, 0.6], [0.3, 0.5, 0.7]]
        return line | {"action": tried[0], "probe_actions": tried, "probe_rewards": [4.0, 7.0], "probes": 2}

    lines = [run.lines[0], *map(searched, run.lines[1:])]
    identity = run.identity | {"config": run.identity["config"] | {"method": "scall"}}
    text = run_report.build(run._replace(lines=lines, identity=identity))
    check_page(text, ["Rewards of the probes", "Actions by segment"])
    assert "users&#x27; share of the budget" in text or "users' share of the budget" in text
    assert "4 probes in all" in text
    priced = {"method": "scall-gain", "search": {"actions": "shapes"}}
    assert run_report.action_names(priced, 5) == ["users", "noise", "exponent", "mixture", "start"]
    assert run_report.action_names({"method": "bet"}, 2) == ["number 1", "number 2"]


def test_axes_by_segment_say_when_segments_start():
    def labels(starts):
        (axis,) = pictures.dated(pictures.quality({"a": np.arange(12.0)}, {}, "metric"), starts).axes
        return axis.get_xlabel(), [text.get_text() for text in axis.get_xticklabels()]

    name, found = labels([f"2020-{month:02d}-01T00:05" for month in range(1, 13)])
    assert name == "segment, and when it starts" and len(found) == 6
    assert (found[0], found[3], found[-1]) == ("0\n2020-01-01", "7\n2020-08-01", "11\n2020-12-01")
    _, found = labels([f"2020-01-01T{hour:02d}:05" for hour in range(12)])
    assert found[-1] == "11\n01-01 11:05"
    assert labels(())[0] == "segment"


MOST = {"none": 0, "1 to 5": 5, "6 to 20": 20, "21 to 100": 100, "over 100": 10**9}


def test_the_choices_of_auto_are_shown(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "auto")
    segments = [
        {"segment": t, "leader": "b", "valid": {"a": 0.1, "b": 0.2 + t}, "test": {"a": 0.3, "b": 0.4}} for t in range(3)
    ]
    content = {"leader": "b", "segments": segments, "left_out": {"c": "too large"}, "seconds": {"a": 1.0, "b": 2.0}}
    content["began"] = 2
    with run_folder.making(folder, 3, "choices.json"):
        (folder / "choices.json").write_text(json.dumps(content))
    text = run_report.build(run._replace(folder=folder))
    check_page(text, ["Candidates by their quality on valid"])
    assert (
        "<tr><td>b</td><td>3</td><td>3</td><td>2.2000</td><td>0.4000</td><td>2</td></tr>" in text
        and "c: too large" in text
    )
    config = run.identity["config"] | {"method": "auto"}
    text = run_report.build(run._replace(folder=folder, identity=run.identity | {"config": config}))
    assert text.count("of each candidate") == 3 and re.search(r"charge</t[dh]><td>serving", text)
    # Candidates lie within the folder of their run, and are no runs of their own.
    shutil.copytree(run.folder, folder / "candidates" / "a")
    assert comparison.find_runs([tmp_path]) == [folder]
    assert comparison.find_runs([folder / "candidates"]) == [folder / "candidates" / "a"]


def test_spread_and_activity_are_those_of_the_users_files(run):
    recalls = collections.defaultdict(list)
    for t in range(3):
        with np.load(run.folder / "users" / f"segment-{t:04d}.npz") as stored:
            users, recall = stored["users"], stored["metrics"][:, 0]
        assert len(users) == run.lines[t]["test_users"]
        error = (sum((x - recall.mean()) ** 2 for x in recall) / (len(recall) - 1) / len(recall)) ** 0.5
        assert run_report.spread(run, 0)[t] == pytest.approx(1.96 * error, rel=1e-4)
        with np.load(run.folder / "sizes" / f"segment-{t:04d}.npz") as stored:
            for user, value in zip(users, recall, strict=True):
                rows = stored["user_frequency"][user]
                group = next(name for name, most in MOST.items() if rows <= most)
                if t > 0:
                    recalls[group].append(float(value))
    found = run_report.by_activity(run)
    assert {name: users for name, (_, _, users) in found.items()} == {
        x: len(v) for x, v in recalls.items() if len(v) > 1
    }
    for name, (mean, _, _) in found.items():
        assert mean == pytest.approx(np.mean(recalls[name]), rel=1e-5)


def test_runs_are_compared_over_seeds_on_the_terminal_and_as_a_page(made, tmp_path, capsys):
    main(["compare", str(made), "--against", "popularity-all", "--html", str(tmp_path / "page.html")])
    printed = capsys.readouterr().out
    assert re.search(r"\| fixed +\| +2 \| 0\.\d{4} ± 0\.\d{4}", printed)
    assert re.search(r"- fixed - popularity-all: Recall@20 [+-]0\.\d{4} .*2 and any seeds", printed)
    text = (tmp_path / "page.html").read_text()
    check_page(text, ["Test Recall@20 by segment", "Test NDCG@20 by segment", "Quality over bytes"])
    assert "fixed - popularity-all: Recall@20" in text
    main(["compare", str(made / "seed0")])
    assert "- no test for any method: one seed" in capsys.readouterr().out
    # The command that ran both wrote their comparison too.
    check_page((made / "seed0" / "report.html").read_text(), ["Quality over bytes"])
    with pytest.raises(SystemExit):
        main(["compare", str(made), "--against", "fixd"])
    assert "--against fixd: did you mean fixed?" in capsys.readouterr().err


def test_paths_without_a_run_are_left_out_beside_others(tmp_path, capsys):
    run, page, sweep = tmp_path / "run", tmp_path / "page.html", tmp_path / "sweep"
    for folder in (run, sweep):
        folder.mkdir()
    for path in (run / "manifest.json", run / "config.json", page, sweep / "sweep.json"):
        path.write_text("{}")
    assert comparison.find_runs([page, run, sweep, tmp_path]) == [run]
    assert capsys.readouterr().out.splitlines() == [
        f"{x}: left out, no run is in it or below it" for x in (page, sweep)
    ]
    with pytest.raises(ValueError, match=r"page\.html: no run is in this folder"):
        comparison.find_runs([page, sweep])
    with pytest.raises(ValueError, match="nowhere: no run is in this folder"):
        comparison.find_runs([run, tmp_path / "nowhere"])


def test_runs_that_differ_in_a_setting_are_told_apart_and_other_users_are_said(run):
    other = run._replace(identity=run.identity | {"config": run.identity["config"] | {"bias": "decayed"}})
    # Another seed draws another replay, by which the fingerprint of its stream is another one.
    drawn = run.identity["stream"] | {"fingerprint": "another"}
    seed = run._replace(identity=run.identity | {"key": [0, 12345], "stream": drawn})
    groups = comparison.by_method([run, other, seed])
    assert {name: len(runs) for name, runs in groups.items()} == {"fixed, bias none": 2, "fixed, bias decayed": 1}
    # Neither a copy nor another stream is one more seed.
    with pytest.raises(ValueError, match="are runs of one seed: name one of them"):
        comparison.by_method([run, seed, run._replace(folder=run.folder.with_name("copy"))])
    streamed = run._replace(identity=run.identity | {"stream": drawn | {"source": "there/b.csv"}})
    groups = comparison.by_method([run, seed, streamed])
    name = f"fixed, b.csv in {len(run.lines)} segments"
    assert sorted(map(len, groups.values())) == [1, 2] and groups[name] == [streamed]
    (warned,) = comparison.other_users(groups)
    assert warned.startswith(f"{name}: another stream")
    fewer = run._replace(lines=[line | {"test_users": 1} for line in run.lines])
    assert comparison.other_users({"a": [run], "b": [run], "c": [fewer]}) == [
        "c: another stream or another cut than a: their figures cannot be compared"
    ]


def test_words_of_the_user_are_not_markup():
    text = page.page("a < b", "<i>", [page.Section("x & y", [page.table(["<td>"], [["</table>"]])])])
    assert Parsed(text).wrong == [] and "<i>" not in text and "&lt;/table&gt;" in text


def test_without_matplotlib_the_report_says_that_it_has_no_pictures(run, monkeypatch):
    monkeypatch.setattr(run_report.figures, "has_matplotlib", lambda: False)
    text = run_report.build(run)
    assert Parsed(text).wrong == [] and "matplotlib was not installed" in text and "<svg" not in text


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

MEASURE = """<script>
const drawn = [...document.querySelectorAll("svg")].map(x => x.getBoundingClientRect().width);
document.title = JSON.stringify({page: document.documentElement.scrollWidth, window: innerWidth, drawn: drawn});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_every_picture_within_the_page(run, tmp_path, width):
    text = (run.folder / "report.html").read_text()
    measured = tmp_path / "page.html"
    measured.write_text(re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", MEASURE))
    for path in (run.folder / "report.html", measured):
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
        ]
        options += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"]
        command = [str(BROWSER), *options, path.absolute().as_uri()]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in found.stderr
    title = re.search(r"<title>(.*?)</title>", found.stdout)
    assert title is not None
    sizes = json.loads(title[1])
    assert sizes["page"] <= sizes["window"] and len(sizes["drawn"]) == text.count("<svg")
    assert all(200 < x <= sizes["window"] for x in sizes["drawn"])
