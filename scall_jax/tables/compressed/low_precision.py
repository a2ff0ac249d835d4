"""The packed table rounded between segments, and its simplest case, bfloat16: more coordinates for the same bytes.

Training works on the f32 pool of coordinates, which is resident only while it lasts. Between segments, on disk and when
serving, the pool is rounded; evaluation on test reads the rounded one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scall_jax.ops.indexing import ceil_div
from scall_jax.tables import size_codes
from scall_jax.tables.layout import Layout
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import all_sizes, in_equal_parts, saved_bytes, sized, sizes_in_use
from scall_jax.tables.storage import (
    Exported,
    Previous,
    Sides,
    Storage,
    StorageFactory,
    Stored,
    most_spent,
    size_bytes,
    with_room,
)


class Rounding(NamedTuple):
    """How a pool is rounded; fields as in `Storage`, but `export` and `restore` know nothing of sizes in use."""

    bits: int
    """Bits of a stored coordinate."""
    empty: Callable[[], Stored]
    store: Callable[[jax.Array, Layout], Stored]  # pool f32[capacity], layout -> stored
    load: Callable[[Stored, Layout], jax.Array]  # and back
    export: Callable[[Stored, np.ndarray], Exported]  # stored, sizes i32[M] -> arrays, trimmed
    restore: Callable[[Exported], Stored]  # and back
    reading: Callable[[jax.Array, Layout], Callable[[jax.Array], jax.Array]]
    """(Pool, layout) -> columns f32[count, M], by place, as they would be stored with the scales of this pool."""
    to_buffer: Callable[[Stored], Stored]  # stored, with room for reading past its end
    read: Callable[[Stored, Layout, ArrayLike, int], jax.Array]  # such a buffer, as `Table.read`
    round_rows: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    """As `Storage.round_rows`; a scale takes one byte."""
    load_part: Callable[[Stored, Layout, Any, int], jax.Array] | None = None
    """As `Storage.load_part`."""


def rounded(capacity: int, users: int, items: int, maximum: int, rounding: Rounding, multiple: int = 1) -> Storage:
    """Build packed storage whose pool is rounded between segments.

    Args:
      capacity: coordinates of the pool.
      users: capacity of the users' side.
      items: capacity of the items' side.
      maximum: the largest size of an entity.
      rounding: how the pool is rounded.
      multiple: as in `packed`.

    Returns:
      Storage; a budget unit is a coordinate.
    """
    table = packed(capacity, users, items, maximum, multiple)
    plain = sized(table, users, maximum)

    def warm_start(key, previous: Previous, plan, options):
        loaded = rounding.load(previous.stored, plain.layout(previous.plan))
        return plain.warm_start(key, previous._replace(stored=loaded), plan, options)

    def rounding_table(params, layout):
        rounded_columns = rounding.reading(params, layout)

        def read(buffer, layout, first, count):
            return rounded_columns(table.read(buffer, layout, first, count))

        return table._replace(read=read)

    def export(stored, plan, known) -> Exported:
        arrays = rounding.export(stored, np.asarray(plan))
        return arrays | size_codes.write(sizes_in_use(plan, users, maximum, known))

    def restore(exported, known):
        sizes = all_sizes(size_codes.read(exported, sum(known) + 2), users, users + items, known)
        if sizes.sum() > capacity:
            raise ValueError(
                f"{sizes.sum()} coordinates do not fit {capacity}:"
                " restore with the budget that the run was started with"
            )
        return jax.tree.map(jnp.asarray, rounding.restore(exported)), jnp.asarray(sizes)

    return plain._replace(
        empty=rounding.empty,
        store=rounding.store,
        load=rounding.load,
        warm_start=warm_start,
        export=export,
        restore=restore,
        rounds=True,
        bits=lambda plan: rounding.bits,
        rounding=rounding_table,
        affords=functools.partial(_affords, rounding, users, maximum),
        scaled=rounding.round_rows is not None,
        round_rows=rounding.round_rows,
        load_part=rounding.load_part,
        served=table._replace(to_buffer=rounding.to_buffer, read=rounding.read),
    )


def _affords(rounding: Rounding, users: int, maximum: int, plan, total, known, metadata):
    saved = saved_bytes(users, maximum, plan, known) if metadata else jnp.int32(0)
    if rounding.round_rows is not None:
        # Where coordinates are fewer than vectors, a scale for each of them has been paid for.
        saved = saved + jnp.minimum(known.sum() + 2, total) - (plan > 0).sum(dtype=jnp.int32)
        # Coordinates come in groups of 8, of as many bytes as one has bits.
        return 8 * (ceil_div(total, 8) + saved // rounding.bits)
    return total + 8 * saved // rounding.bits


def _to_bfloat16(x: jax.Array) -> jax.Array:
    # Compilers may leave out a conversion there and back, but not what lowers precision.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)


def _bfloat16(multiple: int, capacity: int, users: int, items: int, maximum: int) -> Storage:
    table = packed(capacity, users, items, maximum, multiple)

    def export(stored, sizes):
        return {"parameters": np.asarray(stored).view(np.uint16)[: sizes.sum()]}

    def restore(arrays):
        pool = np.zeros(capacity, np.uint16)
        written = arrays.get("parameters", pool[:0])
        pool[: len(written)] = written
        return pool.view(jnp.bfloat16)

    rounding = Rounding(
        bits=16,
        empty=lambda: jnp.zeros(capacity, jnp.bfloat16),
        store=lambda pool, layout: _to_bfloat16(pool),
        load=lambda stored, layout: stored.astype(jnp.float32),
        export=export,
        restore=restore,
        reading=lambda pool, layout: lambda columns: _to_bfloat16(columns).astype(jnp.float32),
        to_buffer=table.to_buffer,
        read=lambda buffer, layout, first, count: table.read(buffer, layout, first, count).astype(jnp.float32),
    )
    return rounded(capacity, users, items, maximum, rounding, multiple)


def _bfloat16_units(nbytes: int, entities: Sides, maximum: int, metadata: bool) -> int:
    return (nbytes - (size_bytes(maximum) * (sum(entities) + 2) if metadata else 0)) // 2


PACKED_BFLOAT16 = in_equal_parts(
    with_room(StorageFactory(_bfloat16_units, most_spent, functools.partial(_bfloat16, 1)), 2.0, scaled=False),
    _bfloat16,
)
"""2 bytes a coordinate."""
