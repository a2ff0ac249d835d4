"""PEP (arXiv 2101.07577) over a stream: thresholds learned anew in every segment; what is kept is trained again."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from scall_jax.config import Config
from scall_jax.methods.context import SegmentContext
from scall_jax.methods.planner import OnProbes, SearchRecord, SizePlanner, no_action
from scall_jax.methods.probe import no_search
from scall_jax.methods.state import RunState
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.buffers import held_by_training
from scall_jax.recommenders.graph import with_chunks
from scall_jax.recommenders.make_step import make_step, optimiser
from scall_jax.recommenders.train_step import TrainState
from scall_jax.streams import sides
from scall_jax.tables.compressed.pruned import keep, prune, thresholded

ThresholdStep = Callable[[jax.Array, dict[str, jax.Array], Any], tuple[dict[str, jax.Array], Any]]
"""(number of the step i32[], parameters, optimiser state) -> parameters, optimiser state."""


def learn_thresholds(
    step: ThresholdStep,
    opt_state: Any,
    params: dict[str, jax.Array],
    active_mask: jax.Array,
    count: jax.Array,
    steps: int,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Train until the active nodes have no more than `count` coordinates left, for at most `steps` steps.

    Args:
      step: one step of training.
      opt_state: state of the optimiser at the start.
      params: parameters at the start, `values` f32[N, width] and `thresholds`.
      active_mask: bool[N], nodes that exist; coordinates of the others do not count.
      count: i32[], coordinates allowed.
      steps: the most steps, static.

    Returns:
      Parameters when the training ends, and the number of steps made, i32[].
    """
    chex.assert_rank([params["values"], active_mask, count], [2, 1, 0])
    chex.assert_equal_shape_prefix([params["values"], active_mask], 1)

    def unfinished(carry):
        number, params, _ = carry
        left = ((prune(params["values"], params["thresholds"]) != 0) & active_mask[:, None]).sum()
        return (number < steps) & (left > count)

    def once(carry):
        number, params, opt_state = carry
        return number + 1, *step(number, params, opt_state)

    number, params, _ = jax.lax.while_loop(unfinished, once, (jnp.int32(0), params, opt_state))
    return params, number


def pep_planner(config: Config, on_probes: OnProbes | None = None) -> SizePlanner:
    """Build the planner of PEP, for the storage `pruned`.

    The coordinates to keep come from a training of at most `search.probes` x `search.probe_steps` steps, as many as
    SCALL's search makes. It ends when those that are left fit the budget. If the steps run out before, or the last one
    prunes too much, the coordinates farthest beyond their thresholds are kept, so that the budget is spent exactly. The
    segment's training then starts from the values that the search began with. The planner's state is the plan found,
    which the segment then takes.

    Args:
      config: configuration of the run.
      on_probes: never called, because nothing is probed.

    Returns:
      SizePlanner whose state is a plan of the storage.
    """
    del on_probes
    options = config.pruned
    steps = config.search.planned_probes * config.search.probe_steps
    fit_config = dataclasses.replace(config.fit, steps=steps)

    def search(context: SegmentContext) -> tuple[RunState, SearchRecord]:
        storage, segment = context.storage, context.segment
        full = thresholded(storage, sides(segment)[0], options)
        params = context.warm_params(context.state.plan, context.keys().table, full)
        bias, _ = context.item_bias()
        train, key = make_step(full, fit_config), context.search_key()
        segment = segment._replace(graph=with_chunks(segment.graph))

        def step(number, params, opt_state):
            step_key = derive(key, Purpose.TRAINING_STEP, number)
            return train(step_key, TrainState(params, opt_state), context.state.plan, segment, bias).state

        active_mask = context.active_mask()
        count = jnp.minimum(context.budget_total(), active_mask.sum() * storage.width).astype(jnp.int32)
        params, _ = learn_thresholds(step, optimiser(fit_config).init(params), params, active_mask, count, steps)
        new_plan = keep(params["values"], params["thresholds"], active_mask, count, context.state.capacity.budget_units)
        return context.state._replace(planner=new_plan), no_search(config)

    def search_holds(context: SegmentContext) -> Any:
        full = thresholded(context.storage, sides(context.segment)[0], options)
        params = context.fresh_params(context.state.plan, context.search_key(), full)
        return held_by_training(full, params, keeps_best=False)

    def plan(context: SegmentContext, key: jax.Array) -> tuple[Any, jax.Array]:
        del key
        return context.state.planner, no_action(config)

    return SizePlanner(lambda key, storage: storage.plan(), plan, search_before=search, search_holds=search_holds)
