"""Vectors that grow by a block of columns at each segment, while older columns are frozen (MEMO, arXiv 2205.13218).

The newest block has one width for all entities and is what training changes. Before it is frozen it is turned to its
principal axes, both sides by the same rotation so that scores stay as they are, and cut: its leading columns join the
frozen ones, for the entities that are known by then, and never change again, not by a bit. What was cut off starts the
next block, as a copy of the last one starts the next in the paper. Frozen columns are part of the plan and not of the
parameters, so that no optimiser holds anything for them.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.keys import by_side
from scall_jax.ops.sums import padded_product, padded_sum
from scall_jax.tables.storage import Exported, Previous, Sides, Storage, StorageFactory, WarmStartOptions, widest

_EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class ExpandableConfig:
    """A model that expands.

    Raises:
      ValueError: a value out of its range.
    """

    columns: int = 16
    """Frozen columns, at most."""
    kept: float = 0.25
    """Part of a block's columns that is frozen, rounded up; the rest is cut off."""
    frozen: float = 0.5
    """Part of the budget that frozen columns may take, at most; where it is reached blocks are cut off whole."""
    auxiliary: float = 1.0
    """Weight of a second loss of the same form on the scores of the newest block alone."""
    align: bool = True
    """Scale the vectors of a segment's new items after training, so that they are as long as those of older ones in the
    mean."""

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise ValueError(f"memo columns={self.columns}: must be at least 1")
        for name in ("kept", "frozen"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"memo {name}={getattr(self, name)}: must lie between 0 and 1")
        if not self.auxiliary >= 0:
            raise ValueError(f"memo auxiliary={self.auxiliary}: must not be negative")


class Expanded(NamedTuple):
    """Plan of the storage: the frozen columns, and how wide the newest block is. N nodes, F frozen columns at most."""

    frozen: jax.Array
    """f32[N, F], 0 where a node has no such column."""
    had_by: jax.Array
    """i32[F, 2], users and items that have each frozen column: those known when it was frozen."""
    columns: jax.Array
    """i32[], frozen columns in use, the first ones."""
    width: jax.Array
    """i32[], columns of the newest block."""
    extra: jax.Array
    """i32[], nodes with one more: items in the order of arrival, then users."""
    known: jax.Array
    """i32[2], users and items that the newest block is for."""
    before: jax.Array
    """i32[2], of these, the ones that are not new in the segment."""


def _mask(counts: jax.Array, users: int, items: int) -> jax.Array:
    """bool[N], the first counts[0] users and counts[1] items."""
    return jnp.concatenate([jnp.arange(users) < counts[0], jnp.arange(items) < counts[1]])


def own_sizes(plan: Expanded, users: int) -> jax.Array:
    """Columns of the newest block of each node, i32[N].

    Args:
      plan: the plan.
      users: capacity of the user side; static.
    """
    nodes = plan.frozen.shape[0]
    number = jnp.arange(nodes, dtype=jnp.int32)
    rank = jnp.where(number < users, plan.known[1] + number, number - users)
    sizes = plan.width + (rank < plan.extra).astype(jnp.int32)
    return jnp.where(_mask(plan.known, users, nodes - users), sizes, 0)


def rotated(block: jax.Array, plan: Expanded, users: int) -> jax.Array:
    """The newest block turned to its principal axes, the most important ones first.

    Args:
      block: f32[N, D], the newest block.
      plan: its plan.
      users: capacity of the user side; static.

    Returns:
      f32[N, D]. Inner products of its first `width` columns stay as they are; the odd column of nodes with one more is
      cut off, and the columns from `width` on are 0.
    """
    chex.assert_rank(block, 2)
    wide = block.shape[1]
    used = jnp.arange(wide) < plan.width
    block = jnp.where(used[None, :], block, 0.0)

    def gram(side: jax.Array) -> jax.Array:
        product = padded_product(side, side)
        return product / jnp.maximum(jnp.trace(product), 1e-30)

    # Columns that are not in use have the least eigenvalues by far, and so come last.
    unused = jnp.diag(jnp.where(used, 0.0, -1.0))
    _, axes = jnp.linalg.eigh(gram(block[:users]) + gram(block[users:]) + unused)
    return jnp.where(used[None, :], jnp.matmul(block, axes[:, ::-1], precision=_EXACT), 0.0)


def expand(
    config: ExpandableConfig, plan: Expanded, block: jax.Array, known: jax.Array, total: jax.Array, users: int
) -> Expanded:
    """The plan of the next segment: a part of the newest block is frozen, and a new one takes what the budget leaves.

    Args:
      config: how much is frozen.
      plan: so far.
      block: f32[N, D], the newest block as it is stored.
      known: i32[2], users and items of the next segment.
      total: i32[], coordinates that it may have.
      users: capacity of the user side; static.

    Returns:
      Expanded; its coordinates add up to the total, unless the newest block would be wider than D.
    """
    (nodes, most), wide = plan.frozen.shape, block.shape[1]
    chex.assert_shape([known, total], [(2,), ()])
    had, place = plan.known.sum(), jnp.arange(most, dtype=jnp.int32)
    spent = plan.had_by.sum()
    room = jnp.floor(config.frozen * total.astype(jnp.float32)).astype(jnp.int32) - spent
    wanted = jnp.ceil(config.kept * plan.width.astype(jnp.float32)).astype(jnp.int32)
    kept = jnp.clip(room // jnp.maximum(had, 1), 0, jnp.minimum(wanted, most - plan.columns))
    kept = jnp.where(had > 0, kept, 0)
    leading = jnp.pad(rotated(block, plan, users), ((0, 0), (0, most)))[:, :most]
    # Columns before the new ones are copied as they are.
    moved = jnp.roll(leading, plan.columns, axis=1)
    new = (place >= plan.columns) & (place < plan.columns + kept)
    exists = _mask(plan.known, users, nodes - users)
    frozen = jnp.where(new[None, :] & exists[:, None], moved, plan.frozen)
    had_by = jnp.where(new[:, None], plan.known[None, :], plan.had_by)
    # A budget that falls below the frozen columns leaves nothing, and the run's check of the budget says so.
    left, count = jnp.maximum(total - had_by.sum(), 0), jnp.maximum(known.sum(), 1)
    width = jnp.minimum(left // count, wide)
    extra = jnp.where(width < wide, left - width * count, 0)
    return Expanded(frozen, had_by, plan.columns + kept, width, extra, known, plan.known)


def expandable(config: ExpandableConfig, users: int, items: int, wide: int, maximum: int) -> Storage:
    """Build the storage.

    Args:
      config: of the model.
      users, items: capacities of the sides.
      wide: D, columns of the newest block at most.
      maximum: the largest size of a run. Random numbers are those of so many columns, whatever D is.

    Returns:
      Storage. Its plan and its layout are `Expanded`; its parameters are the newest block, f32[N, D]. A budget unit is
      a coordinate.
    """
    nodes, most = users + items, config.columns

    def masked(block: jax.Array, plan: Expanded) -> jax.Array:
        return jnp.where(jnp.arange(wide)[None, :] < own_sizes(plan, users)[:, None], block, 0.0)

    def vectors(params: jax.Array, plan: Expanded) -> jax.Array:
        whole = jnp.pad(plan.frozen, ((0, 0), (0, wide)))
        return jax.lax.dynamic_update_slice(whole, masked(params, plan), (jnp.int32(0), plan.columns))

    def drawn(key: jax.Array) -> jax.Array:
        return by_side(jax.random.normal, key, users, items, (maximum,))[:, :wide]

    def warm_start(key: jax.Array, previous: Previous, plan: Expanded, options: WarmStartOptions) -> jax.Array:
        before, column, noise = previous.plan, jnp.arange(wide, dtype=jnp.int32), drawn(key)
        kept = plan.columns - before.columns
        cut_off = jnp.roll(rotated(previous.stored, before, users), -kept, axis=1)
        carried = column < before.width - kept
        known = jnp.where(carried[None, :], options.shrink * cut_off, options.grow_std * noise)
        return masked(jnp.where(previous.known[:, None], known, options.init_std * noise), plan)

    def sizes(plan: Expanded) -> jax.Array:
        number = jnp.arange(nodes, dtype=jnp.int32)
        side = (number >= users).astype(jnp.int32)
        of_frozen = (plan.had_by[:, side] > (number - side * users)[None, :]).sum(0, dtype=jnp.int32)
        return jnp.concatenate([of_frozen + own_sizes(plan, users), jnp.zeros(2, jnp.int32)])

    def empty_plan() -> Expanded:
        zero, both = jnp.int32(0), jnp.zeros(2, jnp.int32)
        return Expanded(jnp.zeros((nodes, most)), jnp.zeros((most, 2), jnp.int32), zero, zero, zero, both, both)

    def store(params: jax.Array, plan: Expanded) -> jax.Array:
        block = masked(params, plan)
        return aligned(block, plan, users) if config.align else block

    def auxiliary(plan: Expanded) -> tuple[jax.Array, jax.Array]:
        newest = (jnp.arange(most + wide) >= plan.columns).astype(jnp.float32)
        return newest, jnp.where(plan.columns > 0, config.auxiliary, 0.0)

    return Storage(
        plan=empty_plan,
        empty=lambda: jnp.zeros((nodes, wide)),
        layout=lambda plan: plan,
        fresh=lambda key, plan, std: masked(std * drawn(key), plan),
        warm_start=warm_start,
        vectors=vectors,
        store=store,
        load=lambda stored, plan: stored,
        sizes=sizes,
        allocated=lambda plan: sizes(plan).sum(dtype=jnp.int32),
        used=lambda plan: plan.columns + own_sizes(plan, users).max(),
        export=functools.partial(_export, users),
        restore=functools.partial(_restore, users, (nodes, most, wide)),
        nodes=nodes,
        width=most + wide,
        rounds=config.align,
        auxiliary=auxiliary if config.auxiliary else None,
    )


def aligned(block: jax.Array, plan: Expanded, users: int) -> jax.Array:
    """The newest block with new items as long as older ones in the mean, frozen columns included.

    Args:
      block: f32[N, D], the newest block.
      plan: its plan.
      users: capacity of the user side; static.

    Returns:
      f32[N, D]; unchanged where there are no new items or no older ones.
    """
    norms = jnp.sqrt((block**2).sum(1) + (plan.frozen**2).sum(1))[users:]
    number = jnp.arange(norms.shape[0])
    old, new = number < plan.before[1], (number >= plan.before[1]) & (number < plan.known[1])
    sums = padded_sum(jnp.stack([jnp.where(part, norms, 0.0) for part in (old, new)], axis=1))
    mean = sums / jnp.maximum(jnp.stack([old.sum(), new.sum()]), 1).astype(jnp.float32)
    factor = jnp.where((mean > 0).all(), mean[0] / jnp.maximum(mean[1], 1e-30), 1.0)
    scale = jnp.concatenate([jnp.ones(users), jnp.where(new, factor, 1.0)])
    return block * scale[:, None]


def _extra_nodes(extra: int, users: int, known: Sides) -> np.ndarray:
    """Nodes with one column more; i64[extra]."""
    return np.concatenate([users + np.arange(known[1]), np.arange(known[0])])[:extra]


def _export(users: int, stored: jax.Array, plan: Expanded, known: Sides) -> Exported:
    block, frozen, had_by = (np.asarray(x) for x in (stored, plan.frozen, plan.had_by))
    width, columns = int(plan.width), int(plan.columns)
    by_column = [np.concatenate([frozen[:u, c], frozen[users : users + i, c]]) for c, (u, i) in enumerate(had_by)]
    extra = _extra_nodes(int(plan.extra), users, known)
    return {
        "parameters": np.concatenate([block[: known[0], :width], block[users : users + known[1], :width]]),
        "parameters_extra": block[extra, width] if len(extra) else np.zeros(0, np.float32),
        "parameters_frozen": np.concatenate([np.zeros(0, np.float32), *by_column[:columns]]),
        "metadata_columns": had_by[:columns],
    }


def _restore(users: int, shape: tuple[int, int, int], exported: Exported, known: Sides) -> tuple[Any, Expanded]:
    nodes, most, wide = shape
    written = exported.get("parameters", np.zeros((sum(known), 0), np.float32))
    had_by = exported.get("metadata_columns", np.zeros((0, 2), np.int32))
    if len(had_by) > most or written.shape[0] != sum(known) or written.shape[1] > wide:
        raise ValueError(
            f"parameters of shape {written.shape} and {len(had_by)} frozen columns do not fit {shape}: restore with "
            "the stream, the budget and the columns that the run was started with"
        )
    width, values = written.shape[1], exported.get("parameters_extra", np.zeros(0, np.float32))
    block, frozen = np.zeros((nodes, wide), np.float32), np.zeros((nodes, most), np.float32)
    block[: known[0], :width], block[users : users + known[1], :width] = written[: known[0]], written[known[0] :]
    if len(values):
        block[_extra_nodes(len(values), users, known), width] = values
    flat, at = exported.get("parameters_frozen", np.zeros(0, np.float32)), 0
    for column, (of_users, of_items) in enumerate(had_by.tolist()):
        for first, count in ((0, of_users), (users, of_items)):
            frozen[first : first + count, column] = flat[at : at + count]
            at += count
    by = np.zeros((most, 2), np.int32)
    by[: len(had_by)] = had_by
    numbers = (jnp.int32(x) for x in (len(had_by), width, len(values)))
    both = (jnp.array(known, jnp.int32) for _ in range(2))
    return jnp.asarray(block), Expanded(jnp.asarray(frozen), jnp.asarray(by), *numbers, *both)


def _factory(config: ExpandableConfig) -> StorageFactory:
    def budget_units(nbytes: int, entities: Sides, maximum: int, metadata: bool) -> int:
        del entities, maximum
        # Of each frozen column it is stored who has it.
        return (nbytes - (8 * config.columns if metadata else 0)) // 4

    return StorageFactory(
        budget_units=budget_units,
        # An odd coordinate makes the block wider by one for some.
        capacity=lambda units, entities, maximum: widest(
            [1 + total // max(sum(known), 1) for total, known in zip(units, entities, strict=True)], maximum
        ),
        build=lambda wide, users, items, maximum: expandable(config, users, items, wide, maximum),
        configure=lambda run: _factory(run.memo),
    )


EXPANDABLE = _factory(ExpandableConfig())
"""Columns that are appended and frozen; the run's `Config.memo` says how many."""
