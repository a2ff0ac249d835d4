"""SCMA/LMA over a stream: all cells that the budget pays for, signatures from the interactions known at the cut."""

from collections.abc import Callable

import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.planner import SizePlanner, no_action
from scall_jax.tables.compressed.minhash import own_signatures, signatures
from scall_jax.tables.compressed.shared_memory import Cells


def minhash_planner(config: Config, progress: Callable | None = None) -> SizePlanner:
    """Signatures are random without interactions, follow them while they are few, and are frozen then.

    Remembered is who is frozen, bool[N].
    """
    del progress
    options = config.shared_memory

    def plan(context, key):
        del key
        storage, segment = context.storage, context.segment
        degree = jnp.diff(segment.graph.indptr)
        found = signatures(segment.graph, storage.nodes, options.keys)
        own = own_signatures(storage.nodes, options.keys)
        moving = jnp.where((degree > 0)[:, None], found, own)
        kept = jnp.where(context.state.planner[:, None], context.state.plan.signatures, moving)
        coordinates = context.active_mask().sum() * storage.width
        count = jnp.minimum(context.budget_total(), coordinates).astype(jnp.int32)
        return Cells(count, kept), no_action(config)

    def update(context, outcome):
        del outcome
        return context.state.planner | (jnp.diff(context.segment.graph.indptr) >= options.least)

    return SizePlanner(init=lambda key, storage: jnp.zeros(storage.nodes, bool), plan=plan, update=update)
