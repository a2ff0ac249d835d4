"""Blocks of SAROS: items that a user was shown and left, then items that the user clicked, in the order of time.

Where rows say which item was clicked (`explicit_blocks`), a block is a run of non-clicks and the clicks after it. A
stream has clicks alone (`segment_blocks`): there the non-clicks are sampled exposures, drawn by the items' frequency in
the segment, a stand-in that is named as one.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.bisection import first_false
from scall_jax.ops.indexing import ceil_div, div, take
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders import bpr
from scall_jax.recommenders.saros.config import SarosConfig
from scall_jax.streams import RaggedItems, Segment, sides

NOBODY = -1
"""Item of a place that is not in use."""

_LEAST_PERCENT, _MOST_PERCENT = 5, 95


class Blocks(NamedTuple):
    """B blocks in the order of time, of at most P clicks and M non-clicks; item ids count from 0."""

    user: jax.Array
    """i32[B]."""
    clicks: jax.Array
    """i32[B, P], `NOBODY` in places that are not in use."""
    exposures: jax.Array
    """i32[B, M], items that were not clicked, or `NOBODY`."""
    age: jax.Array
    """i32[B], rows from the block's first click to the cut: what the user met before has a larger age."""
    count: jax.Array
    """i32[], blocks in use, the first ones."""


def explicit_blocks(user: np.ndarray, item: np.ndarray, click: np.ndarray, age: np.ndarray) -> Blocks:
    """Blocks of rows that say what was clicked; numpy on the host.

    A run of a user's non-clicks followed by clicks is a block; what follows the next non-click belongs to the next one.
    Clicks before a user's first non-click have nothing to be ranked above and are left out (the published code draws a
    random non-click of the user for them), as are non-clicks after the last click.

    Args:
      user: i32[rows], in the order of time.
      item: i32[rows].
      click: bool[rows].
      age: i32[rows], descending.

    Returns:
      Blocks in the order of their last clicks.

    >>> click = np.array([0, 0, 1, 1, 0, 1], bool)
    >>> blocks = explicit_blocks(np.zeros(6, int), np.arange(1, 7), click, np.arange(6, 0, -1))
    >>> blocks.clicks.tolist(), blocks.exposures.tolist(), blocks.age.tolist()
    ([[3, 4], [6, -1]], [[1, 2], [5, -1]], [4, 1])
    """
    chex.assert_rank([user, item, click, age], 1)
    chex.assert_equal_shape([user, item, click, age])
    shown: dict[int, tuple[list[int], list[int]]] = {}
    found: list[tuple[int, int, list[int], list[int]]] = []  # last row, user, rows of clicks, items not clicked
    for row, (who, what, clicked) in enumerate(zip(user.tolist(), item.tolist(), click.tolist(), strict=True)):
        left, taken = shown.setdefault(who, ([], []))
        if clicked and left:
            taken.append(row)
        elif not clicked and taken:
            found.append((taken[-1], who, taken, left))
            shown[who] = [what], []
        elif not clicked:
            left.append(what)
    found += [(taken[-1], who, taken, left) for who, (left, taken) in shown.items() if taken]
    found.sort()

    def padded(lists: list[list[int]]) -> np.ndarray:
        length = max(map(len, lists), default=1)
        return np.array([x + [NOBODY] * (length - len(x)) for x in lists], np.int32).reshape(len(lists), length)

    clicks = padded([[int(item[row]) for row in taken] for _, _, taken, _ in found])
    first = np.array([taken[0] for _, _, taken, _ in found], np.int64)
    users = np.array([who for _, who, _, _ in found], np.int32)
    arrays = users, clicks, padded([left for *_, left in found]), np.asarray(age, np.int32)[first], np.int32(len(found))
    return Blocks(*(jnp.asarray(array) for array in arrays))


class _Ordered(NamedTuple):
    """The segment's positives, users by users, each in the order of time; R rows."""

    row: jax.Array  # i32[R], row of the user in the list of users
    item: jax.Array  # i32[R]
    age: jax.Array  # i32[R]


def _in_time(segment: Segment) -> _Ordered:
    positives, graph, users = segment.positives, segment.graph, sides(segment)[0]
    most = positives.users.shape[0]
    at = jnp.arange(positives.items.shape[0], dtype=jnp.int32)
    row = jnp.searchsorted(positives.indptr, at, side="right").astype(jnp.int32) - 1
    row = jnp.where(at < positives.indptr[-1], row, most)
    place = place_in_row(segment, take(positives.users, jnp.minimum(row, most - 1)), positives.items + users)
    age = take(segment.ages, jnp.minimum(place, graph.indices.shape[0] - 1))
    order = jnp.lexsort((-age, row))
    return _Ordered(take(row, order), take(positives.items, order), take(age, order))


def place_in_row(segment: Segment, user: jax.Array, node: jax.Array) -> jax.Array:
    """First place in users' rows of the graph that does not lie before some nodes.

    Args:
      segment: the data.
      user: i32[...].
      node: i32[...], by user.

    Returns:
      i32[...], the node's entry where the user has met it.
    """
    chex.assert_equal_shape([user, node])
    graph = segment.graph
    last = graph.indices.shape[0] - 1
    start, end = take(graph.indptr, user), take(graph.indptr, user + 1)
    return first_false(start, end, lambda at: take(graph.indices, jnp.minimum(at, last)) < node[..., None], last + 1)


def thresholds(config: SarosConfig, blocks: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The fewest and the most blocks of a user that are trained on (b and B).

    Args:
      config: says them, or leaves them to percentiles.
      blocks: i32[B], blocks of each user of the segment.
      count: i32[], users in use, the first ones.

    Returns:
      i32[] both; percentiles by nearest rank.

    >>> thresholds(SarosConfig(most=7), jnp.array([3, 1, 2, 9]), jnp.int32(3))[1].tolist()
    7
    """
    chex.assert_rank([blocks, count], [1, 0])
    ordered = jnp.sort(jnp.where(jnp.arange(blocks.shape[0]) < count, blocks, jnp.iinfo(jnp.int32).max))
    last = jnp.maximum(count - 1, 0)
    # 100 (count - 1) fits into 32 bits for 21 million users of a segment.
    least, most = (take(ordered, div(percent * last + 50, 100)) for percent in (_LEAST_PERCENT, _MOST_PERCENT))
    least = least if config.least is None else jnp.int32(config.least)
    return least, jnp.maximum(most, least) if config.most is None else jnp.int32(config.most)


def segment_blocks(config: SarosConfig, segment: Segment) -> Blocks:
    """Blocks of a segment's positives (`Segment.positives`), without their exposures.

    A user's positives in the order of time, `SarosConfig.clicks` at a time, are blocks.

    Args:
      config: static.
      segment: the data.

    Returns:
      Blocks with one place for each positive; `exposures` are `NOBODY`.
    """
    positives: RaggedItems = segment.positives
    ordered, clicks = _in_time(segment), config.clicks
    rows = ordered.row.shape[0]
    at = jnp.arange(rows, dtype=jnp.int32)
    user_row = jnp.minimum(ordered.row, positives.users.shape[0] - 1)
    start, end = take(positives.indptr, user_row), take(positives.indptr, user_row + 1)
    least, most = thresholds(config, ceil_div(jnp.diff(positives.indptr), clicks), positives.count)
    number = div(at - start, clicks)
    kept = (at < positives.indptr[-1]) & (at - start == number * clicks) & (number < most)
    kept &= ceil_div(end - start, clicks) >= least
    # A block is learned from once its last click is known.
    finished = take(ordered.age, jnp.minimum(at + clicks, end) - 1)
    order = jnp.argsort(jnp.where(kept, -finished, 1))
    members = take(at, order)[:, None] + jnp.arange(clicks, dtype=jnp.int32)[None, :]
    inside = (members < take(end, order)[:, None]) & take(kept, order)[:, None]
    return Blocks(
        user=take(take(positives.users, user_row), order),
        clicks=jnp.where(inside, take(ordered.item, jnp.minimum(members, rows - 1)), NOBODY),
        exposures=jnp.full((rows, config.exposures), NOBODY, jnp.int32),
        age=take(ordered.age, order),
        count=kept.sum(dtype=jnp.int32),
    )


def with_exposures(key: jax.Array, blocks: Blocks, segment: Segment) -> Blocks:
    """Draw the items of each block that stand for items shown and not clicked.

    Items are drawn by their rows in the segment's training part and replay; those that the user has met by the cut are
    left out, so that a block may have fewer, or none, in which case it changes nothing.

    Args:
      key: typed PRNG key; a block's draws depend on it and the block's place alone.
      blocks: of `segment_blocks`.
      segment: the data.

    Returns:
      Blocks.
    """
    users = sides(segment)[0]
    most = blocks.exposures.shape[1]
    total = jnp.cumsum(segment.frequency[users:], dtype=jnp.int32)
    keys = jax.vmap(lambda i: derive(key, Purpose.EXPOSURES, i))(jnp.arange(blocks.user.shape[0], dtype=jnp.int32))
    bits = jax.vmap(lambda k: jax.random.bits(k, (most,)))(keys)
    drawn = bpr.below(bits, jnp.maximum(total[-1], 1))
    item = jnp.minimum(jnp.searchsorted(total, drawn, side="right").astype(jnp.int32), total.shape[0] - 1)
    user = jnp.broadcast_to(blocks.user[:, None], item.shape)
    place = place_in_row(segment, user, item + users)
    last = segment.graph.indices.shape[0] - 1
    found = take(segment.graph.indices, jnp.minimum(place, last)) == item + users
    met = (place < take(segment.graph.indptr, user + 1)) & found
    return blocks._replace(exposures=jnp.where(met, NOBODY, item))
