"""The packed table: one flat pool that holds exactly the parameters of the budget."""

import jax
import jax.numpy as jnp

from scall_jax.nonnegative import ceil_div, dynamic_slice, dynamic_update_slice
from scall_jax.tables.layout import Layout, make_layout, padded_width, strip_widths
from scall_jax.tables.table import Table, own_and_shared

_CHUNK = 8192  # parameters changed at once


def packed(parameters: int, users: int, items: int, maximum: int) -> Table:
    """Table over one pool f32[parameters]; the optimiser's moments are buffers as `open` makes them.

    Args:
      parameters: capacity of the pool; a layout may use less, and what it does not use stays 0.
      users, items: capacities of the sides.
      maximum: the largest size of an entity.

    Reading a strip of columns is as many contiguous slices and one gather of rows. Its parameters lie in one piece, so
    that changing them on a CPU is a gather of rows and one pass over as many parameters as there are; elsewhere it is a
    gather and a scatter of places that are all different. No array of nodes x maximum exists.
    """
    nodes = users + items
    vectors = nodes + 2
    place = jnp.arange(vectors, dtype=jnp.int32)

    def open_(pool):
        return jnp.concatenate([pool, jnp.zeros(vectors, pool.dtype)])  # room for a slice that begins at the end

    def read(buffer, layout: Layout, first, count):
        starts = dynamic_slice(layout.starts, (first,), (count + 1,))
        sliced = jax.vmap(lambda start: dynamic_slice(buffer, (start,), (vectors,)))(starts[:-1])
        return jnp.where(place[None, :] < jnp.diff(starts)[:, None], sliced, 0.0)

    def update(buffers, layout: Layout, first, values, rule):
        starts = dynamic_slice(layout.starts, (first,), (values.shape[0] + 1,))
        # a processor works through memory in turn; an accelerator would wait for each of so many small kernels
        change = _in_turn if jax.default_backend() == "cpu" else _by_place
        return change(buffers, starts, values, rule)

    def lookup(pool, layout: Layout, rows):
        at = layout.starts[:-1][None, :] + layout.source[rows][:, None]
        return jnp.where(at < layout.starts[1:][None, :], pool.at[at].get(mode="fill", fill_value=0.0), 0.0)

    return Table(
        layout=lambda sizes: make_layout(sizes, users, maximum),
        zeros=lambda: jnp.zeros(parameters, jnp.float32),
        open=open_,
        close=lambda buffer: buffer[:parameters],
        read=read,
        update=update,
        order=lambda layout: layout.order,
        source=lambda layout: layout.source,
        pull=lambda values, layout: own_and_shared(values, layout.sizes, users),
        lookup=lookup,
        widths=strip_widths(maximum),
        width=padded_width(maximum),
        users=users,
        nodes=nodes,
    )


def _by_place(buffers, starts, values, rule):
    """`Table.update` of columns that begin at starts i32[count + 1], all places at once."""
    (room,) = jax.tree.leaves(buffers)[0].shape
    place = jnp.arange(values.shape[1], dtype=jnp.int32)
    # what a vector does not have goes to places of its own past the end, which nobody reads or writes
    nowhere = room + jnp.arange(values.size, dtype=jnp.int32).reshape(values.shape)
    at = jnp.where(place[None, :] < jnp.diff(starts)[:, None], starts[:-1, None] + place[None, :], nowhere)
    old = jax.tree.map(lambda b: b.at[at].get(mode="fill", fill_value=0.0, unique_indices=True), buffers)
    return jax.tree.map(lambda b, n: b.at[at].set(n, mode="drop", unique_indices=True), buffers, rule(old, values))


def _in_turn(buffers, starts, values, rule):
    """The same, some parameters after the other."""
    count, vectors = values.shape
    chunk = min(_CHUNK, vectors)
    within = jnp.arange(chunk, dtype=jnp.int32)
    begin, end = starts[0], starts[-1]

    def lay(i, flat):
        # what lies past a column's end is overwritten by the next column
        return dynamic_update_slice(flat, values[i], (starts[i] - begin,))

    # the columns as they lie in the pool, one after the other
    flat = jax.lax.fori_loop(0, count, lay, jnp.zeros(count * vectors + chunk))

    def change(k, buffers):
        at = begin + k * chunk
        value = dynamic_slice(flat, (k * chunk,), (chunk,))
        old = jax.tree.map(lambda b: dynamic_slice(b, (at,), (chunk,)), buffers)
        new = jax.tree.map(lambda n, o: jnp.where(within < end - at, n, o), rule(old, value), old)
        return jax.tree.map(lambda b, n: dynamic_update_slice(b, n, (at,)), buffers, new)

    return jax.lax.fori_loop(0, ceil_div(end - begin, chunk), change, buffers)
