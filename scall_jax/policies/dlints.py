"""Discounted linear Thompson sampling in a random projection (D-LinTS-RP, arXiv 2202.03167).

Arms are the points of a lattice of actions. The context of an arm is the product of the observation, with a 1 in front,
and the monomials of the action up to degree 2: D numbers, which one fixed Gaussian matrix projects to a few dozen.
Rewards are linear in these, and old ones are discounted at every probe.
"""

import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.keys import Purpose, derive
from scall_jax.policies import discounted_regression as discounted
from scall_jax.policies.policy import Policy, PolicyConfig, Transition, checked
from scall_jax.policies.random_and_grid import lattice


class DlintsState(NamedTuple):
    """Sums over probes in d dimensions, and the seed of the projection."""

    seed: jax.Array  # u32[2], data of a typed key
    ridge: discounted.Ridge


def monomials(action: jax.Array) -> jax.Array:
    """Products of at most two coordinates of actions that are moved to (-1, 1).

    Args:
      action: f32[n, A] in (0, 1).

    Returns:
      f32[n, F] with F = 1 + A + A (A + 1) / 2.

    >>> monomials(jnp.array([[0.75, 0.5]])).tolist()
    [[1.0, 0.5, 0.0, 0.25, 0.0, 0.0]]
    """
    chex.assert_rank(action, 2)
    chex.assert_type(action, float)
    x = 2 * action - 1
    pairs = itertools.combinations_with_replacement(range(x.shape[1]), 2)
    columns = [jnp.ones_like(x[:, :1]), x, *(x[:, i : i + 1] * x[:, j : j + 1] for i, j in pairs)]
    return jnp.concatenate(columns, axis=1)


def dlints(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy.

    Args:
      config: its parameters.
      observation_length: O, numbers of an observation.
      actions: A, numbers of an action in (0, 1).

    Returns:
      Policy.

    >>> policy = dlints(PolicyConfig(), observation_length=2)
    >>> policy.init(jax.random.key(0)).ridge.gram.shape
    (32, 32)
    """
    arms = lattice(11 if actions <= 3 else 6, actions)

    def init(key):
        # A checkpoint has arrays alone: store the data of a threefry key, whatever the implementation of the run's key.
        seed = jax.random.bits(derive(key, Purpose.PROJECTION), (2,), jnp.uint32)
        return DlintsState(seed, discounted.empty(config.projected, config.ridge))

    def act(state, key, observation):
        noise = config.exploration * jax.random.normal(key, (config.projected,))
        return jnp.asarray(arms)[
            jnp.argmax(_project(config, state, observation, arms) @ discounted.thompson(state.ridge, noise))
        ]

    def greedy(state, observation):
        value = _project(config, state, observation, arms) @ discounted.estimate(state.ridge)
        return jnp.where(state.ridge.weight > 0, jnp.asarray(arms)[jnp.argmax(value)], 0.5)

    def update(state, key, new: Transition):
        del key

        def one(ridge, probe):
            observation, action, reward = probe
            contexts = _project(config, state, observation, action[None])
            observed = jnp.ones(1, bool)
            return discounted.add_round(ridge, contexts, reward[None], observed, config.forget, config.ridge), None

        ridge, _ = jax.lax.scan(one, state.ridge, (new.observation, new.action, new.reward))
        return state._replace(ridge=ridge)

    return checked(Policy(init, lambda state: state, act, greedy, update), observation_length, actions)


def _project(config: PolicyConfig, state: DlintsState, observation: jax.Array, action) -> jax.Array:
    """R' (observation x monomials), f32[n, d], without making the D numbers of a context.

    The projection R has entries N(0, 1/D) and is drawn again from its seed wherever it is needed. The observation is
    scaled to a mean square of 1, so that the ridge means the same at any D.
    """
    actions = action.shape[1]
    features = 1 + actions + actions * (actions + 1) // 2
    length = 1 + observation.shape[0]
    key = jax.random.wrap_key_data(state.seed, impl="threefry2x32")
    matrix = jax.random.normal(key, (length, features, config.projected)) / np.sqrt(length * features)
    observation = jnp.concatenate([jnp.ones(1), observation])
    observation = observation * jax.lax.rsqrt((observation**2).mean())
    by_monomial = jnp.tensordot(observation, matrix, 1, precision="highest")
    return jnp.matmul(monomials(action), by_monomial, precision="highest")
