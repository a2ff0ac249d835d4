"""The phases of a segment as a method defines them: one interface for methods with embeddings and for baselines.

`run.step` calls them in order: `choose`, `search_before`, `prepare`, `fit`, `rank`, `update`, `search_after`. A method
with embeddings gets its phases from a `SizePlanner` (`embedding_phases.embedding_method`), a method without them from a
`Baseline` (`baseline_phases.baseline_method`); write the phases themselves only for a method that is neither.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from scall_jax.config import Config
from scall_jax.evaluation import Metrics, RankingOptions
from scall_jax.methods.planner import OnProbes, Outcome, SearchRecord
from scall_jax.methods.state import RunState
from scall_jax.recommenders.baseline import Exporter
from scall_jax.recommenders.fit_result import FitResult
from scall_jax.recommenders.recommender import OnEvaluation
from scall_jax.recommenders.served import FoldIn, Served
from scall_jax.streams import Segment, Stream


class Callbacks(NamedTuple):
    """Functions that compiled programs call on the host, not always in order; None calls nothing."""

    progress: OnEvaluation | None = None
    """Called after each evaluation during a fit."""
    on_probes: OnProbes | None = None
    """Called after each round of probes."""


class Prepared(NamedTuple):
    """A segment that is ready to be trained."""

    params: Any
    """Parameters of the storage to train, as buffers (`recommenders.fit.to_buffer`)."""
    plan: Any
    """Plan of the storage."""
    sizes: jax.Array
    """i32[N + 2], coordinates of each node's own vector and of the two shared ones; zeros for a method without."""
    item_bias: jax.Array
    """f32[V], added to the items' scores."""
    popularity: jax.Array
    """i32[], the row of `Segment.popularity` that is in use, -1 if none."""
    action: jax.Array
    """f32[A], the action that the sizes come from, zeros without one."""


class Ranked(NamedTuple):
    """What a segment leaves behind, and how well it ranks."""

    stored: Any
    """Parameters as the storage stores them, the next `RunState.params`."""
    valid: Metrics
    """Metrics of the stored parameters on the validation part."""
    test: Metrics
    """Metrics of the stored parameters on the test part."""
    allocated: jax.Array
    """i32[], budget units that the plan spends."""
    allowed: jax.Array
    """i32[], budget units that the segment's bytes pay for with such a plan; no more are spent, which is checked."""


class Bookkeeping(NamedTuple):
    """What the host saves and counts of a method: functions of concrete arrays."""

    exporter: Exporter
    """Turns what is stored into the arrays on disk, whose bytes are the account, and back."""
    sizes: Callable[[Any], np.ndarray]
    """plan -> i32[N + 2], as `Prepared.sizes`."""
    budget_bytes: Callable[[int, tuple[int, int]], int]
    """(segment, known users and items) -> bytes that the segment may spend; 0 for baselines."""
    side_bytes: Callable[[tuple[int, int]], int]
    """(known users and items) -> bytes of metadata that serving needs beside the exported arrays."""
    serves_by: Callable[[Any, tuple[int, int], int], dict[str, int]]
    """(plan, known users and items, bytes of the compact graph) -> ways to answer a request, with the bytes that each
    takes beside what is stored; the cheapest one counts. Empty where what is stored suffices."""
    training_bytes: Callable[[RunState, Segment, Any], int]
    """(state, segment, `Prepared.params`), of which only shapes matter -> the most bytes that any phase holds from step
    to step: a search, with what is stored beside it, or the segment's training."""
    describe: Callable[[RunState], dict[str, Any]]
    """(state after the segment) -> entries that the method adds to the segment's line of metrics."""
    width: Callable[[Any], int]
    """plan -> columns of vectors that are in use; 0 for methods without vectors of a table."""
    bits: Callable[[Any], np.ndarray]
    """plan -> i32[N], bits of a stored coordinate of each node; zeros for methods without."""
    totals: Callable[[], np.ndarray]
    """-> `RunState.totals` of the stream, i32[T]."""


class MethodPhases(NamedTuple):
    """The phases of a segment as pure functions, compiled for all segments at once, and the host's bookkeeping.

    Shapes must be static. `RunState` and `Segment` are always the arguments that come first.
    """

    init: Callable[[jax.Array, Stream], RunState]
    """(typed PRNG key, stream) -> the state before the first segment. It reads capacities and bounds alone."""
    prepare: Callable[[RunState, Segment], Prepared]
    """Plans the segment and carries the parameters over to the plan; for a baseline, scores items without training."""
    fit: Callable[[RunState, Segment, Prepared], FitResult]
    """Trains on the segment. `RunState.params` are not there any more, `Prepared.params` took their place."""
    rank: Callable[[RunState, Segment, Prepared, FitResult, RankingOptions], Ranked]
    """Stores the trained parameters and evaluates what is stored; the last argument is options for it."""
    bookkeeping: Callable[[RunState, Stream], Bookkeeping]
    """(a state of the run, stream) -> functions for the host; only the shapes of the state matter."""
    choose: Callable[[RunState, Segment], RunState] | None = None
    """Runs first of all: parameters that the recommender chooses for itself; None where it has none to choose."""
    search_before: Callable[[RunState, Segment], tuple[RunState, SearchRecord]] | None = None
    """Runs before `prepare`, on the same segment; None if the method does not search there."""
    search_after: Callable[[RunState, Segment], tuple[RunState, SearchRecord]] | None = None
    """Runs after `update`, on the same segment; None if the method does not search there."""
    update: Callable[[RunState, Segment, Outcome], Any] | None = None
    """Runs after `rank`, with the state after the segment; returns the next `RunState.planner`. None keeps it."""
    serve: Callable[[RunState, Segment, jax.Array, int], Served] | None = None
    """(state after the segment, segment, row of `Segment.popularity` in use i32[], `Bookkeeping.width`, static) -> what
    answers requests: its scores are those that `rank` evaluates. None: the method cannot be loaded to recommend."""
    fold_in: FoldIn | None = None
    """Users whom the run has not seen, by their items; None where there is no rule for it."""
    keeps_shapes: bool = True
    """`fit` returns parameters of the shapes that it takes, so that their memory may be donated to it."""


class Method(NamedTuple):
    """A way to rank items over a stream; `registry.METHODS` lists those that have a name."""

    phases: Callable[[Config, Callbacks], MethodPhases]
    """(config of the run, callbacks) -> phases. It raises ValueError for a config that the method cannot follow."""
    budget_is_data: bool = True
    """One program serves all budgets, so that a sweep may map over them; False if shapes follow from the budget."""
    configure: Callable[[Config], Config] = lambda config: config
    """The run's config with what the method's name stands for put in."""
