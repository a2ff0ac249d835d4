"""For every method and recommender: what comes after a cut changes nothing that is decided before it, not by a bit.

The part of the last segment that is run which is only reported, its test rows, counts as later: sizes, actions,
rewards, half-lives, steps, losses and metrics on valid must not know it. `test_prefix` has longer streams, in which the
arrays of the variants differ in size by more.
"""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from scall_jax import METHODS, Budget, FitConfig, PolicyConfig, SearchConfig, SizesConfig, make_run, streams, tables
from scall_jax.config import RECOMMENDERS, PrunedConfig
from scall_jax.methods.registry import BASELINES, EMBEDDING_METHODS
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.saros.config import SarosConfig
from scall_jax.run import records
from scall_jax.run.step import in_order
from scall_jax.streams.stream import Capacity
from tests.helpers import small_config

USERS, ITEMS, ROWS, SEGMENTS = 300, 160, 4000, 4
LAST = 2
"""The last segment that is run: there is one after it, and two whole ones before."""
MAY_CHANGE = "test_", "unknown_test_", "seen_test_"
"""What the line of the last segment says of its test rows."""


def _cut(user, item, time, whole):
    """Rows by number of user and item, cut at the times of a stream's segments."""
    at = [int(whole.time[bounds.start]) for bounds in whole.bounds[1:] if whole.time[bounds.start] <= time[-1]]
    return streams.cut(streams.from_arrays(user, item, time), at=at)


def _garbage(ids, first, rng):
    """Random ids of those known, from a row on; new ones arrive where they did, so that all sizes stay as they are."""
    known = np.maximum.accumulate(ids)
    arrives = np.diff(known, prepend=-1) > 0
    later = np.where(arrives, ids, (rng.random(len(ids)) * known).astype(ids.dtype))
    return np.where(np.arange(len(ids)) < first, ids, later)


@functools.cache
def _streams():
    """A stream, and others that agree with it up to the end of the last segment's valid rows.

    In the second and third the rows after those are garbage, or in another order; the last one ends where the last
    segment does.
    """
    rows = streams.synthetic(jax.random.key(7), users=USERS, items=ITEMS, interactions=ROWS)
    rows = dataclasses.replace(rows, time=np.sort(rows.time) + np.arange(ROWS))
    whole = streams.cut(rows, segments=SEGMENTS)
    bounds = whole.bounds[LAST]
    user, item, time, first = whole.user, whole.item, whole.time, bounds.valid
    rng = np.random.default_rng(0)
    garbage = _cut(_garbage(user, first, rng), _garbage(item, first, rng), time, whole)
    order = np.concatenate([np.arange(first), first + rng.permutation(ROWS - first)])
    shuffled = _cut(user[order], item[order], time, whole)
    shorter = _cut(user[: bounds.end], item[: bounds.end], time[: bounds.end], whole)
    found = whole, garbage, shuffled, shorter
    # Streams of equal capacities share their compiled programs.
    most = Capacity(*np.max([stream.capacity for stream in found[:3]], axis=0).tolist())
    for stream in found[:3]:
        stream.__dict__["capacity"] = most
    return found


def _config(method, recommender):
    budgets = {
        # Coordinates of at most 6 bits would not spend the budget of eight float32 numbers.
        "mixed_precision": Budget.mean_size(1.5),
        # The network and the items of a user that are kept take this much.
        "s2pnm": Budget.megabytes(0.06),
    }
    return small_config(
        method,
        budget=budgets.get(method, Budget.mean_size(8)),
        recommender=recommender,
        bias="none" if method in BASELINES else "decayed",
        fit=FitConfig(layers=2, batch=128, steps=10, eval_every=5, valid_users=64),
        sizes=SizesConfig(maximum=12),
        search=SearchConfig(probes=2, probe_steps=4, concentration=None if method == "scall-gain" else 1.0),
        policy=PolicyConfig(widths=(8,), replay=16, updates=2, batch=4),
        pruned=PrunedConfig(width=12),
        ials=IalsConfig(sweeps=2, probe_sweeps=1),
        saros=SarosConfig(clicks=2, exposures=3, momentum=0.5, passes=2, prequential=True),
    )


def _programs(method, recommender):
    """A run, and its phases compiled one by one: methods share most of them, which the compilation cache knows."""
    run = make_run(_config(method, recommender))
    phases = "choose", "search_before", "prepare", "fit", "evaluate", "search_after"
    return run, {name: jax.jit(getattr(run, name)) for name in phases if getattr(run, name) is not None}


def _run(run, programs, stream):
    """What is known after each segment up to the last: the line, what is stored of known entities, and the memory."""
    state, found = run.init(jax.random.key(3), stream), []
    books = run.method.bookkeeping(state, stream)
    for t in range(LAST + 1):
        state, record, search = in_order(
            run, lambda name, *arguments: programs[name](*arguments), state, stream.segment(t)
        )
        record = record if search is None else record._replace(search=search)
        records.check(record)
        known = tuple(np.asarray(state.known).tolist())
        stored = books.exporter.export(state.params, state.plan, known)
        memory = jax.tree.leaves((jax.random.key_data(state.key), state.planner, state.recommender))
        found.append((records.as_dict(record), stored, [np.asarray(leaf) for leaf in memory], tables.charged(stored)))
    return found


def _same(expected, found):
    for t, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        (line, stored, memory, charged), (other, their_stored, their_memory, their_charged) = ours, theirs
        assert line.keys() == other.keys()
        changed = {name for name in line if line[name] != other[name]}
        assert changed <= ({name for name in line if name.startswith(MAY_CHANGE)} if t == LAST else set()), t
        assert stored.keys() == their_stored.keys() and charged == their_charged
        for name in stored:
            np.testing.assert_array_equal(stored[name], their_stored[name], err_msg=f"{name} after segment {t}")
        for leaf, their_leaf in zip(memory, their_memory, strict=True):
            # What a planner remembers of each node has room for the nodes of the whole stream.
            if leaf.shape == their_leaf.shape:
                np.testing.assert_array_equal(leaf, their_leaf, err_msg=f"memory after segment {t}")


SHAPED_BY_THE_WHOLE_STREAM = "binary_hash", "binary_hash_skip", "quotient_remainder", "s2pnm"
"""Their tables have a number of rows that is chosen once, by the entities of the last segment, as their page says; how
many there are is the one thing about later rows that they know. That of s2pnm has as many columns as fit at all
segments, and sums of a softmax over all items, which depend on the room for items in their last bits."""

QUICK = ("frequency", "lightgcn"), ("popularity-decayed", "lightgcn")
WITH_SAROS = "uniform", "scall-random"
"""Methods that stand for all others with the recommender saros, whose fits do not know what chose the sizes."""
PAIRS = [
    (method, recommender)
    for method in METHODS
    for recommender in RECOMMENDERS
    if recommender != "saros" or method in WITH_SAROS
    # A baseline takes no recommender, and a storage of its own is trained by gradients alone.
    if recommender == "lightgcn"
    # Nothing but propagation composes users who have no vectors.
    or (method not in (*BASELINES, "lce") and (recommender == "mf" or EMBEDDING_METHODS[method].budget_is_data))
]


def _marked(pair):
    return pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)


def test_the_streams_differ_where_they_should():
    whole, *others = _streams()
    end, first = whole.bounds[LAST].end, whole.bounds[LAST].valid
    for other in others:
        assert other.bounds[: LAST + 1] == whole.bounds[: LAST + 1]
        np.testing.assert_array_equal(other.user[:first], whole.user[:first])
    assert [len(other) for other in others] == [SEGMENTS] * 2 + [LAST + 1]
    assert all((other.item[first:end] != whole.item[first:end]).mean() > 0.5 for other in others[:2])
    assert others[2].capacity.nodes < whole.capacity.nodes == others[0].capacity.nodes


@pytest.mark.parametrize(("method", "recommender"), [_marked(pair) for pair in PAIRS])
def test_nothing_later_changes_what_came_before(method, recommender):
    whole, garbage, shuffled, shorter = _streams()
    run, programs = _programs(method, recommender)
    expected = _run(run, programs, whole)
    found = _run(run, programs, garbage)
    _same(expected, found)
    # What is only reported does change, else the garbage would not be seen at all.
    assert any(expected[LAST][0][f"test_{name}"] != found[LAST][0][f"test_{name}"] for name in ("users", "recall@20"))
    _same(expected, _run(run, programs, shuffled))
    if method not in SHAPED_BY_THE_WHOLE_STREAM:
        _same(expected, _run(run, programs, shorter))


def _let_optax_mix_types(monkeypatch):
    """The optimisers of optax raise floats to integers of their own accord."""

    def standard(function):
        def called(*arguments, **options):
            with jax.numpy_dtype_promotion("standard"):
                return function(*arguments, **options)

        return called

    def with_update(make):
        def made(*arguments, **options):
            found = make(*arguments, **options)
            return optax.GradientTransformation(found.init, standard(found.update))

        return made

    monkeypatch.setattr(optax, "adam", with_update(optax.adam))
    monkeypatch.setattr(
        optax, "exponential_decay", lambda *a, schedule=optax.exponential_decay, **k: standard(schedule(*a, **k))
    )


@pytest.mark.parametrize(
    ("method", "recommender"),
    [pytest.param(*pair, marks=() if pair[0] == "popularity-decayed" else pytest.mark.slow) for pair in PAIRS],
)
def test_no_program_mixes_types_unless_it_says_so(method, recommender, monkeypatch):
    """An integer above 2^24 that silently becomes a float32 is another number."""
    _let_optax_mix_types(monkeypatch)
    stream = _streams()[0]
    with jax.numpy_dtype_promotion("strict"):
        run = make_run(_config(method, recommender))
        state = jax.eval_shape(lambda key: run.init(key, stream), jax.random.key(0))
        jax.eval_shape(run.step, state, jax.tree.map(np.asarray, stream.segment(1)))
