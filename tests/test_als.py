import json
import sys

import jax
import numpy as np
import pytest

from experiments import als, strata
from scall_jax.run import text_files
from scall_jax.streams import cut, synthetic

SMALL = {"regularisations": (0.1, 1e6), "weights": (5.0,), "iterations": 5}


@pytest.fixture(scope="module")
def stream():
    rows = synthetic(jax.random.key(7), users=120, items=80, interactions=4000)
    return cut(rows, segments=2)


def _plain(known, width, regularisation, weight, iterations, seed):
    """Alternating least squares of weighted squares, one row at a time in float64."""
    rng = np.random.default_rng(seed)
    x = np.zeros((known.users, known.items))
    x[known.user, known.item] = 1
    factors = [0.01 * rng.random((n, width)) for n in (known.users, known.items)]
    for _ in range(iterations):
        for side, rows in ((0, x), (1, x.T)):
            other = factors[1 - side]
            for n, row in enumerate(rows):
                confidence = np.where(row > 0, weight, 1.0)
                gram = (other * confidence[:, None]).T @ other + regularisation * np.eye(width)
                factors[side][n] = np.linalg.solve(gram, other.T @ (confidence * row))
    return factors[0].astype(np.float32), factors[1].astype(np.float32)


def test_factors_are_ranked_as_runs_are(stream, tmp_path):
    flags = als.Als(**SMALL)
    folder = tmp_path / "als" / "width4-seed0"
    lines = als.run_width(flags, stream, 4, 0, folder, _plain)
    assert lines == text_files.read_lines(folder / "metrics.jsonl")
    for t, line in enumerate(lines):
        # the other regularisation leaves nothing of the factors
        assert line["regularisation"] == 0.1 and line["valid_recall@20"] > 0
        assert line["bytes_at_rest"] == 4 * 4 * (line["users"] + line["items"])
        known, segment = als.strata.profiles(stream, t), stream.segment(t)
        users, items = _plain(known, 4, 0.1, 5.0, 5, 0)
        scores = users.astype(np.float64) @ items.T
        scores[known.user, known.item] = -np.inf
        recalls = []
        for q in range(int(segment.test.count)):
            wanted = segment.test.items[segment.test.indptr[q] : segment.test.indptr[q + 1]]
            top = np.argsort(-scores[segment.test.users[q]])[:20]
            recalls.append(np.isin(top, wanted).sum() / len(wanted))
        assert line["test_recall@20"] == pytest.approx(np.mean(recalls), abs=2e-3)
    frame = strata.to_frame(strata.finished(tmp_path), stream, strata.StrataConfig())
    assert frame["run"].unique().to_list() == ["als/width4"]
    assert json.loads((folder / "summary.json").read_text())["segments"] == 2


def test_without_the_library_its_extra_is_named(stream, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "implicit.als", None)
    monkeypatch.setitem(sys.modules, "implicit", None)
    with pytest.raises(ValueError, match=r'pip install "scall_jax\[als\]"'):
        als.run_width(als.Als(**SMALL), stream, 4, 0, tmp_path)
    with pytest.raises(ValueError, match="greater than 0"):
        als.Als(weights=(0.0,))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the library, about threads
def test_the_library_finds_what_plain_least_squares_find(stream):
    pytest.importorskip("implicit", reason="the extra [als] is not installed")
    known = als.strata.profiles(stream, 0)
    x = np.zeros((known.users, known.items))
    x[known.user, known.item] = 1

    def loss(users, items):
        confidence = np.where(x > 0, 5.0, 1.0)
        return (confidence * (x - users @ items.T) ** 2).sum() + 0.1 * ((users**2).sum() + (items**2).sum())

    ours, theirs = (loss(*f(known, 4, 0.1, 5.0, 30, 0)) for f in (_plain, als.by_implicit))
    assert theirs == pytest.approx(ours, rel=0.02)
