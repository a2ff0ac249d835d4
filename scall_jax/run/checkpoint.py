"""Checkpoints after each segment: the exported storage, the planner's memory, and the key of the run."""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from scall_jax.methods.state import RunState
from scall_jax.recommenders.baseline import Exporter
from scall_jax.run import processes
from scall_jax.run.manifest import FINISHED_IS_KEPT
from scall_jax.run.records import Diverged
from scall_jax.tables.storage import Exported

FORMAT = 4
"""Version of the layout on disk; a checkpoint of another version is refused."""

_PENDING = ".pending"
_TABLE, _POLICY = "table", "policy"


def _checkpointer() -> ocp.Checkpointer:
    # Of several processes that share a run each reads for itself and the first one writes: nobody waits for the others.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"of-{me}"
    )
    options: dict[str, Any] = {"multiprocessing_options": alone} if processes.several() else {}
    # Compression would hide how many bytes the parameters cost on disk.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False, **options), **options)


class Snapshot(NamedTuple):
    """A state after a segment on the host: what a checkpoint holds, for storages of any capacity."""

    key: np.ndarray
    """Data of the run's key."""
    known: np.ndarray
    """i32[2], users and items that have been given sizes."""
    stored: Exported
    """What the storage exports of parameters and plan."""
    memory: dict[str, np.ndarray]
    """Leaves of what planner and recommender remember, by number, without those of size 0."""


def snapshot(state: RunState, exporter: Exporter, where: str = "a model") -> Snapshot:
    """Copy a state to the host.

    Args:
      state: after a segment.
      exporter: of the storage, which turns parameters and plan into named arrays.
      where: name used in messages.

    Raises:
      ValueError: a number is not finite.
    """
    known, memory = np.array(state.known), _leaves((state.planner, state.recommender))
    _require_finite(where, state.params, memory)
    stored = exporter.export(state.params, state.plan, tuple(known.tolist()))
    return Snapshot(
        key=np.array(jax.random.key_data(state.key)),
        known=known,
        stored={name: np.array(array) for name, array in stored.items()},
        memory=memory,
    )


def revive(found: Snapshot, template: RunState, exporter: Exporter, where: str = "a model") -> RunState:
    """The state that a snapshot was made of.

    Args:
      found: the snapshot.
      template: a state of the same run on the same stream, or on one that begins alike, which gives the shapes.
      exporter: of the template's storage, which turns named arrays into parameters and plan.
      where: name used in messages.

    Raises:
      ValueError: the snapshot belongs to another stream, budget or policy.
    """
    try:
        params, plan = exporter.restore(found.stored, tuple(found.known.tolist()))
    except ValueError as error:
        raise ValueError(f"{where}: does not fit this stream and budget: {error}") from None
    planner, recommender = _from_leaves(where, (template.planner, template.recommender), found.memory)
    return RunState(
        key=jax.random.wrap_key_data(jnp.asarray(found.key), impl=jax.random.key_impl(template.key)),
        params=params,
        plan=plan,
        known=jnp.asarray(found.known),
        totals=template.totals,
        planner=planner,
        recommender=recommender,
        capacity=template.capacity,
    )


def save(folder: Path, segment: int, state: RunState, exporter: Exporter) -> Path:
    """Write the state after a segment to a pending place, where no reader looks until `publish` moves it.

    Args:
      folder: of the run's checkpoints.
      segment: number of the segment that the state comes after, from 0.
      state: to be written; its arrays are copied to the host.
      exporter: of the storage, which turns parameters and plan into named arrays.

    Returns:
      The pending folder, to be given to `publish`.

    Raises:
      ValueError: a number to be written is not finite, or the place cannot be written; the checkpoint before it stays.
    """
    found = snapshot(state, exporter, f"segment-{segment:04d}")
    tree = {"format": np.int32(FORMAT), "key": found.key, "known": found.known}
    path = folder.absolute() / _PENDING / f"segment-{segment:04d}"
    shutil.rmtree(path, ignore_errors=True)
    # Orbax cannot store arrays of size 0.
    tree |= {name: array for name, array in found.stored.items() if array.size}
    with _one_line(path), _checkpointer() as checkpointer:
        checkpointer.save(path / _TABLE, args=ocp.args.PyTreeSave(tree))
        if found.memory:
            checkpointer.save(path / _POLICY, args=ocp.args.PyTreeSave(found.memory))
    return path


_LEAST = float(np.finfo(np.float32).min)


def _require_finite(where: str, params: Any, memory: Mapping[str, np.ndarray]) -> None:
    bad = [
        *("the table" for leaf in jax.tree.leaves(params) if not _fit_to_write(leaf, least=_LEAST)),
        # A search remembers -inf as the reward of probes that have not been made.
        *(f"array {name} of the search" for name, leaf in memory.items() if not _fit_to_write(leaf, least=-np.inf)),
    ]
    if bad:
        raise Diverged(
            f"{where}: {bad[0]} has numbers that are not finite, so that no checkpoint is made: lower "
            "fit.learning_rate or init_std"
        )


def _fit_to_write(leaf: Any, least: float) -> bool:
    """Whether an array's numbers are at least `least` and below infinity, which nan is not."""
    array = np.asarray(leaf)
    return not jnp.issubdtype(array.dtype, jnp.floating) or bool(((array >= least) & (array < np.inf)).all())


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Within this context, an error of Orbax's storage, which takes many lines, is one with the system's reason."""
    log = logging.getLogger("absl")

    def quiet(record: logging.LogRecord) -> bool:
        return record.levelno != logging.ERROR

    # Threads of Orbax log the same error with a traceback of their own.
    log.addFilter(quiet)
    try:
        yield
    except (ValueError, RuntimeError) as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(number[1])) if number else " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be written ({reason}): {FINISHED_IS_KEPT}") from error
    finally:
        log.removeFilter(quiet)


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    """Leaves of the planner's memory by number, without those of size 0, which Orbax cannot store."""
    return {f"{i:04d}": np.array(leaf) for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf.size}


def _from_leaves(where: str, template: Any, stored: Mapping[str, Any]) -> Any:
    leaves, structure = jax.tree.flatten(template)
    restored = []
    for i, leaf in enumerate(leaves):
        value = np.asarray(stored[f"{i:04d}"]) if leaf.size and f"{i:04d}" in stored else np.zeros(0, leaf.dtype)
        if value.size != leaf.size:
            raise ValueError(
                f"{where}: array {i} of the search has {value.size} numbers, this policy needs {leaf.size}: "
                "continue with the policy that wrote it, or choose another folder"
            )
        # A copy, since a run donates what it remembers to its programs.
        restored.append(jnp.array(value.reshape(leaf.shape)))
    return jax.tree.unflatten(structure, restored)


def publish(path: Path) -> None:
    """Move a pending checkpoint to its final place atomically.

    Args:
      path: what `save` returned.

    Raises:
      ValueError: there is something in that place, which the run did not write.
    """
    place = path.parent.parent / path.name
    try:
        os.replace(path, place)
        path.parent.rmdir()
    except OSError as error:
        raise ValueError(f"{place} cannot be written ({error.strerror}): choose another folder") from None


def discard(path: Path) -> None:
    """Delete a pending checkpoint that is not needed.

    Args:
      path: what `save` returned.
    """
    shutil.rmtree(path)
    path.parent.rmdir()


def restore(folder: Path, segment: int, template: RunState, exporter: Exporter) -> RunState:
    """Read the state after a segment.

    Args:
      folder: of the run's checkpoints.
      segment: number of a segment with a complete checkpoint.
      template: a state of the same run, from `Run.init` on the same stream, which gives the shapes.
      exporter: of the storage, which turns named arrays into parameters and plan.

    Returns:
      RunState with the shapes of `template`.

    Raises:
      ValueError: the checkpoint has another format, or belongs to another stream, budget or policy.
    """
    return revive(read(folder, segment), template, exporter, f"{folder.absolute() / f'segment-{segment:04d}'}")


def read(folder: Path, segment: int) -> Snapshot:
    """Read a checkpoint.

    Args:
      folder: of the run's checkpoints.
      segment: number of a segment with a complete checkpoint.

    Raises:
      ValueError: the checkpoint has another format.
    """
    path = folder.absolute() / f"segment-{segment:04d}"
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(path / _TABLE)
        memory = checkpointer.restore(path / _POLICY) if (path / _POLICY).exists() else {}
    if int(tree["format"]) != FORMAT:
        raise ValueError(
            f"{path}: checkpoint format {int(tree['format'])}, this version reads {FORMAT}: "
            "start the run anew in another folder"
        )
    stored = {name: np.asarray(x) for name, x in tree.items() if name not in ("format", "key", "known")}
    return Snapshot(np.asarray(tree["key"]), np.asarray(tree["known"]), stored, dict(memory))


def table_bytes(path: Path) -> int:
    """Bytes on disk of a checkpoint's parameters, sizes and key."""
    return _bytes(path / _TABLE)


def policy_bytes(path: Path) -> int:
    """Bytes on disk of a checkpoint's planner memory; 0 where the planner remembers nothing."""
    return _bytes(path / _POLICY)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
