"""S2PNM over a stream: users' last items from the interactions known at the cut; no vector of a user (rho = 0)."""

import chex
import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, Planned, SizePlanner, no_action
from scall_jax.ops.indexing import take
from scall_jax.streams import Segment, sides
from scall_jax.tables.sequence import NOBODY, Histories


def last_items(segment: Segment, length: int) -> jax.Array:
    """The distinct items that each user met last.

    Args:
      segment: the data.
      length: items of a user; static.

    Returns:
      i32[U, length], the latest last, `NOBODY` in front of them; an item counts by when it was met last.
    """
    chex.assert_equal_shape([segment.graph.indices, segment.ages])
    users, graph = sides(segment)[0], segment.graph
    entries = graph.indices.shape[0]
    number = jnp.arange(entries, dtype=jnp.int32)
    row = jnp.searchsorted(graph.indptr[: users + 1], number, side="right").astype(jnp.int32) - 1
    # Entries of the items' half, and padding, are of no user.
    row = jnp.where(number < graph.indptr[users], row, users)
    order = jnp.lexsort((segment.ages, row))
    row, item = take(row, order), take(graph.indices, order) - users
    place = number - take(graph.indptr, jnp.minimum(row, users))
    column = jnp.where((row < users) & (place < length), length - 1 - place, length)
    found = jnp.full((users, length), NOBODY, jnp.int32)
    return found.at[row, column].set(item, mode="drop", wrap_negative_indices=False)


def s2pnm_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of the storage `sequence`. It remembers nothing.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner whose plan is a `Histories`.
    """
    del on_probes

    def plan(context: SegmentContext, key: jax.Array) -> Planned:
        del key
        segment = context.segment
        histories = last_items(segment, config.s2pnm.length + 1)
        return Planned(Histories(histories, jnp.stack([segment.users, segment.items])), no_action(config))

    return SizePlanner(init=lambda key, storage: (), plan=plan)
