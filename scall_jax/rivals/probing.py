"""Probes of sizes in turn: the search loop of rivals whose choices are not the actions of a `Policy`.

They are charged what SCALL is charged: as many probes of as many steps, each with the whole budget to give out
(`esapn`: at most that), and the same reference. What stops SCALL's search early (`search.converge`) does not apply.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.actions import action_length
from scall_jax.allocators import ALLOCATORS
from scall_jax.chooser import Chooser
from scall_jax.config import Config
from scall_jax.search import (
    SearchRecord,
    expected_units,
    make_prober,
    most_probes,
    no_search,
    ratio_of,
)
from scall_jax.state import RunState, budget_of, search_key
from scall_jax.streams import Segment

_RETRAINED = 5  # sizes trained once more, as in BET's paper, where the probes allow it


class Trial(NamedTuple):
    """A probe and what it found."""

    sizes: jax.Array  # i32[N], of the nodes' own vectors
    action: jax.Array  # f32[A], what the record keeps of how they were chosen
    ratio: jax.Array  # f32[], fitness by the reference
    by_user: jax.Array  # f32[Q, 2], Recall@20 and NDCG@20 of the first Q users of valid


class Reference(NamedTuple):
    """What probes are compared with: a probe of uniform sizes, or the last fit, which leaves nothing by user."""

    sizes: jax.Array  # i32[N], 0 for the last fit
    fitness: jax.Array  # f32[]
    by_user: jax.Array  # f32[Q, 2], 0 for the last fit


class Search(NamedTuple):
    """A search as pure functions of what it carries within a segment (C) and from segment to segment (S)."""

    begin: Callable[[Any, Reference], Any]  # S, reference -> C
    propose: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]  # C, number, key -> sizes, action
    learn: Callable[[Any, jax.Array, jax.Array, Trial], Any]  # C, number, key, what was found -> C
    end: Callable[[Any, Any], Any]  # S, C -> S
    fills: bool = True  # a probe gives out the whole budget, not at most that


def make_chooser(
    init: Callable,
    make: Callable[[Config, RunState, Segment], Search],
    sizes_of: Callable[[Config, RunState, Segment], tuple[jax.Array, jax.Array]],
    config: Config,
    progress: Callable | None = None,
    again: int = 0,
    uniform_start: bool = True,
) -> Chooser:
    """A chooser that searches by probes.

    Args:
      init: (key, storage) -> S, which has a field `reference` f32[], fitness of the last fit at its first evaluation.
      make: the search of a segment.
      sizes_of: own sizes and action of a segment by what was found.
      config: of the run.
      progress: called on the host as progress(segment, probes, best ratio) after each probe.
      again: the last probes of a segment, which repeat earlier ones: their random numbers are their own even where
        `search.common` says that probes share them.
      uniform_start: segment 0, before any search, is uniform; else `sizes_of` says its sizes too.
    """

    def choose(state, segment, key):
        total, shared = budget_of(config, state, segment)
        none = jnp.zeros(action_length(config.search))
        own, action = jax.lax.cond(
            (segment.index > 0) | (not uniform_start),
            lambda: sizes_of(config, state, segment),
            lambda: (ALLOCATORS["uniform"](config)(key, segment, total), none),
        )
        return jnp.concatenate([own, shared]), action

    def search(state, segment):
        probe = make_prober(config, state, segment)
        kept, record = probe_in_turn(config, state, segment, make(config, state, segment), probe, progress, again)
        return state._replace(chooser=kept), record

    def learn(state, segment, prepared, fitted, valid):
        del segment, prepared, valid
        return state._replace(chooser=state.chooser._replace(reference=fitted.first_fitness))

    return Chooser(init, choose, search, "before" if config.search.on == "current" else "after", learn)


def retrained(config: Config) -> int:
    """Probes of a segment that train the best sizes once more: a quarter of them at most."""
    return min(_RETRAINED, most_probes(config) // 4)


def probe_in_turn(
    config: Config,
    state: RunState,
    segment: Segment,
    search: Search,
    probe: Callable,
    progress: Callable | None = None,
    again: int = 0,
) -> tuple[Any, SearchRecord]:
    """What is carried to the next segment, and the record; `probe` as `make_prober` returns it."""
    options, most = config.search, most_probes(config)
    key, kept = search_key(state, segment), state.chooser
    total, _ = budget_of(config, state, segment)
    uniform = ALLOCATORS["uniform"](config)
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
            lambda new, old: jnp.where(is_reference, new, old), Reference(own, made.fitness, made.by_user), reference
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
            "reward": 10 * (ratio - options.low) / (options.high - options.low),
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
    reference = Reference(jnp.zeros(nodes, jnp.int32), kept.reference, jnp.zeros(rows.shape))
    expected = expected_units(config, state, segment)
    record = no_search(config)._replace(expected=expected, least=expected if search.fills else jnp.int32(0))
    start = (search.begin(kept, reference), reference, record, jnp.float32(0))
    inner, reference, record, _ = jax.lax.fori_loop(0, first + most, one, start)
    return search.end(kept, inner), record._replace(reference=reference.fitness)
