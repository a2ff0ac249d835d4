"""The packed table: one flat pool that holds exactly the parameters of the budget."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.indexing import ceil_div, dynamic_slice, dynamic_update_slice, take
from scall_jax.tables.column_blocks import shared_max
from scall_jax.tables.layout import Layout, block_widths, make_layout, padded_width
from scall_jax.tables.table import Table, own_and_shared

_INT32_MAX = 2**31 - 1
_CHUNK = 8192
"""Parameters that a CPU changes at once: a chunk of all buffers stays in its cache."""
_BLOCKS = 8
"""Blocks that the vectors of a column are laid out in. A block beyond the end of every column is skipped."""


def packed(parameters: int, users: int, items: int, maximum: int, multiple: int = 1) -> Table:
    """Table over one pool f32[parameters].

    Column k of all vectors that have one lies in one piece (see `Layout`), the largest vectors first. To read a block
    of columns is one contiguous slice for each and one gather of rows. To change it is, on a CPU, a gather of rows and
    one pass over as many parameters as the block has; on an accelerator it is a gather and a scatter of distinct
    places. No array of nodes x maximum exists.

    Args:
      parameters: capacity of the pool; a layout may use less, and what it does not use stays 0.
      users: capacity of the users' side.
      items: capacity of the items' side.
      maximum: the largest size of an entity.
      multiple: the length of buffers is a multiple of this number, so that they can be cut into as many equal parts.

    Returns:
      Table. Its buffers, the optimiser's state among them, are f32[parameters + users + items + 2], or a little longer.

    A user of size 3, one of size 0 that reads the shared vector of size 1, and an item of size 2:

    >>> table = packed(6, users=2, items=1, maximum=3)
    >>> layout = table.layout(jnp.array([3, 0, 2, 1, 0]))
    >>> pool = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # the first column of three vectors, the second of two, ...
    >>> table.lookup(pool, layout, jnp.arange(3)).tolist()
    [[1.0, 4.0, 6.0], [3.0, 0.0, 0.0], [2.0, 5.0, 0.0]]
    """
    nodes = users + items
    vectors = nodes + 2
    length = -(-(parameters + vectors) // multiple) * multiple
    pool = _Pool(parameters, length, jnp.arange(vectors, dtype=jnp.int32))
    return Table(
        layout=lambda sizes: make_layout(sizes, users, maximum),
        zeros=lambda: jnp.zeros(parameters, jnp.float32),
        # `read` takes a slice of all vectors, which may begin at the pool's very end.
        to_buffer=lambda params: jnp.concatenate([params, jnp.zeros(length - parameters, params.dtype)]),
        from_buffer=lambda buffer: buffer[:parameters],
        read=functools.partial(_read, pool),
        update=functools.partial(_update, pool),
        order=lambda layout: layout.order,
        source=_source,
        pull=lambda values, layout: own_and_shared(values, layout.sizes, users),
        lookup=_lookup,
        add=_add,
        widths=block_widths(maximum),
        width=padded_width(maximum),
        users=users,
        nodes=nodes,
    )


class _Pool(NamedTuple):
    """What the functions of one packed table share."""

    parameters: int
    """Capacity of the pool."""
    length: int
    """Numbers that a buffer has: the capacity, and zeros behind it."""
    place: jax.Array
    """i32[M], 0, ..., M - 1: places within a column."""


def _read(pool: _Pool, buffer, layout: Layout, first, count):
    vectors = pool.place.shape[0]
    chex.assert_shape(buffer, (pool.length,))
    starts = dynamic_slice(layout.starts, (first,), (count + 1,))
    sliced = jax.vmap(lambda start: dynamic_slice(buffer, (start,), (vectors,)))(starts[:-1])
    return jnp.where(pool.place[None, :] < jnp.diff(starts)[:, None], sliced, 0.0)


def _source(layout: Layout, first):
    # Vectors without column `first` have none from there on. All of them read the same 0, which stays in a cache.
    return jnp.minimum(layout.source, take(layout.starts, first + 1) - take(layout.starts, first))


def _places(params, layout: Layout, rows):
    """i32[R, width], the place of each coordinate, behind the last one where a row has none."""
    at = layout.starts[:-1][None, :] + layout.source[rows][:, None]
    return jnp.where(at < layout.starts[1:][None, :], at, params.shape[0])


def _lookup(params, layout: Layout, rows):
    chex.assert_rank([params, rows], 1)
    return params.at[_places(params, layout, rows)].get(mode="fill", fill_value=0.0)


def _add(params, layout: Layout, rows, values):
    chex.assert_rank([params, rows, values], [1, 1, 2])
    at = _places(params, layout, rows)
    return params.at[at].add(values, mode="drop", wrap_negative_indices=False)


def _update(pool: _Pool, buffers, layout: Layout, first, values, rule, weighted_buffer=None):
    vectors, count = pool.place.shape[0], values.shape[1]
    chex.assert_shape(values, (vectors, None))
    chex.assert_shape(jax.tree.leaves(buffers), (pool.length,))
    starts = dynamic_slice(layout.starts, (first,), (count + 1,))

    def in_chunks():
        flat = _laid_out(values, weighted_buffer, layout.order, starts, pool.parameters)
        return _change_in_chunks(buffers, starts[0], starts[-1], flat, rule, min(_CHUNK, vectors))

    def at_once():
        columns = take(values, layout.order).T
        if weighted_buffer is not None:
            weight, buffer = weighted_buffer
            columns = columns + take(weight, layout.order)[None, :] * _read(pool, buffer, layout, first, count)
        return _change_at_once(buffers, starts, columns, rule)

    # CPU: sequential chunks. Accelerators: one gather and scatter, because many small kernels are bound by latency.
    return by_backend(in_chunks, at_once)()


def _change_at_once(buffers, starts, columns, rule):
    """Change the columns that begin at `starts` i32[count + 1] by `columns` f32[count, M], all places at once."""
    (room,) = jax.tree.leaves(buffers)[0].shape
    place = jnp.arange(columns.shape[1], dtype=jnp.int32)
    # Coordinates that a vector does not have get places of their own past the buffer's end, so that all places are
    # distinct and the scatter drops them. Beside a large table these places are too many for int32.
    kind = jnp.int32 if room + columns.size <= _INT32_MAX else jnp.uint32
    nowhere = kind(room) + jnp.arange(columns.size, dtype=kind).reshape(columns.shape)
    inside = (starts[:-1, None] + place[None, :]).astype(kind)
    at = jnp.where(place[None, :] < jnp.diff(starts)[:, None], inside, nowhere)
    old = jax.tree.map(lambda b: b.at[at].get(mode="fill", fill_value=0.0, unique_indices=True), buffers)
    return jax.tree.map(lambda b, n: b.at[at].set(n, mode="drop", unique_indices=True), buffers, rule(old, columns))


def _laid_out(values, weighted_buffer, order, starts, parameters):
    """Values f32[M, count] of `Table.update` in the order of the pool, column after column; f32[...].

    `weighted_buffer` is added to them. Only vectors that have a column are read, in whole blocks. The result is longer
    than its columns: whole blocks and chunks reach beyond the last one, and their values there have no meaning.
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

        def lay_column(k, flat):
            column = columns[k]
            if weighted_buffer is not None:
                column = column + weight * dynamic_slice(weighted_buffer[1], (starts[k] + begin,), (block,))
            return dynamic_update_slice(flat, column, (places[k] + begin,))

        return jax.lax.fori_loop(0, reaching, lay_column, flat)

    # A block may write past its column's end, but only into the first block of later columns. Blocks are written last
    # to first, so those values are overwritten.
    last = shared_max(ceil_div(lengths[0], block)) - 1
    room = min(count * vectors, parameters) + _BLOCKS * block + _CHUNK
    return jax.lax.fori_loop(0, last + 1, lay_block, jnp.zeros(room))


def _change_in_chunks(buffers, begin, end, flat, rule, chunk):
    """Change places begin, ..., end - 1 of buffers by what lies in `flat`, one chunk after another."""
    within = jnp.arange(chunk, dtype=jnp.int32)

    def change(k, buffers):
        at = begin + k * chunk
        value = dynamic_slice(flat, (k * chunk,), (chunk,))
        old = jax.tree.map(lambda b: dynamic_slice(b, (at,), (chunk,)), buffers)
        new = jax.tree.map(lambda n, o: jnp.where(within < end - at, n, o), rule(old, value), old)
        return jax.tree.map(lambda b, n: dynamic_update_slice(b, n, (at,)), buffers, new)

    return jax.lax.fori_loop(0, ceil_div(end - begin, chunk), change, buffers)
