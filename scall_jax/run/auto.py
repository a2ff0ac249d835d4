"""Method auto: several ways to spend one budget run side by side, and the one that leads on valid so far serves.

A candidate is a recommender, a storage, a rule for sizes, and whether items have a bias. All have the same budget,
which pays for all that serving needs. After each segment's training the leader is the candidate whose validation
metrics so far, this segment's among them, are best (follow the leader: Kalai and Vempala, Efficient algorithms for
online decision problems, 2005); the segment's test part is served by it. Candidates do not depend on each other, so
that every one of them is a run with a folder of its own, and the choice follows from their lines of metrics.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scall_jax.config import Config
from scall_jax.run import folder as run_folder
from scall_jax.run import manifest, records
from scall_jax.run.lock import locked
from scall_jax.run.loop import run_segments
from scall_jax.run.step import make_run
from scall_jax.streams import Stream

NAME = "auto"
"""Name of the method."""

CANDIDATES = "candidates"
"""Folder of the candidates' folders, in that of the run."""

CHOICES = "choices.json"
"""Name of the file that says which candidate each segment was served by."""

FLOOR = "popularity"
"""The candidate without vectors."""

Lines = list[dict[str, Any]]


class Choice(NamedTuple):
    """Which candidate serves a segment."""

    segment: int
    """Number of the segment, from 0."""
    leader: str
    """The candidate that is best on all validation parts so far."""
    valid: dict[str, float]
    """By candidate the mean of Recall@20 and NDCG@20 over all validation users so far."""
    test: dict[str, float]
    """By candidate Recall@20 on the segment's test part, which no choice has seen."""


def candidates(config: Config) -> dict[str, Config]:
    """The candidates of a configuration.

    Args:
      config: of which budget, bounds of sizes, search, policy and the parameters of recommenders matter.

    Returns:
      By name a configuration whose budget pays for all that serving needs.

    >>> list(candidates(Config()))[:3]
    ['popularity', 'ials int4 uniform', 'ials int4 uniform bias']
    """

    def of(method: str, recommender: str = "ials", bits: int = 4, bias: str = "none") -> Config:
        return dataclasses.replace(
            config, method=method, recommender=recommender, table=f"packed_int{bits}", bias=bias, charge="serving"
        )

    return {
        FLOOR: of("popularity-decayed"),
        "ials int4 uniform": of("uniform"),
        "ials int4 uniform bias": of("uniform", bias="decayed"),
        "ials int4 waterfill": of("waterfill"),
        "ials int4 gain": of("gain"),
        "ials int4 gain bias": of("gain", bias="decayed"),
        "ials int2 uniform": of("uniform", bits=2),
        "lightgcn int2 frequency": of("frequency", "lightgcn", bits=2),
    }


def feasible(found: Mapping[str, Config], stream: Stream) -> tuple[dict[str, Config], dict[str, str]]:
    """The candidates whose serving fits into the budget.

    Args:
      found: candidates by name.
      stream: of the run.

    Returns:
      Those that fit, and by name why the others do not.

    Raises:
      ValueError: none fits; with the reason of each.
    """
    fitting, reasons = {}, {}
    for name, config in found.items():
        try:
            jax.eval_shape(lambda key, config=config: make_run(config).init(key, stream), jax.random.key(0))
            fitting[name] = config
        except ValueError as error:
            reasons[name] = str(error)
    if not fitting:
        raise ValueError("no candidate of auto fits into the budget: " + "; ".join(reasons.values()))
    return fitting, reasons


def follow_the_leader(lines: Mapping[str, Lines]) -> list[Choice]:
    """Choose a candidate for each segment.

    Args:
      lines: by candidate its lines of metrics, as many as segments.

    Returns:
      A choice for each segment; of candidates that are level the first one.

    >>> def line(valid, test):
    ...     return {"valid_users": 10, "valid_recall@20": valid, "valid_ndcg@20": valid, "test_recall@20": test}
    >>> found = follow_the_leader({"a": [line(0.2, 0.1), line(0.1, 0.1)], "b": [line(0.1, 0.3), line(0.3, 0.2)]})
    >>> [(choice.leader, round(choice.valid["b"], 2)) for choice in found]
    [('a', 0.1), ('b', 0.2)]
    """
    length = {len(found) for found in lines.values()}
    if len(length) != 1:
        raise ValueError(f"candidates have {sorted(length)} segments: all must have as many")
    totals, users, choices = dict.fromkeys(lines, 0.0), 0, []
    for t in range(length.pop()):
        users += next(iter(lines.values()))[t]["valid_users"]
        for name, found in lines.items():
            line = found[t]
            totals[name] += line["valid_users"] * (line["valid_recall@20"] + line["valid_ndcg@20"]) / 2
        leader = max(totals, key=lambda name: totals[name])
        means = {name: total / max(users, 1) for name, total in totals.items()}
        choices.append(Choice(t, leader, means, {name: found[t]["test_recall@20"] for name, found in lines.items()}))
    return choices


class Race(NamedTuple):
    """Which candidates run, and which of them serve."""

    alive: list[set[str]]
    """By segment the candidates that run."""
    choices: list[Choice]
    """By segment the leader among them."""


def race(lines: Mapping[str, Lines]) -> Race:
    """The choices of a race: after each segment half of the candidates leave it, those that trail on valid so far.

    Two stay to the end, and popularity beside them, which costs next to nothing.

    Args:
      lines: by candidate its lines of metrics, at least as many as it is in the race.

    Returns:
      Race. What a candidate measures after it has left matters to none of it.
    """
    names = [name for name in lines if name != FLOOR]
    alive, choices = set(lines), []
    by_segment = []
    for t in range(max(map(len, lines.values()))):
        by_segment.append(alive)
        running = {name: found[: t + 1] for name, found in lines.items() if name in alive}
        choices.append(follow_the_leader(running)[-1])
        ranked = sorted(alive & set(names), key=lambda name: (-choices[-1].valid[name], names.index(name)))
        alive = {*ranked[: max(2, -(-len(names) // 2 ** (t + 1)))], *(alive & {FLOOR})}
    return Race(by_segment, choices)


def run_auto(
    config: Config,
    stream: Stream,
    key: jax.Array,
    folder: Path,
    run: Callable[[str, Config, Path], Lines] | None = None,
) -> Lines:
    """Run all candidates, each in its own folder, and write what their leader served as a run.

    A folder that holds some of it is continued.

    Args:
      config: of the run; its method is `NAME`.
      stream, key: of all candidates.
      folder: of the run; `load` reads the model of the last segment's leader from it.
      run: run(name, config, folder) runs a candidate; None for `run_segments`.

    Returns:
      A line of metrics for each segment: that of its leader, with `auto_leader`, and the seconds of all candidates.

    Raises:
      ValueError: as `run_segments`; no candidate fits into the budget.
    """
    found, reasons = feasible(candidates(config), stream)
    run = run or (lambda name, config, folder: run_segments(config, stream, key, folder=folder))
    if run_folder.is_new(folder):
        run_folder.start(folder, run_folder.identity_of(config, stream, key))
    parts = {name: candidate_folder(folder, name) for name in found}
    lines = {name: run(name, candidate, parts[name]) for name, candidate in found.items()}
    # What was composed before, of fewer candidates or segments, is replaced.
    run_folder.remove_run(folder)
    with locked(folder):
        return _compose(config, stream, key, folder, _Parts(parts, lines, follow_the_leader(lines), reasons))


def candidate_folder(folder: Path, name: str) -> Path:
    """Folder of a candidate.

    Args:
      folder: of the run of auto.
      name: of the candidate.

    >>> candidate_folder(Path("runs/auto"), "ials int4 gain").as_posix()
    'runs/auto/candidates/ials-int4-gain'
    """
    return folder / CANDIDATES / name.replace(" ", "-")


def remove(folder: Path) -> None:
    """Delete what a run of auto wrote to its folder, its candidates included, and nothing else.

    Args:
      folder: of the run.
    """
    for name in candidates(Config()):
        run_folder.remove_run(candidate_folder(folder, name))
    run_folder.remove_run(folder)


def leader_folder(folder: Path) -> Path | None:
    """Folder of the candidate that serves after the last segment; None where the run is not one of auto.

    Args:
      folder: of a run, whose files have been checked.
    """
    path = folder / CHOICES
    if not path.exists():
        return None
    return candidate_folder(folder, run_folder.require(json.loads(path.read_text()), ["leader"], path)["leader"])


def check_leader(folder: Path, leader: Path) -> None:
    """Check that the folder in a leader's place is the leader's: it is valid in itself, whoever's it is.

    Args:
      folder: of a run of auto, whose files have been checked.
      leader: `leader_folder(folder)`, whose files have been checked.

    Raises:
      ValueError: it has measured something else than the run says of its leader.
    """
    ours, theirs = (_measured(place / manifest.GROWING) for place in (folder, leader))
    if ours != theirs:
        raise ValueError(f"{leader} is not the run that {folder / CHOICES} names: restore it, or --resume the run")


def _measured(path: Path) -> dict[str, Any]:
    """The last line of metrics, without what is added up over all candidates or differs between executions."""
    lines = run_folder.read_lines(path)
    other = {*records.VOLATILE, "bytes_training", "budget_bytes", "auto_leader"}
    return {key: value for key, value in (lines[-1] if lines else {}).items() if key not in other}


class _Parts(NamedTuple):
    """What a run of auto is made of."""

    folders: dict[str, Path]
    lines: dict[str, Lines]
    choices: list[Choice]
    reasons: dict[str, str]


_SECONDS = ("seconds_fit", "seconds_evaluate", "seconds_search", "seconds_sizes", "seconds_compile")


def _compose(config: Config, stream: Stream, key: jax.Array, folder: Path, parts: _Parts) -> Lines:
    """Write the leaders' lines, sizes and users' metrics as one run's."""
    composed: Lines = []
    run_folder.start(folder, run_folder.identity_of(config, stream, key))
    for choice in parts.choices:
        every = [lines[choice.segment] for lines in parts.lines.values()]
        line = dict(parts.lines[choice.leader][choice.segment])
        line |= {name: sum(other[name] for other in every) for name in _SECONDS}
        line |= {"peak_rss_bytes": max(other["peak_rss_bytes"] for other in every)}
        # Candidates run one after the other, so that training holds what the largest of them holds.
        line |= {"bytes_training": max(other["bytes_training"] for other in every)}
        allowed = 4 * config.budget.parameters(choice.segment, line["users"] + line["items"])
        line |= {"auto_leader": choice.leader, "budget_bytes": allowed}
        composed.append(line)
        name = f"segment-{choice.segment:04d}.npz"
        for kind in ("sizes", "users"):
            source = parts.folders[choice.leader] / kind / name
            if source.exists():
                (folder / kind).mkdir(exist_ok=True)
                shutil.copyfile(source, folder / kind / name)
    run_folder.write_atomically(folder / manifest.GROWING, "".join(json.dumps(line) + "\n" for line in composed))
    run_folder.write_atomically(folder / CHOICES, json.dumps(_choices(parts), indent=2) + "\n")
    files = [manifest.GROWING, CHOICES, *(kind for kind in ("sizes", "users") if (folder / kind).exists())]
    found = manifest.read(folder)
    manifest.write(folder, found._replace(files=found.files | manifest.entries(folder, files)))
    return composed


def _choices(parts: _Parts) -> dict[str, Any]:
    seconds = {name: sum(line[s] for line in lines for s in _SECONDS) for name, lines in parts.lines.items()}
    return {
        "leader": parts.choices[-1].leader,
        "segments": [choice._asdict() for choice in parts.choices],
        "left_out": parts.reasons,
        "seconds": seconds,
    }


def describe(folder: Path) -> str:
    """What auto chose in a run folder, and how each candidate would have fared: lines of text.

    Args:
      folder: of a finished run of auto.

    Returns:
      Text. Recall@20 of a candidate is its mean over the segments after the first with enough test users.
    """
    content = json.loads((folder / CHOICES).read_text())
    lines = run_folder.read_lines(folder / manifest.GROWING)
    counted = {line["segment"] for line in records.averaged(lines)}
    segments = content["segments"]
    last = segments[-1]["valid"]
    text = [
        "auto serves segments by " + _runs([segment["leader"] for segment in segments]),
        "| candidate | valid so far | test recall@20 | seconds |\n| --- | --- | --- | --- |",
    ]
    for name in sorted(last, key=lambda name: -last[name]):
        test = [segment["test"][name] for segment in segments if segment["segment"] in counted]
        mean = float(np.mean(test)) if test else float("nan")
        text.append(f"| {name} | {last[name]:.4f} | {mean:.4f} | {content['seconds'][name]:.0f} |")
    served = [segment["test"][segment["leader"]] for segment in segments if segment["segment"] in counted]
    total, dearest = sum(content["seconds"].values()), max(content["seconds"].values())
    mean = float(np.mean(served)) if served else float("nan")
    text.append(f"| served | - | {mean:.4f} | {total:.0f} ({total / max(dearest, 1e-9):.1f} times the dearest) |")
    text += [f"left out: {name}: {reason}" for name, reason in content["left_out"].items()]
    return "\n".join(text)


def _runs(leaders: Sequence[str]) -> str:
    """Leaders in turn, each once for the segments in a row that it led.

    >>> _runs(["a", "a", "b"])
    'a (0 to 1), b (2)'
    """
    found: list[tuple[str, int, int]] = []
    for t, leader in enumerate(leaders):
        if found and found[-1][0] == leader:
            found[-1] = (leader, found[-1][1], t)
        else:
            found.append((leader, t, t))
    return ", ".join(
        f"{name} ({first} to {last})" if first < last else f"{name} ({first})" for name, first, last in found
    )
