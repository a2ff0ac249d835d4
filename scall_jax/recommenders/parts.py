"""A segment in equal parts on several devices: which of its arrays grow with the interactions, and how they are cut."""

import jax

from scall_jax.ops.devices import IN_PARTS, WHOLE, MeshConfig, whole_parts
from scall_jax.ops.sums import BLOCK
from scall_jax.streams import Segment
from scall_jax.tables.table import Params

ENTRIES = ("indices", "values", "ages", "repeats")
"""Arrays of a segment with a place for each entry of the graph, which lie in parts; devices have all of the others."""


def segment_parts(mesh: MeshConfig, segment: Segment) -> Segment:
    """A segment whose entries can be cut into equal parts of whole blocks.

    Args:
      mesh: the devices; static.
      segment: the data; the entries of its graph are padded with zeros, for which there is room already where they are
        enough.

    Returns:
      Segment.
    """
    graph = segment.graph
    padded = {name: whole_parts(mesh, getattr(graph, name), BLOCK) for name in ("indices", "values")}
    return segment._replace(
        graph=graph._replace(**padded),
        ages=whole_parts(mesh, segment.ages, BLOCK),
        repeats=whole_parts(mesh, segment.repeats, BLOCK),
    )


def segment_specs(segment: Segment) -> Segment:
    """How each array of a segment lies: `IN_PARTS` or `WHOLE`, as `on_devices` takes them."""
    specs = jax.tree.map(lambda _: WHOLE, segment)
    return specs._replace(
        graph=specs.graph._replace(indices=IN_PARTS, values=IN_PARTS), ages=IN_PARTS, repeats=IN_PARTS
    )


def params_parts(mesh: MeshConfig, params: Params) -> Params:
    """Parameters of a table with zeros at their end, so that they can be cut into equal parts."""
    return jax.tree.map(lambda x: whole_parts(mesh, x), params)
