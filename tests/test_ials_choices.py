"""What least squares choose after a fit, at its own widths, against float64 solves and a ranking of valid apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax.recommenders.ials import IalsConfig
from scall_jax.recommenders.ials.choice import RANKING_WEIGHTS, grid, hyper_of, nothing_chosen, ranking_bias
from scall_jax.recommenders.ials.judged_fit import Setting, make_final_fit
from scall_jax.recommenders.judge import Judging
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import sized
from tests.helpers import fitness_of_scores
from tests.ials_reference import A0, LAMBDA, Reference, small_ials_segment, small_ials_stream

WIDTH = 6
_CONFIG = IalsConfig(sweeps=2, unobserved=A0, regularisation=LAMBDA)
_AMONG = grid(_CONFIG)


@functools.cache
def _fit():
    """A compiled fit that chooses both, (what is remembered before it) -> its result, and its vectors and bias."""
    stream, segment = small_ials_stream(), small_ials_segment()
    users, items = stream.capacity.users, stream.capacity.items
    storage = sized(packed(WIDTH * (users + items), users, items, WIDTH), users, WIDTH)
    layout = storage.layout(jnp.array([WIDTH] * (users + items) + [0, 0]))
    start = storage.table.to_buffer(storage.fresh(jax.random.key(1), layout, 0.1))
    bias = jnp.asarray(np.random.default_rng(2).random(items) * 0.1, jnp.float32)
    setting = Setting(_CONFIG, _AMONG, True, Judging(4096, "all"))
    fit = jax.jit(functools.partial(make_final_fit(setting, storage), jax.random.key(0)))

    def call(before):
        found = fit(start, layout, segment, bias, before)
        return found, np.asarray(storage.vectors(storage.table.from_buffer(found.params), layout), np.float64)

    return call, np.asarray(bias, np.float64)


def _before(**totals):
    return nothing_chosen(_AMONG, biases=True)._replace(**{name: jnp.array(x) for name, x in totals.items()})


def _ranked(vectors, bias) -> float:
    """Sum over the users of valid of the mean of Recall@20 and NDCG@20."""
    first, known = small_ials_stream().capacity.users, int(small_ials_segment().items)
    of_items, bias = vectors[first : first + known], bias[:known]
    return sum(fitness_of_scores(small_ials_segment(), first, lambda user: of_items @ vectors[user] + bias))


@pytest.mark.parametrize("before", [(0.0, 0.0, 0.0), (0.0, 9.0, 0.0), (0.0, 0.0, 9.0)])
def test_users_have_the_half_life_that_has_ranked_best_so_far(before):
    """Whatever it is, items are those of the half-life that all half sweeps but the last had."""
    call, bias = _fit()
    found, vectors = call(_before(users=before))
    assert len(_AMONG.users_fadings) == 3
    candidates = []
    for fading in _AMONG.users_fadings.tolist():
        reference = Reference(vectors.copy(), np.array([WIDTH] * len(vectors) + [0, 0]), bias, fading)
        reference.half_sweep(0)
        candidates.append(reference.vectors)
    totals = np.array(before) + [_ranked(each, bias) for each in candidates]
    assert np.ptp(totals - before) > 1e-3
    np.testing.assert_allclose(found.remembered.users, totals, rtol=1e-4)
    leader = int(totals.argmax())
    distances = [np.abs(vectors - each).max() for each in candidates]
    assert distances[leader] < 1e-3 * np.abs(vectors).max() < 1e-1 * np.delete(distances, leader).min()
    # Probes of the next search, requests of new users and the record take it from here.
    assert float(hyper_of(_AMONG, found.remembered).users_fading) == _AMONG.users_fadings[leader]


@pytest.mark.parametrize("before", [(0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 9.0)])
def test_the_bias_ranks_with_the_weight_that_has_ranked_best_so_far(before):
    call, bias = _fit()
    found, vectors = call(_before(ranking=before))
    alone = np.array([_ranked(vectors, weight * bias) for weight in RANKING_WEIGHTS])
    assert np.ptp(alone) > 1e-3
    np.testing.assert_allclose(found.remembered.ranking, before + alone, rtol=1e-4)
    leader = int((before + alone).argmax())
    np.testing.assert_allclose(
        ranking_bias(found.remembered, jnp.asarray(bias)), RANKING_WEIGHTS[leader] * bias, rtol=1e-6
    )
