"""Discounted linear Thompson sampling in a random projection (D-LinTS-RP, arXiv 2202.03167).

Arms are the points of a lattice of actions. The context of an arm is the product of what is seen, 1 in front, with the
monomials of the action up to degree 2: D numbers, which one fixed Gaussian matrix brings down to a few dozen. Rewards
are linear in those, and old ones are discounted at every probe.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.policies import discounted_regression as discounted
from scall_jax.policies.policy import Policy, PolicyConfig, Transition
from scall_jax.policies.random_and_grid import lattice


class DlintsState(NamedTuple):
    """Sums over probes in d dimensions, and what the projection is drawn from."""

    seed: jax.Array  # u32[2], data of a typed key
    ridge: discounted.Ridge


def monomials(action: jax.Array) -> jax.Array:
    """Products of at most two coordinates of actions f32[n, A] in (0, 1), moved to (-1, 1); f32[n, F]."""
    x = 2 * action - 1
    pairs = itertools.combinations_with_replacement(range(x.shape[1]), 2)
    columns = [jnp.ones_like(x[:, :1]), x, *(x[:, i : i + 1] * x[:, j : j + 1] for i, j in pairs)]
    return jnp.concatenate(columns, axis=1)


def dlints(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy for observations f32[observation] and actions in (0, 1)^actions.

    The projection R has entries N(0, 1/D) and is drawn again from its seed wherever it is needed. What is seen is
    scaled to a mean square of 1, so that the ridge means the same at any D.
    """
    arms = lattice(11 if actions <= 3 else 6, actions)
    features = 1 + actions + actions * (actions + 1) // 2
    full = (1 + observation_length) * features

    def projected(state, observation, action):
        """R' (seen x monomials), f32[n, d], without the contexts of full length."""
        key = jax.random.wrap_key_data(state.seed, impl="threefry2x32")
        matrix = jax.random.normal(key, (1 + observation_length, features, config.projected)) / np.sqrt(full)
        observation = jnp.concatenate([jnp.ones(1), observation])
        observation = observation * jax.lax.rsqrt((observation**2).mean())
        by_monomial = jnp.tensordot(observation, matrix, 1, precision="highest")
        return jnp.matmul(monomials(action), by_monomial, precision="highest")

    def init(key):
        data = jax.random.key_data(key)
        # a checkpoint holds arrays: the seed is a key of one kind, whatever the run's
        seed = data if data.shape == (2,) else jax.random.bits(key, (2,), jnp.uint32)
        return DlintsState(seed, discounted.empty(config.projected, config.ridge))

    def act(state, key, observation):
        noise = config.exploration * jax.random.normal(key, (config.projected,))
        return jnp.asarray(arms)[
            jnp.argmax(projected(state, observation, arms) @ discounted.thompson(state.ridge, noise))
        ]

    def greedy(state, observation):
        value = projected(state, observation, arms) @ discounted.estimate(state.ridge)
        return jnp.where(state.ridge.weight > 0, jnp.asarray(arms)[jnp.argmax(value)], 0.5)

    def update(state, key, new: Transition):
        del key

        def one(ridge, probe):
            observation, action, reward = probe
            z = projected(state, observation, action[None])
            known = jnp.ones(1, bool)
            return discounted.observe(ridge, z, reward[None], known, config.forget, config.ridge), None

        ridge, _ = jax.lax.scan(one, state.ridge, (new.observation, new.action, new.reward))
        return state._replace(ridge=ridge)

    return Policy(init, lambda state: state, act, greedy, update)
