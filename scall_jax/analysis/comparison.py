"""Finished runs side by side: read from their folders, grouped over seeds, and tested against each other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scall_jax.analysis import report, significance
from scall_jax.methods.registry import BASELINES
from scall_jax.run import manifest
from scall_jax.run.config_file import read_identity
from scall_jax.run.folder import SUMMARY, finished_lines


class FinishedRun(NamedTuple):
    """A finished run, as its folder has it."""

    folder: Path
    """Where it is."""
    identity: dict[str, Any]
    """Content of config.json: `config`, `stream`, `key` and what it ran on."""
    summary: dict[str, Any]
    """Content of summary.json."""
    lines: list[dict[str, Any]]
    """Lines of metrics.jsonl, one per segment."""


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Folders of runs below some folders; a line is printed for each path that has none where others have one.

    Args:
      paths: folders of runs, or folders that have such somewhere below them. What a shell finds for `runs/*` may hold
        pages and folders of other programs too.

    Returns:
      Each folder of a run once, in the order of `paths`, those below one path by name. Runs within a run are left out.

    Raises:
      ValueError: a path that does not exist, or none that has a run.
    """
    inside = {path: _runs_below(path) for path in paths}
    empty = [path for path, runs in inside.items() if not runs]
    # A name that nothing has is mistyped.
    wrong = [path for path in empty if len(empty) == len(inside) or not path.exists()]
    if wrong:
        raise ValueError(f"{wrong[0]}: no run is in this folder or below it: name the --out of a run")
    for path in empty:
        print(f"{path}: left out, no run is in it or below it")
    return list(dict.fromkeys(run for runs in inside.values() for run in runs))


def _runs_below(path: Path) -> list[Path]:
    """Runs at or below a path; what lies within a run's own folder, such as the candidates of auto, is a part of it."""
    places = [path / manifest.NAME, *sorted(path.rglob(f"*/{manifest.NAME}"))]
    found = [x.parent for x in places if x.exists() and (x.parent / "config.json").exists()]
    return [x for x in found if not any(other in x.parents for other in found)]


def read_run(folder: Path) -> FinishedRun:
    """Read a run folder.

    Args:
      folder: of a finished run.

    Raises:
      ValueError: the run is not finished, or a file is not what the run wrote; the message names it.
    """
    found = manifest.check(folder)
    if not (folder / SUMMARY).exists():
        way = "continue it with scall-jax run --resume"
        if any(name.startswith(f"{manifest.UPDATES}/") for name in found.files):
            way = "scall-jax follow leaves it open, and scall-jax update, without --data, writes its summary"
        raise ValueError(f"{folder}: the run is not finished: {way}")
    summary = manifest.read_json(folder / SUMMARY)
    return FinishedRun(folder, read_identity(folder / "config.json"), summary, finished_lines(folder, found))


def by_method(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Group runs that differ in nothing but their seed.

    Args:
      runs: to be compared.

    Returns:
      Runs by a name: the method's, and where runs of one method differ in their configuration or their stream, the
      settings that do, or the stream.

    Raises:
      ValueError: two runs of one seed, which are no evidence of the variance over seeds.
    """
    groups: dict[tuple[str, str, str], list[FinishedRun]] = {}
    for run in runs:
        settings, stream = json.dumps(run.identity["config"], sort_keys=True), _stream_of(run)
        group = groups.setdefault((run.summary["method"], settings, stream), [])
        for other in group:
            if other.identity["key"] == run.identity["key"]:
                raise ValueError(f"{other.folder} and {run.folder} are runs of one seed: name one of them")
        group.append(run)
    named = {}
    for (method, settings, stream), members in groups.items():
        same = [key for key in groups if key[0] == method]
        own = _differing(json.loads(settings), [json.loads(text) for _, text, _ in same]) if len(same) > 1 else ""
        if len({other for _, _, other in same}) > 1:
            own += f", {stream}"
        named[method + own] = members
    return named


def _stream_of(run: FinishedRun) -> str:
    """What a run's stream is called. The fingerprint is no name: it follows from the seed, as the replay does."""
    stream = run.identity["stream"]
    return f"{Path(stream['source']).name} in {stream['segments']} segments"


def _differing(config: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The settings of a configuration that are not the same in all others, in words."""
    found = [flat(other) for other in others]
    own = flat(config)
    return "".join(f", {key} {own[key]}" for key in own if len({str(other.get(key)) for other in found}) > 1)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a configuration by their dotted names.

    >>> flat({"method": "uniform", "fit": {"steps": 3}})
    {'method': 'uniform', 'fit.steps': 3}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def table(groups: Mapping[str, Sequence[FinishedRun]]) -> str:
    """Markdown table with a row for each method, quality as mean ± standard deviation over seeds.

    Args:
      groups: as `by_method` gives them.
    """
    rows = {name: report.row_over_seeds([run.summary for run in runs]) for name, runs in groups.items()}
    header = ["method", *next(iter(rows.values()))]
    return report.markdown(header, [[name, *row.values()] for name, row in rows.items()])


def tested_against(groups: Mapping[str, Sequence[FinishedRun]], against: str) -> list[str]:
    """Markdown lines of the tests of every method against one, over users and seeds, corrected for their number.

    Args:
      groups: as `by_method` gives them.
      against: name of the one.

    Returns:
      A line for each other method that has seeds enough, and one for those that have not.
    """
    baselines = {name for name, runs in groups.items() if runs[0].identity["config"]["method"] in BASELINES}
    # A baseline comes out the same for any seed, so that one run of it is all of them.
    folders = {name: [run.folder for run in runs][: 1 if name in baselines else None] for name, runs in groups.items()}
    lonely = [name for name, runs in groups.items() if len(runs) < 2 and name not in baselines]
    others = [name for name in groups if name != against and name not in lonely]
    pairs = {f"{name} - {against}": (folders[name], folders[against]) for name in others}
    lines = significance.tested({} if against in lonely else pairs)
    if lonely:
        named = "any method" if len(lonely) + len(baselines) == len(groups) else ", ".join(lonely)
        lines.append(
            f"- no test for {named}: one seed says nothing of the variance over seeds; run others too "
            f"(--seed 1 --out ANOTHER), at least 2 of each method, and {significance.LEAST_SEEDS} for a claim"
        )
    return lines


def other_users(groups: Mapping[str, Sequence[FinishedRun]]) -> list[str]:
    """Sentences on methods whose stream or whose test users are others than those of the first method.

    Args:
      groups: as `by_method` gives them.
    """
    tested = {name: (_stream_of(runs[0]), [x["test_users"] for x in runs[0].lines]) for name, runs in groups.items()}
    first, of_first = next(iter(tested.items()))
    text = "another stream or another cut than {}: their figures cannot be compared"
    return [f"{name}: {text.format(first)}" for name, own in tested.items() if own != of_first]
