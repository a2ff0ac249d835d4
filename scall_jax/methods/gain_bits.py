"""Planner of sizes and bits together: at one price for a bit, what coordinates are worth decides how many and how fine.

Gains are those of the method gain, read off the same wide fit; the storage is `packed_bits`.
"""

import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.allocators import entities_order
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.gains import WideFits, planner_from
from scall_jax.methods.planner import OnProbes, SizePlanner
from scall_jax.recommenders.recommender import WideFit
from scall_jax.sizes.bit_gains import Coordinates, sizes_and_bits, worth_in_bits
from scall_jax.sizes.checks import SUM_LIMIT
from scall_jax.sizes.gains import LEAST_WEIGHT
from scall_jax.tables.compressed.few_bits import BITS
from scall_jax.tables.compressed.own_bits import SCALE_BITS, BitPlan, metadata_bytes, spent_bytes

_KINDS = tuple(sorted(BITS))
_SHARED = (1, 4)
"""Size and bits of the vectors that entities without coordinates share."""
_HALVINGS = 10
"""Halvings of what is left for codes where sizes are paid for: what they take follows from what there is."""


def gain_bits_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner.

    Args:
      config: configuration of the run; `gains` says how gains are weighed, `sizes.maximum` bounds sizes.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner whose plan is a `BitPlan`.
    """
    del on_probes
    return planner_from(WideFits(config), plan_from)


def plan_from(context: SegmentContext, fit: WideFit) -> BitPlan:
    """Sizes and bits of a segment by what coordinates are worth.

    Args:
      context: the segment.
      fit: its wide fit.

    Returns:
      BitPlan that the budget pays for.
    """
    config, segment = context.config, context.segment
    options = config.gains
    net = fit.gains - options.noise * fit.residual
    worth = worth_in_bits(Coordinates(net, fit.vectors, fit.curvature), _KINDS)
    weight = jnp.where(fit.at_zero > 0, jnp.maximum(fit.at_zero, LEAST_WEIGHT), 1.0) ** options.exponent
    worth, order = worth / weight[:, None, None], entities_order(config.sizes, segment)
    exists, total = context.active_mask(), context.budget_total()

    def plan_of(nbytes: jax.Array) -> BitPlan:
        """Of as many bytes of codes and scales."""
        shared = 2 * (_SHARED[0] * _SHARED[1] + SCALE_BITS)
        # More bits than can be counted are more than all entities can have.
        bits = 8 * jnp.minimum(nbytes, SUM_LIMIT // 8).astype(jnp.uint32)
        has = bits >= shared
        own = sizes_and_bits(worth, _KINDS, jnp.where(has, bits - shared, 0), SCALE_BITS, exists, order)
        parts = zip(own, _SHARED, strict=True)
        return BitPlan(*(jnp.concatenate([x, jnp.where(has, jnp.full(2, s, jnp.int32), 0)]) for x, s in parts))

    if config.charge == "table":
        return plan_of(total)

    def halve(_: jax.Array, bracket: tuple[jax.Array, jax.Array, BitPlan]) -> tuple[jax.Array, jax.Array, BitPlan]:
        low, high, best = bracket  # the plan of `low` bytes is the best so far, and that of `high` is too much
        middle = low + (high - low) // 2
        found = plan_of(middle)
        fits = spent_bytes(found) + metadata_bytes(found, exists, config.sizes.maximum) <= total
        best = jax.tree.map(lambda new, old: jnp.where(fits, new, old), found, best)
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle), best

    nothing = jax.tree.map(jnp.zeros_like, plan_of(jnp.int32(0)))
    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.int32(0), total + 1, nothing))[2]
