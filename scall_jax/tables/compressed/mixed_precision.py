"""Embeddings in 0 to 6 bits (MPE, arXiv 2409.20305): entities of a group of like frequency share a bit width.

Training works on f32 vectors that are quantised on the way in by LSQ+ (`tables.lsq`), with
learned steps and offsets. Between segments, on disk and when serving there are only the integer codes, bit by bit:
an entity of b bits has b planes of width / 8 bytes, plane k holding bit k of all its coordinates.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables.compressed.bit_packing import pack, unpack
from scall_jax.tables.compressed.lsq import MOST_BITS, Quantiser, first_quantiser, parts
from scall_jax.tables.storage import Exported, Storage, StorageFactory


@dataclasses.dataclass(frozen=True)
class MixedPrecisionConfig:
    """Options of embeddings of mixed precision, and of the search for their bits."""

    width: int = 64
    """Coordinates of every entity, at most the largest size; a multiple of 8 (published: 16)."""
    groups: int = 64
    """Groups of a side by frequency, each with a bit width of its own (published: 128)."""
    temperature: float = 0.06
    """Of the softmax over bit widths (published: 0.003 at a learning rate of 0.001; here the rate is 20 times that)."""
    price: float = 1e-4
    """Weight of the expected bits in the loss of the search (published: 2e-6 to 3e-4)."""

    def __post_init__(self):
        if self.width < 8 or self.width % 8:
            raise ValueError(f"mixed_precision width={self.width}: must be a multiple of 8, at least 8")
        if not 1 <= self.groups <= 255:
            raise ValueError(f"mixed_precision groups={self.groups}: must lie between 1 and 255")
        if not self.temperature > 0:
            raise ValueError(f"mixed_precision temperature={self.temperature}: must be greater than 0")
        if not self.price >= 0:
            raise ValueError(f"mixed_precision price={self.price}: must not be negative")


class Bits(NamedTuple):
    """Plan: who is in which group and what a group gets. Sides are users, items."""

    groups: jax.Array  # u8[N], within the side; G for entities that do not exist
    bits: jax.Array  # u8[2, G]
    steps: jax.Array  # f32[2, 6], of 1 to 6 bits: where training starts
    offsets: jax.Array  # f32[2, width]


class Codes(NamedTuple):
    """Layout: planes of every entity, and where training of the quantiser starts."""

    bits: jax.Array  # i32[N]
    starts: jax.Array  # i32[N], first plane
    num_active: jax.Array  # i32[2], entities of a side
    steps: jax.Array  # f32[2, 6]
    offsets: jax.Array  # f32[2, width]


def width_within(options: MixedPrecisionConfig, maximum: int) -> int:
    """Coordinates of an entity: the options', at most `maximum`, in whole bytes of planes.

    Raises:
      ValueError: fewer than 8.
    """
    width = min(options.width, maximum) // 8 * 8
    if not width:
        raise ValueError(f"mixed_precision packs coordinates by eights, the largest size is {maximum}: raise it")
    return width


def mixed_precision(capacity: int, users: int, items: int, maximum: int, options: MixedPrecisionConfig) -> Storage:
    """Storage of codes u8[held, width / 8]; the plan is `Bits`."""
    nodes, width, groups = users + items, width_within(options, maximum), options.groups
    quantiser = Quantiser(users, items, width)

    def bits_of(plan: Bits):
        by_side = [
            plan.bits[s].at[plan.groups[part].astype(jnp.int32)].get(mode="fill", fill_value=0)
            for s, part in enumerate(parts(users))
        ]
        return jnp.concatenate(by_side).astype(jnp.int32)

    def layout(plan: Bits) -> Codes:
        bits = bits_of(plan)
        num_active = jnp.stack([(plan.groups[part] < groups).sum() for part in parts(users)])
        return Codes(bits, jnp.cumsum(bits) - bits, num_active, plan.steps, plan.offsets)

    def begun(vectors, codes: Codes):
        return {"vectors": vectors, "steps": codes.steps, "offsets": codes.offsets}

    def store(params, codes: Codes):
        packed = pack(quantiser.codes(params, codes.bits, codes.num_active), codes.bits, codes.starts, capacity)
        return {"codes": packed, "steps": params["steps"], "offsets": params["offsets"]}

    def load(stored, codes: Codes):
        numbers = unpack(stored["codes"], codes.bits, codes.starts)
        vectors = quantiser.decoded(stored, numbers, codes.bits, codes.num_active)
        return {"vectors": vectors, "steps": stored["steps"], "offsets": stored["offsets"]}

    def resize(key, stored, old, new, known, weight, carry):
        before = layout(old)
        # vectors of 0 bits were never kept
        kept = (known & (before.bits > 0))[:, None]
        noise = carry.init_std * jax.random.normal(key, (nodes, width))
        return begun(jnp.where(kept, carry.shrink * load(stored, before)["vectors"], noise), layout(new))

    def sizes(plan):
        return jnp.concatenate([jnp.where(bits_of(plan) > 0, width, 0), jnp.zeros(2, jnp.int32)])

    return Storage(
        plan=lambda: Bits(
            jnp.full(nodes, groups, jnp.uint8),
            jnp.zeros((2, groups), jnp.uint8),
            jnp.zeros((2, MOST_BITS)),
            jnp.zeros((2, width)),
        ),
        empty=lambda: {
            "codes": jnp.zeros((capacity, width // 8), jnp.uint8),
            "steps": jnp.zeros((2, MOST_BITS)),
            "offsets": jnp.zeros((2, width)),
        },
        layout=layout,
        fresh=lambda key, codes, std: begun(std * jax.random.normal(key, (nodes, width)), codes),
        resize=resize,
        vectors=lambda params, codes: quantiser.vectors(params, codes.bits, codes.num_active),
        store=store,
        load=load,
        sizes=sizes,
        allocated=lambda plan: bits_of(plan).sum(),
        used=lambda codes: jnp.int32(width),
        export=functools.partial(_export, users, bits_of),
        restore=functools.partial(_restore, capacity, users, items, groups, width),
        nodes=nodes,
        width=width,
    )


def _export(users, bits_of, stored, plan: Bits, known) -> Exported:
    groups = np.asarray(plan.groups)
    return {
        "codes": np.asarray(stored["codes"])[: int(bits_of(plan).sum())],
        "parameters_steps": np.asarray(stored["steps"]),
        "parameters_offsets": np.asarray(stored["offsets"]),
        "metadata_groups": np.concatenate([groups[: known[0]], groups[users : users + known[1]]]),
        "metadata_bits": np.asarray(plan.bits),
    }


def _restore(capacity, users, items, groups, width, exported, known):
    """The plan's quantiser, where the training that is over began, is set to what came of it: nobody reads it again."""
    written = exported.get("codes", np.zeros((0, width // 8), np.uint8))
    in_use, steps, offsets = (exported[x] for x in ("metadata_groups", "parameters_steps", "parameters_offsets"))
    if written.shape[0] > capacity or written.shape[1] != width // 8 or exported["metadata_bits"].shape != (2, groups):
        raise ValueError(f"codes of shape {written.shape} do not fit {(capacity, width // 8)}: other options?")
    if len(in_use) != sum(known) or known[0] > users or known[1] > items:
        raise ValueError(f"{len(in_use)} groups for {known[0]} users and {known[1]} items: another stream's?")
    codes, group = np.zeros((capacity, width // 8), np.uint8), np.full(users + items, groups, np.uint8)
    codes[: len(written)] = written
    group[: known[0]] = in_use[: known[0]]
    group[users : users + known[1]] = in_use[known[0] :]
    stored = {"codes": codes, "steps": steps, "offsets": offsets}
    plan = Bits(group, exported["metadata_bits"], steps, offsets)
    return jax.tree.map(jnp.asarray, (stored, plan))


def searching(storage: Storage, users: int, options: MixedPrecisionConfig) -> Storage:
    """Storage for the search of bits: parameters have logits f32[2, G, 7] too, and nothing is ever stored.

    Its layout is (`Bits`, price f32[2, G] of a bit in each group). Vectors are the mean of all quantised ones, weighted
    by the softmax of the group's logits; a bit width's expected price is added to the loss.
    """
    quantiser = Quantiser(users, storage.nodes - users, storage.width)

    def begun(params, layout):
        plan, _ = layout
        num_active = plan.groups < options.groups
        steps, offsets = first_quantiser(params["vectors"], num_active, users)
        logits = jnp.zeros((2, options.groups, MOST_BITS + 1))
        return {"vectors": params["vectors"], "steps": steps, "offsets": offsets, "logits": logits}

    def vectors(params, layout):
        plan, _ = layout
        num_active = jnp.stack([(plan.groups[part] < options.groups).sum() for part in parts(users)])
        p = probabilities(params["logits"], options)
        shares = jnp.concatenate(
            [
                p[s].at[plan.groups[part].astype(jnp.int32)].get(mode="fill", fill_value=0.0)
                for s, part in enumerate(parts(users))
            ]
        )
        return quantiser.mixed(params, shares, num_active)

    def penalty(params, layout):
        expected = (probabilities(params["logits"], options) * jnp.arange(MOST_BITS + 1.0)[None, None, :]).sum(-1)
        return options.price * (layout[1] * expected).sum()

    return storage._replace(
        layout=lambda plan: (plan, jnp.zeros((2, options.groups))),
        fresh=lambda key, layout, std: begun(storage.fresh(key, storage.layout(layout[0]), std), layout),
        resize=lambda key, stored, old, new, known, weight, carry: begun(
            storage.resize(key, stored, old, new, known, weight, carry), (new, None)
        ),
        vectors=vectors,
        used=lambda layout: jnp.int32(storage.width),
        penalty=penalty,
    )


def probabilities(logits: jax.Array, options: MixedPrecisionConfig) -> jax.Array:
    """Softmax over bit widths, the last axis."""
    return jax.nn.softmax(logits / options.temperature, axis=-1)


def _kind(options: MixedPrecisionConfig) -> StorageFactory:
    def budget_units(nbytes, entities, maximum, metadata):
        width = width_within(options, maximum)
        spent = 4 * 2 * (MOST_BITS + width)
        if metadata:
            spent += sum(entities) + 2 * options.groups
        return (nbytes - spent) // (width // 8)

    def capacity(budget_units, entities, maximum):
        return max(min(u, sum(n) * MOST_BITS) for u, n in zip(budget_units, entities, strict=True))

    return StorageFactory(
        budget_units=budget_units,
        capacity=capacity,
        build=functools.partial(mixed_precision, options=options),
        configure=lambda config: _kind(config.mixed_precision),
    )


MIXED_PRECISION = _kind(MixedPrecisionConfig())
"""Units are planes: a bit of each of an entity's coordinates, width / 8 bytes. Steps and offsets are always paid for,
groups and their bits where metadata is."""
