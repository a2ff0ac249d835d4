"""What comes later in a stream changes nothing of what comes before, not by a bit: cuts, keys, sizes and records."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from scall_jax import FitConfig, make_run, streams
from scall_jax.config import SearchConfig, SizesConfig
from scall_jax.ops.sums import padded_product, padded_sum
from scall_jax.policies import PolicyConfig
from scall_jax.run import records
from tests.helpers import small_config

SEGMENTS = 3


def _stream(rows, user, item, time, at, **options):
    ids = [pl.Series(np.arange(int(side.max()) + 1).astype(str)) for side in (user, item)]
    sides = {"user": user.astype(np.int32), "item": item.astype(np.int32), "time": time.astype(np.int64)}
    return streams.cut(dataclasses.replace(rows, **sides, user_ids=ids[0], item_ids=ids[1]), at=at, **options)


def _variants(**options):
    """A stream, and others with the same rows up to a time: later rows replaced, cut off, and multiplied."""
    rows = streams.synthetic(jax.random.key(7), users=1500, items=700, interactions=12_000)
    order = np.argsort(rows.time, kind="stable")
    user, item, time = rows.user[order], rows.item[order], rows.time[order]
    at = [int(time[len(time) * k // 6]) for k in range(1, SEGMENTS + 1)]
    first = int(np.searchsorted(time, at[-1]))
    rng, later = np.random.default_rng(0), len(time) - first

    def joined(users, items, times, at=at):
        parts = ((user, users), (item, items), (time, times))
        return _stream(rows, *(np.concatenate([old[:first], new]) for old, new in parts), at, **options)

    yield joined(user[first:], item[first:], time[first:])
    yield joined(rng.integers(0, 9000, later), rng.integers(0, 3000, later), time[first:])
    yield joined(user[:0], item[:0], time[:0], at[:-1])
    copies = range(3)
    users, items = (
        np.concatenate([side[first:] + copy * count for copy in copies]) for side, count in ((user, 1500), (item, 700))
    )
    yield joined(users, items, np.concatenate([time[first:] for _ in copies]))


@pytest.mark.parametrize("options", [{}, {"shuffle_ties": True}, {"published": True}])
def test_a_cut_does_not_depend_on_later_rows(options):
    whole, *others = _variants(**options)
    for other in others:
        assert other.bounds[:SEGMENTS] == whole.bounds[:SEGMENTS]
        for t in range(SEGMENTS):
            np.testing.assert_array_equal(other.replay[t], whole.replay[t])
            end = whole.bounds[t].end
            np.testing.assert_array_equal(other.user[:end], whole.user[:end])
            a, b = whole.segment(t), other.segment(t)
            for name in ("valid", "test", "positives"):
                ours, theirs = getattr(a, name), getattr(b, name)
                count = int(ours.count)
                assert count == theirs.count
                np.testing.assert_array_equal(ours.users[:count], theirs.users[:count])
                length = int(ours.indptr[-1])
                np.testing.assert_array_equal(ours.items[:length], theirs.items[:length])


@pytest.mark.parametrize("lengths", [(1, 1024, 1500), pytest.param((7, 1000, 5000), marks=pytest.mark.slow)])
def test_sums_do_not_depend_on_padding(lengths):
    rng = np.random.default_rng(0)
    for n in lengths:
        values = rng.normal(size=(n, 5)).astype(np.float32)
        right = rng.normal(size=(n, 3)).astype(np.float32)
        sums = np.asarray(jax.jit(padded_sum)(values))
        np.testing.assert_allclose(sums, values.astype(np.float64).sum(0), rtol=0, atol=1e-3)
        product = np.asarray(jax.jit(padded_product)(values, right))
        np.testing.assert_allclose(product, values.T.astype(np.float64) @ right, rtol=0, atol=2e-3)
        for more in (1, 24, 1000, 30_000):
            padding = np.zeros((more, 5), np.float32), rng.normal(size=(more, 3)).astype(np.float32)
            padded = np.concatenate([values, padding[0]]), np.concatenate([right, padding[1]])
            np.testing.assert_array_equal(jax.jit(padded_sum)(padded[0]), sums)
            np.testing.assert_array_equal(jax.jit(padded_product)(*padded), product)


def _lines(config, stream):
    run = make_run(config)
    state, step, lines = run.init(jax.random.key(3), stream), jax.jit(run.step), []
    for t in range(SEGMENTS):
        state, record = step(state, stream.segment(t))
        sizes = np.asarray(state.plan) if isinstance(state.plan, jnp.ndarray) else None
        lines.append(records.as_dict(record))
        if sizes is not None and sizes.ndim:
            users, known = stream.capacity.users, np.asarray(state.known)
            of_known = sizes[: known[0]], sizes[users : users + known[1]], sizes[-2:]
            lines[-1]["sizes"] = np.concatenate(of_known).tolist()
    return lines


def _config(method, **options):
    search = SearchConfig(probes=2, probe_steps=4, **options.pop("search", {}))
    fit = FitConfig(layers=2, batch=256, steps=12, eval_every=6, valid_users=300)
    policy = PolicyConfig(widths=(16,), replay=32, updates=2, batch=4)
    return small_config(method, fit=fit, search=search, policy=policy, sizes=SizesConfig(maximum=16), **options)


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param("frequency", {}, marks=_SLOW),
        pytest.param("popularity-decayed", {}, marks=_SLOW),
        pytest.param("uniform", {"bias": "decayed"}, marks=_SLOW),
        pytest.param("random", {}, marks=_SLOW),
        pytest.param("shuffled", {}, marks=_SLOW),
        pytest.param("scall", {"search": {"concentration": 1.0}}, marks=_SLOW),
        pytest.param("scall-sac", {}, marks=_SLOW),
        pytest.param("scall-ddpg", {"search": {"reference": "last_fit", "common": False}}, marks=_SLOW),
        pytest.param("spectral", {}, marks=_SLOW),
        pytest.param("esapn", {}, marks=_SLOW),
        pytest.param("ciess", {}, marks=_SLOW),
        pytest.param("bet", {}, marks=_SLOW),
        pytest.param("ducb", {}, marks=_SLOW),
    ],
)
def test_records_and_sizes_do_not_depend_on_later_rows(method, options):
    whole, *others = _variants()
    expected = _lines(_config(method, **options), whole)
    for other in others[:1] if method == "frequency" else others:
        assert _lines(_config(method, **options), other) == expected
