"""What a method may ask of a segment: its storage, its budget, its random keys, and the parameters to start from."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax import tables
from scall_jax.config import Config
from scall_jax.methods.recommender import recommender_of
from scall_jax.methods.state import RunState
from scall_jax.ops.devices import gathered
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.popularity import best_half_life
from scall_jax.recommenders.recommender import Recommender
from scall_jax.sizes import shared_vector_sizes
from scall_jax.streams import Segment, active_mask, sides
from scall_jax.tables.compressed.few_bits import Coded
from scall_jax.tables.storage import Previous, bytes_left_over


class SegmentKeys(NamedTuple):
    """Typed PRNG keys of a segment, one for each phase that draws random numbers."""

    plan: jax.Array
    """For `SizePlanner.plan`."""
    table: jax.Array
    """For new coordinates of the parameters."""
    fit: jax.Array
    """For training."""


@dataclasses.dataclass(frozen=True)
class SegmentContext:
    """What a planner is given: one segment, the state of the run, and the storage of that state.

    N = U + V is the number of nodes that the storage has room for, users first, and V that of items. All methods are
    pure functions of the fields. Each call computes its result anew instead of caching it, so that a context can be
    used inside traced branches and loops.
    """

    config: Config
    """Configuration of the run."""
    state: RunState
    """State before the segment; for `SizePlanner.update` and `search_after`, the state after it."""
    segment: Segment
    """The data of the segment."""
    storage: tables.Storage
    """The storage that the state's plan and parameters belong to."""

    def keys(self) -> SegmentKeys:
        """Random keys of the segment's phases."""
        key = derive(self.state.key, Purpose.SEGMENT, self.segment.index)
        return SegmentKeys(*(derive(key, purpose) for purpose in (Purpose.PLAN, Purpose.TABLE, Purpose.FIT)))

    def search_key(self) -> jax.Array:
        """Random key of the segment's search."""
        return derive(derive(self.state.key, Purpose.SEGMENT, self.segment.index), Purpose.SEARCH)

    def wide_fit_key(self) -> jax.Array:
        """Random key of the fit that gains of coordinates are read off, the same for the search and the plan."""
        return derive(derive(self.state.key, Purpose.SEGMENT, self.segment.index), Purpose.WIDE_FIT)

    def budget_total(self) -> jax.Array:
        """Budget units of the storage that the segment may spend, i32[]."""
        return self.state.totals[self.segment.index]

    def budget(self) -> tuple[jax.Array, jax.Array]:
        """For sized storages: coordinates for the nodes' own vectors, i32[], and sizes of the shared two, i32[2]."""
        total, sizes = self.budget_total(), self.config.sizes
        entities = self.segment.users + self.segment.items
        shared = shared_vector_sizes(total, entities, sizes.minimum, sizes.maximum)
        return total - shared.sum(), shared

    def affords(self, plan: Any) -> jax.Array:
        """Budget units that the segment's bytes pay for with sizes like a plan's, i32[]; never less than the total.

        Args:
          plan: of the storage.
        """
        total = self.budget_total()
        if self.storage.affords is None or not bytes_left_over(self.config, self.storage.scaled):
            return total
        known = jnp.stack([self.segment.users, self.segment.items])
        return jnp.maximum(total, self.storage.affords(plan, total, known, self.config.charge != "table"))

    def spend(self, own_sizes: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """The plan of a rule for sizes that spends the budget.

        What bytes pay for follows from the plan where scales and sizes are paid for too: a vector without coordinates
        needs no scale, and one size for all needs next to no bits on disk. A larger total that the bytes still pay for
        with the rule's sizes is then searched for by bisection.

        Args:
          own_sizes: total i32[] -> own sizes i32[N] that add up to it, or less where all have the largest size.

        Returns:
          i32[N + 2], plan of a sized storage.
        """
        total, shared = self.budget()
        room = jnp.int32(self.state.capacity.budget_units)

        def plan_of(amount: jax.Array) -> jax.Array:
            return jnp.concatenate([own_sizes(amount), shared])

        if self.storage.affords is None or not bytes_left_over(self.config, self.storage.scaled):
            return plan_of(total)

        def halve(bracket: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            low, high, best = bracket  # the plan of `low` is the best so far, and that of `high` may fit
            middle = low + (high - low + 1) // 2
            plan, first = plan_of(middle), low < total
            most = jnp.minimum(self.affords(plan), room)
            fits = first | (plan.sum() <= most)
            # Larger sizes leave less over: the first plan says how far a search may go.
            bound = jnp.where(first, jnp.maximum(total, most - shared.sum()), high)
            chosen = jnp.where(fits, plan, best)
            return jnp.where(fits, middle, low), jnp.where(fits, bound, middle - 1), chosen

        start = total - 1, total, jnp.zeros_like(self.state.plan)
        return jax.lax.while_loop(lambda bracket: bracket[0] < bracket[1], halve, start)[2]

    def known_mask(self) -> jax.Array:
        """bool[N], nodes that the state has given sizes to."""
        users, items = sides(self.segment)
        return jnp.concatenate([jnp.arange(users) < self.state.known[0], jnp.arange(items) < self.state.known[1]])

    def active_mask(self) -> jax.Array:
        """bool[N], nodes that exist at the segment's cut."""
        return active_mask(self.segment)

    def whole_params(self) -> Any:
        """What the state stores, whole on every device of the run."""
        stored = self.state.params
        # Codes in few bits are whole already.
        return stored if isinstance(stored, Coded) else gathered(self.config.mesh, stored)

    def stored_params(self) -> Any:
        """The state's parameters in the form that training takes, not yet carried over to a new plan."""
        return self.storage.load(self.whole_params(), self.storage.layout(self.state.plan))

    def fresh_params(self, plan: Any, key: jax.Array, storage: tables.Storage | None = None) -> Any:
        """Random parameters for a plan.

        Args:
          plan: plan of the storage.
          key: typed PRNG key.
          storage: storage of the plan; None for the state's.

        Returns:
          Parameters in the form that training takes.
        """
        storage = self.storage if storage is None else storage
        return storage.fresh(key, storage.layout(plan), self.config.warm_start.init_std)

    def warm_params(self, plan: Any, key: jax.Array, storage: tables.Storage | None = None) -> Any:
        """The state's parameters carried over to a new plan.

        Args:
          plan: new plan of the storage.
          key: typed PRNG key, for new coordinates.
          storage: storage of the new plan; None for the state's. Another one must be able to read what the state's has
            stored: a search may train more coordinates than are kept.

        Returns:
          Parameters in the form that training takes; fresh ones before the first segment and without
          `WarmStartConfig.enabled`.
        """
        config, storage = self.config.warm_start, self.storage if storage is None else storage

        def warm():
            known = self.known_mask()
            weight = jnp.where(known, self.segment.total, 0).astype(jnp.float32)
            previous = Previous(self.whole_params(), self.state.plan, known, weight)
            return storage.warm_start(key, previous, plan, config)

        def fresh():
            return self.fresh_params(plan, key, storage)

        return jax.lax.cond(self.state.known.sum() > 0, warm, fresh) if config.enabled else fresh()

    def item_bias(self) -> tuple[jax.Array, jax.Array]:
        """Bias of the items' scores, f32[V], and the row of `Segment.popularity` it comes from, i32[], -1 if none."""
        by_recommender = self.recommender().item_bias
        if by_recommender is not None:
            return by_recommender(self.state.recommender, self.segment)
        return item_bias(self.config, self.segment)

    def recommender(self) -> Recommender:
        """What trains the vectors and ranks by them."""
        return recommender_of(self.config)


def segment_context(config: Config, state: RunState, segment: Segment) -> SegmentContext:
    """Build the context of a segment.

    Args:
      config: configuration of the run; its `table` names the storage.
      state: state of the run.
      segment: data of the segment.

    Returns:
      SegmentContext whose storage has the capacity of the state.
    """
    chex.assert_shape(state.known, (2,))
    chex.assert_rank([segment.index, segment.frequency, state.totals], [0, 1, 1])
    users, items = sides(segment)
    factory = tables.storage_factory(config)
    storage = factory.build(state.capacity.budget_units, users, items, config.sizes.maximum)
    return SegmentContext(config, state, segment, storage)


def bias_bytes(config: Config, items: int) -> int:
    """Bytes of the popularity counts behind the items' bias: 4 per item, 0 without a bias.

    >>> bias_bytes(Config(bias="decayed"), 1000), bias_bytes(Config(), 1000)
    (4000, 0)
    """
    return 0 if config.bias == "none" else 4 * items


def served_bias(
    config: Config, recommender: Recommender, state: RunState, segment: Segment, row: jax.Array
) -> jax.Array:
    """The bias that a segment was ranked with, without choosing again.

    Args:
      config: configuration of the run.
      recommender: of the run.
      state: after the segment.
      segment: the data.
      row: i32[], the row of `Segment.popularity` that was in use.

    Returns:
      f32[V], zeros without a bias.
    """
    chex.assert_rank(row, 0)
    if recommender.item_bias is not None:
        return recommender.ranking_bias(state.recommender, recommender.item_bias(state.recommender, segment)[0])
    if config.bias == "none":
        return jnp.zeros(segment.popularity.shape[1])
    return recommender.ranking_bias(state.recommender, jnp.log1p(segment.popularity[row]))


def item_bias(config: Config, segment: Segment) -> tuple[jax.Array, jax.Array]:
    """Bias of the items' scores: the log of their decayed counts, with the half-life that ranks best on valid.

    Args:
      config: configuration of the run; `bias` says whether there is one.
      segment: data of the segment.

    Returns:
      f32[V], zeros without a bias, and the row of `Segment.popularity` that it comes from, i32[], -1 if none.
    """
    chex.assert_rank(segment.popularity, 2)
    if config.bias == "none":
        return jnp.zeros(segment.popularity.shape[1]), jnp.int32(-1)
    row = best_half_life(segment, config.fit.valid_users, config.mesh, candidates=config.candidates)
    return jnp.log1p(segment.popularity[row]), row
