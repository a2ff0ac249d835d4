"""Searches without a model: random actions and a lattice.

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


def random(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Uniform actions; the best probe of the segment wins."""
    del config, observation_length

    def init(key):
        del key
        return RandomState(jnp.full(actions, 0.5), jnp.float32(-jnp.inf))

    def start_segment(state):
        return state._replace(reward=jnp.float32(-jnp.inf))

    def act(state, key, observation):
        del state, observation
        return jax.random.uniform(key, (actions,), minval=np.float32(1e-6))

    def update(state, key, new: Transition):
        del key
        best = jnp.argmax(new.reward)
        better = new.reward[best] > state.reward
        action = jnp.where(better, new.action[best], state.action)
        return RandomState(action, jnp.maximum(new.reward[best], state.reward))

    return Policy(init, start_segment, act, lambda state, observation: state.action, update)


class GridState(NamedTuple):
    """Rewards of the points of a lattice of G points."""

    tried: jax.Array  # i32[G], probes so far
    weight: jax.Array  # f32[G], discounted number of probes
    earned: jax.Array  # f32[G], discounted sum of rewards


def lattice(points: int, actions: int) -> np.ndarray:
    """Centres of points^actions equal cells of the unit cube; f32[G, A]."""
    axis = (np.arange(points) + 0.5) / points
    return np.array(list(itertools.product(axis, repeat=actions)), np.float32)


def grid(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """A lattice in random order, none of it twice before all was tried; the best discounted mean reward wins."""
    del observation_length
    points = lattice(config.grid, actions)
    count = points.shape[0]

    def init(key):
        del key
        return GridState(jnp.zeros(count, jnp.int32), jnp.zeros(count), jnp.zeros(count))

    def start_segment(state):
        return state._replace(weight=config.discount * state.weight, earned=config.discount * state.earned)

    def act(state, key, observation):
        del observation
        # probes made at once are drawn without each other's knowledge: two of them may be the same
        return jnp.asarray(points)[jnp.argmin(state.tried + jax.random.uniform(key, (count,)))]

    def greedy(state, observation):
        del observation
        # below a hundredth of a probe nothing is known
        mean = jnp.where(state.weight > 0.01, state.earned / jnp.maximum(state.weight, 0.01), -jnp.inf)
        return jnp.where(state.weight.max() > 0.01, jnp.asarray(points)[jnp.argmax(mean)], 0.5)

    def update(state, key, new: Transition):
        del key
        nearest = jnp.argmin(((new.action[:, None, :] - points[None]) ** 2).sum(-1), axis=1)
        return state._replace(
            tried=state.tried.at[nearest].add(1),
            weight=state.weight.at[nearest].add(1.0),
            earned=state.earned.at[nearest].add(new.reward),
        )

    return Policy(init, start_segment, act, greedy, update)
