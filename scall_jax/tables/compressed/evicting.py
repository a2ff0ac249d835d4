"""A table of rows of one width that entities get and lose: what recommenders in production do when a table is full.

A row has the key of the entity that it is for and a number by which rows are given up: how often the entity came since
it got the row, how long ago it came last, or a score that fades (`methods.rivals.eviction`). Keys and numbers are
stored beside the vectors, 4 bytes each, and are always paid for. Keys ascend and are found by bisection, as in
TorchRec's managed collisions (`torchrec.modules.mc_modules`), so that no room is lost to empty slots. Entities without
a row read their side's shared vector.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.indexing import take
from scall_jax.ops.keys import Purpose, by_side, derive
from scall_jax.tables.storage import Exported, Previous, Sides, Storage, StorageFactory, WarmStartOptions, most_spent

_ITEM = 1 << 31
"""Bit of a key that tells items from users."""


@dataclasses.dataclass(frozen=True)
class EvictionConfig:
    """A table with eviction.

    Raises:
      ValueError: a value out of its range.

    >>> EvictionConfig().row_bytes(16)
    40
    """

    width: int = 8
    """Coordinates of a row; not more than `SizesConfig.maximum`."""
    lifetime: float = 4.0
    """Method evict_age: rows that were not asked for longer than this are given up even where there is room, in lengths
    of the segment (time to live)."""
    half_life: float = 2.0
    """Method evict_score: segments in which a score halves."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"eviction width={self.width}: must be at least 1")
        for name in ("lifetime", "half_life"):
            if not getattr(self, name) > 0:
                raise ValueError(f"eviction {name}={getattr(self, name)}: must be greater than 0")

    def row_bytes(self, maximum: int) -> int:
        """Bytes of a row: its vector, its key and its number.

        Args:
          maximum: the largest size of the run.
        """
        return 4 * min(self.width, maximum) + 8


class Rows(NamedTuple):
    """Plan of the storage: who has a row; R rows."""

    node: jax.Array
    """i32[R], ascending in the rows in use, N in the others."""
    value: jax.Array
    """f32[R], what eviction goes by; 0 in rows that are not in use."""
    count: jax.Array
    """i32[], rows in use, the first ones."""


def row_of_node(rows: Rows, nodes: int) -> jax.Array:
    """The row of each node, i32[N], -1 for nodes without.

    Args:
      rows: who has one.
      nodes: N; static.

    >>> row_of_node(Rows(jnp.array([1, 4, 5]), jnp.zeros(3), jnp.int32(2)), nodes=5).tolist()
    [-1, 0, -1, -1, 1]
    """
    chex.assert_rank([rows.node, rows.count], [1, 0])
    place = jnp.arange(rows.node.shape[0], dtype=jnp.int32)
    at = jnp.where(place < rows.count, rows.node, nodes)
    return jnp.full(nodes, -1, jnp.int32).at[at].set(place, mode="drop", wrap_negative_indices=False)


def evicting(capacity: int, users: int, items: int, width: int) -> Storage:
    """Build the storage.

    Args:
      capacity: R, rows at most.
      users, items: capacities of the sides.
      width: coordinates of a row.

    Returns:
      Storage. Its plan is `Rows`; its layout the row of each node, i32[N], where nodes without a row read row R or
      R + 1, their side's; its parameters f32[R + 2, width]. A budget unit is a row.
    """
    nodes = users + items
    shared = capacity + (jnp.arange(nodes, dtype=jnp.int32) >= users).astype(jnp.int32)

    def layout(rows: Rows) -> jax.Array:
        own = row_of_node(rows, nodes)
        return jnp.where(own < 0, shared, own)

    def drawn(key: jax.Array, std: float) -> jax.Array:
        """f32[N + 2, width], for every node and the shared vectors."""
        own = by_side(jax.random.normal, key, users, items, (width,))
        return std * jnp.concatenate([own, jax.random.normal(derive(key, Purpose.SHARED), (2, width))])

    def fresh(key: jax.Array, at: jax.Array, std: float) -> jax.Array:
        drawn_for = drawn(key, std)
        empty = jnp.zeros((capacity + 2, width)).at[capacity:].set(drawn_for[nodes:])
        own = jnp.where(at < capacity, at, capacity + 2)
        return empty.at[own].set(drawn_for[:nodes], mode="drop", wrap_negative_indices=False)

    def warm_start(key: jax.Array, previous: Previous, rows: Rows, options: WarmStartOptions) -> jax.Array:
        before = row_of_node(previous.plan, nodes)
        node = jnp.minimum(rows.node, nodes - 1)
        had = take(before, node)
        kept = jnp.concatenate([(had >= 0) & (rows.node < nodes), jnp.ones(2, bool)])
        old = options.shrink * jnp.concatenate([take(previous.stored, jnp.maximum(had, 0)), previous.stored[capacity:]])
        return jnp.where(kept[:, None], old, fresh(key, layout(rows), options.init_std))

    def sizes(rows: Rows) -> jax.Array:
        own = jnp.where(row_of_node(rows, nodes) >= 0, width, 0)
        return jnp.concatenate([own, jnp.full(2, width)]).astype(jnp.int32)

    def store(params: jax.Array, at: jax.Array) -> jax.Array:
        used = jnp.zeros(capacity + 2, bool).at[capacity:].set(True).at[at].set(True, wrap_negative_indices=False)
        return jnp.where(used[:, None], params, 0.0)

    return Storage(
        plan=lambda: Rows(jnp.full(capacity, nodes, jnp.int32), jnp.zeros(capacity), jnp.int32(0)),
        empty=lambda: jnp.zeros((capacity + 2, width)),
        layout=layout,
        fresh=fresh,
        warm_start=warm_start,
        vectors=lambda params, at: take(params, at),
        store=store,
        load=lambda stored, at: stored,
        sizes=sizes,
        allocated=lambda rows: rows.count,
        used=lambda at: jnp.int32(width),
        export=functools.partial(_export, capacity, users),
        restore=functools.partial(_restore, capacity, users, nodes, width),
        nodes=nodes,
        width=width,
    )


def _export(capacity: int, users: int, stored: jax.Array, rows: Rows, known: Sides) -> Exported:
    del known
    count, written = int(rows.count), np.asarray(stored)
    node = np.asarray(rows.node)[:count].astype(np.int64)
    return {
        "parameters": written[:count],
        "parameters_shared": written[capacity:],
        "codes_keys": np.where(node < users, node, node - users + _ITEM).astype(np.uint32),
        "codes_values": np.asarray(rows.value)[:count],
    }


def _restore(capacity: int, users: int, nodes: int, width: int, exported: Exported, known: Sides) -> tuple[Any, Rows]:
    del known
    keys = exported.get("codes_keys", np.zeros(0, np.uint32)).astype(np.int64)
    written = exported.get("parameters", np.zeros((0, width), np.float32))
    if len(keys) > capacity or written.shape != (len(keys), width):
        raise ValueError(
            f"parameters of shape {written.shape} for {len(keys)} keys do not fit {(capacity, width)}:"
            " restore with the stream, the budget and the width that the run was started with"
        )
    stored, node = np.zeros((capacity + 2, width), np.float32), np.full(capacity, nodes, np.int32)
    value = np.zeros(capacity, np.float32)
    stored[: len(keys)], stored[capacity:] = written, exported["parameters_shared"]
    node[: len(keys)] = np.where(keys < _ITEM, keys, keys - _ITEM + users)
    value[: len(keys)] = exported.get("codes_values", np.zeros(0, np.float32))
    return jnp.asarray(stored), Rows(jnp.asarray(node), jnp.asarray(value), jnp.int32(len(keys)))


def _factory(config: EvictionConfig) -> StorageFactory:
    def budget_units(nbytes: int, entities: Sides, maximum: int, metadata: bool) -> int:
        del entities, metadata  # Keys and numbers are always paid for.
        return (nbytes - 8 * min(config.width, maximum)) // config.row_bytes(maximum)

    return StorageFactory(
        budget_units=budget_units,
        capacity=lambda units, entities, maximum: most_spent(units, entities, 1),
        build=lambda capacity, users, items, maximum: evicting(capacity, users, items, min(config.width, maximum)),
        configure=lambda run: _factory(run.eviction),
    )


EVICTING = _factory(EvictionConfig())
"""A table with eviction; the run's `Config.eviction` says how wide rows are."""
