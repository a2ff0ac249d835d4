"""A segment in equal parts on several devices: which of its arrays grow with the interactions, and how they are cut."""

import functools
from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp

from scall_jax import evaluation
from scall_jax.ops.devices import IN_PARTS, WHOLE, MeshConfig, part_of, whole_parts
from scall_jax.ops.indexing import take
from scall_jax.ops.sums import BLOCK
from scall_jax.streams import RaggedItems, Segment, sides
from scall_jax.tables.layout import Layout
from scall_jax.tables.storage import Storage
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


def _own_vectors(mesh: MeshConfig, held: tuple[Params, Layout], rows: jax.Array) -> jax.Array:
    """What this device's part of a packed table has of nodes i32[R]: f32[R, width], zeros for the rest."""
    params, layout = held
    at = layout.starts[:-1][None, :] + take(layout.source, rows)[:, None]
    has = at < layout.starts[1:][None, :]
    return jnp.where(has, part_of(mesh, params, jnp.where(has, at, 0)), 0.0)


def evaluate_packed(
    mesh: MeshConfig,
    storage: Storage,
    params: Params,
    layout: Layout,
    segment: Segment,
    parts: Sequence[RaggedItems],
    item_bias: jax.Array,
    **options: Unpack[evaluation.RankingOptions],
) -> list[evaluation.Metrics]:
    """`judge.evaluate_params` of vectors that rank by their inner products, on several devices.

    Args:
      mesh: the devices; static.
      storage: of the parameters, with a packed table.
      params, layout, segment, parts, item_bias: as there.
      **options: as in `evaluation.RankingOptions`.

    Returns:
      Metrics of each part.
    """
    own, segment = functools.partial(_own_vectors, mesh), segment_parts(mesh, segment)
    held = params_parts(mesh, params), layout
    vectors = evaluation.VectorsInParts(held, (IN_PARTS, WHOLE), own, storage.width)
    known = evaluation.KnownGraph(segment.graph, sides(segment)[0], segment.items)
    used = storage.used(layout)
    return [
        evaluation.evaluate_in_parts(mesh, vectors, item_bias, part, known, used_width=used, **options)
        for part in parts
    ]
