"""Tables in few bits, against numpy in float64 and against what theory says of normal numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import tables
from scall_jax.tables.compressed.bit_packing import pack_codes, unpack_codes
from scall_jax.tables.compressed.few_bits import BITS, decode, encode
from tests.helpers import random_sizes

NORMAL_ERROR = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154}
"""Least mean squared error of uniform midpoint quantisers of 2^b codes, normal numbers of variance 1 (Max, 1960)."""


def _coded(bits, seed=0):
    rng = np.random.default_rng(seed)
    sizes = random_sizes(rng, 25, 37, True)
    storage = tables.STORAGES[f"packed_int{bits}"].build(int(sizes.sum()) + 9, 14, 11, 37)
    layout = storage.layout(jnp.asarray(sizes))
    # Rows of different lengths: each has a scale of its own.
    spread = np.exp2(rng.uniform(-6, 2, len(sizes))).astype(np.float32)
    pool = storage.fresh(jax.random.key(seed), layout, 1.0)
    rank = np.asarray(layout.order)[np.asarray(_ranks(layout, pool.shape[0]))]
    return storage, sizes, layout, pool * spread[rank], rank


def _ranks(layout, capacity):
    starts = np.asarray(layout.starts)
    place = np.arange(capacity)
    column = np.searchsorted(starts, place, side="right") - 1
    return np.where(place < starts[-1], place - starts[np.minimum(column, len(starts) - 1)], 0)


@pytest.mark.parametrize("bits", [1, 2, 8, *(pytest.param(x, marks=pytest.mark.slow) for x in BITS if x in (3, 4))])
def test_limits_leave_the_least_squared_error_of_all_on_the_grid(bits):
    _, sizes, layout, pool, rank = _coded(bits)
    coded = encode(pool, layout, bits)
    back = np.asarray(decode(coded, layout, pool.shape[0]), np.float64)
    values, half, used = np.asarray(pool, np.float64), 2 ** (bits - 1), int(sizes.sum())
    assert (back[used:] == 0).all()
    top = 2 ** np.ceil(np.log2(2 * np.abs(values[:used]).max()))
    for vector in np.unique(rank[:used]):
        row = values[:used][rank[:used] == vector]
        limits = top * np.exp2((np.arange(1, 256) - 255) / 16)
        step = limits[:, None] / half
        code = np.clip(np.floor(row / step), -half, half - 1)
        best = ((row - (code + 0.5) * step) ** 2).sum(1).min()
        got = ((row - back[:used][rank[:used] == vector]) ** 2).sum()
        # Of a few coordinates some distant limit may by chance hit all of them.
        assert got < 1.001 * best or (len(row) < 8 and got < 2 * (row**2).sum() / 4**bits)


def test_one_bit_is_the_sign_times_the_mean_absolute_coordinate():
    _, sizes, layout, pool, rank = _coded(1)
    back, used = np.asarray(decode(encode(pool, layout, 1), layout, pool.shape[0])), int(sizes.sum())
    values = np.asarray(pool)[:used]
    np.testing.assert_array_equal(np.sign(back[:used]), np.sign(values))
    for vector in np.unique(rank[:used]):
        row = rank[:used] == vector
        # The grid has 16 limits an octave.
        assert np.abs(back[:used][row][0]) == pytest.approx(np.abs(values[row]).mean(), rel=2 ** (1 / 32) - 1 + 1e-3)


@pytest.mark.parametrize("bits", list(NORMAL_ERROR))
def test_errors_of_normal_numbers_are_those_of_theory(bits):
    storage = tables.STORAGES[f"packed_int{bits}"].build(20_000, 1, 1, 20_000)
    layout = storage.layout(jnp.array([20_000, 0, 0, 0], jnp.int32))
    pool = jax.random.normal(jax.random.key(2), (20_000,))
    error = np.asarray(pool - decode(encode(pool, layout, bits), layout, 20_000))
    assert (error**2).mean() == pytest.approx(NORMAL_ERROR[bits], rel=0.05)


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_packed_as_numpy_packs_bits(bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, 83)
    packed = np.asarray(pack_codes(jnp.asarray(codes, jnp.int32), bits))
    padded = np.pad(codes, (0, 5)).reshape(-1, 8)
    expected = np.stack([np.packbits((padded >> k) & 1, axis=1, bitorder="little")[:, 0] for k in range(bits)], 1)
    np.testing.assert_array_equal(packed, expected)
    np.testing.assert_array_equal(np.asarray(unpack_codes(jnp.asarray(packed)))[:83], codes)


@pytest.mark.parametrize("bits", BITS)
def test_coding_what_was_decoded_changes_nothing(bits):
    _, _, layout, pool, _ = _coded(bits)
    back = decode(encode(pool, layout, bits), layout, pool.shape[0])
    np.testing.assert_array_equal(decode(encode(back, layout, bits), layout, pool.shape[0]), back)


@pytest.mark.parametrize("bits", BITS)
def test_exported_bytes_alone_give_the_vectors_that_are_ranked(bits):
    storage, sizes, layout, pool, _ = _coded(bits)
    stored = storage.store(pool, layout)
    ranked = np.asarray(storage.vectors(storage.load(stored, layout), layout))
    arrays = storage.export(stored, jnp.asarray(sizes), (14, 11))
    planes = np.unpackbits(arrays["codes"], axis=1, bitorder="little").reshape(len(arrays["codes"]), bits, 8)
    codes = (planes.astype(int) << np.arange(bits)[None, :, None]).sum(1).ravel()[: sizes.sum()]
    limits = arrays["codes_top"][0] * np.exp2((arrays["codes_scales"].astype(float) - 255) / 16)
    limits[arrays["codes_scales"] == 0] = 0
    # The vectors from the largest to the smallest; column after column of those that have it.
    order, place, own = np.argsort(-sizes, kind="stable"), 0, np.zeros((len(sizes), 37))
    for column in range(sizes.max()):
        count = int((sizes > column).sum())
        step = limits[:count] / 2 ** (bits - 1)
        own[order[:count], column] = (codes[place : place + count] + 0.5 - 2 ** (bits - 1)) * step
        place += count
    assert place == sizes.sum()
    read = np.where((sizes[:25] > 0)[:, None], own[:25], np.repeat(own[25:], (14, 11), axis=0))
    np.testing.assert_allclose(ranked[:, :37], read, rtol=1e-5, atol=1e-7)
    assert (ranked[:, 37:] == 0).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("nbytes", [90, 1500, *(pytest.param(x, marks=pytest.mark.slow) for x in (60, 200, 9001))])
def test_bytes_are_spent_and_never_exceeded(bits, nbytes):
    factory, known, maximum = tables.STORAGES[f"packed_int{bits}"], (14, 11), 4000
    for metadata in (False, True):
        units = factory.budget_units(nbytes, known, maximum, metadata)
        if units < 1:
            assert nbytes < 80
            continue
        sizes = np.zeros(27, np.int32)
        sizes[: min(units, 25)] = units // min(units, 25)
        sizes[: units % min(units, 25)] += 1
        storage = factory.build(units, 14, 11, maximum)
        layout = storage.layout(jnp.asarray(sizes))
        coded = jax.jit(storage.store)(jnp.ones(units), layout)
        exported = storage.export(coded, sizes, known)
        charged = tables.charged(exported)
        # Sizes are counted as one number each; what they take less is `SegmentContext.spend`'s to spend.
        spent = charged["codes"] + (27 * 2 if metadata else 0)
        assert nbytes - bits - 8 < spent <= nbytes and charged["metadata"] <= 27 * 2


@pytest.mark.parametrize("table", ["packed_bfloat16", "packed_int8", "packed_int3", "packed_int1"])
def test_columns_read_from_what_is_stored_are_those_of_the_loaded_table(table):
    sizes = jnp.asarray(np.r_[np.random.default_rng(0).integers(0, 38, 25), 3, 2].astype(np.int32))
    storage = tables.STORAGES[table].build(int(sizes.sum()) + 3, 14, 11, 37)
    layout = storage.layout(sizes)
    stored = storage.store(jax.random.normal(jax.random.key(0), (int(sizes.sum()) + 3,)), layout)
    loaded, read = storage.table, storage.served
    buffers = loaded.to_buffer(storage.load(stored, layout)), read.to_buffer(stored)
    for first in range(0, loaded.width, 16):
        wanted, got = (t.read(buffer, layout, first, 16) for t, buffer in zip((loaded, read), buffers, strict=True))
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("table", ["packed_bfloat16", "packed_int4", "packed_int1"])
def test_training_within_rounding_reads_what_would_be_stored(table):
    sizes = jnp.asarray(np.r_[np.random.default_rng(0).integers(0, 38, 25), 3, 2].astype(np.int32))
    storage = tables.STORAGES[table].build(int(sizes.sum()), 14, 11, 37)
    layout = storage.layout(sizes)
    pool = jax.random.normal(jax.random.key(0), (int(sizes.sum()),))
    rounding, loaded = storage.rounding(pool, layout), storage.load(storage.store(pool, layout), layout)
    buffer = storage.table.to_buffer(pool)
    for first in range(0, rounding.width, 16):
        wanted = storage.table.read(storage.table.to_buffer(loaded), layout, first, 16)
        np.testing.assert_array_equal(rounding.read(buffer, layout, first, 16), wanted)
