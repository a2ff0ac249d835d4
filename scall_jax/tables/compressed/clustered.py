"""Rows that several entities may share, with the row of each entity stored: clusters of a tail, one vector each.

All rows have the same number of columns, as many as the budget pays for. The row of each entity is stored in 4 bytes
beside the table and always paid for.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.indexing import take
from scall_jax.ops.keys import by_side
from scall_jax.tables.storage import Exported, Previous, Sides, Storage, StorageFactory, WarmStartOptions, widest


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Clusters of entities that share a row.

    Raises:
      ValueError: a value out of its range.
    """

    tail: float = 0.5
    """Part of the entities of a side, those with the fewest rows, that may share."""
    neighbours: int = 20
    """Neighbours of a point that are looked at, itself included (k)."""
    least_eps: float = 0.4
    """Distance within which points are neighbours, at the start of its schedule."""
    most_eps: float = 0.7
    """The same in the middle of it."""
    period: int = 8
    """Segments of the schedule: eps rises in half of it, falls to the middle by three quarters, and stays there."""

    def __post_init__(self) -> None:
        if not 0 <= self.tail <= 1:
            raise ValueError(f"reid tail={self.tail}: must lie between 0 and 1")
        if self.neighbours < 2 or self.period < 1:
            reason = "need neighbours >= 2 and period >= 1"
            raise ValueError(f"reid neighbours={self.neighbours}, period={self.period}: {reason}")
        if not 0 <= self.least_eps <= self.most_eps < 1:
            # Pairs outside the lists have distance 1.
            reason = "need 0 <= least_eps <= most_eps < 1"
            raise ValueError(f"reid least_eps={self.least_eps}, most_eps={self.most_eps}: {reason}")


class Shared(NamedTuple):
    """Plan and layout of the storage; N nodes."""

    row: jax.Array
    """i32[N], row of each node; N for nodes that do not exist."""
    rows: jax.Array
    """i32[], rows in use, the first ones."""
    columns: jax.Array
    """i32[], columns in use."""


def shared_rows(leader: jax.Array, active: jax.Array, total: jax.Array, width: int) -> Shared:
    """Rows for groups of nodes, in the order of their leaders, and the columns that a budget pays for.

    Args:
      leader: i32[N], the node that leads each node's group; its own number for a node that shares with nobody.
      active: bool[N], nodes that exist.
      total: i32[], coordinates that there are.
      width: columns, at most; static.

    Returns:
      Shared.

    >>> shared = shared_rows(jnp.array([0, 0, 2, 2, 4]), jnp.array([True] * 4 + [False]), jnp.int32(9), width=8)
    >>> shared.row.tolist(), int(shared.rows), int(shared.columns)
    ([0, 0, 1, 1, 5], 2, 4)
    """
    chex.assert_equal_shape([leader, active])
    nodes = leader.shape[0]
    leads = active & (leader == jnp.arange(nodes, dtype=jnp.int32))
    number = jnp.cumsum(leads, dtype=jnp.int32) - 1
    rows = leads.sum(dtype=jnp.int32)
    columns = jnp.minimum(total // jnp.maximum(rows, 1), width).astype(jnp.int32)
    return Shared(jnp.where(active, take(number, leader), nodes), rows, columns)


def clustered(users: int, items: int, width: int, maximum: int) -> Storage:
    """Build the storage.

    Args:
      users, items: capacities of the sides.
      width: columns, at most.
      maximum: the largest size of a run. Random numbers are those of so many columns, whatever the width is.

    Returns:
      Storage. Its plan and its layout are `Shared`, its parameters f32[N, width]. A budget unit is a coordinate.
    """
    nodes, column = users + items, jnp.arange(width)

    def masked(params: jax.Array, shared: Shared) -> jax.Array:
        used = (jnp.arange(nodes) < shared.rows)[:, None] & (column < shared.columns)[None, :]
        return jnp.where(used, params, 0.0)

    def vectors(params: jax.Array, shared: Shared) -> jax.Array:
        return masked(params, shared).at[shared.row].get(mode="fill", fill_value=0.0)

    def of_rows(values: jax.Array, counts: jax.Array, shared: Shared) -> jax.Array:
        """Means over the nodes that count of each row, 0 where none does; f32[N, width]."""
        at = jnp.where(counts, shared.row, nodes)
        sums = jnp.zeros((nodes, width)).at[at].add(values, mode="drop", wrap_negative_indices=False)
        number = jnp.zeros(nodes).at[at].add(1.0, mode="drop", wrap_negative_indices=False)
        return sums / jnp.maximum(number, 1.0)[:, None]

    def drawn(key: jax.Array, shared: Shared) -> jax.Array:
        # A row has the numbers of the first of its nodes, so that they do not depend on who else there is.
        own = by_side(jax.random.normal, key, users, items, (maximum,))[:, :width]
        number = jnp.arange(nodes, dtype=jnp.int32)
        at = jnp.minimum(shared.row, nodes)
        first = jnp.full(nodes, nodes - 1, jnp.int32).at[at].min(number, mode="drop", wrap_negative_indices=False)
        return take(own, first)

    def warm_start(key: jax.Array, previous: Previous, shared: Shared, options: WarmStartOptions) -> jax.Array:
        known = jnp.zeros(nodes, bool).at[jnp.where(previous.known, shared.row, nodes)].set(True, mode="drop")
        kept = options.shrink * of_rows(vectors(previous.stored, previous.plan), previous.known, shared)
        noise = drawn(key, shared)
        grown = jnp.where((column >= previous.plan.columns)[None, :], options.grow_std * noise, kept)
        return masked(jnp.where(known[:, None], grown, options.init_std * noise), shared)

    def sizes(shared: Shared) -> jax.Array:
        own = jnp.where(shared.row < nodes, shared.columns, 0)
        return jnp.concatenate([own, jnp.zeros(2, own.dtype)])

    def empty_plan() -> Shared:
        return Shared(jnp.full(nodes, nodes, jnp.int32), jnp.int32(0), jnp.int32(0))

    return Storage(
        plan=empty_plan,
        empty=lambda: jnp.zeros((nodes, width)),
        layout=lambda shared: shared,
        fresh=lambda key, shared, std: masked(std * drawn(key, shared), shared),
        warm_start=warm_start,
        vectors=vectors,
        store=masked,
        load=lambda stored, shared: stored,
        sizes=sizes,
        allocated=lambda shared: shared.rows * shared.columns,
        used=lambda shared: shared.columns,
        export=functools.partial(_export, users),
        restore=functools.partial(_restore, users, nodes, width),
        nodes=nodes,
        width=width,
    )


def _export(users: int, stored: jax.Array, shared: Shared, known: Sides) -> Exported:
    row = np.asarray(shared.row)
    return {
        "parameters": np.asarray(stored)[: int(shared.rows), : int(shared.columns)],
        "codes_rows": np.concatenate([row[: known[0]], row[users : users + known[1]]]),
    }


def _restore(users: int, nodes: int, width: int, exported: Exported, known: Sides) -> tuple[Any, Shared]:
    written = exported.get("parameters", np.zeros((0, 0), np.float32))
    rows = exported.get("codes_rows", np.zeros(0, np.int32))
    if written.shape[0] > nodes or written.shape[1] > width or len(rows) != sum(known):
        raise ValueError(
            f"parameters of shape {written.shape} and rows of {len(rows)} entities do not fit {(nodes, width)} and "
            f"{sum(known)} entities: restore with the stream and the budget that the run was started with"
        )
    stored, row = np.zeros((nodes, width), np.float32), np.full(nodes, nodes, np.int32)
    stored[: written.shape[0], : written.shape[1]] = written
    row[: known[0]], row[users : users + known[1]] = rows[: known[0]], rows[known[0] :]
    return jnp.asarray(stored), Shared(jnp.asarray(row), *(jnp.int32(x) for x in written.shape))


def _capacity(tail: float, units: Sequence[int], entities: Sequence[Sides], maximum: int) -> int:
    """Columns if all of the tail shared one row, and all others had one each; one entity more, in case of rounding."""
    columns = []
    for t, (total, known) in enumerate(zip(units, entities, strict=True)):
        if total < sum(known):
            raise ValueError(
                f"clustered: the {total} parameters of segment {t} are less than one for each of {sum(known)} "
                "entities, none of which may share before vectors are known: raise the budget to 8 bytes an entity"
            )
        columns.append(total // max(sum(n - math.floor(tail * n) - 1 for n in known), 1))
    return widest(columns, maximum)


def _factory(config: ClusterConfig) -> StorageFactory:
    return StorageFactory(
        budget_units=lambda nbytes, entities, maximum, metadata: nbytes // 4 - sum(entities),
        capacity=functools.partial(_capacity, config.tail),
        build=lambda width, users, items, maximum: clustered(users, items, width, maximum),
        configure=lambda run: _factory(run.reid),
    )


CLUSTERED = _factory(ClusterConfig())
"""Rows that entities share, for `methods.rivals.reid`; the run's `Config.reid` says how many may."""
