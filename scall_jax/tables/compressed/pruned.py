"""Embeddings of which single coordinates are kept: values, and where in its vector each of them lies.

For learned threshold pruning (PEP; Liu et al., ICLR 2021, arXiv 2101.07577), which finds the coordinates by training a
full table under soft thresholds. What is trained under the mask, kept and saved are the kept values alone.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.sizes.allocate import largest
from scall_jax.tables.sized import all_sizes, sizes_in_use
from scall_jax.tables.storage import Exported, Storage, StorageFactory, size_bytes

_VALUE_BYTES = 4 + 1  # a float32 and its position
GRANULARITIES = ("global", "dimension", "entity", "coordinate")


@dataclasses.dataclass(frozen=True)
class PrunedConfig:
    """Options of pruned embeddings, and of the search for what is kept."""

    width: int = 64
    """Coordinates that an entity may have, at most the largest size and 256: a position is one byte."""
    thresholds: str = "coordinate"
    """One learned threshold in all (`global`), for each `dimension`, each `entity`, or each `coordinate` of each."""
    start: float = -5.0
    """Thresholds are the sigmoid of a number that starts here (published: -15 with rates 20 times smaller)."""
    decay: float = 2e-5
    """Weight of half the squares of these numbers and of the values in the loss of the search (published: 1e-5, with
    many more steps): it draws thresholds up and values down where the loss does not object."""

    def __post_init__(self):
        if not 1 <= self.width <= 256:
            raise ValueError(f"pruned width={self.width}: must lie between 1 and 256, positions are bytes")
        if self.thresholds not in GRANULARITIES:
            raise ValueError(f"pruned thresholds={self.thresholds!r}: choose one of {', '.join(GRANULARITIES)}")
        if not self.decay >= 0:
            raise ValueError(f"pruned decay={self.decay}: must not be negative")


class PruningMask(NamedTuple):
    """Plan: how many coordinates of each vector are kept, and which, vector by vector in ascending order."""

    sizes: jax.Array  # i32[N + 2], the last two, of shared vectors, are 0
    positions: jax.Array  # u8[held], 0 beyond what is in use


class Entries(NamedTuple):
    """Layout: whose and which coordinate a value is."""

    node: jax.Array  # i32[held], N beyond what is in use
    position: jax.Array  # i32[held]


def prune(values: jax.Array, thresholds: jax.Array) -> jax.Array:
    """sign(v) relu(|v| - sigmoid(s)); `thresholds` s has the rank of `values` and broadcasts to it."""
    return jnp.sign(values) * jax.nn.relu(jnp.abs(values) - jax.nn.sigmoid(thresholds))


def keep(
    values: jax.Array, thresholds: jax.Array, num_active: jax.Array, count: jax.Array, capacity: int
) -> PruningMask:
    """The `count` coordinates that reach farthest beyond their thresholds, |v| - sigmoid(s).

    Args:
      values: f32[N, width].
      thresholds: broadcasts to it.
      live: bool[N], nodes that may keep any.
      count: i32[], at most `held`; all there are, if fewer.
      held: static capacity.
    """
    nodes, width = values.shape
    beyond = 1 + jnp.abs(values) - jax.nn.sigmoid(thresholds)  # never negative
    eligible = jnp.broadcast_to(num_active[:, None], values.shape)
    mask = largest(beyond.ravel(), eligible.ravel(), count)
    place = jnp.nonzero(mask, size=capacity, fill_value=0)[0]
    in_use = jnp.arange(capacity) < mask.sum()
    sizes = mask.reshape(nodes, width).sum(1, dtype=jnp.int32)
    positions = jnp.where(in_use, place % width, 0).astype(jnp.uint8)
    return PruningMask(jnp.concatenate([sizes, jnp.zeros(2, jnp.int32)]), positions)


def pruned(capacity: int, users: int, items: int, maximum: int, options: PrunedConfig) -> Storage:
    """Storage over a pool f32[held] of kept values; the plan is `Kept`.

    New values are read from a random table f32[N, width] that depends on the key alone: under two plans, the same
    coordinate starts from the same value. That table exists while values are drawn.
    """
    nodes, width = users + items, min(options.width, maximum)

    def layout(plan: PruningMask) -> Entries:
        own = plan.sizes[:nodes]
        node = jnp.repeat(jnp.arange(nodes, dtype=jnp.int32), own, total_repeat_length=capacity)
        in_use = jnp.arange(capacity) < own.sum()
        return Entries(jnp.where(in_use, node, nodes), plan.positions.astype(jnp.int32))

    def read(table, entries: Entries):
        return table.at[entries.node, entries.position].get(mode="fill", fill_value=0.0)

    def vectors(params, entries: Entries):
        empty = jnp.zeros((nodes, width))
        return empty.at[entries.node, entries.position].set(params, mode="drop")

    def resize(key, stored, old, new, known, weight, carry):
        del weight
        return read(begun(nodes, width, key, vectors(stored, layout(old)), old, known, carry), layout(new))

    return Storage(
        plan=lambda: PruningMask(jnp.zeros(nodes + 2, jnp.int32), jnp.zeros(capacity, jnp.uint8)),
        empty=lambda: jnp.zeros(capacity),
        layout=layout,
        fresh=lambda key, entries, std: read(std * jax.random.normal(key, (nodes, width)), entries),
        resize=resize,
        vectors=vectors,
        store=lambda params, entries: params,
        load=lambda stored, entries: stored,
        sizes=lambda plan: plan.sizes,
        allocated=lambda plan: plan.sizes.sum(),
        used=lambda entries: jnp.int32(width),
        export=functools.partial(_export, users, width),
        restore=functools.partial(_restore, capacity, users, nodes),
        nodes=nodes,
        width=width,
    )


def begun(nodes: int, width: int, key, vectors, old: PruningMask, known, carry) -> jax.Array:
    """The full table f32[N, width] that a segment starts from, given the vectors of the one before.

    Kept values are carried over, coordinates that were not kept grow anew, and so do, at full size, whole vectors of
    which nothing was kept.
    """
    noise = jax.random.normal(key, (nodes, width))
    carried = jnp.where(vectors != 0, carry.shrink * vectors, carry.grow_std * noise)
    had = (known & (old.sizes[:nodes] > 0))[:, None]
    return jnp.where(had, carried, carry.init_std * noise)


def thresholded(storage: Storage, options: PrunedConfig) -> Storage:
    """Storage for the search of what to keep: a full table under thresholds; nothing of it is ever stored.

    Its layout is its plan, of which nothing is read.
    """
    nodes, width = storage.nodes, storage.width
    shape = {"global": (1, 1), "dimension": (1, width), "entity": (nodes, 1), "coordinate": (nodes, width)}

    def with_thresholds(values):
        return {"values": values, "thresholds": jnp.full(shape[options.thresholds], options.start)}

    def resize(key, stored, old, new, known, weight, carry):
        del new, weight
        vectors = storage.vectors(stored, storage.layout(old))
        return with_thresholds(begun(nodes, width, key, vectors, old, known, carry))

    return storage._replace(
        layout=lambda plan: plan,
        fresh=lambda key, layout, std: with_thresholds(std * jax.random.normal(key, (nodes, width))),
        resize=resize,
        vectors=lambda params, layout: prune(params["values"], params["thresholds"]),
        penalty=lambda params, layout: (
            0.5 * options.decay * ((params["thresholds"] ** 2).sum() + (params["values"] ** 2).sum())
        ),
    )


def _export(users, width, stored, plan: PruningMask, known) -> Exported:
    count = int(np.asarray(plan.sizes).sum())
    return {
        "parameters": np.asarray(stored)[:count],
        "metadata_positions": np.asarray(plan.positions)[:count],
        "metadata_sizes": sizes_in_use(plan.sizes, users, width, known),
    }


def _restore(capacity, users, nodes, exported, known):
    values, places = np.zeros(capacity, np.float32), np.zeros(capacity, np.uint8)
    sizes = all_sizes(exported["metadata_sizes"], users, nodes, known)
    for whole, name in ((values, "parameters"), (places, "metadata_positions")):
        written = exported.get(name, whole[:0])
        if not len(written) == sizes.sum() <= capacity:
            raise ValueError(f"{len(written)} {name} for {sizes.sum()} coordinates of {capacity}: another budget's?")
        whole[: len(written)] = written
    return jnp.asarray(values), PruningMask(jnp.asarray(sizes), jnp.asarray(places))


def _kind(options: PrunedConfig) -> StorageFactory:
    def budget_units(nbytes, entities, maximum, metadata):
        width = min(options.width, maximum)
        return (nbytes - (size_bytes(width) * (sum(entities) + 2) if metadata else 0)) // _VALUE_BYTES

    def capacity(budget_units, entities, maximum):
        width = min(options.width, maximum)
        return max(min(u, sum(n) * width) for u, n in zip(budget_units, entities, strict=True))

    return StorageFactory(
        budget_units=budget_units,
        capacity=capacity,
        build=functools.partial(pruned, options=options),
        configure=lambda config: _kind(config.pruned),
    )


PRUNED = _kind(PrunedConfig())
"""Units are kept values: a float32 and the byte that says where it belongs; the number that each entity keeps is paid
for where metadata is."""
