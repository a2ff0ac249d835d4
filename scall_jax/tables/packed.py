"""The packed table: one flat pool that holds exactly the parameters of the budget."""

import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.indexing import ceil_div, dynamic_slice, dynamic_update_slice, take
from scall_jax.tables.column_blocks import shared_max
from scall_jax.tables.layout import Layout, block_widths, make_layout, padded_width
from scall_jax.tables.table import Table, own_and_shared

_CHUNK = 8192  # parameters changed at once
_BLOCKS = 8  # of vectors, laid out one after the other as far as any has a column


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

    def update(buffers, layout: Layout, first, values, rule, weighted_buffer=None):
        count = values.shape[1]
        starts = dynamic_slice(layout.starts, (first,), (count + 1,))
        return by_backend(update_in_chunks, update_at_once)(
            buffers, layout, first, values, rule, weighted_buffer, starts
        )

    def update_in_chunks(buffers, layout: Layout, first, values, rule, weighted_buffer, starts):
        # CPU: sequential chunks.
        del first
        flat = _laid_out(values, weighted_buffer, layout.order, starts, parameters)
        return _in_turn(buffers, starts[0], starts[-1], flat, rule, min(_CHUNK, vectors))

    def update_at_once(buffers, layout: Layout, first, values, rule, weighted_buffer, starts):
        # Accelerators: one gather and scatter, because many small kernels are bound by latency.
        count = values.shape[1]
        columns = take(values, layout.order).T
        if weighted_buffer is not None:
            weight, buffer = weighted_buffer
            columns = columns + take(weight, layout.order)[None, :] * read(buffer, layout, first, count)
        return _by_place(buffers, starts, columns, rule)

    def source(layout: Layout, first):
        # vectors without column `first` have none from there on; all read the same 0, which stays in a cache
        return jnp.minimum(layout.source, take(layout.starts, first + 1) - take(layout.starts, first))

    def lookup(pool, layout: Layout, rows):
        at = layout.starts[:-1][None, :] + layout.source[rows][:, None]
        return jnp.where(at < layout.starts[1:][None, :], pool.at[at].get(mode="fill", fill_value=0.0), 0.0)

    return Table(
        layout=lambda sizes: make_layout(sizes, users, maximum),
        zeros=lambda: jnp.zeros(parameters, jnp.float32),
        to_buffer=open_,
        from_buffer=lambda buffer: buffer[:parameters],
        read=read,
        update=update,
        order=lambda layout: layout.order,
        source=source,
        pull=lambda values, layout: own_and_shared(values, layout.sizes, users),
        lookup=lookup,
        widths=block_widths(maximum),
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


def _laid_out(values, weighted_buffer, order, starts, parameters):
    """Values f32[M, count] of `Table.update`, `held` included, as their columns lie in the pool, one after the other.

    Only vectors that have a column are looked at, in whole blocks. The result f32[...] has room behind the last column,
    for whole blocks and chunks, where what stands is of no meaning.
    """
    vectors, count = values.shape
    block = -(-vectors // _BLOCKS)
    order = jnp.concatenate([order, jnp.zeros(_BLOCKS * block - vectors, order.dtype)])
    lengths, places = jnp.diff(starts), starts[:-1] - starts[0]

    def lay_block(i, flat):
        begin = (last - i) * block
        vectors_here = dynamic_slice(order, (begin,), (block,))
        columns = take(values, vectors_here).T
        weight = 0.0 if weighted_buffer is None else take(weighted_buffer[0], vectors_here)
        reaching = shared_max((lengths > begin).sum(dtype=jnp.int32))

        def lay(k, flat):
            column = columns[k]
            if weighted_buffer is not None:
                column = column + weight * dynamic_slice(weighted_buffer[1], (starts[k] + begin,), (block,))
            return dynamic_update_slice(flat, column, (places[k] + begin,))

        return jax.lax.fori_loop(0, reaching, lay, flat)

    # what a block has past a column's end lies on later columns' first block at most: those are laid last, in turn
    last = shared_max(ceil_div(lengths[0], block)) - 1
    room = min(count * vectors, parameters) + _BLOCKS * block + _CHUNK
    return jax.lax.fori_loop(0, last + 1, lay_block, jnp.zeros(room))


def _in_turn(buffers, begin, end, flat, rule, chunk):
    """`Table.update` of places begin, ..., end - 1 by what lies in `flat`, a chunk after the other."""
    within = jnp.arange(chunk, dtype=jnp.int32)

    def change(k, buffers):
        at = begin + k * chunk
        value = dynamic_slice(flat, (k * chunk,), (chunk,))
        old = jax.tree.map(lambda b: dynamic_slice(b, (at,), (chunk,)), buffers)
        new = jax.tree.map(lambda n, o: jnp.where(within < end - at, n, o), rule(old, value), old)
        return jax.tree.map(lambda b, n: dynamic_update_slice(b, n, (at,)), buffers, new)

    return jax.lax.fori_loop(0, ceil_div(end - begin, chunk), change, buffers)
