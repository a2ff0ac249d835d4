"""What a method may ask of a segment: its storage, its budget, its random keys, what it starts from."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax import tables
from scall_jax.config import Config
from scall_jax.methods.state import RunState
from scall_jax.recommenders.popularity import best_half_life
from scall_jax.sizes import shared_vector_sizes
from scall_jax.streams import Segment, active_mask, sides

SEARCH_KEY = 0x5EA7C4
"""Sets the keys of a search apart from those of the segment's other phases."""


class SegmentKeys(NamedTuple):
    """Random keys of a segment, one for each phase that draws."""

    plan: jax.Array
    table: jax.Array
    fit: jax.Array


@dataclasses.dataclass(frozen=True)
class SegmentContext:
    """One segment, the state that it starts from, and the storage of that state.

    Its methods are pure functions of these; each call computes anew, so that a context may be used inside of traced
    branches and loops.
    """

    config: Config
    """Of the run."""
    state: RunState
    """Before the segment."""
    segment: Segment
    """The data."""
    storage: tables.Storage
    """Of the parameters that the state holds."""

    def keys(self) -> SegmentKeys:
        """Keys of the segment's phases."""
        return SegmentKeys(*jax.random.split(jax.random.fold_in(self.state.key, self.segment.index), 3))

    def search_key(self) -> jax.Array:
        """Key of the segment's search."""
        return jax.random.fold_in(jax.random.fold_in(self.state.key, self.segment.index), SEARCH_KEY)

    def budget_total(self) -> jax.Array:
        """Budget units allowed at the segment, i32[]."""
        return self.state.totals[self.segment.index]

    def budget(self) -> tuple[jax.Array, jax.Array]:
        """Budget units for the nodes' own vectors, i32[], and the sizes of the two shared ones, i32[2]."""
        total, sizes = self.budget_total(), self.config.sizes
        entities = self.segment.users + self.segment.items
        shared = shared_vector_sizes(total, entities, sizes.minimum, sizes.maximum)
        return total - shared.sum(), shared

    def known_mask(self) -> jax.Array:
        """bool[N], nodes that had been given sizes before the segment."""
        users, items = sides(self.segment)
        return jnp.concatenate([jnp.arange(users) < self.state.known[0], jnp.arange(items) < self.state.known[1]])

    def stored_params(self) -> Any:
        """The state's parameters as training takes them."""
        return self.storage.load(self.state.params, self.storage.layout(self.state.plan))

    def fresh_params(self, plan: Any, key: jax.Array, storage: tables.Storage | None = None) -> Any:
        """Random parameters for a plan; of another storage than the state's, if one is given."""
        storage = self.storage if storage is None else storage
        return storage.fresh(key, storage.layout(plan), self.config.warm_start.init_std)

    def warm_params(self, plan: Any, key: jax.Array, storage: tables.Storage | None = None) -> Any:
        """The state's parameters for a new plan; fresh ones where nothing is known or nothing is to be kept.

        `storage`, if given, is another one that can read what the state's has stored: a search may train more
        coordinates than are kept.
        """
        config, storage = self.config.warm_start, self.storage if storage is None else storage

        def warm():
            known = self.known_mask()
            weight = jnp.where(known, self.segment.total, 0).astype(jnp.float32)
            return storage.resize(key, self.state.params, self.state.plan, plan, known, weight, config)

        def fresh():
            return self.fresh_params(plan, key, storage)

        return jax.lax.cond(self.state.known.sum() > 0, warm, fresh) if config.enabled else fresh()

    def active_mask(self) -> jax.Array:
        """bool[N], nodes that exist at the segment's cut."""
        return active_mask(self.segment)

    def item_bias(self) -> tuple[jax.Array, jax.Array]:
        """What is added to items' scores, f32[V], and the row of `Segment.popularity` it comes from, -1 if none."""
        return item_bias(self.config, self.segment)


def segment_context(config: Config, state: RunState, segment: Segment) -> SegmentContext:
    """The context of a segment for a state; builds the storage whose parameters the state holds."""
    users, items = sides(segment)
    factory = tables.storage_factory(config)
    storage = factory.build(state.capacity.budget_units, users, items, config.sizes.maximum)
    return SegmentContext(config, state, segment, storage)


def bias_bytes(config: Config, items: int) -> int:
    """Bytes of the statistic behind the items' bias: 4 for each of `items`, 0 without a bias."""
    return 0 if config.bias == "none" else 4 * items


def item_bias(config: Config, segment: Segment) -> tuple[jax.Array, jax.Array]:
    """What is added to items' scores, f32[V], and the row of `Segment.popularity` it comes from, -1 if none."""
    if config.bias == "none":
        return jnp.zeros(segment.popularity.shape[1]), jnp.int32(-1)
    row = best_half_life(segment, config.fit.valid_users, candidates=config.candidates)
    return jnp.log1p(segment.popularity[row]), row
