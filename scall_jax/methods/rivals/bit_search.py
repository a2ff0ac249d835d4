"""MPE (arXiv 2409.20305) over a stream: every segment searches for bits, picks them within the budget, and trains.

The paper gives a group the most bits whose probability is at least 1/14. Here the bits of all groups are picked
together, for the largest sum of log-probabilities within the bytes.
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.allocators import entities_order, ranking_frequency
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, SearchRecord, SizePlanner, no_action
from scall_jax.methods.probe import no_search
from scall_jax.methods.state import RunState
from scall_jax.recommenders.buffers import held_by_training
from scall_jax.recommenders.fit import make_fit
from scall_jax.streams import Segment, sides
from scall_jax.tables.compressed.lsq import MOST_BITS
from scall_jax.tables.compressed.mixed_precision import Bits, planes_within, searching


class Groups(NamedTuple):
    """Groups of the entities of a segment by frequency, G a side. Sides are users, items."""

    groups: jax.Array  # u8[N], number of the group within the side; G for entities that do not exist
    count: jax.Array  # i32[2, G], entities
    frequency: jax.Array  # f32[2, G], interactions of all of them


def by_frequency(config: Config, segment: Segment) -> Groups:
    """Group each side from the most to the least frequent entity; groups differ by one entity at most.

    Args:
      config: `mixed_precision.groups` is G, and `sizes.ranking` says which frequency counts.
      segment: data of the segment.

    Returns:
      Groups.
    """
    groups = config.mixed_precision.groups
    users, items = sides(segment)
    count_of = ranking_frequency(config.sizes, segment)
    by_side = []
    for part, num_active in ((slice(0, users), segment.users), (slice(users, users + items), segment.items)):
        order = entities_order(config.sizes, segment, part)
        rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
        # The direct formula, rank x groups // num_active, may exceed 32 bits.
        size, larger = num_active // groups, num_active % groups
        ahead = larger * (size + 1)
        group = jnp.where(rank < ahead, rank // (size + 1), larger + (rank - ahead) // jnp.maximum(size, 1))
        group = jnp.where(rank < num_active, group, groups)
        members = jnp.zeros(groups, jnp.int32).at[group].add(1, mode="drop")
        frequency = jnp.zeros(groups).at[group].add(count_of[part].astype(jnp.float32), mode="drop")
        by_side.append((group.astype(jnp.uint8), members, frequency))
    group, members, frequency = zip(*by_side, strict=True)
    return Groups(jnp.concatenate(group), jnp.stack(members), jnp.stack(frequency))


def prices(grouped: Groups) -> jax.Array:
    """The price of a bit of each group: interactions of the side's rarest group / interactions of the group.

    Args:
      grouped: groups; those without interactions count as having one.

    Returns:
      f32[2, G], at most 1; 0 for groups without entities.

    >>> count, frequency = jnp.array([[3, 2], [3, 0]]), jnp.array([[8.0, 2.0], [5.0, 0.0]])
    >>> prices(Groups(jnp.zeros(8, jnp.uint8), count, frequency)).tolist()
    [[0.25, 1.0], [1.0, 0.0]]
    """
    chex.assert_equal_shape([grouped.count, grouped.frequency])
    frequency = jnp.maximum(grouped.frequency, 1.0)
    rarest = jnp.where(grouped.count > 0, frequency, jnp.inf).min(1, keepdims=True)
    return jnp.where(grouped.count > 0, rarest / frequency, 0.0)


def most_likely(log_p: jax.Array, count: jax.Array, total: jax.Array) -> jax.Array:
    """The likeliest bits for what they cost, within a total.

    A multiplier on the cost, found by bisection, decides; it is negative where the likeliest bits cost less than is
    allowed. So these are the likeliest ones among all that cost the same; a part of `total` may be left.

    Args:
      log_p: f32[K, 7], log-probability of 0 to 6 bits for each of K groups.
      count: i32[K], cost of a bit of each group.
      total: i32[], the cost allowed.

    Returns:
      i32[K] with the largest sum of log_p[k, bits[k]] for sum(count x bits) <= total.
    """
    chex.assert_rank([log_p, count, total], [2, 1, 0])
    chex.assert_equal_shape_prefix([log_p, count], 1)
    widths = jnp.arange(log_p.shape[1], dtype=jnp.float32)
    relative = count.astype(jnp.float32) / jnp.maximum(count.max(), 1).astype(jnp.float32)
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
    """Spend what is left of a total on further bits, one per group in turn, as often as it goes round.

    Args:
      bits: i32[K], bits so far.
      count: i32[K], cost of a bit of each group.
      total: i32[], the cost allowed.
      order: i32[K], the groups in the order of their turns.

    Returns:
      i32[K], at most 6.

    >>> filled(jnp.array([1, 0]), jnp.array([2, 3]), jnp.int32(9), jnp.array([1, 0])).tolist()
    [3, 1]
    """
    chex.assert_rank([bits, count, order, total], [1, 1, 1, 0])
    chex.assert_equal_shape([bits, count, order])
    left = total - (count * bits).sum()

    def give(i, carry):
        bits, left = carry
        k = order[i % len(order)]
        more = (count[k] > 0) & (count[k] <= left) & (bits[k] < MOST_BITS)
        return bits.at[k].add(more.astype(jnp.int32)), left - jnp.where(more, count[k], 0)

    return jax.lax.fori_loop(0, MOST_BITS * len(order), give, (bits, left))[0]


def choose_bits(log_p: jax.Array, grouped: Groups, total: jax.Array) -> jax.Array:
    """Bits of all groups within a total; what the likeliest ones leave goes to the most frequent groups first.

    Args:
      log_p: f32[2, G, 7], log-probability of 0 to 6 bits.
      grouped: the groups.
      total: i32[], planes allowed: one is a bit of every coordinate of one entity.

    Returns:
      u8[2, G].
    """
    chex.assert_rank([log_p, total], [3, 0])
    chex.assert_equal_shape_prefix([log_p, grouped.count], 2)
    count = grouped.count.ravel()
    bits = most_likely(log_p.reshape(len(count), -1), count, total)
    order = jnp.argsort(-grouped.frequency.ravel() / jnp.maximum(count, 1).astype(jnp.float32))
    return filled(bits, count, total, order).astype(jnp.uint8).reshape(grouped.count.shape)


def bit_search_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of MPE, for the storage `mixed_precision`.

    Bits come from a training of at most `search.probes` x `search.probe_steps` steps, as many as SCALL's search makes.
    It starts from the vectors that the segment's own training then starts from again. Steps and offsets of the
    quantiser are kept, as in the paper, from the evaluation that is best on valid. The planner's state is the plan
    found, which the segment then takes.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner whose state is a `Bits`.
    """
    del on_probes
    options = config.mixed_precision
    steps = config.search.planned_probes * config.search.probe_steps
    fit_config = dataclasses.replace(config.fit, steps=steps)

    def search(context: SegmentContext) -> tuple[RunState, SearchRecord]:
        storage, segment = context.storage, context.segment
        wide = searching(storage, sides(segment)[0], options)
        grouped = by_frequency(config, segment)
        plan = storage.plan()._replace(groups=grouped.groups)
        params = context.warm_params(plan, context.keys().table, wide)
        bias, _ = context.item_bias()
        run_fit = make_fit(wide, fit_config, None, config.candidates)
        params = run_fit(context.search_key(), params, (plan, prices(grouped)), segment, bias).params
        log_p = jax.nn.log_softmax(params["logits"] / options.temperature)
        bits = choose_bits(log_p, grouped, planes_within(storage, context.budget_total()))
        new_plan = Bits(grouped.groups, bits, params["steps"], params["offsets"])
        return context.state._replace(planner=new_plan), no_search(config)

    def search_holds(context: SegmentContext) -> Any:
        wide = searching(context.storage, sides(context.segment)[0], options)
        return held_by_training(wide, context.fresh_params(context.storage.plan(), context.search_key(), wide))

    def plan(context: SegmentContext, key: jax.Array) -> tuple[Bits, jax.Array]:
        del key
        return context.state.planner, no_action(config)

    return SizePlanner(lambda key, storage: storage.plan(), plan, search_before=search, search_holds=search_holds)
