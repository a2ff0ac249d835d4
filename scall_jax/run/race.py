"""The race of candidates of auto: who serves each segment, and who leaves, by their validation metrics alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

FLOOR = "popularity"
"""The candidate without vectors, which costs next to nothing and stays."""

LEAST = 3
"""Candidates beside it that stay to the end."""

HELD = 2
"""Segments after which nobody leaves yet: the first ones have few users, of whom popularity tells the most."""

FADING = 0.5
"""Weight of what validation parts have shown so far, each time that there is a new one."""

NONE_LEFT = "a run of auto over all rows takes the best of those back that had left"
"""What is said where none of the candidates that are left goes on."""

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


def running(content: Mapping[str, Any]) -> list[str]:
    """The candidates that go on.

    Args:
      content: of `read_choices`.

    Returns:
      Names, in the order of the candidates.
    """
    segments = content["segments"]
    return survivors(segments[-1]["valid"], len(segments), content["began"])


def successive_halving(lines: Mapping[str, Lines], began: int, first: int = 0, returning: bool = False) -> list[Choice]:
    """Choose a candidate for each segment, while those that trail leave.

    Args:
      lines: by candidate in the race at segment `first` its lines of metrics from segment 0 on, at least as many as it
        stays for. One that has no line of a segment has ended before it.
      began: as in `survivors`.
      first: the first segment that is chosen for.
      returning: where all that are in the race have ended, those come back that have the segment.

    Returns:
      A choice for each segment from `first` on, among those that still run, up to the first one that none of them has.
      What a candidate measures after it has left matters to none, unless it comes back.
    """
    choices, running = [], list(lines)
    for t in range(first, max(map(len, lines.values()))):
        finished = [name for name in lines if len(lines[name]) > t]
        running = [name for name in running if name in finished] or (finished if returning else [])
        if not running:
            break
        choices.append(follow_the_leader({name: lines[name][: t + 1] for name in running})[-1])
        running = survivors(choices[-1].valid, t + 1, began)
    return choices


def standings(segments: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Candidates from the best to the worst, and what they have run.

    Args:
      segments: of `read_choices`.

    Returns:
      Name and segments that the candidate was in the race for: those that were in it the latest first, among them by
      valid.

    >>> segments = [{"valid": {"a": 0.1, "b": 0.3, "c": 0.2}}, {"valid": {"b": 0.2, "c": 0.3}}]
    >>> [(name, len(ran)) for name, ran in standings(segments)]
    [('c', 2), ('b', 2), ('a', 1)]
    """
    ran: dict[str, list[Mapping[str, Any]]] = {}
    last: dict[str, tuple[int, float]] = {}
    for t, segment in enumerate(segments):
        for name, valid in segment["valid"].items():
            ran.setdefault(name, []).append(segment)
            last[name] = (t, valid)
    return sorted(ran.items(), key=lambda pair: last[pair[0]], reverse=True)
