"""Semantically constrained memory allocation (SCMA/LMA; Desai et al., arXiv 2103.06124): one array for all entities.

Coordinate i of an entity is one cell of an array f32[cells] that users and items share; the cell follows from
min-hashes of the entity's interactions, so that entities with similar interactions share memory (the paper hashes the
samples that an entity occurs in; here a user is hashed by its items and an item by its users). An entity's signature is
stored (`keys` bytes, always paid for) and frozen, because a signature read anew from a growing graph would move the
entity to other cells. Cells are not stored but follow from the signature. The hashes of a coordinate are made from a
few keys of the entity: with as many keys as hashes x coordinates, signatures would cost as much as a table.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables.compressed.minhash import chosen_keys, locations, own_signatures
from scall_jax.tables.storage import (
    Exported,
    Previous,
    Sides,
    Storage,
    StorageFactory,
    WarmStartOptions,
    most_spent,
)


@dataclasses.dataclass(frozen=True)
class SharedMemoryConfig:
    """Options of the shared array."""

    width: int = 64
    """Coordinates of every entity, at most the largest size."""
    hashes: int = 2
    """Min-hashes that a coordinate's cell depends on (h): more of them ask for more similarity."""
    keys: int = 8
    """Min-hashes of an entity's signature, a byte each, which the coordinates choose theirs from."""
    least: int = 5
    """Interactions of an entity that freeze its signature; until then the signature follows them."""

    def __post_init__(self):
        for name in ("width", "hashes", "least"):
            if getattr(self, name) < 1:
                raise ValueError(f"shared_memory {name}={getattr(self, name)}: must be at least 1")
        if self.keys < self.hashes:
            raise ValueError(
                f"shared_memory keys={self.keys}: a coordinate takes hashes={self.hashes} distinct ones, have as many"
            )


class Cells(NamedTuple):
    """Plan: how many cells there are, and the signatures that entities find theirs by."""

    count: jax.Array
    """i32[], cells in use."""
    signatures: jax.Array
    """u8[N, keys]."""


class CellLayout(NamedTuple):
    """Layout: the cells of all coordinates."""

    count: jax.Array
    """i32[], cells in use."""
    cell: jax.Array
    """i32[N, width], cell of each coordinate."""


def refit_cells(vectors: jax.Array, weight: jax.Array, cell: jax.Array, empty: jax.Array) -> jax.Array:
    """The array whose vectors are nearest to given ones in least squares, weighted by node.

    Args:
      vectors: f32[N, width].
      weight: f32[N], 0 for nodes that do not count.
      cell: i32[N, width], cell of each coordinate.
      empty: f32[cells], values of cells that no weighted node reads.

    Returns:
      f32[cells]: the weighted mean of the coordinates in each cell.

    >>> vectors, cell = jnp.array([[1.0, 2.0], [5.0, 8.0]]), jnp.array([[0, 1], [0, 2]])
    >>> refit_cells(vectors, jnp.array([3.0, 1.0]), cell, jnp.array([0.0, 0.0, 0.0, 7.0])).tolist()
    [2.0, 2.0, 8.0, 7.0]
    """
    chex.assert_equal_shape([vectors, cell])
    chex.assert_shape(weight, (vectors.shape[0],))
    chex.assert_rank(empty, 1)
    chex.assert_type([vectors, weight, cell, empty], [float, float, int, float])
    weights = jnp.broadcast_to(weight[:, None], vectors.shape)
    total = jnp.zeros_like(empty).at[cell].add(weights * vectors)
    mass = jnp.zeros_like(empty).at[cell].add(weights)
    return jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1.0), empty)


def shared_memory(capacity: int, users: int, items: int, maximum: int, options: SharedMemoryConfig) -> Storage:
    """Storage over an array f32[capacity], of which a plan may use less; the plan is `Cells`, the layout `CellLayout`.

    Args:
      capacity: cells of the array.
      users: capacity of the users' side.
      items: capacity of the items' side.
      maximum: the largest size of an entity.
      options: width, hashes and keys.

    Returns:
      Storage; a budget unit is a cell.
    """
    nodes, width = users + items, min(options.width, maximum)
    chosen = chosen_keys(width, options.keys, options.hashes)

    def layout(plan: Cells) -> CellLayout:
        return CellLayout(plan.count, locations(plan.signatures, chosen, jnp.maximum(plan.count, 1)))

    def in_use(values, count):
        return jnp.where(jnp.arange(capacity) < count, values, 0.0)

    def fresh(key, cells: CellLayout, std):
        return in_use(std * jax.random.normal(key, (capacity,)), cells.count)

    def vectors(params, cells: CellLayout):
        chex.assert_shape([params, cells.cell], [(capacity,), (nodes, width)])
        return params[cells.cell]

    def warm_start(key, previous: Previous, plan: Cells, options: WarmStartOptions):
        cells = layout(plan)
        before = options.shrink * previous.stored[layout(previous.plan).cell]
        noise = fresh(key, cells, options.init_std)
        weight = jnp.where(previous.known, previous.weight, 0.0)
        return in_use(refit_cells(before, weight, cells.cell, noise), plan.count)

    return Storage(
        plan=lambda: Cells(jnp.int32(0), own_signatures(nodes, users, options.keys)),
        empty=lambda: jnp.zeros(capacity),
        layout=layout,
        fresh=fresh,
        warm_start=warm_start,
        vectors=vectors,
        store=lambda params, cells: params,
        load=lambda stored, cells: stored,
        sizes=lambda plan: jnp.concatenate([jnp.full(nodes, width), jnp.zeros(2, jnp.int32)]),
        allocated=lambda plan: plan.count,
        used=lambda cells: jnp.int32(width),
        export=functools.partial(_export, users),
        restore=functools.partial(_restore, capacity, users, items, options.keys),
        nodes=nodes,
        width=width,
    )


def _export(users, stored, plan: Cells, known: Sides) -> Exported:
    signatures = np.asarray(plan.signatures)
    in_use = np.concatenate([signatures[: known[0]], signatures[users : users + known[1]]])
    return {"parameters": np.asarray(stored)[: int(plan.count)], "codes_minhashes": in_use}


def _restore(capacity, users, items, keys, exported: Exported, known: Sides) -> tuple[jax.Array, Cells]:
    written = exported.get("parameters", np.zeros(0, np.float32))
    in_use = exported.get("codes_minhashes", np.zeros((0, keys), np.uint8))
    if len(written) > capacity:
        raise ValueError(
            f"{len(written)} cells do not fit {capacity}: restore with the budget that the run was started with"
        )
    if in_use.shape != (sum(known), keys) or known[0] > users or known[1] > items:
        raise ValueError(
            f"signatures of shape {in_use.shape} for {known[0]} users and {known[1]} items with {keys} keys:"
            " restore with the stream and the options that the run was started with"
        )
    params = np.zeros(capacity, np.float32)
    params[: len(written)] = written
    signatures = np.array(own_signatures(users + items, users, keys))
    signatures[: known[0]] = in_use[: known[0]]
    signatures[users : users + known[1]] = in_use[known[0] :]
    return jnp.asarray(params), Cells(jnp.int32(len(written)), jnp.asarray(signatures))


def _shared_memory_factory(options: SharedMemoryConfig) -> StorageFactory:
    def budget_units(nbytes, entities, maximum, metadata):
        del maximum, metadata  # an entity has no cells without its signature, which is therefore always paid for
        return (nbytes - options.keys * sum(entities)) // 4

    def capacity(budget_units, entities, maximum):
        # More cells than coordinates would be of no use.
        return most_spent(budget_units, entities, min(options.width, maximum))

    def configure(config: Any) -> StorageFactory:
        return _shared_memory_factory(config.shared_memory)

    return StorageFactory(
        budget_units=budget_units,
        capacity=capacity,
        build=functools.partial(shared_memory, options=options),
        configure=configure,
    )


SHARED_MEMORY = _shared_memory_factory(SharedMemoryConfig())
"""Units are float32 cells; signatures are always paid for."""
