"""The masked table: all vectors at full width under a prefix mask, the reference for the packed one."""

import jax
import jax.numpy as jnp

from scall_jax.tables.layout import Layout, block_widths, make_layout, padded_width
from scall_jax.tables.table import Table, own_and_shared


def masked(parameters: int, users: int, items: int, maximum: int) -> Table:
    """Table over f32[users + items + 2, width] of which vector n uses the first sizes[n] coordinates.

    Holds (users + items + 2) x width floats whatever the budget; `parameters` is ignored. For small experiments.
    """
    del parameters
    nodes = users + items
    width = padded_width(maximum)

    def has(layout: Layout, first, count):
        return (first + jnp.arange(count))[None, :] < layout.sizes[:, None]

    def read(buffer, layout: Layout, first, count):
        values = jax.lax.dynamic_slice_in_dim(buffer, first, count, axis=1)
        return jnp.where(has(layout, first, count), values, 0.0).T

    def update(buffers, layout: Layout, first, values, rule, weighted_buffer=None):
        count = values.shape[1]
        if weighted_buffer is not None:
            weight, buffer = weighted_buffer
            values = values + weight[:, None] * jax.lax.dynamic_slice_in_dim(buffer, first, count, axis=1)
        old = jax.tree.map(lambda b: jax.lax.dynamic_slice_in_dim(b, first, count, axis=1), buffers)
        new = jax.tree.map(lambda n, o: jnp.where(has(layout, first, count), n, o), rule(old, values), old)
        return jax.tree.map(lambda b, n: jax.lax.dynamic_update_slice_in_dim(b, n, first, axis=1), buffers, new)

    def source(layout: Layout, first=0):
        del first
        return layout.order[layout.source]

    def lookup(params, layout: Layout, rows):
        return jnp.where(has(layout, 0, width), params, 0.0)[source(layout)[rows]]

    return Table(
        layout=lambda sizes: make_layout(sizes, users, maximum),
        zeros=lambda: jnp.zeros((nodes + 2, width), jnp.float32),
        to_buffer=lambda params: params,
        from_buffer=lambda buffer: buffer,
        read=read,
        update=update,
        order=lambda layout: jnp.arange(nodes + 2, dtype=jnp.int32),
        source=source,
        pull=lambda values, layout: own_and_shared(values, layout.sizes, users),
        lookup=lookup,
        widths=block_widths(maximum),
        width=width,
        users=users,
        nodes=nodes,
    )
