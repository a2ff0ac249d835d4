"""Methods of constant memory: no entity has parameters of its own, the budget decides how wide the shared rows are."""

from collections.abc import Callable

import jax.numpy as jnp

from scall_jax.actions import action_length
from scall_jax.chooser import Chooser
from scall_jax.config import Config
from scall_jax.state import storage_of
from scall_jax.tables.hashed import columns_within


def chooser(config: Config, progress: Callable | None = None) -> Chooser:
    """As many columns of the hashed storage as the budget pays for; nothing is learned or remembered."""
    del progress

    def choose(state, segment, key):
        del key
        columns = columns_within(storage_of(config, state, segment), state.totals[segment.index])
        return columns, jnp.zeros(action_length(config.search))

    return Chooser(init=lambda key, storage: (), choose=choose)
