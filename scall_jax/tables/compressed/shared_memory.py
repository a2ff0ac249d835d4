"""Semantically constrained memory allocation (SCMA/LMA; Desai et al., arXiv 2103.06124): one array for all entities.

Coordinate i of an entity is one cell of an array f32[cells] that users and items share; the cell follows from
min-hashes of the entity's interactions, so that entities with similar interactions share memory (the paper hashes the
samples that an entity occurs in; here a user's are its items, an item's its users). An entity's signature is stored
(`keys` bytes, always paid for) and frozen: read anew from a graph that grows, it would move the entity to other cells.
Cells are not stored but follow from the signature. This is the variant that makes up the hashes of a coordinate from a
few keys an entity; with as many keys as hashes x coordinates, signatures would cost as much as a table.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables.compressed.minhash import chosen_keys, locations, own_signatures
from scall_jax.tables.storage import Exported, Storage, StorageFactory


@dataclasses.dataclass(frozen=True)
class SharedMemoryConfig:
    """Options of the shared array."""

    width: int = 64
    """Coordinates of every entity, at most the largest size."""
    hashes: int = 2
    """Min-hashes that a coordinate's cell depends on (h): more of them ask for more similarity."""
    keys: int = 8
    """Min-hashes of an entity's signature, a byte each, out of which the coordinates take theirs."""
    least: int = 5
    """The signature is frozen once an entity has so many interactions; until then it follows them."""

    def __post_init__(self):
        for name in ("width", "hashes", "least"):
            if getattr(self, name) < 1:
                raise ValueError(f"shared_memory {name}={getattr(self, name)}: must be at least 1")
        if self.keys < self.hashes:
            raise ValueError(
                f"shared_memory keys={self.keys}: a coordinate takes hashes={self.hashes} distinct ones, have as many"
            )


class Cells(NamedTuple):
    """Plan: how many cells there are and who is where."""

    count: jax.Array  # i32[]
    signatures: jax.Array  # u8[N, keys]


class Places(NamedTuple):
    """Layout: cells of all coordinates."""

    count: jax.Array  # i32[]
    cell: jax.Array  # i32[N, width]


def refitted(vectors: jax.Array, weight: jax.Array, cell: jax.Array, empty: jax.Array) -> jax.Array:
    """The array whose vectors are nearest to given ones in least squares, weighted by node.

    Args:
      vectors: f32[N, width].
      weight: f32[N], 0 for nodes that do not count.
      cell: i32[N, width] into the array.
      empty: f32[cells], of cells that no weighted node reads.
    """
    weights = jnp.broadcast_to(weight[:, None], vectors.shape)
    total = jnp.zeros_like(empty).at[cell].add(weights * vectors)
    mass = jnp.zeros_like(empty).at[cell].add(weights)
    return jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1.0), empty)


def shared_memory(capacity: int, users: int, items: int, maximum: int, options: SharedMemoryConfig) -> Storage:
    """Storage over an array f32[held], of which a plan (`Cells`) may use less."""
    nodes, width = users + items, min(options.width, maximum)
    chosen = chosen_keys(width, options.keys, options.hashes)

    def layout(plan: Cells) -> Places:
        return Places(plan.count, locations(plan.signatures, chosen, jnp.maximum(plan.count, 1), capacity))

    def in_use(values, count):
        return jnp.where(jnp.arange(capacity) < count, values, 0.0)

    def fresh(key, places, std):
        return in_use(std * jax.random.normal(key, (capacity,)), places.count)

    def resize(key, stored, old, new, known, weight, carry):
        places = layout(new)
        before = carry.shrink * stored[layout(old).cell]
        noise = fresh(key, places, carry.init_std)
        return in_use(refitted(before, jnp.where(known, weight, 0.0), places.cell, noise), new.count)

    return Storage(
        plan=lambda: Cells(jnp.int32(0), own_signatures(nodes, options.keys)),
        empty=lambda: jnp.zeros(capacity),
        layout=layout,
        fresh=fresh,
        resize=resize,
        vectors=lambda params, places: params[places.cell],
        store=lambda params, places: params,
        load=lambda stored, places: stored,
        sizes=lambda plan: jnp.concatenate([jnp.full(nodes, width), jnp.zeros(2, jnp.int32)]),
        allocated=lambda plan: plan.count,
        used=lambda places: jnp.int32(width),
        export=functools.partial(_export, users),
        restore=functools.partial(_restore, capacity, users, items, options.keys),
        nodes=nodes,
        width=width,
    )


def _export(users, stored, plan: Cells, known) -> Exported:
    signatures = np.asarray(plan.signatures)
    in_use = np.concatenate([signatures[: known[0]], signatures[users : users + known[1]]])
    return {"parameters": np.asarray(stored)[: int(plan.count)], "metadata_signatures": in_use}


def _restore(capacity, users, items, keys, exported, known):
    written = exported.get("parameters", np.zeros(0, np.float32))
    in_use = exported.get("metadata_signatures", np.zeros((0, keys), np.uint8))
    if len(written) > capacity:
        raise ValueError(f"{len(written)} cells do not fit {capacity}: another budget's?")
    if in_use.shape != (sum(known), keys) or known[0] > users or known[1] > items:
        raise ValueError(f"signatures of shape {in_use.shape} for {known[0]} users and {known[1]} items: other keys?")
    params = np.zeros(capacity, np.float32)
    params[: len(written)] = written
    signatures = np.array(own_signatures(users + items, keys))
    signatures[: known[0]] = in_use[: known[0]]
    signatures[users : users + known[1]] = in_use[known[0] :]
    return jnp.asarray(params), Cells(jnp.int32(len(written)), jnp.asarray(signatures))


def _kind(options: SharedMemoryConfig) -> StorageFactory:
    def budget_units(nbytes, entities, maximum, metadata):
        del maximum, metadata  # without its signature an entity has no cells: always paid for
        return (nbytes - options.keys * sum(entities)) // 4

    def capacity(budget_units, entities, maximum):
        # more cells than coordinates would be of no use
        width = min(options.width, maximum)
        return max(min(u, sum(n) * width) for u, n in zip(budget_units, entities, strict=True))

    return StorageFactory(
        budget_units=budget_units,
        capacity=capacity,
        build=functools.partial(shared_memory, options=options),
        configure=lambda config: _kind(config.shared_memory),
    )


SHARED_MEMORY = _kind(SharedMemoryConfig())
"""Units are float32 cells; signatures are always paid for."""
