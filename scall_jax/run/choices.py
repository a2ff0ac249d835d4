"""What a run of auto has chosen, as its folder has it: who leads, and the leaders' results as one run's.

`choices.json` says which candidate each segment was served by; beside it lie the candidates' folders. Both are in the
run's folder at first, and after an update that has completed segments in the folder of that update.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scall_jax.config import Config
from scall_jax.run import folder as run_folder
from scall_jax.run import manifest, records
from scall_jax.run.manifest import Manifest

CANDIDATES = "candidates"
"""Folder of the candidates' folders, beside the choices."""

CHOICES = "choices.json"
"""Name of the file that says which candidate each segment was served by."""

FLOOR = "popularity"
"""The candidate without vectors, which costs next to nothing and stays."""

LEAST = 3
"""Candidates beside it that stay to the end."""

HELD = 2
"""Segments after which nobody leaves yet: the first ones have few users, of whom popularity tells the most."""

FADING = 0.5
"""Weight of what validation parts have shown so far, each time that there is a new one."""

Lines = list[dict[str, Any]]


class Choice(NamedTuple):
    """Which candidate serves a segment."""

    segment: int
    """Number of the segment, from 0."""
    leader: str
    """The candidate that is best on all validation parts so far."""
    valid: dict[str, float]
    """By candidate that ran the mean of Recall@20 and NDCG@20 over validation users, earlier segments fading."""
    test: dict[str, float]
    """By candidate Recall@20 on the segment's test part, which no choice has seen."""


def follow_the_leader(lines: Mapping[str, Lines]) -> list[Choice]:
    """Choose a candidate for each segment, of candidates that all run.

    A segment's validation users count for less with each segment after it: what is best changes as the stream goes on.

    Args:
      lines: by candidate its lines of metrics, as many as segments.

    Returns:
      A choice for each segment; of candidates that are level the first one.

    >>> def line(valid, test):
    ...     return {"valid_users": 10, "valid_recall@20": valid, "valid_ndcg@20": valid, "test_recall@20": test}
    >>> found = follow_the_leader({"a": [line(0.2, 0.1), line(0.1, 0.1)], "b": [line(0.1, 0.3), line(0.3, 0.2)]})
    >>> [(choice.leader, round(choice.valid["b"], 3)) for choice in found]
    [('a', 0.1), ('b', 0.233)]
    """
    length = {len(found) for found in lines.values()}
    if len(length) != 1:
        raise ValueError(f"candidates have {sorted(length)} segments: all must have as many")
    totals, users, choices = dict.fromkeys(lines, 0.0), 0.0, []
    for t in range(length.pop()):
        users = FADING * users + next(iter(lines.values()))[t]["valid_users"]
        for name, found in lines.items():
            totals[name] = faded([score(found[t])], totals[name])
        leader = max(totals, key=lambda name: totals[name])
        means = {name: total / max(users, 1.0) for name, total in totals.items()}
        choices.append(Choice(t, leader, means, {name: found[t]["test_recall@20"] for name, found in lines.items()}))
    return choices


def score(line: dict[str, Any]) -> float:
    """What a segment adds to a candidate; who has the most, earlier segments fading, leads.

    Args:
      line: of `metrics.jsonl`.

    Returns:
      Sum over validation users of the mean of Recall@20 and NDCG@20.
    """
    return line["valid_users"] * (line["valid_recall@20"] + line["valid_ndcg@20"]) / 2


def survivors(valid: Mapping[str, float], segments: int, began: int) -> list[str]:
    """The candidates that go on after a segment: from the one after `HELD` on half as many each time, until `LEAST` are
    left, and the floor.

    Args:
      valid: `Choice.valid` of the segment.
      segments: that have been run.
      began: candidates at the beginning, without the floor.

    Returns:
      Names, in the order of `valid`; of candidates that are level the first ones stay.

    >>> survivors({"popularity": 0.1, "a": 0.2, "b": 0.4, "c": 0.3, "d": 0.2, "e": 0.3}, segments=3, began=5)
    ['popularity', 'b', 'c', 'e']
    """
    running = sorted((name for name in valid if name != FLOOR), key=lambda name: -valid[name])
    stay = {FLOOR, *running[: max(LEAST, -(-began // 2 ** max(segments - HELD, 0)))]}
    return [name for name in valid if name in stay]


def race(lines: Mapping[str, Lines], began: int, first: int = 0) -> list[Choice]:
    """Choose a candidate for each segment, while those that trail leave.

    Args:
      lines: by candidate in the race at segment `first` its lines of metrics from segment 0 on, at least as many as it
        stays for.
      began: as in `survivors`.
      first: the first segment that is chosen for.

    Returns:
      A choice for each segment from `first` on, among those that still run. What a candidate measures after it has left
      matters to none.
    """
    choices, running = [], list(lines)
    for t in range(first, max(map(len, lines.values()))):
        choices.append(follow_the_leader({name: lines[name][: t + 1] for name in running})[-1])
        running = survivors(choices[-1].valid, t + 1, began)
    return choices


def candidate_folder(folder: Path, name: str) -> Path:
    """Folder of a candidate.

    Args:
      folder: in which the choices are.
      name: of the candidate.

    >>> candidate_folder(Path("runs/auto"), "ials int4 gain").as_posix()
    'runs/auto/candidates/ials-int4-gain'
    """
    return folder / CANDIDATES / name.replace(" ", "-")


def places(folder: Path) -> list[Path]:
    """Folders in that of a run of auto in which there are candidates: one, unless a process was killed.

    Args:
      folder: of the run.
    """
    return [
        path.parent
        for path in (folder / CANDIDATES, *(folder / manifest.UPDATES).glob(f"*/{CANDIDATES}"))
        if path.is_dir()
    ]


def remove_candidates(place: Path) -> None:
    """Delete what candidates wrote to their folders, and folders that are empty then.

    Args:
      place: folder in which the folder `CANDIDATES` is.

    Raises:
      ValueError: as `folder.remove_run`.
    """
    for part in sorted((place / CANDIDATES).iterdir()):
        run_folder.remove_run(part)
    for path in (*sorted((place / CANDIDATES).iterdir()), place / CANDIDATES, place):
        # Something else in a folder keeps it.
        with contextlib.suppress(OSError):
            path.rmdir()


def choices_path(folder: Path, found: Manifest | None = None) -> Path | None:
    """Where the choices of a run of auto are.

    Args:
      folder: of a run.
      found: its manifest; None reads it.

    Returns:
      Path of the file that counts; None where the run is not one of auto, or is not finished.
    """
    files = manifest.read(folder).files if found is None else found.files
    return next((folder / name for name in files if Path(name).name == CHOICES), None)


def candidate_folders(folder: Path, found: Manifest | None = None) -> dict[str, Path]:
    """Folders of the candidates of a run of auto.

    Args:
      folder: of a run.
      found: its manifest; None reads it.

    Returns:
      By name, in the order of the candidates; none where the run is another.

    Raises:
      ValueError: the folder is no run's.
    """
    path = choices_path(folder, found)
    names = [] if path is None else read_choices(path)["seconds"]
    return {name: candidate_folder(path.parent, name) for name in names if path is not None}


def running(content: Mapping[str, Any]) -> list[str]:
    """The candidates that go on.

    Args:
      content: of `read_choices`.

    Returns:
      Names, in the order of the candidates.
    """
    segments = content["segments"]
    return survivors(segments[-1]["valid"], len(segments), content["began"])


def faded(scores: Iterable[float], total: float = 0.0) -> float:
    """What a candidate has after some segments, by which candidates are ranked.

    Args:
      scores: `score` of each segment, in turn.
      total: before them.

    >>> faded([0.5, 0.25], total=1.0)
    0.75
    """
    for found in scores:
        total = FADING * total + found
    return total


def read_choices(path: Path) -> dict[str, Any]:
    """Read the choices.

    Args:
      path: `choices_path`.

    Returns:
      `leader`, the last one; `segments`, a `Choice` each as a dictionary; `left_out`, by candidate the reason;
      `seconds`, by candidate, in the order of the candidates; `began`, their number at the beginning without the floor.

    Raises:
      ValueError: the file lacks one of these.
    """
    names = ("leader", "segments", "left_out", "seconds", "began")
    return run_folder.require(json.loads(path.read_text(encoding="utf-8")), names, path)


def leader_folder(folder: Path, found: Manifest) -> Path | None:
    """Folder of the candidate that serves after the last segment; None where the run is not one of auto.

    Args:
      folder: of a run, whose files have been checked.
      found: its manifest.
    """
    path = choices_path(folder, found)
    return None if path is None else candidate_folder(path.parent, read_choices(path)["leader"])


def check_leader(folder: Path, leader: Path) -> None:
    """Check that the folder in a leader's place is the leader's: it is valid in itself, whoever's it is.

    Args:
      folder: of a run of auto, whose files have been checked.
      leader: `leader_folder`, whose files have been checked.

    Raises:
      ValueError: it has measured something else than the run says of its leader.
    """
    ours, theirs = (_measured(place) for place in (folder, leader))
    if ours != theirs:
        raise ValueError(f"{leader} is not the run that {folder} names as its leader: restore it, or --resume the run")


def _measured(folder: Path) -> dict[str, Any]:
    """The last line of metrics, without what is added up over all candidates or differs between executions."""
    lines = run_folder.finished_lines(folder, manifest.read(folder))
    other = {*records.VOLATILE, "bytes_training", "budget_bytes", "auto_leader"}
    return {key: value for key, value in (lines[-1] if lines else {}).items() if key not in other}


SECONDS = ("seconds_fit", "seconds_evaluate", "seconds_search", "seconds_sizes", "seconds_compile")


class Parts(NamedTuple):
    """What a run of auto is made of."""

    folders: dict[str, Path]
    """Of each candidate that is run."""
    lines: dict[str, Lines]
    """Their lines of metrics."""
    choices: list[Choice]
    """Of all segments."""
    reasons: dict[str, str]
    """By candidate why it is left out."""
    began: int
    """Candidates at the beginning, without the floor."""


def composed_lines(config: Config, parts: Parts, first: int = 0) -> Lines:
    """The leaders' lines as one run's.

    Args:
      config: of the run of auto.
      parts: what it is made of.
      first: number of the first segment that is wanted.

    Returns:
      A line for each segment: that of its leader, with `auto_leader`, and the seconds of all candidates.
    """
    composed: Lines = []
    for choice in parts.choices[first:]:
        every = [parts.lines[name][choice.segment] for name in choice.valid]
        line = dict(parts.lines[choice.leader][choice.segment])
        line |= {name: sum(other[name] for other in every) for name in SECONDS}
        line |= {"peak_rss_bytes": max(other["peak_rss_bytes"] for other in every)}
        # Candidates run one after the other, so that training holds what the largest of them holds.
        line |= {"bytes_training": max(other["bytes_training"] for other in every)}
        allowed = 4 * config.budget.parameters(choice.segment, line["users"] + line["items"])
        composed.append(line | {"auto_leader": choice.leader, "budget_bytes": allowed})
    return composed


def copy_results(folder: Path, parts: Parts, first: int = 0) -> list[str]:
    """Copy the leaders' sizes and users' metrics to the folder of a run of auto.

    Args:
      folder: of the run.
      parts: what it is made of.
      first: number of the first segment that is wanted.

    Returns:
      Paths of the files in the folder, which do not count yet.
    """
    names = []
    for choice in parts.choices[first:]:
        for kind in ("sizes", "users"):
            name = f"{kind}/segment-{choice.segment:04d}.npz"
            manifest.refuse_links(folder, [name])
            if (parts.folders[choice.leader] / name).exists():
                (folder / kind).mkdir(exist_ok=True)
                shutil.copyfile(parts.folders[choice.leader] / name, folder / name)
                names.append(name)
    return names


def text_of(parts: Parts) -> str:
    """The content of `choices.json`; see `read_choices`."""
    seconds = {name: sum(line[s] for line in lines for s in SECONDS) for name, lines in parts.lines.items()}
    content = {
        "leader": parts.choices[-1].leader,
        "segments": [choice._asdict() for choice in parts.choices],
        "left_out": parts.reasons,
        "seconds": seconds,
        "began": parts.began,
    }
    return json.dumps(content, indent=2) + "\n"


def describe(folder: Path) -> str:
    """What auto chose in a run folder, and how each candidate would have fared: lines of text.

    Args:
      folder: of a finished run of auto.

    Returns:
      Text. Recall@20 of a candidate is its mean over the segments after the first with enough test users.

    Raises:
      ValueError: the folder has no choices.
    """
    path = choices_path(folder)
    if path is None:
        raise ValueError(f"{folder} is no finished run of auto: --resume it, or name another folder")
    content = read_choices(path)
    lines = run_folder.read_lines(folder / manifest.GROWING)
    counted = {line["segment"] for line in records.averaged(lines)}
    segments = content["segments"]
    text = [
        "auto serves segments by " + _runs([segment["leader"] for segment in segments]),
        "| candidate | segments | valid, fading | test recall@20 | served had | seconds |\n"
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, stayed in standings(segments):
        shared = [segment for segment in segments[:stayed] if segment["segment"] in counted]
        pairs = [(segment["test"][name], segment["test"][segment["leader"]]) for segment in shared]
        own, theirs = np.mean(pairs, axis=0) if pairs else (float("nan"), float("nan"))
        valid, seconds = segments[stayed - 1]["valid"][name], content["seconds"].get(name, float("nan"))
        text.append(f"| {name} | {stayed} | {valid:.4f} | {_known(own)} | {_known(theirs)} | {_known(seconds, 0)} |")
    served = [segment["test"][segment["leader"]] for segment in segments if segment["segment"] in counted]
    total, dearest = sum(content["seconds"].values()), max(content["seconds"].values())
    mean = float(np.mean(served)) if served else float("nan")
    cost = f"{total:.0f} ({total / max(dearest, 1e-9):.1f} times the dearest)"
    text.append(f"| served | {len(segments)} | - | {mean:.4f} | {mean:.4f} | {cost} |")
    text += [f"left out: {name}: {reason}" for name, reason in content["left_out"].items()]
    return "\n".join(text)


def _known(value: float, digits: int = 4) -> str:
    """A number, or `-` where it is not known: of segments without test users, or of candidates that left earlier.

    >>> _known(0.25), _known(float("nan"))
    ('0.2500', '-')
    """
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def standings(segments: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Candidates from the best to the worst, and for how many segments each has run.

    Args:
      segments: of `read_choices`.

    Returns:
      Name and number: those that have run the longest first, among them by valid.

    >>> standings([{"valid": {"a": 0.1, "b": 0.3, "c": 0.2}}, {"valid": {"b": 0.2, "c": 0.3}}])
    [('c', 2), ('b', 2), ('a', 1)]
    """
    stayed = {name: t + 1 for t, segment in enumerate(segments) for name in segment["valid"]}
    return sorted(stayed.items(), key=lambda pair: (-pair[1], -segments[pair[1] - 1]["valid"][pair[0]]))


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
