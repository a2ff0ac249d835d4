"""Work on a table a block of columns at a time, up to the largest size in use, so that no array of nodes x width
exists."""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scall_jax.ops.indexing import ceil_div, div, take
from scall_jax.tables.layout import Layout
from scall_jax.tables.table import Table

Carry = TypeVar("Carry")


@jax.custom_batching.custom_vmap
def shared_max(x: jax.Array) -> jax.Array:
    """Identity; under `vmap` the maximum over the mapped axis, so that loops bounded by it are common to all lanes.

    >>> jax.vmap(shared_max)(jnp.array([3, 5, 1])).tolist()
    [5, 5, 5]
    """
    return x


@shared_max.def_vmap
def _shared_max(axis_size, in_batched, x):
    del axis_size
    return (x.max(0) if in_batched[0] else x), False


def used_columns(table: Table, layout: Layout) -> jax.Array:
    """Columns up to the largest size in use, in whole column blocks of the narrowest width; i32[]."""
    chex.assert_shape(layout.largest, (2,))
    return _whole(table, shared_max(layout.largest).max())


def _whole(table, columns):
    narrowest = table.widths[-1]
    return ceil_div(columns, narrowest) * narrowest


def block_counts(widths: Sequence[int], used: jax.Array, room: jax.Array | int) -> list[jax.Array]:
    """How many column blocks of each width cover the columns in use.

    Args:
      widths: columns of a block, descending; static.
      used: i32[], columns to cover.
      room: i32[] or int, columns that the table has for these blocks.

    Returns:
      i32[] for each width. Wide blocks are taken as long as three quarters of one are in use, since a wide block costs
      less than the narrow ones that it replaces.

    >>> [int(count) for count in block_counts((64, 32, 16), jnp.int32(120), 128)]
    [2, 0, 0]
    >>> [int(count) for count in block_counts((64, 32, 16), jnp.int32(70), 128)]
    [1, 0, 1]
    """
    chex.assert_rank([used, room], 0)
    counts = []
    for width in widths:
        # The narrowest blocks have to cover whatever is left.
        more = width // 4 if width > widths[-1] else width - 1
        counts.append(jnp.minimum(div(jnp.maximum(used + more, 0), width), div(cast(jax.Array, room), width)))
        used, room = used - counts[-1] * width, room - counts[-1] * width
    return counts


def columns_of(widths: Sequence[int], counts: Sequence[jax.Array]) -> jax.Array:
    """Columns that `counts[i]` blocks of `widths[i]` columns cover together; i32[]."""
    chex.assert_rank(counts, 0)
    return cast(jax.Array, sum(width * count for width, count in zip(widths, counts, strict=True)))


def sided_counts(
    table: Table, layout: Layout, widths: Sequence[int] | None = None
) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """Column blocks over the columns that both sides have, and over those that one side alone has.

    Args:
      table: static.
      layout: of the table.
      widths: columns of a block, descending; the table's if not given.

    Returns:
      (blocks of each width over common columns, blocks of each width over the others, the side that has these: 1 for
      users, 2 for items); i32[] each.
    """
    chex.assert_shape(layout.largest, (2,))
    widths = widths or table.widths
    largest = shared_max(layout.largest)
    common = block_counts(widths, _whole(table, largest.min()), table.width)
    covered = columns_of(widths, common)
    alone = block_counts(widths, _whole(table, largest.max()) - covered, table.width - covered)
    return common, alone, 1 + jnp.argmax(largest).astype(jnp.int32)


def over_column_blocks(
    table: Table,
    layout: Layout,
    body: Callable[[jax.Array, int, Carry], Carry],
    carry: Carry,
    widths: Sequence[int] | None = None,
) -> Carry:
    """Fold `body` over the columns in use, block by block.

    Args:
      table: static.
      layout: of the table.
      body: (first column i32[], columns, carry) -> carry; the number of columns is static.
      carry: pytree that the fold begins with.
      widths: columns of a block, descending; the table's if not given. The body is compiled once for each.

    Returns:
      The carry after the last block.
    """
    return over_sided_column_blocks(
        table, layout, lambda first, count, side, carry: body(first, count, carry), carry, widths
    )


def over_sided_column_blocks(
    table: Table,
    layout: Layout,
    body: Callable[[jax.Array, int, jax.Array, Carry], Carry],
    carry: Carry,
    widths: Sequence[int] | None = None,
) -> Carry:
    """Fold `body` over the columns in use as `over_column_blocks` does, and tell it which side has them.

    Args:
      table: static.
      layout: of the table.
      body: (first column i32[], columns, side i32[], carry) -> carry; `side` is 0 where both sides have vectors as
        long, 1 where users alone have, 2 where items alone have.
      carry: pytree that the fold begins with.
      widths: columns of a block, descending; the table's if not given.

    Returns:
      The carry after the last block.
    """
    widths = widths or table.widths
    common, alone, longer = sided_counts(table, layout, widths)
    first, further = jnp.int32(0), columns_of(widths, common)
    for width, here, beyond in zip(widths, common, alone, strict=True):

        def block(i, carry, first=first, further=further, here=here, width=width):
            is_common = i < here
            at = jnp.where(is_common, first + i * width, further + (i - here) * width)
            return body(at, width, jnp.where(is_common, 0, longer), carry)

        # Common blocks and those of one side share a loop, because each loop compiles the body once more.
        carry = jax.lax.fori_loop(0, here + beyond, block, carry)
        first, further = first + here * width, further + beyond * width
    return carry


def gather(table: Table, buffer: jax.Array, layout: Layout, first: ArrayLike, count: int) -> jax.Array:
    """Columns of all nodes' embeddings.

    Args:
      table: static.
      buffer: of the table.
      layout: of the buffer.
      first: i32[] or int, the first column.
      count: columns; static.

    Returns:
      f32[N, count], by node.
    """
    chex.assert_shape([layout.order, layout.source], [(table.nodes + 2,), (table.nodes,)])
    return take(table.read(buffer, layout, first, count).T, table.source(layout, first))


def gather_all(table: Table, buffer: jax.Array, layout: Layout, first: ArrayLike, count: int) -> jax.Array:
    """Columns of all nodes' embeddings and of the two shared vectors; f32[N + 2, count]. Arguments as in `gather`."""
    chex.assert_shape([layout.order, layout.source], [(table.nodes + 2,), (table.nodes,)])
    order = table.order(layout)
    shared = jnp.stack([jnp.argmax(order == table.nodes), jnp.argmax(order == table.nodes + 1)])
    return take(table.read(buffer, layout, first, count).T, jnp.concatenate([table.source(layout, first), shared]))


def write(table: Table, buffer: jax.Array, layout: Layout, first: ArrayLike, values: jax.Array) -> jax.Array:
    """Overwrite columns of all vectors.

    Args:
      table: static.
      buffer: of the table.
      layout: of the buffer.
      first: i32[] or int, the first column.
      values: f32[N + 2, count], by vector; coordinates that a vector does not have are dropped.

    Returns:
      The buffer.
    """
    chex.assert_shape(values, (table.nodes + 2, None))
    return table.update(buffer, layout, first, values, lambda old, value: value)
