"""Embedding storage behind one interface.

`storage.Storage` is that interface; to add a storage, read `scall_jax/tables/storage.py` first. `table.Table` is the
part of it that lets training work a block of columns at a time.
"""

from typing import Protocol

from scall_jax.tables.compressed.binary_layers import BINARY_LAYERS
from scall_jax.tables.compressed.clustered import CLUSTERED, ClusterConfig
from scall_jax.tables.compressed.evicting import EVICTING, EvictionConfig
from scall_jax.tables.compressed.few_bits import FEW_BITS
from scall_jax.tables.compressed.hashed import BINARY_HASH, BINARY_HASH_SKIP, QUOTIENT_REMAINDER
from scall_jax.tables.compressed.low_precision import PACKED_BFLOAT16
from scall_jax.tables.compressed.mixed_precision import MIXED_PRECISION, MixedPrecisionConfig
from scall_jax.tables.compressed.own_bits import PACKED_BITS
from scall_jax.tables.compressed.pruned import PRUNED, PrunedConfig
from scall_jax.tables.compressed.shared_memory import SHARED_MEMORY, SharedMemoryConfig
from scall_jax.tables.expandable import EXPANDABLE, ExpandableConfig
from scall_jax.tables.layout import Layout, make_layout
from scall_jax.tables.masked import masked
from scall_jax.tables.means import mean_vectors
from scall_jax.tables.packed import packed
from scall_jax.tables.resize import ROTATIONS, ResizeScales, principal_axes, resize
from scall_jax.tables.sequence import SEQUENCE, SequenceConfig
from scall_jax.tables.sized import MASKED, PACKED, sized
from scall_jax.tables.storage import Previous, Storage, StorageFactory, WarmStartOptions, charged
from scall_jax.tables.table import Table

TABLES = {"packed": packed, "masked": masked}
"""Tables by name: functions of (parameters, users, items, maximum)."""

SIZED: dict[str, StorageFactory] = {
    "packed": PACKED,
    "packed_bfloat16": PACKED_BFLOAT16,
    **FEW_BITS,
    "masked": MASKED,
}
"""Storages whose plan is the size of every vector, for methods that plan sizes."""

STORAGES: dict[str, StorageFactory] = SIZED | {
    "binary_hash": BINARY_HASH,
    "binary_hash_skip": BINARY_HASH_SKIP,
    "quotient_remainder": QUOTIENT_REMAINDER,
    "shared_memory": SHARED_MEMORY,
    "mixed_precision": MIXED_PRECISION,
    "pruned": PRUNED,
    "evicting": EVICTING,
    "clustered": CLUSTERED,
    "sequence": SEQUENCE,
    "binary_layers": BINARY_LAYERS,
    "expandable": EXPANDABLE,
    "packed_bits": PACKED_BITS,
}
"""Ways of storing by the name that `Config.table` gives them."""

SOLVED_FOR = ("packed_bits",)
"""Storages with plans of their own whose vectors have parameters of their own, so that each can be solved for."""


class HasTable(Protocol):
    """A configuration that names a storage, and has the options of storages that have any."""

    @property
    def table(self) -> str:
        """Name in `STORAGES`."""
        ...


def storage_factory(config: HasTable) -> StorageFactory:
    """The factory that a run's configuration names, with the options that the configuration has for it.

    Args:
      config: the run's `Config`.

    Returns:
      StorageFactory.

    >>> from scall_jax import Config
    >>> factory = storage_factory(Config(table="packed_bfloat16"))
    >>> factory.budget_units(1000, (30, 18), 64, False)
    500
    """
    factory = STORAGES[config.table]
    return factory if factory.configure is None else factory.configure(config)


__all__ = [
    "ROTATIONS",
    "SIZED",
    "SOLVED_FOR",
    "STORAGES",
    "TABLES",
    "ClusterConfig",
    "EvictionConfig",
    "ExpandableConfig",
    "Layout",
    "MixedPrecisionConfig",
    "Previous",
    "PrunedConfig",
    "ResizeScales",
    "SequenceConfig",
    "SharedMemoryConfig",
    "Storage",
    "StorageFactory",
    "Table",
    "WarmStartOptions",
    "charged",
    "make_layout",
    "masked",
    "mean_vectors",
    "packed",
    "principal_axes",
    "resize",
    "sized",
    "storage_factory",
]
