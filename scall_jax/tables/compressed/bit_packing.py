"""Codes of few bits packed bit by bit, eight coordinates to a byte.

`pack` is for entities with bit widths of their own: plane k of an entity holds bit k of all its coordinates.
`pack_codes` is for one run of codes of the same width, whatever vectors they belong to.
"""

import chex
import jax
import jax.numpy as jnp

from scall_jax.tables.compressed.lsq import MOST_BITS


def pack(codes: jax.Array, bits: jax.Array, starts: jax.Array, planes: int) -> jax.Array:
    """Pack the codes of all nodes into bit planes.

    Args:
      codes: i32[N, width], 0 <= code < 2^bits; the width is a multiple of 8.
      bits: i32[N], bit width of each node, 0 to `MOST_BITS`.
      starts: i32[N], first plane of each node; it has planes starts, ..., starts + bits - 1.
      planes: planes of the result; static.

    Returns:
      u8[planes, width / 8], lowest bits first; planes of no node are 0.

    One node of two bits and codes 0, 1, 2, 3, 0, 0, 0, 3, so that its planes are 01010001 and 00110001:

    >>> codes, bits, starts = jnp.array([[0, 1, 2, 3, 0, 0, 0, 3]]), jnp.array([2]), jnp.array([0])
    >>> packed = pack(codes, bits, starts, planes=3)
    >>> packed.tolist(), unpack(packed, bits, starts).tolist()
    ([[138], [140], [0]], [[0, 1, 2, 3, 0, 0, 0, 3]])
    """
    chex.assert_rank(codes, 2)
    chex.assert_shape([bits, starts], (codes.shape[0],))
    chex.assert_type([codes, bits, starts], int)
    nodes, width = codes.shape
    number = jnp.arange(MOST_BITS, dtype=jnp.int32)
    planar = (codes[:, None, :] >> number[None, :, None]) & 1
    octets = planar.reshape(nodes, MOST_BITS, width // 8, 8) << jnp.arange(8, dtype=jnp.int32)[None, None, None, :]
    rows = jnp.where(number[None, :] < bits[:, None], starts[:, None] + number[None, :], planes)
    return jnp.zeros((planes, width // 8), jnp.uint8).at[rows].set(octets.sum(-1).astype(jnp.uint8), mode="drop")


def unpack(packed: jax.Array, bits: jax.Array, starts: jax.Array) -> jax.Array:
    """The inverse of `pack`.

    Args:
      packed: u8[planes, width / 8].
      bits: i32[N], as in `pack`.
      starts: i32[N], as in `pack`.

    Returns:
      i32[N, width], the codes; 0 for nodes of 0 bits.
    """
    chex.assert_rank([packed, bits], [2, 1])
    chex.assert_equal_shape([bits, starts])
    chex.assert_type([packed, bits, starts], [jnp.uint8, int, int])
    planes, octets = packed.shape
    number = jnp.arange(MOST_BITS, dtype=jnp.int32)
    rows = jnp.where(number[None, :] < bits[:, None], starts[:, None] + number[None, :], planes)
    read = packed.at[rows].get(mode="fill", fill_value=0).astype(jnp.int32)
    planar = (read[..., None] >> jnp.arange(8, dtype=jnp.int32)[None, None, None, :]) & 1
    return (planar.reshape(len(bits), MOST_BITS, octets * 8) << number[None, :, None]).sum(1)


def pack_codes(codes: jax.Array, bits: int) -> jax.Array:
    """Codes of b bits, eight of them in b bytes.

    Args:
      codes: integers of any type, [n], 0 <= code < 2^b.
      bits: b; static.

    Returns:
      u8[ceil(n / 8), b]; the last group is filled up with zeros.

    >>> pack_codes(jnp.array([1, 0, 3, 2]), bits=2).tolist()
    [[5, 12]]
    >>> unpack_codes(pack_codes(jnp.array([1, 0, 3, 2]), bits=2)).tolist()
    [1, 0, 3, 2, 0, 0, 0, 0]
    """
    chex.assert_rank(codes, 1)
    chex.assert_type(codes, int)
    groups = jnp.pad(codes.astype(jnp.uint8), (0, -codes.shape[0] % 8)).reshape(-1, 8)
    place, number = jnp.arange(8, dtype=jnp.uint8), jnp.arange(bits, dtype=jnp.uint8)
    planes = (groups[:, None, :] >> number[None, :, None]) & 1
    return (planes << place[None, None, :]).sum(-1, dtype=jnp.uint8)


def unpack_codes(packed: jax.Array) -> jax.Array:
    """The inverse of `pack_codes`: i32[8 x groups]."""
    chex.assert_rank(packed, 2)
    chex.assert_type(packed, jnp.uint8)
    place, number = jnp.arange(8, dtype=jnp.int32), jnp.arange(packed.shape[1], dtype=jnp.int32)
    planes = (packed.astype(jnp.int32)[:, :, None] >> place[None, None, :]) & 1
    return (planes << number[None, :, None]).sum(1).ravel()
