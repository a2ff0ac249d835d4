"""Discounted ridge regression: what non-stationary linear bandits know of an unknown vector.

Russac, Vernade and Cappé (Weighted Linear Bandits for Non-Stationary Environments, NeurIPS 2019, arXiv 1909.09146). Two
Gram matrices are kept, one discounted by γ and one by γ², since the variance of a sum of noise weighted by γ^age
weighs it by γ^(2 age). The ridge is not discounted: each round gives back what it loses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Ridge(NamedTuple):
    """Sums over rounds; all a regression on k features keeps."""

    gram: jax.Array  # f32[k, k], sum of γ^age x x' plus λ I
    squared: jax.Array  # f32[k, k], sum of γ^(2 age) x x' plus λ I
    moment: jax.Array  # f32[k], sum of γ^age r x
    weight: jax.Array  # f32[], sum of γ^(2 age) over observations


def empty(features: int, ridge: float) -> Ridge:
    """Nothing observed; `ridge` is λ."""
    start = ridge * jnp.eye(features)
    return Ridge(start, start, jnp.zeros(features), jnp.float32(0))


def observe(state: Ridge, x: jax.Array, reward: jax.Array, observation: jax.Array, gamma: float, ridge: float) -> Ridge:
    """One round of n observations, those of `seen`; the past is discounted once.

    Args:
      state: of the rounds before.
      x: f32[n, k]; reward: f32[n]; seen: bool[n].
      gamma, ridge: discount and λ.
    """
    x = jnp.where(observation[:, None], x, 0.0)
    # Gram matrices of many rows lose what the ridge adds if products are rounded
    outer = jnp.matmul(x.T, x, precision="highest")
    lost = ridge * jnp.eye(x.shape[1])
    return Ridge(
        gram=gamma * state.gram + outer + (1 - gamma) * lost,
        squared=gamma**2 * state.squared + outer + (1 - gamma**2) * lost,
        moment=gamma * state.moment + jnp.matmul(jnp.where(observation, reward, 0.0), x, precision="highest"),
        weight=gamma**2 * state.weight + observation.sum(),
    )


def estimate(state: Ridge) -> jax.Array:
    """The vector that explains the rewards, gram^-1 moment; f32[k]."""
    return _solve(state, state.moment)


def thompson(state: Ridge, noise: jax.Array) -> jax.Array:
    """The estimate plus gram^-1 squared^(1/2) noise; f32[k].

    The root is a Cholesky factor: for normal noise the law is that of the symmetric root.
    """
    return estimate(state) + _solve(state, jnp.matmul(jnp.linalg.cholesky(state.squared), noise, precision="highest"))


def width(state: Ridge, x: jax.Array) -> jax.Array:
    """(x' gram^-1 squared gram^-1 x)^(1/2) for each x f32[n, k]: how far noise of 1 moves the estimate along it."""
    solved = _solve(state, x.T)
    return jnp.sqrt(jnp.maximum((solved * jnp.matmul(state.squared, solved, precision="highest")).sum(0), 0.0))


def radius(state: Ridge, ridge: float, norm: float, noise: float, chance: float) -> jax.Array:
    """Widths by which the estimate may be off, with probability 1 - `chance`; f32[].

    √λ S + σ √(2 log(1/δ) + k log(1 + L² w / (λ k))) for unknown vectors of length S, noise σ and features of length
    L = 1. With one observation a round, w = (1 - γ^(2t)) / (1 - γ²) as in the paper.
    """
    features = state.moment.shape[0]
    spread = features * jnp.log1p(state.weight / (ridge * features))
    return ridge**0.5 * norm + noise * jnp.sqrt(2 * jnp.log(1 / chance) + spread)


def _solve(state, right):
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(state.gram, lower=True), right)
