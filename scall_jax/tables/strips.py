"""Tables in strips: a few columns of all vectors at a time, up to the largest size in use, so that no array of
nodes x width exists."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scall_jax.tables.table import Table


@jax.custom_batching.custom_vmap
def shared_max(x: jax.Array) -> jax.Array:
    """Identity; under `vmap` the maximum over the mapped axis, so that loops bounded by it stay common to all lanes."""
    return x


@shared_max.def_vmap
def _shared_max(axis_size, in_batched, x):
    del axis_size
    return (x.max(0) if in_batched[0] else x), False


def used_columns(table: Table, layout) -> jax.Array:
    """Columns up to the largest size, in whole strips of the narrowest kind; i32[]."""
    narrowest = table.widths[-1]
    return -(-shared_max(layout.largest) // narrowest) * narrowest


def strip_counts(widths: tuple[int, ...], used: jax.Array) -> list[jax.Array]:
    """How many strips of each width, descending, cover `used` columns; i32[] each.

    The widest strips as long as they fill, then a narrower one where the rest is at most half as wide.
    """
    counts = []
    for width in widths:
        # three quarters of a strip are worth a whole one; the narrowest kind takes all that is left
        more = width // 4 if width > widths[-1] else width - 1
        counts.append(jnp.maximum((used + more) // width, 0))
        used = used - counts[-1] * width
    return counts


def over_strips(table: Table, layout, body: Callable[[jax.Array, int, Any], Any], carry, widths=None):
    """Fold `body(first column, columns, carry)` over the columns in use, in strips of static widths.

    `widths`, descending, are the table's if not given.
    """
    widths, first = widths or table.widths, jnp.int32(0)
    for width, count in zip(widths, strip_counts(widths, used_columns(table, layout)), strict=True):

        def strip(i, carry, begin=first, width=width):
            return body(begin + i * width, width, carry)

        carry = jax.lax.fori_loop(0, count, strip, carry)
        first = first + count * width
    return carry


def gather(table: Table, buffer, layout, first, count: int) -> jax.Array:
    """Columns of all nodes' embeddings; f32[N, count]."""
    return table.read(buffer, layout, first, count).T[table.source(layout)]


def write(table: Table, buffer, layout, first, values: jax.Array):
    """Put columns of all vectors, f32[M, count] by vector; what a vector does not have is dropped."""
    return table.update(buffer, layout, first, values[table.order(layout)].T, lambda old, value: value)
