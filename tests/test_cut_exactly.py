"""Cuts at their exact borders, against plain loops: what a rule gives where it only just holds or only just fails."""

import itertools

import jax
import numpy as np
import polars as pl
import pytest

from scall_jax import streams
from scall_jax.streams import boundaries, enough_users, memory, numpy_ops, row_order
from scall_jax.streams.segments import active_mask, compact_graph, compact_graph_bytes, sides
from scall_jax.streams.stream import Bounds
from scall_jax.streams.synthetic import _CHUNK, _side, _unit


def _plain_part(time, start, end, split, align):
    """A segment's parts, or None where one is empty."""
    length = end - start
    train, valid = (start + round(part * length) for part in (split[0], split[0] + split[1]))
    if align and start < train <= valid < end:
        moved = [row for row in (train, valid)]
        for number in (0, 1):
            while moved[number] > start and time[moved[number] - 1] == time[moved[number]]:
                moved[number] -= 1
        apart = moved[0] < moved[1] or train == valid
        if start < moved[0] and moved[1] < end and apart:
            train, valid = moved
    empty = not (start < train <= valid < end) or (split[1] > 0 and train == valid)
    return None if empty else Bounds(start, train, valid, end)


SPLITS = [(0.7, 0.1, 0.2), (0.5, 0.25, 0.25), (0.8, 0.0, 0.2), (0.5, 0.45, 0.05), (0.1, 0.3, 0.6)]


@pytest.mark.parametrize("split", SPLITS)
def test_parts_of_segments_are_those_of_a_plain_loop(split):
    """Random times with ties, and times with one step."""
    rng = np.random.default_rng(0)
    refused = 0
    for length, spread, align in itertools.product((1, 2, 3, 4, 5, 8, 13, 40), (-4, -2, -1, 1, 4, 60), (True, False)):
        for first in (0, 1, 7):
            rows = first + length + 3
            time = np.sort(rng.integers(0, spread, rows)) if spread > 0 else (np.arange(rows) >= rows + spread - 3) + 0
            edges = [first, first + length]
            expected = _plain_part(time, *edges, split, align)
            if expected is None:
                refused += 1
                with pytest.raises(ValueError, match=r"segment 0 has .* too few"):
                    boundaries.parts_of_segments(edges, time, split, align, "rows")
            else:
                assert boundaries.parts_of_segments(edges, time, split, align, "rows") == (expected,)
    assert 20 < refused < 250


def _plain_edges(user, item, limit):
    edges, known, before = [0], set(), 0
    for row, pair in enumerate(zip(user.tolist(), [("i", i) for i in item.tolist()], strict=True)):
        now = known | set(pair)
        if len(now) > before + limit:
            before = len(known)
            edges.append(row)
        known = now
    joined = len(edges) > 1 and len(known) - before < limit / 10
    return [*edges[: len(edges) - joined], len(user)], joined


def test_edges_by_arrivals_are_those_of_a_plain_loop():
    joined = 0
    for seed, limit in itertools.product(range(12), (2, 3, 10, 21, 40, 10**6)):
        rng = np.random.default_rng(seed)
        user, item = (np.minimum(rng.integers(0, 60, 150), np.arange(150) // rng.integers(1, 4)) for _ in range(2))
        # By first appearance.
        user, item = (np.unique(x, return_inverse=True)[1] for x in (user, item))
        user, item = (np.argsort(np.argsort([list(x).index(v) for v in range(x.max() + 1)]))[x] for x in (user, item))
        expected, joins = _plain_edges(user, item, limit)
        assert boundaries.edges_by_arrivals(user, item, limit) == expected
        joined += joins
    assert boundaries.edges_by_arrivals(np.zeros(3, int), np.zeros(3, int), 100) == [0, 3] and joined > 0


@pytest.mark.parametrize(
    ("limit", "late", "joins"), [(20, [1], True), (20, [1, 1], False), (21, [1, 1], True), (21, [1, 1, 1], False)]
)
def test_a_last_segment_joins_below_a_tenth_of_the_new_entities(limit, late, joins):
    """Ten rows of two new entities each, then rows of one new user."""
    early = limit // 2
    user = np.concatenate([np.arange(early), [0] * (limit % 2), early + np.arange(len(late))])
    item = np.concatenate([np.arange(early), [early] * (limit % 2), [0] * len(late)])
    edge = early + limit % 2
    assert boundaries.edges_by_arrivals(user, item, limit) == ([0, len(user)] if joins else [0, edge, len(user)])


def test_segments_start_after_the_first_time_and_at_the_last_at_latest():
    day, rows = 86_400_000, np.arange(1, 6)
    time = (rows + 18_000) * day
    dates = np.datetime_as_string(time.astype("datetime64[ms]"), unit="D").tolist()
    assert boundaries.edges_by_time(time, dates[1:3], "rows") == [0, 1, 2, 5]
    assert boundaries.edges_by_time(time, dates[-1:], "rows") == [0, 4, 5]
    for bad in (dates[:1], dates[:2], [dates[1], "2031-01-01"], ["2031-01-01"]):
        with pytest.raises(ValueError, match="lies outside rows"):
            boundaries.edges_by_time(time, bad, "rows")


def test_one_segment_may_be_all_that_is_wanted():
    rows = streams.synthetic(jax.random.key(3), users=20, items=20, interactions=300)
    assert len(streams.cut(rows, segments=3, max_segments=1)) == 1


def test_as_many_segments_as_rows_and_no_more():
    assert boundaries.edges_of_equal_parts(3, 3, "rows") == [0, 1, 2, 3]
    for segments in (0, 4):
        with pytest.raises(ValueError, match="do not make"):
            boundaries.edges_of_equal_parts(3, segments, "rows")


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (["2020-03-01", "soon"], "'soon' is not a timestamp"),
        (["1970-01-01"], "outside"),
        (["1969-12-31"], "before 1970"),
    ],
)
def test_one_bad_time_among_good_ones_is_named(at, message):
    rows = streams.synthetic(jax.random.key(3), users=20, items=20, interactions=300)
    with pytest.raises(ValueError, match=message):
        streams.cut(rows, at=at)


@pytest.mark.parametrize("enough", [(30, 20), (10,), (1000,)])
def test_the_automatic_number_is_the_most_that_leaves_enough_users(enough, monkeypatch):
    monkeypatch.setattr(enough_users, "ENOUGH_USERS", enough)
    for seed, interactions in ((0, 600), (1, 1500), (2, 240)):
        rows = streams.synthetic(jax.random.key(seed), users=90, items=60, interactions=interactions)
        least = {}
        for number in range(2, enough_users.MOST_SEGMENTS + 1):
            stream = streams.cut(rows, segments=number)
            least[number] = min(int(stream.test(t).count) for t in range(1, number))
        reaching = [[n for n, users in least.items() if users >= bound] for bound in enough]
        best = max(least.values())
        expected = next((max(n) for n in reaching if n), min(n for n, users in least.items() if users == best))
        assert len(streams.cut(rows, segments="auto")) == expected


def test_an_account_of_memory_is_exact_at_its_limit():
    blocks = {1.0: 2**16, 40 * 2**16: 2**16, 4e6: 100_000, 40 * 2**24 + 40: 2**24}
    for limit, block in blocks.items():
        assert memory.Account(limit).block == block
    limit = 40 * 2**17
    left = limit - memory._BLOCKS * 2**17
    rows, ids = divmod(left, memory._ROW_BYTES)
    memory.Account(limit).rows(rows, "file")
    with pytest.raises(ValueError, match=r"file: .* after 50% of it"):
        memory.Account(limit).rows(rows + 1, "file", 0.5)
    account = memory.Account(limit)
    account.ids(10, left / 10 - memory._ID_BYTES, "file")
    with pytest.raises(ValueError, match="file"):
        account.ids(1, ids, "file")
    account = memory.Account(limit)
    account.expect(limit // memory._ROW_BYTES, "file")
    with pytest.raises(ValueError, match="rows take"):
        account.expect(limit // memory._ROW_BYTES + 1, "file")
    assert memory.limit_bytes(0.5) == 5e5 and memory.limit_bytes(None) >= 1
    for none in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            memory.limit_bytes(none)


def test_rows_are_sorted_whatever_their_number():
    for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17):
        major, minor = np.zeros(rows, int), np.arange(rows)[::-1] % 3
        np.testing.assert_array_equal(numpy_ops.sorted_rows(major, minor), np.lexsort((minor, major)))


def test_two_rows_at_one_time_and_two_a_day_are_warned_of():
    with pytest.warns(streams.DataWarning, match="all 2 rows are at one time"):
        row_order.warn_of_ties(streams.from_arrays([1, 2], [1, 2], [5, 5]))
    days = np.repeat(np.arange(10), 2) * 86_400_000
    with pytest.warns(streams.DataWarning, match="whole days of 2.0 rows"):
        row_order.warn_of_ties(streams.from_arrays(np.arange(20), np.arange(20), days))
    row_order.warn_of_ties(streams.from_arrays(np.arange(19), np.arange(19), days[:19]))


def test_masks_and_sides_of_a_segment_and_of_stacked_ones():
    stream = streams.cut(streams.synthetic(jax.random.key(3), users=200, items=300, interactions=900), segments=3)
    expected = stream.capacity.users, stream.capacity.items
    assert sides(stream.segment(0)) == sides(stream.stack()) == expected
    for t, segment in enumerate(stream):
        users, items = stream.known(stream.bounds[t].train)
        active = np.asarray(active_mask(jax.tree.map(np.asarray, segment)))
        assert np.flatnonzero(active).tolist() == [*range(users), *range(expected[0], expected[0] + items)]
    assert all(few < all_of for few, all_of in zip(stream.known(stream.bounds[0].train), expected, strict=True))


@pytest.mark.parametrize(("items", "nbytes"), [(1, 1), (255, 1), (256, 1), (257, 2)])
def test_items_of_a_compact_graph_take_the_bytes_that_the_largest_number_needs(items, nbytes):
    n = items + 1
    graph = streams.segments.Graph(np.array([0, 1, *[1] * (items - 1), 2]), np.array([n - 1, 0]), np.ones(2))
    assert compact_graph(graph, 1, (1, items))["items"].dtype.itemsize == nbytes
    assert compact_graph_bytes(1, (1, items)) == 8 + nbytes


def test_a_synthetic_stream_follows_its_popularity_and_its_turning_tastes():
    assert len(streams.synthetic(jax.random.key(0), users=1, items=1, interactions=1, tastes=1)) == 1
    key, users, items = jax.random.key(5), 40, 30
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    user_side, item_side = (_side(rng, n, 4, 1.0) for n in (users, items))
    turned = _unit(rng.normal(size=(users, 4)))
    numbers = 3 * _CHUNK
    options = {"users": users, "items": items, "interactions": numbers, "tastes": 4, "zipf": 1.0, "lifetime": 0.0}
    last = slice(2 * _CHUNK, None)

    def late(**more):
        rows = streams.synthetic(key, **options, **more)
        named = (
            [int(x[1:]) for x in ids.gather(code).to_list()]
            for code, ids in ((rows.user, rows.user_ids), (rows.item, rows.item_ids))
        )
        return (np.array(x)[last] for x in named)

    _, item = late(strength=0.0, drift=0.0)
    counts, arrived = np.bincount(item, minlength=items), item_side.arrival < 2 / 3
    wanted = len(item) * item_side.base * arrived / (item_side.base * arrived).sum()
    assert np.corrcoef(counts[arrived], wanted[arrived])[0, 1] > 0.98
    user, item = late(strength=30.0, drift=1.0)
    start, end = user_side.tastes[user], turned[user]
    now = 5 / 6
    there = _unit((1 - now) * start + now * end)
    near = [(taste * item_side.tastes[item]).sum(1).mean() for taste in (there, start)]
    assert near[0] > 0.6 and near[0] > near[1] + 0.2


def test_alignment_moves_borders_off_ties_unless_published():
    time = np.arange(1000) // 7 * 60_000
    rng = np.random.default_rng(0)
    rows = streams.from_arrays(rng.integers(0, 30, 1000), rng.integers(0, 50, 1000), time)
    for bounds in streams.cut(rows, segments=4).bounds:
        assert time[bounds.train - 1] < time[bounds.train] and time[bounds.valid - 1] < time[bounds.valid]
    published = streams.cut(rows, segments=4, published=True)
    for bounds, replayed in zip(published.bounds, published.replay, strict=True):
        expected = bounds.start + round(0.8 * (bounds.end - bounds.start + len(replayed))) - len(replayed)
        assert (bounds.train, bounds.valid) == (expected, expected)


@pytest.mark.parametrize(
    ("users", "number"), [({}, 2), ({5: 10}, 5), ({4: 10, 3: 12}, 4), ({2: 10}, 2), ({7: 3, 9: 3}, 7)]
)
def test_the_fewest_segments_lead_where_none_has_enough_users(users, number, monkeypatch):
    monkeypatch.setattr(enough_users, "ENOUGH_USERS", (10,))
    monkeypatch.setattr(enough_users, "_least_users", lambda stream, bounds: users.get(len(bounds), 0))
    rows = streams.from_arrays(np.arange(300) % 30, np.arange(300) % 50, np.arange(300))
    assert len(streams.cut(rows, segments="auto")) == number


def test_a_stream_too_short_for_two_segments_is_one():
    assert len(streams.cut(streams.from_arrays(range(6), range(6), range(6)), segments="auto")) == 1


def test_without_replay_nothing_is_replayed():
    rows = streams.synthetic(jax.random.key(3), users=20, items=20, interactions=300)
    for part in (0.0, 1e-4):
        assert [len(replayed) for replayed in streams.cut(rows, segments=3, replay=part).replay] == [0, 0, 0]


def test_the_limit_of_memory_is_that_of_the_group_or_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1000)
    (tmp_path / "none").write_text("max")
    for group, expected in (
        ("2000000", 2_000_000),
        ("1", 1),
        ("9000000", 4_096_000),
        ("0", 4_096_000),
        ("max", 4_096_000),
    ):
        (tmp_path / "group").write_text(group)
        monkeypatch.setattr(memory, "_CONTROL_GROUPS", (str(tmp_path / "none"), str(tmp_path / "group")))
        assert memory.machine_bytes() == expected and memory.limit_bytes(None) == memory._SHARE * expected
    account = memory.Account(40 * 2**17)
    account.ids(1000, 28.0, "file")
    room = 40 * 2**17 - 1000 * (memory._ID_BYTES + 28)
    exact = memory.Account(memory._ROW_BYTES * 7)
    exact.expect(7, "file")
    account.expect(int(room // memory._ROW_BYTES), "file")
    with pytest.raises(ValueError, match="rows take"):
        account.expect(int(room // memory._ROW_BYTES) + 1, "file")


def test_a_key_of_64_bits_is_sorted_by_its_parts():
    major, minor = np.array([2**31 - 1, 0, 2**31 - 1, 5]), np.array([2**31 - 1, 7, 3, 0])
    np.testing.assert_array_equal(numpy_ops.sorted_rows(major, minor), [1, 3, 2, 0])


@pytest.mark.parametrize("time", [[5, 3, 9, 1], [1, 3, 9, 5], [1, 9, 5, 9], [9, 1, 1, 1]])
def test_rows_are_put_in_the_order_of_time(time):
    rows = row_order.in_order(streams.from_arrays(range(4), range(4), time))
    np.testing.assert_array_equal(rows.user, np.argsort(time, kind="stable"))


def test_ids_that_do_not_appear_are_left_out():
    codes, ids = row_order.by_appearance(np.array([3, 1, 3], np.int32), pl.Series(["a", "b", "c", "d"]))
    assert codes.tolist() == [0, 1, 0] and ids.to_list() == ["d", "b"]


@pytest.mark.parametrize(
    "time",
    [
        [0, 5, 5, 5],
        [5, 5, 5, 9],
        np.r_[np.zeros(1200), 3_600_000],
        np.r_[np.zeros(600), np.full(600, 86_400_000), 90_000_000],
    ],
)
def test_times_that_order_some_rows_are_not_warned_of(time):
    n = len(time)
    row_order.warn_of_ties(streams.from_arrays(np.arange(n), np.arange(n), np.asarray(time)))


@pytest.mark.parametrize(
    ("user", "time"),
    [
        ([1.0, float("nan"), 2.0], [1, 2, 3]),
        (["a", None, "b"], [1, 2, 3]),
        ([1, 2, 3], [1.0, float("inf"), 3.0]),
        ([1, 2, 3], np.array(["2020-01-01", "NaT", "2020-01-02"], "datetime64[s]")),
    ],
)
def test_one_missing_value_is_refused(user, time):
    with pytest.raises(ValueError, match="missing"):
        streams.from_arrays(user, [1, 2, 3], time)


def test_times_of_any_unit_are_milliseconds():
    rows = streams.from_arrays([1, 2], [1, 2], np.array(["2020-01-01", "2020-01-02"], "datetime64[s]"))
    assert rows.time.tolist() == [1_577_836_800_000, 1_577_923_200_000]
    assert "2020-01-01" in repr(rows) and "2 rows" in repr(rows) and "2020" not in repr(rows.take(np.array([], int)))


def test_ages_repeats_and_recency_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 6, 60), rng.integers(0, 4, 60)
    user[0], item[0] = 9, 9  # once, in the very first row
    stream = streams.cut(streams.from_arrays(user, item, np.arange(60)), segments=2)
    for t, segment in enumerate(stream):
        cut, users = stream.bounds[t].train, stream.capacity.users
        pairs = list(zip(stream.user[:cut].tolist(), stream.item[:cut].tolist(), strict=True))
        graph, last = segment.graph, {pair: row for row, pair in enumerate(pairs)}
        for node in range(stream.capacity.nodes):
            for entry in range(graph.indptr[node], graph.indptr[node + 1]):
                other = int(graph.indices[entry])
                pair = (node, other - users) if node < users else (other, node - users)
                assert segment.ages[entry] == cut - last[pair] and segment.repeats[entry] == pairs.count(pair)
        for padding in (graph.values, graph.indices, segment.ages, segment.repeats):
            assert not np.any(padding[graph.indptr[-1] :])
        assert segment.recency[0] == segment.recency[users] == 1
        known = stream.known(cut)
        compact = compact_graph(graph, users, known)
        assert len(compact["offsets"]) == known[0] + 1 and compact["offsets"][-1] == len(set(pairs))
