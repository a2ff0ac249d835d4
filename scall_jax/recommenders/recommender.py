"""Recommender: how the vectors of a storage are learned and ranked by, as methods that choose sizes see it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Unpack

import jax

from scall_jax.evaluation import Metrics, RankingOptions
from scall_jax.recommenders.fit_result import Fit
from scall_jax.recommenders.served import FoldIn, Served
from scall_jax.streams import RaggedItems, Segment
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params

OnEvaluation = Callable[[Any, Any, Any, Any], object]
"""Called on the host as (segment i32[], step i32[], loss f32[], fitness f32[]) after each evaluation during a fit."""


class EvaluateParams(Protocol):
    """Signature of `Recommender.evaluate`."""

    def __call__(
        self,
        storage: Storage,
        params: Params,
        layout: StorageLayout,
        segment: Segment,
        parts: Sequence[RaggedItems],
        item_bias: jax.Array,
        **options: Unpack[RankingOptions],
    ) -> list[Metrics]:
        """Rank by parameters.

        Args:
          storage: of the parameters; static.
          params: from `to_buffer`.
          layout: of the storage.
          segment: the data.
          parts: items to be found by user, such as `segment.valid` and `segment.test`.
          item_bias: f32[V], added to scores.
          **options: as in `RankingOptions`.

        Returns:
          Metrics of each part.
        """
        ...


class WideFit(NamedTuple):
    """A fit of one large size for all, along balanced principal axes; of N nodes and D coordinates."""

    vectors: jax.Array
    """f32[N, D], zeros for nodes that do not exist."""
    gains: jax.Array
    """f32[N, D], what each coordinate lowers the node's own loss by, given those before it."""
    at_zero: jax.Array
    """f32[N], the node's own loss where its vector is 0: without an item bias the sum of the weights of its
    interactions."""
    spectrum: jax.Array
    """f32[D], singular values of the predictions U V', descending."""
    residual: jax.Array
    """f32[] from 0 to 1, the part of the users' loss at zero vectors that is left: the noise of a unit of weight."""
    curvature: jax.Array
    """f32[N, D], what an error of 1 in each coordinate alone raises the node's own loss by."""


WideFitter = Callable[[jax.Array, Any, Segment, jax.Array, int, int], WideFit]
"""(typed PRNG key, what is remembered, segment, item bias f32[V], sweeps, width) -> fit; the last two are static."""


class ServeParams(Protocol):
    """Signature of `Recommender.serve`."""

    def __call__(
        self,
        storage: Storage,
        params: Params,
        layout: StorageLayout,
        segment: Segment,
        item_bias: jax.Array,
        remembered: Any,
        width: int,
    ) -> Served:
        """Vectors that rank as `Recommender.evaluate` does.

        Args:
          storage, params, layout, segment, item_bias: as in `EvaluateParams`.
          remembered: what the recommender remembers.
          width: columns in use; static.

        Returns:
          Served.
        """
        ...


class Recommender(NamedTuple):
    """Pure functions, traced but for `serves_by`.

    What a recommender remembers from segment to segment, such as parameters that it chooses for itself, is a pytree of
    arrays of fixed shapes, `RunState.recommender`; `()` remembers nothing. Every fit is given it.
    """

    make_fit: Callable[[Storage, OnEvaluation | None], Fit]
    """(storage, callback after each evaluation or None) -> the training of a segment."""
    make_probe_fit: Callable[[Storage], Fit]
    """storage -> the training of a probe."""
    evaluate: EvaluateParams
    """Ranks by parameters."""
    held_by_training: Callable[[Storage, Params], Any]
    """(storage, parameters from `to_buffer`) -> a pytree of what training holds from step to step. Only shapes and
    dtypes matter, for the account."""
    serves_by: Callable[[tuple[int, int], int, int], dict[str, int]]
    """(known users and items, bytes of the compact graph, width) -> ways to answer a request, with the bytes that each
    takes beside the table; the cheapest counts. Empty where the table suffices."""
    init: Callable[[], Any] = tuple
    """What is remembered before the first segment."""
    choose: Callable[[jax.Array, Any, Segment, float], Any] | None = None
    """(typed PRNG key, what is remembered, segment, coordinates that an entity of the first segment has on average) ->
    what is remembered. Runs before anything else on a segment; it may use the validation part. None chooses nothing."""
    held_by_choice: Callable[[Segment, float], Any] | None = None
    """(segment, the same number of coordinates) -> a pytree of what `choose` holds from step to step. Only shapes and
    dtypes matter."""
    item_bias: Callable[[Any, Segment], tuple[jax.Array, jax.Array]] | None = None
    """(what is remembered, segment) -> bias of the items' scores, f32[V], and the row of `Segment.popularity` that it
    comes from, i32[], -1 if none. None: as `Config.bias` says."""
    ranking_bias: Callable[[Any, jax.Array], jax.Array] = lambda remembered, item_bias: item_bias
    """(what is remembered, the bias f32[V] of a fit) -> the bias that its vectors are ranked with."""
    wide_fit: WideFitter | None = None
    """A closed-form fit of one size for all that says what each coordinate is worth, and whose leading coordinates a
    fit may start from. None: there is none."""
    describe: Callable[[Any], dict[str, Any]] = lambda remembered: {}
    """What is remembered -> entries that a line of metrics has for it; on the host."""
    serve: ServeParams | None = None
    """What answers requests. None: a run cannot be loaded to recommend."""
    fold_in: FoldIn | None = None
    """Users whom training has not seen, by their items. None: there is no such rule."""
