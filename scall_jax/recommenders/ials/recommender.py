"""Implicit alternating least squares as a `Recommender`: whole fits, with parameters chosen on valid (`choice`)."""

import functools

import jax
import jax.numpy as jnp

from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.recommenders.ials import choice, narrow_fits
from scall_jax.recommenders.ials.batches import batch_numbers
from scall_jax.recommenders.ials.choice import Chosen, bias_of, hyper_of
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.ials.fit import sweeps_of
from scall_jax.recommenders.ials.fold_in import make_fold_in, solving
from scall_jax.recommenders.ials.gains import wide_fit
from scall_jax.recommenders.ials.judged_fit import Setting, evaluate, make_final_fit, make_probe_fit
from scall_jax.recommenders.judge import Judging
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.recommenders.recommender import Recommender, WideFit
from scall_jax.recommenders.served import serve_propagated
from scall_jax.streams import Segment
from scall_jax.tables.storage import Storage


def ials_recommender(
    config: IalsConfig, valid_users: int, candidates: str, bias: str, mesh: MeshConfig = ONE
) -> Recommender:
    """Build the recommender.

    Args:
      config: of the fits.
      valid_users: users of valid that choices and fits look at, at most.
      candidates: as in `evaluation.RankingOptions`.
      bias: none, or decayed: a weight times the log of each item's decayed count is part of the model, in the loss and
        when ranking; weight and half-life are chosen on valid.
      mesh: devices that fits and ranking are spread over.

    Returns:
      Recommender; it remembers `Chosen`.
    """
    among, biases = choice.grid(config), bias != "none"
    setting = Setting(config, among, biases, Judging(valid_users, candidates), mesh)
    chooses = biases or len(among.weights) > 1 or len(among.regularisations) > 1
    return Recommender(
        make_fit=functools.partial(make_final_fit, setting),
        make_probe_fit=functools.partial(make_probe_fit, setting),
        evaluate=functools.partial(evaluate, mesh),
        held_by_training=lambda storage, params: (params, jnp.zeros(2 * batch_numbers())),
        serves_by=lambda known, graph_bytes, width: {},
        init=lambda: choice.nothing_chosen(among, biases),
        choose=functools.partial(narrow_fits.choose, config, among, biases, setting.judging, mesh) if chooses else None,
        held_by_choice=lambda segment, mean: jax.ShapeDtypeStruct(
            # All fits begin with the same vectors, which are kept beside those of the fit.
            (2 * config.width_of_choice(mean) * segment.frequency.shape[-1] + 2 * batch_numbers(),),
            jnp.float32,
        ),
        item_bias=_item_bias if biases else None,
        ranking_bias=choice.ranking_bias,
        wide_fit=functools.partial(_fit_wide, setting),
        describe=functools.partial(choice.describe, among),
        serve=functools.partial(_serve, setting),
        fold_in=make_fold_in(config.exponent),
    )


def _item_bias(chosen: Chosen, segment: Segment) -> tuple[jax.Array, jax.Array]:
    return bias_of(segment, chosen.bias)


def _fit_wide(
    setting: Setting, key, chosen: Chosen, segment: Segment, item_bias: jax.Array, sweeps: int, width: int
) -> WideFit:
    hyper = hyper_of(setting.among, chosen)
    length = sweeps_of(setting.config, sweeps)._replace(tolerance=0.0)
    return wide_fit(key, segment, item_bias, hyper, length, width, setting.weighting, setting.mesh)


def _serve(
    setting: Setting, storage: Storage, params, layout, segment: Segment, item_bias: jax.Array, remembered, width: int
):
    served = serve_propagated(LightGcn(storage, 0), params, layout, segment, item_bias, width)
    # A user is solved for beside the bias of the fit, as in training, and not beside that of ranking.
    fitted = _item_bias(remembered, segment)[0] if setting.biases else item_bias
    # Items that are not known have no vector of their own; those of size 0 have their side's.
    return served._replace(fold=solving(served.items, fitted, segment.items, hyper_of(setting.among, remembered)))
