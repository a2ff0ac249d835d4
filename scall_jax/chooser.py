"""Chooser: how a method spends its budget, segment by segment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.actions import action_length
from scall_jax.allocators import Allocator
from scall_jax.config import Config
from scall_jax.state import budget_of


class Chooser(NamedTuple):
    """Pure functions; what a chooser remembers is `RunState.chooser`, and only it may replace that."""

    init: Callable[[jax.Array, Any], Any]  # key, Storage -> what it remembers; always traced
    choose: Callable[..., tuple[Any, jax.Array]]  # RunState, Segment, key -> plan of the storage, action f32[A]
    search: Callable[..., tuple[Any, Any]] | None = None  # RunState, Segment -> RunState, SearchRecord
    when: str | None = None  # `search` runs `before` the segment is planned, or `after` it is evaluated
    learn: Callable[..., Any] | None = None  # RunState, Segment, Prepared, Fitted, Metrics on valid -> RunState
    first: bool = False  # the first segment is searched too; with `before`


def by_allocator(make: Callable[[Config], Allocator]) -> Callable[[Config, Callable | None], Chooser]:
    """A chooser that remembers nothing: `make(config)` gives own sizes (key, segment, total) -> i32[N]."""

    def chooser(config: Config, progress: Callable | None = None) -> Chooser:
        del progress
        allocator = make(config)

        def choose(state, segment, key):
            total, shared = budget_of(config, state, segment)
            return jnp.concatenate([allocator(key, segment, total), shared]), jnp.zeros(action_length(config.search))

        return Chooser(init=lambda key, storage: (), choose=choose)

    return chooser
