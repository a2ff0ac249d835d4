"""The fields of a model."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from scall_jax.config import Config
from scall_jax.recommenders.served import FoldIn, Served
from scall_jax.run.checkpoint import Snapshot
from scall_jax.run.programs import Programs
from scall_jax.serving.ids import Ids
from scall_jax.sizes.budget import Budget
from scall_jax.streams import Growing
from scall_jax.tables.storage import Exported


class ModelBudget(NamedTuple):
    """The budget of a model and the bytes that it takes, as the last line of the run's `metrics.jsonl` has them."""

    rule: Budget
    """As it was given to the run."""
    charge: str
    """What it pays for (`Config.charge`)."""
    allowed: int
    """Bytes that it allowed at the last segment; 0 for baselines, which have none."""
    table: int
    """Bytes of parameters and codes."""
    at_rest: int
    """These, and sizes and the items' bias."""
    serving: int
    """These, and what else a request reads: LightGCN's graph or final vectors, counts of popularity."""


class Seen(NamedTuple):
    """Items of each known user in compressed rows, ascending."""

    offsets: np.ndarray
    """u32[known users + 1], where each user's items begin, and the end."""
    items: np.ndarray
    """Unsigned integers [pairs], rows of items."""

    def of(self, row: int) -> np.ndarray:
        """Items i64[...] of a user."""
        return self.items[self.offsets[row] : self.offsets[row + 1]].astype(np.int64)


class Waiting(NamedTuple):
    """What has been met since the segment's cut, where rows wait or the run has been updated; else empty."""

    users: Ids
    """Users of these rows, known ones or not."""
    seen: Seen
    """Known items of each of these users."""


class GoingOn(NamedTuple):
    """What a model needs to take new rows."""

    growing: Growing
    """The stream."""
    snapshot: Snapshot
    """The state after the last segment, with what planner and recommender remember."""
    line: dict[str, Any]
    """Of `metrics.jsonl`, of the last segment."""
    programs: Programs
    """Which all models that come from one share."""


class Candidate(NamedTuple):
    """One of those that a model of auto is chosen from."""

    snapshot: Snapshot
    """The state after the last segment."""
    score: float
    """What the leader has most of (`run.race.score`, added up over all segments)."""
    programs: Programs
    """Which all models that come from one share."""
    origin: dict[str, Any]
    """`ModelData.origin` where it leads."""


class AutoGoingOn(NamedTuple):
    """What a model of auto needs to take new rows."""

    growing: Growing
    """The stream."""
    candidates: dict[str, Candidate]
    """By name those that still run, in the order in which the first of equals leads."""
    began: int
    """Candidates at the beginning; see `race.survivors`."""


@dataclasses.dataclass(frozen=True, eq=False)
class ModelData:
    """What a run has left after its last finished segment; nothing changes it."""

    config: Config
    """Of the run."""
    segment: int
    """Number of the segment, from 0, after whose training the model stands."""
    budget: ModelBudget
    """What it was allowed, and what it takes."""
    users: Ids
    """Known users: the caller's ids."""
    items: Ids
    """Known items."""
    served: Served
    """Vectors of the known users and items, and the items' bias."""
    fold_in: FoldIn | None
    """How a user whom training has not seen gets a vector; None where there is no rule for it."""
    popularity: np.ndarray
    """f32[items], what users are ranked by of whom nothing is known."""
    popularity_name: str
    """Which counts these are: one of `streams.POPULARITY`."""
    seen: Seen
    """What users have met before the segment's cut."""
    table: pl.DataFrame
    """As `sizes` returns it."""
    stored: Exported
    """What the run stores, by name."""
    origin: Mapping[str, Any]
    """How the model was made: versions, method, stream, segment, key."""
    waiting: Waiting
    """What rows after the segment's cut say of users: held-out ones of a run that goes on, and those that wait."""
    going_on: GoingOn | AutoGoingOn | str
    """What `update` needs; or why the model cannot be updated."""

    @functools.cached_property
    def personal(self) -> bool:
        """Whether users have vectors of their own, or made of their items: otherwise items are the same for all."""
        return self.fold_in is not None or bool(np.asarray(self.served.items).any())
