"""The state of a run: what passes from one segment to the next."""

import dataclasses
from typing import Any, NamedTuple

import jax


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StorageCapacity:
    """Capacity of the storage.

    It is static: to a compiled program, a state of another capacity has another shape.
    """

    budget_units: int
    """What `StorageFactory.capacity` says: the largest number of budget units that any segment of the run may spend, or
    the number of columns where all rows have one width."""
    mean_coordinates: float = 0.0
    """Coordinates that an entity of the first segment has on average, by the largest budget of a schedule, which widths
    of a run's own fits follow: a stream that grows keeps its first segment, so that the fits of its segments stay as
    they are."""


class RunState(NamedTuple):
    """All that passes from segment to segment, and all that a checkpoint must contain."""

    key: jax.Array
    """Typed PRNG key of the run, never changed: every segment derives its keys from it by `Segment.index`."""
    params: Any
    """Parameters as the storage stores them. For `packed` f32[P], where P is the largest budget of the stream."""
    plan: Any
    """How the budget is spent. For `packed` i32[N + 2], one size per node, then those of the two shared vectors."""
    known: jax.Array
    """i32[2], users and items that have been given sizes."""
    totals: jax.Array
    """i32[T], budget units of the storage allowed at each segment. For `packed` a unit is one parameter."""
    planner: Any = ()
    """State of the method's `SizePlanner`; only the planner replaces it."""
    recommender: Any = ()
    """What the recommender remembers; its `choose` and a segment's fit replace it."""
    capacity: StorageCapacity = StorageCapacity(0)
    """Static capacity of the storage."""
