"""The masked table: all vectors at full width under a prefix mask, the reference for the packed one."""

import jax
import jax.numpy as jnp

from scall_jax.tables.layout import COLUMNS, Layout, make_layout, padded_width
from scall_jax.tables.table import Table, own_and_shared


def masked(parameters: int, users: int, items: int, maximum: int) -> Table:
    """Table over f32[users + items + 2, width] of which vector n uses the first sizes[n] coordinates.

    Holds (users + items + 2) x width floats whatever the budget; `parameters` is ignored. For small experiments.
    """
    del parameters
    nodes = users + items
    columns, width = min(COLUMNS, maximum), padded_width(maximum)

    def reads(layout: Layout):
        return layout.order[layout.source]

    def gather(buffer, layout: Layout, block):
        first = block * columns
        values = jax.lax.dynamic_slice_in_dim(buffer, first, columns, axis=1)
        mask = (first + jnp.arange(columns))[None, :] < layout.sizes[:, None]
        return jnp.where(mask, values, 0.0)[reads(layout)]

    def write(buffer, layout: Layout, block, values):
        first = block * columns
        mask = (first + jnp.arange(columns))[None, :] < layout.sizes[:, None]
        return jax.lax.dynamic_update_slice_in_dim(buffer, jnp.where(mask, values, 0.0), first, axis=1)

    def lookup(params, layout: Layout, rows):
        mask = jnp.arange(width)[None, :] < layout.sizes[:, None]
        return jnp.where(mask, params, 0.0)[reads(layout)[rows]]

    return Table(
        layout=lambda sizes: make_layout(sizes, users, maximum),
        zeros=lambda: jnp.zeros((nodes + 2, width), jnp.float32),
        open=lambda params: params,
        close=lambda buffer: buffer,
        gather=gather,
        write=write,
        scatter=lambda b, layout, k, v: write(b, layout, k, own_and_shared(v, layout.sizes, users)),
        lookup=lookup,
        columns=columns,
        width=width,
        nodes=nodes,
    )
