"""What a run of auto has chosen, as its folder has it: who leads, and where the candidates' folders are.

`choices.json` says which candidate each segment was served by; beside it lie the candidates' folders. Both are in the
run's folder at first, and after an update that has completed segments in the folder of that update.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scall_jax.run import folder as run_folder
from scall_jax.run import manifest, records, removal, text_files
from scall_jax.run.lock import NAME as LOCK
from scall_jax.run.lock import locked
from scall_jax.run.manifest import Manifest
from scall_jax.run.race import standings

CANDIDATES = "candidates"
"""Folder of the candidates' folders, beside the choices."""

CHOICES = "choices.json"
"""Name of the file that says which candidate each segment was served by."""


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
      ValueError: as `folder.remove_run`, of any of them; nothing has been deleted then.
    """
    with held_candidates(place) as parts:
        remove_held_candidates(place, parts)


@contextlib.contextmanager
def held_candidates(place: Path) -> Iterator[list[Path]]:
    """Keep other processes from candidates that are to be removed: from each of them, and from racing them.

    Args:
      place: folder in which the folder `CANDIDATES` is.

    Yields:
      Folders of the candidates in which there is something.

    Raises:
      ValueError: as `folder.held`, of any of them, or another process races them.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(locked(place / CANDIDATES))
        parts = [part for part in sorted((place / CANDIDATES).iterdir()) if removal.holds_something(part)]
        for part in parts:
            held.enter_context(removal.held(part))
        yield parts


def remove_held_candidates(place: Path, parts: Sequence[Path]) -> None:
    """As `remove_candidates`.

    Args:
      place: folder in which the folder `CANDIDATES` is.
      parts: `held_candidates`.
    """
    for part in parts:
        removal.remove_held(part)
    (place / CANDIDATES / LOCK).unlink(missing_ok=True)
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


def latest_folders(folder: Path) -> dict[str, Path]:
    """Folders of the candidates of a run of auto that have run its last segment.

    Args:
      folder: of a run.

    Returns:
      By name, in the order of the candidates; none where the run is another.

    Raises:
      ValueError: the folder is no run's.
    """
    path = choices_path(folder)
    ran = {} if path is None else read_choices(path)["segments"][-1]["valid"]
    return {name: part for name, part in candidate_folders(folder).items() if name in ran}


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
    return text_files.require(manifest.read_json(path), names, path)


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
    lines = text_files.read_lines(folder / manifest.GROWING)
    counted = {line["segment"] for line in records.averaged(lines)}
    segments = content["segments"]
    text = [
        "auto serves segments by " + _runs([segment["leader"] for segment in segments]),
        "| candidate | segments | valid, fading | test recall@20 | served had | seconds |\n"
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, ran in standings(segments):
        shared = [segment for segment in ran if segment["segment"] in counted]
        pairs = [(segment["test"][name], segment["test"][segment["leader"]]) for segment in shared]
        own, theirs = np.mean(pairs, axis=0) if pairs else (float("nan"), float("nan"))
        valid, seconds = ran[-1]["valid"][name], content["seconds"].get(name, float("nan"))
        text.append(f"| {name} | {len(ran)} | {valid:.4f} | {_known(own)} | {_known(theirs)} | {_known(seconds, 0)} |")
    served = [segment["test"][segment["leader"]] for segment in segments if segment["segment"] in counted]
    total, dearest = sum(content["seconds"].values()), max(content["seconds"].values())
    mean = float(np.mean(served)) if served else float("nan")
    # An update knows the seconds of the candidates that it has run, and not of those that had left before.
    known = "" if all(name in content["seconds"] for name, _ in standings(segments)) else " of those that still run"
    cost = f"{total:.0f} ({total / max(dearest, 1e-9):.1f} times the dearest{known})"
    text.append(f"| served | {len(segments)} | - | {mean:.4f} | {mean:.4f} | {cost} |")
    text += [f"left out: {name}: {reason}" for name, reason in content["left_out"].items()]
    return "\n".join(text)


def _known(value: float, digits: int = 4) -> str:
    """A number, or `-` where it is not known: of segments without test users, or of candidates that left earlier.

    >>> _known(0.25), _known(float("nan"))
    ('0.2500', '-')
    """
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


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
