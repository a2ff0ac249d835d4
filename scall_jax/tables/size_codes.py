"""Sizes on disk in as few bits as tell them apart: a list of the sizes that occur, and a number in it for each entity.

One size for all takes no bits an entity, two sizes take one, and so on. Where that is no less than a byte (or two)
each, sizes are written as they are. The last two of M sizes are those of the shared vectors, which stand beside the
list.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables.storage import Exported, size_bytes

_PLAIN, _VALUES, _CODES = "metadata_sizes", "metadata_values", "metadata_codes"


def written_bytes(sizes: jax.Array, counted: jax.Array, maximum: int) -> jax.Array:
    """Bytes that `write` needs.

    Args:
      sizes: i32[N], of all entities.
      counted: bool[N], those that are written.
      maximum: the largest size; static.

    Returns:
      i32[], those of the two shared vectors' sizes among them.

    >>> sizes = jnp.array([3, 3, 2, 3, 2, 3, 3, 3, 3, 3])
    >>> [int(written_bytes(sizes, jnp.arange(10) < n, 128)) for n in (1, 2, 8, 10)]
    [3, 3, 5, 6]
    """
    chex.assert_rank([sizes, counted], 1)
    chex.assert_equal_shape([sizes, counted])
    chex.assert_type([sizes, counted], [int, bool])
    occurs = jnp.zeros(maximum + 1, bool).at[jnp.where(counted, sizes, maximum + 1)].set(True, mode="drop")
    distinct, number = occurs.sum(dtype=jnp.int32), counted.sum(dtype=jnp.int32)
    # Bits that tell them apart: how many powers of two are below their number.
    bits = (2 ** jnp.arange(31, dtype=jnp.int32) < distinct).sum(dtype=jnp.int32)
    each = size_bytes(maximum)
    return jnp.minimum(each * (distinct + 2) + bits * ((number + 7) // 8), each * (number + 2))


def write(sizes: np.ndarray) -> Exported:
    """Sizes as they go to disk.

    Args:
      sizes: u8, u16 or u32 [M].

    Returns:
      Arrays that `read` understands: the sizes themselves, or the values and codes of `in_codes`.

    >>> sizes = np.array([3, 3, 2, 3, 2, 3, 3, 3, 3, 3, 0, 1], np.uint8)
    >>> {name: array.tolist() for name, array in write(sizes).items()}
    {'metadata_values': [2, 3, 0, 1], 'metadata_codes': [[235, 3]]}
    """
    values, codes = in_codes(sizes)
    return {_VALUES: values, _CODES: codes} if values.nbytes + codes.nbytes < sizes.nbytes else {_PLAIN: sizes}


def in_codes(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and codes of sizes, however many there are.

    Args:
      sizes: u8, u16 or u32 [M].

    Returns:
      The K values that entities have, in ascending order, and behind them those of the shared vectors, [K + 2]; and
      u8[bits, ceil((M - 2) / 8)]: plane k has bit k of the number of each entity's value, the first in the lowest
      place.
    """
    values, number = np.unique(sizes[:-2], return_inverse=True)
    planes = (number[None, :] >> np.arange(max(len(values) - 1, 0).bit_length())[:, None]) & 1
    return np.concatenate([values, sizes[-2:]]), np.packbits(planes.astype(np.uint8), axis=1, bitorder="little")


def read(exported: Exported, count: int) -> np.ndarray:
    """The inverse of `write`.

    Args:
      exported: with the arrays of `write`; others do not matter.
      count: M.

    Returns:
      The sizes.

    Raises:
      ValueError: the arrays are not those of so many sizes.

    >>> read(write(np.array([7] * 9 + [0, 1], np.uint8)), 11)
    array([7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 1], dtype=uint8)
    """
    if _PLAIN in exported:
        return exported[_PLAIN]
    values, entities = exported.get(_VALUES, np.zeros(0, np.uint8)), count - 2
    bits = max(len(values) - 3, 0).bit_length()
    codes = exported.get(_CODES, np.zeros((bits, -(-entities // 8)), np.uint8))
    if codes.shape != (bits, -(-entities // 8)) or len(values) < 2 + (entities > 0):
        raise ValueError(
            f"codes of sizes of shape {codes.shape} for {len(values)} values and {count} vectors:"
            " restore with the stream that the run was started with"
        )
    planes = np.unpackbits(codes, axis=1, count=entities, bitorder="little").astype(np.int64)
    number = (planes << np.arange(bits)[:, None]).sum(0)
    if entities and number.max() >= len(values) - 2:
        raise ValueError(
            f"a code of a size is {number.max()}, and there are {len(values) - 2} values: the file is damaged"
        )
    return np.concatenate([values[number], values[-2:]])
