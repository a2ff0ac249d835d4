"""Learning from blocks one after another, and ranking each block before it is learned from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import ceil_div, take
from scall_jax.recommenders.saros.blocks import NOBODY, Blocks
from scall_jax.recommenders.saros.config import SarosConfig
from scall_jax.streams import Graph
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params

DEPTH = 20
"""Length of the lists that clicks are looked for in before they are learned from."""

_ROW = 64  # interactions of a user that are read at once


class Block(NamedTuple):
    """One of `Blocks`."""

    user: jax.Array  # i32[]
    clicks: jax.Array  # i32[P]
    exposures: jax.Array  # i32[M]
    age: jax.Array  # i32[]


class Met(NamedTuple):
    """What users met, and when; of N nodes and E entries."""

    graph: Graph
    ages: jax.Array  # i32[E], rows from each entry's last one to the cut
    items: jax.Array  # i32[], items known at the cut


class Learned(NamedTuple):
    """What blocks leave behind."""

    params: Params  # parameters of the storage, no buffer
    momentum: Params  # Has the structure of the parameters, and is () without momentum.
    loss: jax.Array  # f32[], sum over the updates
    updates: jax.Array  # i32[], updates that changed something
    bad: jax.Array  # i32[], place of the first block with a non-finite loss, -1 if none
    found: jax.Array  # f32[3], sums of Recall@20 and of NDCG@20 of blocks before they were learned from, and blocks


Read = Callable[[Params, jax.Array], jax.Array]
"""(parameters, nodes i32[R]) -> f32[R, width]."""


def reader(storage: Storage, layout: StorageLayout) -> Read:
    """Vectors of some nodes, differentiable in the parameters.

    Args:
      storage: static.
      layout: of it.

    Returns:
      Function of parameters, no buffer, and nodes.
    """
    table = storage.table
    if table is not None:
        return lambda params, nodes: table.lookup(params, layout, nodes)
    return lambda params, nodes: take(storage.vectors(params, layout), nodes)


def pair_loss(own: jax.Array, clicks: jax.Array, exposures: jax.Array, bias: tuple[jax.Array, jax.Array], l2: float):
    """Mean softplus(-(s_ui - s_uj)) over a block's pairs of a click i and a non-click j, and the weighted norms.

    Args:
      own: f32[1 + P + M, width], vectors of the user, the clicks and the non-clicks.
      clicks: f32[P], 1 for those that count, 0 for the others.
      exposures: f32[M], the same of non-clicks.
      bias: f32[P] and f32[M], added to the scores.
      l2: weight of |u|^2 + the mean of |i|^2 + the mean of |j|^2.

    Returns:
      f32[]; 0 where no pair counts.

    >>> float(pair_loss(jnp.zeros((3, 2)), jnp.ones(1), jnp.zeros(1), (jnp.zeros(1), jnp.zeros(1)), 0.1))
    0.0
    """
    chex.assert_rank([own, clicks, exposures], [2, 1, 1])
    user, items, others = own[0], own[1 : 1 + clicks.shape[0]], own[1 + clicks.shape[0] :]
    scores = (items * user[None, :]).sum(1) + bias[0], (others * user[None, :]).sum(1) + bias[1]
    weight = clicks[:, None] * exposures[None, :]
    ranking = (weight * jax.nn.softplus(scores[1][None, :] - scores[0][:, None])).sum()

    def mean_norm(vectors, weight):
        return (weight * (vectors**2).sum(1)).sum() / jnp.maximum(weight.sum(), 1.0)

    norms = (user**2).sum() + mean_norm(items, clicks) + mean_norm(others, exposures)
    return jnp.where(weight.sum() > 0, ranking / jnp.maximum(weight.sum(), 1.0) + l2 * norms, 0.0)


def _nodes_of(block: Block, users: int) -> jax.Array:
    """The user, the clicks and the non-clicks, i32[1 + P + M]; the first item in places that are not in use."""
    items, others = jnp.maximum(block.clicks, 0), jnp.maximum(block.exposures, 0)
    return jnp.concatenate([block.user[None], items + users, others + users])


def make_update(storage: Storage, config: SarosConfig, layout: StorageLayout, item_bias: jax.Array):
    """Build the update by a block: one step by all its pairs, or a step by each click, as `SarosConfig.update` says.

    Args:
      storage: static.
      config: static.
      layout: of the storage.
      item_bias: f32[V], added to scores.

    Returns:
      Function (Learned, Block, place of the block i32[]) -> Learned.
    """
    read, users = reader(storage, layout), storage.nodes - item_bias.shape[0]

    def of_vectors(own: jax.Array, block: Block, clicks: jax.Array) -> jax.Array:
        bias = take(item_bias, jnp.maximum(block.clicks, 0)), take(item_bias, jnp.maximum(block.exposures, 0))
        exposures = (block.exposures != NOBODY).astype(jnp.float32)
        return pair_loss(own, clicks, exposures, bias, config.l2)

    def objective(params: Params, block: Block, clicks: jax.Array) -> jax.Array:
        loss = of_vectors(read(params, _nodes_of(block, users)), block, clicks)
        return loss if storage.penalty is None else loss + storage.penalty(params, layout)

    def descend(params: Params, block: Block, clicks: jax.Array, rate: jax.Array) -> tuple[Params, jax.Array]:
        """A step of plain descent, which touches the block's vectors alone where the storage has a table."""
        if storage.table is None or storage.penalty is not None:
            loss, gradient = jax.value_and_grad(objective)(params, block, clicks)
            return jax.tree.map(lambda p, d: p - rate * d, params, gradient), loss
        nodes = _nodes_of(block, users)
        loss, gradient = jax.value_and_grad(of_vectors)(read(params, nodes), block, clicks)
        return storage.table.add(params, layout, nodes, -rate * gradient), loss

    def descend_with_momentum(
        state: Learned, block: Block, clicks: jax.Array, counts: jax.Array, rate: jax.Array
    ) -> tuple[Params, Params, jax.Array]:
        mu = config.momentum
        loss, gradient = jax.value_and_grad(objective)(state.params, block, clicks)
        # A block without a pair makes no update, so that its momentum stays as it is.
        momentum = jax.tree.map(lambda m, g: jnp.where(counts, mu * m + (1 - mu) * g, m), state.momentum, gradient)
        return jax.tree.map(lambda p, d: p - rate * d, state.params, momentum), momentum, loss

    def step(state: Learned, block: Block, clicks: jax.Array, place: jax.Array) -> Learned:
        counts = (clicks.sum() > 0) & (block.exposures != NOBODY).any()
        rate = jnp.where(counts, config.learning_rate, 0.0)
        if config.momentum:
            params, momentum, loss = descend_with_momentum(state, block, clicks, counts, rate)
        else:
            momentum, (params, loss) = state.momentum, descend(state.params, block, clicks, rate)
        bad = jnp.where((state.bad < 0) & ~jnp.isfinite(loss), place, state.bad)
        return state._replace(
            params=params,
            momentum=momentum,
            loss=state.loss + jnp.where(counts, loss, 0.0),
            updates=state.updates + counts.astype(jnp.int32),
            bad=bad,
        )

    def update(state: Learned, block: Block, place: jax.Array) -> Learned:
        clicks = (block.clicks != NOBODY).astype(jnp.float32)
        if config.update == "block":
            return step(state, block, clicks, place)

        def by_click(number, state: Learned) -> Learned:
            only = jnp.where(jnp.arange(clicks.shape[0]) == number, clicks, 0.0)
            return step(state, block, only, place)

        return jax.lax.fori_loop(0, clicks.shape[0], by_click, state)

    return update


def earlier_items(met: Met, users: int, block: Block, items: int) -> jax.Array:
    """Items that a block's user has met before the block.

    Args:
      met: what users met, and when.
      users: capacity of the user side; static.
      block: the block.
      items: V, capacity of the item side; static.

    Returns:
      bool[V].
    """
    start, end = take(met.graph.indptr, block.user), take(met.graph.indptr, block.user + 1)

    def mark(number, found):
        at = start + number * _ROW + jnp.arange(_ROW, dtype=jnp.int32)
        inside = jnp.minimum(at, met.graph.indices.shape[0] - 1)
        before = (at < end) & (take(met.ages, inside) > block.age)
        item = jnp.where(before, take(met.graph.indices, inside) - users, items)
        return found.at[item].set(True, mode="drop", wrap_negative_indices=False)

    return jax.lax.fori_loop(0, ceil_div(end - start, _ROW), mark, jnp.zeros(items, bool))


def quality(scores: jax.Array, allowed: jax.Array, clicks: jax.Array) -> jax.Array:
    """Recall@20 and NDCG@20 of a block's clicks among the items that are allowed, ties to the lower item.

    Args:
      scores: f32[V].
      allowed: bool[V].
      clicks: i32[P], `NOBODY` in places that are not in use.

    Returns:
      f32[3]: Recall@20, NDCG@20, and 1; zeros for a block without clicks among the allowed.

    >>> found = quality(jnp.array([3.0, 2.0, 2.0, 9.0]), jnp.array([True, True, True, False]), jnp.array([2, -1]))
    >>> [round(float(x), 4) for x in found]  # in the third place
    [1.0, 0.5, 1.0]
    """
    chex.assert_rank([scores, allowed, clicks], 1)
    item = jnp.maximum(clicks, 0)
    counts = (clicks != NOBODY) & take(allowed, item)
    own, number = take(scores, item)[:, None], jnp.arange(scores.shape[0], dtype=jnp.int32)[None, :]
    above = (scores[None, :] > own) | ((scores[None, :] == own) & (number < item[:, None]))
    place = (above & allowed[None, :]).sum(1, dtype=jnp.int32)
    hit = counts & (place < DEPTH)
    discount = 1.0 / jnp.log2(jnp.arange(2, DEPTH + 2, dtype=jnp.float32))
    relevant = counts.sum(dtype=jnp.int32)
    ideal = take(jnp.cumsum(discount), jnp.clip(relevant, 1, DEPTH) - 1)
    gained = jnp.where(hit, take(discount, jnp.minimum(place, DEPTH - 1)), 0.0).sum()
    recall = hit.sum(dtype=jnp.int32).astype(jnp.float32) / jnp.maximum(relevant, 1).astype(jnp.float32)
    return jnp.stack([recall, gained / ideal, (relevant > 0).astype(jnp.float32)])


def start(config: SarosConfig, params: Params) -> Learned:
    """What is learned before the first block.

    Args:
      config: says whether there is momentum.
      params: parameters, no buffer.

    Returns:
      Learned.
    """
    momentum: Any = jax.tree.map(jnp.zeros_like, params) if config.momentum else ()
    return Learned(params, momentum, jnp.float32(0), jnp.int32(0), jnp.int32(-1), jnp.zeros(3))


def learn(
    storage: Storage,
    config: SarosConfig,
    state: Learned,
    layout: StorageLayout,
    blocks: Blocks,
    item_bias: jax.Array,
    met: Met | None = None,
) -> Learned:
    """Go through blocks in the order of time.

    Args:
      storage: static.
      config: static.
      state: of `start`, or of earlier blocks.
      layout: of the storage.
      blocks: to learn from.
      item_bias: f32[V], added to scores.
      met: what users met; each block is then ranked before it is learned from. None ranks nothing.

    Returns:
      Learned.
    """
    chex.assert_rank(item_bias, 1)
    update, read = make_update(storage, config, layout, item_bias), reader(storage, layout)
    items = item_bias.shape[0]
    users = storage.nodes - items
    nodes = jnp.arange(users, storage.nodes, dtype=jnp.int32)

    def ranked(state: Learned, block: Block, met: Met) -> Learned:
        own = read(state.params, jnp.concatenate([block.user[None], nodes]))
        scores = (own[1:] * own[0][None, :]).sum(1) + item_bias
        allowed = (jnp.arange(items) < met.items) & ~earlier_items(met, users, block, items)
        return state._replace(found=state.found + quality(scores, allowed, block.clicks))

    def one(place: jax.Array, state: Learned) -> Learned:
        block = Block(*(take(array, place) for array in blocks[:4]))
        return update(state if met is None else ranked(state, block, met), block, place)

    return jax.lax.fori_loop(0, blocks.count, one, state)
