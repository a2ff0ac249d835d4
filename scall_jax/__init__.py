"""Streaming recommendation under an exact memory budget: dynamic embedding sizes in JAX."""

from scall_jax import sizes, streams
from scall_jax.budgets import Budget
from scall_jax.config import Config
from scall_jax.loop import run_segments, scan, sweep
from scall_jax.methods import METHODS, PROBED, SEARCHED, Method
from scall_jax.recommenders.fit import FitConfig
from scall_jax.run import make_run
from scall_jax.version import __version__

__all__ = [
    "METHODS",
    "PROBED",
    "SEARCHED",
    "Budget",
    "Config",
    "FitConfig",
    "Method",
    "__version__",
    "make_run",
    "run_segments",
    "scan",
    "sizes",
    "streams",
    "sweep",
]
