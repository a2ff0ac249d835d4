"""The packed table as one of several devices sees it, which has an equal part of each buffer.

A device that works on a block of columns has all of it, put together from the parts, and changes what lies in its own
part. Nothing but that block is ever whole.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.devices import MeshConfig, number, part_of, together
from scall_jax.ops.indexing import ceil_div, dynamic_slice, dynamic_update_slice, take
from scall_jax.tables.layout import Layout, column_and_rank
from scall_jax.tables.table import Table


def packed_part(table: Table, mesh: MeshConfig) -> Table:
    """The table on one of the devices, for functions that `devices.on_devices` calls.

    Args:
      table: a packed one, whose buffers can be cut into equal parts.
      mesh: the devices; static.

    Returns:
      Table whose buffers are this device's parts; all devices must read together. On a single device the table itself.
    """
    if mesh.devices == 1:
        return table
    return table._replace(read=functools.partial(_read, mesh), update=functools.partial(_update, mesh))


def _read(mesh: MeshConfig, part: jax.Array, layout: Layout, first, count: int) -> jax.Array:
    chex.assert_rank(part, 1)
    starts = dynamic_slice(layout.starts, (first,), (count + 1,))
    place = jnp.arange(layout.order.shape[0], dtype=jnp.int32)
    has = place[None, :] < jnp.diff(starts)[:, None]
    at = jnp.where(has, starts[:-1, None] + place[None, :], 0)
    # Each coordinate lies in one part, so that the sum is exact.
    return together(mesh, jnp.where(has, part_of(mesh, part, at), 0.0))


def _update(mesh: MeshConfig, parts, layout: Layout, first, values: jax.Array, rule, weighted_buffer=None):
    count, (length,) = values.shape[1], jax.tree.leaves(parts)[0].shape
    chex.assert_shape(values, (layout.order.shape[0], None))
    starts, own = dynamic_slice(layout.starts, (first,), (count + 1,)), number(mesh) * length
    begin, end = (jnp.clip(place - own, 0, length) for place in (starts[0], starts[-1]))
    # A CPU changes a piece that stays in its cache; on accelerators many small kernels are bound by latency.
    chunk = min(by_backend(2**13, 2**20), length)

    def change(index: jax.Array, parts):
        wanted = begin + index * chunk
        # A chunk that would end beyond the part is moved back, over places that have been changed or come before.
        at = jnp.minimum(wanted, length - chunk)
        within = at + jnp.arange(chunk, dtype=jnp.int32)
        # Some of the chunk's places may be of columns before these or after them.
        _, column, rank = column_and_rank(starts, own + within)
        vector = take(layout.order, rank)
        value = values[vector, column]
        if weighted_buffer is not None:
            weight, buffer = weighted_buffer
            value = value + take(weight, vector) * dynamic_slice(buffer, (at,), (chunk,))
        old = jax.tree.map(lambda x: dynamic_slice(x, (at,), (chunk,)), parts)
        here = (within >= wanted) & (within < end)
        new = jax.tree.map(lambda new, old: jnp.where(here, new, old), rule(old, value), old)
        return jax.tree.map(lambda x, new: dynamic_update_slice(x, new, (at,)), parts, new)

    return jax.lax.fori_loop(0, ceil_div(end - begin, chunk), change, parts)
