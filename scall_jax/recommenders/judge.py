"""How well parameters rank on parts of a segment."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import evaluation
from scall_jax.recommenders.graph import with_chunks
from scall_jax.recommenders.lightgcn import LightGcn, embed
from scall_jax.streams import RaggedItems, Segment, sides
from scall_jax.tables.compressed.few_bits import round_rows
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params


class Judging(NamedTuple):
    """On whom the vectors of a fit are judged; static."""

    valid_users: int
    """Users of valid, at most; a random sample."""
    candidates: str
    """As in `evaluation.RankingOptions`."""


def evaluate_params(
    model: LightGcn,
    params: Params,
    layout: StorageLayout,
    segment: Segment,
    parts: Sequence[RaggedItems],
    item_bias: jax.Array,
    served_bits: int | None = None,
    **options: Unpack[evaluation.RankingOptions],
) -> list[evaluation.Metrics]:
    """Evaluate parameters on parts of a segment, each on its users.

    Args:
      model: static.
      params: of the storage, from `to_buffer`.
      layout: of the storage.
      segment: the data.
      parts: items to be found by user, such as `segment.valid` and `segment.test`.
      item_bias: f32[V], added to scores.
      served_bits: bits a coordinate of the final vectors that rank; None for float32; static.
      **options: as in `evaluation.RankingOptions`.

    Returns:
      Metrics of each part.

    Raises:
      ValueError: unknown candidates.
    """
    chex.assert_shape(item_bias, (sides(segment)[1],))
    storage = model.storage
    users = storage.nodes - item_bias.shape[0]
    items = jnp.arange(users, storage.nodes, dtype=jnp.int32)
    rows = jnp.concatenate([*(part.users for part in parts), items])
    # All parts share one propagation.
    final, _ = embed(model, params, layout, with_chunks(segment.graph), rows)
    if served_bits is not None:
        # A table says in whole blocks what is used, and a padded 0 would be given back as another number.
        width = storage.used(layout) if storage.table is None else layout.largest.max()
        final = round_rows(final, width, served_bits)
    *queries, of_items = jnp.split(final, np.cumsum([part.users.shape[0] for part in parts]))
    known, used = evaluation.KnownGraph(segment.graph, users, segment.items), storage.used(layout)
    return [
        evaluation.evaluate(vectors, of_items, item_bias, part, known, used_width=used, **options)
        for vectors, part in zip(queries, parts, strict=True)
    ]


def evaluate_vectors(
    storage: Storage,
    params: Params,
    layout: StorageLayout,
    segment: Segment,
    parts: Sequence[RaggedItems],
    item_bias: jax.Array,
    **options: Unpack[evaluation.RankingOptions],
) -> list[evaluation.Metrics]:
    """`EvaluateParams` of recommenders that rank by the vectors of their storage as they are."""
    return evaluate_params(LightGcn(storage, 0), params, layout, segment, parts, item_bias, **options)


def first_users(rows: RaggedItems, most: int) -> RaggedItems:
    """The first users of some lists, which is a random sample where they are in random order.

    Args:
      rows: item lists of B users.
      most: users, at most; static.

    Returns:
      RaggedItems of min(B, most) users.

    >>> rows = RaggedItems(jnp.array([7, 5]), jnp.array([0, 1, 3]), jnp.array([4, 2, 6]), jnp.int32(2))
    >>> first_users(rows, 1).users.tolist()
    [7]
    """
    chex.assert_rank([rows.users, rows.indptr, rows.items], 1)
    most = min(most, rows.users.shape[0])
    return RaggedItems(rows.users[:most], rows.indptr[: most + 1], rows.items, jnp.minimum(rows.count, most))
