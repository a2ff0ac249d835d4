import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import (
    METHODS,
    Budget,
    FitConfig,
    SearchConfig,
    SizesConfig,
    WarmStartConfig,
    make_run,
    run_segments,
    scan,
    sweep,
    tables,
)
from scall_jax.analysis import plots
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.embedding_phases import budget_totals
from scall_jax.methods.recommender import recommender_of
from scall_jax.methods.registry import EMBEDDING_METHODS
from scall_jax.run import compilation, records
from scall_jax.run.phases import CompiledPhases
from tests.helpers import comparable, continued, small_config, small_stream


@pytest.fixture(scope="module")
def stream():
    return small_stream()


WHOLE = small_config("fixed", budget=Budget.mean_size(30.7), sizes=SizesConfig(maximum=40))


@pytest.fixture(scope="module")
def whole(stream, tmp_path_factory):
    """A run on disk: its folder, its lines, those reported, and how many were when programs had been compiled."""
    reported, compiled, folder = [], [], tmp_path_factory.mktemp("whole") / "r"
    callbacks = {"on_segment": reported.append, "on_compiled": lambda: compiled.append(len(reported))}
    return folder, run_segments(WHOLE, stream, jax.random.key(0), folder=str(folder), **callbacks), reported, compiled


def _comparable(lines):
    left_out = {*records.VOLATILE, *records.ACCOUNT}
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines]


def _as_lines(record, count):
    return [records.as_dict(jax.tree.map(lambda leaf, t=t: leaf[t], record)) for t in range(count)]


@pytest.mark.parametrize(
    "method", [*(pytest.param(x, marks=pytest.mark.slow) for x in ("fixed", "frequency")), "popularity-decayed"]
)
def test_scan_and_host_loop_give_the_same_records(stream, method):
    config = small_config(method, bias="decayed")
    key = jax.random.key(5)
    lines = run_segments(config, stream, key)
    state, record = (getattr(scan(config, stream, key), name) for name in ("state", "record"))
    described = recommender_of(config).describe(state.recommender) if method in EMBEDDING_METHODS else {}
    assert {name: lines[-1][name] for name in described} == described
    for host, scanned in zip(_comparable(lines), _as_lines(record, len(stream)), strict=True):
        # What the recommender remembers is in its state, and no part of the record.
        assert host.keys() == {*scanned, *described}
        host = {name: value for name, value in host.items() if name in scanned}
        for name, value in host.items():
            expected = pytest.approx(scanned[name], abs=1e-5) if isinstance(value, float) else scanned[name]
            assert value == expected, name


def test_the_frame_of_a_scan_has_the_values_of_its_arrays_by_name(stream):
    config = small_config("fixed")
    result = scan(config, stream, jax.random.key(5))
    _check_frame(result.frame, jax.tree.map(lambda x: x[None], result.record), [config.budget])


@pytest.mark.slow
def test_the_frame_of_a_sweep_has_a_row_for_each_run_and_segment(stream):
    budgets = [Budget.mean_size(2), Budget.mean_size(8), Budget.megabytes(0.002)]
    keys = [jax.random.key(seed) for seed in (0, 1, 1)]
    result = sweep(small_config("uniform"), stream, keys, budgets)
    _check_frame(result.frame, result.record, budgets)
    searched = records.frame(result.record._replace(action=result.record.action.at[0, 1].set(0.5)), budgets)
    assert searched["action"][1].to_list() == [0.5, 0.5, 0.5]
    assert searched["action"].null_count() == len(searched) - 1
    assert result.state.totals.shape == (len(budgets), len(stream))
    with pytest.raises(ValueError, match="2 budgets of 3 runs"):
        records.frame(result.record, budgets[:2])


def _check_frame(frame, record, budgets):
    runs, segments = record.segment.shape
    assert frame.columns[:3] == ["run", "segment", "budget"] and len(frame) == runs * segments
    expected = {
        "run": np.repeat(np.arange(runs), segments),
        "segment": np.tile(np.arange(segments), runs),
        "budget": np.repeat([str(budget) for budget in budgets], segments),
        "allocated_parameters": record.allocated,
        "loss": record.loss,
        "test_recall@20": record.test.recall[:, :, 0, 2],
        "valid_ndcg@5": record.valid.ndcg[:, :, 0, 0],
        "test_new_recall@10": record.test.recall[:, :, 1, 1],
        "test_warm_users": record.test.users[:, :, 2],
        "valid_coverage@20": record.valid.coverage[:, :, 2],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(frame[name].to_numpy(), np.ravel(values), err_msg=name)
    for number in range(runs):
        lines = frame.filter(run=number).to_dicts()
        one = _as_lines(jax.tree.map(lambda x, n=number: x[n], record), segments)
        assert records.summarise(lines) == records.summarise(one)


@pytest.mark.slow  # the tables themselves are compared in test_tables.py
def test_packed_and_masked_tables_give_the_same_records(stream):
    budget = Budget.mean_size(2.5)
    packed, masked = (
        run_segments(small_config("fixed", budget=budget, table=table), stream, jax.random.key(1))
        for table in ("packed", "masked")
    )
    for a, b in zip(packed, masked, strict=True):
        assert a["allocated_parameters"] == b["allocated_parameters"]
        assert a["test_recall@20"] == pytest.approx(b["test_recall@20"], abs=1e-5)
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert packed[-1]["bytes_resident"] == 4 * packed[-1]["budget_parameters"]
    assert masked[-1]["bytes_resident"] > 5 * packed[-1]["bytes_resident"]


BUDGETS = [
    Budget.mean_size(0.3),  # less than the minimum sizes take
    Budget.mean_size(1),
    Budget.mean_size(7.3),
    Budget.mean_size(1000),  # more than the largest sizes take
    Budget.megabytes(4e-6),  # one parameter
    Budget.schedule([Budget.mean_size(8), Budget.mean_size(0.5), Budget.mean_size(12)]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "minimum"), [*((name, 1) for name in ALLOCATORS), ("fixed", 3), ("fixed", 0), ("random", 0)]
)
def test_every_method_gives_out_every_budget_exactly(stream, method, minimum):
    sizes_config = SizesConfig(minimum=minimum, maximum=40)
    for budget in BUDGETS:
        config = small_config(method, budget=budget, sizes=sizes_config)
        run = make_run(config)
        state = run.init(jax.random.key(0), stream)
        prepare = jax.jit(run.prepare)
        for t, segment in enumerate(stream):
            prepared = prepare(state, segment)
            entities = int(segment.users + segment.items)
            allowed = entities * 40 if method == "full" else budget.parameters(t, entities)
            sizes = np.asarray(prepared.sizes)
            own = np.concatenate([sizes[: segment.users], sizes[stream.capacity.users :][: segment.items]])
            assert sizes.sum() == min(allowed, entities * 40)
            assert own.sum() + sizes[-2:].sum() == sizes.sum()  # nodes that do not exist have size 0
            assert sizes.max() <= 40
            if allowed >= (minimum or 40) * entities:
                assert own.min() >= minimum and sizes[-2:].sum() == 0
            elif minimum == 0:  # shares decide which entities have no parameters
                assert sizes[-2:].sum() == min(2, allowed) and own.min() >= 0
            else:
                assert (own == 0).any() and sizes[-2:].sum() == min(2 * minimum, allowed)
            assert np.count_nonzero(prepared.params) <= sizes.sum()


@pytest.mark.slow
def test_without_a_minimum_the_rare_make_room_for_the_frequent(stream):
    segment, found = stream.segment(3), {}
    for minimum in (1, 0):
        sizes_config = SizesConfig(minimum=minimum, maximum=40, power=1.0)
        config = small_config("frequency", budget=Budget.mean_size(1), sizes=sizes_config)
        run = make_run(config)
        own = np.asarray(run.prepare(run.init(jax.random.key(0), stream), segment).sizes)[:-2]
        found[minimum] = np.concatenate([own[: segment.users], own[stream.capacity.users :][: segment.items]])
    assert (found[1] == 1).all()
    count = np.concatenate(
        [segment.frequency[: segment.users], segment.frequency[stream.capacity.users :][: segment.items]]
    )
    wanted = found[0].sum() * count / count.sum()
    assert (found[0] == 0).any() and found[0].max() > 3
    assert np.abs(found[0] - wanted).max() <= 1.5
    lines = run_segments(config, stream, jax.random.key(0))
    assert lines[-1]["entities_without_parameters"] > 0
    assert all(line["allocated_parameters"] == line["budget_parameters"] for line in lines)


def test_sizes_follow_frequency_except_where_shuffled(stream):
    segment = stream.segment(3)
    frequency = segment.total[: segment.users]

    def agreement(method):
        config = small_config(method, sizes=SizesConfig(ranking="total"))
        run = make_run(config)
        prepared = jax.jit(run.prepare)(run.init(jax.random.key(0), stream), segment)
        sizes = prepared.sizes[: int(segment.users)]
        return np.corrcoef(np.argsort(np.argsort(frequency)), np.asarray(sizes))[0, 1], np.sort(sizes)

    (fixed, sizes), (shuffled, same_sizes) = agreement("fixed"), agreement("shuffled")
    assert fixed > 0.9 and abs(shuffled) < 0.3
    np.testing.assert_array_equal(sizes, same_sizes)


@pytest.mark.slow
def test_one_compilation_for_all_segments_and_budgets(stream):
    traces = []
    config = small_config("fixed")
    run = make_run(config)

    def step(state, segment):
        traces.append(1)
        return run.step(state, segment)

    compiled = jax.jit(step)
    state = run.init(jax.random.key(0), stream)
    for totals in (state.totals, state.totals // 2):
        carried = state._replace(totals=totals)
        for segment in stream:
            carried, record = compiled(carried, jax.tree.map(jnp.asarray, segment))
            assert int(record.allocated) == int(totals[record.segment])
    assert len(traces) == 1


def test_no_host_transfer_inside_a_step(stream):
    run = make_run(small_config("fixed"))
    state = run.init(jax.random.key(0), stream)
    segment = jax.device_put(stream.segment(0))
    step = jax.jit(run.step).lower(state, segment).compile()
    with jax.transfer_guard("disallow"):
        _, record = jax.block_until_ready(step(state, segment))
        with pytest.raises(RuntimeError, match="isallowed"):  # shows that the guard works
            step(state, jax.tree.map(np.asarray, stream.segment(0)))
    assert record.steps == 20 and np.isfinite(record.loss)


@pytest.mark.slow
def test_a_run_is_a_function_of_its_key(stream):
    config = small_config("uniform")
    one, same, other = (_comparable(run_segments(config, stream, jax.random.key(k))) for k in (0, 0, 1))
    assert one == same != other


def test_starting_afresh_forgets_and_warm_start_does_not(stream):
    segment = stream.segment(1)
    for warm, forgets in ((True, False), (False, True)):
        config = small_config("uniform", warm_start=WarmStartConfig(enabled=warm))
        run = make_run(config)
        state = run.init(jax.random.key(0), stream)
        prepare = jax.jit(run.prepare)
        state = state._replace(
            params=jnp.full_like(state.params, 7.0),
            plan=prepare(state, stream.segment(0)).plan,
            known=jnp.stack([stream.segment(0).users, stream.segment(0).items]),
        )
        params = np.asarray(prepare(state, segment).params)
        assert (np.abs(params).max() < 1) == forgets
        if not forgets:
            assert np.isclose(params, 0.3 * 7).sum() == 8 * int(stream.segment(0).users + stream.segment(0).items)


def test_records_on_disk_hold_the_budget(whole):
    folder, lines, reported, compiled = whole
    assert compiled == [0] * 4  # sizes, fit, evaluation and the first state, before any segment
    assert lines == reported == [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        entities = line["users"] + line["items"]
        assert line["allocated_parameters"] == line["budget_parameters"] == int(30.7 * entities)
        stored = np.load(folder / "sizes" / f"segment-{line['segment']:04d}.npz")
        assert stored["users"].sum() + stored["items"].sum() == line["allocated_parameters"]
        assert len(stored["users"]) == line["users"] and len(stored["items"]) == line["items"]


@pytest.mark.slow
def test_a_checkpoint_grows_by_the_budget(stream, tmp_path):
    """The bookkeeping of a checkpoint is the same at both budgets, so that the difference is that of the parameters."""
    disk, memory = [], []
    for size in (10, 40):
        config = small_config("uniform", budget=Budget.mean_size(size), sizes=SizesConfig(maximum=64))
        line = run_segments(config, stream, jax.random.key(0), folder=tmp_path / str(size))[-1]
        disk.append(line["disk_bytes"])
        memory.append(4 * line["allocated_parameters"])
    assert memory[1] - memory[0] > 15_000
    assert disk[1] - disk[0] == pytest.approx(memory[1] - memory[0], rel=0.12)


@pytest.mark.slow  # test_folder.py has stopped runs and torn lines
@pytest.mark.parametrize("method", ["fixed", "popularity-decayed"])
def test_a_stopped_run_continues_to_the_same_records_bit_for_bit(stream, tmp_path, method):
    config, key = small_config(method), jax.random.key(3)
    whole = run_segments(config, stream, key, folder=tmp_path / "whole")

    class Stop(Exception):
        pass

    for stop_at in range(len(stream) - 1):

        def stop(line, at=stop_at):
            if line["segment"] == at:
                raise Stop

        with pytest.raises(Stop):
            run_segments(config, stream, key, folder=tmp_path / "parts", on_segment=stop)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"segment": 3, "torn')
    parts = run_segments(config, stream, key, folder=tmp_path / "parts")
    assert _comparable(whole) == _comparable(parts)


def test_a_folder_of_another_run_is_refused(stream, tmp_path):
    run_segments(small_config("popularity-all"), stream, jax.random.key(0), folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds another run.*config.method 'popularity-all' there"):
        run_segments(small_config("popularity-segment"), stream, jax.random.key(0), folder=tmp_path)
    with pytest.raises(ValueError, match="holds another run"):
        run_segments(small_config("popularity-all"), stream, jax.random.key(1), folder=tmp_path)


def test_a_folder_that_lost_lines_is_refused(stream, tmp_path):
    config = small_config("popularity-all")
    run_segments(config, stream, jax.random.key(0), folder=tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(ValueError, match=r"metrics\.jsonl is not what the run wrote"):
        run_segments(config, stream, jax.random.key(0), folder=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json is not what the run wrote"):
        run_segments(config, stream, jax.random.key(0), folder=tmp_path)


@pytest.mark.slow
def test_a_run_with_keys_of_another_kind_continues(stream, tmp_path):
    config, key = small_config("uniform"), jax.random.key(3, impl="rbg")
    whole = run_segments(config, stream, key)
    assert continued(config, stream, key, tmp_path) == comparable(whole)


@pytest.mark.parametrize("program", [run_segments, pytest.param(scan, marks=pytest.mark.slow)])
def test_non_finite_loss_names_segment_and_step(stream, program):
    fit = FitConfig(layers=1, batch=64, steps=40, eval_every=10, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"segment 0, step \d+: the loss is not finite"):
        program(small_config("uniform", fit=fit), stream, jax.random.key(0))


def test_unknown_method_and_impossible_budget(stream):
    with pytest.raises(ValueError, match="choose one of uniform"):
        make_run(small_config("magic"))
    for budget in (Budget.megabytes(1e-9), Budget.megabytes(1e6)):
        with pytest.raises(ValueError, match="must lie between 1 and"):
            make_run(small_config(budget=budget)).init(jax.random.key(0), stream)
    assert len(METHODS) == len(set(METHODS))


@pytest.mark.parametrize("table", tables.SIZED)
def test_replay_is_paid_for_first_and_exactly(stream, table):
    budget = Budget.mean_size(12)
    charged, free = (
        budget_totals(small_config("uniform", budget=budget, table=table, charge=charge), stream)
        for charge in ("replay", "stored")
    )
    assert charged[0] == free[0] and all(c < f for c, f in zip(charged[1:], free[1:], strict=True))
    for t, total in enumerate(charged):
        entities = stream.known(stream.bounds[t].train)
        left = 4 * 12 * sum(entities) - 8 * len(stream.replay[t])
        budget_units = tables.STORAGES[table].budget_units
        # All bytes that replay leaves are spent: eight coordinates of one byte, which are packed together, do not fit.
        assert total == budget_units(left, entities, 40, True) and budget_units(left - 8, entities, 40, True) < total
    with pytest.raises(ValueError, match=r"replay takes \d+ of \d+ bytes: lower cut.replay"):
        budget_totals(small_config("uniform", budget=Budget.mean_size(2), table=table, charge="replay"), stream)


def test_the_bias_is_paid_for_where_all_is(stream):
    bare, biased = (
        budget_totals(small_config("uniform", budget=Budget.mean_size(6), charge="stored", bias=bias), stream)
        for bias in ("none", "decayed")
    )
    items = [stream.known(bounds.train)[1] for bounds in stream.bounds]
    assert [b - n for b, n in zip(bare, biased, strict=True)] == items
    config = small_config(
        "uniform", budget=Budget.mean_size(6), charge="stored", bias="decayed", fit=FitConfig(layers=0, steps=1)
    )
    for line in run_segments(config, stream, jax.random.key(0)):
        # Two sizes next to each other take a bit for each entity, and themselves a byte, as the shared vectors' do.
        entities = line["users"] + line["items"]
        assert line["bytes_metadata"] - 4 * line["items"] in (3, 4 + -(-entities // 8))
        assert line["bytes_at_rest"] <= line["budget_bytes"] < line["bytes_at_rest"] + 5 + entities // 8


@pytest.mark.slow
def test_runs_map_over_seeds(stream):
    """vmap over keys gives the records of separate runs."""
    config = small_config("fixed")
    run = make_run(config)
    keys = jax.random.split(jax.random.key(0), 2)
    states = [run.init(key, stream) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    _, many = jax.jit(jax.vmap(run.step, in_axes=(0, None)))(stacked, segment)
    for i, state in enumerate(states):
        _, one = jax.jit(run.step)(state, segment)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], many), one, atol=1e-5)


def test_means_over_valid_leave_out_segments_without_valid_users(stream):
    lines = run_segments(small_config("popularity-all"), stream, jax.random.key(0))
    without = [
        line | ({"valid_users": 0, "valid_recall@20": 0.0, "valid_ndcg@20": 0.0} if line["segment"] == 2 else {})
        for line in lines
    ]
    counted = [line for line in lines[1:] if line["test_users"] >= records.LEAST_USERS]
    means = [line["valid_recall@20"] for line in counted if line["segment"] != 2]
    summary = records.summarise(without)
    assert len(means) == len(counted) - 1 > 0 and min(means) > 0
    assert summary["mean_valid_recall@20"] == pytest.approx(sum(means) / len(means))
    assert summary["mean_test_recall@20"] == records.summarise(lines)["mean_test_recall@20"]
    none = records.summarise([line | {"valid_users": 0} for line in lines])
    assert none["mean_valid_recall@20"] is none["pooled_valid_recall@20"] is None


def test_dollar_signs_in_titles_are_shown(tmp_path):
    plots.plot_lines(tmp_path / "x.png", {"a": ([1, 2], [0.1, 0.2], [0, 0])}, r"pri$ce_$x\frac", "x", "y", {"b": 0.1})
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.slow
def test_phases_donate_large_arrays(stream):
    config = small_config("scall-sac", search=SearchConfig(on="previous", probes=2, probe_steps=5))
    run, key = make_run(config), jax.random.key(1)
    state = compilation.compiled(lambda key: run.init(key, stream), key)(key)
    segment = jax.device_put(stream.segment(0))
    phases = CompiledPhases(run, state, segment)
    assert phases.take_seconds_compile() > 0 == phases.take_seconds_compile()

    def large(tree):
        return [leaf for leaf in jax.tree.leaves(tree) if leaf.nbytes > 2**12]

    given = {}

    def watched(name, program):
        def call(*arguments):
            given[name] = arguments
            return program(*arguments)

        return call

    phases._programs = {name: watched(name, program) for name, program in phases._programs.items()}
    state, record = phases.run_segment(state, segment)
    assert set(phases.seconds) == {"prepare", "fit", "evaluate", "search_after"}
    # Training takes the parameters, evaluation and search the planner's memory.
    assert given["fit"][0].is_deleted()
    for name in ("evaluate", "search_after"):
        memory = large(given[name][0]["planner"])
        assert memory and all(leaf.is_deleted() for leaf in memory)
    assert all(leaf.is_deleted() for leaf in large(given["search_after"][0]["params"]))
    assert int(record.search.count) == 2
    jax.random.split(key)  # the caller's key is still there


def test_a_run_that_is_over_compiles_nothing(stream, whole, monkeypatch):
    folder, lines, *_ = whole
    monkeypatch.setattr("scall_jax.run.compilation.compiled", lambda *_, **__: pytest.fail("compiled"))
    again = run_segments(WHOLE, stream, jax.random.key(0), folder=folder)
    assert comparable(again) == comparable(lines)
