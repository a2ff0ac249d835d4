"""A step of training: a batch of triples, and a descent by its gradient."""

import jax
import jax.numpy as jnp
import optax

from scall_jax import evaluation
from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.recommenders import bpr
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.fit_result import Step
from scall_jax.recommenders.lightgcn import LightGcn, embed
from scall_jax.recommenders.train_step import StepResult, StepSettings, TrainState, train_step
from scall_jax.streams import Graph
from scall_jax.tables.storage import Storage


def learning_rate(config: FitConfig) -> optax.Schedule:
    """Learning rate by the number of steps made, decayed in stairs.

    >>> rate = learning_rate(FitConfig(learning_rate=0.02, decay=0.5, decay_every=10))
    >>> [round(float(rate(step)), 4) for step in (0, 9, 10, 20)]
    [0.02, 0.02, 0.01, 0.005]
    """
    if config.decay == 1:  # optax would treat the end value as a lower bound on a growing rate
        return optax.constant_schedule(config.learning_rate)
    return optax.exponential_decay(
        config.learning_rate,
        config.decay_every,
        config.decay,
        staircase=True,
        end_value=min(config.least_learning_rate, config.learning_rate),
    )


def optimiser(config: FitConfig) -> optax.GradientTransformation:
    """Adam for storages without a table; `train_step` does the same for tables."""
    return optax.adam(learning_rate(config))


def make_step(storage: Storage, config: FitConfig, mesh: MeshConfig = ONE, own_graph: Graph | None = None) -> Step:
    """Build one step of training.

    Args:
      storage: of the parameters.
      config: of the training.
      mesh: devices that the step is called on together, each with its parts of a packed table and of the segment.
      own_graph: on several devices the rows of this one, from `graph.own_rows`.

    Returns:
      A function as `Step` describes it.
    """
    model, rate, adam = LightGcn(storage, config.layers, mesh), learning_rate(config), optimiser(config)
    settings = StepSettings(model, rate, config.l2)

    def step(key, state, layout, segment, item_bias, scratch=()):
        users, graph = storage.nodes - item_bias.shape[0], segment.graph if own_graph is None else own_graph
        known = evaluation.KnownGraph(segment.graph, users, segment.items)
        triples = bpr.sample(key, segment.positives, known, config.batch, config.positives, mesh)
        if storage.table is not None:
            return train_step(settings, state, layout, graph, triples, item_bias, scratch)
        rows = bpr.nodes(triples, users)

        def objective(params):
            final, own = embed(model, params, layout, graph, rows)
            value = bpr.loss(bpr.margins(final), (own * own).sum(), item_bias, triples, config.l2)
            if storage.auxiliary is not None:
                columns, weight = storage.auxiliary(layout)
                alone = bpr.margins(final * columns[None, :])
                value += weight * bpr.loss(alone, jnp.float32(0), item_bias, triples, 0.0)
            return value if storage.penalty is None else value + storage.penalty(params, layout)

        value, gradient = jax.value_and_grad(objective)(state.params)
        updates, opt_state = adam.update(gradient, state.opt_state, state.params)
        return StepResult(TrainState(optax.apply_updates(state.params, updates), opt_state), value, scratch)

    return step
