"""Embedding storage behind one interface."""

from scall_jax.tables.compressed.hashed import BINARY_HASH, BINARY_HASH_SKIP, QUOTIENT_REMAINDER
from scall_jax.tables.compressed.low_precision import PACKED_BFLOAT16, PACKED_INT8
from scall_jax.tables.compressed.mixed_precision import MIXED_PRECISION, MixedPrecisionConfig
from scall_jax.tables.compressed.pruned import PRUNED, PrunedConfig
from scall_jax.tables.compressed.shared_memory import SHARED_MEMORY, SharedMemoryConfig
from scall_jax.tables.layout import Layout, make_layout
from scall_jax.tables.masked import masked
from scall_jax.tables.means import mean_vectors
from scall_jax.tables.packed import packed
from scall_jax.tables.resize import principal_axes, resize
from scall_jax.tables.sized import MASKED, PACKED, sized
from scall_jax.tables.storage import Storage, StorageFactory, charged
from scall_jax.tables.table import Table

TABLES = {"packed": packed, "masked": masked}

SIZED: dict[str, StorageFactory] = {
    "packed": PACKED,
    "packed_bfloat16": PACKED_BFLOAT16,
    "packed_int8": PACKED_INT8,
    "masked": MASKED,
}
"""Storages whose plan is the size of every vector, for methods that choose sizes."""

STORAGES: dict[str, StorageFactory] = SIZED | {
    "binary_hash": BINARY_HASH,
    "binary_hash_skip": BINARY_HASH_SKIP,
    "quotient_remainder": QUOTIENT_REMAINDER,
    "shared_memory": SHARED_MEMORY,
    "mixed_precision": MIXED_PRECISION,
    "pruned": PRUNED,
}
"""Ways of storing by name."""


def storage_factory(config, name: str | None = None) -> StorageFactory:
    """The kind called `name` (None: the config's own `table`) with the options that the config has for it."""
    kind = STORAGES[name or config.table]
    return kind if kind.configure is None else kind.configure(config)


__all__ = [
    "SIZED",
    "STORAGES",
    "TABLES",
    "Layout",
    "MixedPrecisionConfig",
    "PrunedConfig",
    "SharedMemoryConfig",
    "Storage",
    "StorageFactory",
    "Table",
    "charged",
    "kind_of",
    "make_layout",
    "masked",
    "mean_vectors",
    "packed",
    "principal_axes",
    "resize",
    "sized",
]
