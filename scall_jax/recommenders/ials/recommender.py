"""Implicit alternating least squares as a `Recommender`: whole fits, with parameters chosen on valid (`choice`)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from scall_jax.recommenders.bias_weight import fitness_by_weight
from scall_jax.recommenders.fit import FitResult, as_served, first_users, from_buffer
from scall_jax.recommenders.ials import choice
from scall_jax.recommenders.ials.batches import batch_numbers
from scall_jax.recommenders.ials.choice import Chosen, bias_of, hyper_of
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.ials.fit import Solution, require_table, solve
from scall_jax.recommenders.ials.fold_in import make_fold_in, solving
from scall_jax.recommenders.ials.gains import wide_fit
from scall_jax.recommenders.ials.problem import Weighting
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.recommenders.recommender import Recommender, WideFit
from scall_jax.recommenders.served import serve_propagated
from scall_jax.streams import Segment
from scall_jax.tables.storage import Storage
from scall_jax.tables.table import Params

_MOST_RESIDUAL = 0.01
"""A relative residual above this says that float32 did not solve a system."""


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
    among, biases, weighting = choice.grid(config), bias != "none", Weighting(config.exponent, config.counts)

    def make(sweeps: int, final: bool):
        def make_fit(storage: Storage, progress=None):
            require_table(storage)

            def fit(key, params, layout, segment: Segment, item_bias, remembered=None, /) -> FitResult:
                del key
                hyper, sampled = hyper_of(among, remembered), first_users(segment.valid, valid_users)

                def attempt(params: Params, fading: jax.Array, users_only: jax.Array | bool) -> FitResult:
                    own = hyper._replace(users_fading=fading)
                    length = choice.sweeps_of(config, sweeps)
                    solution = solve(
                        storage, length, params, layout, segment, item_bias, own, weighting, users_only=users_only
                    )
                    return _judged(storage, solution, layout, segment, item_bias, valid_users, candidates)

                if final and len(among.users_fadings) > 1 and remembered is not None:
                    fadings = jnp.asarray(among.users_fadings)
                    result = _with_leading_fading(attempt, fadings, params, remembered, sampled.count)
                else:
                    result = attempt(params, hyper.users_fading, False)
                if final and biases and remembered is not None:
                    known = remembered if result.remembered is None else result.remembered
                    judge = functools.partial(fitness_by_weight, valid_users=valid_users, candidates=candidates)
                    weights = jnp.array(choice.RANKING_WEIGHTS)
                    found = judge(choice.evaluate, weights, storage, result.params, layout, segment, item_bias)
                    result = result._replace(remembered=known._replace(ranking=known.ranking + found))
                if progress is not None:
                    jax.debug.callback(progress, segment.index, result.steps, result.loss, result.fitness)
                return result

            return fit

        return make_fit

    def choose(key: jax.Array, chosen: Chosen, segment: Segment) -> Chosen:
        return choice.choose(config, among, biases, (valid_users, candidates), key, chosen, segment)

    def item_bias(chosen: Chosen, segment: Segment) -> tuple[jax.Array, jax.Array]:
        return bias_of(segment, chosen.bias)

    def fit_wide(key, chosen: Chosen, segment: Segment, item_bias: jax.Array, sweeps: int, width: int) -> WideFit:
        hyper = hyper_of(among, chosen)
        length = choice.sweeps_of(config, sweeps)._replace(tolerance=0.0)
        return wide_fit(key, segment, item_bias, hyper, length, width, weighting)

    def serve(storage: Storage, params, layout, segment: Segment, item_bias, remembered, width: int):
        served = serve_propagated(LightGcn(storage, 0), params, layout, segment, item_bias, width)
        hyper = hyper_of(among, remembered)
        # Items that are not known have no vector of their own; those of size 0 have their side's.
        return served._replace(fold=solving(served.items, item_bias, segment.items, hyper))

    return Recommender(
        make_fit=make(config.sweeps, True),
        # A probe takes what leads so far.
        make_probe_fit=make(config.probe_sweeps, False),
        evaluate=choice.evaluate,
        held_by_training=lambda storage, params: (params, jnp.zeros(2 * batch_numbers())),
        serves_by=lambda known, graph_bytes, width: {},
        init=lambda: choice.nothing_chosen(among, biases),
        choose=choose if biases or len(among.weights) > 1 or len(among.regularisations) > 1 else None,
        held_by_choice=lambda segment: jax.ShapeDtypeStruct(
            (config.choice_width * segment.frequency.shape[-1] + 2 * batch_numbers(),), jnp.float32
        ),
        item_bias=item_bias if biases else None,
        ranking_bias=choice.ranking_bias,
        wide_fit=fit_wide,
        describe=lambda chosen: choice.describe(among, chosen),
        serve=serve,
        fold_in=make_fold_in(config.exponent),
    )


def _judged(
    storage: Storage, solution: Solution, layout, segment: Segment, item_bias, valid_users: int, candidates: str
) -> FitResult:
    """A solution with its fitness on valid, as what is stored of it ranks."""
    served, params = storage, solution.params
    if storage.rounds:
        served, params = as_served(storage, storage.store(from_buffer(storage, params), layout), layout)
    sampled = first_users(segment.valid, valid_users)
    (metrics,) = choice.evaluate(served, params, layout, segment, [sampled], item_bias, candidates=candidates)
    # The last half sweep has the users' own half-life, so that its loss is another one.
    loss = jnp.where(solution.sweeps > 0, solution.losses[2 * solution.sweeps - 1], 0.0)
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


def _with_leading_fading(
    attempt: Callable[[Params, jax.Array, jax.Array], FitResult],
    fadings: jax.Array,
    params: Params,
    chosen: Chosen,
    valid_users: jax.Array,
) -> FitResult:
    """Fit, then solve for users with each of their half-lives and keep the leader on all valid parts so far.

    Args:
      attempt: (parameters, users' fading f32[], solve for users only bool[]) -> what came of it.
      fadings: f32[H].
      params: to start from.
      chosen: what is remembered.
      valid_users: i32[], users that a fitness is the mean of.

    Returns:
      FitResult, with what is to be remembered.
    """
    count = len(fadings)

    # One loop for the fit and its last half sweeps, since each call would be compiled by itself.
    def one(number: jax.Array, carry: tuple[FitResult, jax.Array]) -> tuple[FitResult, jax.Array]:
        before, totals = carry
        tried = number < count
        at = jnp.where(tried, number, jnp.argmax(totals))
        found = attempt(before.params, fadings[at], number > 0)
        totals = totals.at[at].add(jnp.where(tried, found.fitness * valid_users.astype(jnp.float32), 0.0))
        whole = number == 0
        found = found._replace(
            steps=jnp.where(whole, found.steps, before.steps),
            best_step=jnp.where(whole, found.best_step, before.best_step),
            loss=jnp.where(whole, found.loss, before.loss),
            bad_step=jnp.where(whole, found.bad_step, jnp.maximum(found.bad_step, before.bad_step)),
        )
        return found, totals

    shapes = jax.eval_shape(attempt, params, fadings[0], jnp.bool_(True))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)._replace(params=params)
    result, totals = jax.lax.fori_loop(0, count + 1, one, (start, chosen.users))
    return result._replace(remembered=chosen._replace(users=totals))
