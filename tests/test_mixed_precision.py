import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import tables
from scall_jax.methods.rivals import bit_search as rival
from scall_jax.tables import MixedPrecisionConfig
from scall_jax.tables.compressed import bit_packing, lsq
from scall_jax.tables.compressed import mixed_precision as table
from tests.helpers import small_config, small_stream

WIDTHS = lsq.MOST_BITS + 1


def _plain(w, step, offset, bits, g, scale):
    """LSQ+ in float64, entry by entry: values and gradients of w, step and offset."""
    value, dw, dstep, doffset = np.zeros_like(w), np.zeros_like(w), np.zeros(len(w)), np.zeros_like(w)
    for n, i in np.ndindex(*w.shape):
        least, most = -(2 ** (bits[n] - 1)), 2 ** (bits[n] - 1) - 1
        v = (w[n, i] - offset[n, i]) / step[n]
        code = np.round(min(max(v, least), most))
        value[n, i] = code * step[n] + offset[n, i]
        if v < least or v > most:
            dstep[n] += g[n, i] * (least if v < least else most) * scale[n]
            doffset[n, i] = g[n, i] * scale[n]
        else:
            dw[n, i] = g[n, i]
            dstep[n] += g[n, i] * (code - v) * scale[n]
    return value, dw, dstep, doffset


def test_quantiser_and_its_gradients_are_those_of_plain_numpy():
    rng = np.random.default_rng(0)
    bits = np.array([1, 2, 3, 4, 5, 6, 6, 3])
    w, g, offset = (rng.normal(size=(8, 24)) for _ in range(3))
    step, scale = rng.uniform(0.05, 0.4, 8), rng.uniform(0.1, 1, 8)
    expected = _plain(w, step, 0.3 * offset, bits, g, scale)
    w, step, offset, scale, g = (jnp.asarray(x, jnp.float32) for x in (w, step, 0.3 * offset, scale, g))
    value, back = jax.vjp(lambda *x: lsq.fake_quantise(*x, jnp.asarray(bits), scale), w, step, offset)
    for ours, theirs in zip((value, *back(g)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_mixture_of_all_widths_and_its_gradients_are_those_of_plain_numpy():
    """Also where the rows do not fill whole blocks."""
    rows, width = lsq._BLOCK + 90, 4
    rng = np.random.default_rng(0)
    w, g, shares = rng.normal(size=(rows, width)), rng.normal(size=(rows, width)), rng.uniform(size=(rows, 6))
    steps, scales, offset = rng.uniform(0.05, 0.4, 6), rng.uniform(0.1, 1, 6), 0.3 * rng.normal(size=width)
    value, dw, dsteps, doffset, dshares = np.zeros_like(w), np.zeros_like(w), np.zeros(6), np.zeros(width), []
    for b in range(6):
        step, scale, bits = np.full(rows, steps[b]), np.full(rows, scales[b]), [b + 1] * rows
        share = shares[:, [b]]
        each = _plain(w, step, np.tile(offset, (rows, 1)), bits, share * g, scale)
        value, dw = value + share * each[0], dw + each[1]
        dsteps[b], doffset = each[2].sum(), doffset + each[3].sum(0)
        dshares.append((g * each[0]).sum(1))
    inputs = [jnp.asarray(x, jnp.float32) for x in (w, steps, offset, shares)]
    got, back = jax.vjp(lambda *x: lsq.mixture(*x, jnp.asarray(scales, jnp.float32)), *inputs)
    for ours, theirs in zip(
        (got, *back(jnp.asarray(g, jnp.float32))), (value, dw, dsteps, doffset, np.stack(dshares, 1)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_first_steps_and_scales_are_the_published_ones():
    vectors = jax.random.normal(jax.random.key(0), (30, 16))
    active_mask = jnp.arange(30) % 10 < 8  # users are 0 to 19
    steps, offsets = lsq.first_quantiser(vectors, active_mask, 20)
    for s, part in enumerate((np.asarray(vectors[:20])[active_mask[:20]], np.asarray(vectors[20:])[active_mask[20:]])):
        expected = [2 * np.abs(part).mean() / np.sqrt(2 ** (b - 1)) for b in range(1, WIDTHS)]
        np.testing.assert_allclose(steps[s], expected, rtol=1e-5)
    params = {"vectors": vectors, "steps": steps, "offsets": offsets}
    bits = jnp.asarray(np.arange(30) % 6 + 1)
    step, _, scale = lsq.Quantiser(20, 10, 16).at_bits(params, bits, jnp.array([16, 8]))
    np.testing.assert_allclose(step[23], steps[1, 23 % 6], rtol=1e-6)
    np.testing.assert_allclose(scale[23], 1 / np.sqrt(2 ** (23 % 6) * 8 * 16), rtol=1e-6)
    np.testing.assert_allclose(scale[3], 1 / np.sqrt(2**3 * 16 * 16), rtol=1e-6)


def test_codes_are_packed_bit_by_bit_and_come_back_at_every_width():
    rng = np.random.default_rng(0)
    bits = np.concatenate([np.arange(WIDTHS), rng.integers(0, WIDTHS, 20)])
    codes = np.stack([rng.integers(0, 2**b, 24) for b in bits])
    codes[:WIDTHS, 0], codes[:WIDTHS, 1] = 0, 2 ** bits[:WIDTHS] - 1
    starts = np.cumsum(bits) - bits
    packed = bit_packing.pack(*(jnp.asarray(x) for x in (codes, bits, starts)), int(bits.sum()) + 5)
    assert packed.dtype == jnp.uint8 and packed.shape == (bits.sum() + 5, 3)
    np.testing.assert_array_equal(bit_packing.unpack(packed, jnp.asarray(bits), jnp.asarray(starts)), codes)
    for n in range(len(bits)):
        for plane in range(bits[n]):
            read = np.unpackbits(np.asarray(packed[starts[n] + plane]), bitorder="little")
            np.testing.assert_array_equal(read, codes[n] >> plane & 1)
    assert not np.asarray(packed[bits.sum() :]).any()


def _plan(users, items, groups, width, num_active, bits):
    """A plan of round-robin groups over the first `num_active` entities of each side."""
    group = [
        np.where(np.arange(n) < k, np.arange(n) % groups, groups)
        for n, k in zip((users, items), num_active, strict=True)
    ]
    steps = 0.3 / np.sqrt(2.0 ** np.arange(6))[None, :] * np.array([[1.0], [1.5]])
    plan = (
        np.concatenate(group).astype(np.uint8),
        bits,
        steps.astype(np.float32),
        np.full((2, width), 0.05, np.float32),
    )
    return jax.tree.map(jnp.asarray, table.Bits(*plan))


def test_what_is_kept_is_what_was_trained_rounded_and_goes_to_disk_and_back():
    users, items, groups, known = 14, 11, 7, (12, 9)
    options = MixedPrecisionConfig(width=24, groups=groups)
    bits = np.stack([np.arange(7), np.arange(7)[::-1]]).astype(np.uint8)
    plan = _plan(users, items, groups, 24, known, bits)
    of_group = [bits[s][np.arange(n) % groups].sum() for s, n in enumerate(known)]
    # 24 coordinates are planes of 3 bytes; steps and offsets of both sides are float32 numbers.
    spent_by_table = 3 * int(sum(of_group)) + 4 * 2 * (6 + 24)
    storage = table.mixed_precision(spent_by_table + 27, users, items, 40, options)
    layout = storage.layout(plan)
    assert storage.allocated(plan) == spent_by_table
    assert table.planes_within(storage, jnp.int32(spent_by_table + 2)) == sum(of_group)
    params = storage.fresh(jax.random.key(0), layout, 0.4)
    trained = np.asarray(storage.vectors(params, layout))
    stored = storage.store(params, layout)
    loaded = storage.load(stored, layout)
    np.testing.assert_allclose(loaded["vectors"], trained, atol=1e-6)
    assert (trained[:users][np.asarray(layout.bits[:users]) == 0] == 0).all()
    # Storing what was loaded changes nothing, bit for bit.
    np.testing.assert_allclose(storage.vectors(loaded, layout), trained, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, storage.store(loaded, layout), stored)
    assert len(np.unique(trained[1])) <= 2 and len(np.unique(trained[2])) <= 4  # one and two bits, one offset
    exported = storage.export(stored, plan, known)
    assert tables.charged(exported) == {
        "codes": sum(of_group) * 24 // 8,
        "parameters": 4 * 2 * (6 + 24),
        "metadata": sum(known) + 2 * groups,
    }
    again, plan_again = storage.restore(exported, known)
    jax.tree.map(np.testing.assert_array_equal, again, stored)
    jax.tree.map(np.testing.assert_array_equal, storage.layout(plan_again)[:3], layout[:3])
    budget_units = tables.storage_factory(small_config(table="mixed_precision", mixed_precision=options)).budget_units
    spent = sum(tables.charged(exported).values())
    assert budget_units(spent, known, 40, True) == spent_by_table == budget_units(spent_by_table, known, 40, False)


def test_carried_vectors_are_decoded_ones_and_those_without_bits_begin_anew():
    options = MixedPrecisionConfig(width=16, groups=2)
    storage = table.mixed_precision(600, 6, 4, 16, options)
    old = _plan(6, 4, 2, 16, (6, 4), np.array([[0, 4], [6, 2]], np.uint8))
    new = _plan(6, 4, 2, 16, (6, 4), np.array([[3, 3], [3, 3]], np.uint8))
    layout = storage.layout(old)
    stored = storage.store(storage.fresh(jax.random.key(0), layout, 0.4), layout)
    options = small_config().warm_start
    known = jnp.arange(10) != 3
    previous = tables.Previous(stored, old, known, jnp.ones(10))
    params = storage.warm_start(jax.random.key(1), previous, new, options)
    decoded = np.asarray(storage.load(stored, layout)["vectors"])
    vectors = np.asarray(params["vectors"])
    for n in range(10):
        if n in (0, 2, 4, 3):  # users of the group without bits, and an unknown one
            assert 0.02 < vectors[n].std() < 0.3 and not np.allclose(vectors[n], options.shrink * decoded[n])
        else:
            np.testing.assert_allclose(vectors[n], options.shrink * decoded[n], rtol=1e-6)


def test_the_search_mixes_all_widths_and_pays_for_them():
    options = MixedPrecisionConfig(width=8, groups=3, temperature=0.7, price=0.01)
    storage = table.mixed_precision(300, 5, 4, 8, options)
    wide = table.searching(storage, 5, options)
    plan = _plan(5, 4, 3, 8, (5, 4), np.zeros((2, 3), np.uint8))
    price = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (2, 3)), jnp.float32)
    params = wide.fresh(jax.random.key(0), wide.layout(plan), 0.3)
    params |= {"logits": jax.random.normal(jax.random.key(1), (2, 3, WIDTHS)), "offsets": 0.1 * jnp.ones((2, 8))}
    got, paid = wide.vectors(params, (plan, price)), wide.penalty(params, (plan, price))
    logits = np.asarray(params["logits"], np.float64) / 0.7
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert paid == pytest.approx(0.01 * (np.asarray(price)[..., None] * p * np.arange(WIDTHS)).sum(), rel=1e-5)
    for n in range(9):
        side, group = int(n >= 5), (n if n < 5 else n - 5) % 3
        w = np.asarray(params["vectors"][n : n + 1], np.float64)
        expected = np.zeros(8)
        for b in range(1, WIDTHS):
            step = np.asarray(params["steps"][side, b - 1 : b], np.float64)
            value = _plain(w, step, np.full((1, 8), 0.1), [b], w, np.ones(1))[0]
            expected += p[side, group, b] * value[0]
        np.testing.assert_allclose(got[n], expected, atol=1e-5)


def test_groups_are_of_equal_size_by_frequency_and_frequent_ones_pay_less():
    segment = small_stream().segment(3)
    config = small_config(mixed_precision=MixedPrecisionConfig(groups=7))
    grouped = rival.by_frequency(config, jax.tree.map(jnp.asarray, segment))
    users = len(segment.frequency) - segment.popularity.shape[1]
    price = np.asarray(rival.prices(grouped))
    for s, (first, num_active) in enumerate(((0, int(segment.users)), (users, int(segment.items)))):
        group = np.asarray(grouped.groups[first : first + num_active])
        frequency = segment.frequency[first : first + num_active]
        members = np.bincount(group, minlength=7)
        assert members.max() - members.min() <= 1
        np.testing.assert_array_equal(members, grouped.count[s])
        for k in range(6):
            assert frequency[group == k].min() >= frequency[group == k + 1].max()
        sums = np.array([max(frequency[group == k].sum(), 1) for k in range(7)])
        np.testing.assert_allclose(price[s], sums.min() / sums, rtol=1e-6)
    inactive = np.asarray(grouped.groups)[
        np.r_[int(segment.users) : users, users + int(segment.items) : len(segment.frequency)]
    ]
    assert (inactive == 7).all()


def test_bits_are_the_likeliest_of_their_cost_and_spend_the_budget():
    choose = jax.jit(rival.choose_bits)
    likeliest = jax.jit(rival.most_likely)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        log_p = np.log(rng.dirichlet(np.ones(WIDTHS), 4)).astype(np.float32)
        count = rng.integers(1, 9, 4).astype(np.int32)
        if seed % 5 == 0:
            count[1] = 0
        total = int(rng.integers(0, 6 * count.sum() + 5))
        every = np.array(list(itertools.product(range(WIDTHS), repeat=4)))
        cost, value = every @ count, log_p[np.arange(4), every].sum(1)
        bits = np.asarray(likeliest(log_p, count, jnp.int32(total)))
        spent = bits @ count
        assert spent <= total
        free = np.where(count > 0, log_p[np.arange(4), bits], log_p.max(1)).sum()
        assert free >= value[cost == spent].max() - 1e-4
        if np.argmax(log_p, 1) @ count >= total:  # otherwise the likeliest bits cost less than is allowed
            assert free >= value[cost <= spent].max() - 1e-4
        grouped = rival.Groups(None, jnp.asarray(count).reshape(2, 2), jnp.asarray(rng.random((2, 2)), jnp.float32))
        full = np.asarray(choose(log_p.reshape(2, 2, WIDTHS), grouped, jnp.int32(total))).ravel()
        left = total - full.astype(int) @ count
        assert left >= 0 and (full <= 6).all()
        assert all(c == 0 or c > left or b == 6 for c, b in zip(count, full, strict=True))


@pytest.mark.parametrize("mean_size", [0.5, 2, 8, 16, 32])
@pytest.mark.parametrize("metadata", [False, True])
def test_a_width_that_is_not_fixed_spends_the_budget(mean_size, metadata):
    """By the most bits of all entities of the last segment; what no width within the sizes can spend is refused."""
    factory = tables.storage_factory(small_config(table="mixed_precision"))
    entities = [(500, 300), (1800, 1200)]
    totals = [factory.budget_units(int(4 * mean_size * sum(known)), known, 128, metadata) for known in entities]
    if mean_size == 32:  # 128 bytes an entity; 128 coordinates of 6 bits are 96
        with pytest.raises(ValueError, match=r"spends 289072 of .* raise sizes.maximum to 176"):
            factory.capacity(totals, entities, 128)
        assert factory.capacity(totals, entities, 176) == totals[-1]
        return
    storage = factory.build(factory.capacity(totals, entities, 128), *entities[-1], 128)
    assert storage.width == (88 if mean_size == 16 else 64)
    group = jnp.zeros(3000, jnp.uint8)
    most = storage.plan()._replace(groups=group, bits=jnp.full((2, 64), 6, jnp.uint8))
    assert storage.allocated(most) >= totals[-1]
    octets, planes = storage.width // 8, int(table.planes_within(storage, jnp.int32(totals[-1])))
    assert totals[-1] - octets < planes * octets + 4 * 2 * (6 + storage.width) <= totals[-1]
    assert jax.eval_shape(storage.empty)["codes"].shape[0] == planes


def test_a_fixed_width_that_cannot_spend_the_budget_is_refused():
    options = MixedPrecisionConfig(width=16)
    factory = tables.storage_factory(small_config(table="mixed_precision", mixed_precision=options))
    assert factory.capacity([1600, 1600], [(10, 10), (60, 60)], 128) == 1600
    with pytest.raises(ValueError, match=r"mixed_precision.width to 24"):
        factory.capacity([1600, 1800], [(10, 10), (60, 60)], 128)
    with pytest.raises(ValueError, match="176 bytes for steps and offsets"):
        factory.capacity([100, 1600], [(10, 10), (60, 60)], 128)


def test_options_out_of_range_are_refused():
    for options, message in (
        ({"width": 12}, "multiple of 8"),
        ({"groups": 256}, "255"),
        ({"temperature": 0.0}, "than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            MixedPrecisionConfig(**options)
    with pytest.raises(ValueError, match="by eights"):
        table.mixed_precision(10, 3, 3, 7, MixedPrecisionConfig())


def test_gradients_of_steps_and_offsets_do_not_depend_on_room_for_entities_to_come():
    rng, known, width = np.random.default_rng(0), (300, 200), 16
    w, g = rng.normal(size=(2, 500, width)).astype(np.float32)
    bits, shares = rng.integers(0, 7, 500), rng.dirichlet(np.ones(7), 500).astype(np.float32)
    sides = {"steps": jnp.full((2, 6), 0.3), "offsets": jnp.asarray(rng.normal(size=(2, width)) / 9, jnp.float32)}
    found = []
    for users, items in (known, (1300, 900)):

        def spread(values, users=users, items=items):
            room = np.zeros((users + items, *values.shape[1:]), values.dtype)
            room[: known[0]], room[users : users + known[1]] = values[: known[0]], values[known[0] :]
            return jnp.asarray(room)

        quantiser, num_active = lsq.Quantiser(users, items, width), jnp.asarray(known, jnp.int32)
        vectors, wide = spread(w), (spread(bits.astype(np.int32)), spread(shares), spread(g), num_active)

        def value(sides, bits, shares, g, num_active, quantiser=quantiser, vectors=vectors):
            params = sides | {"vectors": vectors}
            searched = quantiser.mixed(params, shares, num_active)
            return ((quantiser.vectors(params, bits, num_active) + searched) * g).sum()

        first = lsq.first_quantiser(vectors, spread(np.ones(500, bool)), users)
        found.append((jax.jit(jax.grad(value))(sides, *wide), first))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)
