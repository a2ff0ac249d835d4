"""From a parameter budget to one embedding size per entity: shares, exact allocation, ranking."""

from scall_jax.sizes.allocate import allocate
from scall_jax.sizes.price import by_price
from scall_jax.sizes.rank import order_by, rank
from scall_jax.sizes.sample import sample
from scall_jax.sizes.shares import FAMILIES, expected_shares
from scall_jax.sizes.sides import assign, shared_vector_sizes, split_sides

__all__ = [
    "FAMILIES",
    "allocate",
    "assign",
    "by_price",
    "expected_shares",
    "order_by",
    "rank",
    "sample",
    "shared_vector_sizes",
    "split_sides",
]
