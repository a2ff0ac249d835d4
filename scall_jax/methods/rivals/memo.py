"""MEMO over a stream (Zhou et al., ICLR 2023, arXiv 2205.13218): a segment appends a block of columns, older ones stay.

The paper shares shallow layers and adds a copy of the deepest one for each task; here a block of columns takes the
place of a deep block. Its memory-aligned protocol is `experiments.arena`; this is the model.
"""

import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, Planned, SizePlanner, no_action
from scall_jax.streams import sides
from scall_jax.tables.expandable import expand


def memo_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of the storage `expandable`. It remembers nothing: frozen columns are part of the plan.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner whose plan is an `Expanded`.
    """
    del on_probes

    def plan(context: SegmentContext, key: jax.Array) -> Planned:
        del key
        segment, state = context.segment, context.state
        known = jnp.stack([segment.users, segment.items])
        users, total = sides(segment)[0], context.budget_total()
        return Planned(expand(config.memo, state.plan, state.params, known, total, users), no_action(config))

    return SizePlanner(init=lambda key, storage: (), plan=plan)
