"""Random keys: all derivations are in one file, and no two draws of a run use the same key."""

import ast
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scall_jax
from scall_jax import make_run
from scall_jax.config import SearchConfig
from scall_jax.ops.keys import Purpose, by_side, derive, derive_many
from scall_jax.policies import PolicyConfig
from tests.helpers import small_config, small_stream

DRAWS = ("bits", "normal", "uniform", "exponential", "categorical", "randint", "gumbel", "permutation", "choice")
PACKAGE = Path(scall_jax.__file__).parent


def test_keys_are_derived_in_one_file():
    found = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("jax.random", "random", "jrandom"):
                found.setdefault(node.attr, set()).add(file.relative_to(PACKAGE).as_posix())
    assert found.pop("fold_in") == {"ops/keys.py"}
    assert not {"split", "clone", "PRNGKey"} & set(found)
    drawing = set(found) - {"key_data", "wrap_key_data", "key_impl", "key"}
    assert drawing <= set(DRAWS), f"{drawing - set(DRAWS)}: let the test below collect the keys of these draws too"


def test_purposes_differ_from_each_other_and_from_numbers():
    values = [int(purpose) for purpose in Purpose]
    assert len(set(values)) == len(values)
    # Entities, steps and rounds are counted in i32, so that no count is a purpose.
    assert min(values) > 2**31 - 1
    assert max(values) < 2**32


def test_children_are_those_of_fold_in():
    key = jax.random.key(3)
    by_hand = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, 0xC0DE0008), 4), 1)
    assert derive(key, Purpose.ACTION, 4, 1) == by_hand
    assert derive_many(key, Purpose.ACTION, 4, count=3)[1] == by_hand


def test_what_an_entity_draws_does_not_depend_on_the_number_of_entities():
    key = jax.random.key(0)
    for draw in (jax.random.bits, jax.random.normal, jax.random.exponential):
        for shape in ((), (3,)):
            small = np.asarray(by_side(draw, key, 5, 4, shape))
            large = np.asarray(by_side(draw, key, 1000, 70, shape))
            np.testing.assert_array_equal(small[:5], large[:5])
            np.testing.assert_array_equal(small[5:], large[1000:1004])
            assert len(np.unique(large)) > 0.99 * large.size


def _collected(monkeypatch, config, stream):
    """Data of the keys that a run draws from, one entry a draw."""
    drawn = []

    def collecting(draw):
        def collect(key, *arguments, **options):
            jax.debug.callback(lambda data: drawn.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key))
            return draw(key, *arguments, **options)

        return collect

    with monkeypatch.context() as patched:
        for name in DRAWS:
            patched.setattr(jax.random, name, collecting(getattr(jax.random, name)))
        run = make_run(config)
        state = run.init(jax.random.key(5), stream)
        step = jax.jit(run.step)
        for segment in stream:
            state, _ = step(state, segment)
        jax.effects_barrier()
    return Counter(drawn)


SMALL = PolicyConfig(widths=(8,), replay=16, updates=2, batch=4)


@pytest.mark.parametrize(
    ("method", "search"),
    [
        ("frequency", {}),
        pytest.param("scall-sac", {"probes_at_once": 2}, marks=pytest.mark.slow),
        pytest.param("scall-ddpg", {"reference": "last_fit"}, marks=pytest.mark.slow),
        pytest.param("scall", {"concentration": 1.0}, marks=pytest.mark.slow),
        pytest.param("ciess", {}, marks=pytest.mark.slow),
        pytest.param("esapn", {}, marks=pytest.mark.slow),
    ],
)
def test_no_two_draws_of_a_run_use_the_same_key(monkeypatch, method, search):
    options = SearchConfig(probes=3, probe_steps=2, common=False, **search)
    drawn = _collected(monkeypatch, small_config(method, search=options, policy=SMALL), small_stream(segments=2))
    assert sum(drawn.values()) > 10
    assert max(drawn.values()) == 1


@pytest.mark.slow  # The kept records of `scall-random`, which every test run compares, depend on these keys.
def test_probes_share_a_key_where_they_should(monkeypatch):
    options = SearchConfig(probes=3, probe_steps=2, common=True)
    drawn = _collected(monkeypatch, small_config("scall-random", search=options), small_stream(segments=2))
    # The reference and three probes draw the same batches and start from the same parameters.
    assert set(drawn.values()) == {1, 4}
    assert jnp.array(list(drawn.values())).max() == 4
