"""Clusters of tail entities that share a row, found without a matrix of all pairs (arXiv 2307.14278).

The paper clusters images by reciprocal neighbourhoods to label them. Here the points are the rows of the segment before
that tail entities read, users and items apart, and a cluster becomes one row for all of them; what that saves makes all
rows wider. An entity that leaves the tail takes a copy of its row with it.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, Planned, SizePlanner, no_action
from scall_jax.ops.indexing import take
from scall_jax.recommenders.reciprocal import NOISE, clusters, cosine_eps, nearest, reciprocal
from scall_jax.streams import sides
from scall_jax.tables.compressed.clustered import shared_rows


def tail_mask(total: jax.Array, recency: jax.Array, active: jax.Array, part: float) -> jax.Array:
    """The entities of a side with the fewest rows.

    Args:
      total: i32[n], rows of each.
      recency: i32[n]; of equal numbers of rows the older ones come first.
      active: bool[n], those that exist.
      part: of the active ones; static.

    Returns:
      bool[n].

    >>> tail_mask(jnp.array([5, 1, 2, 9]), jnp.array([1, 2, 3, 4]), jnp.array([True] * 3 + [False]), 0.7).tolist()
    [False, True, True, False]
    """
    chex.assert_rank([total, recency, active], 1)
    n = total.shape[0]
    order = jnp.lexsort((recency, total, ~active))
    rank = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32), unique_indices=True)
    count = jnp.floor(part * active.sum().astype(jnp.float32)).astype(jnp.int32)
    return active & (rank < count)


def leaders(vectors: jax.Array, row: jax.Array, tail: jax.Array, eps: jax.Array, k: int) -> jax.Array:
    """Who leads the group of each entity of a side.

    Args:
      vectors: f32[n, width], of the segment before.
      row: i32[n], rows then; n or more for those that had none. Entities of equal rows are one point.
      tail: bool[n], entities that may share a row.
      eps: f32[], of DBSCAN.
      k: neighbours of a point, itself included; static.

    Returns:
      i32[n], the lowest entity of the group; its own number for one that is alone.
    """
    chex.assert_rank([vectors, row, tail], [2, 1, 1])
    n = row.shape[0]
    number = jnp.arange(n, dtype=jnp.int32)
    may = tail & (row < n)
    # One entity stands for all that share a row: the lists of many equal vectors would have no room for any other.
    at = jnp.where(may, row, n)
    first = jnp.full(n + 1, n, jnp.int32).at[at].min(number, wrap_negative_indices=False)
    point = jnp.where(may, take(first, at), number)
    is_point = may & (point == number)
    label = clusters(reciprocal(nearest(vectors, is_point, min(k, n))), eps)
    led = jnp.where(label == NOISE, number, label)
    joined = take(led, point)
    # The label of a cluster is a core, which need not be the lowest of all entities that share the row.
    lowest = jnp.full(n, n, jnp.int32).at[joined].min(number, wrap_negative_indices=False)
    return jnp.where(may, take(lowest, joined), number)


@dataclasses.dataclass(frozen=True)
class _Side:
    """Nodes of a side."""

    first: int
    count: int

    def of(self, values: jax.Array) -> jax.Array:
        return values[self.first : self.first + self.count]


def reid_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of the storage `clustered`. It remembers nothing: the groups so far are in the plan.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner whose plan is a `Shared`.
    """
    del on_probes
    options = config.reid

    def plan(context: SegmentContext, key: jax.Array) -> Planned:
        del key
        segment, state, storage = context.segment, context.state, context.storage
        users, items = sides(segment)
        active, before = context.active_mask(), state.plan
        vectors = storage.vectors(state.params, before)
        eps = cosine_eps(segment.index, options.period, options.least_eps, options.most_eps)
        found = []
        for side in (_Side(0, users), _Side(users, items)):
            tail = tail_mask(side.of(segment.total), side.of(segment.recency), side.of(active), options.tail)
            # Rows of both sides are numbered together: within a side they are told apart by the first that reads them.
            row = side.of(before.row)
            start = jnp.where(row < storage.nodes, row, storage.nodes).min()
            own = jnp.where(row < storage.nodes, row - start, side.count)
            found.append(side.first + leaders(side.of(vectors), own, tail, eps, options.neighbours))
        leader = jnp.concatenate(found)
        return Planned(shared_rows(leader, active, context.budget_total(), storage.width), no_action(config))

    return SizePlanner(init=lambda key, storage: (), plan=plan)
