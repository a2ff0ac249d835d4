"""Neighbourhoods without a matrix of all pairs: k nearest, reciprocal distances among them, and clusters of these.

After Large-Scale Fully-Unsupervised Re-Identification (arXiv 2307.14278) and its code (commit 0cf889b). Each of n
points has a list of its k nearest, itself first. A pair that is not in both lists has distance 1; otherwise it is the
weighted Jaccard distance of the two lists, with weights e^-D of the Euclidean distances D of unit vectors:

    d(i, j) = 1 - sum over shared of min(w_i, w_j) / (sum over shared of max(w_i, w_j) + sum of the weights not shared)

As min + max = w_i + w_j, the denominator is the sum of all weights of both less the numerator. DBSCAN on the lists
needs no other pairs, because every other pair has distance 1. Memory is O(n k), apart from blocks of points.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import dynamic_update_slice, take

NOISE = -1
"""Label of a point in no cluster, and the id of a place in a list that is not in use."""

_BLOCK = 128  # points whose lists are made at once


class Lists(NamedTuple):
    """Lists of n points, nearest first."""

    ids: jax.Array
    """i32[n, k], points; `NOISE` where there are fewer."""
    distances: jax.Array
    """f32[n, k]; 1 or more where there are fewer."""


def nearest(vectors: jax.Array, allowed: jax.Array, k: int) -> Lists:
    """The k nearest points of each by the angle of their vectors, the point itself first.

    Args:
      vectors: f32[n, width]; those of length 0 have no direction, and are as far from all others as orthogonal ones.
      allowed: bool[n], points that have a list and may be in one.
      k: length of the lists, at most n; static.

    Returns:
      Lists with the Euclidean distances of unit vectors; ties go to the lower point.

    >>> lists = nearest(jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1]]), jnp.ones(3, bool), k=2)
    >>> lists.ids.tolist()
    [[0, 2], [1, 2], [2, 0]]
    """
    chex.assert_rank([vectors, allowed], [2, 1])
    n = vectors.shape[0]
    unit = vectors / jnp.maximum(jnp.sqrt((vectors**2).sum(1, keepdims=True)), 1e-12)
    block = min(_BLOCK, n)

    def one_block(number, lists: Lists) -> Lists:
        # A last block that would end beyond the points is moved back.
        first = jnp.minimum(number * block, n - block)
        at = first + jnp.arange(block, dtype=jnp.int32)
        cosine = jnp.matmul(take(unit, at), unit.T, precision=jax.lax.Precision.HIGHEST)
        cosine = jnp.where(allowed[None, :], cosine, -jnp.inf)
        itself = at[:, None] == jnp.arange(n)[None, :]
        # No other point comes before the point itself, whatever rounding does.
        best, ids = jax.lax.top_k(jnp.where(itself, 4.0, cosine), k)
        distance = jnp.where(ids == at[:, None], 0.0, jnp.sqrt(jnp.maximum(2 - 2 * best, 0.0)))
        there = jnp.isfinite(best) & take(allowed, at)[:, None]
        ids, distance = jnp.where(there, ids, NOISE), jnp.where(there, distance, 2.0)
        return Lists(
            dynamic_update_slice(lists.ids, ids.astype(jnp.int32), (first, 0)),
            dynamic_update_slice(lists.distances, distance, (first, 0)),
        )

    empty = Lists(jnp.full((n, k), NOISE, jnp.int32), jnp.full((n, k), 2.0))
    return jax.lax.fori_loop(0, -(-n // block), one_block, empty)


def list_distance(ids: tuple[jax.Array, jax.Array], weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The weighted Jaccard distance of two lists, f32[].

    Args:
      ids: i32[k] and i32[m], distinct within a list but for `NOISE`.
      weights: f32[k] and f32[m], 0 at `NOISE`.

    >>> one = jnp.array([3, 5])
    >>> float(list_distance((one, jnp.array([5, 3])), (jnp.array([1.0, 0.5]), jnp.array([0.5, 1.0]))))
    0.0
    """
    chex.assert_rank([*ids, *weights], 1)
    same = (ids[0][:, None] == ids[1][None, :]) & (ids[0] != NOISE)[:, None]
    shared = jnp.where(same, jnp.minimum(weights[0][:, None], weights[1][None, :]), 0.0).sum()
    return 1 - shared / jnp.maximum(weights[0].sum() + weights[1].sum() - shared, 1e-30)


def reciprocal(lists: Lists) -> Lists:
    """The same lists by reciprocal distance, sorted again.

    Args:
      lists: of `nearest`.

    Returns:
      Lists, distances 0 to 1; ties keep their order.
    """
    chex.assert_equal_shape([lists.ids, lists.distances])
    weights = jnp.where(lists.ids == NOISE, 0.0, jnp.exp(-lists.distances))
    n = lists.ids.shape[0]
    numbers = jnp.arange(n, dtype=jnp.int32)

    def one_point(arguments):
        number, ids, own = arguments
        other = jnp.maximum(ids, 0)
        their_ids, their_weights = take(lists.ids, other), take(weights, other)
        found = jax.vmap(lambda i, w: list_distance((ids, i), (own, w)))(their_ids, their_weights)
        mutual = (their_ids == number).any(1) & (ids != NOISE)
        distance = jnp.where(mutual, jnp.maximum(found, 0.0), 1.0)
        order = jnp.argsort(distance, stable=True)
        return take(ids, order), take(distance, order)

    ids, distances = jax.lax.map(one_point, (numbers, lists.ids, weights), batch_size=min(16, n))
    return Lists(ids, distances)


def clusters(lists: Lists, eps: jax.Array, least: int = 4) -> jax.Array:
    """DBSCAN (Ester et al., KDD 1996) on the pairs of the lists.

    A point with `least` points within eps, itself among them, is a core. Cores within eps of each other are of one
    cluster; any other point within eps of a core joins the one of its clusters that begins first.

    Args:
      lists: of `reciprocal`.
      eps: f32[], below 1.
      least: points that make a core, and a cluster; static.

    Returns:
      i32[n], the lowest core of each point's cluster, or `NOISE`.
    """
    chex.assert_rank([lists.ids, eps], [2, 0])
    n = lists.ids.shape[0]
    near = (lists.distances <= eps) & (lists.ids != NOISE)
    other = jnp.maximum(lists.ids, 0)
    core = near.sum(1) >= least
    by_core = near & take(core, other)

    def lowest(label):
        """The lowest label among the cores near each point; n where there is none."""
        return jnp.where(by_core, take(label, other), n).min(1, initial=n)

    def spread(state):
        label, _ = state
        found = jnp.where(core, jnp.minimum(label, lowest(label)), n)
        # A label is a core of the same cluster, whose own label may be lower already.
        found = jnp.minimum(found, jnp.where(core, take(found, jnp.minimum(found, n - 1)), n))
        return found, (found != label).any()

    start = jnp.where(core, jnp.arange(n, dtype=jnp.int32), n)
    label, _ = jax.lax.while_loop(lambda state: state[1], spread, (start, jnp.bool_(True)))
    label = jnp.where(core, label, lowest(label))
    # Points on the border may have gone to another cluster, which leaves too few.
    size = jnp.zeros(n + 1, jnp.int32).at[label].add(1, wrap_negative_indices=False)
    return jnp.where((label < n) & (take(size, label) >= least), label, NOISE)


def cosine_eps(number: jax.Array, period: int, low: float = 0.4, high: float = 0.7) -> jax.Array:
    """The schedule of eps: from low to high in half a period, back to the middle by three quarters, held from there on.

    Args:
      number: i32[], from 0.
      period: numbers of the whole schedule; static.
      low: at the start.
      high: at half of the period.

    Returns:
      f32[].

    >>> [round(float(cosine_eps(jnp.int32(t), period=8)), 4) for t in (0, 2, 4, 6, 7)]
    [0.4, 0.55, 0.7, 0.55, 0.55]
    """
    chex.assert_rank(number, 0)
    half = period / 2
    at = jnp.minimum(number.astype(jnp.float32), 1.5 * half)
    return low + 0.5 * (high - low) * (1 + jnp.cos(math.pi * (half - at) / half))


def rerank(ranked: Lists, items: Lists, mix: float) -> jax.Array:
    """Items of users' lists in a new order, by how much of a user's list is in each item's own list.

    The distance of a user and an item is the weighted Jaccard distance of the user's list and the item's. An item moves
    up where its neighbours are in the user's list too. Memory is that of the lists; no score of another item is needed.

    Args:
      ranked: lists of B users, best first: m items, and the distances that weigh them.
      items: lists of the items by `nearest`.
      mix: weight of an item's place in the user's list, divided by m, against that of the distance; 1 keeps the order.

    Returns:
      i32[B, m], items; ties keep their order.
    """
    chex.assert_equal_shape([ranked.ids, ranked.distances])
    chex.assert_equal_shape([items.ids, items.distances])
    weights = jnp.where(items.ids == NOISE, 0.0, jnp.exp(-items.distances))
    most = ranked.ids.shape[1]
    place = jnp.arange(most, dtype=jnp.float32) / most

    def one_user(arguments):
        ids, distances = arguments
        own, other = jnp.where(ids == NOISE, 0.0, jnp.exp(-distances)), jnp.maximum(ids, 0)
        found = jax.vmap(lambda i, w: list_distance((ids, i), (own, w)))(take(items.ids, other), take(weights, other))
        value = jnp.where(ids == NOISE, jnp.inf, mix * place + (1 - mix) * found)
        return take(ids, jnp.argsort(value, stable=True))

    return jax.lax.map(one_user, ranked, batch_size=min(16, ranked.ids.shape[0]))
