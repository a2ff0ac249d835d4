import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, FitConfig, make_run, run_segments, scan, sizes, streams, sweep
from scall_jax.config import SearchConfig, SizesConfig
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.context import segment_context
from scall_jax.methods.probe import make_prober, ratio_of
from scall_jax.methods.scall.actions import SHAPES, sizes_by_action, to_shape
from scall_jax.ops.keys import Purpose, derive
from scall_jax.policies import POLICIES, PolicyConfig
from scall_jax.run import records
from tests.helpers import small_config, small_stream

POLICY = PolicyConfig(widths=(16, 16), replay=32, updates=2, batch=4)


@pytest.fixture(scope="module")
def stream():
    return small_stream()


@pytest.fixture(scope="module")
def stepped(stream):
    """A random search's run, its compiled step, and the states before and after the first segment."""
    run = make_run(_config())
    step, before = jax.jit(run.step), run.init(jax.random.key(0), stream)
    return run, step, before, step(before, stream.segment(0))[0]


def _config(method="scall-random", search_options=None, **options):
    chosen = SearchConfig(**({"probes": 3, "probe_steps": 5} | (search_options or {})))
    return small_config(method, search=chosen, policy=POLICY, **options)


def _comparable(lines):
    return [{k: v for k, v in line.items() if k not in {*records.VOLATILE, *records.ACCOUNT}} for line in lines]


def _lines(record, count):
    return [records.as_dict(jax.tree.map(lambda leaf, t=t: leaf[t], record)) for t in range(count)]


def _assert_same(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        for name in b:
            if isinstance(b[name], float) or (isinstance(b[name], list) and b[name] and isinstance(b[name][0], float)):
                assert a[name] == pytest.approx(b[name], abs=tolerance, rel=tolerance), name
            elif name != "probe_actions":
                assert a[name] == b[name], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("scall-ddpg", {"on": "previous", "reference": "last_fit", "probes_at_once": 2}),
        ("scall-gp", {"on": "current", "start": "warm"}),
    ],
)
def test_scan_and_host_loop_give_the_same_searches(stream, method, options):
    config = _config(method, options)
    lines = run_segments(config, stream, jax.random.key(3))
    record = scan(config, stream, jax.random.key(3)).record
    _assert_same(_comparable(lines), _lines(record, len(stream)))
    searched = [line["probes"] for line in lines if line.get("probes")]
    assert len(searched) == len(stream) - 1
    assert set(searched) == {4 if options.get("probes_at_once") == 2 else 3}


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        pytest.param(Budget.mean_size(0.4), {"learn_concentration": True, "probes_at_once": 3}, marks=pytest.mark.slow),
        (Budget.mean_size(1.3), {}),
    ],
)
@pytest.mark.slow
def test_every_probe_and_segment_gives_out_the_budget(stream, budget, options):
    lines = run_segments(_config("scall-random", options, budget=budget), stream, jax.random.key(0))
    for line in lines:
        assert line["allocated_parameters"] == line["budget_parameters"]
        if line["probes"]:
            assert set(line["probe_allocated_parameters"]) == {line["budget_parameters"]}


@pytest.mark.slow
def test_a_missed_budget_stops_the_run(stream):
    config = _config()
    record = scan(config, stream, jax.random.key(0)).record
    records.check(record)
    off = record.search._replace(allocated=record.search.allocated.at[1, 0].add(1))
    with pytest.raises(AssertionError, match="budget"):
        records.check(record._replace(search=off))


def test_search_reads_nothing_from_test(stream, stepped):
    _, step, _, state = stepped
    segment = stream.segment(1)
    emptied = segment._replace(test=jax.tree.map(np.zeros_like, segment.test))
    a, b = (step(state, s)[1].search for s in (segment, emptied))
    np.testing.assert_array_equal(a.fitness, b.fitness)
    assert (a.fitness[:3] > 0).all()


def test_new_entities_have_a_size_before_any_training_on_them(stream, stepped):
    run, step, state, _ = stepped
    prepare, new = jax.jit(run.prepare), 0
    for segment in stream:
        sizes_of = np.asarray(prepare(state, segment).sizes)
        users = np.arange(int(segment.users_before), int(segment.users))
        items = np.arange(int(segment.items_before), int(segment.items)) + stream.capacity.users
        assert (sizes_of[np.concatenate([users, items])] >= 1).all()
        new += len(users) + len(items) if segment.index else 0
        state, _ = step(state, segment)
    assert new > 0


@pytest.mark.slow
def test_probes_at_once_are_the_probes_in_turn(stream, stepped):
    config, state = _config(), stepped[-1]
    segment = jax.tree.map(jnp.asarray, stream.segment(0))
    probe = make_prober(segment_context(config, state, segment))
    actions = jnp.array([[0.2, 0.3, 0.4], [0.9, 0.1, 0.8], [0.5, 0.5, 0.5]])

    def one(action):
        key = jax.random.key(1)
        return probe(key, lambda total: sizes_by_action(config, key, segment, total, action))

    together = jax.jit(jax.vmap(one))(actions)
    by_itself = jax.jit(one)
    alone = [by_itself(action) for action in actions]
    np.testing.assert_allclose(together.fitness, [x.fitness for x in alone], atol=1e-5)
    evaluated = 2 * min(int(segment.valid.count), together.by_user.shape[1])
    np.testing.assert_allclose(together.by_user.sum((1, 2)) / evaluated, together.fitness, atol=1e-5)
    np.testing.assert_allclose(together.observation, np.stack([x.observation for x in alone]), atol=1e-4)


@pytest.mark.slow
def test_rewards_are_relative_to_the_reference(stream):
    for reference in ("uniform", "last_fit"):
        options = {"reference": reference, "low": 0.5, "high": 1.5}
        lines = run_segments(_config("scall-random", options), stream, jax.random.key(0))
        line = lines[1]
        ratio = np.array(line["probe_fitness"]) / line["probe_reference"]
        np.testing.assert_allclose(line["probe_rewards"], 10 * (ratio - 0.5), rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_reference_is_a_probe_with_uniform_sizes(stream, at_once):
    config = _config("scall-random", {"probes": 2, "probes_at_once": at_once})
    record = run_segments(config, stream, jax.random.key(0))[1]
    run = make_run(config)
    state, _ = jax.jit(run.step)(run.init(jax.random.key(0), stream), stream.segment(0))
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    context = segment_context(config, state, segment)
    probe, key = make_prober(context), derive(context.search_key(), Purpose.COMMON_PROBE)
    uniform = ALLOCATORS["uniform"](config.sizes)
    made = jax.jit(lambda: probe(key, lambda total: uniform(key, segment, total)))()
    assert record["probe_reference"] == pytest.approx(float(made.fitness), abs=1e-5)


@pytest.mark.slow
def test_the_reference_is_the_last_fit_at_its_first_evaluation(stream):
    fit = FitConfig(layers=2, batch=128, steps=20, eval_every=10)
    ours = run_segments(_config("scall-random", {"reference": "last_fit"}, fit=fit), stream, jax.random.key(0))[1]
    short = small_config("uniform", fit=dataclasses.replace(fit, steps=10))
    theirs = run_segments(short, stream, jax.random.key(0))[0]
    assert ours["probe_reference"] == pytest.approx((theirs["valid_recall@20"] + theirs["valid_ndcg@20"]) / 2, abs=1e-5)


@pytest.mark.slow
def test_the_published_search_stops_where_it_has_settled(stream):
    rows = streams.synthetic(jax.random.key(7), users=120, items=80, interactions=4000)
    published = streams.cut(rows, segments=3, published=True)
    options = {"probes": 9, "probe_steps": 2, "least_probes": 2, "settled_rounds": 1, "tolerance": 1.0}
    chosen = dataclasses.replace(SearchConfig.published(), **options)
    config = small_config("scall-sac", search=chosen, policy=POLICY, candidates="segment")
    lines = run_segments(config, published, jax.random.key(0))
    assert [line["probes"] for line in lines if line.get("probes")] == [3] * 2
    assert all(np.isfinite(line["probe_rewards"]).all() for line in lines if line.get("probes"))


def _official_number_of_probes(rho, tolerance, most):
    """Probes that the official code makes where the actor's share before probe k is rho[k]."""
    for made in range(1, most + 1):
        moves = np.abs(np.diff(rho[max(0, made - 5) : made]))
        if made > 10 and len(moves) == 4 and (moves <= tolerance).all():
            return made
    return most


@pytest.mark.parametrize(
    ("still", "probes"),
    [pytest.param(*x, marks=pytest.mark.slow) for x in ((3, 40), (4, 15), (6, 12))],
)
def test_the_published_search_makes_as_many_probes_as_the_official_code(stream, monkeypatch, still, probes):
    """With a policy whose best action follows a script: so many small moves, then a large one, and so on."""
    steps = np.where(np.arange(1, 61) % (still + 1) > 0, 0.002, 0.02)
    rho = np.concatenate([[0.1], 0.1 + np.cumsum(steps)]).astype(np.float32)
    policy = POLICIES["random"](PolicyConfig(), 1, 3)
    scripted = policy._replace(
        init=lambda key: jnp.int32(0),
        start_segment=lambda state: jnp.int32(0),
        act=lambda state, key, observation: jnp.full(3, 0.5),
        greedy=lambda state, observation: jnp.array([0.0, 0.5, 0.5]).at[0].set(jnp.asarray(rho)[state]),
        update=lambda state, key, new: state + 1,
    )
    monkeypatch.setitem(POLICIES, "random", lambda *_: scripted)
    options = dataclasses.replace(SearchConfig.published(), probes=40, probe_steps=1)
    lines = run_segments(small_config("scall-random", search=options), stream, jax.random.key(0))
    assert [line["probes"] for line in lines if line.get("probes")] == [probes] * (len(lines) - 1)
    assert probes == _official_number_of_probes(rho, 0.01, 40)


def test_ratios_have_the_bound_of_the_search():
    fitness, reference = jnp.array([0.0, 0.1, 9.0]), jnp.float32(0.1)
    np.testing.assert_allclose(ratio_of(SearchConfig(), fitness, reference), [0, 1, 4])
    np.testing.assert_allclose(ratio_of(SearchConfig.published(), fitness, reference), [0, 1, 90], rtol=1e-6)
    np.testing.assert_array_equal(ratio_of(SearchConfig.published(), fitness, jnp.float32(0)), 1)


@pytest.mark.parametrize("family", list(SHAPES))
def test_maps_span_the_range_of_each_family(family):
    low, high = SHAPES[family]
    for name in ("log", "linear"):
        config = SearchConfig(map=name, family=family)
        np.testing.assert_allclose([to_shape(config, x) for x in (0.0, 1.0)], [low, high], rtol=1e-5)
    assert to_shape(SearchConfig(family=family), 0.5) == pytest.approx((low * high) ** 0.5, rel=1e-5)


def test_an_action_is_the_fixed_action_of_the_same_meaning(stream):
    segment = jax.tree.map(jnp.asarray, stream.segment(2))
    config = _config(sizes=SizesConfig(maximum=16, rho=0.35, user_shape=0.5, item_shape=2.0))
    number = [np.log(a / 0.1) / np.log(300) for a in (0.5, 2.0)]
    ours = sizes_by_action(config, jax.random.key(0), segment, jnp.int32(900), jnp.array([0.35, *number]))
    fixed = make_run(dataclasses.replace(config, method="fixed", budget=Budget.megabytes(900 * 4e-6)))
    theirs = fixed.prepare(fixed.init(jax.random.key(0), stream), segment).sizes[:-2]
    np.testing.assert_allclose(ours, theirs, atol=1)
    assert ours.sum() == theirs.sum() == 900


def test_drawn_sizes_follow_frequency_too(stream):
    segment = jax.tree.map(jnp.asarray, stream.segment(2))
    config = _config(search_options={"concentration": 2.0}, sizes=SizesConfig(maximum=16, ranking="total"))
    draw = jax.jit(lambda action: sizes_by_action(config, jax.random.key(0), segment, jnp.int32(900), action))
    drawn = draw(jnp.array([0.5, 0.5, 0.5]))
    users = int(segment.users)
    order = sizes.order_by(segment.total[:users], segment.recency[:users], segment.total[:users], jnp.ones(users, bool))
    assert (np.diff(np.asarray(drawn)[:users][order]) <= 0).all()


@pytest.mark.slow
def test_sweep_gives_the_records_of_separate_runs_in_one_trace(stream):
    config = _config("scall-grid", sizes=SizesConfig(maximum=40))
    budgets = [Budget.mean_size(size) for size in (1.5, 20.0)]
    keys = [jax.random.key(seed) for seed in (0, 1)]
    record = sweep(config, stream, keys, budgets).record
    for i, (key, budget) in enumerate(zip(keys, budgets, strict=True)):
        alone = scan(dataclasses.replace(config, budget=budget), stream, key).record
        together = jax.tree.map(lambda leaf, i=i: leaf[i], record)
        _assert_same(_lines(together, len(stream)), _lines(alone, len(stream)))


@pytest.mark.parametrize("method", ["scall-random", "scall-grid", "scall-gp", "scall-sac", "scall-ddpg", "dlints"])
def test_a_step_takes_states_of_another_run_and_init_is_traceable(stream, method):
    config, segment = _config(method), stream.segment(1)
    state = jax.eval_shape(lambda key: make_run(config).init(key, stream), jax.random.key(0))
    run = make_run(config)
    # A second trace would find what the first one kept.
    first = jax.eval_shape(run.step, state, segment)
    assert jax.tree.map(lambda x: x.shape, jax.eval_shape(run.step, state, segment)) == jax.tree.map(
        lambda x: x.shape, first
    )


@pytest.mark.slow
def test_one_trace_for_all_budgets_and_segments(stream):
    traces = []
    run = make_run(_config("scall-sac"))

    def step(state, segment):
        traces.append(1)
        return run.step(state, segment)

    compiled = jax.jit(step)
    base = run.init(jax.random.key(0), stream)
    for factor in (1, 2):
        state = base._replace(totals=base.totals // factor)
        for t in range(3):
            state, _ = compiled(state, stream.segment(t))
    assert len(traces) == 1


def test_sweep_wants_a_key_for_each_budget(stream):
    with pytest.raises(ValueError, match="1 keys and 2 budgets"):
        sweep(_config(), stream, [jax.random.key(0)], [Budget.mean_size(1)] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("on", ["previous", "current"])
def test_what_a_segment_leaves_behind_does_not_depend_on_what_follows(stream, on):
    """The last segment is searched like any other, since rows may come later. Segment 0 is sized by no action."""
    config, key = _config("scall-gp", {"on": on}), jax.random.key(3)
    lines, whole = (run_segments(config, some, key) for some in (stream.first(2), stream))
    assert _comparable(lines) == _comparable(whole)[:2]
    assert lines[-1]["probes"] == 3 and whole[-1]["probes"] == 3
    assert not any(whole[0].get("action", ())) and all(any(line["action"]) for line in whole[1:])


class _KilledError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "on", "where"), [("scall-sac", "previous", "search"), ("scall-gp", "current", "segment")]
)
def test_killed_and_resumed_is_never_killed(stream, tmp_path, method, on, where):
    config, key = _config(method, {"on": on}), jax.random.key(2)
    # A program with a callback is another one, which may round differently: all three runs have one.
    silent = {"on_probes": lambda *arguments: None} if where == "search" else {}
    whole = run_segments(config, stream, key, folder=tmp_path / "whole", **silent)

    def in_segment(line):
        if line["segment"] == 1:
            raise _KilledError

    def in_search(segment, done, ratio):
        if int(segment) == 2 and int(done) == 2:
            raise _KilledError

    callbacks = {"on_segment": in_segment} if where == "segment" else {"on_probes": in_search}
    with pytest.raises((_KilledError, jax.errors.JaxRuntimeError)):
        run_segments(config, stream, key, folder=tmp_path / "killed", **callbacks)
        jax.effects_barrier()
    resumed = run_segments(config, stream, key, folder=tmp_path / "killed", **silent)
    assert _comparable(resumed) == _comparable(whole)
    for file in sorted((tmp_path / "whole" / "sizes").iterdir()):
        with np.load(file) as a, np.load(tmp_path / "killed" / "sizes" / file.name) as b:
            assert all((a[name] == b[name]).all() for name in a.files)


@pytest.mark.parametrize(
    "change",
    [{"probes": 0}, {"low": 2.0}, {"concentration": 0.0}, {"start": "cold"}, {"on": "next"}, {"family": "cauchy"}],
)
def test_bad_search_parameters(change):
    with pytest.raises(ValueError, match=str(next(iter(change)))):
        SearchConfig(**change)


def test_more_probes_than_the_gaussian_process_remembers_are_refused(stream):
    search = SearchConfig(probes=100, probe_steps=2)
    with pytest.raises(ValueError, match=r"search probes=100: policy gp remembers 96 probes; lower it"):
        make_run(small_config("scall", search=search))
    make_run(small_config("scall-random", search=search))
