import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scall_jax import streams
from scall_jax.cli import flags as run_flags
from scall_jax.cli import stream_flags
from scall_jax.streams import numpy_ops


@pytest.fixture(scope="module")
def rows():
    return streams.synthetic(jax.random.key(3), users=300, items=150, interactions=6000)


@pytest.fixture(scope="module")
def stream(rows):
    return streams.cut(rows, new_entities=80)


def test_every_cut_is_where_the_rule_puts_it(stream):
    """The row that starts a segment is the first with which more than 80 entities would be new."""
    for this, following in zip(stream.bounds[:-1], stream.bounds[1:], strict=True):
        before = sum(stream.known(this.start))
        assert sum(stream.known(following.start)) - before <= 80
        assert sum(stream.known(following.start + 1)) - before > 80
    assert stream.bounds[0].start == 0 and stream.bounds[-1].end == len(stream.user)


def test_ids_are_by_first_appearance_in_time(rows, stream):
    order = np.argsort(rows.time, kind="stable")
    for codes, ids, source_codes, source_ids in (
        (stream.user, stream.user_ids, rows.user, rows.user_ids),
        (stream.item, stream.item_ids, rows.item, rows.item_ids),
    ):
        _, first = np.unique(codes, return_index=True)
        assert (np.diff(first) > 0).all()
        assert ids.gather(codes).to_list() == source_ids.gather(source_codes[order]).to_list()
        assert len(set(ids.to_list())) == len(ids)


def _dense(segment, users):
    graph = segment.graph
    nodes = len(graph.indptr) - 1
    dense = np.zeros((nodes, nodes))
    for n in range(nodes):
        for e in range(graph.indptr[n], graph.indptr[n + 1]):
            dense[n, graph.indices[e]] += graph.values[e]
    return dense


def test_graph_is_the_normalised_adjacency_of_what_came_before_the_cut(stream):
    t = len(stream) // 2
    segment, cut, users = stream.segment(t), stream.bounds[t].train, stream.capacity.users
    adjacency = np.zeros((stream.capacity.nodes,) * 2)
    adjacency[stream.user[:cut], stream.item[:cut] + users] = 1  # a repeated pair is one edge
    adjacency += adjacency.T
    degree = np.maximum(adjacency.sum(1), 1)
    np.testing.assert_allclose(_dense(segment, users), adjacency / np.sqrt(np.outer(degree, degree)), rtol=1e-6)
    for n in range(stream.capacity.nodes):
        row = segment.graph.indices[segment.graph.indptr[n] : segment.graph.indptr[n + 1]]
        assert (np.diff(row) > 0).all()


def test_counts_recency_and_popularity_of_a_segment(stream):
    t = len(stream) - 2
    segment, bounds, users = stream.segment(t), stream.bounds[t], stream.capacity.users
    trained = np.concatenate([np.arange(bounds.start, bounds.train), stream.replay[t]])
    for item in range(0, 100, 7):
        where = np.flatnonzero(stream.item[: bounds.train] == item)
        assert segment.frequency[users + item] == (stream.item[trained] == item).sum()
        assert segment.total[users + item] == len(where)
        assert segment.recency[users + item] == (where[-1] + 1 if len(where) else 0)
        half_life = streams.HALF_LIVES[2]
        decayed = (0.5 ** ((bounds.train - 1 - where) / half_life)).sum()
        row = streams.POPULARITY.index(f"decayed-{half_life}")
        assert segment.popularity[row, item] == pytest.approx(decayed, rel=1e-5)
        assert segment.popularity[0, item] == len(where)
        assert segment.popularity[1, item] == (where >= bounds.start).sum()


def _lists(rows):
    return {
        int(rows.users[i]): set(rows.items[rows.indptr[i] : rows.indptr[i + 1]].tolist()) for i in range(rows.count)
    }


def test_held_out_parts_hold_known_entities_and_no_training_pair(stream):
    for t, segment in enumerate(stream):
        bounds = stream.bounds[t]
        users, items = stream.known(bounds.train)
        trained = set(zip(stream.user[: bounds.train].tolist(), stream.item[: bounds.train].tolist(), strict=True))
        for rows, start, end in ((segment.valid, bounds.train, bounds.valid), (segment.test, bounds.valid, bounds.end)):
            expected = {}
            for u, i in zip(stream.user[start:end].tolist(), stream.item[start:end].tolist(), strict=True):
                if u < users and i < items and (u, i) not in trained:
                    expected.setdefault(u, set()).add(i)
            assert _lists(rows) == expected


def test_nothing_after_the_cut_reaches_a_segment(rows, stream):
    """Changing all rows after a segment's training part changes nothing but its held-out parts."""
    t = len(stream) // 2
    cut = stream.bounds[t].train
    order = np.argsort(rows.time, kind="stable")
    rng = np.random.default_rng(0)
    user, item = rows.user.copy(), rows.item.copy()
    user[order[cut:]], item[order[cut:]] = rng.permutation(user[order[cut:]]), rng.permutation(item[order[cut:]])
    changed = streams.cut(
        streams.from_arrays(user, item, rows.time), at=[int(stream.time[b.start]) for b in stream.bounds[1:]]
    )
    # The boundaries agree, so that only the content differs.
    assert changed.bounds[: t + 1] == stream.bounds[: t + 1]
    capacities = stream.capacity, changed.capacity
    one, other = stream.segment(t), changed.segment(t)
    assert (one.users, one.items) == (other.users, other.items)
    for name in ("frequency", "total", "recency"):
        for lengths in ((0, int(one.users)), (None, int(one.items))):
            starts = [c.users if lengths[0] is None else 0 for c in capacities]
            a, b = (getattr(s, name)[o : o + lengths[1]] for s, o in zip((one, other), starts, strict=True))
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.popularity[:, : one.items], other.popularity[:, : one.items])
    assert _lists(one.positives) == _lists(other.positives)
    assert one.graph.indptr[-1] == other.graph.indptr[-1]


@pytest.mark.parametrize("published", [False, True])
def test_lists_of_users_have_room_for_the_most_users_of_a_segment(rows, published):
    options = {"published": True, "new_entities": 60} if published else {"segments": 4, "replay": 0.2}
    stream = streams.cut(rows, **options)
    for part in ("positives", "valid", "test"):
        most = 0
        for t, bounds in enumerate(stream.bounds):
            held_out = {"valid": (bounds.train, bounds.valid), "test": (bounds.valid, bounds.end)}
            if part == "positives":
                met = np.concatenate([stream.user[bounds.start : bounds.train], stream.user[stream.replay[t]]])
            else:
                met = stream.user[slice(*held_out["test" if published else part])]
            most = max(most, len(set(met.tolist())))
            assert getattr(stream.segment(t), part).count <= len(set(met.tolist()))
        assert getattr(stream.segment(0), part).users.shape == (most,)
        assert getattr(stream.segment(0), part).indptr.shape == (most + 1,)


def test_replay_rows_are_earlier_rows_of_training_users_each_once(stream):
    for t, (bounds, drawn) in enumerate(zip(stream.bounds, stream.replay, strict=True)):
        assert len(np.unique(drawn)) == len(drawn)
        assert len(drawn) <= 0.2 * (bounds.train - bounds.start)
        if t:
            assert len(drawn) > 0 and drawn.max() < bounds.start
            assert np.isin(stream.user[drawn], stream.user[bounds.start : bounds.train]).all()


def _by_cosine(stream, cut, anchor):
    """Users by the cosine of the sets of their items with the anchor's, in plain Python."""
    items = {}
    for user, item in zip(stream.user[:cut].tolist(), stream.item[:cut].tolist(), strict=True):
        items.setdefault(user, set()).add(item)
    own = items[anchor]

    def cosine(user):
        return len(items[user] & own) / (len(items[user]) * len(own)) ** 0.5

    return sorted(items, key=lambda user: (user != anchor, -round(cosine(user), 12), user))


def test_replay_by_neighbourhood_has_whole_users_around_an_anchor(rows, stream):
    by_neighbourhood = streams.cut(rows, segments=4, replay_by="neighbourhood")
    assert by_neighbourhood.bounds == streams.cut(rows, segments=4).bounds
    for t, (bounds, drawn) in enumerate(zip(by_neighbourhood.bounds, by_neighbourhood.replay, strict=True)):
        earlier = np.arange(bounds.start)
        wanted = np.isin(by_neighbourhood.user[earlier], by_neighbourhood.user[bounds.start : bounds.train])
        candidates = earlier[wanted].tolist()
        assert len(drawn) == min(len(candidates), int(0.2 * (bounds.train - bounds.start)))
        if not t:
            continue
        of_user = {}
        for row in reversed(candidates):
            of_user.setdefault(int(by_neighbourhood.user[row]), []).append(row)
        found = []
        for anchor in of_user:
            order = _by_cosine(by_neighbourhood, bounds.train, anchor)
            expected = [row for user in order for row in of_user.get(user, [])][: len(drawn)]
            found += [anchor] if sorted(expected) == drawn.tolist() else []
        assert found, "no anchor explains what is replayed"
    with pytest.raises(ValueError, match="uniform or neighbourhood"):
        streams.cut(rows, segments=4, replay_by="nearest")


def test_published_protocol_splits_replayed_and_new_rows_together_and_selects_on_test(rows):
    published = streams.cut(rows, new_entities=80, published=True)
    assert published.select_on_test
    repeats = 0
    for t, bounds in enumerate(published.bounds):
        assert bounds.train == bounds.valid
        # As the official code does it: replayed rows first, and the first 80% of all are for training.
        own, replayed = list(range(bounds.start, bounds.end)), published.replay[t].tolist()
        both = replayed + own
        assert both[round(0.8 * len(both)) :] == own[bounds.train - bounds.start :]
        if t > 1:
            assert (bounds.end - bounds.train) / len(own) == pytest.approx(1.2 * 0.2, abs=0.01)
        segment = published.segment(t)
        assert _lists(segment.valid) == _lists(segment.test)
        repeats += len(published.replay[t]) - len(np.unique(published.replay[t]))
    assert repeats > 0


def test_segments_stack_with_equal_shapes(stream):
    stacked = stream.stack()
    assert stacked.index.tolist() == list(range(len(stream)))
    for leaf, first in zip(jax.tree.leaves(stacked), jax.tree.leaves(stream.segment(0)), strict=True):
        assert leaf.shape == (len(stream), *first.shape) and leaf.dtype == first.dtype


def test_segments_do_not_depend_on_how_many_rows_are_worked_on_at_once(rows, stream, monkeypatch):
    monkeypatch.setattr(numpy_ops, "CHUNK", 97)
    again = streams.cut(rows, new_entities=80)
    for one, other in zip(stream, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_sorted_rows_are_those_of_lexsort_also_beyond_one_number():
    rng = np.random.default_rng(0)
    for largest in (0, 3, 2**31 - 1):  # the last needs more than 63 bits
        major, minor = rng.integers(0, largest, (2, 500), endpoint=True).astype(np.int32)
        np.testing.assert_array_equal(numpy_ops.sorted_rows(major, minor), np.lexsort((minor, major)))
    assert len(numpy_ops.sorted_rows(major[:0], minor[:0])) == 0


def test_no_timestamp_lies_on_both_sides_of_a_cut():
    time = np.repeat(np.arange(40), 25) * 60_000
    rng = np.random.default_rng(0)
    rows = streams.from_arrays(rng.integers(0, 30, 1000), rng.integers(0, 50, 1000), time)
    for bounds in streams.cut(rows, segments=4).bounds:
        assert time[bounds.train - 1] < time[bounds.train] and time[bounds.valid - 1] < time[bounds.valid]


def test_shuffled_ties_are_seeded():
    rows = streams.from_arrays(np.arange(200) % 20, np.arange(200) % 30, np.zeros(200))
    one, same, other = (streams.cut(rows, segments=2, shuffle_ties=True, seed=s).user_ids.to_list() for s in (0, 0, 1))
    assert one == same != other


def test_equal_parts_timestamps_and_limits(rows):
    assert [b.end - b.start for b in streams.cut(rows, segments=4).bounds] == [1500] * 4
    ordered = np.sort(rows.time)
    by_time = streams.cut(rows, at=[int(ordered[3000])])
    assert [b.start for b in by_time.bounds] == [0, int(np.searchsorted(ordered, ordered[3000]))]
    assert len(streams.cut(rows, segments=4, max_segments=2)) == 2


@settings(max_examples=10)
@given(k=st.integers(2, 6))
def test_core_is_what_repeated_removal_leaves(k):
    rows = streams.synthetic(jax.random.key(1), users=80, items=60, interactions=700)
    left = list(zip(rows.user.tolist(), rows.item.tolist(), strict=True))
    while True:
        users, items = [u for u, _ in left], [i for _, i in left]
        kept = [(u, i) for u, i in left if users.count(u) >= k and items.count(i) >= k]
        if len(kept) == len(left):
            break
        left = kept
    if len(left) < 10:
        return
    assert len(streams.cut(rows, segments=1, k_core=k).user) == len(left)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"segments": 5000}, "too short"),
        ({"segments": 10**6}, "do not make"),
        ({"segments": 2, "new_entities": 10}, "give one of"),
        ({"new_entities": 1}, "at least 2"),
        ({"split": (0.5, 0.1, 0.1)}, "add up to 1"),
        ({"split": (1.0, 0.0, 0.0)}, "above 0"),
        ({"replay": -1.0}, "negative"),
        ({"k_core": 10**6}, "core"),
        ({"at": ["soon"]}, "'soon'"),
        ({"at": ["1971-01-01"]}, "outside"),
        ({"max_segments": 0}, "max_segments=0"),
        ({"replay": float("inf")}, "finite"),
        ({"replay": 1e308}, r"replay=1e\+308: .* at most 1,000,000"),
        ({"k_core": -1}, "k_core=-1: .*0 keeps all"),
        ({"replay": 4.0, "published": True}, "below 4 with published"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_rules_are_refused(rows, rules, message):
    with pytest.raises(ValueError, match=message):
        streams.cut(rows, **rules)


def test_synthetic_stream_is_seeded_and_has_what_it_promises(rows):
    again = streams.synthetic(jax.random.key(3), users=300, items=150, interactions=6000)
    np.testing.assert_array_equal(rows.user, again.user)
    assert len(rows) == 6000 and (np.diff(rows.time) >= 0).all()
    counts = np.sort(np.bincount(rows.item))[::-1]
    assert counts[: len(counts) // 5].sum() > 0.4 * counts.sum()  # a few items are popular
    early, late = np.unique(rows.user[:1500]), np.unique(rows.user[-1500:])
    assert np.isin(late, early).mean() < 0.7  # others arrive
    with pytest.raises(ValueError):
        streams.synthetic(jax.random.key(0), users=0)


def _one_time():
    return streams.from_arrays([f"u{k % 9}" for k in range(60)], [f"i{k % 13}" for k in range(60)], np.zeros(60))


def test_times_that_do_not_order_the_rows_are_warned_of():
    with pytest.warns(streams.DataWarning, match=r"all 60 rows are at one time, .*source: shuffle_ties orders them"):
        streams.cut(_one_time(), segments=2)
    days = np.repeat(np.arange(20), 30) * 86_400_000
    for shift in (0, 5 * 3_600_000):  # midnight of another zone
        rows = streams.from_arrays(np.arange(600) % 40, np.arange(600) % 70, days + shift)
        with pytest.warns(streams.DataWarning, match=r"whole days of 30\.0 rows"):
            streams.cut(rows, segments=2)
        streams.cut(rows, segments=2, shuffle_ties=True)
    for time in (days + np.arange(600) % 7, np.arange(600) * 86_400_000, days // 24):
        streams.cut(streams.from_arrays(np.arange(600) % 40, np.arange(600) % 70, time), segments=2)


def _checked(user, item, **rules):
    rows = streams.from_arrays(user, item, np.arange(len(user)))
    stream = streams.cut(rows, **({"segments": 4} | rules))
    with pytest.raises(ValueError, match="no segment after the first has 20 test users") as refused:
        stream_flags.check_stream(stream)
    found = [stream.evaluated(t) for t in range(1, len(stream))]
    for part, t in zip(found, range(1, len(stream)), strict=True):
        assert part.users == stream.test(t).count
        segment = stream.segment(t)
        counted = [int(numbers[1]) for numbers in (segment.held_out, segment.unknown, segment.seen)]
        assert [part.rows, part.unknown_users + part.unknown_items, part.repeats] == counted
    return str(refused.value), [sum(column) for column in zip(*found, strict=True)]


def test_advice_names_the_reason_why_no_test_row_counts():
    k = np.arange(600)
    text, (rows, strangers, *_) = _checked(k // 3, k % 20)
    assert rows == strangers == 90 and "of 90 test rows there 90 have users who are not known at the cut" in text
    assert "such as sessions, cannot be evaluated" in text and "--columns.user" in text and "fewer" not in text
    text, (_, _, unknown, *_) = _checked(k % 40, k // 3)
    assert unknown == 90 and "90 have items that are not" in text and "shorter segments" in text
    text, (*_, repeats, _) = _checked(k % 40, k % 40)
    assert repeats == 90 and "90 repeat pairs" in text and "only repeat what they did" in text
    text, _ = _checked(0 * k, k % 50)
    assert "There are 1 users in all" in text
    rng = np.random.default_rng(0)
    text, _ = _checked(rng.integers(0, 60, 600), rng.integers(0, 90, 600), segments=12)
    assert "Cut fewer, longer segments (--cut.segments, --cut.new-entities)" in text


def test_on_a_command_line_rules_are_named_as_flags(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("user,item,timestamp\n" + "".join(f"{k % 9},{k % 13},{k}\n" for k in range(60)))

    def message(**rules):
        with pytest.raises(ValueError) as refused:
            stream_flags.load_stream(run_flags.Main(data=str(path), cut=run_flags.Cut(**rules)))
        return str(refused.value)

    assert "fewer segments (--cut.segments) or a larger --cut.new-entities" in message(segments=50)
    expected = "give one of --cut.new-entities, --cut.segments, --cut.rows and --cut.at"
    assert expected in message(segments=2, new_entities=5)
    assert "lower --cut.k-core" in message(k_core=99)
    assert "--cut.at=['soon']: 'soon' is not a timestamp" in message(at=("soon",))
    assert "--cut.at=['20200131']" in message(at=("20200131",))
    assert "--cut.replay=-1" in message(replay=-1.0)
    path.write_text("user,item,timestamp\n" + "".join(f"{k % 9},{k % 13},7\n" for k in range(60)))
    with pytest.warns(streams.DataWarning, match="--cut.shuffle-ties orders them at random"):
        stream_flags.load_stream(run_flags.Main(data=str(path), cut=run_flags.Cut(segments=2)))


@pytest.mark.parametrize("split", [(float("nan"), 0.0, 1.0), (0.7, float("nan"), 0.2), (0.8, 0.2), (2.0, -1.5, 0.5)])
def test_splits_that_are_none_are_refused(rows, split):
    with pytest.raises(ValueError, match="split="):
        streams.cut(rows, split=split)
