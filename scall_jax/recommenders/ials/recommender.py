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
from scall_jax.recommenders.ials.config import HALF_LIVES, REGULARISATIONS, SOLVERS, UNOBSERVED, IalsConfig
from scall_jax.recommenders.ials.fit import Sweeps, require_table, solve
from scall_jax.recommenders.ials.fold_in import make_fold_in, solving
from scall_jax.recommenders.ials.gains import wide_fit
from scall_jax.recommenders.ials.problem import Hyper
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


class Grid(NamedTuple):
    """Candidates; what the config fixes has one value."""

    weights: np.ndarray
    """f32[G, 2], 1 / half-life and a0."""
    regularisations: np.ndarray
    """f32[L], lambda."""


def grid(config: IalsConfig) -> Grid:
    """The candidates of a config.

    >>> found = grid(IalsConfig(half_life=2.0, unobserved=0.25))
    >>> found.weights.tolist(), len(found.regularisations)
    ([[0.5, 0.25]], 3)
    """

    def values(fixed: float | None, few: tuple[float, ...]) -> tuple[float, ...]:
        return few if fixed is None else (fixed,)

    pairs = itertools.product(values(config.half_life, HALF_LIVES), values(config.unobserved, UNOBSERVED))
    weights = np.array([(1 / half_life, a0) for half_life, a0 in pairs], np.float32)
    return Grid(weights, np.array(values(config.regularisation, REGULARISATIONS), np.float32))


def hyper_of(candidates: Grid, chosen: Chosen | None) -> Hyper:
    """The leading candidates.

    Args:
      candidates: of `grid`.
      chosen: what is remembered; None for the candidates that lead before there is anything to judge by.

    Returns:
      Hyper.
    """
    chosen = _nothing_chosen(candidates, 1) if chosen is None else chosen
    fading, unobserved = jnp.asarray(candidates.weights)[chosen.weight]
    return Hyper(fading, unobserved, jnp.asarray(candidates.regularisations)[chosen.regularisation])


def _nothing_chosen(candidates: Grid, biases: int) -> Chosen:
    pairs, regularisations = len(candidates.weights), len(candidates.regularisations)
    return Chosen(
        weights=jnp.zeros(pairs),
        weight=jnp.int32(0),
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
    among, biases = grid(config), bias != "none"

    def make(sweeps: int):
        def make_fit(storage: Storage, progress=None):
            require_table(storage)

            def fit(key, params, layout, segment: Segment, item_bias, remembered=None, /) -> FitResult:
                del key
                hyper = hyper_of(among, remembered)
                length = _length(config, sweeps)
                solution = solve(
                    storage, length, params, layout, segment, item_bias, hyper, config.exponent, config.counts
                )
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
        return wide_fit(key, segment, item_bias, hyper, length, width, config.exponent, config.counts)

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
        choose=choose if biases or len(among.weights) > 1 or len(among.regularisations) > 1 else None,
        held_by_choice=lambda segment: jax.ShapeDtypeStruct(
            (config.choice_width * segment.frequency.shape[-1] + 2 * batch_numbers(),), jnp.float32
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
    loss = solution.losses[2 * solution.sweeps]
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

    def fitted(hyper: Hyper):
        length = _length(config, config.choice_sweeps)
        return solve(storage, length, start, layout, segment, no_bias, hyper, config.exponent, config.counts).params

    def fitness(params, item_bias) -> jax.Array:
        (metrics,) = _evaluate(storage, params, layout, segment, [sampled], item_bias, candidates=candidates)
        return metrics.fitness() * sampled.count

    # All fits are calls of one function in one loop, since each call of it would be compiled by itself.
    pairs, regularisations = (jnp.asarray(values) for values in among)
    count = (len(pairs) if len(pairs) > 1 else 0, len(regularisations) if len(regularisations) > 1 else 0)

    def attempt(number: jax.Array, chosen: Chosen) -> Chosen:
        of_pair = number < count[0]
        pair = jnp.where(of_pair, number, chosen.weight)
        other = jnp.where(of_pair, chosen.regularisation, number - count[0])
        fading, unobserved = pairs[pair]
        found = fitness(fitted(Hyper(fading, unobserved, regularisations[other])), no_bias)
        chosen = chosen._replace(
            weights=chosen.weights.at[pair].add(jnp.where(of_pair, found, 0.0)),
            regularisations=chosen.regularisations.at[other].add(jnp.where(of_pair, 0.0, found)),
        )
        # The regularisations are compared with the pair that leads once all pairs are judged.
        leads = jnp.argmax(chosen.weights).astype(jnp.int32)
        return chosen._replace(weight=jnp.where(number == count[0] - 1, leads, chosen.weight))

    if sum(count):
        chosen = jax.lax.fori_loop(0, sum(count), attempt, chosen)
        chosen = (
            chosen._replace(regularisation=jnp.argmax(chosen.regularisations).astype(jnp.int32)) if count[1] else chosen
        )
    if biases:
        params = fitted(hyper_of(among, chosen))
        numbers = jnp.arange(chosen.biases.shape[0], dtype=jnp.int32)
        totals = chosen.biases + jax.lax.map(lambda number: fitness(params, bias_of(segment, number)[0]), numbers)
        chosen = chosen._replace(biases=totals, bias=jnp.argmax(totals).astype(jnp.int32))
    return chosen


def _describe(among: Grid, chosen: Chosen) -> dict[str, Any]:
    values = np.asarray(among.weights[int(chosen.weight)], float).tolist()
    regularisation = float(among.regularisations[int(chosen.regularisation)])
    # JSON has no infinity, which stands for no fading.
    half_life = 1 / values[0] if values[0] else None
    return {"ials_half_life": half_life, "ials_unobserved": values[1], "ials_regularisation": regularisation}
