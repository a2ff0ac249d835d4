"""Storage that many entities share: rows found by the bits or the quotient of an entity's number.

Entities are numbered by arrival within their side. All rows of both sides lie in one array f32[rows, width], of which
the leading columns that the budget pays for are in use: rows x columns parameters, whatever the number of entities.
There are no indices to store, and entities never seen before can be looked up at once. The rows are chosen by the
largest budget of a run and its last entities: compare at constant bytes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables.storage import Exported, Storage, StorageFactory

WIDTH = 16
"""Columns that the number of rows is chosen for, where the budget has room for a choice."""

_ODD = (0x9E3779B1, 0x85EBCA77)  # odd, so that multiplying by them is a bijection modulo any power of two


def mix(number, bits: int):
    """A fixed bijection of the integers below 2^bits, so that neighbours in time share no high bits; u32 like `number`.

    `number` is a numpy or jax array of integers.
    """
    mask = np.uint32(2**bits - 1)
    mixed = number.astype(np.uint32)
    for odd in _ODD:
        mixed = (mixed * np.uint32(odd)) & mask
        mixed = mixed ^ (mixed >> np.uint32(max(1, bits // 2)))
    return mixed


def codes(capacity: int) -> np.ndarray:
    """The integers below `capacity` in mixed order, u32: a bijection, so that no row stands for a number nobody has."""
    bits = bits_for(capacity)
    code = mix(np.arange(capacity), bits)
    while (code >= capacity).any():  # mixed again until it is one of them, which leaves it a bijection
        code = np.where(code < capacity, code, mix(code, bits))
    return code


def rows_of_block(capacity: int, positions: list[int]) -> int:
    """Numbers from 0 to the largest that these bits of an integer below `capacity` form."""
    last = capacity - 1
    # the largest is met at the last integer or where one of its bits is 0 and all lower ones are 1
    tops = [last, *((last >> p << p) - 1 for p in range(last.bit_length()) if last >> p & 1)]
    return 1 + max(int(block_index(np.uint32(top), positions)) for top in tops)


def block_bits(bits: int, blocks: int, skip: bool) -> list[list[int]]:
    """Positions of the bits of each block, lowest first; Yan et al., CIKM 2021 (arXiv 2109.02471).

    `succession`: runs of neighbouring bits. `skip`: every blocks-th bit.
    """
    if skip:
        return [list(range(k, bits, blocks)) for k in range(blocks)]
    return [part.tolist() for part in np.array_split(np.arange(bits), blocks)]


def uneven_bits(bits: int, short: int, skip: bool) -> list[list[int]]:
    """Two blocks, of bits - short and of `short` bits, where equal ones leave too few or too many rows: positions."""
    few = [i * bits // short for i in range(short)] if skip else list(range(bits - short, bits))
    return [[p for p in range(bits) if p not in few], few]


def block_index(code, positions: list[int]):
    """The number that some bits of `code` form, each at its place inside the block; u32 like `code`."""
    return sum(((code >> np.uint32(p)) & np.uint32(1)) << np.uint32(at) for at, p in enumerate(positions))


def bits_for(capacity: int) -> int:
    """Bits that tell `capacity` entities apart, at least 1."""
    return max(1, (capacity - 1).bit_length())


class _Rows:
    """Rows of the entities of both sides: i32[N, K] into an array, and how many rows there are."""

    def __init__(self, sides: list[tuple[np.ndarray, int]]):
        most = max(index.shape[1] for index, _ in sides)
        self.count = sum(rows for _, rows in sides)
        parts, first = [], 0
        for index, rows in sides:
            # a side with fewer blocks reads row `count`, which is no row and reads as nothing
            missing = np.full((len(index), most - index.shape[1]), self.count)
            parts.append(np.concatenate([index + first, missing], axis=1))
            first += rows
        self.index = np.concatenate(parts).astype(np.int32)
        self.blocks = most


class _Option(NamedTuple):
    """A way to find rows: how many there are, and how to build the index into them."""

    count: int
    build: Callable[[], _Rows]


def _by_bits(capacities: tuple[int, int], split: Callable[[int], list[list[int]]]) -> _Option:
    """`split` cuts a side's bits into blocks."""
    blocks = [split(bits_for(capacity)) for capacity in capacities]
    counts = [
        [rows_of_block(capacity, p) for p in positions] for capacity, positions in zip(capacities, blocks, strict=True)
    ]

    def build():
        sides = []
        for capacity, positions, rows in zip(capacities, blocks, counts, strict=True):
            code, starts = codes(capacity), np.cumsum([0, *rows])[:-1]
            index = np.stack([block_index(code, p).astype(np.int64) for p in positions], axis=1) + starts
            sides.append((index, sum(rows)))
        return _Rows(sides)

    return _Option(sum(map(sum, counts)), build)


def _by_quotient(capacities: tuple[int, int], step: int) -> _Option:
    """Remainders modulo 2^step x sqrt(capacity) first, quotients after them."""
    moduli = [min(capacity, int(np.ceil(np.sqrt(capacity))) * 2**step) for capacity in capacities]
    counts = [modulus + -(-capacity // modulus) for capacity, modulus in zip(capacities, moduli, strict=True)]

    def build():
        sides = []
        for capacity, modulus, count in zip(capacities, moduli, counts, strict=True):
            number = np.arange(capacity)
            sides.append((np.stack([number % modulus, modulus + number // modulus], axis=1), count))
        return _Rows(sides)

    return _Option(sum(counts), build)


def _choose(capacity: int, options: list[_Option], maximum: int, what: str) -> _Option:
    """The most rows of which `WIDTH` columns fit, or `maximum` if that is less; else the fewest.

    Raises:
      ValueError: not even one column of the fewest fits.
    """
    ordered = sorted(options, key=lambda option: -option.count)
    fits = [option for option in ordered if option.count * min(WIDTH, maximum) <= capacity]
    chosen = fits[0] if fits else ordered[-1]
    if chosen.count > capacity:
        raise ValueError(
            f"{what} needs {chosen.count} parameters at least, the budget has {capacity}: raise the budget"
        )
    return chosen


def _storage(rows: _Rows, capacity: int, users: int, items: int, maximum: int, multiply: bool) -> Storage:
    width = min(maximum, capacity // rows.count)
    column = jnp.arange(width)

    def initial(key, std):
        noise = jax.random.normal(key, (rows.count, width))
        if not multiply:
            return std * noise / np.sqrt(rows.blocks)  # so that the sum has the standard deviation
        return jnp.where(_is_quotient(rows)[:, None], 1 + 0.1 * noise, std * noise)

    def vectors(params, columns):
        read = jnp.where(column < columns, params, 0.0).at[rows.index].get(mode="fill", fill_value=0.0)
        return read.prod(1) if multiply else read.sum(1)

    def resize(key, stored, old, new, known, weight, carry):
        del new, known, weight
        factor = jnp.where(_is_quotient(rows)[:, None], 1.0, carry.shrink) if multiply else carry.shrink
        return jnp.where(column < old, factor * stored, initial(key, carry.init_std))

    return Storage(
        plan=lambda: jnp.int32(0),
        empty=lambda: jnp.zeros((rows.count, width)),
        layout=lambda columns: columns,
        fresh=lambda key, columns, std: initial(key, std),
        resize=resize,
        vectors=vectors,
        store=lambda params, columns: jnp.where(column < columns, params, 0.0),
        load=lambda stored, columns: stored,
        sizes=lambda columns: jnp.concatenate([jnp.full(users + items, columns), jnp.zeros(2, jnp.int32)]),
        allocated=lambda columns: columns * rows.count,
        used=lambda columns: columns,
        export=_export,
        restore=functools.partial(_restore, rows.count, width),
        nodes=users + items,
        width=width,
    )


def _is_quotient(rows: _Rows) -> np.ndarray:
    quotient = np.zeros(rows.count, bool)
    quotient[rows.index[:, 1]] = True
    return quotient


def columns_within(storage: Storage, total: jax.Array) -> jax.Array:
    """Columns of a hashed storage that `total` parameters pay for, i32[]: its plan."""
    rows, width = jax.eval_shape(storage.empty).shape
    return jnp.minimum(total // rows, width).astype(jnp.int32)


def _export(stored, columns, known) -> Exported:
    del known
    return {"parameters": np.asarray(stored)[:, : int(columns)]}


def _restore(rows, width, exported, known):
    del known
    written = exported.get("parameters", np.zeros((rows, 0), np.float32))
    if written.shape[0] != rows or written.shape[1] > width:
        raise ValueError(f"parameters of shape {written.shape} do not fit {(rows, width)}: another budget's?")
    params = np.zeros((rows, width), np.float32)
    params[:, : written.shape[1]] = written
    return jnp.asarray(params), jnp.int32(written.shape[1])


def _kind(options: Callable[[tuple[int, int]], list[_Option]], what: str, multiply: bool) -> StorageFactory:
    @functools.lru_cache(maxsize=8)
    def rows_for(capacity, users, items, maximum):
        return _choose(capacity, options((users, items)), maximum, what).build()

    def capacity(budget_units, entities, maximum):
        rows = _choose(max(budget_units), options(entities[-1]), maximum, what).count
        for t, total in enumerate(budget_units):
            if total < rows:
                raise ValueError(
                    f"{what}: the {total} parameters of segment {t} are no column of the {rows} rows that"
                    f" {max(budget_units)} parameters are best spent on: give every segment the same (--budget.megabytes)"
                )
        return max(budget_units)

    return StorageFactory(
        budget_units=lambda nbytes, entities, maximum, metadata: nbytes // 4,
        capacity=capacity,
        build=lambda capacity, users, items, maximum: _storage(
            rows_for(capacity, users, items, maximum), capacity, users, items, maximum, multiply
        ),
    )


def _binary(skip: bool) -> StorageFactory:
    def equal(blocks, bits):
        return block_bits(bits, min(blocks, bits), skip)

    def uneven(short, bits):
        return uneven_bits(bits, min(short, bits // 2), skip) if bits > 1 else equal(1, bits)

    def options(capacities):
        most = max(map(bits_for, capacities))
        splits = [functools.partial(equal, blocks) for blocks in range(1, most + 1)]
        splits += [functools.partial(uneven, short) for short in range(1, most // 2)]
        return [_by_bits(capacities, split) for split in splits]

    return _kind(options, "binary_hash", multiply=False)


def _quotients(capacities):
    steps = bits_for(max(capacities)) // 2 + 1
    return [_by_quotient(capacities, step) for step in range(steps + 1)]


BINARY_HASH = _binary(skip=False)
"""Binary code based hash embedding, blocks of neighbouring bits, sum of the blocks' rows (Yan et al., CIKM 2021)."""

BINARY_HASH_SKIP = _binary(skip=True)
"""The same with every K-th bit in a block."""

QUOTIENT_REMAINDER = _kind(_quotients, "quotient_remainder", multiply=True)
"""Quotient-remainder trick with element-wise products (Shi et al., KDD 2020, arXiv 1909.02107)."""
