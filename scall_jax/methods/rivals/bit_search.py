"""MPE over a stream: at every segment bits are searched for afresh, chosen within the budget, and trained with.

The paper gives a group the most bits whose probability is at least 1/14; here the bits of all groups are chosen
together, for the largest sum of log-probabilities within the bytes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.allocators import entities_order
from scall_jax.methods.planner import SizePlanner, no_action
from scall_jax.methods.probe import no_search
from scall_jax.recommenders.fit import make_fit
from scall_jax.streams import Segment, sides
from scall_jax.tables.compressed.lsq import MOST_BITS
from scall_jax.tables.compressed.mixed_precision import Bits, searching


class Groups(NamedTuple):
    """Groups of the entities of a segment by frequency."""

    groups: jax.Array  # u8[N], within the side; G for entities that do not exist
    count: jax.Array  # i32[2, G], entities
    frequency: jax.Array  # f32[2, G], interactions of all of them


def by_frequency(config: Config, segment: Segment) -> Groups:
    """Groups of equal size, within one, from the most frequent to the least, on each side."""
    groups = config.mixed_precision.groups
    users, items = sides(segment)
    count_of = segment.frequency if config.sizes.ranking == "segment" else segment.total
    found = []
    for part, num_active in ((slice(0, users), segment.users), (slice(users, users + items), segment.items)):
        order = entities_order(config.sizes, segment, part)
        rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
        # rank x groups may exceed 32 bits
        size, larger = num_active // groups, num_active % groups
        ahead = larger * (size + 1)
        group = jnp.where(rank < ahead, rank // (size + 1), larger + (rank - ahead) // jnp.maximum(size, 1))
        group = jnp.where(rank < num_active, group, groups)
        members = jnp.zeros(groups, jnp.int32).at[group].add(1, mode="drop")
        frequency = jnp.zeros(groups).at[group].add(count_of[part].astype(jnp.float32), mode="drop")
        found.append((group.astype(jnp.uint8), members, frequency))
    group, members, frequency = zip(*found, strict=True)
    return Groups(jnp.concatenate(group), jnp.stack(members), jnp.stack(frequency))


def prices(grouped: Groups) -> jax.Array:
    """1 / (interactions of the group / interactions of the side's rarest group), at most 1; f32[2, G].

    Groups without interactions count as having one.
    """
    frequency = jnp.maximum(grouped.frequency, 1.0)
    rarest = jnp.where(grouped.count > 0, frequency, jnp.inf).min(1, keepdims=True)
    return jnp.where(grouped.count > 0, rarest / frequency, 0.0)


def most_likely(log_p: jax.Array, count: jax.Array, total: jax.Array) -> jax.Array:
    """Bits i32[K] with the largest sum of log_p[k, bits[k]] for what they cost, sum count x bits <= total.

    Args:
      log_p: f32[K, 7].
      count: i32[K], cost of a bit.
      total: i32[], allowed.

    A multiplier on the cost, found by bisection, decides; it is negative where the likeliest bits cost less than is
    allowed. So these are the likeliest ones among all that cost the same; a part of `total` may be left.
    """
    widths = jnp.arange(log_p.shape[1], dtype=jnp.int32)
    relative = count / jnp.maximum(count.max(), 1).astype(jnp.float32)
    least = jnp.where(count > 0, relative, jnp.inf).min()
    most = 1 + (log_p.max() - log_p.min()) / jnp.where(jnp.isfinite(least), least, 1.0)

    def bits_at(multiplier):
        best = jnp.argmax(log_p - multiplier * relative[:, None] * widths[None, :], axis=1)
        return jnp.where(count > 0, best, 0).astype(jnp.int32)

    def halve(_, bracket):
        low, high = bracket  # at `high` the bits fit
        middle = (low + high) / 2
        fits = (count * bits_at(middle)).sum() <= total
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    _, high = jax.lax.fori_loop(0, 48, halve, (-most, most))
    bits = bits_at(high)
    return jnp.where((count * bits).sum() <= total, bits, 0)


def filled(bits: jax.Array, count: jax.Array, total: jax.Array, order: jax.Array) -> jax.Array:
    """What is left of `total` as further bits, one each in `order` i32[K] and round again; i32[K] up to 6."""
    left = total - (count * bits).sum()

    def give(i, carry):
        bits, left = carry
        k = order[i % len(order)]
        more = (count[k] > 0) & (count[k] <= left) & (bits[k] < MOST_BITS)
        return bits.at[k].add(more.astype(jnp.int32)), left - jnp.where(more, count[k], 0)

    return jax.lax.fori_loop(0, MOST_BITS * len(order), give, (bits, left))[0]


def choose_bits(log_p: jax.Array, grouped: Groups, total: jax.Array) -> jax.Array:
    """Bits u8[2, G] within `total` planes, by log_p f32[2, G, 7]; what is left goes to the most frequent first."""
    count = grouped.count.ravel()
    bits = most_likely(log_p.reshape(len(count), -1), count, total)
    order = jnp.argsort(-grouped.frequency.ravel() / jnp.maximum(count, 1))
    return filled(bits, count, total, order).astype(jnp.uint8).reshape(grouped.count.shape)


def bit_search_planner(config: Config, progress: Callable | None = None) -> SizePlanner:
    """Bits by a training of at most `search.probes` x `search.probe_steps` steps, as many as SCALL's search makes.

    It starts from the vectors that the segment's own training then starts from again; steps and offsets of the
    quantiser are kept (arXiv 2409.20305), of the evaluation that is best on valid. What is remembered is the plan
    found, until the segment is planned.
    """
    del progress
    options = config.mixed_precision
    steps = config.search.probes * config.search.probe_steps
    fit_config = dataclasses.replace(config.fit, steps=steps)

    def search(context):
        storage, segment = context.storage, context.segment
        wide = searching(storage, sides(segment)[0], options)
        grouped = by_frequency(config, segment)
        plan = storage.plan()._replace(groups=grouped.groups)
        params = context.warm_params(plan, context.keys().table, wide)
        bias, _ = context.item_bias()
        run_fit = make_fit(wide, fit_config, None, config.candidates)
        params = run_fit(context.search_key(), params, (plan, prices(grouped)), segment, bias).params
        log_p = jax.nn.log_softmax(params["logits"] / options.temperature)
        bits = choose_bits(log_p, grouped, context.budget_total())
        found = Bits(grouped.groups, bits, params["steps"], params["offsets"])
        return context.state._replace(planner=found), no_search(config)

    def plan(context, key) -> tuple[Any, jax.Array]:
        del key
        return context.state.planner, no_action(config)

    return SizePlanner(init=lambda key, storage: storage.plan(), plan=plan, search_before=search)
