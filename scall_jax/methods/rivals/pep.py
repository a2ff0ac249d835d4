"""PEP over a stream: thresholds learned at every segment, kept coordinates trained again from where they began."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.planner import SizePlanner, no_action
from scall_jax.methods.probe import no_search
from scall_jax.recommenders.fit import make_step, optimiser
from scall_jax.recommenders.graph import with_chunks
from scall_jax.tables.compressed.pruned import keep, prune, thresholded


def learn_thresholds(step: Callable, opt_state, params, active_mask: jax.Array, count: jax.Array, steps: int):
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
        left = ((prune(params["values"], params["thresholds"]) != 0) & active_mask[:, None]).sum()
        return (number < steps) & (left > count)

    def once(carry):
        number, params, opt_state = carry
        return number + 1, *step(number, params, opt_state)

    number, params, _ = jax.lax.while_loop(goes_on, once, (jnp.int32(0), params, opt_state))
    return params, number


def pep_planner(config: Config, progress: Callable | None = None) -> SizePlanner:
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

    def search(context):
        storage, segment = context.storage, context.segment
        full = thresholded(storage, options)
        params = context.warm_params(context.state.plan, context.keys().table, full)
        bias, _ = context.item_bias()
        one, key = make_step(full, fit_config), context.search_key()
        segment = segment._replace(graph=with_chunks(segment.graph))

        def step(number, params, opt_state):
            return one(key, number, params, opt_state, context.state.plan, segment, bias)[:2]

        active_mask = context.active_mask()
        count = jnp.minimum(context.budget_total(), active_mask.sum() * storage.width).astype(jnp.int32)
        params, _ = learn_thresholds(step, optimiser(fit_config).init(params), params, active_mask, count, steps)
        found = keep(params["values"], params["thresholds"], active_mask, count, context.state.capacity.budget_units)
        return context.state._replace(planner=found), no_search(config)

    def plan(context, key):
        del key
        return context.state.planner, no_action(config)

    return SizePlanner(init=lambda key, storage: storage.plan(), plan=plan, search_before=search)
