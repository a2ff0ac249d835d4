"""The packed table: one flat pool that holds exactly the parameters of the budget."""

import jax
import jax.numpy as jnp

from scall_jax.tables.layout import COLUMNS, Layout, make_layout, padded_width
from scall_jax.tables.table import Table, own_and_shared


def packed(parameters: int, users: int, items: int, maximum: int) -> Table:
    """Table over one pool f32[parameters]; gradient and optimiser moments have the same shape.

    Args:
      parameters: capacity of the pool; a layout may use less, and what it does not use stays 0.
      users, items: capacities of the sides.
      maximum: the largest size of an entity.

    Reading a block of columns is `columns` contiguous slices and one gather of rows; writing it is a gather of rows and
    as many slices: no scatter, and never an array of nodes x maximum.
    """
    nodes = users + items
    vectors = nodes + 2
    columns, width = min(COLUMNS, maximum), padded_width(maximum)
    place = jnp.arange(vectors, dtype=jnp.int32)

    def open_(pool):
        return jnp.concatenate([pool, jnp.zeros(vectors, pool.dtype)])  # room for a slice that begins at the end

    def spans(layout, block):
        first = block * columns
        starts = jax.lax.dynamic_slice(layout.starts, (first,), (columns + 1,))
        return [(starts[i], starts[i + 1] - starts[i]) for i in range(columns)]

    def gather(buffer, layout: Layout, block):
        sliced = [
            jnp.where(place < count, jax.lax.dynamic_slice(buffer, (start,), (vectors,)), 0.0)
            for start, count in spans(layout, block)
        ]
        return jnp.stack(sliced, axis=1)[layout.source]

    def write(buffer, layout: Layout, block, values):
        ranked = values[layout.order]
        for i, (start, count) in enumerate(spans(layout, block)):
            # zeros past the column's end are overwritten by the next column
            column = jnp.where(place < count, ranked[:, i], 0.0)
            buffer = jax.lax.dynamic_update_slice(buffer, column, (start,))
        return buffer

    def lookup(pool, layout: Layout, rows):
        at = layout.starts[:-1][None, :] + layout.source[rows][:, None]
        return jnp.where(at < layout.starts[1:][None, :], pool.at[at].get(mode="fill", fill_value=0.0), 0.0)

    return Table(
        layout=lambda sizes: make_layout(sizes, users, maximum),
        zeros=lambda: jnp.zeros(parameters, jnp.float32),
        open=open_,
        close=lambda buffer: buffer[:parameters],
        gather=gather,
        write=write,
        scatter=lambda b, layout, k, v: write(b, layout, k, own_and_shared(v, layout.sizes, users)),
        lookup=lookup,
        columns=columns,
        width=width,
        nodes=nodes,
    )
