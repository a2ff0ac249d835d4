"""Storage that many entities share: rows found by the bits or the quotient of an entity's number.

Entities are numbered by arrival within their side. All rows of both sides lie in one array f32[rows, width], of which
the leading columns that the budget pays for are in use: rows x columns parameters, whatever the number of entities.
There are no indices to store, and new entities can be looked up at once. The number of rows is chosen by the largest
budget of a run and its last entities: compare at constant bytes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables.storage import Exported, Previous, Sides, Storage, StorageFactory, WarmStartOptions

WIDTH = 16
"""Columns that the number of rows is chosen for, where the budget has room for a choice."""

_ODD = (0x9E3779B1, 0x85EBCA77)
"""Odd numbers, so that multiplying by them is a bijection modulo any power of two."""

Numbers = TypeVar("Numbers", np.ndarray, np.uint32)


def mix(number: np.ndarray, bits: int) -> np.ndarray:
    """A fixed bijection of the integers below 2^bits, after which neighbours in time share no high bits.

    Args:
      number: integers [...] below 2^bits.
      bits: number of bits.

    Returns:
      u32[...], below 2^bits.

    >>> mix(np.arange(8), bits=3).tolist()
    [0, 4, 7, 5, 3, 1, 2, 6]
    """
    chex.assert_type(number, int)
    mask = np.uint32(2**bits - 1)
    mixed = number.astype(np.uint32)
    for odd in _ODD:
        mixed = (mixed * np.uint32(odd)) & mask
        mixed = mixed ^ (mixed >> np.uint32(max(1, bits // 2)))
    return mixed


def binary_codes(capacity: int) -> np.ndarray:
    """The integers below `capacity` in mixed order: a bijection, so that every row has an entity that reads it.

    Args:
      capacity: number of entities.

    Returns:
      u32[capacity].
    """
    bits = bits_for(capacity)
    code = mix(np.arange(capacity), bits)
    while (code >= capacity).any():
        # What is still too large is mixed again until it is small enough, which leaves the whole a bijection.
        code = np.where(code < capacity, code, mix(code, bits))
    return code


def rows_of_block(capacity: int, positions: Sequence[int]) -> int:
    """Rows that a block of bits needs: 1 + the largest number that these bits of an integer below `capacity` form.

    >>> rows_of_block(capacity=6, positions=[0, 1]), rows_of_block(capacity=6, positions=[1, 2])
    (4, 3)
    """
    last = capacity - 1
    # The largest is met at the last integer, or where one of its bits is 0 and all lower ones are 1.
    tops = [last, *((last >> p << p) - 1 for p in range(last.bit_length()) if last >> p & 1)]
    return 1 + max(int(block_index(np.uint32(top), positions)) for top in tops)


def block_bits(bits: int, blocks: int, skip: bool) -> list[list[int]]:
    """Positions of the bits of each block (Yan et al., CIKM 2021, arXiv 2109.02471).

    Args:
      bits: bits of a code.
      blocks: number of blocks.
      skip: every blocks-th bit (their `skip`) instead of runs of neighbouring bits (their `succession`).

    Returns:
      Positions of each block, lowest first.

    >>> block_bits(5, 2, skip=False), block_bits(5, 2, skip=True)
    ([[0, 1, 2], [3, 4]], [[0, 2, 4], [1, 3]])
    """
    if skip:
        return [list(range(k, bits, blocks)) for k in range(blocks)]
    return [part.tolist() for part in np.array_split(np.arange(bits), blocks)]


def uneven_bits(bits: int, short: int, skip: bool) -> list[list[int]]:
    """Two blocks, of bits - short and of `short` bits, for budgets that equal blocks leave too few or too many rows.

    Args:
      bits: bits of a code.
      short: bits of the second block.
      skip: the second block's bits lie apart instead of being the highest.

    Returns:
      Positions of both blocks, lowest first.
    """
    few = [i * bits // short for i in range(short)] if skip else list(range(bits - short, bits))
    return [[p for p in range(bits) if p not in few], few]


def block_index(code: Numbers, positions: Sequence[int]) -> Numbers:
    """The number that some bits of a code form.

    Args:
      code: u32[...].
      positions: of the bits; the first becomes bit 0 of the result, the second bit 1, ...

    Returns:
      u32[...].
    """
    chex.assert_type(code, np.uint32)
    parts = (((code >> np.uint32(p)) & np.uint32(1)) << np.uint32(at) for at, p in enumerate(positions))
    return cast(Numbers, sum(parts))


def bits_for(capacity: int) -> int:
    """Bits that tell `capacity` entities apart, at least 1."""
    return max(1, (capacity - 1).bit_length())


class _Rows(NamedTuple):
    """Rows that the entities of both sides read."""

    index: np.ndarray  # i32[N, blocks], rows of each entity; `count` where a side has fewer blocks, which reads nothing
    count: int  # rows of both sides
    blocks: int  # rows that an entity reads at most


class _Side(NamedTuple):
    """Rows that the entities of one side read."""

    index: np.ndarray  # i64[entities, blocks]
    count: int  # rows of the side


def _join(sides: Sequence[_Side]) -> _Rows:
    blocks = max(side.index.shape[1] for side in sides)
    count = sum(side.count for side in sides)
    parts, first = [], 0
    for side in sides:
        missing = np.full((len(side.index), blocks - side.index.shape[1]), count)
        parts.append(np.concatenate([side.index + first, missing], axis=1))
        first += side.count
    return _Rows(np.concatenate(parts).astype(np.int32), count, blocks)


class _Option(NamedTuple):
    """A way to find rows: how many there are, and how to build the index into them."""

    count: int
    build: Callable[[], _Rows]


def _by_bits(capacities: Sides, split: Callable[[int], list[list[int]]]) -> _Option:
    """Rows by blocks of bits; `split` cuts the bits of a side's codes into blocks."""
    blocks = [split(bits_for(capacity)) for capacity in capacities]
    counts = [
        [rows_of_block(capacity, p) for p in positions] for capacity, positions in zip(capacities, blocks, strict=True)
    ]

    def build():
        sides = []
        for capacity, positions, rows in zip(capacities, blocks, counts, strict=True):
            code, starts = binary_codes(capacity), np.cumsum([0, *rows])[:-1]
            index = np.stack([block_index(code, p).astype(np.int64) for p in positions], axis=1) + starts
            sides.append(_Side(index, sum(rows)))
        return _join(sides)

    return _Option(sum(map(sum, counts)), build)


def _by_quotient(capacities: Sides, step: int) -> _Option:
    """Rows by remainder and quotient, the modulus being 2^step x sqrt(capacity); remainders' rows come first."""
    moduli = [min(capacity, int(np.ceil(np.sqrt(capacity))) * 2**step) for capacity in capacities]
    counts = [modulus + -(-capacity // modulus) for capacity, modulus in zip(capacities, moduli, strict=True)]

    def build():
        sides = []
        for capacity, modulus, count in zip(capacities, moduli, counts, strict=True):
            number = np.arange(capacity)
            sides.append(_Side(np.stack([number % modulus, modulus + number // modulus], axis=1), count))
        return _join(sides)

    return _Option(sum(counts), build)


def _best_option(capacity: int, options: list[_Option], maximum: int, name: str) -> _Option:
    """The most rows of which `WIDTH` columns fit, or `maximum` if that is less; else the fewest.

    Raises:
      ValueError: not even one column of the fewest fits.
    """
    ordered = sorted(options, key=lambda option: -option.count)
    fits = [option for option in ordered if option.count * min(WIDTH, maximum) <= capacity]
    best = fits[0] if fits else ordered[-1]
    if best.count > capacity:
        raise ValueError(f"{name} needs {best.count} parameters at least, the budget has {capacity}: raise the budget")
    return best


def _hashed(rows: _Rows, capacity: int, users: int, items: int, maximum: int, multiply: bool) -> Storage:
    """Storage of f32[rows, width]; the plan and the layout are the columns in use, i32[]."""
    width = min(maximum, capacity // rows.count)
    column = jnp.arange(width)

    def initial(key, std):
        noise = jax.random.normal(key, (rows.count, width))
        if not multiply:
            return std * noise / np.sqrt(rows.blocks)  # so that the sum has the standard deviation
        return jnp.where(_is_quotient(rows)[:, None], 1 + 0.1 * noise, std * noise)

    def vectors(params, columns):
        chex.assert_shape([params, columns], [(rows.count, width), ()])
        read = jnp.where(column < columns, params, 0.0).at[rows.index].get(mode="fill", fill_value=0.0)
        return read.prod(1) if multiply else read.sum(1)

    def warm_start(key, previous: Previous, plan, options: WarmStartOptions):
        del plan
        factor = jnp.where(_is_quotient(rows)[:, None], 1.0, options.shrink) if multiply else options.shrink
        return jnp.where(column < previous.plan, factor * previous.stored, initial(key, options.init_std))

    return Storage(
        plan=lambda: jnp.int32(0),
        empty=lambda: jnp.zeros((rows.count, width)),
        layout=lambda columns: columns,
        fresh=lambda key, columns, std: initial(key, std),
        warm_start=warm_start,
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
    """Columns of a hashed storage that a budget pays for: its plan.

    Args:
      storage: of a factory of this module; static.
      total: i32[], budget units: float32 parameters.

    Returns:
      i32[], at most `storage.width`.
    """
    chex.assert_rank(total, 0)
    chex.assert_type(total, int)
    rows, width = jax.eval_shape(storage.empty).shape
    return jnp.minimum(total // rows, width).astype(jnp.int32)


def _export(stored, columns, known) -> Exported:
    del known
    return {"parameters": np.asarray(stored)[:, : int(columns)]}


def _restore(rows, width, exported, known):
    del known
    written = exported.get("parameters", np.zeros((rows, 0), np.float32))
    if written.shape[0] != rows or written.shape[1] > width:
        raise ValueError(
            f"parameters of shape {written.shape} do not fit {(rows, width)}:"
            " restore with the stream and the budget that the run was started with"
        )
    params = np.zeros((rows, width), np.float32)
    params[:, : written.shape[1]] = written
    return jnp.asarray(params), jnp.int32(written.shape[1])


def _hashed_factory(options: Callable[[Sides], list[_Option]], name: str, multiply: bool) -> StorageFactory:
    """Factory of storages whose rows are the best of `options`; an entity's rows are multiplied or added."""

    @functools.lru_cache(maxsize=8)
    def rows_for(capacity, users, items, maximum):
        return _best_option(capacity, options((users, items)), maximum, name).build()

    def capacity(budget_units, entities, maximum):
        most = max(budget_units)
        rows = _best_option(most, options(entities[-1]), maximum, name).count
        for t, total in enumerate(budget_units):
            if total < rows:
                raise ValueError(
                    f"{name}: the {total} parameters of segment {t} are less than a column of the {rows} rows that"
                    f" {most} parameters are best spent on: give every segment the same (--budget.megabytes)"
                )
        return most

    def build(capacity, users, items, maximum):
        return _hashed(rows_for(capacity, users, items, maximum), capacity, users, items, maximum, multiply)

    return StorageFactory(
        budget_units=lambda nbytes, entities, maximum, metadata: nbytes // 4,
        capacity=capacity,
        build=build,
    )


def _binary_factory(skip: bool) -> StorageFactory:
    def equal(blocks, bits):
        return block_bits(bits, min(blocks, bits), skip)

    def uneven(short, bits):
        return uneven_bits(bits, min(short, bits // 2), skip) if bits > 1 else equal(1, bits)

    def options(capacities):
        most = max(map(bits_for, capacities))
        splits = [functools.partial(equal, blocks) for blocks in range(1, most + 1)]
        splits += [functools.partial(uneven, short) for short in range(1, most // 2)]
        return [_by_bits(capacities, split) for split in splits]

    return _hashed_factory(options, "binary_hash", multiply=False)


def _quotient_options(capacities: Sides) -> list[_Option]:
    steps = bits_for(max(capacities)) // 2 + 1
    return [_by_quotient(capacities, step) for step in range(steps + 1)]


BINARY_HASH = _binary_factory(skip=False)
"""Binary code based hash embedding, blocks of neighbouring bits, sum of the blocks' rows (Yan et al., CIKM 2021)."""

BINARY_HASH_SKIP = _binary_factory(skip=True)
"""The same with every K-th bit in a block."""

QUOTIENT_REMAINDER = _hashed_factory(_quotient_options, "quotient_remainder", multiply=True)
"""Quotient-remainder trick with element-wise products (Shi et al., KDD 2020, arXiv 1909.02107)."""
