"""Where the arrays of a run lie: on one device, or in equal parts on several.

Parameters of the table and what a segment has for each entry of its graph are in parts; all else, which has a place for
each entity at most, is whole on every device.
"""

from typing import Any, TypeVar

import jax

from scall_jax.ops.devices import IN_PARTS, WHOLE, MeshConfig, sharding
from scall_jax.recommenders.parts import ENTRIES, segment_parts
from scall_jax.streams import Segment

T = TypeVar("T")

_IN_PARTS = ("params", *ENTRIES)
"""Fields of states, results and segments whose arrays are in parts."""


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
        return given or (whole if names.isdisjoint(_IN_PARTS) else in_parts)

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
      tree: arrays of numpy or on a device.
    """
    return tree if mesh.devices == 1 else jax.device_put(tree, shardings(mesh, tree))


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
