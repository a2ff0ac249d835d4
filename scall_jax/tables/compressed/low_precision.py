"""The packed table kept in bfloat16 or int8: more coordinates for the same bytes.

Training works on the f32 pool of coordinates, which is resident only while it lasts. Between segments, on disk and when
serving the pool is rounded, and evaluation on test reads the rounded one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables.layout import Layout
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import all_sizes, sized, sizes_in_use
from scall_jax.tables.storage import Exported, Storage, StorageFactory, size_bytes

_STEP_BYTES = 4


def _rounded(capacity: int, users: int, items: int, maximum: int, empty, store, load, export, restore) -> Storage:
    """Packed storage whose pool is rounded by `store(pool, layout)` and read back by `load(stored, layout)`."""
    plain = sized(packed(capacity, users, items, maximum), users, maximum)

    def resize(key, stored, old, new, known, weight, carry):
        return plain.resize(key, load(stored, plain.layout(old)), old, new, known, weight, carry)

    def exported(stored, plan, known) -> Exported:
        return export(stored, np.asarray(plan)) | {"metadata_sizes": sizes_in_use(plan, users, maximum, known)}

    def restored(arrays, known):
        sizes = all_sizes(arrays["metadata_sizes"], users, users + items, known)
        if sizes.sum() > capacity:
            raise ValueError(f"{sizes.sum()} coordinates do not fit {capacity}: another budget's?")
        return jax.tree.map(jnp.asarray, restore(arrays)), jnp.asarray(sizes)

    changed = {"empty": empty, "store": store, "load": load, "export": exported, "restore": restored, "resize": resize}
    return plain._replace(**changed)


def _bfloat16(capacity: int, users: int, items: int, maximum: int) -> Storage:
    def export(stored, sizes):
        return {"parameters": np.asarray(stored).view(np.uint16)[: sizes.sum()]}

    def restore(arrays):
        pool = np.zeros(capacity, np.uint16)
        written = arrays.get("parameters", pool[:0])
        pool[: len(written)] = written
        return pool.view(jnp.bfloat16)

    return _rounded(
        capacity,
        users,
        items,
        maximum,
        empty=lambda: jnp.zeros(capacity, jnp.bfloat16),
        store=lambda pool, layout: pool.astype(jnp.bfloat16),
        load=lambda stored, layout: stored.astype(jnp.float32),
        export=export,
        restore=restore,
    )


def _rank(layout: Layout, capacity: int) -> jax.Array:
    """Place in `layout.order` of the vector that each coordinate of the pool belongs to; i32[held]."""
    at = jnp.arange(capacity, dtype=jnp.int32)
    column = jnp.searchsorted(layout.starts, at, side="right") - 1
    return at - layout.starts[column]


def quantise(pool: jax.Array, layout: Layout) -> dict[str, jax.Array]:
    """Symmetric 8-bit codes with one step for each vector, its largest absolute coordinate / 127.

    Args:
      pool: f32[held] of the packed table.
      layout: of its M vectors.

    Returns:
      `codes` i8[held], rounded to nearest even; `steps` f32[M], by place in `layout.order`, 0 for a vector of zeros.
    """
    rank = _rank(layout, pool.shape[0])
    used = jnp.arange(pool.shape[0]) < layout.starts[-1]
    vectors = layout.order.shape[0]
    largest = jnp.zeros(vectors).at[jnp.where(used, rank, vectors)].max(jnp.abs(pool), mode="drop")
    steps = largest / 127
    step = steps[jnp.minimum(rank, vectors - 1)]
    codes = jnp.where(used & (step > 0), jnp.round(pool / jnp.where(step > 0, step, 1.0)), 0.0)
    return {"codes": jnp.clip(codes, -127, 127).astype(jnp.int8), "steps": steps}


def dequantise(stored: dict[str, jax.Array], layout: Layout) -> jax.Array:
    """The pool that codes and steps stand for; f32[held]."""
    codes, steps = stored["codes"], stored["steps"]
    rank = jnp.minimum(_rank(layout, codes.shape[0]), steps.shape[0] - 1)
    return codes.astype(jnp.float32) * steps[rank]


def _int8(capacity: int, users: int, items: int, maximum: int) -> Storage:
    vectors = users + items + 2

    def export(stored, sizes):
        # vectors without coordinates come last and need no step
        codes, steps = np.asarray(stored["codes"])[: sizes.sum()], np.asarray(stored["steps"])[: (sizes > 0).sum()]
        return {"codes": codes, "metadata_steps": steps}

    def restore(arrays):
        codes, steps = np.zeros(capacity, np.int8), np.zeros(vectors, np.float32)
        for whole, name in ((codes, "codes"), (steps, "metadata_steps")):
            written = arrays.get(name, whole[:0])
            whole[: len(written)] = written
        return {"codes": codes, "steps": steps}

    return _rounded(
        capacity,
        users,
        items,
        maximum,
        empty=lambda: {"codes": jnp.zeros(capacity, jnp.int8), "steps": jnp.zeros(vectors)},
        store=quantise,
        load=dequantise,
        export=export,
        restore=restore,
    )


def _budget_units(width: int, step_bytes: int, nbytes, entities, maximum, metadata):
    """Coordinates of `width` bytes; steps are always paid for, the size vector where metadata is."""
    vectors = sum(entities) + 2
    left = nbytes - (size_bytes(maximum) * vectors if metadata else 0)
    # a step for every vector, or where coordinates are fewer than vectors at most one for each of them
    return max((left - step_bytes * vectors) // width, left // (width + step_bytes))


def _capacity(budget_units, entities, maximum):
    return max(min(u, sum(n) * maximum) for u, n in zip(budget_units, entities, strict=True))


PACKED_BFLOAT16 = StorageFactory(
    budget_units=functools.partial(_budget_units, 2, 0), capacity=_capacity, build=_bfloat16
)
"""2 bytes a coordinate."""

PACKED_INT8 = StorageFactory(
    budget_units=functools.partial(_budget_units, 1, _STEP_BYTES), capacity=_capacity, build=_int8
)
"""1 byte a coordinate and a float32 step for each vector."""
