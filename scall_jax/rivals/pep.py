"""PEP over a stream: thresholds learned at every segment, kept coordinates trained again from where they began."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from scall_jax.actions import action_length
from scall_jax.allocators import alive
from scall_jax.chooser import Chooser
from scall_jax.config import Config
from scall_jax.recommenders.fit import make_step, optimiser
from scall_jax.recommenders.graph import planned
from scall_jax.search import no_search
from scall_jax.state import carry_over, item_bias, search_key, segment_keys, storage_of
from scall_jax.tables.pruned import keep, prune, thresholded


def learn_thresholds(step: Callable, moments, params, live: jax.Array, count: jax.Array, steps: int):
    """Train until no more than `count` coordinates of live nodes are left, for at most `steps` steps.

    Args:
      step: (number of the step, parameters, moments) -> parameters, moments.
      moments: of the optimiser.
      params: `values` f32[N, width] and `thresholds`.
      live: bool[N].
      count: i32[].
      steps: static.

    Returns:
      Parameters at that moment, and steps made, i32[].
    """

    def goes_on(carry):
        number, params, _ = carry
        left = ((prune(params["values"], params["thresholds"]) != 0) & live[:, None]).sum()
        return (number < steps) & (left > count)

    def once(carry):
        number, params, moments = carry
        return number + 1, *step(number, params, moments)

    number, params, _ = jax.lax.while_loop(goes_on, once, (jnp.int32(0), params, moments))
    return params, number


def chooser(config: Config, progress: Callable | None = None) -> Chooser:
    """What is kept is found by a training of at most `search.probes` x `search.probe_steps` steps (as SCALL's search).

    It ends when what is left fits the budget. If steps run out before, or the last one prunes too much, the
    coordinates farthest beyond their thresholds are kept, so that the budget is spent exactly. The segment's training
    then starts from the values that the search began with. What is remembered is the plan found, until the segment is
    planned.
    """
    del progress
    options = config.pruned
    steps = config.search.probes * config.search.probe_steps
    fit_config = dataclasses.replace(config.fit, steps=steps)

    def search(state, segment):
        storage = storage_of(config, state, segment)
        full = thresholded(storage, options)
        params = carry_over(config, state, segment, state.plan, segment_keys(state, segment)[1], full)
        bias, _ = item_bias(config, segment)
        one, key = make_step(full, fit_config), search_key(state, segment)
        segment = segment._replace(graph=planned(segment.graph))

        def step(number, params, moments):
            return one(key, number, params, moments, state.plan, segment, bias)[:2]

        live = alive(segment)
        count = jnp.minimum(state.totals[segment.index], live.sum() * storage.width).astype(jnp.int32)
        params, _ = learn_thresholds(step, optimiser(fit_config).init(params), params, live, count, steps)
        found = keep(params["values"], params["thresholds"], live, count, state.held.units)
        return state._replace(chooser=found), no_search(config)

    def choose(state, segment, key):
        del segment, key
        return state.chooser, jnp.zeros(action_length(config.search))

    return Chooser(init=lambda key, storage: storage.plan(), choose=choose, search=search, when="before", first=True)
