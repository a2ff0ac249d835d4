"""Baseline: a recommender outside the budget, a line that methods with a budget are set beside."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from scall_jax.evaluation import Metrics
from scall_jax.tables.storage import Exported


class Exporter(NamedTuple):
    """What a checkpoint and the account of bytes ask of a storage or of a baseline; runs on the host."""

    export: Callable[[Any, Any, tuple[int, int]], Exported]  # stored, plan, known users and items
    restore: Callable[[Exported, tuple[int, int]], tuple[Any, Any]]  # and back


class Baseline(NamedTuple):
    """Pure functions; `exporter` and `describe` run on the host. Options are those of `evaluation.evaluate`.

    Whatever a baseline stores lies outside the budget: its bytes are in the account, `budget_bytes` of the run is 0.
    """

    empty: Callable[[int, int], Any]  # capacities of users, items -> stored before the first segment; may refuse
    scores: Callable[..., tuple[jax.Array, jax.Array]]  # Segment, valid users, **options -> f32[V] for all users alike,
    # and the row of `Segment.popularity` that they are, -1 if none
    fit: Callable[..., Any]  # Segment, valid users, **options -> stored
    rank: Callable[..., Metrics]  # stored, scores f32[V], Segment, RaggedItems to find, **options
    exporter: Callable[[int, int], Exporter]  # capacities of users, items
    describe: Callable[[Any], dict]  # stored -> what a line of metrics says beside the rest
