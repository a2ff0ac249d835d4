"""What passes from segment to segment."""

import dataclasses
from typing import Any, NamedTuple

import jax


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StorageCapacity:
    """Capacity of the storage: static, so that a state of another capacity is another shape to a compiled program."""

    budget_units: int
    """The largest number of budget units that any segment of the run may hold."""


class RunState(NamedTuple):
    """What passes from segment to segment, and all that a checkpoint must hold."""

    key: jax.Array  # typed PRNG key of the run
    params: Any  # as stored; packed: f32[P], P the largest budget of the stream
    plan: Any  # how the budget is spent; packed: i32[N + 2], sizes, the last two of the shared vectors
    known: jax.Array  # i32[2], users and items that have been given sizes
    totals: jax.Array  # i32[T], budget units of the storage allowed at each segment; packed: parameters
    planner: Any = ()  # what the method's planner remembers
    capacity: StorageCapacity = StorageCapacity(0)
