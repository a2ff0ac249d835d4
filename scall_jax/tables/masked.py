"""The masked table: all vectors at full width under a prefix mask, the reference that the packed one is tested by."""

import chex
import jax
import jax.numpy as jnp

from scall_jax.tables.layout import Layout, block_widths, make_layout, padded_width
from scall_jax.tables.table import Table, own_and_shared


def masked(parameters: int, users: int, items: int, maximum: int) -> Table:
    """Table over f32[users + items + 2, width] of which vector n uses the first sizes[n] coordinates.

    Args:
      parameters: ignored; the table holds (users + items + 2) x width floats whatever the budget, so that it suits
        small experiments only.
      users: capacity of the users' side.
      items: capacity of the items' side.
      maximum: the largest size of an entity.

    Returns:
      Table. Its parameters and its buffers are the same arrays.

    >>> table = masked(0, users=2, items=1, maximum=3)
    >>> layout = table.layout(jnp.array([3, 0, 2, 1, 0]))
    >>> table.lookup(jnp.ones((5, 3)), layout, jnp.arange(3)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    """
    del parameters
    nodes = users + items
    width = padded_width(maximum)
    return Table(
        layout=lambda sizes: make_layout(sizes, users, maximum),
        zeros=lambda: jnp.zeros((nodes + 2, width), jnp.float32),
        to_buffer=lambda params: params,
        from_buffer=lambda buffer: buffer,
        read=_read,
        update=_update,
        order=lambda layout: jnp.arange(nodes + 2, dtype=jnp.int32),
        source=_source,
        pull=lambda values, layout: own_and_shared(values, layout.sizes, users),
        lookup=_lookup,
        add=_add,
        widths=block_widths(maximum),
        width=width,
        users=users,
        nodes=nodes,
    )


def _has(layout: Layout, first, count):
    """bool[M, count], where a vector has columns first, ..., first + count - 1."""
    return (first + jnp.arange(count))[None, :] < layout.sizes[:, None]


def _read(buffer, layout: Layout, first, count):
    chex.assert_shape(buffer, (layout.sizes.shape[0], None))
    values = jax.lax.dynamic_slice_in_dim(buffer, first, count, axis=1)
    return jnp.where(_has(layout, first, count), values, 0.0).T


def _update(buffers, layout: Layout, first, values, rule, weighted_buffer=None):
    chex.assert_shape([values, *jax.tree.leaves(buffers)], (layout.sizes.shape[0], None))
    count = values.shape[1]
    if weighted_buffer is not None:
        weight, buffer = weighted_buffer
        values = values + weight[:, None] * jax.lax.dynamic_slice_in_dim(buffer, first, count, axis=1)
    old = jax.tree.map(lambda b: jax.lax.dynamic_slice_in_dim(b, first, count, axis=1), buffers)
    new = jax.tree.map(lambda n, o: jnp.where(_has(layout, first, count), n, o), rule(old, values), old)
    return jax.tree.map(lambda b, n: jax.lax.dynamic_update_slice_in_dim(b, n, first, axis=1), buffers, new)


def _source(layout: Layout, first):
    del first
    return layout.order[layout.source]


def _lookup(params, layout: Layout, rows):
    chex.assert_rank([params, rows], [2, 1])
    return jnp.where(_has(layout, 0, params.shape[1]), params, 0.0)[_source(layout, 0)[rows]]


def _add(params, layout: Layout, rows, values):
    chex.assert_rank([params, rows, values], [2, 1, 2])
    at = _source(layout, 0)[rows]
    has = jnp.arange(params.shape[1])[None, :] < layout.sizes[at][:, None]
    return params.at[at].add(jnp.where(has, values, 0.0), wrap_negative_indices=False)
