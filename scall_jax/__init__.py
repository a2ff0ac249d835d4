"""Streaming recommendation under an exact memory budget: dynamic embedding sizes in JAX."""

from scall_jax import sizes, streams
from scall_jax.budgets import Budget
from scall_jax.version import __version__

__all__ = ["Budget", "__version__", "sizes", "streams"]
