"""SizePlanner: how a method spends its budget, segment by segment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.config import Config, SearchConfig, SizesConfig
from scall_jax.evaluation import Metrics
from scall_jax.methods.allocators import Allocator
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.state import RunState
from scall_jax.recommenders.fit_result import FitResult
from scall_jax.tables import Storage

OnProbes = Callable[[Any, Any, Any], object]
"""Called on the host as (segment i32[], probes made i32[], best ratio f32[]) after each round of probes."""


class SearchRecord(NamedTuple):
    """The probes of one segment, at most M; rows from `count` on are 0."""

    count: jax.Array
    """i32[], probes made."""
    action: jax.Array
    """f32[M, A], the action of each probe."""
    fitness: jax.Array
    """f32[M], mean of Recall@20 and NDCG@20 on the validation part."""
    reward: jax.Array
    """f32[M], `probe.reward_of` the fitness relative to the reference."""
    allocated: jax.Array
    """i32[M], budget units that the probe gave out."""
    expected: jax.Array
    """i32[], the most budget units that a probe may give out."""
    least: jax.Array
    """i32[], the fewest budget units that a probe must give out; equal to `expected` where it has to spend them all."""
    reference: jax.Array
    """f32[], fitness that rewards are relative to."""


class Outcome(NamedTuple):
    """The result of a segment, from which a planner may learn."""

    fit_result: FitResult
    """Result of the segment's training."""
    valid: Metrics
    """Metrics on the validation part."""


class Planned(NamedTuple):
    """What a planner decides for a segment."""

    plan: Any
    """Plan of the storage. For the sized storages i32[N + 2]: the size of every node's own vector, then those of the
    two shared ones (`SegmentContext.budget` says both totals)."""
    action: jax.Array
    """f32[A], for the record; a planner without actions returns `no_action(config)`."""
    start: Any = None
    """Buffer of parameters that the fit starts from; None for those of the segment before, carried over."""


SegmentSearch = Callable[[SegmentContext], tuple[RunState, SearchRecord]]
"""(context) -> the context's state with `planner` replaced, and the probes made."""


class SizePlanner(NamedTuple):
    """A method's rule for spending the budget, as pure functions that are compiled with the rest of the run.

    Shapes must be static, and of the segment only what is known at the cut may be used: everything in `Segment` apart
    from `valid` (searches may use it), `test`, `interactions`, `held_out`, `unknown` and `seen`. What a planner
    remembers from segment to segment is a pytree S of arrays of fixed shapes, `RunState.planner`; `()` remembers
    nothing. A segment calls `search_before`, `plan`, `update` and `search_after`, in this order. At most one of the two
    searches is given.
    """

    init: Callable[[jax.Array, Storage], Any]
    """(key of the run, storage) -> S before the first segment. It is always traced."""
    plan: Callable[[SegmentContext, jax.Array], tuple[Any, ...]]
    """(context, typed PRNG key) -> `Planned`, or a tuple of its first fields."""
    search_before: SegmentSearch | None = None
    """Runs before the segment's plan, on the segment to be planned."""
    search_after: SegmentSearch | None = None
    """Runs after the segment's evaluation, on the same segment, for the plan of the next one."""
    update: Callable[[SegmentContext, Outcome], Any] | None = None
    """(context, outcome) -> S after the segment's evaluation. The context's state is the one after the segment."""
    search_holds: Callable[[SegmentContext], Any] | None = None
    """(context) -> a pytree of the arrays that a search, or a plan that fits something itself, holds at once beside
    what is stored, those of the trainings in it included. Only shapes and dtypes matter, for the account: it is traced
    and never run."""


PlannerFactory = Callable[[Config, OnProbes | None], SizePlanner]
"""(config of the run, callback after each round of probes or None) -> SizePlanner."""


def allocator_planner(make_allocator: Callable[[SizesConfig], Allocator]) -> PlannerFactory:
    """A planner without memory, from a function of the segment alone.

    Args:
      make_allocator: called as make_allocator(config.sizes); returns an `Allocator`, (key, segment, total i32[]) -> own
        sizes i32[N].

    Returns:
      PlannerFactory whose planner remembers nothing.
    """

    def planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
        del on_probes
        allocator = make_allocator(config.sizes)

        def plan(context: SegmentContext, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            return context.spend(lambda total: allocator(key, context.segment, total)), no_action(config)

        return SizePlanner(init=lambda key, storage: (), plan=plan)

    return planner


def action_length(config: SearchConfig) -> int:
    """Numbers in an action.

    Of shapes: the users' share, a shape per side, and the concentration where it is learned. Of prices: the numbers of
    `scall.prices.NUMBERS`.

    >>> action_length(SearchConfig()), action_length(SearchConfig(learn_concentration=True))
    (3, 4)
    >>> action_length(SearchConfig(actions="prices"))
    5
    """
    return 5 if config.actions == "prices" else 3 + config.learn_concentration


def no_action(config: Config) -> jax.Array:
    """The action to record where sizes come from none, f32[A]: zeros, which no policy returns.

    >>> no_action(Config()).tolist()
    [0.0, 0.0, 0.0]
    """
    return jnp.zeros(action_length(config.search))
