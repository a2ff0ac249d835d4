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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
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
    return jnp.sign(x) * (jnp.abs(x).sum(1) / jnp.maximum(columns, 1))[:, None]


def _signed_fwd(x, columns, sharpness):
    return signed(x, columns, sharpness), x


def _signed_bwd(sharpness, x, g):
    density = sharpness / math.sqrt(math.pi) * jnp.exp(-((sharpness * x) ** 2))
    # The published code takes the scale for 1 here, and bounds the density.
    return jnp.clip(density, 1e-8, 1.0) * g, None


signed.defvjp(_signed_fwd, _signed_bwd)


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


class Taught(NamedTuple):
    """What a teacher ranks highest, for P users of the segment."""

    items: jax.Array  # i32[P, L + 1, R], items from 0 on, the best first
    weight: jax.Array  # f32[P, L + 1, R], 0 where there are no more items


def ranking_vectors(model: BinaryModel, latent: jax.Array, plan: BinaryPlan, graph: Graph) -> jax.Array:
    """All layers side by side, f32[N, (L + 1) W], rounded if the model rounds, and weighed."""
    found, weights = layers_of(latent, graph, model.fit.layers), layer_weights(model.fit.layers)
    if model.rounds:
        found = [signed(x, plan.columns, model.config.sharpness) for x in found]
    return jnp.concatenate([float(w) * x for w, x in zip(weights, found, strict=True)], axis=1)


def teach(config: BigearConfig, layers: list[jax.Array], segment: Segment) -> Taught:
    """The teacher's lists: of each layer the items of the largest scores, those that a user has met included.

    Args:
      config: says how many.
      layers: f32[N, W] each, of the teacher.
      segment: its users of positives, P of them, are taught.

    Returns:
      Taught.
    """
    users, capacity = sides(segment)
    top = min(config.top, capacity)
    known = jnp.arange(capacity) < segment.items
    fading = jnp.exp(-config.fading * (1 + jnp.arange(top, dtype=jnp.float32)))

    def of_user(user: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jnp.stack([x[users:] @ x[user] for x in layers])
        value, item = jax.lax.top_k(jnp.where(known[None, :], scores, -jnp.inf), top)
        return item.astype(jnp.int32), jnp.where(jnp.isfinite(value), fading[None, :], 0.0)

    taught = segment.positives.users
    return Taught(*jax.lax.map(of_user, taught, batch_size=min(_USERS_AT_ONCE, taught.shape[0])))


def distillation(config: BigearConfig, final: jax.Array, at: jax.Array, taught: Taught, segment: Segment) -> jax.Array:
    """How far a student's scores of what it is taught are from high: the sum over layers of weighted means.

    Args:
      config: says how many items a mean is over.
      final: f32[N, (L + 1) W], the student's.
      at: i32[B], places of users among those of the segment's positives.
      taught: of `teach`.
      segment: the data.

    Returns:
      f32[].
    """
    chex.assert_rank([final, at], [2, 1])
    users, count = sides(segment)[0], taught.items.shape[1]
    user = take(segment.positives.users, at)
    total = jnp.float32(0)
    for layer, columns in enumerate(jnp.split(final, count, axis=1)):
        own = take(columns, user)
        items = take(columns, users + take(taught.items[:, layer], at))
        scores = jnp.einsum("bd,brd->br", own, items)
        total += (jax.nn.softplus(-scores) * take(taught.weight[:, layer], at)).mean()
    return total


def make_binary_step(model: BinaryModel, taught: Taught | None = None) -> Step:
    """Build one step of training.

    Args:
      model: the teacher or the student.
      taught: what a student is taught; None for nothing.

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

        def objective(latent: jax.Array) -> jax.Array:
            final, own = ranking_vectors(model, latent, layout, graph), take(latent, rows)
            value = bpr.loss(bpr.margins(take(final, rows)), (own * own).sum(), item_bias, triples, fit.l2)
            if taught is None or not config.distillation:
                return value
            return value + config.distillation * distillation(config, final, at, taught, segment)

        latent = state.params.latent
        value, gradient = jax.value_and_grad(objective)(latent)
        updates, opt_state = adam.update(gradient, state.opt_state, latent)
        params = state.params._replace(latent=optax.apply_updates(latent, updates))
        return StepResult(TrainState(params, opt_state), value, scratch)

    return step
