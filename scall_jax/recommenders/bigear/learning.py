"""Steps of BiGeaR (Chen et al., KDD 2022, arXiv 2206.02115): what is lost by ranking by signs is trained against.

The formulas are those of the published code.
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from scall_jax.evaluation import KnownGraph
from scall_jax.ops.indexing import take
from scall_jax.ops.keys import Purpose, derive
from scall_jax.ops.sums import sum_over_columns
from scall_jax.recommenders import bpr
from scall_jax.recommenders.bigear.config import BigearConfig
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.fit_result import Step
from scall_jax.recommenders.graph import propagate
from scall_jax.recommenders.make_step import optimiser
from scall_jax.recommenders.train_step import StepResult, TrainState
from scall_jax.streams import Graph, Segment, sides
from scall_jax.tables.compressed.binary_layers import BinaryPlan, layer_weights

_USERS_AT_ONCE = 128


def signed(x: jax.Array, columns: jax.Array, sharpness: float) -> jax.Array:
    """Signs of vectors times their mean absolute coordinate.

    Args:
      x: f32[N, W], 0 from column d on.
      columns: i32[], d.
      sharpness: of the gradient that stands for a sign's; static.

    Returns:
      f32[N, W], 0 where x is.

    >>> signed(jnp.array([[3.0, -1.0, 0.0]]), jnp.int32(2), 1.0).tolist()
    [[2.0, -2.0, 0.0]]
    """
    chex.assert_rank([x, columns], [2, 0])
    return _signed(x, columns, sharpness)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _signed(x, columns, sharpness):
    del sharpness
    return jnp.sign(x) * (sum_over_columns(jnp.abs(x)) / jnp.maximum(columns, 1).astype(x.dtype))[:, None]


def _signed_fwd(x, columns, sharpness):
    return _signed(x, columns, sharpness), x


def _signed_bwd(sharpness, x, g):
    density = sharpness / math.sqrt(math.pi) * jnp.exp(-((sharpness * x) ** 2))
    # The published code takes the scale for 1 here, and bounds the density.
    return jnp.clip(density, 1e-8, 1.0) * g, None


_signed.defvjp(_signed_fwd, _signed_bwd)


def layers_of(latent: jax.Array, graph: Graph, layers: int) -> list[jax.Array]:
    """Vectors after 0 to L propagations, f32[N, W] each.

    Args:
      latent: f32[N, W].
      graph: of N nodes.
      layers: L; static.
    """
    chex.assert_rank(latent, 2)
    found = [latent]
    for _ in range(layers):
        found.append(propagate(graph, found[-1]))
    return found


class BinaryModel(NamedTuple):
    """What a step trains; static."""

    config: BigearConfig
    fit: FitConfig
    rounds: bool  # the student; the teacher ranks by vectors as they are


NOTHING = -1
"""Stands for an item where a teacher knows no more."""


def ranking_vectors(model: BinaryModel, latent: jax.Array, plan: BinaryPlan, graph: Graph) -> jax.Array:
    """All layers side by side, f32[N, (L + 1) W], rounded if the model rounds, and weighed."""
    found, weights = layers_of(latent, graph, model.fit.layers), layer_weights(model.fit.layers)
    if model.rounds:
        found = [signed(x, plan.columns, model.config.sharpness) for x in found]
    return jnp.concatenate([float(w) * x for w, x in zip(weights, found, strict=True)], axis=1)


def teach(config: BigearConfig, layers: list[jax.Array], segment: Segment) -> jax.Array:
    """The teacher's lists: of each layer the items of the largest scores, those that a user has met included.

    Args:
      config: says how many.
      layers: f32[N, W] each, of the teacher.
      segment: its users of positives, P of them, are taught.

    Returns:
      i32[P, L + 1, R], items from 0 on, the best first, and `NOTHING` where there are fewer.
    """
    users, capacity = sides(segment)
    top = min(config.top, capacity)
    known = jnp.arange(capacity) < segment.items

    def of_user(user: jax.Array) -> jax.Array:
        scores = jnp.stack([x[users:] @ x[user] for x in layers])
        value, item = jax.lax.top_k(jnp.where(known[None, :], scores, -jnp.inf), top)
        found = jnp.where(jnp.isfinite(value), item.astype(jnp.int32), NOTHING)
        return jnp.pad(found, ((0, 0), (0, config.top - top)), constant_values=NOTHING)

    taught = segment.positives.users
    return jax.lax.map(of_user, taught, batch_size=min(_USERS_AT_ONCE, taught.shape[0]))


def lesson(config: BigearConfig, users: jax.Array, met: jax.Array, items: jax.Array) -> jax.Array:
    """How far a student's scores of what it is taught in a layer are from high: a weighted mean.

    Args:
      config: how the items of a list are weighed.
      users: f32[B, W], the student's vectors of the layer.
      met: f32[B, R, W], those of the items of each list.
      items: i32[B, R], the lists.

    Returns:
      f32[].
    """
    chex.assert_rank([users, met, items], [2, 3, 2])
    fading = jnp.exp(-config.fading * (1 + jnp.arange(items.shape[1], dtype=jnp.float32)))
    scores = jnp.einsum("bd,brd->br", users, met)
    return (jax.nn.softplus(-scores) * jnp.where(items >= 0, fading[None, :], 0.0)).mean()


def make_binary_step(model: BinaryModel, taught: jax.Array | None = None) -> Step:
    """Build one step of training.

    Args:
      model: the teacher or the student.
      taught: i32[P, L + 1, R], what a student is taught, of `teach`; None for nothing.

    Returns:
      A function as `Step` describes it. It does not bring `BinaryParams.layers` up to date.
    """
    fit, config, adam = model.fit, model.config, optimiser(model.fit)

    def step(key, state: TrainState, layout: BinaryPlan, segment: Segment, item_bias, scratch=()) -> StepResult:
        users, graph = sides(segment)[0], segment.graph
        known = KnownGraph(graph, users, segment.items)
        triples = bpr.sample(key, segment.positives, known, fit.batch, fit.positives)
        rows = bpr.nodes(triples, users)
        bits = jax.random.bits(derive(key, Purpose.TAUGHT_USERS), (config.users,))
        at = bpr.below(bits, jnp.maximum(segment.positives.count, 1))
        learners, nobody = take(segment.positives.users, at), jnp.zeros((0, 0), jnp.int32)

        def objective(latent: jax.Array) -> jax.Array:
            margin, energy, learned = jnp.zeros_like(triples.weight), jnp.float32(0), jnp.float32(0)
            weights = layer_weights(fit.layers)
            for layer, (x, weight) in enumerate(zip(layers_of(latent, graph, fit.layers), weights, strict=True)):
                items = nobody if taught is None or not config.distillation else take(taught[:, layer], at)
                # One gather of all that is asked of a layer, whose transpose is one scatter. A sign is known from its
                # own row, so that no more rows than these are rounded.
                asked = jnp.concatenate([rows, learners, users + jnp.maximum(items, 0).ravel()])
                found = take(x, asked)
                if not layer:
                    energy = (found[: rows.shape[0]] ** 2).sum()
                found = float(weight) * (signed(found, layout.columns, config.sharpness) if model.rounds else found)
                margin += bpr.margins(found[: rows.shape[0]])
                if items.size:
                    _, own, met = jnp.split(found, [rows.shape[0], rows.shape[0] + config.users])
                    learned += lesson(config, own, met.reshape(*items.shape, -1), items)
            value = bpr.loss(margin, energy, item_bias, triples, fit.l2)
            return value + config.distillation * learned

        latent = state.params.latent
        value, gradient = jax.value_and_grad(objective)(latent)
        updates, opt_state = adam.update(gradient, state.opt_state, latent)
        params = state.params._replace(latent=optax.apply_updates(latent, updates))
        return StepResult(TrainState(params, opt_state), value, scratch)

    return step
