"""The packed table in which each vector has bits of its own beside its size: 1, 2, 3, 4 or 8 a coordinate.

Codes and scales are those of `few_bits`. A plan has a size and a number of bits for each vector, and bits are what the
budget counts: a vector of d coordinates in b bits takes b d bits of codes and 8 of its scale. The codes lie in planes:
plane p has bit p of the codes of all vectors with more than p bits, coordinate after coordinate in the order of the
pool, and the planes follow one another without a gap.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables import size_codes
from scall_jax.tables.compressed.few_bits import BITS, best_scales, limit_of, quantised
from scall_jax.tables.layout import Layout, column_and_rank
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import all_sizes, sized, sizes_in_use
from scall_jax.tables.storage import Exported, Previous, Sides, Storage, StorageFactory

MOST_BITS = max(BITS)
_PLANES = np.arange(MOST_BITS)
_TOP_BYTES = 4
_COUNTED_BITS = 2**31 - 1  # places of bits are int32
SCALE_BITS = 8
"""Bits of a vector's scale."""
_FACTOR = 16
"""Sizes and bits go to disk together, as size x 16 + bits."""


class BitPlan(NamedTuple):
    """Plan of the storage."""

    sizes: jax.Array
    """i32[N + 2], coordinates of each vector."""
    bits: jax.Array
    """i32[N + 2], bits of each of its coordinates, one of `BITS`; 0 for vectors without."""


class BitLayout(NamedTuple):
    """Layout of the storage: where coordinates lie, by the fields of `Layout`, and the bits of their codes."""

    sizes: jax.Array
    order: jax.Array
    source: jax.Array
    starts: jax.Array
    largest: jax.Array
    bits: jax.Array
    """i32[M], bits of each vector."""

    @property
    def pool(self) -> Layout:
        """The layout without bits."""
        return Layout(*self[:5])


class Planes(NamedTuple):
    """A pool with bits of its own for each vector."""

    codes: jax.Array
    """u8[capacity], the planes, the first bit in the lowest place."""
    scales: jax.Array
    """u8[M], by place in `Layout.order`; as in `few_bits.Coded`."""
    top: jax.Array
    """f32[]."""


def bits_of(plan: BitPlan) -> jax.Array:
    """Bits of codes and scales, i32[].

    >>> int(bits_of(BitPlan(jnp.array([3, 0, 2]), jnp.array([4, 0, 1]))))
    30
    """
    return (plan.sizes * plan.bits + jnp.where(plan.sizes > 0, SCALE_BITS, 0)).sum(dtype=jnp.int32)


def spent_bytes(plan: BitPlan) -> jax.Array:
    """Bytes of codes and scales, i32[]."""
    scales = (plan.sizes > 0).sum(dtype=jnp.int32)
    return scales + ((plan.sizes * plan.bits).sum(dtype=jnp.int32) + 7) // 8


def metadata_bytes(plan: BitPlan, counted: jax.Array, maximum: int) -> jax.Array:
    """Bytes of sizes and bits on disk, i32[].

    Args:
      plan: the plan.
      counted: bool[N], entities whose sizes are written.
      maximum: the largest size; static.
    """
    return size_codes.written_bytes(_joined(plan.sizes, plan.bits)[:-2], counted, _joined(maximum, MOST_BITS))


def _joined(sizes, bits):
    return _FACTOR * sizes + bits


def _ranks(layout: BitLayout, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Place i32[capacity] in `order` of the vector that each coordinate belongs to, and whether it is in use."""
    used, _, rank = column_and_rank(layout.starts, jnp.arange(capacity, dtype=jnp.int32))
    return rank, used


def _places(layout: BitLayout, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Bits i32[capacity] of each coordinate of the pool, and the place i32[planes, capacity] of each bit, or beyond."""
    rank, used = _ranks(layout, capacity)
    bits = jnp.where(used, layout.bits[layout.order][rank], 0)
    has = bits[None, :] > jnp.asarray(_PLANES, jnp.int32)[:, None]
    place = jnp.cumsum(has.ravel().astype(jnp.int32)).reshape(has.shape) - 1
    return bits, jnp.where(has, place, jnp.iinfo(jnp.int32).max)


def encode(pool: jax.Array, layout: BitLayout, room: int) -> Planes:
    """Codes and scales of a pool.

    Args:
      pool: f32[capacity] of the packed table.
      layout: of its M vectors.
      room: bytes of codes; static.

    Returns:
      Planes.
    """
    chex.assert_rank(pool, 1)
    capacity, own = pool.shape[0], layout.bits[layout.order]
    half = jnp.exp2(jnp.maximum(own, 1).astype(jnp.float32) - 1)
    scales, top = best_scales(pool, layout.pool, half)
    codes = quantised(pool, layout.pool, scales, top, half)
    _, place = _places(layout, capacity)
    bit = (codes.astype(jnp.int32)[None, :] >> jnp.asarray(_PLANES, jnp.int32)[:, None]) & 1
    flat = jnp.zeros(8 * room, jnp.uint8).at[place].set(bit.astype(jnp.uint8), mode="drop")
    weight = jnp.asarray(1 << np.arange(8), jnp.uint8)
    return Planes((flat.reshape(room, 8) * weight[None, :]).sum(1, dtype=jnp.uint8), scales.astype(jnp.uint8), top)


def decode(stored: Planes, layout: BitLayout, capacity: int) -> jax.Array:
    """The pool that codes and scales stand for.

    Args:
      stored: of `encode`.
      layout: of the M vectors.
      capacity: coordinates of the pool; static.

    Returns:
      f32[capacity].
    """
    bits, place = _places(layout, capacity)
    shifts = jnp.arange(8, dtype=jnp.uint8)
    flat = ((stored.codes[:, None] >> shifts[None, :]) & jnp.uint8(1)).ravel()
    planes = flat.at[place].get(mode="fill", fill_value=0).astype(jnp.int32)
    codes = (planes << jnp.asarray(_PLANES, jnp.int32)[:, None]).sum(0, dtype=jnp.int32)
    half = jnp.exp2(jnp.maximum(bits, 1).astype(jnp.float32) - 1)
    rank, used = _ranks(layout, capacity)
    step = limit_of(stored.scales, stored.top)[rank] / half
    return jnp.where(used, (codes.astype(jnp.float32) - half + 0.5) * step, 0.0)


def own_bits(room: int, users: int, items: int, maximum: int) -> Storage:
    """Build the storage.

    Args:
      room: bytes of codes and scales.
      users, items: capacities of the sides.
      maximum: the largest size of an entity.

    Returns:
      Storage. Its plan is a `BitPlan`; a budget unit is a byte.

    Raises:
      ValueError: more bytes than have bits that int32 counts.
    """
    if 8 * room > _COUNTED_BITS:
        raise ValueError(
            f"{room} bytes of packed_bits: their bits are counted to 2^31 - 1, which are {_COUNTED_BITS // 8} bytes: "
            "lower the budget, or choose packed_int4"
        )
    nodes = users + items
    # In one bit a coordinate, a vector of the largest size has the least bits a coordinate.
    capacity = min(int(8 * room / (1 + SCALE_BITS / maximum)), (nodes + 2) * maximum)
    table = packed(capacity, users, items, maximum)
    plain = sized(table, users, maximum)

    def layout(plan: BitPlan) -> BitLayout:
        return BitLayout(*table.layout(plan.sizes), plan.bits)

    def load(stored: Planes, layout: BitLayout) -> jax.Array:
        return decode(stored, layout, capacity)

    def warm_start(key, previous: Previous, plan: BitPlan, options):
        loaded = load(previous.stored, layout(previous.plan))
        return plain.warm_start(key, previous._replace(stored=loaded, plan=previous.plan.sizes), plan.sizes, options)

    return plain._replace(
        plan=lambda: BitPlan(*(jnp.zeros(nodes + 2, jnp.int32) for _ in range(2))),
        empty=lambda: Planes(jnp.zeros(room, jnp.uint8), jnp.zeros(nodes + 2, jnp.uint8), jnp.float32(0)),
        layout=layout,
        warm_start=warm_start,
        store=lambda pool, layout: encode(pool, layout, room),
        load=load,
        sizes=lambda plan: plan.sizes,
        allocated=spent_bytes,
        export=functools.partial(_export, users, maximum),
        restore=functools.partial(_restore, room, users, items, maximum),
        rounds=True,
        bits=lambda plan: plan.bits[:-2],
        affords=None,
    )


def _export(users: int, maximum: int, stored: Planes, plan: BitPlan, known: Sides) -> Exported:
    sizes, bits = np.asarray(plan.sizes), np.asarray(plan.bits)
    joined = sizes_in_use(_joined(sizes, bits), users, _joined(maximum, MOST_BITS), known)
    count = -(-int((sizes * bits).sum()) // 8)
    # Vectors without coordinates come last in the order and need no scale.
    arrays = {"codes": stored.codes[:count], "codes_scales": stored.scales[: (sizes > 0).sum()]}
    found = {name: np.asarray(array) for name, array in arrays.items()}
    return found | {"codes_top": np.asarray(stored.top)[None]} | size_codes.write(joined)


def _restore(
    room: int, users: int, items: int, maximum: int, exported: Exported, known: Sides
) -> tuple[Planes, BitPlan]:
    nodes, arrays = users + items, {}
    joined = all_sizes(size_codes.read(exported, sum(known) + 2), users, nodes, known)
    for name, length in (("codes", room), ("codes_scales", nodes + 2)):
        whole, written = np.zeros(length, np.uint8), exported.get(name, np.zeros(0, np.uint8))
        if len(written) > length or written.ndim != 1 or joined.max(initial=0) > _joined(maximum, MOST_BITS):
            raise ValueError(
                f"{name} of shape {written.shape} do not fit ({length},):"
                " restore with the table and the budget that the run was started with"
            )
        whole[: len(written)] = written
        arrays[name] = jnp.asarray(whole)
    plan = BitPlan(jnp.asarray(joined // _FACTOR), jnp.asarray(joined % _FACTOR))
    return Planes(arrays["codes"], arrays["codes_scales"], jnp.asarray(exported["codes_top"][0])), plan


def _units(nbytes: int, entities: Sides, maximum: int, metadata: bool) -> int:
    # Sizes and bits are counted by whoever makes a plan: how many bytes they take follows from it.
    del entities, maximum, metadata
    return nbytes - _TOP_BYTES


def _capacity(units: Sequence[int], entities: Sequence[Sides], maximum: int) -> int:
    """Bytes of codes and scales that some segment can spend: vectors of the largest size in the most bits, at most."""
    most = (-(-MOST_BITS * maximum // 8) + SCALE_BITS // 8) * (max(sum(known) for known in entities) + 2)
    return min(max(units), most)


PACKED_BITS = StorageFactory(
    budget_units=_units,
    capacity=_capacity,
    build=own_bits,
    # A unit is a byte, and most coordinates have about four bits.
    coordinates_of_unit=2,
)
"""Bits of its own for each vector, 1 byte a vector, and 4 bytes."""
