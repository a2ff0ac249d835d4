"""Probes of sizes in turn: the search loop of rivals whose choices are not the actions of a `Policy`.

They are charged what SCALL is charged: as many probes of as many steps, each with the whole budget to give out
(`esapn`: at most that), and the same reference. What stops SCALL's search early (`search.converge`) does not apply.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp

from scall_jax.config import Config, SearchConfig
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, SearchRecord, SizePlanner, no_action
from scall_jax.methods.probe import (
    HasReference,
    Probe,
    Prober,
    expected_budget_units,
    held_by_probes,
    make_prober,
    most_probes,
    no_search,
    ratio_of,
    reward_of,
    searching_planner,
)
from scall_jax.methods.state import RunState
from scall_jax.ops.keys import Purpose, derive
from scall_jax.tables import Storage

_RETRAINED = 5  # sizes that are trained once more, as in BET's paper, where the probes allow it


class Trial(NamedTuple):
    """A probe of sizes and its result."""

    sizes: jax.Array  # i32[N], of the nodes' own vectors
    action: jax.Array  # f32[A], what the record says of how they were chosen
    ratio: jax.Array  # f32[], fitness relative to the reference
    by_user: jax.Array  # f32[Q, 2], Recall@20 and NDCG@20 of the first Q users of valid


class ReferenceProbe(NamedTuple):
    """What probes are compared with: a probe of uniform sizes, or the last fit, of which only the fitness is known."""

    sizes: jax.Array  # i32[N], 0 for the last fit
    fitness: jax.Array  # f32[]
    by_user: jax.Array  # f32[Q, 2], 0 for the last fit


class ProbeSearch(NamedTuple):
    """A segment's search as pure functions of a carry C within the segment and the planner's state S across segments.

    Number is i32[], the number of the probe in the segment, from 0.
    """

    start: Callable[[Any, ReferenceProbe], Any]
    """(S, reference) -> C before the first probe."""
    propose: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    """(C, number, key) -> own sizes i32[N] to probe, and an action f32[A] for the record."""
    update: Callable[[Any, jax.Array, jax.Array, Trial], Any]
    """(C, number, key, result of the probe) -> C."""
    finish: Callable[[Any, Any], Any]
    """(S, C after the last probe) -> S."""
    repeats: int = 0
    """How many of the last probes repeat earlier ones. Their random numbers are their own even where
    `SearchConfig.common` says that probes share them."""
    fills_budget: bool = True
    """A probe gives out the whole budget; False if it may give out less."""


def probing_planner(
    init: Callable[[jax.Array, Storage], HasReference],
    make_search: Callable[[SegmentContext], ProbeSearch],
    sizes_of: Callable[[SegmentContext], tuple[jax.Array, jax.Array]],
    config: Config,
    on_probes: OnProbes | None = None,
    uniform_start: bool = True,
) -> SizePlanner:
    """Build a planner that searches by probes in turn.

    Args:
      init: (key, storage) -> S, the planner's state.
      make_search: context -> the search of a segment.
      sizes_of: context -> own sizes i32[N] and action f32[A] of a segment, by what the planner's state has found.
      config: configuration of the run.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each probe.
      uniform_start: segment 0, which comes before any search, has uniform sizes; otherwise `sizes_of` says its sizes.

    Returns:
      SizePlanner.
    """

    def plan(context: SegmentContext, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        total, shared = context.budget()
        none = no_action(config)
        own, action = jax.lax.cond(
            (context.segment.index > 0) | (not uniform_start),
            lambda: sizes_of(context),
            lambda: (ALLOCATORS["uniform"](config.sizes)(key, context.segment, total), none),
        )
        return jnp.concatenate([own, shared]), action

    def search(context: SegmentContext) -> tuple[RunState, SearchRecord]:
        probe = make_prober(context)
        planner_state, record = probe_in_turn(context, make_search(context), probe, on_probes)
        return context.state._replace(planner=planner_state), record

    def search_holds(context: SegmentContext) -> Any:
        return _turns(context, make_search(context), make_prober(context)).start(), held_by_probes(context)

    return searching_planner(config, init, plan, search, search_holds)


def retrained(config: SearchConfig) -> int:
    """How many of a segment's probes train the best sizes once more: five, but at most a quarter of the probes.

    >>> retrained(SearchConfig(probes=12)), retrained(SearchConfig(probes=50))
    (3, 5)
    """
    return min(_RETRAINED, most_probes(config) // 4)


def probe_in_turn(
    context: SegmentContext, search: ProbeSearch, probe: Prober, on_probes: OnProbes | None = None
) -> tuple[Any, SearchRecord]:
    """Make the probes of a segment, one after the other.

    Args:
      context: the segment.
      search: says what to probe, and learns from it.
      probe: as `probe.make_prober` returns it.
      on_probes: called on the host as on_probes(segment, probes, best ratio) after each probe.

    Returns:
      The planner's state after the segment, and the record of the probes.
    """
    turns = _turns(context, search, probe, on_probes)
    count = turns.first + most_probes(context.config.search)
    end = jax.lax.fori_loop(0, count, turns.one, turns.start())
    return search.finish(context.state.planner, end.inner), end.record._replace(reference=end.reference.fitness)


def _turns(context: SegmentContext, search: ProbeSearch, probe: Prober, on_probes: OnProbes | None = None) -> "_Turns":
    total, _ = context.budget()
    return _Turns(context, search, probe, on_probes, context.search_key(), total)


class _TurnCarry(NamedTuple):
    inner: Any  # the carry of the search
    reference: ReferenceProbe
    record: SearchRecord
    best: jax.Array  # f32[], the largest ratio so far


@dataclasses.dataclass(frozen=True, eq=False)
class _Turns:
    """The probes of a segment, as pure functions of what one passes to the next."""

    context: SegmentContext
    search: ProbeSearch
    probe: Prober
    on_probes: OnProbes | None
    key: jax.Array
    total: jax.Array

    @property
    def first(self) -> int:
        """The turns before the first probe: 1 where a reference is probed, else 0."""
        return int(self.context.config.search.reference == "uniform")

    def start(self) -> _TurnCarry:
        """What the first turn is given."""
        config, planner_state = self.context.config, self.context.state.planner
        nodes = self.context.segment.frequency.shape
        rows = jax.eval_shape(self.probe_sizes, self.key, jnp.zeros(nodes, jnp.int32)).by_user
        reference = ReferenceProbe(jnp.zeros(nodes, jnp.int32), planner_state.reference, jnp.zeros(rows.shape))
        expected = expected_budget_units(self.context)
        least = expected if self.search.fills_budget else jnp.int32(0)
        record = no_search(config)._replace(expected=expected, least=least)
        start = functools.partial(self.search.start, planner_state, reference)
        # Where a reference is probed, the search starts after it, and before that only shapes matter.
        inner = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(start)) if self.first else start()
        return _TurnCarry(inner, reference, record, jnp.float32(0))

    def one(self, turn: jax.Array, carry: _TurnCarry) -> _TurnCarry:
        """Probe sizes, or the reference in the first turn, and let the search learn from them.

        Both go through one probe of the program, which halves the time to compile.
        """
        search, planner_state = self.search, self.context.state.planner
        number = turn - self.first
        is_reference = number < 0
        own, action, key_data = jax.lax.cond(
            is_reference,
            lambda: self.uniform(carry.record.action.shape[1]),
            lambda: self.proposed(carry.inner, number),
        )
        result = self.probe_sizes(jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(self.key)), own)
        reference = jax.tree.map(
            lambda new, old: jnp.where(is_reference, new, old),
            ReferenceProbe(own, result.fitness, result.by_user),
            carry.reference,
        )
        ratio = ratio_of(self.context.config.search, result.fitness, reference.fitness)
        trial = Trial(own, action, ratio, result.by_user)
        inner = jax.lax.cond(
            is_reference,
            lambda: search.start(planner_state, reference),
            lambda: search.update(carry.inner, number, derive(self.key, Purpose.POLICY_UPDATE, number), trial),
        )
        record = self.with_probe(carry.record, number, is_reference, result, trial)
        best = jnp.where(is_reference, carry.best, jnp.maximum(carry.best, ratio))
        if self.on_probes is not None:
            on_probes = cast(Callable[..., None], self.on_probes)
            jax.debug.callback(on_probes, self.context.segment.index, record.count, best, ordered=False)
        return _TurnCarry(inner, reference, record, best)

    def probe_sizes(self, key: jax.Array, own: jax.Array) -> Probe:
        """Probe own sizes i32[N]."""
        chex.assert_shape(own, self.context.segment.frequency.shape)
        return self.probe(key, lambda _: own)

    def uniform(self, actions: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sizes, action f32[actions] and data of the training's key of the reference."""
        own = ALLOCATORS["uniform"](self.context.config.sizes)(self.key, self.context.segment, self.total)
        return own, jnp.zeros(actions), jax.random.key_data(derive(self.key, Purpose.COMMON_PROBE))

    def proposed(self, inner: Any, number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sizes, action and data of the training's key of a probe."""
        options, key = self.context.config.search, self.key
        own, action = self.search.propose(inner, number, derive(key, Purpose.ACTION, number))
        # With common random numbers, probes differ in nothing but their sizes.
        shared = jnp.bool_(options.common) & (number < most_probes(options) - self.search.repeats)
        common, alone = derive(key, Purpose.COMMON_PROBE), derive(key, Purpose.PROBE, number)
        return own, action, jnp.where(shared, jax.random.key_data(common), jax.random.key_data(alone))

    def with_probe(
        self, record: SearchRecord, number: jax.Array, is_reference: jax.Array, result: Probe, trial: Trial
    ) -> SearchRecord:
        """The record with a probe in row `number`; the reference leaves no row."""
        options = self.context.config.search
        row = {
            "action": trial.action,
            "fitness": result.fitness,
            "reward": reward_of(options, trial.ratio),
            "allocated": result.allocated,
        }
        at = jnp.where(is_reference, most_probes(options), number)
        return record._replace(
            count=jnp.maximum(number + 1, 0),
            **{name: getattr(record, name).at[at].set(value, mode="drop") for name, value in row.items()},
        )
