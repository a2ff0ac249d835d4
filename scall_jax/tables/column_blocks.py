"""Tables in strips: a few columns of all vectors at a time, up to the largest size in use, so that no array of
nodes x width exists."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import ceil_div, div, take
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
    return _whole(table, shared_max(layout.largest).max())


def _whole(table, columns):
    narrowest = table.widths[-1]
    return ceil_div(columns, narrowest) * narrowest


def block_counts(widths: tuple[int, ...], used: jax.Array, room: jax.Array | int) -> list[jax.Array]:
    """How many strips of each width, descending, cover `used` columns of a table that has `room` for so many; i32[].

    The widest strips as long as they fill, then a narrower one where the rest is at most half as wide.
    """
    counts = []
    for width in widths:
        # three quarters of a strip are worth a whole one; the narrowest kind takes all that is left
        more = width // 4 if width > widths[-1] else width - 1
        counts.append(jnp.minimum(div(jnp.maximum(used + more, 0), width), div(room, width)))
        used, room = used - counts[-1] * width, room - counts[-1] * width
    return counts


def columns_of(widths: tuple[int, ...], counts: list[jax.Array]) -> jax.Array:
    """Columns that so many strips cover; i32[]."""
    return sum(width * count for width, count in zip(widths, counts, strict=True))


def sided_counts(table: Table, layout, widths=None) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """Strips of each width over the columns that both sides have, over those that one side alone has, and that side.

    Returns:
      (i32[] each, i32[] each, i32[]: 1 for users, 2 for items).
    """
    widths = widths or table.widths
    largest = shared_max(layout.largest)
    common = block_counts(widths, _whole(table, largest.min()), table.width)
    covered = columns_of(widths, common)
    alone = block_counts(widths, _whole(table, largest.max()) - covered, table.width - covered)
    return common, alone, 1 + jnp.argmax(largest).astype(jnp.int32)


def over_column_blocks(table: Table, layout, body: Callable[[jax.Array, int, Any], Any], carry, widths=None):
    """Fold `body(first column, columns, carry)` over the columns in use, in strips of static widths.

    `widths`, descending, are the table's if not given.
    """
    return over_sided_column_blocks(
        table, layout, lambda first, count, side, carry: body(first, count, carry), carry, widths
    )


def over_sided_column_blocks(
    table: Table, layout, body: Callable[[jax.Array, int, jax.Array, Any], Any], carry, widths=None
):
    """Fold `body(first column, columns, side, carry)` as `over_strips` does.

    `side` i32[] is 0 where both sides have vectors as long, 1 where users alone have, 2 where items alone have.
    """
    widths = widths or table.widths
    common, alone, longer = sided_counts(table, layout, widths)
    first, further = jnp.int32(0), columns_of(widths, common)
    for width, here, beyond in zip(widths, common, alone, strict=True):

        def block(i, carry, first=first, further=further, here=here, width=width):
            is_common = i < here
            at = jnp.where(is_common, first + i * width, further + (i - here) * width)
            return body(at, width, jnp.where(is_common, 0, longer), carry)

        # one loop for both kinds: each body is compiled by itself
        carry = jax.lax.fori_loop(0, here + beyond, block, carry)
        first, further = first + here * width, further + beyond * width
    return carry


def gather(table: Table, buffer, layout, first, count: int) -> jax.Array:
    """Columns of all nodes' embeddings; f32[N, count]."""
    return take(table.read(buffer, layout, first, count).T, table.source(layout, first))


def gather_all(table: Table, buffer, layout, first, count: int) -> jax.Array:
    """Columns of all nodes' embeddings and of the two shared vectors; f32[M, count]."""
    order = table.order(layout)
    shared = jnp.stack([jnp.argmax(order == table.nodes), jnp.argmax(order == table.nodes + 1)])
    return take(table.read(buffer, layout, first, count).T, jnp.concatenate([table.source(layout, first), shared]))


def write(table: Table, buffer, layout, first, values: jax.Array):
    """Put columns of all vectors, f32[M, count] by vector; what a vector does not have is dropped."""
    return table.update(buffer, layout, first, values, lambda old, value: value)
