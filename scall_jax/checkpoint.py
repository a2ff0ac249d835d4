"""Checkpoints after each segment: the pool that the budget pays for, one size per entity, and the key."""

import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from scall_jax.state import RunState

FORMAT = 2
_PENDING = ".pending"
_TABLE, _POLICY = "table", "policy"
_NAME = re.compile(r"segment-(\d+)")


def _checkpointer() -> ocp.Checkpointer:
    # compression would hide what the parameters cost on disk
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def save(folder: Path, segment: int, state: RunState, users: int) -> Path:
    """Write the state after `segment` to a pending place; `publish` makes it count. `users` is the users' capacity."""
    sizes, known = np.asarray(state.sizes), np.asarray(state.known)
    stored = np.concatenate([sizes[: known[0]], sizes[users : users + known[1]], sizes[-2:]])
    params = np.asarray(state.params)
    tree = {
        "format": np.int32(FORMAT),
        "key": np.asarray(jax.random.key_data(state.key)),
        "known": known,
        # a packed pool is stored as far as it is in use; a masked table has rows and is stored whole
        "params": params[: sizes.sum()] if params.ndim == 1 else params,
        "sizes": stored.astype(np.min_scalar_type(max(1, int(stored.max(initial=0))))),
    }
    if not params.size:
        del tree["params"]  # a method without parameters; arrays of size 0 cannot be stored
    path = folder.absolute() / _PENDING / f"segment-{segment:04d}"
    shutil.rmtree(path, ignore_errors=True)
    with _checkpointer() as checkpointer:
        checkpointer.save(path / _TABLE, args=ocp.args.PyTreeSave(tree))
        leaves = _leaves(state.search)
        if leaves:
            checkpointer.save(path / _POLICY, args=ocp.args.PyTreeSave(leaves))
    return path


def _leaves(tree) -> dict[str, np.ndarray]:
    """Leaves of the search's state by number; arrays of size 0 cannot be stored."""
    return {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree)) if leaf.size}


def _from_leaves(path, template, stored):
    leaves, structure = jax.tree.flatten(template)
    restored = []
    for i, leaf in enumerate(leaves):
        value = np.asarray(stored[f"{i:04d}"]) if leaf.size and f"{i:04d}" in stored else np.zeros(0, leaf.dtype)
        if value.size != leaf.size:
            raise ValueError(f"{path}: does not fit this policy")
        restored.append(jnp.asarray(value.reshape(leaf.shape)))
    return jax.tree.unflatten(structure, restored)


def publish(path: Path) -> None:
    """Move a pending checkpoint to its place in one step and drop the older ones."""
    folder = path.parent.parent
    place = folder / path.name
    shutil.rmtree(place, ignore_errors=True)
    os.replace(path, place)
    for other in finished(folder):
        if folder / f"segment-{other:04d}" != place:
            shutil.rmtree(folder / f"segment-{other:04d}")


def finished(folder: Path) -> list[int]:
    """Segments with a complete checkpoint, ascending."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def restore(folder: Path, segment: int, template: RunState, users: int) -> RunState:
    """The state after `segment`, in the shapes of `template` (from `Run.init` on the same stream).

    Raises:
      ValueError: a checkpoint of another format, or of another stream or budget.
    """
    path = folder.absolute() / f"segment-{segment:04d}"
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(path / _TABLE)
        searched = checkpointer.restore(path / _POLICY) if (path / _POLICY).exists() else {}
    if int(tree["format"]) != FORMAT:
        raise ValueError(f"{path}: checkpoint format {int(tree['format'])}, this version reads {FORMAT}")
    known, stored, params = (np.asarray(tree.get(name, ())) for name in ("known", "sizes", "params"))
    sizes = np.zeros(template.sizes.shape, np.int32)
    if len(stored) != known.sum() + 2 or known[0] > users or len(params) > template.params.shape[0]:
        raise ValueError(f"{path}: does not fit this stream and budget")
    sizes[: known[0]] = stored[: known[0]]
    sizes[users : users + known[1]] = stored[known[0] : -2]
    sizes[-2:] = stored[-2:]
    full = np.zeros(template.params.shape, np.float32)
    full[: len(params)] = params
    return RunState(
        key=jax.random.wrap_key_data(jnp.asarray(tree["key"])),
        params=jnp.asarray(full),
        sizes=jnp.asarray(sizes),
        known=jnp.asarray(known),
        totals=template.totals,
        search=_from_leaves(path, template.search, searched),
    )


def table_bytes(path: Path) -> int:
    """Bytes on disk of a checkpoint's parameters and sizes."""
    return _bytes(path / _TABLE)


def policy_bytes(path: Path) -> int:
    """Bytes on disk of a checkpoint's search."""
    return _bytes(path / _POLICY)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def remove_run(folder: Path) -> None:
    """Delete what a run wrote to its folder, and nothing else; its config last."""
    for name in ("summary.json", "metrics.jsonl", "quality.png", "sizes.png", "memory.png", "histories.png"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "sizes", "users"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "config.json").unlink(missing_ok=True)
