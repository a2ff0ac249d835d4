"""Gaussian-process Thompson sampling (Chowdhury and Gopalan, ICML 2017), with forgetting from segment to segment.

A search of a dozen noisy probes does better to take the optimum of what its probes agree on than the luckiest probe.
The posterior smooths rewards over actions; those of a segment count relative to their mean, so that segments of
different difficulty can be held together, and older segments count less. The prior mean falls off from the middle of
the actions: a flat one hands what noise leaves undecided to the corners, where one side holds next to nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.policies.policy import Policy, PolicyConfig, Transition

_KEPT = 96  # probes in the model
_CANDIDATES = 512  # actions that a draw of the posterior chooses from
_JITTER = 1e-4


class GpState(NamedTuple):
    """The last probes in a ring."""

    action: jax.Array  # f32[C, A]
    reward: jax.Array  # f32[C]
    segment: jax.Array  # i32[C], by `begun`
    inserted: jax.Array  # i32[], probes ever made
    begun: jax.Array  # i32[], segments begun


def gp(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy for actions in (0, 1)^actions; it does not look at the observation."""
    del observation_length
    points = 11 if actions <= 3 else 6
    axis = (np.arange(points) + 0.5) / points
    # of numpy: a policy may be built inside one trace and serve in another
    lattice = np.stack(np.meshgrid(*[axis] * actions), -1).reshape(-1, actions).astype(np.float32)

    def kernel(a, b):
        square = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
        return jnp.exp(-square / (2 * config.length_scale**2))

    def prior(action):
        return -config.curvature * ((action - 0.5) ** 2).sum(-1)

    def init(key):
        del key
        return GpState(
            jnp.full((_KEPT, actions), 0.5),
            jnp.zeros(_KEPT),
            jnp.full(_KEPT, -1, jnp.int32),
            jnp.int32(0),
            jnp.int32(0),
        )

    def start_segment(state):
        return state._replace(begun=state.begun + 1)

    def posterior(state, at):
        """Of rewards by the spread within segments: mean at actions, and F f32[T, n]; F'F is what the kernel loses."""
        known = state.segment >= 0
        same = (state.segment[:, None] == state.segment[None, :]) & known[:, None] & known[None, :]

        def centred(values):
            mean = (same * values[None, :]).sum(1) / jnp.maximum(same.sum(1), 1)
            return jnp.where(known, values - mean, 0.0)

        reward = centred(state.reward)
        spread = jnp.sqrt((reward**2).sum() / jnp.maximum(known.sum(), 1)) + 1e-6
        age = (state.begun - state.segment).astype(jnp.float32)
        noise = jnp.where(known, config.noise_variance / config.discount**age, 1e6)
        factor = jnp.linalg.cholesky(kernel(state.action, state.action) + jnp.diag(noise))
        surprise = reward / spread - centred(prior(state.action))
        cross = jax.scipy.linalg.solve_triangular(factor, kernel(state.action, at), lower=True)
        white = jax.scipy.linalg.solve_triangular(factor, surprise, lower=True)
        return prior(at) + cross.T @ white, cross

    def act(state, key, observation):
        del observation
        candidate_key, noise_key = jax.random.split(key)
        at = jax.random.uniform(candidate_key, (_CANDIDATES, actions), minval=np.float32(1e-6))
        mean, cross = posterior(state, at)
        covariance = kernel(at, at) - cross.T @ cross + _JITTER * jnp.eye(_CANDIDATES)
        factor = jnp.linalg.cholesky(covariance)
        # rounding may leave the covariance a little indefinite: then the spread of each alone
        alone = jnp.sqrt(jnp.maximum(jnp.diag(covariance), 0.0))
        noise = jax.random.normal(noise_key, (_CANDIDATES,))
        drawn = jnp.where(jnp.isfinite(factor).all(), factor @ noise, alone * noise)
        return at[jnp.argmax(mean + drawn)]

    def greedy(state, observation):
        del observation
        mean, _ = posterior(state, lattice)
        return jnp.where(state.inserted > 0, jnp.asarray(lattice)[jnp.argmax(mean)], 0.5)

    def update(state, key, new: Transition):
        del key
        count = new.reward.shape[0]
        at = (state.inserted + jnp.arange(count, dtype=jnp.int32)) % _KEPT
        return state._replace(
            action=state.action.at[at].set(new.action),
            reward=state.reward.at[at].set(new.reward),
            segment=state.segment.at[at].set(state.begun),
            inserted=state.inserted + count,
        )

    return Policy(init, start_segment, act, greedy, update)
