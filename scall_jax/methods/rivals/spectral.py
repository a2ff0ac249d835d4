"""Sizes by energy: the next coordinate goes to the entity with the largest weighted energy on its next axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scall_jax import sizes, tables
from scall_jax.config import Config
from scall_jax.methods.allocators import ALLOCATORS, entities_order
from scall_jax.methods.planner import SizePlanner, no_action


def energies(vectors: jax.Array, had: jax.Array, weight: jax.Array) -> jax.Array:
    """Energy that each entity's next coordinate is worth, never rising from one coordinate to the next.

    Args:
      vectors: f32[N, W], turned to principal axes.
      held: i32[N], coordinates that an entity has had; 0 for new ones.
      weight: f32[N], interactions; 0 for entities that do not exist.

    Returns:
      f32[N, W]: weight x square of the coordinate. Coordinates never had are estimated: the mean spectrum of those who
      have them, scaled to the entity's own energy (1 for new ones). The running minimum makes the order in which a
      greedy rule takes coordinates a threshold on these values.
    """
    has = jnp.arange(vectors.shape[1])[None, :] < had[:, None]
    square = jnp.where(has, vectors**2, 0.0)
    weighed = jnp.where(has, weight[:, None], 0.0)
    spectrum = (weighed * square).sum(0) / jnp.maximum(weighed.sum(0), 1e-30)
    # where nobody has a coordinate there is nothing to go by but that spectra fall
    spectrum = jax.lax.cummin(jnp.where(weighed.sum(0) > 0, spectrum, jnp.inf))
    spectrum = jnp.where(jnp.isfinite(spectrum), spectrum, 1.0)
    expected = jnp.where(has, spectrum[None, :], 0.0).sum(1)
    scale = jnp.where(expected > 0, square.sum(1) / jnp.where(expected > 0, expected, 1.0), 1.0)
    estimated = jnp.where(has, square, scale[:, None] * spectrum[None, :])
    return jax.lax.cummin(weight[:, None] * estimated, axis=1)


def greedy(value: jax.Array, total: jax.Array, minimum: int, maximum: int, active: jax.Array, order: jax.Array):
    """Sizes i32[N] that take the `total` most valuable coordinates, each entity's in turn from its `minimum` on.

    `value` f32[N, W] falls along each row, W >= maximum; `active` bool[N]; ties go by `order` i32[N]. The sum is
    min(total, entities x maximum) exactly; where the minimum does not fit, it goes to the first of `order`.
    """
    counted = jnp.arange(value.shape[1])[None, :] < maximum
    bits = jnp.where(counted, jax.lax.bitcast_convert_type(jnp.maximum(value, 0.0), jnp.int32), -1)

    def sizes_at(threshold):
        taken = (bits >= threshold).sum(1)
        return jnp.where(active, jnp.clip(taken, minimum, maximum), 0)

    def halve(_, bracket):
        low, high = bracket  # at `high` the sizes fit
        middle = low + (high - low) // 2
        fits = sizes_at(middle).sum() <= total
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    top = jnp.int32(2**31 - 2)
    _, high = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), top))
    fitting = sizes_at(high)
    room = jnp.where(active, sizes_at(jnp.maximum(high - 1, 0)), 0) - fitting
    left = total - fitting.sum()
    before = jnp.cumsum(room[order]) - room[order]
    more = jnp.zeros_like(fitting).at[order].set(jnp.clip(left - before, 0, room[order]))
    by_value = fitting + more
    # what no value asks for, or does not fit, is given out by order
    shares = by_value[order].astype(jnp.float32)
    exact = sizes.assign(sizes.allocate(shares, total, minimum, maximum, num_active=active.sum()), order)
    return jnp.where(by_value.sum() == total, by_value, exact)


def spectral_planner(config: Config, progress: Callable | None = None) -> SizePlanner:
    """Greedy by energy of the embeddings of the segment before; by frequency^0.5 at the first segment.

    Works on an f32[N, width] array while it chooses.
    """
    del progress
    first = ALLOCATORS["frequency"](config.sizes)

    def plan(context, key):
        storage, segment = context.storage, context.segment
        layout = storage.layout(context.state.plan)
        total, shared = context.budget()
        exists, order = context.active_mask(), entities_order(config.sizes, segment)
        count = segment.frequency if config.sizes.ranking == "segment" else segment.total

        def by_energy():
            params = storage.load(context.state.params, layout)
            known = context.known_mask()
            vectors = storage.vectors(params, layout)
            weight = jnp.where(known, segment.total, 0).astype(jnp.float32)
            if config.warm_start.rotate:  # energies of the coordinates that the table will be cut to
                axes = tables.principal_axes(storage.table, params, layout, weight)
                vectors = jnp.matmul(vectors, axes, precision="highest")
            had = jnp.where(known, storage.sizes(context.state.plan)[:-2], 0)
            value = energies(vectors, had, jnp.where(exists, count, 0).astype(jnp.float32))
            return greedy(value, total, config.sizes.minimum, config.sizes.maximum, exists, order)

        own = jax.lax.cond(context.state.known.sum() > 0, by_energy, lambda: first(key, segment, total))
        return jnp.concatenate([own, shared]), no_action(config)

    return SizePlanner(init=lambda key, storage: (), plan=plan)
