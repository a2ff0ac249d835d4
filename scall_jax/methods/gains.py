"""Planners that read off a closed-form fit what each coordinate is worth: methods gain and waterfill.

Where the recommender is solved for, the fit is its own, and the segment's training may start from the fit's leading
coordinates. Other recommenders are given the sizes alone; the fit then chooses its parameters for itself, segment by
segment, as it would as a recommender.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax import sizes
from scall_jax.config import Config
from scall_jax.methods.allocators import by_power, entities_order
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, Planned, SearchRecord, SizePlanner, no_action
from scall_jax.methods.probe import no_search
from scall_jax.methods.recommender import recommender_of
from scall_jax.methods.state import RunState
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.ials.gains import truncated
from scall_jax.recommenders.ials.recommender import ials_recommender
from scall_jax.recommenders.recommender import WideFit
from scall_jax.sizes.gains import LEAST_WEIGHT, GainRule, Gains, shuffled, sizes_by_gains, spectral_exponent
from scall_jax.streams import sides

_LEAST_RANK = 4
"""Singular values that the fall of a spectrum is fitted to, at least."""


@dataclasses.dataclass(frozen=True)
class WideFits:
    """The wide fits of a run: what is remembered for them, and how they are made."""

    config: Config
    """Configuration of the run."""

    @property
    def solved_for(self) -> bool:
        """Whether the recommender's own fit is used, which remembers its parameters itself."""
        return recommender_of(self.config).wide_fit is not None

    def _source(self):
        if self.solved_for:
            return recommender_of(self.config)
        config = self.config
        return ials_recommender(config.ials, config.fit.valid_users, config.candidates, "none", config.mesh)

    def init(self) -> Any:
        """What a planner must remember before the first segment; `()` where the recommender remembers it."""
        return () if self.solved_for else self._source().init()

    def choose(self, context: SegmentContext, remembered: Any) -> Any:
        """What must be remembered once a segment's validation part is known."""
        choose = None if self.solved_for else self._source().choose
        if choose is None:
            return remembered
        key = derive(context.wide_fit_key(), Purpose.CHOICE)
        return choose(key, remembered, context.segment, context.state.capacity.mean_coordinates)

    def fit(self, context: SegmentContext, remembered: Any) -> WideFit:
        """The wide fit of a segment."""
        remembered = context.state.recommender if self.solved_for else remembered
        bias = context.item_bias()[0] if self.solved_for else jnp.zeros(sides(context.segment)[1])
        make = self._source().wide_fit
        assert make is not None
        key = derive(context.wide_fit_key(), Purpose.TABLE)
        return make(key, remembered, context.segment, bias, self.config.gains.sweeps, self.width(context))

    def width(self, context: SegmentContext) -> int:
        """Coordinates of the fit; static."""
        return self.config.gains.width(context.state.capacity.mean_coordinates, self.config.sizes.maximum)

    def holds(self, context: SegmentContext, remembered: Any) -> Any:
        """Arrays that are held at once while sizes are worked out: the fit, its table among them."""
        found = jax.eval_shape(lambda: self.fit(context, remembered))
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (found, found.vectors))


def sizes_from(
    context: SegmentContext, fit: WideFit, rule: GainRule, total: jax.Array, rho: float | None = None
) -> jax.Array:
    """Sizes of a segment by what coordinates are worth.

    Args:
      context: the segment.
      fit: its wide fit.
      rule: how gains are weighed.
      total: i32[], coordinates to give out.
      rho: users' share of the budget; None for one price for both sides.

    Returns:
      i32[N], own sizes.
    """
    config, segment = context.config.sizes, context.segment
    bounds, (users, _) = (config.minimum, config.maximum), sides(segment)
    gains = Gains(fit.gains, fit.at_zero, fit.residual)
    if context.config.gains.shuffle:
        gains = shuffled(derive(context.wide_fit_key(), Purpose.GAINS_SHUFFLE), gains, context.active_mask(), users)
    users_total = None
    if rho is not None:
        users_total, _ = sizes.split_sides(total, rho, segment.users, segment.items, *bounds)
    order = entities_order(config, segment)
    return sizes_by_gains(gains, rule, total, users_total, bounds, context.active_mask(), order, users)


class _Remembered(NamedTuple):
    """State of the planners."""

    wide: Any
    """What the wide fits remember (`WideFits.init`)."""


def gain_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner that gives coordinates to the entities whose loss they lower the most.

    Args:
      config: configuration of the run; `gains` says how gains are weighed.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner.
    """
    del on_probes
    options = config.gains
    rule = GainRule(options.noise, options.exponent, options.mixture)
    return planner_from(
        WideFits(config),
        lambda context, fit: context.spend(lambda total: sizes_from(context, fit, rule, total, options.rho)),
    )


def waterfill_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of sizes by water-filling.

    Coordinate l of an entity with frequency p is worth p s_l^2. With s_l falling as l^-beta, all that are worth more
    than a price are l <= (p / price)^(1 / (2 beta)), so that sizes are proportional to p^(1 / (2 beta)), at one price
    for users and items. Beta is fitted to the singular values of the wide fit's predictions, up to the mean size, and p
    is what that fit weighs an entity by: its loss at zero vectors, to which all of its interactions add their weights.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner.
    """
    del on_probes

    def own_sizes(context: SegmentContext, fit: WideFit, total: jax.Array) -> jax.Array:
        segment = context.segment
        mean_size = total // jnp.maximum(segment.users + segment.items, 1)
        beta = spectral_exponent(fit.spectrum, jnp.maximum(mean_size, _LEAST_RANK))
        power = jnp.minimum(1 / (2 * jnp.maximum(beta, 1e-3)), sizes.MOST_POWER)
        return by_power(config.sizes, segment, total, power, _as_counts(fit.at_zero))

    return planner_from(
        WideFits(config), lambda context, fit: context.spend(lambda total: own_sizes(context, fit, total))
    )


def _as_counts(weight: jax.Array) -> jax.Array:
    """Weights f32[N] >= 0 as whole numbers i32[N] in the same proportions, 0 for 0 alone."""
    relative = weight / jnp.maximum(weight.max(), LEAST_WEIGHT)
    return jnp.where(weight > 0, jnp.maximum(jnp.round(relative * 2.0**30), 1.0), 0.0).astype(jnp.int32)


def planner_from(wide_fits: WideFits, plan_of: Callable[[SegmentContext, WideFit], Any]) -> SizePlanner:
    """Build a planner whose plans follow from a segment's wide fit.

    Args:
      wide_fits: of the run.
      plan_of: (context, wide fit of its segment) -> plan of the storage.

    Returns:
      SizePlanner. It makes no probes, and remembers what the wide fits do.
    """
    config = wide_fits.config

    def choose(context: SegmentContext) -> tuple[RunState, SearchRecord]:
        remembered = wide_fits.choose(context, context.state.planner.wide)
        return context.state._replace(planner=_Remembered(remembered)), no_search(config)

    def plan(context: SegmentContext, key: jax.Array) -> Planned:
        del key
        fit = wide_fits.fit(context, context.state.planner.wide)
        new_plan = plan_of(context, fit)
        rotated = wide_fits.solved_for and config.gains.start == "rotated"
        start = None
        if rotated:
            start = truncated(context.storage, fit.vectors, context.storage.layout(new_plan), config.mesh)
        return Planned(new_plan, no_action(config), start)

    return SizePlanner(
        init=lambda key, storage: _Remembered(wide_fits.init()),
        plan=plan,
        search_before=None if wide_fits.solved_for else choose,
        search_holds=lambda context: wide_fits.holds(context, context.state.planner.wide),
    )
