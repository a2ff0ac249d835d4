import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scall_jax.ops import indexing

NUMBERS = st.integers(0, 2**30)


@given(NUMBERS, st.integers(1, 2**30))
def test_division_is_that_of_python(a, b):
    x = jnp.int32(a)
    assert int(indexing.div(x, b)) == a // b
    assert int(indexing.rem(x, b)) == a % b
    assert int(indexing.ceil_div(x, b)) == -(-a // b)


def test_reading_and_writing_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x, at = rng.normal(size=(7, 5)).astype(np.float32), rng.integers(0, 7, (4, 3))
    np.testing.assert_array_equal(indexing.take(jnp.asarray(x), jnp.asarray(at)), x[at])
    np.testing.assert_array_equal(indexing.dynamic_slice(jnp.asarray(x), (jnp.int32(2), 1), (3, 2)), x[2:5, 1:3])
    written = indexing.dynamic_update_slice(jnp.asarray(x), jnp.zeros((3, 2)), (jnp.int32(4), 3))
    x[4:7, 3:5] = 0
    np.testing.assert_array_equal(written, x)


def test_no_index_is_compared_with_zero():
    def names(jaxpr):
        return {eqn.primitive.name for eqn in jaxpr.eqns}

    x, at = jnp.zeros((7, 5)), jnp.zeros(3, jnp.int32)
    assert "lt" in names(jax.make_jaxpr(lambda x, at: x[at])(x, at).jaxpr)
    assert names(jax.make_jaxpr(indexing.take)(x, at).jaxpr).isdisjoint({"lt", "select_n", "add"})
