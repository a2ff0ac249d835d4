"""Probes of sizes in turn: the search loop of rivals whose choices are not the actions of a `Policy`.

They are charged what SCALL is charged: as many probes of as many steps, each with the whole budget to give out
(`esapn`: at most that), and the same reference. What stops SCALL's search early (`search.converge`) does not apply.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.config import Config, SearchConfig
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import SearchRecord, SizePlanner, no_action
from scall_jax.methods.probe import (
    HasReference,
    Probe,
    expected_budget_units,
    make_prober,
    most_probes,
    no_search,
    ratio_of,
    reward_of,
    searching_planner,
)

_RETRAINED = 5  # sizes trained once more, as in BET's paper, where the probes allow it


class Trial(NamedTuple):
    """A probe and what it found."""

    sizes: jax.Array  # i32[N], of the nodes' own vectors
    action: jax.Array  # f32[A], what the record keeps of how they were chosen
    ratio: jax.Array  # f32[], fitness by the reference
    by_user: jax.Array  # f32[Q, 2], Recall@20 and NDCG@20 of the first Q users of valid


class ReferenceProbe(NamedTuple):
    """What probes are compared with: a probe of uniform sizes, or the last fit, which leaves nothing by user."""

    sizes: jax.Array  # i32[N], 0 for the last fit
    fitness: jax.Array  # f32[]
    by_user: jax.Array  # f32[Q, 2], 0 for the last fit


class Search(NamedTuple):
    """A search as pure functions of what it carries within a segment (C) and from segment to segment (S)."""

    begin: Callable[[Any, ReferenceProbe], Any]  # S, reference -> C
    propose: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]  # C, number, key -> sizes, action
    learn: Callable[[Any, jax.Array, jax.Array, Trial], Any]  # C, number, key, what was found -> C
    end: Callable[[Any, Any], Any]  # S, C -> S
    fills: bool = True  # a probe gives out the whole budget, not at most that


def probing_planner(
    init: Callable[..., HasReference],
    make: Callable[[SegmentContext], Search],
    sizes_of: Callable[[SegmentContext], tuple[jax.Array, jax.Array]],
    config: Config,
    progress: Callable | None = None,
    again: int = 0,
    uniform_start: bool = True,
) -> SizePlanner:
    """A planner that searches by probes.

    Args:
      init: (key, storage) -> S.
      make: the search of a segment.
      sizes_of: own sizes and action of a segment by what was found.
      config: of the run.
      progress: called on the host as progress(segment, probes, best ratio) after each probe.
      again: the last probes of a segment, which repeat earlier ones: their random numbers are their own even where
        `search.common` says that probes share them.
      uniform_start: segment 0, before any search, is uniform; else `sizes_of` says its sizes too.
    """

    def plan(context, key):
        total, shared = context.budget()
        none = no_action(config)
        own, action = jax.lax.cond(
            (context.segment.index > 0) | (not uniform_start),
            lambda: sizes_of(context),
            lambda: (ALLOCATORS["uniform"](config.sizes)(key, context.segment, total), none),
        )
        return jnp.concatenate([own, shared]), action

    def search(context):
        probe = make_prober(context)
        kept, record = probe_in_turn(context, make(context), probe, progress, again)
        return context.state._replace(planner=kept), record

    return searching_planner(config, init, plan, search)


def retrained(config: SearchConfig) -> int:
    """Probes of a segment that train the best sizes once more: a quarter of them at most."""
    return min(_RETRAINED, most_probes(config) // 4)


def probe_in_turn(
    context: SegmentContext,
    search: Search,
    probe: Callable[..., Probe],
    progress: Callable | None = None,
    again: int = 0,
) -> tuple[Any, SearchRecord]:
    """What is carried to the next segment, and the record; `probe` as `make_prober` returns it."""
    config, segment = context.config, context.segment
    options, most = config.search, most_probes(config.search)
    key, kept = context.search_key(), context.state.planner
    total, _ = context.budget()
    uniform = ALLOCATORS["uniform"](config.sizes)
    nodes = segment.frequency.shape

    def probe_sizes(probe_key, own):
        return probe(probe_key, lambda _: own)

    def proposed(inner, number):
        own, action = search.propose(inner, number, jax.random.fold_in(key, 3 * number + 1))
        # common random numbers: what differs between probes is the sizes alone
        shared = jnp.bool_(options.common) & (number < most - again)
        own_key = jax.random.key_data(jax.random.fold_in(key, 3 * number + 2))
        return own, action, jnp.where(shared, jax.random.key_data(key), own_key)

    def one(step, carry):
        inner, reference, record, best = carry
        number = step - first
        is_reference = number < 0
        own, action, key_data = jax.lax.cond(
            is_reference,
            lambda: (uniform(key, segment, total), jnp.zeros(record.action.shape[1]), jax.random.key_data(key)),
            lambda: proposed(inner, number),
        )
        made = probe_sizes(jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(key)), own)
        # one probe in the program serves both, at half the compilation
        reference = jax.tree.map(
            lambda new, old: jnp.where(is_reference, new, old),
            ReferenceProbe(own, made.fitness, made.by_user),
            reference,
        )
        ratio = ratio_of(made.fitness, reference.fitness)
        trial = Trial(own, action, ratio, made.by_user)
        inner = jax.lax.cond(
            is_reference,
            lambda: search.begin(kept, reference),
            lambda: search.learn(inner, number, jax.random.fold_in(key, 3 * number + 3), trial),
        )
        row = {
            "action": action,
            "fitness": made.fitness,
            "reward": reward_of(options, ratio),
            "allocated": made.allocated,
        }
        at = jnp.where(is_reference, most, number)
        record = record._replace(
            count=jnp.maximum(number + 1, 0),
            **{name: getattr(record, name).at[at].set(value, mode="drop") for name, value in row.items()},
        )
        best = jnp.where(is_reference, best, jnp.maximum(best, ratio))
        if progress is not None:
            jax.debug.callback(progress, segment.index, record.count, best, ordered=False)
        return inner, reference, record, best

    first = int(options.reference == "uniform")
    rows = jax.eval_shape(probe_sizes, key, jnp.zeros(nodes, jnp.int32)).by_user
    reference = ReferenceProbe(jnp.zeros(nodes, jnp.int32), kept.reference, jnp.zeros(rows.shape))
    expected = expected_budget_units(context)
    record = no_search(config)._replace(expected=expected, least=expected if search.fills else jnp.int32(0))
    start = (search.begin(kept, reference), reference, record, jnp.float32(0))
    inner, reference, record, _ = jax.lax.fori_loop(0, first + most, one, start)
    return search.end(kept, inner), record._replace(reference=reference.fitness)
