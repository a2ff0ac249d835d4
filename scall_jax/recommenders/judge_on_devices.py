"""How well parameters rank where several devices share the work: each ranks its own users."""

import functools
from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp

from scall_jax import evaluation
from scall_jax.ops.devices import IN_PARTS, WHOLE, MeshConfig, on_devices, part_of, places
from scall_jax.ops.indexing import take
from scall_jax.recommenders.graph import own_rows
from scall_jax.recommenders.judge import evaluate_params
from scall_jax.recommenders.lightgcn import LightGcn, embed
from scall_jax.recommenders.parts import params_parts, segment_parts, segment_specs
from scall_jax.streams import RaggedItems, Segment, sides
from scall_jax.tables.layout import Layout
from scall_jax.tables.packed_parts import packed_part
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params


def evaluate_on_devices(
    mesh: MeshConfig,
    model: LightGcn,
    params: Params,
    layout: StorageLayout,
    segment: Segment,
    parts: Sequence[RaggedItems],
    item_bias: jax.Array,
    served_bits: int | None = None,
    **options: Unpack[evaluation.RankingOptions],
) -> list[evaluation.Metrics]:
    """`judge.evaluate_params` on several devices; on a single one it is that function.

    Args:
      mesh: the devices; static.
      model: with a packed table, where there are several; static.
      params, layout, segment, parts, item_bias, served_bits: as there.
      **options: as in `evaluation.RankingOptions`.

    Returns:
      Metrics of each part.

    Raises:
      ValueError: several devices, and bits.
    """
    given = params, layout, segment, parts, item_bias
    if mesh.devices == 1:
        return evaluate_params(model, *given, served_bits, **options)
    if served_bits is not None:
        raise ValueError(f"served_bits={served_bits}: several devices rank by float32: leave one of the two out")
    if not model.layers:
        return _evaluate_packed(mesh, model.storage, *given, **options)
    return _evaluate_propagated(mesh, model, *given, **options)


def _evaluate_propagated(
    mesh: MeshConfig, model: LightGcn, params, layout: Layout, segment: Segment, parts, item_bias, **options
) -> list[evaluation.Metrics]:
    """Each device keeps the final vectors of its own nodes."""
    segment, users = segment_parts(mesh, segment), sides(segment)[0]
    of_device = model._replace(storage=model.storage._replace(table=packed_part(model.table, mesh)), mesh=mesh)
    count = -(-model.table.nodes // mesh.devices)

    def own_vectors(params, layout, segment: Segment) -> jax.Array:
        graph = own_rows(mesh, segment.graph, max(sides(segment)))
        nodes = jnp.minimum(places(mesh, count), model.table.nodes - 1)
        return embed(of_device, params, layout, graph, nodes).final

    given = params_parts(mesh, params), layout, segment
    final = on_devices(mesh, own_vectors, given, (IN_PARTS, WHOLE, segment_specs(segment)), IN_PARTS)
    own = functools.partial(part_of, mesh)
    vectors = evaluation.VectorsInParts(final, IN_PARTS, own, model.table.width)
    known, used = evaluation.KnownGraph(segment.graph, users, segment.items), model.storage.used(layout)
    return [
        evaluation.evaluate_in_parts(mesh, vectors, item_bias, part, known, used_width=used, **options)
        for part in parts
    ]


def _evaluate_packed(
    mesh: MeshConfig, storage: Storage, params, layout: Layout, segment: Segment, parts, item_bias, **options
) -> list[evaluation.Metrics]:
    """Vectors rank as they are: each device reads what it needs of the others' parts of the table."""
    own, segment = functools.partial(_own_vectors, mesh), segment_parts(mesh, segment)
    held = params_parts(mesh, params), layout
    vectors = evaluation.VectorsInParts(held, (IN_PARTS, WHOLE), own, storage.width)
    known = evaluation.KnownGraph(segment.graph, sides(segment)[0], segment.items)
    used = storage.used(layout)
    return [
        evaluation.evaluate_in_parts(mesh, vectors, item_bias, part, known, used_width=used, **options)
        for part in parts
    ]


def _own_vectors(mesh: MeshConfig, held: tuple[Params, Layout], rows: jax.Array) -> jax.Array:
    """What this device's part of a packed table has of nodes i32[R]: f32[R, width], zeros for the rest."""
    params, layout = held
    at = layout.starts[:-1][None, :] + take(layout.source, rows)[:, None]
    has = at < layout.starts[1:][None, :]
    return jnp.where(has, part_of(mesh, params, jnp.where(has, at, 0)), 0.0)
