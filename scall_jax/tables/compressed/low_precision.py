"""The packed table kept in bfloat16 or int8: more coordinates for the same bytes.

Training works on the f32 pool of coordinates, which is resident only while it lasts. Between segments, on disk and when
serving, the pool is rounded; evaluation on test reads the rounded one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables.layout import Layout
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import all_sizes, sized, sizes_in_use
from scall_jax.tables.storage import (
    Exported,
    Previous,
    Sides,
    Storage,
    StorageFactory,
    Stored,
    most_spent,
    size_bytes,
)

_STEP_BYTES = 4


class _Rounding(NamedTuple):
    """How a pool is rounded; fields as in `Storage`, but `export` and `restore` know nothing of sizes in use."""

    empty: Callable[[], Stored]
    store: Callable[[jax.Array, Layout], Stored]  # pool f32[capacity], layout -> stored
    load: Callable[[Stored, Layout], jax.Array]  # and back
    export: Callable[[Stored, np.ndarray], Exported]  # stored, sizes i32[M] -> arrays, trimmed
    restore: Callable[[Exported], Stored]  # and back


def _rounded(capacity: int, users: int, items: int, maximum: int, rounding: _Rounding) -> Storage:
    """Packed storage whose pool is rounded between segments."""
    plain = sized(packed(capacity, users, items, maximum), users, maximum)

    def warm_start(key, previous: Previous, plan, options):
        loaded = rounding.load(previous.stored, plain.layout(previous.plan))
        return plain.warm_start(key, previous._replace(stored=loaded), plan, options)

    def export(stored, plan, known) -> Exported:
        arrays = rounding.export(stored, np.asarray(plan))
        return arrays | {"metadata_sizes": sizes_in_use(plan, users, maximum, known)}

    def restore(exported, known):
        sizes = all_sizes(exported["metadata_sizes"], users, users + items, known)
        if sizes.sum() > capacity:
            raise ValueError(
                f"{sizes.sum()} coordinates do not fit {capacity}:"
                " restore with the budget that the run was started with"
            )
        return jax.tree.map(jnp.asarray, rounding.restore(exported)), jnp.asarray(sizes)

    return plain._replace(
        empty=rounding.empty,
        store=rounding.store,
        load=rounding.load,
        warm_start=warm_start,
        export=export,
        restore=restore,
    )


def _bfloat16(capacity: int, users: int, items: int, maximum: int) -> Storage:
    def export(stored, sizes):
        return {"parameters": np.asarray(stored).view(np.uint16)[: sizes.sum()]}

    def restore(arrays):
        pool = np.zeros(capacity, np.uint16)
        written = arrays.get("parameters", pool[:0])
        pool[: len(written)] = written
        return pool.view(jnp.bfloat16)

    rounding = _Rounding(
        empty=lambda: jnp.zeros(capacity, jnp.bfloat16),
        store=lambda pool, layout: pool.astype(jnp.bfloat16),
        load=lambda stored, layout: stored.astype(jnp.float32),
        export=export,
        restore=restore,
    )
    return _rounded(capacity, users, items, maximum, rounding)


def _rank(layout: Layout, capacity: int) -> jax.Array:
    """Place in `layout.order` of the vector that each coordinate of the pool belongs to; i32[capacity]."""
    at = jnp.arange(capacity, dtype=jnp.int32)
    column = jnp.searchsorted(layout.starts, at, side="right") - 1
    return at - layout.starts[column]


def quantise(pool: jax.Array, layout: Layout) -> dict[str, jax.Array]:
    """Symmetric 8-bit codes with one step for each vector, its largest absolute coordinate / 127.

    Args:
      pool: f32[capacity] of the packed table.
      layout: of its M vectors.

    Returns:
      `codes` i8[capacity], rounded to nearest even; `steps` f32[M], by place in `layout.order`, 0 for a vector of
      zeros.

    >>> layout = packed(3, users=1, items=1, maximum=2).layout(jnp.array([1, 2, 0, 0]))
    >>> stored = quantise(jnp.array([127.0, 254.0, -63.4]), layout)
    >>> stored["codes"].tolist(), dequantise(stored, layout).tolist()
    ([127, 127, -63], [127.0, 254.0, -63.0])
    """
    chex.assert_rank(pool, 1)
    chex.assert_type(pool, jnp.float32)
    rank = _rank(layout, pool.shape[0])
    used = jnp.arange(pool.shape[0]) < layout.starts[-1]
    vectors = layout.order.shape[0]
    largest = jnp.zeros(vectors).at[jnp.where(used, rank, vectors)].max(jnp.abs(pool), mode="drop")
    steps = largest / 127
    step = steps[jnp.minimum(rank, vectors - 1)]
    codes = jnp.where(used & (step > 0), jnp.round(pool / jnp.where(step > 0, step, 1.0)), 0.0)
    return {"codes": jnp.clip(codes, -127, 127).astype(jnp.int8), "steps": steps}


def dequantise(stored: dict[str, jax.Array], layout: Layout) -> jax.Array:
    """The pool that codes and steps stand for.

    Args:
      stored: `codes` i8[capacity] and `steps` f32[M], as of `quantise`.
      layout: of the M vectors.

    Returns:
      f32[capacity], code x step of the vector that each coordinate belongs to.
    """
    codes, steps = stored["codes"], stored["steps"]
    chex.assert_type([codes, steps], [jnp.int8, jnp.float32])
    chex.assert_equal_shape([steps, layout.order])
    rank = jnp.minimum(_rank(layout, codes.shape[0]), steps.shape[0] - 1)
    return codes.astype(jnp.float32) * steps[rank]


def _int8(capacity: int, users: int, items: int, maximum: int) -> Storage:
    vectors = users + items + 2

    def export(stored, sizes):
        # Vectors without coordinates come last in the order and need no step.
        codes, steps = np.asarray(stored["codes"])[: sizes.sum()], np.asarray(stored["steps"])[: (sizes > 0).sum()]
        return {"codes": codes, "metadata_steps": steps}

    def restore(arrays):
        codes, steps = np.zeros(capacity, np.int8), np.zeros(vectors, np.float32)
        for whole, name in ((codes, "codes"), (steps, "metadata_steps")):
            written = arrays.get(name, whole[:0])
            whole[: len(written)] = written
        return {"codes": codes, "steps": steps}

    rounding = _Rounding(
        empty=lambda: {"codes": jnp.zeros(capacity, jnp.int8), "steps": jnp.zeros(vectors)},
        store=quantise,
        load=dequantise,
        export=export,
        restore=restore,
    )
    return _rounded(capacity, users, items, maximum, rounding)


def rounded_units(
    coordinate_bytes: int, step_bytes: int, nbytes: int, entities: Sides, maximum: int, metadata: bool
) -> int:
    """Coordinates that bytes pay for: `StorageFactory.budget_units` of tables in low precision.

    Args:
      coordinate_bytes: bytes of a coordinate.
      step_bytes: bytes of a vector's step, which are always paid for.
      nbytes: bytes of the budget.
      entities: known users and items.
      maximum: the largest size of an entity.
      metadata: whether the sizes of all entities and of the two shared vectors are paid for too.

    >>> rounded_units(2, 0, 1000, (30, 18), 64, metadata=False), rounded_units(1, 4, 1000, (30, 18), 64, metadata=True)
    (500, 750)
    """
    vectors = sum(entities) + 2
    left = nbytes - (size_bytes(maximum) * vectors if metadata else 0)
    # Every vector needs a step; where coordinates are fewer than vectors, at most one for each of them is needed.
    return max((left - step_bytes * vectors) // coordinate_bytes, left // (coordinate_bytes + step_bytes))


PACKED_BFLOAT16 = StorageFactory(
    budget_units=functools.partial(rounded_units, 2, 0), capacity=most_spent, build=_bfloat16
)
"""2 bytes a coordinate."""

PACKED_INT8 = StorageFactory(
    budget_units=functools.partial(rounded_units, 1, _STEP_BYTES), capacity=most_spent, build=_int8
)
"""1 byte a coordinate and a float32 step for each vector."""
