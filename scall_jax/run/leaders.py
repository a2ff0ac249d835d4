"""What a run of auto is made of: its candidates' runs, of which the leaders' results are put together as one run's."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from scall_jax.config import Config
from scall_jax.run import manifest
from scall_jax.run.race import Choice, Lines

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
      A line for each segment: that of its leader, with `auto_leader`, and the seconds of the candidates that were in
      the race for it.
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

    Raises:
      ValueError: the folder of a leader's run lacks one of these files.
    """
    names = []
    for choice in parts.choices[first:]:
        for kind in ("sizes", "users"):
            name = f"{kind}/segment-{choice.segment:04d}.npz"
            manifest.refuse_links(folder, [name])
            source = parts.folders[choice.leader] / name
            if not source.is_file():
                # A function of the caller may run a candidate without a folder, which then has nothing to copy.
                if not (parts.folders[choice.leader] / manifest.NAME).exists():
                    continue
                raise ValueError(
                    f"{source} is missing, of the candidate that leads segment {choice.segment}: restore the file, or "
                    "make the run anew in another folder"
                )
            (folder / kind).mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
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
