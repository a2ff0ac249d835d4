"""BiGeaR: signs and their gradient, layers, what a teacher teaches, a step in float64, and bytes; LCE's sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from scall_jax import Budget, FitConfig, SizesConfig, make_run, run_segments, scan
from scall_jax.methods.rivals.lce import items_alone
from scall_jax.recommenders import bpr
from scall_jax.recommenders.bigear.config import BigearConfig
from scall_jax.recommenders.bigear.learning import (
    NOTHING,
    BinaryModel,
    layers_of,
    make_binary_step,
    ranking_vectors,
    signed,
    teach,
)
from scall_jax.recommenders.make_step import optimiser
from scall_jax.recommenders.train_step import TrainState
from scall_jax.tables.compressed.binary_layers import (
    BinaryPlan,
    binary_layers,
    columns_within,
    layer_weights,
    scales_of,
)
from scall_jax.tables.storage import Previous
from tests.helpers import comparable, continued, small_config, small_stream

LAYERS, WIDTH = 2, 8
FIT = FitConfig(layers=LAYERS, batch=64, steps=60, eval_every=20, l2=0.01)
CONFIG = BigearConfig(top=5, users=16, distillation=0.7)


@pytest.fixture(scope="module")
def stream():
    return small_stream()


@pytest.fixture(scope="module")
def segment(stream):
    return jax.tree.map(jnp.asarray, stream.segment(2))


@pytest.fixture(scope="module")
def plan(segment):
    return BinaryPlan(jnp.int32(6), jnp.stack([segment.users, segment.items]))


@pytest.fixture(scope="module")
def storage(stream):
    return binary_layers(LAYERS, WIDTH, stream.capacity.users, stream.capacity.items)


@pytest.fixture(scope="module")
def params(storage, plan, segment):
    params = storage.fresh(jax.random.key(3), plan, 0.5)
    return params._replace(layers=ranking_vectors(BinaryModel(CONFIG, FIT, True), params.latent, plan, segment.graph))


def _plain_layers(latent, graph):
    indptr, used = np.asarray(graph.indptr), int(graph.indptr[-1])
    a = scipy.sparse.csr_matrix(
        (np.asarray(graph.values, np.float64)[:used], np.asarray(graph.indices)[:used], indptr),
        shape=2 * (len(latent),),
    )
    found = [np.asarray(latent, np.float64)]
    for _ in range(LAYERS):
        found.append(a @ found[-1])
    return found


def _plain_signed(x, columns):
    return np.sign(x) * np.abs(x).sum(1, keepdims=True) / columns


def test_the_gradient_of_a_sign_is_a_normal_density():
    x, g = np.zeros((2, 8)), np.ones((2, 8))
    x[:, :2], g[:, :2] = [[0.3, -2.0], [40.0, 0.1]], [[1.0, -3.0], [1e3, 1.0]]
    made, pull = jax.vjp(lambda x: signed(x, jnp.int32(2), 1.5), jnp.array(x))
    np.testing.assert_allclose(np.asarray(made), _plain_signed(x, 2), rtol=1e-6)
    density = np.clip(1.5 / np.sqrt(np.pi) * np.exp(-((1.5 * x) ** 2)), 1e-8, 1)
    np.testing.assert_allclose(pull(jnp.array(g, jnp.float32))[0], density * g, rtol=1e-5)


def test_what_ranks_is_all_layers_side_by_side(params, plan, segment):
    found = layers_of(params.latent, segment.graph, LAYERS)
    expected = _plain_layers(params.latent, segment.graph)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    weighed = [w * _plain_signed(x, 6) for w, x in zip((1 / 3, 2 / 3, 1), expected, strict=True)]
    np.testing.assert_allclose(params.layers, np.concatenate(weighed, 1), rtol=1e-4, atol=1e-6)
    teacher = ranking_vectors(BinaryModel(CONFIG, FIT, False), params.latent, plan, segment.graph)
    weighed = [w * x for w, x in zip(layer_weights(LAYERS), expected, strict=True)]
    np.testing.assert_allclose(teacher, np.concatenate(weighed, 1), rtol=1e-4, atol=1e-6)


def test_a_teacher_teaches_its_best_items_of_each_layer(params, stream, segment):
    users, known = stream.capacity.users, int(segment.items)
    layers = layers_of(params.latent, segment.graph, LAYERS)
    taught = teach(CONFIG, layers, segment)
    for at in range(int(segment.positives.count)):
        user = int(segment.positives.users[at])
        for layer, x in enumerate(layers):
            scores = np.asarray(x, np.float64)[users : users + known] @ np.asarray(x, np.float64)[user]
            wanted = np.argsort(-scores, kind="stable")[: CONFIG.top]
            np.testing.assert_allclose(scores[np.asarray(taught[at, layer])], scores[wanted], rtol=1e-5)
    # Where there are fewer items than it could teach, known ones or places for them, the rest is none.
    few = np.asarray(teach(CONFIG, layers, segment._replace(items=jnp.int32(3))))
    assert (few[..., :3] >= 0).all() and (few[..., :3] < 3).all() and (few[..., 3:] == NOTHING).all()
    many = np.asarray(teach(BigearConfig(top=200), layers, segment))
    assert many.shape[2] == 200 and (many[..., known:] == NOTHING).all() and (many[..., :known] >= 0).all()


def test_a_step_descends_the_loss_of_numpy(params, plan, stream, segment, key):
    model, users = BinaryModel(CONFIG, FIT, True), stream.capacity.users
    taught = teach(CONFIG, layers_of(params.latent, segment.graph, LAYERS), segment)
    start = TrainState(params, optimiser(FIT).init(params.latent))
    bias = jnp.linspace(0, 1, stream.capacity.items)
    made = make_binary_step(model, taught)(key, start, plan, segment, bias)

    known = bpr.KnownGraph(segment.graph, users, segment.items)
    triples = bpr.sample(key, segment.positives, known, FIT.batch, FIT.positives)
    layers = [_plain_signed(x, 6) for x in _plain_layers(params.latent, segment.graph)]
    layers = [w * x for w, x in zip((1 / 3, 2 / 3, 1), layers, strict=True)]
    final, offsets = np.concatenate(layers, 1), np.asarray(bias, np.float64)
    user, positive, negative = (np.asarray(x) for x in triples[:3])
    margin = (final[user] * (final[users + positive] - final[users + negative])).sum(1)
    margin += offsets[positive] - offsets[negative]
    weight, own = np.asarray(triples.weight, np.float64), np.asarray(params.latent, np.float64)
    energy = sum((own[rows] ** 2).sum() for rows in (user, users + positive, users + negative))
    expected = (weight * np.log1p(np.exp(-margin))).sum() / weight.sum() + 0.005 * energy / FIT.batch

    at = jnp.arange(int(segment.positives.count), dtype=jnp.int32)
    lesson = 0.0
    for layer, x in enumerate(layers):
        for place in at:
            items, fading = np.asarray(taught[place, layer]), np.exp(-0.1 * np.arange(1, 6))
            scores = x[users + items] @ x[int(segment.positives.users[place])]
            lesson += (fading * np.log1p(np.exp(-scores))).mean() / len(at)
    # Users that a step teaches are drawn: over many draws they are all users in the mean.
    untaught = make_binary_step(model)(key, start, plan, segment, bias)
    assert float(untaught.loss) == pytest.approx(expected, rel=1e-5)
    many = dataclasses.replace(CONFIG, users=40_000)
    whole = make_binary_step(BinaryModel(many, FIT, True), taught)(key, start, plan, segment, bias)
    assert float(whole.loss) == pytest.approx(expected + 0.7 * lesson, rel=1e-3)
    assert float(made.loss) > expected
    assert (made.state.params.latent != params.latent).any()


def test_signs_and_scales_are_all_that_is_kept(params, plan, storage, stream, segment):
    stored = storage.store(params, plan)
    loaded = storage.load(stored, plan)
    # Scales lie on a grid of 16 to an octave.
    np.testing.assert_allclose(loaded.layers, params.layers, rtol=2 ** (1 / 32) - 1 + 1e-5)
    np.testing.assert_array_equal(np.sign(loaded.latent), np.sign(params.latent))
    known = tuple(np.asarray(plan.known).tolist())
    exported = storage.export(stored, plan, known)
    nbytes = sum(array.nbytes for name, array in exported.items() if name.startswith("codes"))
    assert nbytes == int(storage.allocated(plan)) == 3 * (-(-sum(known) * 6 // 8) + sum(known) + 4)
    again, restored = storage.restore(exported, known)
    for x, y in zip(jax.tree.leaves((stored, plan)), jax.tree.leaves((again, restored)), strict=True):
        np.testing.assert_array_equal(x, y)
    own = np.asarray(storage.sizes(plan))
    assert own[0] == 18 and own.sum() == 18 * sum(known) and int(storage.bits(plan)) == 1
    with pytest.raises(ValueError, match="restore with the stream"):
        storage.restore(exported, (known[0] + 1, known[1]))


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("entities", [3, 8, 1001])
def test_the_most_signs_that_fit_are_taken(layers, entities):
    for units in np.random.default_rng(0).integers((layers + 1) * (entities * 2 + 4), entities * 60, 30).tolist():
        columns = columns_within(units, entities, layers)
        assert columns == int(columns_within(jnp.int32(units), jnp.int32(entities), layers))
        taken = [(layers + 1) * (-(-entities * d // 8) + entities + 4) for d in (columns, columns + 1)]
        assert taken[0] <= units < taken[1]
    assert int(columns_within(jnp.int32(2**31 - 1), jnp.int32(2**20), 0)) == 8 * (2**11 - 1) - 1


def test_vectors_that_grow_keep_their_signs(storage, plan, params, stream, segment, key):
    stored, users = storage.store(params, plan), int(segment.users)
    known = jnp.arange(storage.nodes) < users - 2
    options = dataclasses.replace(small_config().warm_start, init_std=0.2, grow_std=0.1)
    wider = plan._replace(columns=jnp.int32(8))
    made = np.asarray(
        storage.warm_start(key, Previous(stored, plan, known, jnp.ones(storage.nodes)), wider, options)[0]
    )
    old = np.asarray(storage.load(stored, plan).latent)[: users - 2, :6]
    np.testing.assert_allclose(made[: users - 2, :6], options.shrink * old, rtol=1e-6)
    assert np.std(made[: users - 2, 6:]) == pytest.approx(0.1, rel=0.2)
    new = np.concatenate([made[users - 2 : users], made[stream.capacity.users :][: int(segment.items)]])
    assert np.std(new) == pytest.approx(0.2, rel=0.2)
    assert (made[users : stream.capacity.users] == 0).all()


def test_a_budget_without_room_for_signs_is_refused(stream):
    config = small_config("bigear", budget=Budget.mean_size(0.5), fit=FIT)
    with pytest.raises(ValueError, match=r"take 3.38 bytes an entity.*lower fit.layers"):
        make_run(config).init(jax.random.key(0), stream)
    for name, value in (("top", 0), ("users", 0), ("fading", -1.0), ("distillation", -0.5), ("sharpness", 0.0)):
        with pytest.raises(ValueError, match=f"bigear {name}"):
            dataclasses.replace(BigearConfig(), **{name: value})


@pytest.mark.slow
@pytest.mark.parametrize("layers", [0, 2])
def test_a_run_learns_goes_on_from_where_it_stopped_and_is_the_scan(stream, tmp_path, layers):
    fit = dataclasses.replace(FIT, layers=layers)
    config = small_config("bigear", budget=Budget.mean_size(3), charge="stored", fit=fit, bigear=CONFIG)
    lines = run_segments(config, stream, jax.random.key(0), folder=tmp_path / "run")
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(lines)
    assert all(line["bytes_at_rest"] <= line["budget_bytes"] for line in lines)
    assert all(line["allocated_parameters"] == line["bytes_table"] for line in lines)
    assert lines[-1]["test_recall@20"] > 1.2 * 20 / lines[-1]["items"]
    record = scan(config, stream, jax.random.key(0)).record
    assert record.allocated.tolist() == [line["allocated_parameters"] for line in lines]
    np.testing.assert_allclose(record.loss, [line["loss"] for line in lines], rtol=1e-3)


@pytest.mark.slow
def test_training_by_signs_ranks_better_by_signs_than_rounding_afterwards(stream, segment, storage, plan, key):
    """The loss of a student after some steps is below that of its teacher's vectors, rounded."""
    fit = dataclasses.replace(FIT, l2=1e-4)
    teacher, student = (BinaryModel(CONFIG, fit, rounds) for rounds in (False, True))
    state, bias = storage.fresh(key, plan, 0.1), jnp.zeros(stream.capacity.items)

    def train(model, params, taught=None):
        step = jax.jit(make_binary_step(model, taught))
        state = TrainState(params, optimiser(FIT).init(params.latent))
        for number in range(200):
            state = step(jax.random.fold_in(key, number), state, plan, segment, bias).state
        return state.params

    def loss(params, taught=None):
        config = dataclasses.replace(CONFIG, users=4096)
        step = make_binary_step(BinaryModel(config, dataclasses.replace(FIT, batch=4096, l2=0.0), True), taught)
        start = TrainState(params, optimiser(FIT).init(params.latent))
        return float(step(key, start, plan, segment, bias).loss)

    taught = train(teacher, state)
    lists = teach(CONFIG, layers_of(taught.latent, segment.graph, LAYERS), segment)
    assert loss(train(student, taught)) < 0.85 * loss(taught)
    assert loss(train(student, taught, lists), lists) < 0.85 * loss(taught, lists)


def test_sums_and_draws_do_not_know_how_many_columns_are_kept_free(stream, plan, storage, key):
    wider = binary_layers(LAYERS, WIDTH + 24, stream.capacity.users, stream.capacity.items)
    one, other = (np.asarray(x.fresh(key, plan, 0.1).latent) for x in (storage, wider))
    np.testing.assert_array_equal(one, other[:, :WIDTH])
    assert (other[:, WIDTH:] == 0).all()
    for f in (lambda x: signed(x, plan.columns, 1.0), lambda x: scales_of(x, plan.columns)[0][:, None]):
        made, padded = (np.asarray(jax.jit(f)(x)) for x in (one, other))
        np.testing.assert_array_equal(made, padded[:, : made.shape[1]])


def test_items_alone_have_vectors(stream):
    for t, segment in enumerate(stream):
        users, known = int(segment.users), int(segment.items)
        for total in (1, known - 1, 5 * known + 3, 8 * known, 8 * known + 5, 10**6):
            own = np.asarray(
                items_alone(SizesConfig(minimum=0, maximum=8))(jax.random.key(0), segment, jnp.int32(total))
            )
            of_users, of_items = own[: stream.capacity.users], own[stream.capacity.users :]
            assert own.sum() == min(total, 8 * (users + known)), t
            assert of_items.sum() == min(total, 8 * known) and of_users.sum() == own.sum() - of_items.sum()
            assert np.ptp(of_items[:known]) <= 1 and (of_items[known:] == 0).all() and (of_users[users:] == 0).all()


def test_without_propagation_nothing_composes_users(stream):
    for config in (
        small_config("lce", recommender="mf"),
        small_config("lce", recommender="ials"),
        small_config("lce", fit=FitConfig(layers=0)),
    ):
        with pytest.raises(ValueError, match="choose recommender=lightgcn and at least one layer"):
            make_run(config)


@pytest.mark.slow
def test_a_run_without_vectors_of_users_learns_goes_on_and_is_the_scan(stream, tmp_path):
    config = small_config("lce", budget=Budget.mean_size(3), charge="stored", fit=FIT)
    lines = run_segments(config, stream, jax.random.key(0), folder=tmp_path / "run")
    # In few bits nobody pays for scales of users, who have no coordinates.
    coded = dataclasses.replace(config, table="packed_int4", budget=Budget.mean_size(1), charge="table")
    for line in run_segments(coded, stream, jax.random.key(0), segments=2):
        assert line["budget_bytes"] - 8 <= line["bytes_table"] <= line["budget_bytes"]
    assert continued(config, stream, jax.random.key(0), tmp_path) == comparable(lines)
    assert all(line["bytes_at_rest"] <= line["budget_bytes"] for line in lines)
    assert lines[-1]["test_recall@20"] > 1.2 * 20 / lines[-1]["items"]
    record = scan(config, stream, jax.random.key(0)).record
    np.testing.assert_allclose(record.loss, [line["loss"] for line in lines], rtol=1e-3)
