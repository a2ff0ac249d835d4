"""Searches without a model, random actions and a lattice, which a learned policy has to beat at as many probes."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.policies.policy import Policy, PolicyConfig, Transition, checked


class RandomState(NamedTuple):
    """Best probe of the segment."""

    action: jax.Array  # f32[A]
    reward: jax.Array  # f32[]


def random(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy of uniform actions, by which the best probe of the segment wins.

    Args:
      config: not used.
      observation_length: O, numbers of an observation.
      actions: A, numbers of an action in (0, 1).

    Returns:
      Policy.

    >>> policy = random(PolicyConfig(), observation_length=2)
    >>> key, observation = jax.random.key(0), jnp.ones((1, 2))
    >>> state = policy.start_segment(policy.init(key))
    >>> action = policy.act(state, key, observation[0])
    >>> state = policy.update(state, key, Transition(observation, action[None], jnp.array([2.0]), observation))
    >>> policy.greedy(state, observation[0]).tolist() == action.tolist()
    True
    """
    del config

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

    policy = Policy(init, start_segment, act, lambda state, observation: state.action, update)
    return checked(policy, observation_length, actions)


class GridState(NamedTuple):
    """Rewards of the points of a lattice of G points."""

    tried: jax.Array  # i32[G], probes so far
    weight: jax.Array  # f32[G], discounted number of probes
    earned: jax.Array  # f32[G], discounted sum of rewards


def lattice(points: int, actions: int) -> np.ndarray:
    """Centres of equal cells of the unit cube.

    Args:
      points: on each axis.
      actions: A, number of axes.

    Returns:
      f32[G, A] with G = points^A.

    >>> lattice(points=2, actions=2).tolist()
    [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    """
    axis = (np.arange(points) + 0.5) / points
    return np.array(list(itertools.product(axis, repeat=actions)), np.float32)


def grid(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy of a lattice in random order, by which the best discounted mean reward wins.

    No point is tried in a second round before all have been tried.

    Args:
      config: its parameters.
      observation_length: O, numbers of an observation.
      actions: A, numbers of an action in (0, 1).

    Returns:
      Policy.

    >>> policy = grid(PolicyConfig(grid=2), observation_length=2)
    >>> policy.init(jax.random.key(0)).tried.shape
    (8,)
    """
    points = lattice(config.grid, actions)
    count = points.shape[0]

    def init(key):
        del key
        return GridState(jnp.zeros(count, jnp.int32), jnp.zeros(count), jnp.zeros(count))

    def start_segment(state):
        return state._replace(weight=config.discount * state.weight, earned=config.discount * state.earned)

    def act(state, key, observation):
        del observation
        # Probes of a round are drawn independently, so that two of them may be the same.
        return jnp.asarray(points)[jnp.argmin(state.tried.astype(jnp.float32) + jax.random.uniform(key, (count,)))]

    def greedy(state, observation):
        del observation
        # A point whose probes have been discounted to less than a hundredth of a probe counts as not tried.
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

    return checked(Policy(init, start_segment, act, greedy, update), observation_length, actions)
