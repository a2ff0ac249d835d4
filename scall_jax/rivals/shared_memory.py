"""SCMA/LMA over a stream: all cells that the budget pays for, signatures from the interactions known at the cut."""

from collections.abc import Callable

import jax.numpy as jnp

from scall_jax.actions import action_length
from scall_jax.allocators import alive
from scall_jax.chooser import Chooser
from scall_jax.config import Config
from scall_jax.state import storage_of
from scall_jax.tables.minhash import own_signatures, signatures
from scall_jax.tables.shared_memory import Cells


def chooser(config: Config, progress: Callable | None = None) -> Chooser:
    """Signatures are random without interactions, follow them while they are few, and are frozen then.

    Remembered is who is frozen, bool[N].
    """
    del progress
    options = config.shared_memory

    def choose(state, segment, key):
        del key
        storage = storage_of(config, state, segment)
        degree = jnp.diff(segment.graph.indptr)
        found = signatures(segment.graph, storage.nodes, options.keys)
        own = own_signatures(storage.nodes, options.keys)
        moving = jnp.where((degree > 0)[:, None], found, own)
        kept = jnp.where(state.chooser[:, None], state.plan.signatures, moving)
        coordinates = alive(segment).sum() * storage.width
        count = jnp.minimum(state.totals[segment.index], coordinates).astype(jnp.int32)
        return Cells(count, kept), jnp.zeros(action_length(config.search))

    def learn(state, segment, prepared, fitted, valid):
        del prepared, fitted, valid
        return state._replace(chooser=state.chooser | (jnp.diff(segment.graph.indptr) >= options.least))

    return Chooser(init=lambda key, storage: jnp.zeros(storage.nodes, bool), choose=choose, learn=learn)
