"""What a run folder says about its stream and its command, for whoever reads its report without the stream."""

import json
import platform
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scall_jax.analysis import pictures
from scall_jax.run import folder as run_folder
from scall_jax.run import manifest
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
        "notes": list(stream.notes),
        "interactions": len(stream.user),
        "starts": [str(np.datetime64(int(stream.time[b.start]), "ms").astype("M8[m]")) for b in stream.bounds],
        "ids": _ids(stream, pictures.read_sizes(manifest.listed(folder, "sizes"))),
    }
    run_folder.write_atomically(folder / NAME, json.dumps(found, indent=1) + "\n")


def without_folders(command: str) -> str:
    """A command without the folders of absolute paths, which are nobody else's business.

    >>> without_folders("scall-jax run --data /home/ann/clicks.csv --out runs/clicks")
    'scall-jax run --data clicks.csv --out runs/clicks'
    """
    return shlex.join(Path(x).name if x.startswith(("/", "~")) else x for x in shlex.split(command))


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
