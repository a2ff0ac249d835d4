"""Checkpoints after each segment: the exported storage, the planner's memory, and the key of the run."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from scall_jax.methods.state import RunState
from scall_jax.recommenders.baseline import Exporter

FORMAT = 4
"""Version of the layout on disk; a checkpoint of another version is refused."""

_PENDING = ".pending"
_TABLE, _POLICY = "table", "policy"


def _checkpointer() -> ocp.Checkpointer:
    # Compression would hide how many bytes the parameters cost on disk.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


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
      ValueError: a number to be written is not finite; the checkpoint before it stays.
    """
    known = np.asarray(state.known)
    tree = {"format": np.int32(FORMAT), "key": np.asarray(jax.random.key_data(state.key)), "known": known}
    path = folder.absolute() / _PENDING / f"segment-{segment:04d}"
    shutil.rmtree(path, ignore_errors=True)
    leaves = _leaves((state.planner, state.recommender))
    _require_finite(path, state.params, leaves)
    exported = exporter.export(state.params, state.plan, tuple(known.tolist()))
    # Orbax cannot store arrays of size 0.
    tree |= {name: array for name, array in exported.items() if array.size}
    with _checkpointer() as checkpointer:
        checkpointer.save(path / _TABLE, args=ocp.args.PyTreeSave(tree))
        if leaves:
            checkpointer.save(path / _POLICY, args=ocp.args.PyTreeSave(leaves))
    return path


def _require_finite(path: Path, params: Any, memory: Mapping[str, np.ndarray]) -> None:
    bad = [
        *("the table" for leaf in jax.tree.leaves(params) if not _fit_to_write(leaf, least=-np.finfo(np.float32).max)),
        # A search remembers -inf as the reward of probes that have not been made.
        *(f"array {name} of the search" for name, leaf in memory.items() if not _fit_to_write(leaf, least=-np.inf)),
    ]
    if bad:
        raise ValueError(
            f"{path.name}: {bad[0]} has numbers that are not finite, so that no checkpoint is written: lower "
            "fit.learning_rate or init_std"
        )


def _fit_to_write(leaf: Any, least: float) -> bool:
    """Whether an array's numbers are at least `least` and below infinity, which nan is not."""
    array = np.asarray(leaf)
    return not jnp.issubdtype(array.dtype, jnp.floating) or bool(((array >= least) & (array < np.inf)).all())


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    """Leaves of the planner's memory by number, without those of size 0, which Orbax cannot store."""
    return {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf.size}


def _from_leaves(path: Path, template: Any, stored: Mapping[str, Any]) -> Any:
    leaves, structure = jax.tree.flatten(template)
    restored = []
    for i, leaf in enumerate(leaves):
        value = np.asarray(stored[f"{i:04d}"]) if leaf.size and f"{i:04d}" in stored else np.zeros(0, leaf.dtype)
        if value.size != leaf.size:
            raise ValueError(
                f"{path}: array {i} of the search has {value.size} numbers, this policy needs {leaf.size}: "
                "continue with the policy that wrote it, or choose another folder"
            )
        restored.append(jnp.asarray(value.reshape(leaf.shape)))
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
    path = folder.absolute() / f"segment-{segment:04d}"
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(path / _TABLE)
        memory = checkpointer.restore(path / _POLICY) if (path / _POLICY).exists() else {}
    if int(tree["format"]) != FORMAT:
        raise ValueError(
            f"{path}: checkpoint format {int(tree['format'])}, this version reads {FORMAT}: "
            "start the run anew in another folder"
        )
    known = np.asarray(tree["known"])
    exported = {name: np.asarray(x) for name, x in tree.items() if name not in ("format", "key", "known")}
    try:
        params, plan = exporter.restore(exported, tuple(known.tolist()))
    except ValueError as error:
        raise ValueError(f"{path}: does not fit this stream and budget: {error}") from None
    planner, recommender = _from_leaves(path, (template.planner, template.recommender), memory)
    return RunState(
        key=jax.random.wrap_key_data(jnp.asarray(tree["key"]), impl=jax.random.key_impl(template.key)),
        params=params,
        plan=plan,
        known=jnp.asarray(known),
        totals=template.totals,
        planner=planner,
        recommender=recommender,
        capacity=template.capacity,
    )


def table_bytes(path: Path) -> int:
    """Bytes on disk of a checkpoint's parameters, sizes and key."""
    return _bytes(path / _TABLE)


def policy_bytes(path: Path) -> int:
    """Bytes on disk of a checkpoint's planner memory; 0 where the planner remembers nothing."""
    return _bytes(path / _POLICY)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
