"""Borders of the account of bytes, and of the checks of a record, that a change of one operator would move."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from scall_jax import Budget, Config, SizesConfig, make_run, streams, tables
from scall_jax.methods import embedding_phases
from scall_jax.methods.context import bias_bytes
from scall_jax.methods.embedding_phases import budget_totals
from scall_jax.methods.planner import SearchRecord
from scall_jax.run import records
from scall_jax.run.records import Record
from scall_jax.tables.storage import charged, most_spent, size_bytes
from tests.helpers import small_config, small_stream


@pytest.fixture(scope="module")
def stream():
    return small_stream(segments=3)


@pytest.mark.parametrize("charge", ["table", "stored", "replay", "serving"])
@pytest.mark.parametrize("bias", ["none", "decayed"])
def test_what_is_paid_for_beside_the_table_is_taken_off_before_it(charge, bias):
    rows = streams.synthetic(jax.random.key(7), users=120, items=80, interactions=4000)
    stream = streams.cut(rows, segments=3, replay=0.2)
    assert stream.replay_bytes(2) > 0
    config = Config("uniform", Budget.megabytes(0.03), charge=charge, bias=bias, sizes=SizesConfig(maximum=300))
    for t, total in enumerate(budget_totals(config, stream)):
        users, items = stream.known(stream.bounds[t].train)
        beside = 0
        if charge != "table":
            beside += 4 * items * (bias == "decayed") + 2 * (users + items + 2)
        if charge == "replay":
            beside += stream.replay_bytes(t)
        if charge == "serving":
            beside += min(stream.graph_bytes(t), 4 * 300 * (users + items))
        assert total == (30000 - beside) // 4


def test_a_budget_of_one_unit_is_one_and_of_none_is_refused_with_what_takes_it(stream, monkeypatch):
    entities = [sum(stream.known(bounds.train)) for bounds in stream.bounds]
    config = small_config("uniform", budget=Budget.megabytes(4e-6))
    assert budget_totals(config, stream) == [1, 1, 1]
    most = 2**31 - 1 - stream.capacity.nodes - 2
    with pytest.raises(ValueError, match=rf"segment 0: 0 budget units must lie between 1 and {most}$"):
        budget_totals(small_config("uniform", budget=Budget.megabytes(3e-6)), stream)
    assert budget_totals(config, stream, unlimited=True) == [16 * number for number in entities]
    monkeypatch.setattr(embedding_phases, "DEVICE_LIMIT", 1 + stream.capacity.nodes + 2)
    assert budget_totals(config, stream) == [1, 1, 1]
    poor = small_config("uniform", budget=Budget.megabytes(1e-4), charge="stored", bias="decayed")
    items = stream.known(stream.bounds[0].train)[1]
    with pytest.raises(ValueError, match=rf"bias takes {4 * items} of 100 bytes: bias=none; sizes are paid for too"):
        budget_totals(poor, stream)


def test_a_recommender_that_needs_nothing_to_serve_pays_for_its_table_and_sizes(stream):
    """Sizes up to 70,000 take four bytes, so that one byte more would take off a parameter."""
    config = Config("uniform", Budget.megabytes(0.03), recommender="mf", sizes=SizesConfig(maximum=70000))
    stored, serving = (dataclasses.replace(config, charge=charge) for charge in ("stored", "serving"))
    assert budget_totals(serving, stream) == budget_totals(stored, stream)


def test_the_books_of_a_run_say_what_its_budget_allows(stream):
    config = small_config("uniform", budget=Budget.mean_size(3), bias="decayed", sizes=SizesConfig(maximum=300))
    users, items = stream.capacity.users, stream.capacity.items
    for method, allowed in (("uniform", 3), ("full", 300)):
        run = make_run(dataclasses.replace(config, method=method))
        state = jax.eval_shape(lambda key, run=run: run.init(key, stream), jax.random.key(0))
        books = run.method.bookkeeping(state, stream)
        assert books.budget_bytes(1, (7, 5)) == 4 * 12 * allowed
        assert books.side_bytes((7, 5)) == 20
        assert books.totals().tolist() == [allowed * sum(stream.known(bounds.train)) for bounds in stream.bounds]
        plan = np.zeros(users + items + 2, np.int32)
        plan[[1, users]] = 5, 270
        assert books.sizes(plan).tolist() == plan.tolist() and books.width(plan) == 270
        assert books.bits(plan).tolist() == [32] * (users + items)
        exported = books.exporter.export(np.zeros(state.params.shape, np.float32), plan, (2, 1))
        assert exported["metadata_sizes"].tolist() == [0, 5, 270, 0, 0] and charged(exported)["metadata"] == 10


@pytest.mark.parametrize(
    ("fit", "choice", "chooses", "search"),
    [(9000, 1, True, 1), (1, 9000, True, 1), (1, 1, True, 9000), (1, 9000, False, None), (1, None, True, None)],
)
def test_training_holds_the_most_of_fit_choice_and_search(stream, monkeypatch, fit, choice, chooses, search):
    """Beside what the choice and the search hold there is the table."""
    config = small_config("uniform", budget=Budget.mean_size(3))
    run = make_run(config)
    state = jax.eval_shape(lambda key: run.init(key, stream), jax.random.key(0))
    recommender = types.SimpleNamespace(
        held_by_training=lambda storage, params: np.zeros(fit, np.uint8),
        held_by_choice=None if choice is None else lambda segment, mean: np.zeros(choice, np.uint8),
        choose=len if chooses else None,
    )
    monkeypatch.setattr(embedding_phases, "recommender_of", lambda config: recommender)
    planner = types.SimpleNamespace(
        search_holds=None if search is None else lambda context: jax.numpy.zeros(search, np.uint8)
    )
    books = embedding_phases._bookkeeping(config, planner, False, state, stream)
    table, also = state.params.size * 4, [search or 0, (choice or 0) * chooses]
    expected = max(fit, *(table + held for held in also if held)) if any(also) else fit
    assert books.training_bytes(state, stream.segment(1), None) == expected


def test_the_books_of_a_method_without_a_table_say_nothing_is_spent(stream):
    run = make_run(small_config("popularity-all", bias="none"))
    books = run.method.bookkeeping(jax.eval_shape(lambda key: run.init(key, stream), jax.random.key(0)), stream)
    assert books.budget_bytes(1, (7, 5)) == books.side_bytes((7, 5)) == books.training_bytes(None, None, None) == 0
    assert books.width(None) == 0 and books.totals().tolist() == [0] * stream.most_segments
    nodes = stream.capacity.users + stream.capacity.items
    assert books.sizes(None).tolist() == [0] * (nodes + 2) and books.bits(None).tolist() == [0] * nodes


def test_bytes_of_arrays_sizes_and_counts():
    exported = {"parameters": np.zeros(3, np.float32), "parameters_steps": np.zeros(2, np.float32)}
    assert charged(exported | {"codes": np.zeros(5, np.uint8)}) == {"parameters": 20, "codes": 5, "metadata": 0}
    assert [size_bytes(maximum) for maximum in (255, 256, 65535, 65536)] == [1, 2, 2, 4]
    units = tables.STORAGES["packed"].budget_units
    # Five entities and two shared vectors: a byte more or less would change the number of parameters.
    assert [units(nbytes, (3, 2), 255, True) for nbytes in (106, 107)] == [24, 25]
    assert [units(nbytes, (3, 2), 256, True) for nbytes in (113, 114)] == [24, 25]
    assert units(100, (3, 2), 255, False) == 25
    assert most_spent([100, 90, 10], [(1, 1), (2, 3), (9, 9)], 8) == 40
    assert bias_bytes(Config(bias="decayed"), 3) == 12


def test_the_budget_pays_for_what_its_charge_says():
    line = {"bytes_table": 1, "bytes_at_rest": 20, "bytes_serving": 300, "bytes_replay": 4000}
    assert [records.paid_bytes(line, charge) for charge in ("table", "stored", "serving", "replay")] == [
        1,
        20,
        300,
        4020,
    ]


def _record(**options):
    """Three stacked segments, numbered from 5, in the second of which two of three probes were made."""
    count, fitness = np.array([0, 2, 0]), np.zeros((3, 3))
    most, given = np.array([0, 9, 0]), np.array([[99, 99, 99], [9, 7, 99], [99, 99, 99]])
    search = SearchRecord(count, None, fitness, None, given, most, np.array([0, 7, 0]), None)
    found = Record(*[None] * len(Record._fields))._replace(
        segment=np.array([5, 6, 7]),
        loss=np.ones(3),
        bad_step=np.full(3, -1),
        budget=np.full(3, 8),
        allocated=np.full(3, 8),
    )
    return found._replace(search=search)._replace(**options)


def test_a_record_within_its_budget_passes_alone_and_stacked():
    records.check(_record())
    for segment in range(3):
        records.check(jax.tree.map(lambda x, segment=segment: x[segment], _record()))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bad_step": np.array([-1, 0, -1])}, ValueError, "^segment 6, step 0: the loss is not finite"),
        ({"bad_step": np.array([-1, 0, 3])}, ValueError, "^segment 6, step 0: the loss is not finite"),
        # A system that is not solved has a loss that is finite.
        (
            {"bad_step": np.array([-1, 2, -1])},
            records.Diverged,
            "raise ials.regularisation or ials.unobserved, or give",
        ),
        ({"allocated": np.array([8, 8, 9])}, AssertionError, "^segment 7 has 9 budget units of a budget of 8"),
        ({"allocated": np.array([8, 9, 10])}, AssertionError, "^segment 6 has 9 budget units of a budget of 8"),
        ({"loss": np.array([1.0, np.nan, np.inf])}, ValueError, "^segment 6: loss is not finite"),
    ],
)
def test_a_record_that_is_not_right_is_refused_with_its_first_segment(options, error, message):
    with pytest.raises(error, match=message):
        records.check(_record(**options))


@pytest.mark.parametrize(("given", "probe"), [([10, 7, 0], 0), ([9, 6, 0], 1), ([9, 10, 0], 1), ([6, 10, 0], 0)])
def test_a_probe_outside_its_budget_is_refused_by_its_number(given, probe):
    record = _record()
    allocated = record.search.allocated.copy()
    allocated[1] = given
    message = rf"^segment 6, probe {probe} has {given[probe]} budget units of a budget of 7 to 9"
    with pytest.raises(AssertionError, match=message):
        records.check(record._replace(search=record.search._replace(allocated=allocated)))
