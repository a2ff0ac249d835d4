"""The phases of a segment, as a method defines them: one interface for embeddings within a budget and for baselines."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from scall_jax.config import Config
from scall_jax.evaluation import Metrics
from scall_jax.methods.planner import Outcome, SearchRecord
from scall_jax.methods.state import RunState
from scall_jax.recommenders.baseline import Exporter
from scall_jax.recommenders.fit import FitResult
from scall_jax.streams import Segment, Stream


class Callbacks(NamedTuple):
    """Called on the host from inside of compiled programs, not always in order."""

    progress: Callable | None = None  # (segment, step, loss, fitness) after each evaluation during a fit
    on_probes: Callable | None = None  # (segment, probes, best ratio) after each round of probes


class Prepared(NamedTuple):
    """A segment ready to be trained on."""

    params: Any  # of the storage, in training, as buffers
    plan: Any  # of the storage
    sizes: jax.Array  # i32[N + 2], coordinates of the nodes' own vectors and of the two shared ones
    item_bias: jax.Array  # f32[V]
    popularity: jax.Array  # i32[], row of `Segment.popularity` in use, -1 if none
    action: jax.Array  # f32[A] that the sizes come from, 0 without one


class Ranked(NamedTuple):
    """What a segment keeps, and how it ranks."""

    stored: Any  # of the storage
    valid: Metrics
    test: Metrics
    allocated: jax.Array  # i32[], budget units that the plan spends


class Bookkeeping(NamedTuple):
    """What the host keeps and counts of a method; functions of concrete arrays."""

    exporter: Exporter
    sizes: Callable[[Any], np.ndarray]  # plan -> i32[N + 2]
    budget_bytes: Callable[[int, tuple[int, int]], int]  # segment, known users and items -> bytes allowed
    side_bytes: Callable[[tuple[int, int]], int]  # known users and items -> bytes of metadata beside the storage's own
    training_bytes: Callable[[Any], int]  # prepared parameters -> bytes that training holds
    describe: Callable[[Any], dict]  # stored -> what a line of metrics says beside the rest


class MethodPhases(NamedTuple):
    """Pure functions; `bookkeeping` belongs to the host."""

    init: Callable[[jax.Array, Stream], RunState]
    prepare: Callable[[RunState, Segment], Prepared]
    fit: Callable[[RunState, Segment, Prepared], FitResult]
    rank: Callable[..., Ranked]  # RunState, Segment, Prepared, FitResult, options of `evaluation.evaluate`
    bookkeeping: Callable[[RunState, Stream], Bookkeeping]  # of a run, by the shapes of its state
    search_before: Callable[[RunState, Segment], tuple[RunState, SearchRecord]] | None = None
    search_after: Callable[[RunState, Segment], tuple[RunState, SearchRecord]] | None = None
    update: Callable[[RunState, Segment, Outcome], Any] | None = None  # -> what the planner remembers
    keeps_shapes: bool = True  # `fit` returns parameters of the shapes that it takes, so that they may be donated


class Method(NamedTuple):
    """A way to rank items over a stream."""

    phases: Callable[[Config, Callbacks], MethodPhases]
    budget_is_data: bool = True  # one program serves all budgets, so that a sweep may map over them
