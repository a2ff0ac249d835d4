"""Actions that price coordinates: how the gains of coordinates are weighed, from which sizes follow exactly.

Five numbers in (0, 1):

* users: the users' part in what gains of both sides count; a half is one price for both sides.
* noise: what a coordinate must earn to be worth estimating, from 0 to `MOST_NOISE` residuals of a unit of weight, on a
  quadratic scale, so that small ones can be told apart.
* exponent: power of an entity's weight that its gains are divided by. With 1 an entity counts as one, with 0 its
  interactions do.
* mixture: part of one size for all. Near 1, gains weigh nothing, so that one size for all is among the actions.
* start: above a half, the fit starts from the leading coordinates of the wide fit, where the recommender is solved for;
  otherwise as it would without gains.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.gains import WideFits, sizes_from
from scall_jax.methods.scall.actions import ActionSpace, Meaning
from scall_jax.recommenders.ials.gains import truncated
from scall_jax.sizes.gains import GainRule

NUMBERS = ("users", "noise", "exponent", "mixture", "start")
"""What the numbers of an action mean, in their order."""

MOST_NOISE = 0.5
"""Noise of an action whose number is 1."""

UNIFORM_FROM = 0.9
"""Mixtures from here on are one size for all: policies rarely return a number next to 1."""


def rule_of(action: jax.Array) -> GainRule:
    """How an action weighs gains.

    Args:
      action: f32[5] in (0, 1), `NUMBERS`.

    Returns:
      GainRule.

    >>> [round(float(x), 3) for x in rule_of(jnp.array([0.5, 0.5, 0.75, 0.45, 0.0]))]
    [0.125, 0.75, 0.5, 0.5]
    """
    chex.assert_shape(action, (len(NUMBERS),))
    users, noise, exponent, mixture, _ = action
    return GainRule(MOST_NOISE * noise**2, exponent, jnp.minimum(mixture / UNIFORM_FROM, 1.0), users)


def prices(config: Config) -> ActionSpace:
    """Actions that price coordinates.

    Args:
      config: of the run; `gains` says how the wide fit is made.

    Returns:
      ActionSpace. It remembers what the wide fits chose for themselves, where the recommender does not.
    """
    wide_fits = WideFits(config)

    def meaning(context: SegmentContext, remembered: Any) -> Meaning:
        fit = wide_fits.fit(context, remembered)
        storage = context.storage

        def own_sizes(key: jax.Array, total: jax.Array, action: jax.Array) -> jax.Array:
            del key  # Nothing is drawn.
            return sizes_from(context, fit, rule_of(action), total)

        def start(action: jax.Array, plan: jax.Array, usual: Callable[[], Any]) -> Any:
            layout = storage.layout(plan)
            return jax.lax.cond(action[4] > 0.5, lambda: truncated(storage, fit.vectors, layout, config.mesh), usual)

        return Meaning(own_sizes, start if wide_fits.solved_for else None)

    return ActionSpace(meaning, wide_fits.init, wide_fits.choose, wide_fits.holds)
