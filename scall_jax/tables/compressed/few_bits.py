"""The packed table kept in 1, 2, 3, 4 or 8 bits a coordinate: many more coordinates for the same bytes.

A vector has a scale of 8 bits on a logarithmic grid, and codes of b bits. Code q of 2^b stands for (q + 1/2) / 2^b of
the way from -limit to limit, the midpoint of its cell, so that there is no code for 0 and none is lost: one bit is the
sign times half the limit. The limit is the one of the grid that leaves the least squared error of the vector, so that
one bit is the sign times the mean absolute coordinate (Rastegari et al., XNOR-Net, arXiv 1603.05279, equation 6), and
with more bits the largest coordinates are clipped where that lets the others be finer (Max, Quantizing for minimum
distortion, IRE Transactions on Information Theory 6, 1960). Limits below .31 times the largest coordinate are not
tried, which one bit would take where the mean absolute coordinate is below .155 times the largest.

Training works on the f32 pool of coordinates, which is resident only while it lasts, as in `low_precision`.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from scall_jax.ops import devices
from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.ops.indexing import div, dynamic_slice, dynamic_update_slice, rem, take
from scall_jax.tables.compressed.bit_packing import pack_codes, unpack_codes
from scall_jax.tables.compressed.low_precision import Rounding, rounded
from scall_jax.tables.layout import Layout, column_and_rank
from scall_jax.tables.sized import in_equal_parts
from scall_jax.tables.storage import Exported, Sides, Storage, StorageFactory, most_spent, size_bytes, with_room

BITS = (8, 4, 3, 2, 1)
"""Bits of a coordinate that there are storages for."""

PER_OCTAVE = 16
"""Limits of the grid between a limit and its double: the nearest one is off by 2% at most."""
_TRIED = 44
"""Limits that are tried, from twice a vector's largest coordinate on downwards, over 2.7 octaves."""
TOP_CODE = 255
_TOP_BYTES = 4
_VECTORS_AT_ONCE = 8192
"""Vectors whose limits are tried together: their coordinates stay in the caches."""
_ROUNDS = 4
"""Blocks of vectors that a device of several has at least, so that what they have to try is about equal."""
_AT_ONCE = 2**16
"""Coordinates that a device asks the others for at once."""


class Coded(NamedTuple):
    """A pool in few bits."""

    codes: jax.Array
    """u8[groups, b]; byte k of a group holds bit k of 8 coordinates of the pool, the first one in the lowest place."""
    scales: jax.Array
    """u8[M], by place in `Layout.order`: the limit is top x 2^((scale - 255) / 16); 0 for a vector of zeros."""
    top: jax.Array
    """f32[], a power of two that no limit is above; 0 where all vectors are zeros."""


def encode(pool: jax.Array, layout: Layout, bits: int, mesh: MeshConfig = ONE) -> Coded:
    """Codes and scales of a pool.

    Args:
      pool: f32[capacity] of the packed table, or this device's part of it.
      layout: of its M vectors.
      bits: b; static.
      mesh: devices that have a part of the pool each and share the work, in a function that `devices.on_devices` calls.

    Returns:
      Coded, whole on every device.

    >>> from scall_jax.tables.packed import packed
    >>> layout = packed(4, users=1, items=1, maximum=2).layout(jnp.array([2, 2, 0, 0]))
    >>> coded = encode(jnp.array([4.0, 1.0, -4.0, -1.0]), layout, bits=1)
    >>> decode(coded, layout, capacity=4).tolist()
    [4.0, 1.0, -4.0, -1.0]
    """
    chex.assert_rank(pool, 1)
    chex.assert_type(pool, jnp.float32)
    half = 2 ** (bits - 1)
    scales, top = best_scales(pool, layout, half, mesh)
    if mesh.devices == 1:
        codes = pack_codes(quantised(pool, layout, scales, top, half), bits)
    else:
        codes = _codes_of_parts(pool, layout, scales, top, bits, mesh)
    return Coded(codes, scales.astype(jnp.uint8), top)


def _over_columns(padded: jax.Array, layout: Layout, body, start):
    """Fold body(carry, column, coordinates f32[M] by place, which vectors have it) over the columns in use.

    The pool has room for M more coordinates behind its end.
    """
    vectors = layout.order.shape[0]
    lengths = jnp.diff(layout.starts)
    columns, place = (lengths > 0).sum(), jnp.arange(vectors, dtype=jnp.int32)

    def one(number, carry):
        x = dynamic_slice(padded, (layout.starts[number],), (vectors,))
        return body(carry, number, x, place < lengths[number])

    return jax.lax.fori_loop(0, columns, one, start)


def _code_of(x: jax.Array, step: jax.Array, half: jax.Array | int) -> jax.Array:
    return jnp.clip(jnp.floor(x / jnp.where(step > 0, step, 1.0)), -half, half - 1)


def best_scales(
    pool: jax.Array, layout: Layout, half: jax.Array | int, mesh: MeshConfig = ONE
) -> tuple[jax.Array, jax.Array]:
    """The scale of each vector that leaves the least squared error.

    Args:
      pool: f32[capacity] of the packed table, or this device's part of it.
      layout: of its M vectors.
      half: half of the number of codes; f32[M] by place in `Layout.order`, or a static number for all.
      mesh: devices that share the work, as in `encode`.

    Returns:
      i32[M] by place, and the limit f32[] that they are counted from.
    """
    vectors, lengths = layout.order.shape[0], jnp.diff(layout.starts)
    in_use = devices.places(mesh, pool.shape[0]) < layout.starts[-1]
    top = _top_of(devices.most(mesh, jnp.where(in_use, jnp.abs(pool), 0.0).max()))
    # The largest vectors come first, so that a block of vectors has as many columns as its first one.
    count = _block_size(vectors, lengths.shape[0], mesh)
    rounds = -(-vectors // (count * mesh.devices))
    half = jnp.broadcast_to(jnp.asarray(half, jnp.float32), (vectors,))
    half = jnp.pad(half, (0, rounds * mesh.devices * count - vectors), constant_values=np.float32(1))
    columns_of = _reader(pool, layout, count, rounds, mesh)

    def of_block(first: jax.Array) -> jax.Array:
        place, codes = first + jnp.arange(count, dtype=jnp.int32), dynamic_slice(half, (first,), (count,))
        column_of, columns = columns_of(first), (lengths > first).sum()

        def larger(column, most):
            return jnp.maximum(most, jnp.where(place < lengths[column], jnp.abs(column_of(column)), 0.0))

        # One bit may need twice the largest coordinate: a vector of equal ones is half the limit.
        own = _scale_of(2 * jax.lax.fori_loop(0, columns, larger, jnp.zeros(count)), top)

        def try_next(number, best):
            scales = jnp.where(own > 0, jnp.maximum(own - number, 1), 0)
            step = limit_of(scales, top) / codes

            def add(column, wrong):
                x = column_of(column)
                off = (x - (_code_of(x, step, codes) + 0.5) * step) ** 2
                return wrong + jnp.where(place < lengths[column], off, 0.0)

            wrong = jax.lax.fori_loop(0, columns, add, jnp.zeros(count))
            better = wrong < best[0]
            return jnp.where(better, wrong, best[0]), jnp.where(better, scales, best[1])

        return jax.lax.fori_loop(0, _TRIED, try_next, (jnp.full(count, jnp.inf), own))[1]

    # Blocks are dealt out, since the first ones have the most coordinates.
    firsts = count * (mesh.devices * jnp.arange(rounds, dtype=jnp.int32) + devices.number(mesh))
    found = devices.everyone(mesh, jax.lax.map(of_block, firsts)[None])
    return found.swapaxes(0, 1).ravel()[:vectors], top


def _block_size(vectors: int, columns: int, mesh: MeshConfig) -> int:
    """Vectors whose scales are sought together; on several devices their coordinates are asked for."""
    if mesh.devices == 1:
        return min(_VECTORS_AT_ONCE, vectors)
    return min(max(_AT_ONCE // columns, 1), -(-vectors // (_ROUNDS * mesh.devices)))


def _reader(pool: jax.Array, layout: Layout, count: int, rounds: int, mesh: MeshConfig):
    """first -> column -> its coordinates f32[count] of the vectors at places first, first + 1, ..."""
    starts = layout.starts[:-1]
    if mesh.devices == 1:
        padded = jnp.concatenate([pool, jnp.zeros(rounds * count)])
        return lambda first: lambda column: dynamic_slice(padded, (starts[column] + first,), (count,))
    within = jnp.arange(count, dtype=jnp.int32)

    def asked(first: jax.Array):
        def answer(first: jax.Array) -> jax.Array:
            return devices.part_of(mesh, pool, starts[:, None] + first + within[None, :])

        block = devices.ask(mesh, first, answer)
        return lambda column: block[column]

    return asked


def quantised(pool: jax.Array, layout: Layout, scales: jax.Array, top: jax.Array, half: jax.Array | int) -> jax.Array:
    """Codes of a pool, u8[capacity], from 0 on; 0 where no coordinate lies.

    Args:
      pool: f32[capacity] of the packed table.
      layout: of its M vectors.
      scales, top, half: as in `best_scales`.
    """
    (capacity,), vectors, step = pool.shape, layout.order.shape[0], limit_of(scales, top) / half

    def write(codes, number, x, has):
        # What is written beyond a column's end is overwritten by the next one, and zero beyond the last.
        code = jnp.where(has, _code_of(x, step, half) + half, 0).astype(jnp.uint8)
        return dynamic_update_slice(codes, code, (layout.starts[number],))

    padded = jnp.concatenate([pool, jnp.zeros(vectors)])
    return _over_columns(padded, layout, write, jnp.zeros(capacity + vectors, jnp.uint8))[:capacity]


def _top_of(largest: jax.Array) -> jax.Array:
    """The limit f32[] that scales are counted from, by the largest absolute coordinate."""
    # A power of two, so that the grid's limits are the same for any pool: coding a second time changes nothing.
    return jnp.exp2(jnp.ceil(jnp.log2(2 * largest)))


def _scale_of(limit: jax.Array, top: jax.Array) -> jax.Array:
    """The scale i32[M] of the smallest limit of the grid that is not below a limit f32[M]; 0 for none."""
    ratio = jnp.where(limit > 0, limit / jnp.where(top > 0, top, 1.0), 1.0)
    code = TOP_CODE + jnp.ceil(PER_OCTAVE * jnp.log2(ratio) - 1e-3).astype(jnp.int32)
    return jnp.where(limit > 0, jnp.clip(code, 1, TOP_CODE), 0)


def limit_of(scales: jax.Array, top: jax.Array) -> jax.Array:
    """Numbers of the logarithmic grid that scales stand for.

    Args:
      scales: 0 to 255, [...]; 0 for zero, and 255 for `top`.
      top: f32, a power of two, of a shape that goes with the scales'.

    Returns:
      f32[...].

    >>> limit_of(jnp.array([255, 239, 0]), jnp.float32(4)).tolist()
    [4.0, 2.0, 0.0]
    """
    # One power of the sum of both exponents, so that a limit is the same number whatever `top` it is counted from.
    octaves = jnp.round(jnp.log2(jnp.where(top > 0, top, 1.0)))
    exponent = octaves + (scales.astype(jnp.float32) - TOP_CODE) / PER_OCTAVE
    return jnp.where(scales > 0, jnp.exp2(exponent), 0.0)


def decode(coded: Coded, layout: Layout, capacity: int) -> jax.Array:
    """The pool that codes and scales stand for.

    Args:
      coded: of `encode`.
      layout: of the M vectors.
      capacity: coordinates of the pool; static.

    Returns:
      f32[capacity].
    """
    chex.assert_type([coded.codes, coded.scales, coded.top], [jnp.uint8, jnp.uint8, jnp.float32])
    chex.assert_equal_shape([coded.scales, layout.order])
    vectors, columns = layout.order.shape[0], (jnp.diff(layout.starts) > 0).sum()
    buffer = _to_buffer(coded)

    def write(column, pool):
        # As in `quantised`, what is written beyond a column's end is overwritten or zero.
        return dynamic_update_slice(pool, read_columns(buffer, layout, column, 1)[0], (layout.starts[column],))

    return jax.lax.fori_loop(0, columns, write, jnp.zeros(capacity + vectors))[:capacity]


def decode_part(coded: Coded, layout: Layout, begin: jax.Array | int, length: int) -> jax.Array:
    """Some places of the pool that codes and scales stand for, of which nothing else is decoded.

    Args:
      coded: of `encode`.
      layout: of the M vectors.
      begin: i32[], the first place.
      length: places; static.

    Returns:
      f32[length], 0 where no coordinate lies.
    """
    bits, half = coded.codes.shape[1], 2 ** (coded.codes.shape[1] - 1)
    count = min(_AT_ONCE, length)

    def block(index: jax.Array, part: jax.Array) -> jax.Array:
        # A last block that would end beyond the part is moved back.
        first = jnp.minimum(index * count, length - count)
        at = begin + first + jnp.arange(count, dtype=jnp.int32)
        exists, _, rank = column_and_rank(layout.starts, at)
        planes = take(coded.codes, jnp.where(exists, div(at, 8), 0)).astype(jnp.int32)
        bit = (planes >> rem(at, 8)[:, None]) & 1
        code = (bit << jnp.arange(bits, dtype=jnp.int32)[None, :]).sum(1, dtype=jnp.int32)
        values = (code.astype(jnp.float32) - half + 0.5) * (limit_of(take(coded.scales, rank), coded.top) / half)
        return dynamic_update_slice(part, jnp.where(exists, values, 0.0), (first,))

    return jax.lax.fori_loop(0, -(-length // count), block, jnp.zeros(length))


def _codes_of_parts(part: jax.Array, layout: Layout, scales: jax.Array, top: jax.Array, bits: int, mesh: MeshConfig):
    """Codes u8[groups, b] of a pool of which each device has a part, whole on every device."""
    half, groups = 2 ** (bits - 1), -(-mesh.devices * part.shape[0] // 8)
    own_groups = -(-groups // mesh.devices)
    count = min(_AT_ONCE // 8, own_groups)
    begin = devices.number(mesh) * own_groups

    def block(index: jax.Array, packed: jax.Array) -> jax.Array:
        # A last block that would end beyond the part is moved back.
        first = jnp.minimum(index * count, own_groups - count)
        at = 8 * (begin + first) + jnp.arange(8 * count, dtype=jnp.int32)

        def answer(first: jax.Array) -> jax.Array:
            return devices.part_of(mesh, part, first + jnp.arange(8 * count, dtype=jnp.int32))

        x, (exists, _, rank) = devices.ask(mesh, at[0], answer), column_and_rank(layout.starts, at)
        code = _code_of(x, limit_of(take(scales, rank), top) / half, half) + half
        code = jnp.where(exists, code, 0.0).astype(jnp.uint8)
        return dynamic_update_slice(packed, pack_codes(code, bits), (first, 0))

    own = jax.lax.fori_loop(0, -(-own_groups // count), block, jnp.zeros((own_groups, bits), jnp.uint8))
    return devices.everyone(mesh, own)[:groups]


def _to_buffer(coded: Coded) -> Coded:
    """With room for reading past the end."""
    room = -(-coded.scales.shape[0] // 8) + 1
    return coded._replace(codes=jnp.pad(coded.codes, ((0, room), (0, 0))))


def read_columns(coded: Coded, layout: Layout, first: ArrayLike, count: int) -> jax.Array:
    """Columns of all vectors, of which nothing else is decoded: `Table.read`.

    Args:
      coded: of `encode`, its codes with room for M more coordinates.
      layout: of the M vectors.
      first: i32[], the first column.
      count: columns; static.

    Returns:
      f32[count, M], each column by place in `Layout.order`.
    """
    vectors, bits = coded.scales.shape[0], coded.codes.shape[1]
    chex.assert_shape(layout.order, (vectors,))
    groups = -(-vectors // 8) + 1
    starts = dynamic_slice(layout.starts, (first,), (count + 1,))

    def column(start):
        # Columns begin anywhere within a group of eight coordinates.
        codes = unpack_codes(dynamic_slice(coded.codes, (div(start, 8), 0), (groups, bits)))
        return dynamic_slice(codes, (rem(start, 8),), (vectors,))

    half = 2 ** (bits - 1)
    codes = jax.vmap(column)(starts[:-1])
    values = (codes.astype(jnp.float32) - half + 0.5) * (limit_of(coded.scales, coded.top) / half)[None, :]
    place = jnp.arange(vectors, dtype=jnp.int32)
    return jnp.where(place[None, :] < jnp.diff(starts)[:, None], values, 0.0)


def round_rows(vectors: jax.Array, sizes: jax.Array | int, bits: int, largest: jax.Array | None = None) -> jax.Array:
    """Vectors as codes and scales would give them back: those of `encode`, bit for bit.

    Args:
      vectors: f32[R, D].
      sizes: i32[R], or one number for all, coordinates of each; zeros are beyond them, and stay.
      bits: b; static.
      largest: f32[], the largest absolute coordinate of the whole table; None for that of these vectors.

    Returns:
      f32[R, D].

    >>> round_rows(jnp.array([[2.0, -2.0, 2.0, 0.0]]), 3, bits=1).tolist()
    [[2.0, -2.0, 2.0, 0.0]]
    """
    chex.assert_rank(vectors, 2)
    chex.assert_type(vectors, jnp.float32)
    (rows, width), half = vectors.shape, 2 ** (bits - 1)
    sizes = jnp.broadcast_to(jnp.asarray(sizes, jnp.int32), (rows,))
    has = jnp.arange(width)[None, :] < sizes[:, None]
    own_largest = jnp.where(has, jnp.abs(vectors), 0.0).max(1)
    top = _top_of(own_largest.max() if largest is None else largest)
    start, columns = _scale_of(2 * own_largest, top), jnp.where(has, vectors, 0.0).T

    def given_back(x: jax.Array, step: jax.Array) -> jax.Array:
        return (_code_of(x, step, half) + 0.5) * step

    def try_next(number, best):
        scales = jnp.where(start > 0, jnp.maximum(start - number, 1), 0)
        step = limit_of(scales, top) / half

        # Errors are added up in the order of `best_scales`, since near ties are decided by last bits.
        def add(column, wrong):
            off = (columns[column] - given_back(columns[column], step)) ** 2
            return wrong + jnp.where(column < sizes, off, 0.0)

        wrong = jax.lax.fori_loop(0, width, add, jnp.zeros(rows))
        better = wrong < best[0]
        return jnp.where(better, wrong, best[0]), jnp.where(better, scales, best[1])

    found = jax.lax.fori_loop(0, _TRIED, try_next, (jnp.full(rows, jnp.inf), start))[1]
    return jnp.where(has, given_back(vectors, (limit_of(found, top) / half)[:, None]), 0.0)


def rows_bytes(bits: int, rows: int, width: int) -> int:
    """Bytes of vectors of one width: codes, a scale for each, and the largest limit.

    >>> rows_bytes(4, rows=100, width=16)
    904
    """
    return -(-bits * rows * width // 8) + rows + _TOP_BYTES


def _rounded_columns(bits: int, pool: jax.Array, layout: Layout):
    """`Rounding.reading`: to the codes of the scales that a pool has."""
    coded, half = encode(pool, layout, bits), 2 ** (bits - 1)
    step = (limit_of(coded.scales, coded.top) / half)[None, :]
    safe = jnp.where(step > 0, step, 1.0)

    def rounded_columns(columns: jax.Array) -> jax.Array:
        code = jnp.clip(jnp.floor(columns / safe), -half, half - 1)
        # What a vector does not have is read as 0, and is no code.
        return jnp.where((columns != 0) & (step > 0), (code + 0.5) * step, 0.0)

    return rounded_columns


def few_bits_units(bits: int, nbytes: int, entities: Sides, maximum: int, metadata: bool) -> int:
    """Coordinates that bytes pay for: `StorageFactory.budget_units` of tables in few bits.

    Args:
      bits: of a coordinate.
      nbytes: bytes of the budget.
      entities: known users and items.
      maximum: the largest size of an entity.
      metadata: whether the sizes of all entities and of the two shared vectors are paid for too.

    48 entities and the two shared vectors need 50 bytes for their scales, and all together 4 for the largest limit:

    >>> few_bits_units(1, 1000, (30, 18), 128, metadata=False), few_bits_units(4, 1000, (30, 18), 128, metadata=False)
    (7568, 1888)
    """
    vectors = sum(entities) + 2
    left = nbytes - _TOP_BYTES - (size_bytes(maximum) * vectors if metadata else 0)
    # Where coordinates are fewer than vectors, at most one scale for each of them is needed.
    few = 8 * left // (8 + bits)
    while few > 0 and bits * -(-few // 8) + few > left:
        few -= 1
    return max(8 * ((left - vectors) // bits), few)


def _few_bits(bits: int, multiple: int, capacity: int, users: int, items: int, maximum: int) -> Storage:
    vectors, groups = users + items + 2, -(-capacity // 8)

    def export(stored: Coded, sizes: np.ndarray) -> Exported:
        # Vectors without coordinates come last in the order and need no scale.
        count, coded = int(sizes.sum()), (np.asarray(stored.codes), np.asarray(stored.scales))
        codes, scales = coded[0][: -(-count // 8)], coded[1][: (sizes > 0).sum()]
        return {"codes": codes, "codes_scales": scales, "codes_top": np.asarray(stored.top)[None]}

    def restore(arrays: Exported) -> Coded:
        codes, scales = np.zeros((groups, bits), np.uint8), np.zeros(vectors, np.uint8)
        for whole, name in ((codes, "codes"), (scales, "codes_scales")):
            written = arrays.get(name, whole[:0])
            if len(written) > len(whole) or written.shape[1:] != whole.shape[1:]:
                raise ValueError(
                    f"{name} of shape {written.shape} do not fit {whole.shape}:"
                    " restore with the table and the budget that the run was started with"
                )
            whole[: len(written)] = written
        return Coded(jnp.asarray(codes), jnp.asarray(scales), jnp.asarray(arrays["codes_top"][0]))

    rounding = Rounding(
        bits=bits,
        empty=lambda: Coded(jnp.zeros((groups, bits), jnp.uint8), jnp.zeros(vectors, jnp.uint8), jnp.float32(0)),
        store=lambda pool, layout: encode(pool, layout, bits, MeshConfig(multiple)),
        load=lambda stored, layout: decode(stored, layout, capacity),
        export=export,
        restore=restore,
        reading=functools.partial(_rounded_columns, bits),
        to_buffer=_to_buffer,
        read=read_columns,
        load_part=decode_part,
        round_rows=lambda vectors, sizes, largest: round_rows(vectors, sizes, bits, largest),
    )
    return rounded(capacity, users, items, maximum, rounding, multiple)


def _factory(bits: int) -> StorageFactory:
    one_device = StorageFactory(
        functools.partial(few_bits_units, bits), most_spent, functools.partial(_few_bits, bits, 1)
    )
    return in_equal_parts(with_room(one_device, bits / 8, scaled=True), functools.partial(_few_bits, bits))


FEW_BITS = {f"packed_int{bits}": _factory(bits) for bits in BITS}
"""Storages by name: b bits a coordinate, 1 byte a vector, and 4 bytes."""
