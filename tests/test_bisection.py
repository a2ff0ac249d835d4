import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax.ops.bisection import HALVINGS, first_false, halfway


@pytest.mark.parametrize("most", [0, 1, 2, 15, 16, 17, 255, 256, 257, 5000])
def test_places_are_those_of_numpy(backend, most):
    """Ranges of an array, each ascending; asked for one place of each range, and for three under vmap."""
    del backend
    rng = np.random.default_rng(most)
    length = rng.integers(0, most + 1, 60)
    length[0] = most
    end = np.cumsum(length)
    start = end - length
    values = np.concatenate([*(np.sort(rng.integers(0, 50, n)) for n in length), [0]]).astype(np.int32)
    wanted = rng.integers(-1, 52, (3, 60)).astype(np.int32)
    expected = [
        [s + np.searchsorted(values[s:e], v) for s, e, v in zip(start, end, row, strict=True)] for row in wanted
    ]

    def places(wanted):
        at_most = jnp.int32(len(values) - 1)
        before = lambda at: jnp.asarray(values)[jnp.minimum(at, at_most)] < wanted[:, None]  # noqa: E731
        return first_false(jnp.asarray(start, jnp.int32), jnp.asarray(end, jnp.int32), before, most)

    np.testing.assert_array_equal(jax.jit(places)(wanted[0]), expected[0])
    np.testing.assert_array_equal(jax.jit(jax.vmap(places))(wanted), expected)


@pytest.mark.parametrize("wanted", [-3e38, -1.5, -1e-40, 0.0, 1e-42, 3e-30, 0.1, 7e20])
def test_halving_ends_at_neighbouring_numbers_wherever_they_are(wanted):
    low, high, wanted = np.float32(-3.2e38), np.float32(3.2e38), np.float32(wanted)
    middle = jax.jit(halfway)
    for _ in range(HALVINGS):
        between = np.asarray(middle(low, high))
        assert low.view(np.int32) == between.view(np.int32) or (low <= between <= high)
        low, high = (between, high) if between <= wanted else (low, between)
    # Compared as bits, since a processor may take numbers below 1e-38 for 0.
    assert low.view(np.int32) == wanted.view(np.int32) or np.nextafter(low, high) >= wanted
    assert np.nextafter(low, np.float32(np.inf)) >= high
