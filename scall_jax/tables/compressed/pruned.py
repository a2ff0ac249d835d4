"""Embeddings of which single coordinates are kept: values, and the position of each of them in its vector.

This is the storage of learned threshold pruning (PEP; Liu et al., ICLR 2021, arXiv 2101.07577), which finds the
coordinates by training a full table under soft thresholds. Only the kept values are trained under the mask and stored.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.keys import by_side
from scall_jax.ops.selection import largest
from scall_jax.tables import size_codes
from scall_jax.tables.sized import all_sizes, sizes_in_use
from scall_jax.tables.storage import (
    Exported,
    Previous,
    Sides,
    Storage,
    StorageFactory,
    WarmStartOptions,
    most_spent,
    size_bytes,
)

_VALUE_BYTES = 4 + 1  # a float32 and its position

GRANULARITIES = ("global", "dimension", "entity", "coordinate")
"""What has a threshold of its own; see `PrunedConfig.thresholds`."""


@dataclasses.dataclass(frozen=True)
class PrunedConfig:
    """Options of pruned embeddings, and of the search for what is kept."""

    width: int = 64
    """Coordinates that an entity may have, at most the largest size and 256: a position is one byte."""
    thresholds: str = "coordinate"
    """One learned threshold in all (`global`), for each `dimension`, each `entity`, or each `coordinate` of each."""
    start: float = -5.0
    """Logit that thresholds start from; a threshold is its sigmoid (published: -15 with rates 20 times smaller)."""
    decay: float = 2e-5
    """Weight of half the squares of the thresholds' logits and of the values in the loss of the search (published:
    1e-5, with many more steps): it draws thresholds up and values down where the loss does not object."""

    def __post_init__(self):
        if not 1 <= self.width <= 256:
            raise ValueError(f"pruned width={self.width}: must lie between 1 and 256, positions are bytes")
        if self.thresholds not in GRANULARITIES:
            raise ValueError(f"pruned thresholds={self.thresholds!r}: choose one of {', '.join(GRANULARITIES)}")
        if not self.decay >= 0:
            raise ValueError(f"pruned decay={self.decay}: must not be negative")


class PruningMask(NamedTuple):
    """Plan: how many coordinates of each vector are kept, and which, vector by vector in ascending order."""

    sizes: jax.Array
    """i32[N + 2], kept coordinates of each vector; the last two, of the shared vectors, are 0."""
    positions: jax.Array
    """u8[capacity], position in its vector of each kept coordinate; 0 beyond what is in use."""


class Entries(NamedTuple):
    """Layout: whose and which coordinate each value is."""

    node: jax.Array
    """i32[capacity], node of each value; N beyond what is in use."""
    position: jax.Array
    """i32[capacity], position of each value in its node's vector."""


def prune(values: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Soft thresholding, sign(v) relu(|v| - sigmoid(s)), differentiable in both.

    Args:
      values: f32[N, width], v.
      thresholds: f32 [1 or N, 1 or width], logits s.

    Returns:
      f32[N, width], 0 where a value does not exceed its threshold.

    >>> prune(jnp.array([[0.2, -0.75]]), jnp.zeros((1, 1))).tolist()
    [[0.0, -0.25]]
    """
    _check_thresholds(values, thresholds)
    return jnp.sign(values) * jax.nn.relu(jnp.abs(values) - jax.nn.sigmoid(thresholds))


def _check_thresholds(values, thresholds):
    chex.assert_shape([values, thresholds], [(None, None), ({1, values.shape[0]}, {1, values.shape[-1]})])
    chex.assert_type([values, thresholds], float)


def keep(
    values: jax.Array, thresholds: jax.Array, active_mask: jax.Array, count: jax.Array, capacity: int
) -> PruningMask:
    """The coordinates that reach farthest beyond their thresholds, |v| - sigmoid(s).

    Args:
      values: f32[N, width], v; width is at most 256.
      thresholds: f32 [1 or N, 1 or width], logits s.
      active_mask: bool[N], nodes that may keep coordinates.
      count: i32[], coordinates to keep, at most `capacity`; all that there are, if these are fewer.
      capacity: length of the mask's positions; static.

    Returns:
      PruningMask of exactly `count` coordinates, where there are so many.

    >>> values = jnp.array([[0.9, 0.1, -0.8], [0.2, 0.7, 0.3]])
    >>> mask = keep(values, jnp.zeros((1, 1)), jnp.array([True, True]), jnp.int32(3), capacity=4)
    >>> mask.sizes.tolist(), mask.positions.tolist()
    ([2, 1, 0, 0], [0, 2, 1, 0])
    """
    _check_thresholds(values, thresholds)
    chex.assert_shape([active_mask, count], [(values.shape[0],), ()])
    chex.assert_type([active_mask, count], [bool, int])
    nodes, width = values.shape
    beyond = 1 + jnp.abs(values) - jax.nn.sigmoid(thresholds)  # never negative
    eligible = jnp.broadcast_to(active_mask[:, None], values.shape)
    mask = largest(beyond.ravel(), eligible.ravel(), count)
    place = jnp.nonzero(mask, size=capacity, fill_value=0)[0]
    in_use = jnp.arange(capacity) < mask.sum()
    sizes = mask.reshape(nodes, width).sum(1, dtype=jnp.int32)
    positions = jnp.where(in_use, place % width, 0).astype(jnp.uint8)
    return PruningMask(jnp.concatenate([sizes, jnp.zeros(2, jnp.int32)]), positions)


def pruned(capacity: int, users: int, items: int, maximum: int, options: PrunedConfig) -> Storage:
    """Storage over a pool f32[capacity] of kept values; the plan is a `PruningMask`, the layout `Entries`.

    New values are read from a random table f32[N, width] that depends on the key alone: under two plans, the same
    coordinate starts from the same value. That table exists only while values are drawn.

    Args:
      capacity: values of the pool.
      users: capacity of the users' side.
      items: capacity of the items' side.
      maximum: the largest size of an entity.
      options: width.

    Returns:
      Storage; a budget unit is a kept value.
    """
    nodes, width = users + items, min(options.width, maximum)

    def layout(plan: PruningMask) -> Entries:
        chex.assert_shape(list(plan), [(nodes + 2,), (capacity,)])
        own = plan.sizes[:nodes]
        node = jnp.repeat(jnp.arange(nodes, dtype=jnp.int32), own, total_repeat_length=capacity)
        in_use = jnp.arange(capacity) < own.sum()
        return Entries(jnp.where(in_use, node, nodes), plan.positions.astype(jnp.int32))

    def read(full, entries: Entries):
        return full.at[entries.node, entries.position].get(mode="fill", fill_value=0.0)

    def vectors(params, entries: Entries):
        chex.assert_shape([params, *entries], (capacity,))
        empty = jnp.zeros((nodes, width))
        return empty.at[entries.node, entries.position].set(params, mode="drop")

    def warm_start(key, previous: Previous, plan: PruningMask, options: WarmStartOptions):
        full = _full_start(key, users, vectors(previous.stored, layout(previous.plan)), previous, options)
        return read(full, layout(plan))

    return Storage(
        plan=lambda: PruningMask(jnp.zeros(nodes + 2, jnp.int32), jnp.zeros(capacity, jnp.uint8)),
        empty=lambda: jnp.zeros(capacity),
        layout=layout,
        fresh=lambda key, entries, std: read(std * by_side(jax.random.normal, key, users, items, (width,)), entries),
        warm_start=warm_start,
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


def _full_start(key, users: int, vectors: jax.Array, previous: Previous, options: WarmStartOptions) -> jax.Array:
    """The full table f32[N, width] that a segment starts from, given the vectors of the one before.

    Kept values are carried over. Coordinates that were not kept are drawn with the standard deviation of growth, and
    vectors of which nothing was kept with that of new ones.
    """
    nodes, width = vectors.shape
    noise = by_side(jax.random.normal, key, users, nodes - users, (width,))
    carried = jnp.where(vectors != 0, options.shrink * vectors, options.grow_std * noise)
    had = (previous.known & (previous.plan.sizes[:nodes] > 0))[:, None]
    return jnp.where(had, carried, options.init_std * noise)


def thresholded(storage: Storage, users: int, options: PrunedConfig) -> Storage:
    """Storage for the search of what to keep: a full table under thresholds; nothing of it is ever stored.

    Args:
      storage: of `pruned` with the same options.
      users: capacity of the users' side.
      options: thresholds' granularity, start and decay.

    Returns:
      Storage whose layout is its plan, of which nothing is read. Parameters are `values` f32[N, width] and
      `thresholds`, logits f32 [1 or N, 1 or width].
    """
    nodes, width = storage.nodes, storage.width
    shape = {"global": (1, 1), "dimension": (1, width), "entity": (nodes, 1), "coordinate": (nodes, width)}

    def with_thresholds(values):
        return {"values": values, "thresholds": jnp.full(shape[options.thresholds], options.start)}

    def warm_start(key, previous: Previous, plan: PruningMask, options: WarmStartOptions):
        del plan
        vectors = storage.vectors(previous.stored, storage.layout(previous.plan))
        return with_thresholds(_full_start(key, users, vectors, previous, options))

    return storage._replace(
        layout=lambda plan: plan,
        fresh=lambda key, layout, std: with_thresholds(
            std * by_side(jax.random.normal, key, users, nodes - users, (width,))
        ),
        warm_start=warm_start,
        vectors=lambda params, layout: prune(params["values"], params["thresholds"]),
        penalty=lambda params, layout: (
            0.5 * options.decay * ((params["thresholds"] ** 2).sum() + (params["values"] ** 2).sum())
        ),
    )


def _export(users, width, stored, plan: PruningMask, known: Sides) -> Exported:
    count = int(np.asarray(plan.sizes).sum())
    return {
        "parameters": np.asarray(stored)[:count],
        "codes_positions": np.asarray(plan.positions)[:count],
        **size_codes.write(sizes_in_use(plan.sizes, users, width, known)),
    }


def _restore(capacity, users, nodes, exported: Exported, known: Sides) -> tuple[jax.Array, PruningMask]:
    values, positions = np.zeros(capacity, np.float32), np.zeros(capacity, np.uint8)
    sizes = all_sizes(size_codes.read(exported, sum(known) + 2), users, nodes, known)
    for whole, name in ((values, "parameters"), (positions, "codes_positions")):
        written = exported.get(name, whole[:0])
        if not len(written) == sizes.sum() <= capacity:
            raise ValueError(
                f"{len(written)} {name} for {sizes.sum()} coordinates of {capacity}:"
                " restore with the budget that the run was started with"
            )
        whole[: len(written)] = written
    return jnp.asarray(values), PruningMask(jnp.asarray(sizes), jnp.asarray(positions))


def _pruned_factory(options: PrunedConfig) -> StorageFactory:
    def budget_units(nbytes, entities, maximum, metadata):
        width = min(options.width, maximum)
        return (nbytes - (size_bytes(width) * (sum(entities) + 2) if metadata else 0)) // _VALUE_BYTES

    def capacity(budget_units, entities, maximum):
        return most_spent(budget_units, entities, min(options.width, maximum))

    def configure(config: Any) -> StorageFactory:
        return _pruned_factory(config.pruned)

    return StorageFactory(
        budget_units=budget_units,
        capacity=capacity,
        build=functools.partial(pruned, options=options),
        configure=configure,
    )


PRUNED = _pruned_factory(PrunedConfig())
"""Units are kept values: a float32 and the byte that says where it belongs; the number that each entity keeps is paid
for where metadata is."""
