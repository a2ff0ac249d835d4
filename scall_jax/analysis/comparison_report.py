"""A page that shows finished runs side by side, in one self-contained file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scall_jax.analysis import about, comparison, page, pictures, report, significance
from scall_jax.analysis.comparison import FinishedRun
from scall_jax.analysis.page import Section
from scall_jax.analysis.run_report import by_segment, drawn
from scall_jax.run import records, text_files

Groups = Mapping[str, Sequence[FinishedRun]]
"""Runs by a name, one for each seed (`comparison.by_method`)."""


def write(path: Path, groups: Groups, against: str) -> Path:
    """Write the page.

    Args:
      path: of the file.
      groups: runs by name.
      against: name of the group that the others are tested against.

    Returns:
      The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text_files.write_atomically(path, build(groups, against))
    return path


def build(groups: Groups, against: str) -> str:
    """The page of a comparison.

    Args:
      groups: runs by name.
      against: name of the group that the others are tested against.

    Returns:
      HTML. Without matplotlib it has no pictures, and says so.
    """
    first = next(iter(groups.values()))[0]
    source = Path(first.identity["stream"]["source"]).name
    seeds = sorted({len(runs) for runs in groups.values()})
    of_each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    runs = "run" if of_each == "1" else "runs"
    lead = f"{len(groups)} methods, {of_each} {runs} of each, {len(first.lines)} segments."
    sections = [
        Section("Result", _result(groups)),
        Section("Tests", _tests(groups, against)),
        Section("Quality and memory", _quality(groups)),
        Section("Users", _users(groups)),
        Section("How it was made", _made(groups)),
    ]
    return page.page(f"{len(groups)} methods on {source}", lead, sections)


def _result(groups: Groups) -> list[str]:
    rows = {name: report.row_over_seeds([run.summary for run in runs]) for name, runs in groups.items()}
    header = ["method", *next(iter(rows.values()))]
    note = (
        f"Means over the segments after the first with at least {records.LEAST_USERS} test users; mean ± standard "
        f"deviation over seeds; by user: over all users of these segments; {report.COLUMNS_NOTE}."
    )
    warned = [f"Warning, {text}" for text in comparison.other_users(groups)]
    table = page.table(header, [[name, *row.values()] for name, row in rows.items()])
    return [table, *([page.bullets(warned)] if warned else []), page.text(note)]


def _tests(groups: Groups, against: str) -> list[str]:
    if len(groups) < 2:
        return []
    lines = [line.removeprefix("- ") for line in comparison.tested_against(groups, against)]
    reading = [page.text(significance.READING)] if any(", p " in line for line in lines) else []
    return [page.bullets(lines), *reading]


def _over_seeds(runs: Sequence[FinishedRun], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over seeds of a metric by segment; f64[T] both, NaN without test users."""
    values = np.array([by_segment(run, key) for run in runs])
    return values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else np.zeros(values.shape[1])


def _quality(groups: Groups) -> list[str]:
    text = "The band is the standard deviation over seeds, where there are several. The axis need not begin at 0."
    found = []
    for key, title in (("recall", "Recall@20"), ("ndcg", "NDCG@20")):
        both = {name: _over_seeds(runs, f"test_{key}@20") for name, runs in groups.items()}
        means = {name: mean for name, (mean, _) in both.items()}
        errors = {name: error for name, (_, error) in both.items() if error.any()}
        found.append((key, f"Test {title} by segment", text, _bound(means, errors, f"test {title}")))
    points = {}
    for name, runs in groups.items():
        values = [x for x in (run.summary["mean_test_recall@20"] for run in runs) if x is not None]
        if values:
            error = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            points[name] = (runs[0].summary["serving_mb"], float(np.mean(values)), error)
    if points:
        label = "MB that serving takes in the last segment"
        draw = lambda: pictures.bytes_and_quality(points, label, "test Recall@20")  # noqa: E731
        found.append(("bytes", "Quality over bytes", "Serving counts all that answers a request.", draw))
    return drawn(found)


def _bound(means: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray], label: str) -> Any:
    return lambda: pictures.quality(means, errors, label)


def _users(groups: Groups) -> list[str]:
    """A table of the quality for users by whether the segment brought them."""
    rows = []
    for name, runs in groups.items():
        cells = [name]
        for part in ("warm", "new"):
            lines = [line for run in runs for line in run.lines if line["segment"] > 0]
            users = np.array([line[f"test_{part}_users"] for line in lines], float)
            for metric in ("recall", "ndcg"):
                values = np.array([line[f"test_{part}_{metric}@20"] for line in lines])
                cells.append(f"{values @ users / users.sum():.4f}" if users.any() else "-")
            cells.append(f"{users.sum() / len(runs):,.0f}")
        rows.append(cells)
    header = ["method", *(f"{x}, {y}" for x in ("known", "new") for y in ("Recall@20", "NDCG@20", "users"))]
    note = "Means over all test users of the segments after the first: known before their segment, or new in it."
    return [page.table(header, rows), page.text(note)]


def _made(groups: Groups) -> list[str]:
    known = [about.read(run.folder) for runs in groups.values() for run in runs]
    commands = list(dict.fromkeys(x["command"] for x in known if x))
    versions = list(dict.fromkeys(json.dumps(x["versions"]) for x in known if x))
    devices = sorted({str(run.identity.get("device", "-")) for runs in groups.values() for run in runs})
    flat = {name: comparison.flat(runs[0].identity["config"]) for name, runs in groups.items()}
    differing = [key for key in next(iter(flat.values())) if len({str(x.get(key)) for x in flat.values()}) > 1]
    rows = [[name, *(str(x.get(key)) for key in differing)] for name, x in flat.items()]
    common = {key: str(value) for key, value in next(iter(flat.values())).items() if key not in differing}
    facts = {"devices": ", ".join(devices)}
    facts |= {
        f"versions {i + 1}" if i else "versions": ", ".join(f"{k} {v}" for k, v in json.loads(x).items())
        for i, x in enumerate(versions)
    }
    parts = [page.code(command) for command in commands] + [page.pairs(facts)]
    if differing:
        parts.append(page.folded("Settings that differ", page.table(["method", *differing], rows)))
    return [*parts, page.folded("Settings that are the same", page.pairs(common))]
