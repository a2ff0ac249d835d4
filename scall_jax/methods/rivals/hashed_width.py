"""Methods of constant memory: no entity has parameters of its own, the budget decides how wide the shared rows are."""

import jax

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, SizePlanner, no_action
from scall_jax.tables.compressed.hashed import columns_within


def hashed_width_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of the hashed storages: as many columns as the budget pays for. It remembers nothing.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner whose plan is the number of columns, i32[].
    """
    del on_probes

    def plan(context: SegmentContext, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        columns = columns_within(context.storage, context.budget_total())
        return columns, no_action(config)

    return SizePlanner(init=lambda key, storage: (), plan=plan)
