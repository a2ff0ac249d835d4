"""Embeddings in 0 to 6 bits (MPE, arXiv 2409.20305): entities of a group of like frequency share a bit width.

Training works on f32 vectors that LSQ+ quantises in the forward pass (`lsq`), with learned steps and offsets. Between
segments, on disk and when serving there are only the integer codes, bit by bit: an entity of b bits has b planes of
width / 8 bytes, and plane k holds bit k of all its coordinates.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.keys import by_side
from scall_jax.tables.compressed.bit_packing import pack, unpack
from scall_jax.tables.compressed.lsq import MOST_BITS, Quantiser, first_quantiser, side_slices
from scall_jax.tables.storage import (
    Exported,
    Previous,
    Sides,
    Storage,
    StorageFactory,
    WarmStartOptions,
)


@dataclasses.dataclass(frozen=True)
class MixedPrecisionConfig:
    """Options of embeddings of mixed precision, and of the search for their bits."""

    width: int | None = None
    """Coordinates of every entity, at most the largest size; a multiple of 8 (published: 16). None: 64, or as many as
    it takes to spend the budget on the last segment's entities at 6 bits each."""
    groups: int = 64
    """Groups of a side by frequency, each with a bit width of its own (published: 128)."""
    temperature: float = 0.06
    """Temperature of the softmax over bit widths (published: 0.003 at a learning rate of 0.001; the rate here is 20
    times that)."""
    price: float = 1e-4
    """Weight of the expected bits in the loss of the search (published: 2e-6 to 3e-4)."""

    def __post_init__(self):
        if self.width is not None and (self.width < 8 or self.width % 8):
            raise ValueError(f"mixed_precision width={self.width}: must be a multiple of 8, at least 8")
        if not 1 <= self.groups <= 255:
            raise ValueError(f"mixed_precision groups={self.groups}: must lie between 1 and 255")
        if not self.temperature > 0:
            raise ValueError(f"mixed_precision temperature={self.temperature}: must be greater than 0")
        if not self.price >= 0:
            raise ValueError(f"mixed_precision price={self.price}: must not be negative")


USUAL_WIDTH = 64
"""Coordinates of an entity where the options do not fix them and the budget does not take more."""

_LEAST_SPENT = 0.95
"""Part of the bytes that some segment of a run must be able to spend."""


class Bits(NamedTuple):
    """Plan: the group of each entity and the bit width of each group."""

    groups: jax.Array
    """u8[N], group of each entity within its side; G for entities that do not exist."""
    bits: jax.Array
    """u8[2, G], bit width of each group of the users and of the items."""
    steps: jax.Array
    """f32[2, 6], steps of 1 to 6 bits of each side that training starts from."""
    offsets: jax.Array
    """f32[2, width], offsets of each side that training starts from."""


class CodeLayout(NamedTuple):
    """Layout: planes of every entity, and where training of the quantiser starts."""

    bits: jax.Array
    """i32[N], bit width of each entity."""
    starts: jax.Array
    """i32[N], first plane of each entity."""
    num_active: jax.Array
    """i32[2], entities of each side."""
    steps: jax.Array
    """f32[2, 6], as in `Bits`."""
    offsets: jax.Array
    """f32[2, width], as in `Bits`."""


def width_for(options: MixedPrecisionConfig, maximum: int, nbytes: int, entities: int) -> int:
    """Coordinates of an entity, in whole bytes of planes.

    Args:
      options: of which the width is taken, where it is given.
      maximum: the largest size of an entity.
      nbytes: bytes to spend.
      entities: users and items that they are spent on.

    Returns:
      The options' width; without one `USUAL_WIDTH`, or the least one at which the most bits of all entities take the
      bytes, if that is more. Never more than `maximum`.

    Raises:
      ValueError: there are fewer than 8.

    >>> [width_for(MixedPrecisionConfig(), 128, nbytes, entities=100) for nbytes in (800, 6000, 12800)]
    [64, 80, 128]
    """
    most = maximum // 8 * 8
    if not most:
        raise ValueError(f"mixed_precision packs coordinates by eights, the largest size is {maximum}: raise it")
    return min(options.width or max(USUAL_WIDTH, _spending_width(nbytes, entities)), most)


def _spending_width(nbytes: int, entities: int) -> int:
    """The least multiple of 8 coordinates that take the bytes at the most bits."""
    return 8 * -(-nbytes // (MOST_BITS * max(entities, 1)))


def fixed_bytes(width: int) -> int:
    """Bytes of steps and offsets of both sides.

    >>> fixed_bytes(64)
    560
    """
    return 4 * 2 * (MOST_BITS + width)


def planes_within(storage: Storage, total: jax.Array) -> jax.Array:
    """Planes that a budget pays for beside steps and offsets: the bits of all entities together.

    Args:
      storage: of `mixed_precision`.
      total: i32[], budget units: bytes.

    Returns:
      i32[].
    """
    chex.assert_rank(total, 0)
    return (total - fixed_bytes(storage.width)) // (storage.width // 8)


def mixed_precision(capacity: int, users: int, items: int, maximum: int, options: MixedPrecisionConfig) -> Storage:
    """Storage of codes u8[planes, width / 8] in bit planes; the plan is `Bits`, the layout `CodeLayout`.

    Args:
      capacity: bytes of codes, steps and offsets.
      users: capacity of the users' side.
      items: capacity of the items' side.
      maximum: the largest size of an entity.
      options: width and number of groups.

    Returns:
      Storage; a budget unit is a byte. Parameters are `vectors` f32[N, width], `steps` and `offsets`.

    Raises:
      ValueError: `maximum` is below 8.
    """
    nodes, groups = users + items, options.groups
    width = width_for(options, maximum, capacity, nodes)
    octets, fixed = width // 8, fixed_bytes(width)
    planes = min(max(capacity - fixed, 0) // octets, nodes * MOST_BITS)
    quantiser = Quantiser(users, items, width)
    layout = functools.partial(_layout, users, groups)

    def fresh(key, codes: CodeLayout, std):
        return _trainable(std * by_side(jax.random.normal, key, users, items, (width,)), codes)

    def warm_start(key, previous: Previous, plan: Bits, options: WarmStartOptions):
        before = layout(previous.plan)
        # Nothing was stored of vectors of 0 bits.
        kept = (previous.known & (before.bits > 0))[:, None]
        noise = options.init_std * by_side(jax.random.normal, key, users, items, (width,))
        carried = options.shrink * _load(quantiser, previous.stored, before)["vectors"]
        return _trainable(jnp.where(kept, carried, noise), layout(plan))

    def sizes(plan):
        return jnp.concatenate([jnp.where(_bits_of(users, plan) > 0, width, 0), jnp.zeros(2, jnp.int32)])

    return Storage(
        plan=functools.partial(_empty_plan, nodes, groups, width),
        empty=functools.partial(_empty, planes, width),
        layout=layout,
        fresh=fresh,
        warm_start=warm_start,
        vectors=lambda params, codes: quantiser.vectors(params, codes.bits, codes.num_active),
        store=functools.partial(_store, quantiser, planes),
        load=functools.partial(_load, quantiser),
        sizes=sizes,
        allocated=lambda plan: octets * _bits_of(users, plan).sum() + fixed,
        used=lambda codes: jnp.int32(width),
        bits=functools.partial(_bits_of, users),
        export=functools.partial(_export, users),
        restore=functools.partial(_restore, _Shapes(planes, users, items, groups, width)),
        nodes=nodes,
        width=width,
    )


def _empty_plan(nodes, groups, width) -> Bits:
    return Bits(
        jnp.full(nodes, groups, jnp.uint8),
        jnp.zeros((2, groups), jnp.uint8),
        jnp.zeros((2, MOST_BITS)),
        jnp.zeros((2, width)),
    )


def _empty(planes, width):
    return {
        "codes": jnp.zeros((planes, width // 8), jnp.uint8),
        "steps": jnp.zeros((2, MOST_BITS)),
        "offsets": jnp.zeros((2, width)),
    }


def _trainable(vectors, codes: CodeLayout) -> dict[str, jax.Array]:
    """Parameters of `mixed_precision`, with the quantiser at its start."""
    return {"vectors": vectors, "steps": codes.steps, "offsets": codes.offsets}


def _store(quantiser: Quantiser, planes: int, params, codes: CodeLayout):
    packed = pack(quantiser.codes(params, codes.bits, codes.num_active), codes.bits, codes.starts, planes)
    return {"codes": packed, "steps": params["steps"], "offsets": params["offsets"]}


def _load(quantiser: Quantiser, stored, codes: CodeLayout):
    numbers = unpack(stored["codes"], codes.bits, codes.starts)
    vectors = quantiser.decoded(stored, numbers, codes.bits, codes.num_active)
    return {"vectors": vectors, "steps": stored["steps"], "offsets": stored["offsets"]}


def _layout(users, groups, plan: Bits) -> CodeLayout:
    bits, num_active = _bits_of(users, plan), _num_active(users, groups, plan)
    return CodeLayout(bits, jnp.cumsum(bits) - bits, num_active, plan.steps, plan.offsets)


def _bits_of(users, plan: Bits) -> jax.Array:
    """Bit width of each node, i32[N]."""
    return jnp.concatenate(_of_group(users, plan.groups, plan.bits)).astype(jnp.int32)


def _of_group(users, groups, values) -> list[jax.Array]:
    """Each node's entry of values [2, G, ...] by its group, 0 without a group; [nodes of a side, ...] for each side."""
    return [
        values[s].at[groups[part].astype(jnp.int32)].get(mode="fill", fill_value=0)
        for s, part in enumerate(side_slices(users))
    ]


def _num_active(users, groups, plan: Bits) -> jax.Array:
    """Entities of each side, i32[2]."""
    return jnp.stack([(plan.groups[part] < groups).sum() for part in side_slices(users)])


class _Shapes(NamedTuple):
    """Static numbers that exported arrays must agree with."""

    planes: int
    users: int
    items: int
    groups: int
    width: int


def _export(users, stored, plan: Bits, known: Sides) -> Exported:
    groups = np.asarray(plan.groups)
    return {
        "codes": np.asarray(stored["codes"])[: int(_bits_of(users, plan).sum())],
        "parameters_steps": np.asarray(stored["steps"]),
        "parameters_offsets": np.asarray(stored["offsets"]),
        "metadata_groups": np.concatenate([groups[: known[0]], groups[users : users + known[1]]]),
        "metadata_bits": np.asarray(plan.bits),
    }


def _restore(shapes: _Shapes, exported: Exported, known: Sides) -> tuple[dict[str, jax.Array], Bits]:
    """Stored codes and their plan.

    The plan's steps and offsets, which training started from, are set to the trained ones: nothing reads them again.
    """
    users, octets = shapes.users, shapes.width // 8
    written = exported.get("codes", np.zeros((0, octets), np.uint8))
    in_use, steps, offsets = (exported[x] for x in ("metadata_groups", "parameters_steps", "parameters_offsets"))
    of_groups = exported["metadata_bits"].shape
    if written.shape[0] > shapes.planes or written.shape[1] != octets or of_groups != (2, shapes.groups):
        raise ValueError(
            f"codes of shape {written.shape} and bits of shape {of_groups} do not fit {(shapes.planes, octets)} and"
            f" {(2, shapes.groups)}: restore with the budget and the options that the run was started with"
        )
    if len(in_use) != sum(known) or known[0] > users or known[1] > shapes.items:
        raise ValueError(
            f"{len(in_use)} groups for {known[0]} users and {known[1]} items of {users} and {shapes.items}:"
            " restore with the stream that the run was started with"
        )
    codes = np.zeros((shapes.planes, octets), np.uint8)
    group = np.full(users + shapes.items, shapes.groups, np.uint8)
    codes[: len(written)] = written
    group[: known[0]] = in_use[: known[0]]
    group[users : users + known[1]] = in_use[known[0] :]
    stored = {"codes": jnp.asarray(codes), "steps": jnp.asarray(steps), "offsets": jnp.asarray(offsets)}
    # Stored and plan have arrays of their own, because a run donates both to the program of its next segment.
    plan = Bits(jnp.asarray(group), jnp.asarray(exported["metadata_bits"]), jnp.asarray(steps), jnp.asarray(offsets))
    return stored, plan


def searching(storage: Storage, users: int, options: MixedPrecisionConfig) -> Storage:
    """Storage for the search of bits, which trains logits f32[2, G, 7] too; nothing of it is ever stored.

    Vectors are the mean of the vectors quantised in all bit widths, weighted by the softmax of their group's logits.
    The expected price of the bits is added to the loss.

    Args:
      storage: of `mixed_precision` with the same options.
      users: capacity of the users' side.
      options: groups, temperature and price.

    Returns:
      Storage whose layout is (`Bits`, price f32[2, G] of a bit in each group). Its plan's bits are not read.
    """
    quantiser = Quantiser(users, storage.nodes - users, storage.width)

    def trainable(params, plan: Bits):
        active_mask = plan.groups < options.groups
        steps, offsets = first_quantiser(params["vectors"], active_mask, users)
        logits = jnp.zeros((2, options.groups, MOST_BITS + 1))
        return {"vectors": params["vectors"], "steps": steps, "offsets": offsets, "logits": logits}

    def vectors(params, layout):
        plan, _ = layout
        num_active = _num_active(users, options.groups, plan)
        shares = jnp.concatenate(_of_group(users, plan.groups, probabilities(params["logits"], options)))
        return quantiser.mixed(params, shares, num_active)

    def penalty(params, layout):
        expected = (probabilities(params["logits"], options) * jnp.arange(MOST_BITS + 1.0)[None, None, :]).sum(-1)
        return options.price * (layout[1] * expected).sum()

    return storage._replace(
        layout=lambda plan: (plan, jnp.zeros((2, options.groups))),
        fresh=lambda key, layout, std: trainable(storage.fresh(key, storage.layout(layout[0]), std), layout[0]),
        warm_start=lambda key, previous, plan, options: trainable(
            storage.warm_start(key, previous, plan, options), plan
        ),
        vectors=vectors,
        used=lambda layout: jnp.int32(storage.width),
        penalty=penalty,
    )


def probabilities(logits: jax.Array, options: MixedPrecisionConfig) -> jax.Array:
    """Probabilities of bit widths.

    Args:
      logits: f32[..., 7], of 0 to 6 bits.
      options: temperature.

    Returns:
      f32[..., 7], the softmax of logits / temperature.
    """
    chex.assert_axis_dimension(logits, -1, MOST_BITS + 1)
    return jax.nn.softmax(logits / options.temperature, axis=-1)


def _mixed_precision_factory(options: MixedPrecisionConfig) -> StorageFactory:
    def budget_units(nbytes, entities, maximum, metadata):
        return nbytes - (sum(entities) + 2 * options.groups if metadata else 0)

    def configure(config: Any) -> StorageFactory:
        return _mixed_precision_factory(config.mixed_precision)

    return StorageFactory(
        budget_units=budget_units,
        capacity=functools.partial(_capacity, options),
        build=functools.partial(mixed_precision, options=options),
        configure=configure,
    )


def _capacity(options: MixedPrecisionConfig, budget_units: Sequence[int], entities: Sequence[Sides], maximum: int):
    """The most bytes of any segment.

    Raises:
      ValueError: no segment can spend them, or one cannot pay for steps and offsets.
    """
    capacity = max(budget_units)
    width = width_for(options, maximum, capacity, sum(entities[-1]))
    fixed = fixed_bytes(width)
    if min(budget_units) < fixed:
        raise ValueError(
            f"mixed_precision takes {fixed} bytes for steps and offsets at width {width}, a segment has "
            f"{min(budget_units)}: raise the budget, or give a smaller mixed_precision.width"
        )
    most = [fixed + sum(known) * MOST_BITS * width // 8 for known in entities]
    if all(spent < _LEAST_SPENT * total for spent, total in zip(most, budget_units, strict=True)):
        wanted = _spending_width(budget_units[-1] - fixed, sum(entities[-1]))
        limit = "sizes.maximum" if options.width is None or width < options.width else "mixed_precision.width"
        raise ValueError(
            f"mixed_precision spends {most[-1]} of the {budget_units[-1]} bytes of the last segment at width {width}, "
            f"and under {_LEAST_SPENT:.0%} in all others: lower the budget, or raise {limit} to {wanted}"
        )
    return capacity


MIXED_PRECISION = _mixed_precision_factory(MixedPrecisionConfig())
"""Units are bytes. Steps and offsets are always paid for, groups and their bits where metadata is."""
