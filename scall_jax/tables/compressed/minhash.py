"""Min-hash signatures of entities' interaction sets, and the cells of a shared array that they lead to.

Entities with similar sets share many keys of their signatures, hence many cells (Desai et al., arXiv 2103.06124; their
sets are of samples, here of the other side's entities). All arithmetic is modulo 2^32.
"""

from typing import TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.streams import Graph

KEY_BITS = 8
"""Bits kept of a minimum: two different minima have equal keys with probability 1/256."""

_ELEMENT, _OWN, _CELL, _DRAW = 0x9E3779B9, 0x7F4A7C15, 0x94D049BB, 0x632BE5AB
"""Salts, so that the four uses of `mix32` have nothing in common."""
_MOST_DRAWS = 33 + 64
"""Number of the last draw of `jump_back` in a level, all of whose 64 lie beyond with a probability of 2^-64."""

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray, np.uint32)


def mix32(x: AnyArray) -> AnyArray:
    """A fixed bijection of u32 whose output bits all depend on all input bits: MurmurHash3's finaliser.

    >>> mix32(np.array([0, 1, 2], np.uint32))
    array([         0, 1364076727,  821347078], dtype=uint32)
    """
    chex.assert_type(x, jnp.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _salt(use: int, number: int) -> np.uint32:
    return np.uint32((use + 0x9E3779B1 * number) & 0xFFFFFFFF)


def _key(x):
    return (mix32(x) >> np.uint32(32 - KEY_BITS)).astype(jnp.uint8)


def _numbers(node: jax.Array, users: int) -> jax.Array:
    """Numbers u32[...] to hash nodes by: items' begin at 2^31, not at the room for users, which later rows decide."""
    node = node.astype(jnp.uint32)
    return jnp.where(node < np.uint32(users), node, node - np.uint32(users) + np.uint32(2**31))


def signatures(graph: Graph, nodes: int, users: int, keys: int) -> jax.Array:
    """Min-hash keys of the neighbours of every node.

    Args:
      graph: of the interactions known; a user's neighbours are item nodes and the other way round.
      nodes: N; static.
      users: capacity of the users' side; static.
      keys: K, number of hash functions; static.

    Returns:
      u8[N, K]: for each function the hashed minimum, over the neighbours, of a bijection of the node number. Two nodes
      have equal keys where the same neighbour attains it, which has their Jaccard similarity as its probability. Nodes
      without neighbours have keys without meaning.
    """
    chex.assert_shape(graph.indptr, (nodes + 1,))
    chex.assert_rank(graph.indices, 1)
    chex.assert_type([graph.indptr, graph.indices], int)
    edges = graph.indices.shape[0]
    row = jnp.repeat(jnp.arange(nodes), jnp.diff(graph.indptr), total_repeat_length=edges)
    # Padded entries get a row past the end, which the minimum drops.
    row = jnp.where(jnp.arange(edges) < graph.indptr[-1], row, nodes)
    element = _numbers(graph.indices, users)

    def one(salt):
        return _key(jax.ops.segment_min(mix32(mix32(element ^ salt) + salt), row, nodes) ^ salt)

    salts = jnp.array([_salt(_ELEMENT, k) for k in range(keys)], jnp.uint32)
    return jax.lax.map(one, salts).T


def own_signatures(nodes: int, users: int, keys: int) -> jax.Array:
    """Signatures by the nodes' own numbers, as good as random, for nodes without interactions.

    Args:
      nodes: N; static.
      users: capacity of the users' side; static.
      keys: K; static.

    Returns:
      u8[N, K].
    """
    number = _numbers(jnp.arange(nodes), users)
    return jnp.stack([_key(mix32(number ^ _salt(_OWN, k)) + _salt(_OWN, k)) for k in range(keys)], axis=1)


def chosen_keys(width: int, keys: int, hashes: int) -> np.ndarray:
    """Which keys of a signature each coordinate uses.

    Args:
      width: coordinates.
      keys: K, keys of a signature.
      hashes: distinct keys of a coordinate, at most K.

    Returns:
      i32[width, hashes], ascending in each row; the same at every call.
    """
    rng = np.random.default_rng(keys)
    return np.stack([np.sort(rng.permutation(keys)[:hashes]) for _ in range(width)]).astype(np.int32)


def locations(signature: jax.Array, chosen: np.ndarray, cells: jax.Array) -> jax.Array:
    """Cell of every coordinate of every node, uniform over the cells.

    The cells follow from the signatures and from how many there are now: when cells are added, only coordinates that
    are drawn into new ones move, and when some are taken away, only those that were there (JumpBackHash: Ertl, 2024,
    arXiv 2403.18682).

    Args:
      signature: u8[N, K].
      chosen: i32[width, hashes] of `chosen_keys`, static; coordinate i lies where a hash of i and its keys says.
      cells: i32[], cells in use, at least 1.

    Returns:
      i32[N, width].
    """
    chex.assert_rank([signature, chosen, cells], [2, 2, 0])
    chex.assert_type([signature, chosen, cells], [jnp.uint8, int, int])
    width, hashes = chosen.shape
    code = jnp.broadcast_to(jnp.array([_salt(_CELL, i) for i in range(width)], jnp.uint32), (len(signature), width))
    for k in range(hashes):
        code = mix32(code ^ signature[:, chosen[:, k]].astype(jnp.uint32)) + np.uint32(_CELL)
    return jump_back(code, cells)


def jump_back(code: jax.Array, cells: jax.Array) -> jax.Array:
    """A number below `cells` for each code, such that few of them change where `cells` does.

    Level l has the numbers from 2^l to 2^(l+1) - 1. A code takes part in a level where bit l of a hash says so, with
    one number of it that is drawn. It goes to its number in the highest such level. In a level of which only a part
    lies below `cells`, it draws again while its number lies beyond, and leaves the level with a draw from a lower one.

    Args:
      code: u32[...].
      cells: i32[], at least 1.

    Returns:
      i32[...].

    >>> codes = jnp.arange(6, dtype=jnp.uint32)
    >>> [jump_back(codes, jnp.int32(cells)).tolist() for cells in (1, 2, 3)]
    [[0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 1], [0, 2, 2, 1, 1, 1]]
    """
    chex.assert_type([code, cells], [jnp.uint32, int])
    one, limit = np.uint32(1), cells.astype(jnp.uint32)
    # The highest level that has numbers below `limit`, and the first of these.
    top = _highest(jnp.maximum(limit - one, one))
    first = one << top
    takes_part = mix32(code)

    def draw(number, below):
        return mix32(code + number.astype(jnp.uint32) * np.uint32(_DRAW)) & (below - one)

    def beyond(found):
        return (found >= limit) & (found >= first)

    def draw_again(carry):
        number, found = carry
        return number + 1, jnp.where(beyond(found), draw(number, first << one), found)

    def some_beyond(carry):
        number, found = carry
        return (number < _MOST_DRAWS) & beyond(found).any()

    # The first draw of level l has number l + 1, and further ones come after those of all levels.
    start = jnp.where((takes_part & first) > 0, first + draw(top + one, first), 0)
    _, found = jax.lax.while_loop(some_beyond, draw_again, (jnp.int32(33), start))
    lower = takes_part & (first - one)
    level = _highest(lower)
    in_lower = jnp.where(lower > 0, (one << level) + draw(level + one, one << level), 0)
    inside = (found >= first) & (found < limit)
    return jnp.where(inside, found, in_lower).astype(jnp.int32)


def _highest(number: jax.Array) -> jax.Array:
    """Position of the highest bit, u32[...]; 0 for 0."""
    return np.uint32(31) - jax.lax.clz(jnp.maximum(number, np.uint32(1)))
