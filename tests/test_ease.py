import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import make_run, run_segments
from scall_jax.analysis import report
from scall_jax.recommenders import ease
from scall_jax.recommenders.judge import first_users
from scall_jax.run import checkpoint
from tests.helpers import small_config, small_stream


@pytest.fixture(scope="module")
def stream():
    return small_stream(2)


@pytest.fixture(scope="module")
def run(stream, tmp_path_factory):
    """Folder and lines of a run that was stopped after its first segment and went on."""

    class Stop(Exception):
        pass

    def stop(line):
        raise Stop

    folder, config = tmp_path_factory.mktemp("run") / "ease", small_config("ease")
    with pytest.raises(Stop):
        run_segments(config, stream, jax.random.key(0), folder=folder, on_segment=stop)
    return folder, run_segments(config, stream, jax.random.key(0), folder=folder)


def _interactions(stream, t):
    """X of all rows before the cut, f64[users, items] of the stream's capacities."""
    x = np.zeros((stream.capacity.users, stream.capacity.items))
    cut = stream.bounds[t].train
    x[stream.user[:cut], stream.item[:cut]] = 1
    return x


@pytest.mark.parametrize("ridge", [2.0, 200.0])
def test_weights_solve_the_constrained_problem_column_by_column(stream, monkeypatch, ridge):
    monkeypatch.setattr(ease, "_BLOCK", 32)  # several blocks of users, the last one not full
    x = _interactions(stream, 0)
    together = ease.gram(stream.segment(0))
    np.testing.assert_array_equal(together, x.T @ x)
    got = np.asarray(ease.closed_form(together, ridge))
    for j in range(x.shape[1]):
        others = np.arange(x.shape[1]) != j
        a = np.concatenate([x[:, others], np.sqrt(ridge) * np.eye(others.sum())])
        wanted = np.linalg.lstsq(a, np.concatenate([x[:, j], np.zeros(others.sum())]))[0]
        np.testing.assert_allclose(got[others, j], wanted, atol=2e-5)
        assert got[j, j] == 0


def _recall(scores, stream, t):
    """Recall@20 by user in plain numpy, and the users."""
    segment, x = stream.segment(t), _interactions(stream, t)
    found = []
    for q in range(int(segment.test.count)):
        user = segment.test.users[q]
        wanted = segment.test.items[segment.test.indptr[q] : segment.test.indptr[q + 1]]
        allowed = np.where((x[user] == 0) & (np.arange(x.shape[1]) < segment.items), scores[user], -np.inf)
        found.append(np.isin(np.argsort(-allowed, kind="stable")[:20], wanted).sum() / len(wanted))
    return np.array(found)


def test_a_run_ranks_by_the_weights_beats_popularity_and_says_its_bytes(stream, run):
    folder, lines = run
    floors = run_segments(small_config("popularity-all"), stream, jax.random.key(0))
    for t, line in enumerate(lines):
        x, known = _interactions(stream, t), line["items"]
        assert line["ridge"] in ease.RIDGES and line["popularity"] is None
        p = np.linalg.inv(x.T @ x + line["ridge"] * np.eye(x.shape[1]))
        weights = -p / np.diag(p)[None, :]
        np.fill_diagonal(weights, 0)
        expected = _recall(x @ weights, stream, t)
        with np.load(folder / "users" / f"segment-{t:04d}.npz") as stored:
            agree = np.isclose(stored["metrics"][:, 0], expected, atol=1e-6)
        assert agree.mean() > 0.98  # float32 may swap neighbours in a list
        assert line["bytes_parameters"] == 4 * (known**2 + 1) and line["budget_bytes"] == 0
        assert line["disk_bytes"] > line["bytes_parameters"]
    assert report.describe("ease", lines)["table_mb"] == pytest.approx(4e-6 * (known**2 + 1))
    assert lines[-1]["test_recall@20"] > 1.15 * floors[-1]["test_recall@20"]
    assert floors[-1]["bytes_at_rest"] == 0 and report.describe("popularity-all", floors)["table_mb"] is None


def test_a_checkpoint_holds_the_weights(stream, run):
    folder, _ = run
    state = make_run(small_config("ease")).init(jax.random.key(0), stream)
    restored = checkpoint.restore(folder / "checkpoints", 1, state, ease.EASE.exporter(120, stream.capacity.items))
    expected = ease.closed_form(ease.gram(stream.segment(1)), restored.params.ridge)
    np.testing.assert_allclose(restored.params.weights, expected, atol=1e-5)
    with pytest.raises(ValueError, match="another stream's"):
        checkpoint.restore(folder / "checkpoints", 1, state, ease.EASE.exporter(120, 9))


def test_the_ridge_is_the_best_on_valid(stream, run):
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    sampled, together = first_users(segment.valid, 64), ease.gram(segment)

    @jax.jit
    def fitness(ridge):
        model = ease.Ease(ease.closed_form(together, ridge), ridge)
        return ease.EASE.rank(model, jnp.zeros(together.shape[0]), segment, sampled).fitness()

    found = [float(fitness(ridge)) for ridge in ease.RIDGES]
    assert len(set(found)) > 1
    assert run[1][1]["ridge"] == ease.RIDGES[int(np.argmax(found))]


def test_too_many_items_are_refused_before_anything_is_made(stream, monkeypatch):
    monkeypatch.setattr(ease, "MOST_ITEMS", 50)
    with pytest.raises(ValueError, match=r"ease of V=\d+ items.*at most 50 items; leave ease out"):
        make_run(small_config("ease")).init(jax.random.key(0), stream)
