"""BiGeaR over a stream (arXiv 2206.02115): the budget decides how many signs each layer of an entity has."""

import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, Planned, SizePlanner, no_action
from scall_jax.tables.compressed.binary_layers import BinaryPlan, columns_within


def bigear_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of the storage `binary_layers`. It remembers nothing.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner whose plan is a `BinaryPlan`.
    """
    del on_probes

    def plan(context: SegmentContext, key: jax.Array) -> Planned:
        del key
        known = jnp.stack([context.segment.users, context.segment.items])
        columns = columns_within(context.budget_total(), known.sum(), config.fit.layers)
        return Planned(BinaryPlan(jnp.minimum(columns, config.sizes.maximum), known), no_action(config))

    return SizePlanner(init=lambda key, storage: (), plan=plan)
