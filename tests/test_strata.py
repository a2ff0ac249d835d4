import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from experiments.strata import finished
from scall_jax.evaluation import user_strata as strata
from scall_jax.evaluation.user_strata import StrataConfig
from tests.helpers import list_files, small_stream


@pytest.fixture(scope="module")
def stream():
    return small_stream()


def _profiles_by_hand(stream, t):
    """Sets of items by user, in plain Python."""
    profiles = {}
    for row in range(stream.bounds[t].train):
        profiles.setdefault(int(stream.user[row]), set()).add(int(stream.item[row]))
    return profiles


def _both_by_hand(profiles, k):
    """n_ij as a dictionary by (i, j), for the k most frequent i of each j."""
    counts = {}
    for items in profiles.values():
        for i, j in itertools.permutations(items, 2):
            counts[j, i] = counts.get((j, i), 0) + 1
    nearest = {}
    for j in {j for j, _ in counts}:
        mine = sorted(((-n, i) for (other, i), n in counts.items() if other == j))[:k]
        nearest |= {(i, j): -n for n, i in mine}
    return nearest


@pytest.mark.parametrize(("k", "work"), [(3, 2**22), (7, 500), (1000, 2**22)])
def test_neighbours_and_coherence_agree_with_plain_python(stream, monkeypatch, k, work):
    monkeypatch.setattr(strata, "_WORK", work)  # many blocks, or one
    known = strata.profiles(stream, 2)
    profiles = _profiles_by_hand(stream, 2)
    both = _both_by_hand(profiles, k)
    near = strata.co_occurring(known, k)
    assert near.items.shape == (known.items, k)
    cells = zip(*(x.ravel().tolist() for x in near), np.repeat(np.arange(known.items), k).tolist(), strict=True)
    got = {(i, j): n for i, n, j in cells if n}
    assert got == both
    having = {i: sum(i in items for items in profiles.values()) for i in range(known.items)}
    users = np.random.default_rng(0).permutation(known.users)[:40].astype(np.int32)
    surprise = strata.mean_surprise(known, users)
    conditional = strata.mean_conditional_surprise(known, users, near, 0.7)
    for u, s, c in zip(users.tolist(), surprise, conditional, strict=True):
        part = {i: having[i] / known.users for i in profiles[u]}
        assert s == pytest.approx(-sum(map(math.log2, part.values())) / len(part))
        given = [
            (both[i, j] + 0.7 * part[i]) / (having[j] + 0.7) if (i, j) in both else part[i]
            for i, j in itertools.permutations(profiles[u], 2)
        ]
        assert math.isnan(c) if len(part) == 1 else c == pytest.approx(-sum(map(math.log2, given)) / len(given))


def test_a_coherent_user_is_less_surprising_given_itself():
    # Two groups of users have four items each, all equally popular; the last user mixes them.
    pairs = [(u, i + 4 * (u % 2)) for u in range(20) for i in range(4)] + [(20, i) for i in (0, 1, 4, 5)]
    user, item = (np.array(sorted(pairs))[:, c] for c in range(2))
    known = strata.Profiles(user, item, 21, 8)
    users = np.array([0, 1, 20])
    near = strata.co_occurring(known, 8)
    s = strata.mean_surprise(known, users)
    cs = strata.mean_conditional_surprise(known, users, near, 1.0)
    assert np.ptp(s) < 0.15
    assert cs[0] == pytest.approx(cs[1]) and cs[2] > cs[0] + 1
    assert cs[0] < 0.5 * s[0]


def test_quantiles_keep_equal_values_together():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 40, 300).astype(float)
    values[:7] = np.nan
    got = strata.quantiles(values, 10)
    assert (got[:7] == 10).all()
    defined = values[7:]
    for value, group in zip(defined, got[7:], strict=True):
        rank = (defined < value).sum() + (defined == value).sum() / 2  # of its middle
        assert group == int(10 * rank / len(defined) + 1e-9)
    np.testing.assert_array_equal(np.bincount(strata.quantiles(rng.permutation(100.0 + np.arange(60)), 3)), 20)


def test_strata_of_a_segment_know_nothing_after_the_cut(stream):
    t = 2
    found = strata.of_segment(stream, t, StrataConfig(neighbours=5))
    segment = stream.segment(t)
    count = int(segment.test.count)
    np.testing.assert_array_equal(found.users, segment.test.users[:count])
    np.testing.assert_array_equal(found.labels[strata.USERS] == 0, found.users >= segment.users_before)
    for q in range(count):
        items = segment.test.items[segment.test.indptr[q] : segment.test.indptr[q + 1]]
        new = int((items >= segment.items_before).sum())
        assert found.items[q].tolist() == [new, len(items) - new]
    assert found.items[:, 0].any() and found.items[:, 1].any()
    frequency = segment.total[found.users]
    deciles = found.labels[strata.FREQUENCY]
    for low, high in itertools.pairwise(np.unique(deciles)):
        assert frequency[deciles == low].max() < frequency[deciles == high].min()
    cut = stream.bounds[t].train
    users = np.arange(stream.known(cut)[0])
    later = stream.item.copy()
    later[cut:] = np.random.default_rng(1).permutation(later[cut:])
    changed = dataclasses.replace(stream, item=later)
    measures = []
    for rows in (stream, changed):
        known = strata.profiles(rows, t)
        near = strata.co_occurring(known, 5)
        measures.append([near.counts, strata.mean_conditional_surprise(known, users, near, 1.0)])
    for one, other in zip(*measures, strict=True):
        np.testing.assert_array_equal(one, other)


def test_different_runs_whose_folders_differ_in_a_seed_alone_keep_apart(tmp_path):
    for folder, key, steps in (("p-seed0/a", 0, 20), ("p-seed1/a", 1, 30), ("q-seed0", 0, 20), ("q-seed1", 1, 20)):
        said = {
            "config": {"steps": steps, "name": folder[0]},
            "stream": {"fingerprint": "x", "segments": 2},
            "key": [0, key],
        }
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(json.dumps(said))
        (tmp_path / folder / "summary.json").write_text("{}")
        list_files(tmp_path / folder)
    found = finished(tmp_path)
    assert {name: len(folders) for name, folders in found.items()} == {"p-seed0/a": 1, "p-seed1/a": 1, "q": 2}
    (tmp_path / "q-seed1" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"q-seed1/config\.json is not what the run wrote"):
        finished(tmp_path)


def test_means_by_stratum(stream):
    found = strata.of_segment(stream, 2)
    metrics = np.random.default_rng(0).random((len(found.users), 6)).astype(np.float32)
    lines = {(line["split"], line["stratum"]): line for line in strata.rows(found, found.users, metrics)}
    for split in (s for s in strata.SPLITS if s != strata.ITEMS):
        here = [line for (s, _), line in lines.items() if s == split]
        assert sum(line["users"] for line in here) == len(found.users)
        pooled = sum(line["users"] * line["ndcg@20"] for line in here) / len(found.users)
        assert pooled == pytest.approx(metrics[:, 1].mean(), abs=1e-6)
    have = found.items[:, 0] > 0
    line = lines[strata.ITEMS, "new"]
    assert line["users"] == have.sum() and line["recall@20"] == pytest.approx(metrics[have, 2].mean(), abs=1e-6)
    with pytest.raises(ValueError, match="other users"):
        strata.rows(found, found.users[::-1], metrics)
    with pytest.raises(ValueError, match="wrote 2 metrics"):
        strata.rows(found, found.users, metrics[:, :2])
    with pytest.raises(ValueError, match="smoothing=0"):
        StrataConfig(smoothing=0)
