"""Methods of constant memory: no entity has parameters of its own, the budget decides how wide the shared rows are."""

from collections.abc import Callable

from scall_jax.config import Config
from scall_jax.methods.planner import SizePlanner, no_action
from scall_jax.tables.compressed.hashed import columns_within


def hashed_width_planner(config: Config, progress: Callable | None = None) -> SizePlanner:
    """As many columns of the hashed storage as the budget pays for; nothing is learned or remembered."""
    del progress

    def plan(context, key):
        del key
        columns = columns_within(context.storage, context.budget_total())
        return columns, no_action(config)

    return SizePlanner(init=lambda key, storage: (), plan=plan)
