"""Streaming recommendation under an exact memory budget: dynamic embedding sizes in JAX.

Read a stream with `streams`, describe a run with `Config` and `Budget`, and run it with `run_segments` (on the host,
with a folder that can be continued), `scan` (one compiled program) or `sweep` (one program for several budgets and
seeds). `load` reads a `Model` from a run's folder, which recommends. A new method is an allocator or a `SizePlanner`,
which `embedding_method` turns into a `Method` for `run_segments`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scall_jax import sizes, streams
    from scall_jax.config import Config, SearchConfig, SizesConfig, WarmStartConfig
    from scall_jax.methods.embedding_phases import embedding_method
    from scall_jax.methods.phases import Method
    from scall_jax.methods.planner import SizePlanner, allocator_planner
    from scall_jax.methods.registry import METHODS, PROBED, SEARCHED
    from scall_jax.policies import ObserveConfig, PolicyConfig
    from scall_jax.recommenders.fit_config import FitConfig
    from scall_jax.run import ScanResult, make_run, run_segments, scan, sweep
    from scall_jax.serving import Model, load
    from scall_jax.sizes.budget import Budget
    from scall_jax.tables import (
        ClusterConfig,
        EvictionConfig,
        ExpandableConfig,
        MixedPrecisionConfig,
        PrunedConfig,
        SequenceConfig,
        SharedMemoryConfig,
    )

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "PROBED",
    "SEARCHED",
    "Budget",
    "ClusterConfig",
    "Config",
    "EvictionConfig",
    "ExpandableConfig",
    "FitConfig",
    "Method",
    "MixedPrecisionConfig",
    "Model",
    "ObserveConfig",
    "PolicyConfig",
    "PrunedConfig",
    "ScanResult",
    "SearchConfig",
    "SequenceConfig",
    "SharedMemoryConfig",
    "SizePlanner",
    "SizesConfig",
    "WarmStartConfig",
    "__version__",
    "allocator_planner",
    "embedding_method",
    "load",
    "make_run",
    "run_segments",
    "scan",
    "sizes",
    "streams",
    "sweep",
]

_PLACES = {
    "config": ("Config", "SearchConfig", "SizesConfig", "WarmStartConfig"),
    "methods.embedding_phases": ("embedding_method",),
    "methods.phases": ("Method",),
    "methods.planner": ("SizePlanner", "allocator_planner"),
    "methods.registry": ("METHODS", "PROBED", "SEARCHED"),
    "policies": ("ObserveConfig", "PolicyConfig"),
    "recommenders.fit_config": ("FitConfig",),
    "run": ("ScanResult", "make_run", "run_segments", "scan", "sweep"),
    "serving": ("Model", "load"),
    "sizes.budget": ("Budget",),
    "tables": (
        "ClusterConfig",
        "EvictionConfig",
        "ExpandableConfig",
        "MixedPrecisionConfig",
        "PrunedConfig",
        "SequenceConfig",
        "SharedMemoryConfig",
    ),
}
"""Modules of the names above, imported when a name is first asked for: `scall-jax --help` needs none of them."""


def __getattr__(name: str) -> object:
    if name in ("sizes", "streams"):
        return importlib.import_module(f"{__name__}.{name}")
    for place, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{place}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
