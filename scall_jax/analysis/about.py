"""What a run folder says about its stream and its command, for whoever reads its report without the stream."""

import json
import platform
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scall_jax.analysis import pictures
from scall_jax.run import manifest, text_files
from scall_jax.streams import Stream

NAME = "about.json"
"""Name of the file in a run folder."""


def write(folder: Path, stream: Stream, command: str, version: str) -> None:
    """Write about.json: command, versions, times of the segments, and ids of the entities that changed the most.

    Args:
      folder: of a run, all segments of which are written.
      stream: of the run.
      command: that made it.
      version: of this package.
    """
    found = {
        "command": without_folders(command),
        "versions": {"scall_jax": version, "jax": jax.__version__, "python": platform.python_version()},
        "span": stream.span,
        "notes": [_without_folder_of(stream.source, note) for note in stream.notes],
        "interactions": len(stream.user),
        "starts": [str(np.datetime64(int(stream.time[b.start]), "ms").astype("M8[m]")) for b in stream.bounds],
        "ids": _ids(stream, pictures.read_sizes(manifest.listed(folder, "sizes"))),
    }
    text_files.write_atomically(folder / NAME, json.dumps(found, indent=1) + "\n")


def without_folders(command: str) -> str:
    """A command without the folders of absolute paths, which are nobody else's business.

    >>> without_folders("scall-jax run --data /home/ann/clicks.csv --out runs/clicks")
    'scall-jax run --data clicks.csv --out runs/clicks'
    >>> without_folders("scall-jax run --data=/home/ann/clicks.csv")
    'scall-jax run --data=clicks.csv'
    """
    return shlex.join(map(_without_folder, shlex.split(command)))


def _without_folder(word: str) -> str:
    """A word of a command; a flag may have its value behind an equals sign."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return flag + equals + (Path(value).name if value.startswith(("/", "~")) else value)


def _without_folder_of(source: str, note: str) -> str:
    """What is said of a stream, which begins with the path that it was read from."""
    return _without_folder(source) + note.removeprefix(source) if note.startswith(source) else note


def _ids(stream: Stream, steps: pictures.Sizes) -> dict[str, dict[str, str]]:
    own = {"user": stream.user_ids, "item": stream.item_ids}
    return {
        side: {str(x): str(ids[x]) for x in pictures.movers(steps, side)} if len(steps[-1][f"{side}s"]) else {}
        for side, ids in own.items()
    }


def read(folder: Path) -> dict[str, Any]:
    """Read about.json of a run folder; empty where it has none."""
    path = folder / NAME
    return manifest.read_json(path) if path.exists() else {}
