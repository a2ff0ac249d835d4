"""Method auto: several ways to spend one budget run side by side, and the one that leads on valid so far serves.

A candidate is a recommender, a storage, a rule for sizes, and whether items have a bias. All have the same budget,
which pays for all that serving needs. After each segment's training the leader is the candidate whose validation
metrics so far, this segment's among them and earlier ones fading, are best (follow the leader: Kalai and Vempala,
Efficient algorithms for online decision problems, 2005); the segment's test part is served by it. From the third
segment on half of the candidates, those that trail, then leave, until three are left (successive halving: Jamieson and
Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, 2016). A candidate leaves, too, at
the first segment whose budget it does not fit into, or that it does not come to an end of. Candidates do not depend on
each other, so that every one of them is a run with a folder of its own, and the choice follows from their lines of
metrics.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from scall_jax import tables
from scall_jax.config import Config
from scall_jax.methods.embedding_phases import budget_totals
from scall_jax.methods.registry import BASELINES
from scall_jax.run import config_file, manifest, removal, text_files
from scall_jax.run import folder as run_folder
from scall_jax.run.choices import (
    CANDIDATES,
    CHOICES,
    candidate_folder,
    choices_path,
    held_candidates,
    places,
    remove_held_candidates,
)
from scall_jax.run.leaders import Parts, composed_lines, copy_results, text_of
from scall_jax.run.lock import NAME as LOCK
from scall_jax.run.lock import locked
from scall_jax.run.loop import run_segments
from scall_jax.run.race import FLOOR, LEAST, Choice, Lines, standings, successive_halving, survivors
from scall_jax.run.records import Diverged
from scall_jax.run.step import Run, make_run
from scall_jax.streams import Growing, Stream

NAME = "auto"
"""Name of the method."""

_NARROWEST = 16
"""Columns from which on conjugate gradients solve, where the solver is not chosen by hand."""


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


class Feasible(NamedTuple):
    """Which candidates fit into the budget, and how far."""

    segments: dict[str, int]
    """By candidate how many of the first segments it fits into; all candidates."""
    reasons: dict[str, str]
    """By candidate why it does not fit into the next one; those that fit into all are left out."""


def feasible(found: Mapping[str, Config], stream: Stream) -> Feasible:
    """How far the serving of candidates fits into the budget; rows that come later change nothing in that.

    Args:
      found: candidates by name.
      stream: of the run.

    Returns:
      Feasible.

    Raises:
      ValueError: none fits into some segment; with the reason of each.
    """
    segments, reasons = {}, {}
    for name, config in found.items():
        segments[name], reason = _fits(config, stream)
        if reason:
            reasons[name] = reason
    if max(segments.values()) < len(stream):
        raise ValueError("no candidate of auto fits into the budget: " + "; ".join(reasons.values()))
    return Feasible(segments, reasons)


def _fits(config: Config, stream: Stream) -> tuple[int, str]:
    """How many of the first segments a candidate fits into, and why not into the next one; empty if there is none."""
    reason = _refusal(config, stream)
    if not reason:
        return len(stream), ""
    fitting, beyond = 0, len(stream)
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        found = _refusal(config, stream.first(middle))
        fitting, beyond, reason = (fitting, middle, found) if found else (middle, beyond, reason)
    return fitting, reason


def _refusal(config: Config, stream: Stream) -> str:
    """Why a candidate does not fit into all segments of a stream; empty if it does."""
    run = make_run(config)
    try:
        if config.method not in BASELINES:
            jax.eval_shape(lambda key: run.init(key, stream), jax.random.key(0))
            return ""
    except ValueError as error:
        return str(error)
    return next(filter(None, (_beyond(config, run, stream, t) for t in range(len(stream)))), "")


def _beyond(config: Config, run: Run, stream: Stream, t: int) -> str:
    """Why a baseline, which no budget bounds by itself, does not fit into a segment; empty if it does."""
    state = run.init(jax.random.key(0), stream)
    known, books = stream.known(stream.bounds[t].train), run.method.bookkeeping(state, stream)
    exported = books.exporter.export(state.params, state.plan, known)
    ways = books.serves_by(state.plan, known, stream.graph_bytes(t))
    needed = sum(tables.charged(exported).values()) + min(ways.values(), default=0)
    allowed = 4 * config.budget.parameters(t, sum(known))
    return f"{config.method} at segment {t} needs {needed} bytes of {allowed}" if needed > allowed else ""


def narrowed(config: Config, stream: Stream) -> Config:
    """A candidate of one size for all, with tables of no more columns than that size takes; others as they are.

    Least squares are compiled for 16, 32, 64, ... columns, each by itself; one size for all needs one of them, which
    compiles in two thirds of the time and finds the same.

    Args:
      config: of the candidate.
      stream: of the run. A size does not grow with it, so that rows that come later need no more columns; a schedule
        of budgets may, and is left as it is.

    >>> from scall_jax import Budget, streams
    >>> stream = streams.cut(streams.synthetic(jax.random.key(0), users=60, items=40, interactions=900), segments=2)
    >>> for method in ("uniform", "gain"):
    ...     config = Config(method, Budget.mean_size(2), recommender="ials", table="packed_int4", charge="serving")
    ...     print(narrowed(config, stream).sizes.maximum)
    16
    128
    """
    if config.method != "uniform" or config.budget.steps:
        return config
    entities = [sum(stream.known(bounds.train)) for bounds in stream.bounds]
    # What serving needs beside the vectors can only take from a size, and less of it when the stream has gone on.
    totals = budget_totals(dataclasses.replace(config, charge="table"), stream)
    width = _NARROWEST
    while width < max(-(-total // n) for total, n in zip(totals, entities, strict=True)):
        width *= 2
    width = min(width, config.sizes.maximum)
    sizes = dataclasses.replace(config.sizes, maximum=width)
    return dataclasses.replace(config, sizes=sizes, ials=dataclasses.replace(config.ials, narrowest=width))


def run_auto(
    config: Config,
    stream: Stream,
    key: jax.Array,
    folder: Path,
    run: Callable[[str, Config, Stream, Path, int], Lines] | None = None,
) -> Lines:
    """Run the candidates, each in its own folder, and write what their leader served as a run.

    Candidates that trail leave after a segment (`race.survivors`). A folder that holds some of it is continued.

    Args:
      config: of the run; its method is `NAME`.
      stream, key: of all candidates.
      folder: of the run; `load` reads the model of the last segment's leader from it.
      run: run(name, config, stream, folder, segments) runs a candidate's first segments, as many, and returns their
        lines; None for `run_segments`. The stream ends where the candidate does not fit any longer.

    Returns:
      A line of metrics for each segment: that of its leader, with `auto_leader`, and the seconds of the candidates that
      were in the race for it.

    Raises:
      ValueError: as `run_segments`; no candidate fits into the budget, or comes to an end; rows have been added to the
        run since.
    """
    if not run_folder.is_new(folder):
        run_folder.refuse_updated(folder, manifest.read(folder))
    every = candidates(config)
    fits, reasons = feasible(every, stream)
    found = {name: narrowed(every[name], stream.first(count)) for name, count in fits.items() if count}
    run = run or (
        lambda name, config, stream, part, count: run_segments(config, stream, key, folder=part, segments=count)
    )
    # Each candidate locks its own folder while it runs; this lock keeps the others from being removed meanwhile.
    with locked(folder / CANDIDATES):
        try:
            return _run_candidates(config, stream, key, folder, Feasible(fits, reasons), found, run)
        finally:
            # Afterwards the folder has candidates alone, all of which can be compared by `candidates/*`.
            (folder / CANDIDATES / LOCK).unlink(missing_ok=True)


def _run_candidates(
    config: Config,
    stream: Stream,
    key: jax.Array,
    folder: Path,
    fitting: Feasible,
    found: Mapping[str, Config],
    run: Callable[[str, Config, Stream, Path, int], Lines],
) -> Lines:
    """Run candidates and write what their leader served; this process has locked the folder of the candidates."""
    fits, reasons = fitting
    if run_folder.is_new(folder):
        run_folder.start(folder, config_file.identity_of(config, stream, key))
    folders = {name: candidate_folder(folder, name) for name in found}

    def reach(name: str, count: int) -> Lines:
        try:
            made = run(name, found[name], stream.first(fits[name]), folders[name], count)
        except Diverged as error:
            # Its lines end before the segment; the others go on.
            reasons[name], made = str(error), text_files.read_lines(folders[name] / manifest.GROWING)
        # A folder that holds more segments, of a run that was not raced, is read as far.
        return made[:count]

    began = len(set(found) - {FLOOR})
    lines, chosen = _race({name: fits[name] for name in found}, began, len(stream), reach)
    if len(chosen) < len(stream):
        raise ValueError("no candidate of auto comes to an end: " + "; ".join(reasons.values()))
    parts = Parts(folders, lines, chosen, reasons, began)
    if not _is_composed(folder, parts, composed_lines(config, parts)):
        # What was composed before was of other candidates or segments. A first run has composed nothing.
        removal.remove_run(folder)
        run_folder.start(folder, config_file.identity_of(config, stream, key))
    with locked(folder), run_folder.named_errors(folder):
        return _compose(config, stream, folder, parts)


def _race(
    fits: Mapping[str, int], began: int, segments: int, reach: Callable[[str, int], Lines]
) -> tuple[dict[str, Lines], list[Choice]]:
    """Run candidates for as long as they are in the race.

    Args:
      fits: by candidate how many of the first segments it fits into; one at least.
      began: candidates without the floor.
      segments: of the stream.
      reach: reach(name, count) returns the lines of a candidate's first segments, as many, or fewer where it does not
        come to the end of one.

    Returns:
      Lines by candidate, and a choice for each segment, up to the first one that no candidate has.
    """
    lines: dict[str, Lines] = {}
    choices: list[Choice] = []
    ended: set[str] = set()

    def go_to(names: list[str], count: int) -> bool:
        lines.update({name: reach(name, count) for name in names})
        ended.update(name for name in names if len(lines[name]) < count)
        return not ended.issuperset(names)

    running = list(fits)
    for count in sorted({*_stages(began, FLOOR in fits, segments), *fits.values()}):
        if not go_to(running, count):
            # None that was left goes on: the best of those that had left, and that fit, come back.
            ranked = [name for name, _ in standings([choice._asdict() for choice in choices])]
            left = [name for name in ranked if fits[name] >= count and name not in ended]
            while left and not go_to(left[:LEAST], count):
                left = left[LEAST:]
        choices = successive_halving(lines, began, returning=True)
        if len(choices) < count:
            break
        running = [name for name in survivors(choices[-1].valid, count, began) if fits[name] > count]
    return lines, choices


def run_as_far(run: Callable[[Growing], object], new: Growing, first: int, end: int) -> Diverged | None:
    """Run segments of a candidate as far as it comes, so that it takes part in those that it comes to the end of.

    Args:
      run: runs all segments from `first` on of what it is given, or none of them.
      new: the stream as far as it has come.
      first: number of the first segment.
      end: number after the last one that the candidate fits into.

    Returns:
      The error of the first segment that it does not come to the end of; None if it comes to the end of all.
    """
    found = None
    for count in range(end, first, -1):
        # What waits does not matter to a candidate that leaves.
        part = new if count == len(new.stream) else Growing(new.stream.first(count), new.waiting)
        try:
            run(part)
        except Diverged as error:
            found = error
        else:
            break
    return found


def _stages(began: int, floor: bool, segments: int) -> list[int]:
    """Numbers of segments after which candidates leave, and that of all.

    >>> _stages(7, True, 6), _stages(2, True, 6), _stages(7, True, 1)
    ([3, 4, 6], [6], [1])
    """
    names = [FLOOR] * floor + [str(number) for number in range(began)]
    stages = []
    for count in range(1, segments):
        stay = survivors(dict.fromkeys(names, 0.0), count, began)
        stages += [count] * (len(stay) < len(names))
        names = stay
    return [*stages, segments]


def _is_composed(folder: Path, parts: Parts, lines: Lines) -> bool:
    """Whether a folder has nothing composed, or just these parts, so that it may stay as it is."""
    found = manifest.read(folder)
    path = choices_path(folder, found)
    if path is None:
        return True
    return path.read_bytes() == text_of(parts).encode() and run_folder.finished_lines(folder, found) == lines


def _compose(config: Config, stream: Stream, folder: Path, parts: Parts) -> Lines:
    """Write the leaders' lines, sizes and users' metrics as one run's, which counts as a whole; and the stream."""
    lines = composed_lines(config, parts)
    found = manifest.check(folder)
    run_folder.recover(folder, found, checkpoints=False)
    run_folder.keep_stream(folder, manifest.read(folder), stream)
    found = manifest.read(folder)
    if CHOICES not in found.files:
        names = copy_results(folder, parts)
        text_files.write_atomically(folder / manifest.GROWING, "".join(json.dumps(line) + "\n" for line in lines))
        manifest.write_durably(folder / CHOICES, text_of(parts))
        entries = manifest.entries(folder, [manifest.GROWING, CHOICES, *names])
        manifest.write(folder, found._replace(files=found.files | entries))
    return lines


def remove(folder: Path) -> None:
    """Delete what a run of auto wrote to its folder, its candidates included, and nothing else.

    Args:
      folder: of the run.

    Raises:
      ValueError: as `folder.remove_run`, of the run or of any candidate, or another process races candidates in it;
        nothing has been deleted then.
    """
    with contextlib.ExitStack() as held:
        # All of it is held before anything is deleted: the folder that another process writes to may be the last one.
        begun = removal.holds_something(folder)
        if begun:
            held.enter_context(removal.held(folder))
        found = [(place, held.enter_context(held_candidates(place))) for place in places(folder)]
        for place, parts in found:
            remove_held_candidates(place, parts)
        if begun:
            removal.remove_held(folder)
