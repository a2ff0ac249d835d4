"""Discounted ridge regression, from which non-stationary linear bandits estimate an unknown vector.

Russac, Vernade and Cappé (Weighted Linear Bandits for Non-Stationary Environments, NeurIPS 2019, arXiv 1909.09146). The
state has two Gram matrices, one discounted by γ and one by γ², because noise that is weighted by γ^age has a variance
weighted by γ^(2 age). The ridge is not discounted: each round adds what discounting takes off it.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Ridge(NamedTuple):
    """Sums over rounds, the whole state of a regression on k features."""

    gram: jax.Array  # f32[k, k], sum of γ^age x x' plus λ I
    squared: jax.Array  # f32[k, k], sum of γ^(2 age) x x' plus λ I
    moment: jax.Array  # f32[k], sum of γ^age r x
    weight: jax.Array  # f32[], sum of γ^(2 age) over observations


def empty(features: int, ridge: float) -> Ridge:
    """The state before the first round.

    Args:
      features: k.
      ridge: λ.

    Returns:
      Ridge.

    >>> empty(features=2, ridge=0.5).gram.tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    start = ridge * jnp.eye(features)
    return Ridge(start, start, jnp.zeros(features), jnp.float32(0))


def add_round(state: Ridge, x: jax.Array, reward: jax.Array, observed: jax.Array, gamma: float, ridge: float) -> Ridge:
    """Discount the past once and add a round of at most n observations.

    Args:
      state: of the rounds before.
      x: f32[n, k], features.
      reward: f32[n].
      observed: bool[n], rows that count.
      gamma: discount γ.
      ridge: λ.

    Returns:
      Ridge.

    >>> state = add_round(empty(1, 1.0), jnp.ones((2, 1)), jnp.array([3.0, 9.0]), jnp.array([True, False]), 0.9, 1.0)
    >>> round(float(estimate(state)[0]), 4)
    1.5
    """
    chex.assert_rank([x, reward], [2, 1])
    chex.assert_type([x, reward, observed], [float, float, bool])
    chex.assert_equal_shape([reward, observed])
    chex.assert_shape(x, (reward.shape[0], state.moment.shape[0]))
    x = jnp.where(observed[:, None], x, 0.0)
    # Rounded products would lose what the ridge adds to the Gram matrices of many rows.
    outer = jnp.matmul(x.T, x, precision="highest")
    lost = ridge * jnp.eye(x.shape[1])
    return Ridge(
        gram=gamma * state.gram + outer + (1 - gamma) * lost,
        squared=gamma**2 * state.squared + outer + (1 - gamma**2) * lost,
        moment=gamma * state.moment + jnp.matmul(jnp.where(observed, reward, 0.0), x, precision="highest"),
        weight=gamma**2 * state.weight + observed.sum().astype(jnp.float32),
    )


def estimate(state: Ridge) -> jax.Array:
    """The vector that explains the rewards, gram^-1 moment; f32[k]."""
    chex.assert_rank([state.gram, state.moment], [2, 1])
    return _solve(state, state.moment)


def thompson(state: Ridge, noise: jax.Array) -> jax.Array:
    """A draw of Thompson sampling, the estimate plus gram^-1 squared^(1/2) noise.

    The root is a Cholesky factor: for normal noise the distribution is that of the symmetric root.

    Args:
      state: of k features.
      noise: f32[k], normal.

    Returns:
      f32[k].
    """
    chex.assert_equal_shape([state.moment, noise])
    return estimate(state) + _solve(state, jnp.matmul(jnp.linalg.cholesky(state.squared), noise, precision="highest"))


def confidence_width(state: Ridge, x: jax.Array) -> jax.Array:
    """How far noise of standard deviation 1 moves the estimate along x: (x' gram^-1 squared gram^-1 x)^(1/2).

    Args:
      state: of k features.
      x: f32[n, k].

    Returns:
      f32[n].

    >>> confidence_width(empty(features=1, ridge=4.0), jnp.array([[2.0]])).tolist()
    [1.0]
    """
    chex.assert_shape(x, (None, state.moment.shape[0]))
    solved = _solve(state, x.T)
    return jnp.sqrt(jnp.maximum((solved * jnp.matmul(state.squared, solved, precision="highest")).sum(0), 0.0))


def radius(state: Ridge, ridge: float, norm: float, noise: float, chance: float) -> jax.Array:
    """How many confidence widths the estimate is off, at most, with probability 1 - `chance`.

    √λ S + σ √(2 log(1/δ) + k log(1 + L² w / (λ k))) for features of length L = 1. With one observation a round,
    w = (1 - γ^(2t)) / (1 - γ²) as in the paper.

    Args:
      state: of k features.
      ridge: λ.
      norm: S, length of the unknown vector.
      noise: σ, standard deviation of the noise of a reward.
      chance: δ.

    Returns:
      f32[].

    >>> round(float(radius(empty(features=1, ridge=1.0), ridge=1.0, norm=1.0, noise=0.0, chance=0.1)), 4)
    1.0
    """
    chex.assert_rank([state.moment, state.weight], [1, 0])
    features = state.moment.shape[0]
    spread = features * jnp.log1p(state.weight / (ridge * features))
    return ridge**0.5 * norm + noise * jnp.sqrt(2 * jnp.log(1 / chance) + spread)


def _solve(state, right):
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(state.gram, lower=True), right)
