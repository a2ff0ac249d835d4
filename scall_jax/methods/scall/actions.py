"""Actions of SCALL (arXiv 2407.15411): the meaning of a policy's numbers in (0, 1), and the sizes that follow."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax import sizes
from scall_jax.config import Config, SearchConfig
from scall_jax.methods.allocators import allocate_by_order, split_by_side
from scall_jax.methods.context import SegmentContext
from scall_jax.ops.keys import Purpose, derive
from scall_jax.streams import Segment

SHAPES = {
    "powerlaw": (0.1, 30.0),  # This is the published range.
    "pareto": (1.05, 100.0),  # published from 30
    "truncnorm": (1e-6, 1e-5),  # This is the published range.
    "truncexp": (0.1, 100.0),
    "lognormal": (0.01, 2.0),
}
"""The smallest and the largest shape of each family in `sizes.FAMILIES`: the range that an action spans."""

CONCENTRATIONS = (0.1, 1000.0)
"""Range of a learned concentration, on a logarithmic scale."""


class Meaning(NamedTuple):
    """What actions mean in one segment."""

    sizes: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """(typed PRNG key, coordinates to give out i32[], action f32[A]) -> own sizes i32[N]."""
    start: Callable[[jax.Array, Any, Callable[[], Any]], Any] | None = None
    """(action f32[A], plan, function of nothing that makes the usual start) -> buffer of parameters to start from.
    None: actions say nothing of it."""


class ActionSpace(NamedTuple):
    """What actions mean in a run, and what must be remembered for that from segment to segment."""

    meaning: Callable[[SegmentContext, Any], Meaning]
    """(segment, what is remembered) -> Meaning."""
    init: Callable[[], Any] = tuple
    """What is remembered before the first segment; `()` remembers nothing."""
    choose: Callable[[SegmentContext, Any], Any] = lambda context, remembered: remembered
    """(segment, what is remembered) -> what is remembered. Runs before the search of a segment."""
    holds: Callable[[SegmentContext, Any], Any] = lambda context, remembered: ()
    """(segment, what is remembered) -> a pytree of the arrays that a meaning is made of, for the account."""


def shapes(config: Config) -> ActionSpace:
    """The published actions: `sizes_by_action`.

    Args:
      config: of the run.

    Returns:
      ActionSpace that remembers nothing.
    """

    def meaning(context: SegmentContext, remembered: Any) -> Meaning:
        del remembered
        return Meaning(lambda key, total, action: sizes_by_action(config, key, context.segment, total, action))

    return ActionSpace(meaning)


def to_shape(config: SearchConfig, number: chex.Numeric) -> chex.Numeric:
    """The shape parameter that a number of an action means.

    Args:
      config: `family` has the range, `map` says on which scale the number lies.
      number: f32[...] in (0, 1).

    Returns:
      f32[...], within the family's range of `SHAPES`.

    >>> [round(to_shape(SearchConfig(family="powerlaw", map=scale), 0.5), 3) for scale in ("linear", "log")]
    [15.05, 1.732]
    """
    low, high = SHAPES[config.family]
    if config.map == "log":
        return low * (high / low) ** number
    return low + (high - low) * number


def sizes_by_action(config: Config, key: jax.Array, segment: Segment, total: jax.Array, action: jax.Array) -> jax.Array:
    """Sizes that an action gives out (SCALL, section on size sampling).

    The action is (rho, users' shape, items' shape) and, where it is learned, the concentration: rho of the total goes
    to the users, and each side's part in the proportions of a family of distributions with that shape. Sizes are the
    expected ones, or drawn around them with a concentration. Either way the more frequent entity gets the larger one.

    Args:
      config: `sizes` has the bounds and the ranking, `search` the family and the concentration.
      key: typed PRNG key, for drawn sizes.
      segment: data of the segment.
      total: i32[], coordinates to give out.
      action: f32[3] or f32[4] in (0, 1).

    Returns:
      i32[N], sizes of the nodes' own vectors, adding up to min(total, entities x maximum).

    >>> from scall_jax import streams
    >>> rows = streams.synthetic(jax.random.key(0), users=6, items=4, interactions=60)
    >>> segment = streams.cut(rows, segments=2).segment(1)
    >>> action = jnp.array([0.25, 0.5, 0.5])
    >>> own = sizes_by_action(Config(), jax.random.key(0), segment, jnp.int32(24), action)
    >>> int(own[:3].sum()), int(own[3:].sum())
    (6, 18)
    """
    search, bounds = config.search, (config.sizes.minimum, config.sizes.maximum)
    chex.assert_shape(action, (3 + search.learn_concentration,))
    chex.assert_rank(total, 0)
    concentration = search.concentration
    if search.learn_concentration:
        low, high = CONCENTRATIONS
        concentration = low * (high / low) ** action[3]
    totals = jnp.stack(sizes.split_sides(total, action[0], segment.users, segment.items, *bounds))

    def one_side(number, order, num_active):
        shares = sizes.expected_shares(search.family, to_shape(search, action[1 + number]), num_active, order.shape[0])
        if concentration is None:
            return allocate_by_order(config.sizes, shares, totals[number], num_active, order)
        # The side is traced: both sides share one program.
        side_key = derive(key, Purpose.SIDE, number)
        drawn = sizes.sample(side_key, shares, totals[number], concentration, bounds, num_active=num_active)
        return sizes.assign(-jnp.sort(-drawn), order)

    return split_by_side(config.sizes, segment, one_side)
