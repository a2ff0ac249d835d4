"""Searches without a network: random actions, a lattice, and a fitted quadratic surface.

What a learned policy has to beat at the same number of probes.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.policies.policy import Policy, PolicyConfig, Transition


class RandomState(NamedTuple):
    """Best probe of the segment."""

    action: jax.Array  # f32[A]
    reward: jax.Array  # f32[]


def random(config: PolicyConfig, observation: int, actions: int = 3) -> Policy:
    """Uniform actions; the best probe of the segment wins."""
    del config, observation

    def init(key):
        del key
        return RandomState(jnp.full(actions, 0.5), jnp.float32(-jnp.inf))

    def begin(state):
        return state._replace(reward=jnp.float32(-jnp.inf))

    def act(state, key, seen):
        del state, seen
        return jax.random.uniform(key, (actions,), minval=np.float32(1e-6))

    def update(state, key, new: Transition):
        del key
        best = jnp.argmax(new.reward)
        better = new.reward[best] > state.reward
        action = jnp.where(better, new.action[best], state.action)
        return RandomState(action, jnp.maximum(new.reward[best], state.reward))

    return Policy(init, begin, act, lambda state, seen: state.action, update)


class GridState(NamedTuple):
    """Rewards of the points of a lattice of G points."""

    order: jax.Array  # i32[G], in which points are tried
    tried: jax.Array  # i32[], probes so far
    weight: jax.Array  # f32[G], discounted number of probes
    earned: jax.Array  # f32[G], discounted sum of rewards


def lattice(points: int, actions: int) -> np.ndarray:
    """Centres of points^actions equal cells of the unit cube; f32[G, A]."""
    axis = (np.arange(points) + 0.5) / points
    return np.array(list(itertools.product(axis, repeat=actions)), np.float32)


def grid(config: PolicyConfig, observation: int, actions: int = 3) -> Policy:
    """A lattice in random order, over and over; the point with the best discounted mean reward wins."""
    del observation
    points = jnp.asarray(lattice(config.grid, actions))
    count = points.shape[0]

    def init(key):
        return GridState(
            jax.random.permutation(key, count).astype(jnp.int32), jnp.int32(0), jnp.zeros(count), jnp.zeros(count)
        )

    def begin(state):
        return state._replace(weight=config.discount * state.weight, earned=config.discount * state.earned)

    def act(state, key, seen):
        del seen
        # probes made at once must differ: they start a random way apart in the order
        ahead = jax.random.randint(key, (), 0, count)
        return points[state.order[(state.tried + ahead) % count]]

    def greedy(state, seen):
        del seen
        # below a hundredth of a probe nothing is known
        mean = jnp.where(state.weight > 0.01, state.earned / jnp.maximum(state.weight, 0.01), -jnp.inf)
        return jnp.where(state.weight.max() > 0.01, points[jnp.argmax(mean)], 0.5)

    def update(state, key, new: Transition):
        del key
        nearest = jnp.argmin(((new.action[:, None, :] - points[None]) ** 2).sum(-1), axis=1)
        return state._replace(
            tried=state.tried + new.reward.shape[0],
            weight=state.weight.at[nearest].add(1.0),
            earned=state.earned.at[nearest].add(new.reward),
        )

    return Policy(init, begin, act, greedy, update)


class SurfaceState(NamedTuple):
    """Moments of a Bayesian linear regression on F features."""

    precision: jax.Array  # f32[F, F], discounted sum of outer products
    moment: jax.Array  # f32[F], discounted sum of features x rewards
    square: jax.Array  # f32[], discounted sum of squared rewards
    weight: jax.Array  # f32[], discounted number of probes


def surface(config: PolicyConfig, observation: int, actions: int = 3) -> Policy:
    """A quadratic surface through all probes, older segments discounted; actions by Thompson sampling.

    Linear Thompson sampling with forgetting on the features 1, x, x x' of the action. The optimum of noisy rewards is
    taken where the surface is highest, not where a probe was lucky.
    """
    del observation
    candidates = jnp.asarray(lattice(11 if actions <= 3 else 6, actions))
    features = 1 + actions + actions * (actions + 1) // 2
    upper = np.triu_indices(actions)
    # the reward's level is free, slopes and curvature are held towards 0
    prior = jnp.diag(jnp.concatenate([jnp.full(1, 1e-3), jnp.full(features - 1, 0.1)]))

    def expand(x):
        x = 2 * x - 1
        products = (x[..., :, None] * x[..., None, :])[..., upper[0], upper[1]]
        return jnp.concatenate([jnp.ones((*x.shape[:-1], 1)), x, products], axis=-1)

    table = expand(candidates)

    def init(key):
        del key
        return SurfaceState(jnp.zeros((features, features)), jnp.zeros(features), jnp.float32(0), jnp.float32(0))

    def begin(state):
        return jax.tree.map(lambda x: config.discount * x, state)

    def posterior(state):
        factor = jnp.linalg.cholesky(state.precision + prior)
        mean = jax.scipy.linalg.cho_solve((factor, True), state.moment)
        left = state.square - mean @ state.moment
        variance = jnp.maximum(left, 1e-2) / jnp.maximum(state.weight - 3, 1.0)
        return mean, factor, variance

    def act(state, key, seen):
        del seen
        mean, factor, variance = posterior(state)
        noise_key, uniform_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (features,))
        drawn = mean + config.doubt * jnp.sqrt(variance) * jax.scipy.linalg.solve_triangular(factor.T, noise)
        best = candidates[jnp.argmax(table @ drawn)]
        first = jax.random.uniform(uniform_key, (actions,), minval=np.float32(1e-6))
        return jnp.where(state.weight < features / 2, first, best)

    def greedy(state, seen):
        del seen
        mean, _, _ = posterior(state)
        return jnp.where(state.weight > 0, candidates[jnp.argmax(table @ mean)], 0.5)

    def update(state, key, new: Transition):
        del key
        rows = expand(new.action)
        return SurfaceState(
            state.precision + rows.T @ rows,
            state.moment + rows.T @ new.reward,
            state.square + (new.reward**2).sum(),
            state.weight + new.reward.shape[0],
        )

    return Policy(init, begin, act, greedy, update)
