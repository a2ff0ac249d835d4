"""Where the arrays of a run lie: on one device, or in equal parts on several.

Parameters of the table and what a segment has for each entry of its graph are in parts; all else is whole on every
device: what has a place for each entity at most, and codes in few bits, since a vector is rounded as a whole.
"""

import os
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.backend import by_backend
from scall_jax.ops.devices import IN_PARTS, WHOLE, MeshConfig, sharding
from scall_jax.recommenders.parts import ENTRIES, segment_parts
from scall_jax.run import processes
from scall_jax.streams import Segment
from scall_jax.tables.compressed.few_bits import Coded

T = TypeVar("T")

_IN_PARTS = ("params", *ENTRIES)
"""Fields of states, results and segments whose arrays are in parts."""


_THREADS = 4
"""Threads for each device that a CPU is made to be: where all wait for each other, one must be left to work."""


def check_devices(mesh: MeshConfig) -> None:
    """Check that there are so many devices.

    Args:
      mesh: of a run.

    Raises:
      ValueError: there are fewer, several processes have another number of them, or a CPU that is made to be as many
        has too few threads for them.
    """
    if processes.several() and mesh.devices != jax.device_count():
        raise ValueError(
            f"mesh devices={mesh.devices}: the {jax.process_count()} processes have {jax.device_count()} together: "
            f"give --mesh.devices {jax.device_count()} to all of them"
        )
    if mesh.devices == 1:
        return
    own = min(mesh.devices, jax.local_device_count()) if processes.several() else mesh.devices
    found, threads = jax.local_device_count(), _THREADS * own
    as_many = f"XLA_FLAGS=--xla_force_host_platform_device_count={own} " * (own > 1) + f"NPROC={threads}"
    on_cpu, kind = by_backend(True, False), jax.local_devices()[0].platform
    if own > found:
        way = f", or start the process with {as_many}, which makes a CPU as many" if on_cpu else ""
        raise ValueError(f"mesh devices={mesh.devices}: this process has {found} ({kind}): give at most {found}{way}")
    if on_cpu and _threads() < threads:
        raise ValueError(
            f"mesh devices={mesh.devices}: {_threads()} threads are too few for devices of a CPU, which would wait for "
            f"each other for ever: start each process with {as_many}"
        )


def _threads() -> int:
    """Threads of XLA's programs on a CPU."""
    given = os.environ.get("NPROC", "")
    if given.isdecimal():
        return int(given)
    # Not every system tells which of its processors a process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shardings(mesh: MeshConfig, tree: Any) -> Any:
    """Where each array of a pytree lies between programs.

    Args:
      mesh: of the run.
      tree: states, segments, what is prepared or fitted; several of them in a tuple, or fields by name.

    Returns:
      The pytree with a `jax.sharding.NamedSharding` for each array; one that has its place already keeps it.
    """
    in_parts, whole = sharding(mesh, IN_PARTS), sharding(mesh, WHOLE)

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        given = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else None
        names = {getattr(key, "name", getattr(key, "key", None)) for key in path}
        cut = not names.isdisjoint(_IN_PARTS) and names.isdisjoint(Coded._fields)
        return given or (in_parts if cut else whole)

    return jax.tree_util.tree_map_with_path(place, tree)


def shapes(mesh: MeshConfig, tree: T) -> T:
    """Shapes and dtypes of a pytree's arrays, and on several devices their places.

    Args:
      mesh: of the run.
      tree: arrays or `jax.ShapeDtypeStruct`.
    """
    if mesh.devices == 1:
        return tree
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings(mesh, tree)
    )


def put(mesh: MeshConfig, tree: T) -> T:
    """Arrays on the devices of a run.

    Args:
      mesh: of the run.
      tree: arrays of numpy or on a device; in several processes the same in all.
    """
    if mesh.devices == 1:
        return tree
    places = shardings(mesh, tree)
    return jax.tree.map(_to_all, tree, places) if processes.several() else jax.device_put(tree, places)


def _to_all(leaf: Any, place: Any) -> jax.Array:
    """An array on the devices of all processes."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return processes.to_all(leaf, place)
    data = processes.to_all(jax.random.key_data(leaf), place)
    return jax.jit(lambda data: jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf)))(data)


def on_host(mesh: MeshConfig, tree: T) -> T:
    """Arrays that this process can read whole. All processes must ask for them at the same time.

    Args:
      mesh: of the run.
      tree: arrays on the devices of a run.

    Returns:
      The tree itself, but where several processes share the run: arrays of numpy, and keys on this process's device.
    """
    if mesh.devices == 1 or not processes.several():
        return tree

    def read(leaf: jax.Array) -> Any:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return processes.whole(leaf)
        return jax.random.wrap_key_data(
            jnp.asarray(np.asarray(jax.random.key_data(leaf))), impl=jax.random.key_impl(leaf)
        )

    return jax.tree.map(read, tree)


def segment_shapes(mesh: MeshConfig, segment: Segment) -> Segment:
    """Shapes of a segment as `put_segment` gives it; on one device the segment itself."""
    if mesh.devices == 1:
        return segment
    return shapes(mesh, jax.eval_shape(lambda segment: segment_parts(mesh, segment), segment))


def put_segment(mesh: MeshConfig, segment: Segment) -> Segment:
    """A segment on the devices of a run.

    Args:
      mesh: of the run.
      segment: of numpy arrays.
    """
    if mesh.devices == 1:
        return jax.device_put(segment)
    return put(mesh, segment_parts(mesh, segment))
