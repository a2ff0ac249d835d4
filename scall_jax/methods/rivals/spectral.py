"""Sizes by energy: the next coordinate goes to the entity with the largest weighted energy on it.

Coordinates are those that the table is cut to: with `WarmStartConfig.rotation` full or blocks those on principal axes.
"""

import chex
import jax
import jax.numpy as jnp

from scall_jax import tables
from scall_jax.config import Config, SizesConfig
from scall_jax.methods.allocators import ALLOCATORS, allocate_by_order, entities_order, ranking_frequency
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, SizePlanner, no_action


def energies(vectors: jax.Array, previous_sizes: jax.Array, weight: jax.Array) -> jax.Array:
    """Energy that each entity's next coordinate is worth, never rising from one coordinate to the next.

    Coordinates that an entity has not had are estimated: the mean spectrum of the entities that have them, scaled to
    the entity's own energy (1 for new entities). The running minimum turns the order in which a greedy rule takes
    coordinates into a threshold on these values.

    Args:
      vectors: f32[N, W], as they are before they are cut.
      previous_sizes: i32[N], coordinates that an entity has had; 0 for new ones.
      weight: f32[N], interactions; 0 for entities that do not exist.

    Returns:
      f32[N, W], weight x square of the coordinate.

    >>> energies(jnp.array([[2.0, 1.0], [2.0, 0.0]]), jnp.array([2, 1]), jnp.array([1.0, 2.0])).tolist()
    [[4.0, 1.0], [8.0, 2.0]]
    """
    chex.assert_rank([vectors, previous_sizes, weight], [2, 1, 1])
    chex.assert_equal_shape_prefix([vectors, previous_sizes, weight], 1)
    has = jnp.arange(vectors.shape[1])[None, :] < previous_sizes[:, None]
    square = jnp.where(has, vectors**2, 0.0)
    weighed = jnp.where(has, weight[:, None], 0.0)
    spectrum = (weighed * square).sum(0) / jnp.maximum(weighed.sum(0), 1e-30)
    # Where no entity has a coordinate, all that is known is that spectra fall.
    spectrum = jax.lax.cummin(jnp.where(weighed.sum(0) > 0, spectrum, jnp.inf))
    spectrum = jnp.where(jnp.isfinite(spectrum), spectrum, 1.0)
    expected = jnp.where(has, spectrum[None, :], 0.0).sum(1)
    scale = jnp.where(expected > 0, square.sum(1) / jnp.where(expected > 0, expected, 1.0), 1.0)
    estimated = jnp.where(has, square, scale[:, None] * spectrum[None, :])
    return jax.lax.cummin(weight[:, None] * estimated, axis=1)


def greedy(
    config: SizesConfig, value: jax.Array, total: jax.Array, active_mask: jax.Array, order: jax.Array
) -> jax.Array:
    """Sizes that take the most valuable coordinates, each entity's in turn from its minimum on.

    Args:
      config: has the bounds; `maximum` is at most W.
      value: f32[N, W], never rising along a row.
      total: i32[], coordinates to give out.
      active_mask: bool[N], entities that exist; the others get 0.
      order: i32[N], a permutation with the entities that exist first. Ties go to the first of them, and so does the
        minimum where it does not fit.

    Returns:
      i32[N], adding up to min(total, entities x maximum).
    """
    chex.assert_rank([value, total, active_mask, order], [2, 0, 1, 1])
    chex.assert_equal_shape_prefix([value, active_mask, order], 1)
    minimum, maximum = config.minimum, config.maximum
    counted = jnp.arange(value.shape[1])[None, :] < maximum
    bits = jnp.where(counted, jax.lax.bitcast_convert_type(jnp.maximum(value, 0.0), jnp.int32), -1)

    def sizes_at(threshold):
        taken = (bits >= threshold).sum(1)
        return jnp.where(active_mask, jnp.clip(taken, minimum, maximum), 0)

    def halve(_, bracket):
        low, high = bracket  # at `high` the sizes fit
        middle = low + (high - low) // 2
        fits = sizes_at(middle).sum() <= total
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    top = jnp.int32(2**31 - 2)
    _, high = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), top))
    fitting = sizes_at(high)
    room = jnp.where(active_mask, sizes_at(jnp.maximum(high - 1, 0)), 0) - fitting
    left = total - fitting.sum()
    before = jnp.cumsum(room[order]) - room[order]
    more = jnp.zeros_like(fitting).at[order].set(jnp.clip(left - before, 0, room[order]))
    by_value = fitting + more
    # The two differ only where the total lies above the largest sizes of all entities or below the smallest.
    shares = by_value[order].astype(jnp.float32)
    exact = allocate_by_order(config, shares, total, active_mask.sum(), order)
    return jnp.where(by_value.sum() == total, by_value, exact)


def spectral_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of greedy sizes by the energy of the embeddings of the segment before.

    Sizes of the first segment follow frequency^0.5. Planning needs an f32[N, width] array. The planner remembers
    nothing.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner.
    """
    del on_probes
    first = ALLOCATORS["frequency"](config.sizes)

    def plan(context: SegmentContext, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        storage, segment, table = context.storage, context.segment, context.storage.table
        if table is None:
            raise ValueError(f"table={config.table!r} has no columns to turn: choose one of {', '.join(tables.SIZED)}")
        layout = storage.layout(context.state.plan)
        total, shared = context.budget()
        exists, order = context.active_mask(), entities_order(config.sizes, segment)
        count = ranking_frequency(config.sizes, segment)

        def by_energy():
            params = storage.load(context.state.params, layout)
            known = context.known_mask()
            vectors = storage.vectors(params, layout)
            weight = jnp.where(known, segment.total, 0).astype(jnp.float32)
            if config.warm_start.rotation != "none":
                # The table is turned to these axes when it is resized: theirs are the coordinates to be kept.
                axes = tables.principal_axes(table, params, layout, weight, config.warm_start.rotation)
                vectors = jnp.matmul(vectors, axes, precision="highest")
            previous_sizes = jnp.where(known, storage.sizes(context.state.plan)[:-2], 0)
            value = energies(vectors, previous_sizes, jnp.where(exists, count, 0).astype(jnp.float32))
            return greedy(config.sizes, value, total, exists, order)

        own = jax.lax.cond(context.state.known.sum() > 0, by_energy, lambda: first(key, segment, total))
        return jnp.concatenate([own, shared]), no_action(config)

    return SizePlanner(init=lambda key, storage: (), plan=plan)
