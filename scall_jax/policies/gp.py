"""Gaussian-process Thompson sampling (Chowdhury and Gopalan, ICML 2017, arXiv 1704.00445) that forgets old segments.

Of a dozen noisy probes, the optimum that they agree on is a better choice than the luckiest one. The posterior smooths
rewards over actions. Rewards of a segment count relative to their mean, so that segments of different difficulty can be
put together, and older segments count less. The prior mean falls off from the middle of the actions: a flat one would
leave what noise cannot decide to the corners, where one side has next to no parameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.keys import Purpose, derive
from scall_jax.policies.policy import Policy, PolicyConfig, Transition, checked

PROBES = 96
"""Probes that the model remembers, of all segments; more of one segment are refused."""
_SAMPLED = 512  # actions that a draw of the posterior is made at
_JITTER = 1e-4


class GpState(NamedTuple):
    """The last C probes in a ring."""

    action: jax.Array  # f32[C, A]
    reward: jax.Array  # f32[C]
    segment: jax.Array  # i32[C], by `begun`; -1 for none
    inserted: jax.Array  # i32[], probes ever made
    begun: jax.Array  # i32[], segments begun


def gp(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy, which does not look at the observation.

    Args:
      config: its parameters.
      observation_length: O, numbers of an observation.
      actions: A, numbers of an action in (0, 1).

    Returns:
      Policy.

    >>> policy = gp(PolicyConfig(), observation_length=2)
    >>> policy.init(jax.random.key(0)).action.shape
    (96, 3)
    """
    points = 11 if actions <= 3 else 6
    axis = (np.arange(points) + 0.5) / points
    # Use numpy, because a policy may be built while one program is traced and serve in another.
    choices = np.stack(np.meshgrid(*[axis] * actions), -1).reshape(-1, actions).astype(np.float32)

    def init(key):
        del key
        return GpState(
            action=jnp.full((PROBES, actions), 0.5),
            reward=jnp.zeros(PROBES),
            segment=jnp.full(PROBES, -1, jnp.int32),
            inserted=jnp.int32(0),
            begun=jnp.int32(0),
        )

    def start_segment(state):
        return state._replace(begun=state.begun + 1)

    def act(state, key, observation):
        del observation
        return _thompson(config, state, key)

    def greedy(state, observation):
        del observation
        mean, _ = _posterior(config, state, choices)
        return jnp.where(state.inserted > 0, jnp.asarray(choices)[jnp.argmax(mean)], 0.5)

    def update(state, key, new: Transition):
        del key
        count = new.reward.shape[0]
        at = (state.inserted + jnp.arange(count, dtype=jnp.int32)) % PROBES
        return state._replace(
            action=state.action.at[at].set(new.action),
            reward=state.reward.at[at].set(new.reward),
            segment=state.segment.at[at].set(state.begun),
            inserted=state.inserted + count,
        )

    return checked(Policy(init, start_segment, act, greedy, update), observation_length, actions)


def _kernel(config: PolicyConfig, a, b):
    square = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
    return jnp.exp(-square / (2 * config.length_scale**2))


def _prior(config: PolicyConfig, action):
    return -config.curvature * ((action - 0.5) ** 2).sum(-1)


def _posterior(config: PolicyConfig, state: GpState, at):
    """The posterior of rewards at n actions, in units of the spread of rewards within segments.

    Returns:
      (mean f32[n], F f32[C, n]): the covariance is the kernel minus F'F.
    """
    known = state.segment >= 0
    same = (state.segment[:, None] == state.segment[None, :]) & known[:, None] & known[None, :]

    def centred(values):
        mean = jnp.where(same, values[None, :], 0.0).sum(1) / jnp.maximum(same.sum(1), 1).astype(jnp.float32)
        return jnp.where(known, values - mean, 0.0)

    reward = centred(state.reward)
    spread = jnp.sqrt((reward**2).sum() / jnp.maximum(known.sum(), 1).astype(jnp.float32))
    # Rewards that are all equal differ from their mean by its rounding, of which nothing is to be learned.
    rounding = 1e-5 * jnp.abs(jnp.where(known, state.reward, 0.0)).max()
    spread = jnp.maximum(spread, rounding) + 1e-6
    age = (state.begun - state.segment).astype(jnp.float32)
    noise = jnp.where(known, config.noise_variance / config.discount**age, 1e6)
    factor = jnp.linalg.cholesky(_kernel(config, state.action, state.action) + jnp.diag(noise))
    surprise = reward / spread - centred(_prior(config, state.action))
    cross = jax.scipy.linalg.solve_triangular(factor, _kernel(config, state.action, at), lower=True)
    white = jax.scipy.linalg.solve_triangular(factor, surprise, lower=True)
    return _prior(config, at) + cross.T @ white, cross


def _thompson(config: PolicyConfig, state: GpState, key: jax.Array) -> jax.Array:
    """The best of some random actions by one draw of the posterior; f32[A]."""
    at = jax.random.uniform(derive(key, Purpose.CANDIDATES), (_SAMPLED, state.action.shape[1]), minval=np.float32(1e-6))
    mean, cross = _posterior(config, state, at)
    covariance = _kernel(config, at, at) - cross.T @ cross + _JITTER * jnp.eye(_SAMPLED)
    factor = jnp.linalg.cholesky(covariance)
    # Rounding may leave the covariance a little indefinite. Then each action is drawn by itself.
    alone = jnp.sqrt(jnp.maximum(jnp.diag(covariance), 0.0))
    noise = jax.random.normal(derive(key, Purpose.POSTERIOR), (_SAMPLED,))
    drawn = jnp.where(jnp.isfinite(factor).all(), factor @ noise, alone * noise)
    return at[jnp.argmax(mean + drawn)]
