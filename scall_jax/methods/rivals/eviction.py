"""Who has a row of a table with eviction: the practice of industry at a budget in bytes.

TorchRec's managed collisions and TensorFlow Recommenders Addons keep a table of a given number of rows of one width,
and give rows up by count (LFU), by the time since an entity came last (LRU, with a time to live), or by a score that
combines both. Here rows are given out once a segment, from what the training part has brought, and the table is as long
as the budget pays for. A table remembers nothing of an entity that has no row: one that comes back starts anew.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, Planned, PlannerFactory, SizePlanner, no_action
from scall_jax.streams import Segment
from scall_jax.tables.compressed.evicting import EvictionConfig, Rows, row_of_node

RULES = ("count", "age", "score")
"""What rows are given up by: see `values_of`."""


class Candidates(NamedTuple):
    """Nodes that may have a row; of N nodes."""

    value: jax.Array  # f32[N], what rows are given up by, the smallest first
    may: jax.Array  # bool[N], whether a node may have a row
    resident: jax.Array  # bool[N], whether it has one so far


def candidates(rule: str, config: EvictionConfig, rows: Rows, segment: Segment, active: jax.Array) -> Candidates:
    """Who may have a row of a segment, and what each is worth.

    Args:
      rule: one of `RULES`: `count` adds the segment's rows to what is counted since an entity got its row; `age` is
        minus the rows of the stream since the entity's last one; `score` halves every `half_life` segments and has the
        segment's rows added. Static.
      config: static.
      rows: who has a row so far.
      segment: the data.
      active: bool[N], nodes that exist.

    Returns:
      Candidates: those with a row, and those that the segment has brought.
    """
    chex.assert_equal_shape([segment.frequency, active])
    own = row_of_node(rows, active.shape[0])
    resident = own >= 0
    before = jnp.where(resident, rows.value[jnp.maximum(own, 0)], 0.0)
    came = segment.frequency.astype(jnp.float32)
    may = active & (resident | (segment.frequency > 0))
    if rule == "count":
        return Candidates(before + came, may, resident)
    if rule == "score":
        return Candidates(before * 2.0 ** (-1 / config.half_life) + came, may, resident)
    # The last row before the cut has the largest recency. A row remembers when its entity came, and nothing else.
    since, period = segment.recency.max() - segment.recency, segment.period.astype(jnp.float32)
    age = jnp.where(resident & (since >= segment.period), period - before, since.astype(jnp.float32))
    return Candidates(-age, may & (age <= config.lifetime * period), resident)


def give_out(found: Candidates, segment: Segment, total: jax.Array, capacity: int) -> Rows:
    """Give rows to the candidates of the largest values; ties go to those that have one, then to the latest.

    Args:
      found: who may have one.
      segment: the data.
      total: i32[], rows that there are.
      capacity: R; static.

    Returns:
      Rows.
    """
    chex.assert_rank([found.value, total], [1, 0])
    nodes = found.value.shape[0]
    order = jnp.lexsort((-segment.recency, ~found.resident, -found.value, ~found.may))
    rank = jnp.zeros(nodes, jnp.int32).at[order].set(jnp.arange(nodes, dtype=jnp.int32), unique_indices=True)
    chosen = found.may & (rank < jnp.minimum(total, capacity))
    node = jnp.sort(jnp.where(chosen, jnp.arange(nodes, dtype=jnp.int32), nodes))
    node = jnp.concatenate([node, jnp.full(max(0, capacity - nodes), nodes, jnp.int32)])[:capacity]
    value = jnp.where(node < nodes, found.value[jnp.minimum(node, nodes - 1)], 0.0)
    return Rows(node, value, chosen.sum(dtype=jnp.int32))


def eviction_planner(rule: str) -> PlannerFactory:
    """Planners of the storage `evicting`. They remember nothing: what there is to know stands beside the rows.

    Args:
      rule: one of `RULES`.

    Returns:
      PlannerFactory whose planner's plan is a `Rows`.
    """

    def planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
        del on_probes

        def plan(context: SegmentContext, key: jax.Array) -> Planned:
            del key
            rows, segment = context.state.plan, context.segment
            found = candidates(rule, config.eviction, rows, segment, context.active_mask())
            return Planned(give_out(found, segment, context.budget_total(), rows.node.shape[0]), no_action(config))

        return SizePlanner(init=lambda key, storage: (), plan=plan)

    return planner
