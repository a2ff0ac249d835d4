"""Implicit alternating least squares as a `Recommender`: whole fits, and parameters that it chooses on valid."""

import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.fit import FitResult, as_served, evaluate_params, first_users, from_buffer, to_buffer
from scall_jax.recommenders.ials.batches import batch_numbers
from scall_jax.recommenders.ials.config import (
    HALF_LIVES,
    REGULARISATIONS,
    SOLVERS,
    UNOBSERVED,
    USERS_HALF_LIVES,
    IalsConfig,
)
from scall_jax.recommenders.ials.fit import Sweeps, require_table, solve
from scall_jax.recommenders.ials.fold_in import make_fold_in, solving
from scall_jax.recommenders.ials.gains import wide_fit
from scall_jax.recommenders.ials.problem import Hyper, Weighting
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.recommenders.recommender import Recommender, WideFit
from scall_jax.recommenders.served import serve_propagated
from scall_jax.streams import POPULARITY, Segment, active_mask, sides
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import sized
from scall_jax.tables.storage import Storage

BIAS_WEIGHTS = (0.01, 0.03, 0.1, 0.3)
"""Weights of the items' bias to choose from, beside none."""
_FIRST_DECAYED = POPULARITY.index("segment") + 1
_MOST_RESIDUAL = 0.01
"""A relative residual above this says that float32 did not solve a system."""


class Chosen(NamedTuple):
    """What is remembered: how well each candidate has done on all validation parts so far, and the leaders.

    How well is the sum, over the users of these parts, of the mean of Recall@20 and NDCG@20.
    """

    weights: jax.Array
    """f32[G, H], of each pair of a half-life and an a0, with each of the users' half-lives."""
    weight: jax.Array
    """i32[], the leading pair."""
    users: jax.Array
    """i32[], the users' half-life that leads with it."""
    regularisations: jax.Array
    """f32[L], of each regularisation, with what led at the time."""
    regularisation: jax.Array
    """i32[], the leading one."""
    biases: jax.Array
    """f32[B], of each bias, none first; [1] without biases."""
    bias: jax.Array
    """i32[], the leading one."""


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
    chosen = _nothing_chosen(candidates, 1) if chosen is None else chosen
    return _hyper(candidates, chosen.weight, chosen.users, chosen.regularisation)


def _hyper(candidates: Grid, weight: jax.Array, users: jax.Array, regularisation: jax.Array) -> Hyper:
    fading, unobserved = jnp.asarray(candidates.weights)[weight]
    of_users = jnp.asarray(candidates.users_fadings)[users]
    return Hyper(fading, unobserved, jnp.asarray(candidates.regularisations)[regularisation], of_users)


def _nothing_chosen(candidates: Grid, biases: int) -> Chosen:
    pairs, of_users, regularisations = (len(values) for values in candidates)
    return Chosen(
        weights=jnp.zeros((pairs, of_users)),
        weight=jnp.int32(0),
        users=jnp.int32(0),
        regularisations=jnp.zeros(regularisations),
        # The middle one, with which the pairs of the first segment are compared.
        regularisation=jnp.int32(regularisations // 2),
        biases=jnp.zeros(biases),
        bias=jnp.int32(0),
    )


def ials_recommender(config: IalsConfig, valid_users: int, candidates: str, bias: str) -> Recommender:
    """Build the recommender.

    Args:
      config: of the fits.
      valid_users: users of valid that choices and fits look at, at most.
      candidates: as in `evaluation.RankingOptions`.
      bias: none, or decayed: a weight times the log of each item's decayed count is part of the model, in the loss and
        when ranking; weight and half-life are chosen on valid.

    Returns:
      Recommender; it remembers `Chosen`.
    """
    among, biases, weighting = grid(config), bias != "none", Weighting(config.exponent, config.counts)

    def make(sweeps: int):
        def make_fit(storage: Storage, progress=None):
            require_table(storage)

            def fit(key, params, layout, segment: Segment, item_bias, remembered=None, /) -> FitResult:
                del key
                hyper = hyper_of(among, remembered)
                length = _length(config, sweeps)
                solution = solve(storage, length, params, layout, segment, item_bias, hyper, weighting)
                result = _judged(storage, solution, layout, segment, item_bias, valid_users, candidates)
                if progress is not None:
                    jax.debug.callback(progress, segment.index, result.steps, result.loss, result.fitness)
                return result

            return fit

        return make_fit

    def choose(key: jax.Array, chosen: Chosen, segment: Segment) -> Chosen:
        return _choose(config, among, biases, (valid_users, candidates), key, chosen, segment)

    def item_bias(chosen: Chosen, segment: Segment) -> tuple[jax.Array, jax.Array]:
        return bias_of(segment, chosen.bias)

    def fit_wide(key, chosen: Chosen, segment: Segment, item_bias: jax.Array, sweeps: int, width: int) -> WideFit:
        hyper = hyper_of(among, chosen)
        length = _length(config, sweeps)._replace(tolerance=0.0)
        return wide_fit(key, segment, item_bias, hyper, length, width, weighting)

    def serve(storage: Storage, params, layout, segment: Segment, item_bias, remembered, width: int):
        served = serve_propagated(LightGcn(storage, 0), params, layout, segment, item_bias, width)
        hyper = hyper_of(among, remembered)
        # Items that are not known have no vector of their own; those of size 0 have their side's.
        return served._replace(fold=solving(served.items, item_bias, segment.items, hyper))

    def init() -> Chosen:
        halves = len(POPULARITY) - _FIRST_DECAYED
        count = 1 + len(BIAS_WEIGHTS) * halves if biases else 1
        return _nothing_chosen(among, count)

    return Recommender(
        make_fit=make(config.sweeps),
        make_probe_fit=make(config.probe_sweeps),
        evaluate=_evaluate,
        held_by_training=lambda storage, params: (params, jnp.zeros(2 * batch_numbers())),
        serves_by=lambda known, graph_bytes, width: {},
        init=init,
        choose=choose if biases or any(len(values) > 1 for values in among) else None,
        # Vectors to start each fit from, and those of the fit.
        held_by_choice=lambda segment: jax.ShapeDtypeStruct(
            (2 * config.choice_width * segment.frequency.shape[-1] + 2 * batch_numbers(),), jnp.float32
        ),
        item_bias=item_bias if biases else None,
        wide_fit=fit_wide,
        describe=lambda chosen: _describe(among, chosen),
        serve=serve,
        fold_in=make_fold_in(config.exponent),
    )


def _length(config: IalsConfig, sweeps: int) -> Sweeps:
    return Sweeps(sweeps, config.tolerance, SOLVERS[config.solver], config.cg_steps)


def _evaluate(storage: Storage, params, layout, segment, parts, item_bias, **options):
    return evaluate_params(LightGcn(storage, 0), params, layout, segment, parts, item_bias, **options)


def _judged(storage: Storage, solution, layout, segment: Segment, item_bias, valid_users: int, candidates: str):
    """A solution with its fitness on valid, as what is stored of it ranks."""
    served, params = storage, solution.params
    if storage.rounds:
        served, params = as_served(storage, storage.store(from_buffer(storage, params), layout), layout)
    sampled = first_users(segment.valid, valid_users)
    (metrics,) = _evaluate(served, params, layout, segment, [sampled], item_bias, candidates=candidates)
    # The last half sweep has the users' own half-life, so that its loss is another one.
    loss = solution.losses[2 * solution.sweeps - 1]
    fitness = jnp.where(sampled.count > 0, metrics.fitness(), -loss)
    bad = ~jnp.isfinite(loss) | ~(solution.residual < _MOST_RESIDUAL)
    return FitResult(
        params=solution.params,
        steps=solution.sweeps,
        best_step=solution.sweeps,
        fitness=fitness,
        first_fitness=fitness,
        loss=loss,
        bad_step=jnp.where(bad, solution.sweeps, -1),
        by_user=metrics.by_user[:, :2],
    )


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


def _choose(config: IalsConfig, among: Grid, biases: bool, judged_by: tuple[int, str], key, chosen: Chosen, segment):
    """Follow the leader: narrow fits with each candidate, judged on all validation parts so far."""
    users, items = sides(segment)
    width, (valid_users, candidates) = config.choice_width, judged_by
    storage = sized(packed(width * (users + items), users, items, width), users, width)
    sizes = jnp.concatenate([jnp.where(active_mask(segment), width, 0), jnp.zeros(2, jnp.int32)])
    layout = storage.layout(sizes)
    start = to_buffer(storage, storage.fresh(derive(key, Purpose.TABLE), layout, 0.1))
    sampled = first_users(segment.valid, valid_users)
    no_bias = jnp.zeros(items)

    def fitted(params, hyper: Hyper, users_only):
        length, weighting = _length(config, config.choice_sweeps), Weighting(config.exponent, config.counts)
        return solve(storage, length, params, layout, segment, no_bias, hyper, weighting, users_only=users_only).params

    def fitness(params, item_bias) -> jax.Array:
        (metrics,) = _evaluate(storage, params, layout, segment, [sampled], item_bias, candidates=candidates)
        return metrics.fitness() * sampled.count

    # All fits are calls of one function in one loop, since each call of it would be compiled by itself.
    pairs, of_users, regularisations = (len(values) for values in among)
    first = pairs * of_users if pairs * of_users > 1 else 0
    second = regularisations if regularisations > 1 else 0

    def attempt(number: jax.Array, carry: tuple[Chosen, Any]) -> tuple[Chosen, Any]:
        chosen, params = carry
        of_pair = number < first
        pair = jnp.where(of_pair, number // of_users, chosen.weight)
        users = jnp.where(of_pair, number % of_users, chosen.users)
        other = jnp.where(of_pair, chosen.regularisation, number - first)
        # A pair's items are the same for all of the users' half-lives.
        users_only = of_pair & (users > 0)
        params = fitted(jnp.where(users_only, params, start), _hyper(among, pair, users, other), users_only)
        found = fitness(params, no_bias)
        chosen = chosen._replace(
            weights=chosen.weights.at[pair, users].add(jnp.where(of_pair, found, 0.0)),
            regularisations=chosen.regularisations.at[other].add(jnp.where(of_pair, 0.0, found)),
        )
        # The regularisations are compared with what leads once all pairs are judged.
        leads, judged = jnp.argmax(chosen.weights).astype(jnp.int32), number == first - 1
        chosen = chosen._replace(
            weight=jnp.where(judged, leads // of_users, chosen.weight),
            users=jnp.where(judged, leads % of_users, chosen.users),
        )
        return chosen, params

    if first + second:
        chosen, _ = jax.lax.fori_loop(0, first + second, attempt, (chosen, start))
        chosen = (
            chosen._replace(regularisation=jnp.argmax(chosen.regularisations).astype(jnp.int32)) if second else chosen
        )
    if biases:
        params = fitted(start, hyper_of(among, chosen), False)
        numbers = jnp.arange(chosen.biases.shape[0], dtype=jnp.int32)
        totals = chosen.biases + jax.lax.map(lambda number: fitness(params, bias_of(segment, number)[0]), numbers)
        chosen = chosen._replace(biases=totals, bias=jnp.argmax(totals).astype(jnp.int32))
    return chosen


def _describe(among: Grid, chosen: Chosen) -> dict[str, Any]:
    values = np.asarray(among.weights[int(chosen.weight)], float).tolist()
    regularisation = float(among.regularisations[int(chosen.regularisation)])
    # JSON has no infinity, which stands for no fading.
    half_lives = [
        1 / fading if fading else None for fading in (values[0], float(among.users_fadings[int(chosen.users)]))
    ]
    return {
        "ials_half_life": half_lives[0],
        "ials_users_half_life": half_lives[1],
        "ials_unobserved": values[1],
        "ials_regularisation": regularisation,
    }
