import itertools
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scall_jax import sizes, streams
from scall_jax.config import SizesConfig
from scall_jax.methods import allocators
from scall_jax.sizes import shares
from scall_jax.sizes.allocate_host import allocate_host


def _shares(distribution: str, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return {
        "uniform": lambda: np.ones(n),
        "zipf": lambda: rng.permutation(1.0 / np.arange(1, n + 1) ** 2),
        "ties": lambda: rng.integers(0, 3, n).astype(float),
        "zeros": lambda: np.zeros(n),
        "one": lambda: np.eye(1, n, rng.integers(n))[0],
        "extreme": lambda: 10.0 ** rng.uniform(-37, 37, n),
        "tiny": lambda: rng.uniform(0, 1e-37, n),
    }[distribution]().astype(np.float32)


def _check(shares, result, total, minimum, maximum):
    result = np.asarray(result).astype(np.int64)
    n = len(shares)
    assert result.sum() == min(total, n * maximum)
    if total >= n * minimum:
        assert result.min() >= minimum
    else:
        assert ((result == 0) | (result == minimum)).sum() >= n - 1
    assert result.max() <= maximum
    order = np.lexsort((np.arange(n), -shares.astype(np.float64)))
    assert (np.diff(result[order]) <= 0).all()


# Only a few capacities, of which num_active are in use: each is one compilation.
_CAPACITIES = (1, 64, 10**5)


@given(
    distribution=st.sampled_from(["uniform", "zipf", "ties", "zeros", "one", "extreme", "tiny"]),
    n=st.one_of(st.integers(1, 200), st.integers(1, 10**5)),
    total=st.one_of(st.integers(0, 5000), st.integers(0, 2**31 - 1)),
    bounds=st.sampled_from([(1, 256), (1, 1), (0, 64), (4, 128), (3, 4), (16, 16), (1, 4096)]),
    seed=st.integers(0, 5),
)
@example(distribution="zipf", n=10**5, total=2**31 - 1, bounds=(1, 4096), seed=0)
@example(distribution="extreme", n=10**5, total=10**5, bounds=(1, 256), seed=1)
@example(distribution="extreme", n=3, total=4, bounds=(3, 4), seed=2)
@example(distribution="one", n=1, total=0, bounds=(1, 256), seed=1)
def test_allocate_exact_sum_bounds_and_order(distribution, n, total, bounds, seed):
    capacity = next(c for c in _CAPACITIES if c >= n)
    shares = np.zeros(capacity, np.float32)
    shares[:n] = _shares(distribution, n, seed)
    result = np.asarray(sizes.allocate(shares, total, *bounds, num_active=n))
    assert (result[n:] == 0).all()
    _check(shares[:n], result[:n], total, *bounds)


_by_total = jax.jit(
    jax.vmap(lambda shares, total, n: sizes.allocate(shares, total, 1, 16, num_active=n), in_axes=(None, 0, None))
)


@settings(max_examples=12)
@given(distribution=st.sampled_from(["zipf", "ties", "one", "extreme"]), n=st.integers(1, 30), seed=st.integers(0, 9))
def test_allocate_larger_budget_never_shrinks_an_entity(distribution, n, seed):
    shares = _shares(distribution, n, seed)
    padded = np.pad(shares, (0, 30 - n))
    totals = np.minimum(np.arange(n, n + 30 * 15 + 1), n * 16)
    many = _by_total(padded, totals, n)
    assert (np.diff(np.asarray(many), axis=0) >= 0).all()
    assert (np.asarray(many).sum(1) == totals).all()


def _divisor_method(shares, total, minimum, maximum):
    """Webster's method one unit at a time: the next goes to the largest share / (size + 1/2)."""
    result = np.full(len(shares), minimum)
    for _ in range(total - result.sum()):
        priority = np.where(result < maximum, shares / (result + 0.5), -1)
        result[np.argmax(priority)] += 1
    return result


@given(
    values=st.lists(st.integers(1, 1000), min_size=1, max_size=20),
    extra=st.integers(0, 150),
    low=st.integers(0, 2),
)
def test_allocate_is_webster_with_bounds(values, extra, low):
    shares = np.asarray(values, np.float32)
    total = min(len(values) * low + extra, len(values) * 9)
    padded = np.pad(shares, (0, 20 - len(shares)))
    ours = np.asarray(sizes.allocate(padded, total, low, 9, num_active=len(shares)))[: len(shares)]
    theirs = _divisor_method(shares.astype(np.float64), total, low, 9)
    # The two agree up to exact ties of the priority share / (size + 1/2).
    assert np.abs(ours - theirs).max() <= 1
    grown, passed_over = ours > theirs, ours < theirs
    np.testing.assert_allclose(
        sorted(shares[grown] / (ours[grown] - 0.5)),
        sorted(shares[passed_over] / (theirs[passed_over] - 0.5)),
        rtol=1e-5,
    )


def test_allocate_host_and_device_agree():
    shares = _shares("zipf", 1000, 0)
    for total in (0, 500, 1000, 5000, 10**5, 10**6):
        device = np.asarray(sizes.allocate(shares, total, 1, 256))
        host = allocate_host(shares, total, 1, 256)
        assert host.sum() == device.sum()
        assert np.abs(device - host).max() <= 1


def _bisected(shares, total, minimum, maximum):
    """The same rule by plain bisection, in float32 as on the device; ties by a sort."""
    relative = np.maximum(shares / shares.max(), np.float32(2.0**-60))

    def sizes_at(bits):
        with np.errstate(over="ignore"):
            # Round once, as a fused multiply-add does.
            real = np.float32(np.float64(np.int32(bits).view(np.float32)) * relative + 0.5)
        return np.clip(real, minimum, maximum).astype(np.int64)

    low, high = 0, 0x7F7FFFFF
    while low < high:
        middle = low + (high - low + 1) // 2
        low, high = (middle, high) if sizes_at(middle).sum() <= total else (low, middle - 1)
    result = sizes_at(low)
    grows = np.flatnonzero(sizes_at(low + 1) > result)
    served = grows[np.argsort(-shares[grows], kind="stable")][: total - result.sum()]
    result[served] += 1
    return result


def test_allocate_search_ends_where_plain_bisection_does():
    run = jax.jit(lambda s, t: sizes.allocate(s, t, 1, 64))
    n = 5000  # exceeds the sample that the search starts from
    for distribution in ("uniform", "zipf", "ties", "one", "extreme"):
        shares = _shares(distribution, n, 3)
        for total in (n, n + 1, 3 * n + 7, 16 * n, 63 * n + 5, 64 * n):
            np.testing.assert_array_equal(run(shares, total), _bisected(shares, total, 1, 64))


def test_allocate_beyond_int32_on_the_host():
    shares = _shares("zipf", 1000, 0)
    total = 2**40 + 7
    result = sizes.allocate(shares, total, 1, 2**31)
    assert result.dtype == np.int64
    _check(shares, result, total, 1, 2**31)
    with pytest.raises(ValueError, match="64-bit"):
        jax.jit(lambda s: sizes.allocate(s, 10, 1, 2**31))(shares)


@pytest.mark.slow
def test_allocate_ten_million_entities():
    n = 10**7
    shares = np.asarray(sizes.expected_shares("powerlaw", 0.5, n))
    run = jax.jit(lambda s, t: sizes.allocate(s, t, 1, 256))
    run(shares, 8 * n).block_until_ready()
    start = time.perf_counter()
    result = np.asarray(run(shares, 2**31 - 1))
    print(f"allocate, n = 10^7: {time.perf_counter() - start:.2f} s")
    _check(shares, result, 2**31 - 1, 1, 256)


def test_allocate_traces_once_over_totals_and_active_counts():
    count = chex.assert_max_traces(lambda s, t, n: sizes.allocate(s, t, 1, 64, num_active=n), n=1)
    run = jax.jit(count)
    shares = jnp.ones(50)
    for num_active in (3, 50):
        for total in (0, 10, 10**6):
            assert int(run(shares, total, num_active).sum()) == min(total, 64 * num_active)
    chex.clear_trace_counter()


@pytest.mark.parametrize(
    "call",
    [
        lambda: sizes.allocate([0.5, np.nan], 4),
        lambda: sizes.allocate([0.5, -0.1], 4),
        lambda: sizes.allocate([0.5, np.inf], 4),
        lambda: sizes.allocate([0.5, 0.5], -1),
        lambda: sizes.allocate([0.5, 0.5], 4, 5, 4),
        lambda: sizes.allocate([], 4),
        lambda: sizes.expected_shares("cauchy", 1.0, 4),
        lambda: sizes.expected_shares("powerlaw", 0.0, 4),
        lambda: sizes.expected_shares("pareto", 1.0, 4),
        lambda: sizes.expected_shares("powerlaw", 1.0, 0),
    ],
)
def test_bad_sizes_arguments(call):
    with pytest.raises(ValueError):
        call()


def _by_power(counts, power, total, minimum, maximum):
    """Webster's method for counts^power in float64 logarithms, by bisection of the multiplier's logarithm."""
    with np.errstate(divide="ignore"):
        exponent = np.where(counts > 0, power * np.log2(np.maximum(counts, 1).astype(np.float64)), -np.inf)

    def sizes_at(log):
        with np.errstate(over="ignore", invalid="ignore"):
            real = np.floor(np.exp2(np.minimum(exponent + log, 60.0)) + 0.5)
        return np.clip(real, minimum, maximum).astype(np.int64)

    low, high = -4000.0, 4000.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sizes_at(middle).sum() <= total else (low, middle)
    result = sizes_at(low)
    # What the next step would give too many, in order, and, if every count is served, entities without one: equally.
    room, left = sizes_at(high) - result, total - result.sum()
    for at in np.flatnonzero(room > 0):
        given = min(left, room[at])
        result[at] += given
        left -= given
    without = np.flatnonzero(result < maximum)
    if left and len(without):
        result[without] += left // len(without) + (np.arange(len(without)) < left % len(without))
    return result


_POWER_CAPACITY = 400


@given(
    power=st.one_of(st.sampled_from([0.0, 0.5, 1.0, 15.0, 16.0, 30.0, 64.0]), st.floats(0, 64)),
    largest=st.sampled_from([1, 2, 30, 424, 10**4, 10**6]),
    kind=st.sampled_from(["flat", "zipf", "spread", "zeros", "neighbours"]),
    n=st.integers(1, _POWER_CAPACITY),
    mean=st.floats(0, 70),
    bounds=st.sampled_from([(0, 64), (1, 64), (2, 64), (1, 128), (0, 1)]),
    seed=st.integers(0, 3),
)
@example(power=0.0, largest=1, kind="zeros", n=6, mean=33.0, bounds=(0, 64), seed=0)
@example(power=15.0, largest=424, kind="zipf", n=300, mean=8.0, bounds=(1, 128), seed=0)
@example(power=30.0, largest=30, kind="flat", n=300, mean=8.0, bounds=(1, 128), seed=0)
@example(power=64.0, largest=10**6, kind="spread", n=400, mean=60.0, bounds=(0, 64), seed=0)
def test_sizes_by_any_power_of_the_frequency(power, largest, kind, n, mean, bounds, seed):
    rng = np.random.default_rng(seed)
    counts = {
        "flat": lambda: np.full(n, largest),
        "zipf": lambda: np.maximum(largest // np.arange(1, n + 1), 1),
        "spread": lambda: np.exp(rng.uniform(0, np.log(largest + 1), n)).astype(int),
        "zeros": lambda: largest * rng.integers(0, 2, n),
        "neighbours": lambda: np.maximum(largest - np.arange(n) // 3, 1),
    }[kind]()
    counts = -np.sort(-counts)
    padded = np.pad(counts, (0, _POWER_CAPACITY - n)).astype(np.int32)
    minimum, maximum = bounds
    total = min(int(mean * n), n * maximum)
    shares = sizes.power_shares(padded, power, jnp.int32(total), bounds, n)
    assert bool(jnp.isfinite(shares).all())
    result = np.asarray(sizes.allocate(shares, total, minimum, maximum, num_active=n))[:n]
    assert result.sum() == total
    assert (np.diff(result) <= 0).all()
    if total < n * minimum:
        return
    assert minimum <= result.min() and result.max() <= maximum
    expected = _by_power(counts, power, total, minimum, maximum)
    # float32 may round a few entities to the other side of a half.
    assert np.abs(result - expected).max() <= 1


@pytest.mark.parametrize("flat", [False, True])
def test_the_method_frequency_keeps_budget_and_minimum_at_large_powers(flat):
    rows = streams.synthetic(jax.random.key(0), users=300, items=80, interactions=20000)
    segment = streams.cut(rows, segments=2).segment(1)
    counts = np.where(segment.frequency > 0, 30, 0).astype(np.int32) if flat else segment.frequency
    segment = segment._replace(frequency=counts)
    known = np.asarray(streams.active_mask(segment))
    for power in (0.0, 15.0, 30.0, 64.0):
        allocator = jax.jit(allocators.frequency(SizesConfig(power=power)))
        own = np.asarray(allocator(jax.random.key(0), segment, 8 * known.sum()))
        assert own.sum() == 8 * known.sum() and own[known].min() >= 1
        assert (np.diff(own[known][np.lexsort((own[known], counts[known]))]) >= 0).all()
    with pytest.raises(ValueError, match="between 0 and 64"):
        SizesConfig(power=65)


def _draws(family, shape, n, rng):
    size = (4000, n)
    if family == "powerlaw":
        return rng.uniform(size=size) ** (1 / shape)
    if family == "pareto":
        return 1 + rng.pareto(shape, size)
    if family == "lognormal":
        return rng.lognormal(0, shape, size)
    from scipy import stats

    if family == "truncnorm":
        low, high = -1 / n / shape, (1 - 1 / n) / shape
        return stats.truncnorm.rvs(low, high, loc=1 / n, scale=shape, size=size, random_state=rng)
    return stats.truncexpon.rvs(shape, scale=1 / shape, size=size, random_state=rng)


def test_a_power_law_below_the_range_of_its_closed_form_is_refused():
    with pytest.raises(ValueError, match=r"shape=0.02 of family 'powerlaw': must be at least 0.1"):
        sizes.expected_shares("powerlaw", 0.02, n=10)


@pytest.mark.parametrize(
    ("family", "shape", "tolerance"),
    [
        ("powerlaw", 0.1, 0.01),
        ("powerlaw", 0.5, 0.01),
        ("powerlaw", 30.0, 0.01),
        ("pareto", 30.0, 0.01),
        ("pareto", 100.0, 0.01),
        ("truncnorm", 0.001, 0.01),
        ("truncnorm", 0.02, 0.02),
        ("truncexp", 5.0, 0.01),
        ("lognormal", 0.5, 0.01),
    ],
)
def test_expected_shares_match_sorted_draws(family, shape, tolerance):
    """L1 distance to the averaged sorted draws, as SCALL makes them."""
    n = 300
    drawn = -np.sort(-_draws(family, shape, n, np.random.default_rng(0)), axis=1)
    drawn = (drawn / drawn.sum(1, keepdims=True)).mean(0)
    shares = np.asarray(sizes.expected_shares(family, shape, n))
    assert np.abs(shares - drawn).sum() < tolerance
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert (np.diff(shares) <= 0).all()


@pytest.mark.parametrize("rate", [0.1, 0.99, 1.01, 20.0, 100.0])
def test_largest_shares_of_a_truncated_exponential_are_those_of_float64_at_any_number(rate):
    for n in (1e3, 1e7, 1e9):
        rank = np.arange(1.0, 6)
        upper = (rank - 0.5) / n
        exact = -np.log(upper + (1 - upper) * np.exp(-rate)) / rate
        ours = shares._truncexp(jnp.float32(rate), jnp.asarray(rank, jnp.float32), jnp.float32(n))
        np.testing.assert_allclose(ours, exact, rtol=1e-5)


@pytest.mark.parametrize("counts", [(1, 17, 10**4), pytest.param((2, 10**6), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("family", "shapes"), [("powerlaw", (0.1, 0.5, 3.0, 30.0)), ("pareto", (1.5, 30.0, 100.0))])
def test_expected_shares_match_log_gamma_in_float64(family, shapes, counts):
    from scipy.special import gammaln

    for n in counts:
        k = np.arange(1, n + 1, dtype=np.float64)
        for shape in shapes:
            z, s = (n - k + 1, 1 / shape) if family == "powerlaw" else (k, -1 / shape)
            logs = gammaln(z + s) - gammaln(z)
            exact = np.exp(logs - logs.max())
            exact /= exact.sum()
            ours = np.asarray(sizes.expected_shares(family, shape, n), np.float64)
            big = exact > 1e-30
            np.testing.assert_allclose(ours[big], exact[big], rtol=3e-5)


def test_expected_shares_traced_count_equals_static_one():
    run = jax.jit(lambda n, a: sizes.expected_shares("powerlaw", a, n, capacity=100))
    for n in (1, 30, 100):
        padded = np.asarray(run(n, 0.5))
        np.testing.assert_allclose(padded[:n], sizes.expected_shares("powerlaw", 0.5, n), rtol=1e-5)
        assert (padded[n:] == 0).all()


def test_expected_shares_and_allocate_vmap_over_shape_and_total():
    def run(shape, total):
        return sizes.allocate(sizes.expected_shares("powerlaw", shape, 50), total, 1, 40)

    shapes, totals = jnp.array([0.1, 0.5, 5.0]), jnp.array([50, 400, 1999])
    many, alone = jax.jit(jax.vmap(run))(shapes, totals), jax.jit(run)
    for one, shape, total in zip(many, shapes, totals, strict=True):
        np.testing.assert_array_equal(one, alone(shape, total))


def test_order_equals_numpy_lexsort_with_the_same_keys():
    """Many ties; ranges for which one 64-bit number holds all keys, and ranges for which it does not."""
    rng, n = np.random.default_rng(0), 300
    run = jax.jit(sizes.order_by)
    for largest, latest, existing in itertools.product((1, 3, 2**31 - 1), (0, 2, 2**31 - 1), (0.0, 0.6, 1.0)):
        frequency = rng.integers(0, largest, n, endpoint=True) * (rng.random(n) < 0.5)
        total, recency = (rng.integers(0, top, n, endpoint=True) for top in (largest, latest))
        active_mask = rng.random(n) < existing
        keys = (np.arange(n), recency, np.where(frequency > 0, 0, total), frequency, active_mask)
        ours = run(*(x.astype(np.int32) for x in (frequency, recency, total)), active_mask)
        np.testing.assert_array_equal(ours, np.lexsort(keys)[::-1])


def test_order_maps_over_frequencies():
    rng = np.random.default_rng(1)
    frequency, recency = rng.integers(0, 4, (3, 50)).astype(np.int32), rng.permutation(50).astype(np.int32)
    active_mask = np.arange(50) < 40
    many = jax.vmap(lambda f: sizes.order_by(f, recency, recency, active_mask))(frequency)
    for one, f in zip(many, frequency, strict=True):
        keys = (np.arange(50), recency, np.where(f > 0, 0, recency), f, active_mask)
        np.testing.assert_array_equal(one, np.lexsort(keys)[::-1])


def test_order_is_by_frequency_then_recency():
    frequency = jnp.array([3, 0, 3, 0, 5, 0, 0])
    recency = jnp.array([9, 1, 10, 1, 2, 8, 99])
    total = jnp.array([3, 7, 3, 7, 5, 2, 99])
    # Entities 4, 2 and 0 have rows, 2 later ones than 0. Of the others 3 and 1 tie in total, and the later arrival is
    # first; then comes 5, and last 6, which does not exist yet.
    active_mask = jnp.arange(7) < 6
    np.testing.assert_array_equal(sizes.order_by(frequency, recency, total, active_mask), [4, 2, 0, 3, 1, 5, 6])


@given(
    users=st.integers(0, 500),
    items=st.integers(1, 500),
    total=st.integers(0, 40000),
    share=st.floats(0, 1, width=32),
    minimum=st.integers(0, 3),
)
def test_split_sides_is_exact_and_within_what_the_sides_can_hold(users, items, total, share, minimum):
    for_users, for_items = map(int, sizes.split_sides(total, share, users, items, minimum, 32))
    assert for_users + for_items == min(total, 32 * (users + items))
    assert 0 <= for_users <= 32 * users and 0 <= for_items <= 32 * items
    if total >= minimum * (users + items):
        assert for_users >= minimum * users and for_items >= minimum * items


def test_shared_vectors_exist_only_while_the_minimum_does_not_fit():
    np.testing.assert_array_equal(sizes.shared_vector_sizes(jnp.int32(100), jnp.int32(10), 4, 9), [0, 0])
    np.testing.assert_array_equal(sizes.shared_vector_sizes(jnp.int32(39), jnp.int32(10), 4, 9), [4, 4])
    np.testing.assert_array_equal(sizes.shared_vector_sizes(jnp.int32(5), jnp.int32(10), 4, 9), [4, 1])
    for total, wanted in ((90, [0, 0]), (89, [1, 1]), (2, [1, 1]), (1, [1, 0])):
        np.testing.assert_array_equal(sizes.shared_vector_sizes(jnp.int32(total), jnp.int32(10), 0, 9), wanted)


def test_assign_gives_sizes_in_order():
    np.testing.assert_array_equal(sizes.assign(jnp.array([9, 4, 1]), jnp.array([2, 0, 1])), [4, 1, 9])


@pytest.mark.parametrize(
    "call",
    [
        lambda i, f: sizes.order_by(i, i, i[:2], i > 0),
        lambda i, f: sizes.order_by(i, i, f, i > 0),
        lambda i, f: sizes.assign(i, i[:2]),
        lambda i, f: sizes.allocate(f, i),
        lambda i, f: sizes.expected_shares("powerlaw", f, 3, 3),
        lambda i, f: sizes.split_sides(i[0], 0.5, f[0], i[0], 1, 4),
        lambda i, f: sizes.shared_vector_sizes(i, i[0], 1, 4),
    ],
)
def test_shapes_and_dtypes_that_disagree_are_refused_when_a_program_is_traced(call):
    with pytest.raises(AssertionError):
        jax.eval_shape(call, jnp.arange(3), jnp.ones(3))
