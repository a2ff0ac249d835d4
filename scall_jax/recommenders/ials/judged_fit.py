"""Fits at a run's own widths, and what the run learns from how they rank on valid."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.recommenders.bias_weight import Fitted, fitness_by_weight
from scall_jax.recommenders.buffers import as_would_be_served
from scall_jax.recommenders.fit_result import Fit, FitResult
from scall_jax.recommenders.ials.choice import RANKING_WEIGHTS, Chosen, Grid, hyper_of
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.ials.fit import Solution, Sweeps, require_table, solve, sweeps_of
from scall_jax.recommenders.ials.problem import Weighting
from scall_jax.recommenders.judge import Judging, first_users
from scall_jax.recommenders.judge_on_devices import evaluate_on_devices
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.streams import Segment
from scall_jax.tables.storage import Storage
from scall_jax.tables.table import Params

_MOST_RESIDUAL = 0.01
"""A relative residual above this says that float32 did not solve a system."""
_PROBE_TOLERANCE = 3e-3
"""Relative residual to which a probe's users are solved for: its vectors are ranked by, and then dropped."""


class Setting(NamedTuple):
    """What the fits of a run share; static."""

    config: IalsConfig
    among: Grid
    """Candidates of what is chosen."""
    biases: bool
    """The weight of the items' bias is chosen."""
    judging: Judging
    mesh: MeshConfig = ONE
    """Devices that a fit and its ranking are spread over."""

    @property
    def weighting(self) -> Weighting:
        """Of the loss."""
        return Weighting(self.config.exponent, self.config.counts)


def evaluate(mesh: MeshConfig, storage: Storage, params, layout, segment, parts, item_bias, **options):
    """`EvaluateParams` of vectors that rank by their inner products, on the devices of a mesh."""
    return evaluate_on_devices(mesh, LightGcn(storage, 0), params, layout, segment, parts, item_bias, **options)


def make_final_fit(setting: Setting, storage: Storage, progress: Callable | None = None) -> Fit:
    """Build the fit of a segment, after which users' half-life and the weight of the bias are chosen.

    Args:
      setting: of the run.
      storage: of the vectors.
      progress: progress(segment, sweeps, loss, fitness) is called on the host after each fit.

    Returns:
      A function as `Fit` describes it; what it remembers is `Chosen`.

    Raises:
      ValueError: a storage without a table.
    """
    require_table(storage)

    def fit(key, params, layout, segment: Segment, item_bias, remembered: Chosen | None = None, /) -> FitResult:
        del key
        length = sweeps_of(setting.config, setting.config.sweeps)
        attempt = functools.partial(_attempt, setting, storage, length, layout, segment, item_bias)
        attempt, hyper = functools.partial(attempt, remembered), hyper_of(setting.among, remembered)
        if len(setting.among.users_fadings) > 1 and remembered is not None:
            fadings, sampled = jnp.asarray(setting.among.users_fadings), _sampled(setting, segment)
            result = _with_leading_fading(attempt, fadings, params, remembered, sampled.count)
        else:
            result = attempt(params, hyper.users_fading, False)
        if setting.biases and remembered is not None:
            known = remembered if result.remembered is None else result.remembered
            fitted = Fitted(storage, result.params, layout, segment, item_bias)
            ranks = functools.partial(evaluate, setting.mesh)
            found = fitness_by_weight(ranks, jnp.array(RANKING_WEIGHTS), fitted, setting.judging, setting.mesh)
            result = result._replace(remembered=known._replace(ranking=known.ranking + found))
        if progress is not None:
            jax.debug.callback(progress, segment.index, result.steps, result.loss, result.fitness)
        return result

    return fit


def make_probe_fit(setting: Setting, storage: Storage) -> Fit:
    """Build the fit of a probe, which takes what leads so far; the arguments are those of `make_final_fit`."""
    require_table(storage)

    def fit(key, params, layout, segment: Segment, item_bias, remembered: Chosen | None = None, /) -> FitResult:
        del key
        fading = hyper_of(setting.among, remembered).users_fading
        length = sweeps_of(setting.config, setting.config.probe_sweeps)._replace(last_tolerance=_PROBE_TOLERANCE)
        return _attempt(setting, storage, length, layout, segment, item_bias, remembered, params, fading, False)

    return fit


def _sampled(setting: Setting, segment: Segment):
    return first_users(segment.valid, setting.judging.valid_users)


def _attempt(
    setting: Setting,
    storage: Storage,
    length: Sweeps,
    layout: Any,
    segment: Segment,
    item_bias: jax.Array,
    remembered: Chosen | None,
    params: Params,
    users_fading: jax.Array,
    users_only: jax.Array | bool,
) -> FitResult:
    """Fit from some parameters, or solve for users only, and judge what came of it."""
    hyper = hyper_of(setting.among, remembered)._replace(users_fading=users_fading)
    solution = solve(
        storage,
        length,
        params,
        layout,
        segment,
        item_bias,
        hyper,
        setting.weighting,
        users_only=users_only,
        mesh=setting.mesh,
    )
    return _judged(setting, storage, solution, layout, segment, item_bias)


def _judged(
    setting: Setting, storage: Storage, solution: Solution, layout, segment: Segment, item_bias: jax.Array
) -> FitResult:
    """A solution with its fitness on valid, as what is stored of it ranks."""
    served, params = as_would_be_served(storage, solution.params, layout, setting.mesh)
    sampled, candidates = _sampled(setting, segment), setting.judging.candidates
    (metrics,) = evaluate(setting.mesh, served, params, layout, segment, [sampled], item_bias, candidates=candidates)
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
