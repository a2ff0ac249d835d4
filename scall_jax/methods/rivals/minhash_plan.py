"""SCMA/LMA over a stream: all cells that the budget pays for, signatures from the interactions known at the cut."""

import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, Outcome, SizePlanner, no_action
from scall_jax.sizes.checks import require_sum
from scall_jax.streams import sides
from scall_jax.tables.compressed.minhash import own_signatures, signatures
from scall_jax.tables.compressed.shared_memory import Cells


def minhash_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of the storage `shared_memory`.

    An entity's signature is random as long as it has no interactions, follows them while they are fewer than
    `SharedMemoryConfig.least`, and is frozen from then on. The planner's state is which nodes are frozen, bool[N].

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner whose plan is a `Cells`.
    """
    del on_probes
    options = config.shared_memory

    def plan(context: SegmentContext, key: jax.Array) -> tuple[Cells, jax.Array]:
        del key
        storage, segment = context.storage, context.segment
        degree = jnp.diff(segment.graph.indptr)
        users = sides(segment)[0]
        by_interactions = signatures(segment.graph, storage.nodes, users, options.keys)
        own = own_signatures(storage.nodes, users, options.keys)
        moving = jnp.where((degree > 0)[:, None], by_interactions, own)
        current = jnp.where(context.state.planner[:, None], context.state.plan.signatures, moving)
        # uint32 holds entities x width even where it exceeds int32.
        require_sum(storage.nodes, storage.width, "lower sizes.maximum")
        coordinates = context.active_mask().sum(dtype=jnp.uint32) * storage.width
        count = jnp.minimum(context.budget_total().astype(jnp.uint32), coordinates).astype(jnp.int32)
        return Cells(count, current), no_action(config)

    def update(context: SegmentContext, outcome: Outcome) -> jax.Array:
        del outcome
        return context.state.planner | (jnp.diff(context.segment.graph.indptr) >= options.least)

    return SizePlanner(init=lambda key, storage: jnp.zeros(storage.nodes, bool), plan=plan, update=update)
