"""Codes of few bits packed bit by bit: plane k of an entity holds bit k of all its coordinates, eight to a byte."""

import jax
import jax.numpy as jnp

from scall_jax.tables.compressed.lsq import MOST_BITS


def pack(codes: jax.Array, bits: jax.Array, starts: jax.Array, planes: int) -> jax.Array:
    """Codes i32[N, width], 0 <= code < 2^bits, to planes u8[planes, width / 8]; unused planes are 0."""
    nodes, width = codes.shape
    number = jnp.arange(MOST_BITS, dtype=jnp.int32)
    planar = (codes[:, None, :] >> number[None, :, None]) & 1
    octets = planar.reshape(nodes, MOST_BITS, width // 8, 8) << jnp.arange(8, dtype=jnp.int32)[None, None, None, :]
    rows = jnp.where(number[None, :] < bits[:, None], starts[:, None] + number[None, :], planes)
    return jnp.zeros((planes, width // 8), jnp.uint8).at[rows].set(octets.sum(-1).astype(jnp.uint8), mode="drop")


def unpack(packed: jax.Array, bits: jax.Array, starts: jax.Array) -> jax.Array:
    """The codes that `pack` packed; i32[N, width]."""
    planes, octets = packed.shape
    number = jnp.arange(MOST_BITS, dtype=jnp.int32)
    rows = jnp.where(number[None, :] < bits[:, None], starts[:, None] + number[None, :], planes)
    read = packed.at[rows].get(mode="fill", fill_value=0).astype(jnp.int32)
    planar = (read[..., None] >> jnp.arange(8, dtype=jnp.int32)[None, None, None, :]) & 1
    return (planar.reshape(len(bits), MOST_BITS, octets * 8) << number[None, :, None]).sum(1)
