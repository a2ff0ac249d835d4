"""From a memory budget to one embedding size per entity: budgets, expected shares, exact allocation, order."""

from scall_jax.sizes.allocate import allocate
from scall_jax.sizes.budget import Budget
from scall_jax.sizes.gains import GainRule, Gains, GainsConfig, sizes_by_gains
from scall_jax.sizes.order import order_by
from scall_jax.sizes.price import by_price
from scall_jax.sizes.sample import sample
from scall_jax.sizes.shares import FAMILIES, MOST_POWER, expected_shares, power_shares
from scall_jax.sizes.sides import assign, shared_vector_sizes, split_sides

__all__ = [
    "FAMILIES",
    "MOST_POWER",
    "Budget",
    "GainRule",
    "Gains",
    "GainsConfig",
    "allocate",
    "assign",
    "by_price",
    "expected_shares",
    "order_by",
    "power_shares",
    "sample",
    "shared_vector_sizes",
    "sizes_by_gains",
    "split_sides",
]
