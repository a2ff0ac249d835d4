"""What a budget pays for follows from the sizes: vectors without coordinates have no scale, few sizes take few bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, Config, SizesConfig, streams, tables
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.context import segment_context
from scall_jax.recommenders.ials import IalsConfig
from scall_jax.run import make_run, run_segments
from scall_jax.tables import size_codes
from scall_jax.tables.storage import size_bytes

_IALS = IalsConfig(sweeps=2, half_life=0.5, unobserved=0.3, regularisation=0.003, users_half_life=1.0)


@pytest.fixture(scope="module")
def stream():
    rows = streams.synthetic(jax.random.key(0), users=60, items=40, interactions=1500)
    return streams.cut(rows, segments=2)


@pytest.mark.parametrize("maximum", [1, 37, 255, 300])
def test_sizes_on_disk_come_back_and_take_the_bytes_that_are_counted(maximum):
    rng = np.random.default_rng(maximum)
    for count, most in ((3, 0), (4, 1), (11, 2), (66, 1), (202, 8), (1002, 1000), (3002, 40)):
        sizes = rng.integers(0, min(most, maximum) + 1, count).astype(f"uint{8 * size_bytes(maximum)}")
        written = size_codes.write(sizes)
        np.testing.assert_array_equal(size_codes.read(written, count), sizes)
        nbytes = sum(array.nbytes for array in written.values())
        # Counted apart: a list of values, and a number of ceil(log2(values)) bits each, eight vectors to a byte.
        values = len(set(sizes[:-2].tolist()))
        bits = int(np.ceil(np.log2(values)))
        listed = size_bytes(maximum) * (values + 2) + bits * int(np.ceil((count - 2) / 8))
        assert nbytes == min(listed, sizes.nbytes)
        padded = np.concatenate([sizes[:-2], rng.integers(0, maximum + 1, 5)]).astype(np.int32)
        counted = np.arange(count + 3) < count - 2
        assert size_codes.written_bytes(jnp.asarray(padded), jnp.asarray(counted), maximum) == nbytes


def test_damaged_sizes_are_refused():
    written = size_codes.write(np.array([3] * 30 + [1] * 5 + [2] * 5 + [0, 0], np.uint8))
    assert written["metadata_codes"].shape == (2, 5)
    with pytest.raises(ValueError, match="restore with the stream"):
        size_codes.read(written, 43)
    with pytest.raises(ValueError, match="a code of a size is 3"):
        size_codes.read(written | {"metadata_codes": np.full((2, 5), 255, np.uint8)}, 42)
    with pytest.raises(ValueError, match="0 values"):
        size_codes.read({}, 3)


def _spent(config: Config, stream: streams.Stream, method: str):
    """Plan of the last segment, and bytes of any plan, counted from the arrays that go to disk."""
    config = dataclasses.replace(config, method=method)
    state = make_run(config).init(jax.random.key(0), stream)
    segment = jax.tree.map(jnp.asarray, stream.segment(len(stream) - 1))
    context = segment_context(config, state, segment)
    known = (int(segment.users), int(segment.items))
    allocator = ALLOCATORS[method](config.sizes)

    def plan_of(total: int) -> np.ndarray:
        shared = np.asarray(context.budget()[1])
        return np.r_[np.asarray(allocator(jax.random.key(1), segment, jnp.int32(total))), shared].astype(np.int32)

    def nbytes(plan: np.ndarray) -> int:
        count = int(plan.sum())
        storage = tables.storage_factory(config).build(count, *streams.sides(segment), config.sizes.maximum)
        stored = storage.store(jnp.ones(count), storage.layout(jnp.asarray(plan)))
        charged = tables.charged(storage.export(stored, plan, known))
        return charged["parameters"] + charged["codes"] + (charged["metadata"] if config.charge != "table" else 0)

    plan = np.asarray(jax.jit(lambda: context.spend(lambda total: allocator(jax.random.key(1), segment, total)))())
    allowed = 4 * config.budget.parameters(len(stream) - 1, sum(known))
    return plan, plan_of, nbytes, allowed, int(context.budget()[0])


@pytest.mark.parametrize(
    ("table", "method", "charge", "minimum", "size"),
    [
        ("packed_int4", "uniform", "stored", 1, 1.0),
        ("packed_int4", "frequency", "table", 0, 0.4),
        ("packed_int1", "frequency", "stored", 0, 0.5),
        ("packed_int3", "random", "table", 0, 0.4),
        ("packed_bfloat16", "frequency", "stored", 1, 2.0),
        ("packed", "uniform", "stored", 1, 3.0),
    ],
)
def test_the_budget_is_spent_to_the_last_coordinate_that_fits(stream, table, method, charge, minimum, size):
    config = Config(
        table=table, charge=charge, budget=Budget.mean_size(size), sizes=SizesConfig(minimum=minimum, maximum=32)
    )
    plan, plan_of, nbytes, allowed, whatever_sizes = _spent(config, stream, method)
    total = int(plan[:-2].sum())
    assert nbytes(plan) <= allowed
    np.testing.assert_array_equal(plan, plan_of(total))
    assert total > whatever_sizes, "bytes that scales and sizes leave over are spent"
    # Bytes are counted in whole groups of eight coordinates: two groups more, with all that they bring, are too much.
    assert nbytes(plan_of(total + 16)) > allowed


@pytest.mark.parametrize("table", ["packed_int4", "packed"])
def test_without_anything_left_over_the_plan_is_the_rules_own(stream, table):
    config = Config(table=table, budget=Budget.mean_size(2), sizes=SizesConfig(minimum=1, maximum=32))
    plan, plan_of, nbytes, allowed, whatever_sizes = _spent(config, stream, "frequency")
    np.testing.assert_array_equal(plan, plan_of(whatever_sizes))
    assert allowed - 16 < nbytes(plan) <= allowed


@pytest.mark.parametrize("method", ["gain", "waterfill", "scall-gain"])
def test_methods_that_search_spend_what_is_left_over_too(stream, method):
    config = Config(
        method=method,
        recommender="ials",
        table="packed_int4",
        charge="stored",
        budget=Budget.mean_size(0.6),
        sizes=SizesConfig(minimum=0, maximum=16),
        ials=_IALS,
        search=dataclasses.replace(Config().search, probes=2),
    )
    lines = run_segments(config, stream, jax.random.key(0))
    for line in lines:
        assert line["bytes_at_rest"] <= line["budget_bytes"]
        assert line["allocated_parameters"] <= line["budget_parameters"]
        # One coordinate more may need a scale and another number of sizes, and codes come in groups of eight.
        assert line["bytes_at_rest"] > line["budget_bytes"] - 12 - (line["users"] + line["items"]) // 8
