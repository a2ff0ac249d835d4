"""Parameters of implicit alternating least squares that a run chooses for itself, on the valid parts so far."""

import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.recommenders.ials.config import (
    HALF_LIVES,
    REGULARISATIONS,
    UNOBSERVED,
    USERS_HALF_LIVES,
    IalsConfig,
)
from scall_jax.recommenders.ials.problem import Hyper
from scall_jax.streams import POPULARITY, Segment

BIAS_WEIGHTS = (0.01, 0.03, 0.1, 0.3)
"""Weights of the items' bias to choose from, beside none."""
RANKING_WEIGHTS = (1.0, 0.0, 3.0, 10.0, 30.0)
"""What the bias of a fit may be multiplied by when ranking."""
_FIRST_DECAYED = POPULARITY.index("segment") + 1


class Chosen(NamedTuple):
    """What is remembered: how well each candidate has done on all validation parts so far, and the leaders.

    How well is the sum, over the users of these parts, of the mean of Recall@20 and NDCG@20.
    """

    weights: jax.Array
    """f32[G], of each pair of a half-life and an a0."""
    weight: jax.Array
    """i32[], the leading pair."""
    regularisations: jax.Array
    """f32[L], of each regularisation, with the pair that led at the time."""
    regularisation: jax.Array
    """i32[], the leading one."""
    biases: jax.Array
    """f32[B], of each bias, none first; [1] without biases."""
    bias: jax.Array
    """i32[], the leading one."""
    users: jax.Array
    """f32[H], of each half-life that users may be solved for a last time with, given the items of the fit."""
    ranking: jax.Array
    """f32[R], of each of `RANKING_WEIGHTS`, with the fits; [0] without biases."""


class Grid(NamedTuple):
    """Candidates; what the config fixes has one value."""

    weights: np.ndarray
    """f32[G, 2], 1 / half-life and a0."""
    users_fadings: np.ndarray
    """f32[H], 1 / half-life when users are solved for a last time."""
    regularisations: np.ndarray
    """f32[L], lambda."""


def grid(config: IalsConfig) -> Grid:
    """The candidates of a config.

    >>> found = grid(IalsConfig(half_life=2.0, unobserved=0.25))
    >>> found.weights.tolist(), found.users_fadings.tolist(), len(found.regularisations)
    ([[0.5, 0.25]], [0.5], 3)
    """

    def values(fixed: float | None, few: tuple[float, ...]) -> tuple[float, ...]:
        return few if fixed is None else (fixed,)

    pairs = itertools.product(values(config.half_life, HALF_LIVES), values(config.unobserved, UNOBSERVED))
    weights = np.array([(1 / half_life, a0) for half_life, a0 in pairs], np.float32)
    of_users = config.half_life if config.users_half_life is None else config.users_half_life
    users_fadings = 1 / np.array(values(of_users, USERS_HALF_LIVES), np.float32)
    return Grid(weights, users_fadings, np.array(values(config.regularisation, REGULARISATIONS), np.float32))


def hyper_of(candidates: Grid, chosen: Chosen | None) -> Hyper:
    """The leading candidates.

    Args:
      candidates: of `grid`.
      chosen: what is remembered; None for the candidates that lead before there is anything to judge by.

    Returns:
      Hyper.
    """
    chosen = nothing_chosen(candidates, biases=False) if chosen is None else chosen
    fading, unobserved = jnp.asarray(candidates.weights)[chosen.weight]
    of_users = jnp.asarray(candidates.users_fadings)[jnp.argmax(chosen.users)]
    return Hyper(fading, unobserved, jnp.asarray(candidates.regularisations)[chosen.regularisation], of_users)


def nothing_chosen(candidates: Grid, biases: bool) -> Chosen:
    """What is remembered before the first segment, with a bias to choose or without one."""
    pairs, of_users, regularisations = (len(values) for values in candidates)
    return Chosen(
        weights=jnp.zeros(pairs),
        weight=jnp.int32(0),
        regularisations=jnp.zeros(regularisations),
        # The middle one, with which the pairs of the first segment are compared.
        regularisation=jnp.int32(regularisations // 2),
        biases=jnp.zeros(1 + len(BIAS_WEIGHTS) * (len(POPULARITY) - _FIRST_DECAYED) if biases else 1),
        bias=jnp.int32(0),
        users=jnp.zeros(of_users),
        ranking=jnp.zeros(len(RANKING_WEIGHTS) if biases else 0),
    )


def ranking_bias(chosen: Chosen, item_bias: jax.Array) -> jax.Array:
    """The bias f32[V] to rank with, of that of a fit."""
    if not chosen.ranking.shape[0]:
        return item_bias
    return jnp.array(RANKING_WEIGHTS)[jnp.argmax(chosen.ranking)] * item_bias


def bias_of(segment: Segment, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The items' bias of a candidate.

    Args:
      segment: the data.
      number: i32[], 0 for none, else 1 + weight x half-lives + half-life.

    Returns:
      f32[V], and the row of `Segment.popularity` that it comes from, i32[], -1 if none.
    """
    chex.assert_rank(number, 0)
    halves = len(POPULARITY) - _FIRST_DECAYED
    at = jnp.maximum(number - 1, 0)
    row = _FIRST_DECAYED + at % halves
    weight = jnp.where(number > 0, jnp.asarray(BIAS_WEIGHTS)[at // halves], 0.0)
    return weight * jnp.log1p(segment.popularity[row]), jnp.where(number > 0, row, -1).astype(jnp.int32)


def describe(among: Grid, chosen: Chosen) -> dict[str, Any]:
    """Entries of a line of metrics; on the host."""
    values = np.asarray(among.weights[int(chosen.weight)], float).tolist()
    regularisation = float(among.regularisations[int(chosen.regularisation)])
    of_users = float(among.users_fadings[int(np.argmax(chosen.users))])
    # JSON has no infinity, which stands for no fading.
    half_lives = [1 / fading if fading else None for fading in (values[0], of_users)]
    return {
        "ials_half_life": half_lives[0],
        "ials_users_half_life": half_lives[1],
        "ials_unobserved": values[1],
        "ials_regularisation": regularisation,
        "bias_weight": RANKING_WEIGHTS[int(np.argmax(chosen.ranking))] if chosen.ranking.shape[0] else None,
    }
