"""Baseline: a recommender outside the budget, which methods with a budget are compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Unpack

import jax

from scall_jax.evaluation import Metrics, RankingOptions
from scall_jax.recommenders.served import FoldIn, Served
from scall_jax.streams import RaggedItems, Segment
from scall_jax.tables.storage import Exported


class Exporter(NamedTuple):
    """What a checkpoint and the account of bytes ask of a storage or of a baseline; runs on the host."""

    export: Callable[[Any, Any, tuple[int, int]], Exported]
    """(stored, plan, numbers of known users and items) -> arrays by name."""
    restore: Callable[[Exported, tuple[int, int]], tuple[Any, Any]]
    """(arrays by name, numbers of known users and items) -> (stored, plan), the inverse of `export`."""


class ScoreItems(Protocol):
    """Signature of `Baseline.scores`."""

    def __call__(
        self, segment: Segment, valid_users: int, **options: Unpack[RankingOptions]
    ) -> tuple[jax.Array, jax.Array]:
        """Score items for all users alike.

        Args:
          segment: the data.
          valid_users: users of valid that a choice looks at, at most; static.
          **options: as in `RankingOptions`.

        Returns:
          (scores f32[V], the row of `Segment.popularity` that they are made of, i32[], -1 if none).
        """
        ...


class FitBaseline(Protocol):
    """Signature of `Baseline.fit`."""

    def __call__(self, segment: Segment, valid_users: int, **options: Unpack[RankingOptions]) -> Any:
        """Learn what is stored; arguments as in `ScoreItems`."""
        ...


class RankBaseline(Protocol):
    """Signature of `Baseline.rank`."""

    def __call__(
        self,
        stored: Any,
        scores: jax.Array,
        segment: Segment,
        relevant: RaggedItems,
        /,
        **options: Unpack[RankingOptions],
    ) -> Metrics:
        """Rank items and compare.

        Args:
          stored: by `Baseline.fit`.
          scores: f32[V], by `Baseline.scores`.
          segment: the data.
          relevant: items to be found, by user.
          **options: as in `RankingOptions`.

        Returns:
          Metrics.
        """
        ...


class Baseline(NamedTuple):
    """Pure functions; `exporter` and `describe` run on the host.

    Whatever a baseline stores lies outside the budget: its bytes are in the account, `budget_bytes` of the run is 0.
    """

    empty: Callable[[int, int], Any]
    """(capacity of users, capacity of items) -> stored before the first segment. Raises ValueError where the baseline
    cannot hold so many."""
    scores: ScoreItems
    """Scores of the items for all users alike."""
    fit: FitBaseline
    """What is stored after a segment's training."""
    rank: RankBaseline
    """Metrics on a part of a segment."""
    exporter: Callable[[int, int], Exporter]
    """(capacity of users, capacity of items) -> how to write and read what is stored."""
    serves_by: Callable[[tuple[int, int], int], dict[str, int]]
    """(known users and items, bytes of the compact graph) -> what it answers a request from beside what it stores, with
    its bytes; the cheapest of several ways counts."""
    describe: Callable[[Any], dict[str, Any]]
    """stored -> entries that a line of metrics has beside the usual ones."""
    serve: Callable[[Any, Segment, jax.Array], Served] | None = None
    """(stored, segment, row of `Segment.popularity` that the run chose, i32[]) -> what answers requests. Traced."""
    fold_in: FoldIn | None = None
    """Users by their items; None where items are the same for all users."""
