"""Actors, critics and optimisers of the learned policies, in flax linen and optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

_LOG_STD = (-20.0, 2.0)


class Flat(NamedTuple):
    """A network whose weights are one vector."""

    init: Callable[[jax.Array], jax.Array]
    """key -> f32[W], initial weights."""
    apply: Callable[..., Any]
    """(weights f32[W], *inputs) -> outputs of the network."""


def flat(network: nn.Module, *inputs: ArrayLike) -> Flat:
    """A network with all weights in one vector.

    An optimiser, a target and every loop that carries them then handle one array, not a dozen.

    Args:
      network: any.
      *inputs: examples, for their shapes and dtypes; numpy arrays where the network is built inside a trace.

    Returns:
      Flat.

    >>> network = flat(Critic(widths=(4,)), np.zeros(2, np.float32), np.zeros(1, np.float32))
    >>> network.init(jax.random.key(0)).shape  # (2 + 1) x 4 + 4 and 4 x 1 + 1
    (21,)
    """
    leaves, tree = jax.tree.flatten(jax.eval_shape(network.init, jax.random.key(0), *inputs))
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def init(key):
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(network.init(key, *inputs))])

    def apply(weights, *inputs):
        parts = jnp.split(weights, ends)
        restored = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return network.apply(tree.unflatten(restored), *inputs)

    return Flat(init, apply)


def _dense(width: int, xavier: bool) -> nn.Dense:
    start = nn.initializers.xavier_uniform() if xavier else nn.initializers.lecun_normal()
    return nn.Dense(width, kernel_init=start)


class _Hidden(nn.Module):
    widths: tuple[int, ...]
    xavier: bool = False

    @nn.compact
    def __call__(self, x):
        """Apply the network."""
        for width in self.widths:
            x = nn.relu(_dense(width, self.xavier)(x))
        return x


class GaussianActor(nn.Module):
    """Observation to mean and log standard deviation of A normals, before squashing."""

    actions: int
    widths: tuple[int, ...]
    xavier: bool = False

    @nn.compact
    def __call__(self, observation):
        """Apply the network."""
        x = _Hidden(self.widths, self.xavier)(observation)
        mean, log_std = (_dense(self.actions, self.xavier)(x) for _ in range(2))
        return mean, jnp.clip(log_std, *_LOG_STD)


def _near_zero(key, shape, dtype=jnp.float32):
    """Weights of an actor's last layer, uniform from -.003 to .003 (Lillicrap et al., ICLR 2016, section 7)."""
    return jax.random.uniform(key, shape, dtype, -3e-3, 3e-3)


class Actor(nn.Module):
    """Observation to an action in (0, 1)^A; starts near the middle."""

    actions: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, observation):
        """Apply the network."""
        x = _Hidden(self.widths)(observation)
        return nn.sigmoid(nn.Dense(self.actions, kernel_init=_near_zero)(x))


class Critic(nn.Module):
    """Observation and action to a value."""

    widths: tuple[int, ...]
    xavier: bool = False

    @nn.compact
    def __call__(self, observation, action):
        """Apply the network."""
        x = _Hidden(self.widths, self.xavier)(jnp.concatenate([observation, action], axis=-1))
        return _dense(1, self.xavier)(x)[..., 0]


class TwinCritic(nn.Module):
    """Two critics of the same inputs; f32[..., 2]."""

    widths: tuple[int, ...]
    xavier: bool = False

    @nn.compact
    def __call__(self, observation, action):
        """Apply the network."""
        values = [Critic(self.widths, self.xavier, name=f"critic_{i}")(observation, action) for i in range(2)]
        return jnp.stack(values, axis=-1)


def decayed_adam(rate: float, weight_decay: float, clip: float | None = None) -> optax.GradientTransformation:
    """Adam on the gradient of a loss plus weight_decay/2 x the squared norm of the weights.

    Args:
      rate: learning rate.
      weight_decay: weight of the penalty.
      clip: largest norm of the gradient of the loss, before the penalty is added; None for no limit.

    Returns:
      An optimiser of optax.
    """
    steps = [optax.add_decayed_weights(weight_decay), optax.adam(rate)]
    return optax.chain(*([optax.clip_by_global_norm(clip)] if clip is not None else []), *steps)


def squash(mean: jax.Array, log_std: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Move normal variates to (0, 1) by (tanh + 1) / 2.

    The density is that of tanh, an action in (-1, 1), as usual for soft actor-critic (Haarnoja et al., arXiv
    1801.01290, appendix C); in (0, 1) it is larger by a constant factor.

    Args:
      mean: f32[..., A].
      log_std: f32[..., A].
      noise: f32[..., A], standard normal.

    Returns:
      (actions f32[..., A], log densities f32[...]).

    >>> action, log_density = squash(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1))
    >>> action.tolist(), round(float(log_density), 4)
    ([0.5], -0.9189)
    """
    chex.assert_equal_shape([mean, log_std, noise])
    chex.assert_type([mean, log_std, noise], float)
    raw = mean + jnp.exp(log_std) * noise
    normal = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    # This form of log(1 - tanh^2) is stable for large arguments.
    slope = 2 * (jnp.log(2.0) - raw - nn.softplus(-2 * raw))
    return (jnp.tanh(raw) + 1) / 2, (normal - slope).sum(-1)
