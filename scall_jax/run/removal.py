"""Removal of a run: what it wrote to its folder is deleted, and nothing else."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from scall_jax.run import manifest
from scall_jax.run.config_file import CONFIG
from scall_jax.run.lock import NAME as LOCK
from scall_jax.run.lock import locked
from scall_jax.run.manifest import GROWING


def remove_run(folder: Path) -> None:
    """Delete what a run wrote to its folder, and nothing else.

    Args:
      folder: of a run; without config and manifest nothing is deleted.

    Raises:
      ValueError: the folder has no manifest of this version, or a link leads out of it, or another process writes to
        it; nothing has been deleted then.
    """
    if holds_something(folder):
        with held(folder):
            remove_held(folder)


def holds_something(folder: Path) -> bool:
    """Whether a folder has a config or a manifest, of a run or of what is left of one.

    Args:
      folder: which need not exist.
    """
    return (folder / CONFIG).exists() or (folder / manifest.NAME).exists()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from a run folder that is to be removed.

    Args:
      folder: of a run.

    Raises:
      ValueError: the folder has no manifest of this version, or a link leads out of it, or another process writes to
        it.
    """
    with locked(folder):
        found = manifest.read(folder)
        manifest.refuse_links(folder, [*found.files, *found.obsolete])
        yield


def remove_held(folder: Path) -> None:
    """As `remove_run`, of a folder that is `held`."""
    found = manifest.read(folder)
    if found.writing is not None:
        manifest.delete_left_over(folder, found.writing)
    names = [name for name in (*found.files, *found.obsolete) if name != CONFIG]
    manifest.delete(folder, [*names, *([GROWING] if found.writing not in (None, manifest.STREAM_NAME) else [])])
    # The config goes last: as long as it is there, an interrupted removal is recognised as a run's folder.
    manifest.delete(folder, [f"{CONFIG}.tmp", f"{manifest.NAME}.tmp", CONFIG, manifest.NAME])
    (folder / LOCK).unlink(missing_ok=True)
