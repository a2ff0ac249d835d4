import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from scall_jax import sizes
from scall_jax.sizes.variates import log_gamma_variates, multinomial, poisson

_sample = jax.jit(sizes.sample, static_argnames="bounds")


@given(
    n=st.sampled_from([1, 7, 300]),
    mean=st.floats(0, 50),
    concentration=st.sampled_from([1e-6, 0.01, 1.0, 100.0, np.inf]),
    skew=st.floats(0, 20),
    minimum=st.sampled_from([0, 2]),
    seed=st.integers(0, 2**31 - 1),
)
@pytest.mark.slow
def test_sum_and_bounds_hold_for_every_draw(n, mean, concentration, skew, minimum, seed):
    shares = np.random.default_rng(seed).random(n) ** skew
    total, maximum = int(mean * n), 40
    drawn = np.asarray(_sample(jax.random.key(seed), shares, total, concentration, (minimum, maximum)))
    assert drawn.sum() == min(total, n * maximum)
    assert drawn.max() <= maximum
    if total >= n * minimum:
        assert drawn.min() >= minimum


@pytest.mark.slow
@pytest.mark.parametrize("total", [3, 40, 3000, 400_000])
def test_multinomial_draws_as_numpy_does(total):
    p = np.array([0.5, 0.2, 0.15, 0.1, 0.04, 0.01])
    keys = jax.random.split(jax.random.key(total), 4000)
    ours = np.asarray(jax.vmap(lambda k: multinomial(k, jnp.int32(total), jnp.float32(p)))(keys))
    theirs = np.random.default_rng(0).multinomial(total, p, 4000)
    assert (ours.sum(1) == total).all()
    for i in range(len(p)):
        edges = np.unique(np.quantile(theirs[:, i], np.linspace(0, 1, 9)[1:-1]))
        table = [np.bincount(np.searchsorted(edges, x[:, i]), minlength=len(edges) + 1) for x in (ours, theirs)]
        table = np.array(table)[:, np.sum(table, 0) > 0]
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-4
    np.testing.assert_allclose(ours.mean(0), total * p, atol=5 * np.sqrt(total * p.max() / 4000))
    expected = total * (np.diag(p) - np.outer(p, p))
    np.testing.assert_allclose(np.cov(ours.T), expected, atol=0.12 * total * 0.25)


@pytest.mark.parametrize("mean", [0.01, 1.0, 11.9, 12.1, 80.0, 1e4, 1e6])
def test_poisson_matches_its_distribution(mean):
    drawn = np.asarray(poisson(jax.random.key(3), jnp.full(200_000, mean)))
    edges = np.unique(scipy.stats.poisson.ppf(np.linspace(0, 1, 21)[1:-1], mean))
    observed = np.bincount(np.searchsorted(edges, drawn), minlength=len(edges) + 1)
    cdf = np.concatenate([[0], scipy.stats.poisson.cdf(edges, mean), [1]])
    kept = np.diff(cdf) > 0
    expected = len(drawn) * np.diff(cdf)[kept]
    assert scipy.stats.chisquare(observed[kept], expected * observed.sum() / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("shape", [0.05, 0.7, 1.0, 3.0, 400.0])
def test_gamma_matches_its_distribution(shape):
    drawn = np.exp(np.asarray(log_gamma_variates(jax.random.key(8), jnp.full(50_000, shape)), np.float64))
    assert scipy.stats.kstest(drawn, scipy.stats.gamma(shape).cdf).pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [0.3, 5.0, np.inf])
def test_moments_are_those_of_the_dirichlet_multinomial(concentration):
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    n, total, minimum = 4, 84, 1
    keys = jax.random.split(jax.random.key(1), 20_000)
    draw = jax.vmap(lambda key: sizes.sample(key, shares, total, concentration, (minimum, total)))
    counts = np.asarray(draw(keys)) - minimum
    trials = total - n * minimum
    inflation = 1.0 if np.isinf(concentration) else (trials + n * concentration) / (1 + n * concentration)
    variance = trials * shares * (1 - shares) * inflation
    np.testing.assert_allclose(counts.mean(0), trials * shares, atol=5 * np.sqrt(variance.max() / len(keys)))
    np.testing.assert_allclose(counts.var(0), variance, rtol=0.06)


def test_excess_goes_to_those_below_the_cap():
    drawn = np.asarray(_sample(jax.random.key(0), np.array([1000.0, 1.0, 1.0, 1.0]), 31, np.inf, (1, 10)))
    assert drawn[0] == 10 and drawn.sum() == 31


@pytest.mark.slow
def test_excess_is_drawn_as_a_multinomial_over_the_rest():
    # The first wins all 30 draws beyond the minimum and keeps 21; the other 9 are a multinomial over the rest.
    keys = jax.random.split(jax.random.key(0), 1000)
    shares = np.array([1e9, 3.0, 2.0, 1.0], np.float32)
    many = np.asarray(jax.vmap(lambda key: _sample(key, shares, 34, np.inf, (1, 22)))(keys))
    assert (many[:, 0] == 22).all() and (many.sum(1) == 34).all()
    p, trials = np.array([3, 2, 1]) / 6, 34 - 4 - 21
    np.testing.assert_allclose(many[:, 1:].mean(0) - 1, trials * p, atol=5 * np.sqrt(trials / 4 / 1000))
    np.testing.assert_allclose(many[:, 1:].var(0), trials * p * (1 - p), rtol=0.2)


def test_a_draw_that_rounding_puts_on_an_entity_that_does_not_exist_is_made_again(monkeypatch):
    """A float32 running sum may grow over trailing zeros, so that a draw falls on an entity that does not exist."""
    module = importlib.import_module("scall_jax.sizes.sample")  # `scall_jax.sizes.sample` is the function
    real = module.multinomial

    def misplaced(key, total, p):
        one = jnp.where(total > 5, 1, 0)  # misplaces one draw the first time, none when it is made again
        made = real(key, total, p)
        return made.at[jnp.argmax(made)].add(-one).at[-1].add(one)

    monkeypatch.setattr(module, "multinomial", misplaced)
    sample = jax.jit(lambda key: sizes.sample(key, np.ones(40), 100, np.inf, (0, 20), num_active=30))
    drawn = np.asarray(sample(jax.random.key(0)))
    assert drawn.sum() == 100 and (drawn[30:] == 0).all()


@pytest.mark.slow
def test_maps_over_keys_concentrations_and_totals():
    keys = jax.random.split(jax.random.key(0), 3)
    totals, concentrations = jnp.array([40, 90, 900]), jnp.array([0.5, 4.0, jnp.inf])
    shares = jnp.linspace(1, 2, 20)
    together = jax.vmap(lambda *a: sizes.sample(a[0], shares, a[1], a[2], (1, 30), num_active=15))(
        keys, totals, concentrations
    )
    for i in range(3):
        alone = sizes.sample(keys[i], shares, totals[i], concentrations[i], (1, 30), num_active=15)
        np.testing.assert_array_equal(together[i], alone)
    np.testing.assert_array_equal(together.sum(1), [40, 90, 450])
    assert (together[:, 15:] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"concentration": 0.0}, "concentration=0.0"), ({"shares": [1.0, -1.0]}, "shares"), ({"total": -1}, "total=-1")],
)
def test_bad_arguments(change, message):
    given = {"shares": [1.0, 2.0], "total": 5, "concentration": 1.0, "bounds": (1, 4)} | change
    with pytest.raises(ValueError, match=message):
        sizes.sample(jax.random.key(0), **given)
