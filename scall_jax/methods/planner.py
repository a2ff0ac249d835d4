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
from scall_jax.recommenders.fit import FitResult


class SearchRecord(NamedTuple):
    """Probes of one segment, M at most; rows from `count` on are 0."""

    count: jax.Array  # i32[], probes made
    action: jax.Array  # f32[M, A]
    fitness: jax.Array  # f32[M], mean of Recall@20 and NDCG@20 on valid
    reward: jax.Array  # f32[M]
    allocated: jax.Array  # i32[M], budget units given out
    expected: jax.Array  # i32[], budget units that each had to give out, or had to stay at or below
    least: jax.Array  # i32[], the least that each had to give out
    reference: jax.Array  # f32[], fitness that rewards are relative to


class Outcome(NamedTuple):
    """What a segment has come to, for a planner to learn from."""

    fit_result: FitResult
    valid: Metrics


class SizePlanner(NamedTuple):
    """Pure functions. What a planner remembers is `RunState.planner`, and only the planner replaces it.

    At most one of the two searches is given.
    """

    init: Callable[[jax.Array, Any], Any]  # key, Storage -> what it remembers; always traced
    plan: Callable[[SegmentContext, jax.Array], tuple[Any, jax.Array]]  # context, key -> plan of the storage, action
    search_before: Callable[[SegmentContext], tuple[RunState, SearchRecord]] | None = None  # before a segment's plan
    search_after: Callable[[SegmentContext], tuple[RunState, SearchRecord]] | None = None  # after its evaluation
    update: Callable[[SegmentContext, Outcome], Any] | None = None  # after evaluation -> what it remembers


def allocator_planner(make: Callable[[SizesConfig], Allocator]) -> Callable[[Config, Callable | None], SizePlanner]:
    """A planner that remembers nothing: `make(config.sizes)` gives own sizes, (key, segment, total) -> i32[N]."""

    def planner(config: Config, progress: Callable | None = None) -> SizePlanner:
        del progress
        allocator = make(config.sizes)

        def plan(context, key):
            total, shared = context.budget()
            return jnp.concatenate([allocator(key, context.segment, total), shared]), no_action(config)

        return SizePlanner(init=lambda key, storage: (), plan=plan)

    return planner


def action_length(config: SearchConfig) -> int:
    """Numbers in an action: users' share, a shape for each side, and the concentration where it is learned."""
    return 3 + config.learn_concentration


def no_action(config: Config) -> jax.Array:
    """The action that a record shows where sizes come from none, f32[A]: zeros, which no policy returns."""
    return jnp.zeros(action_length(config.search))
