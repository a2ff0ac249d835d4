"""Rivals that choose sizes by probes; a formula stands in for the training of a probe where that is not the point."""

import itertools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from scall_jax import Budget, FitConfig, make_run, run_segments, scan, sizes
from scall_jax.config import SearchConfig, SizesConfig
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.context import segment_context
from scall_jax.methods.probe import Probe
from scall_jax.methods.rivals import bet, ciess, ducb, esapn
from scall_jax.methods.rivals import entity_features as entities
from scall_jax.methods.rivals.probe_loop import ReferenceProbe, Trial, probe_in_turn
from scall_jax.run import records
from scall_jax.streams import active_mask
from tests.helpers import small_config, small_stream


@pytest.fixture(scope="module")
def stream():
    return small_stream()


PLANNERS = {
    "bet": bet.bet_planner,
    "ciess": ciess.ciess_planner,
    "ducb": ducb.ducb_planner,
    "esapn": esapn.esapn_planner,
}
SEARCHES = {bet: bet.bet_search, ciess: ciess.ciess_search, ducb: ducb.ducb_search, esapn: esapn.esapn_search}


def _setting(stream, method, size=4.0, t=2, minimum=1, **search):
    given = {"budget": Budget.mean_size(size), "sizes": SizesConfig(minimum=minimum, maximum=40)}
    config = small_config(method, search=SearchConfig(**({"probes": 8} | search)), **given)
    segment = jax.tree.map(jnp.asarray, stream.segment(t))
    planner = PLANNERS[method](config, None)
    plan = jax.jit(lambda state: planner.plan(segment_context(config, state, segment), jax.random.key(0)))
    return config, plan, make_run(config).init(jax.random.key(0), stream), segment


def _formula(context, by_user):
    """A probe whose metrics by user f32[Q] are a function of the sizes."""
    total, shared = context.budget()

    def probe(key, allocate):
        del key
        own = allocate(total)
        quality = by_user(own)
        return Probe(quality.mean(), own.sum() + shared.sum(), jnp.zeros(1), jnp.stack([quality] * 2, axis=1))

    return probe


def _log_frequency_fit(segment):
    """Fitness of sizes: better the more they follow the frequency of users, whatever items have."""
    users = segment.frequency.shape[0] - segment.popularity.shape[1]
    wanted = segment.frequency[:users] / segment.frequency[:users].sum()

    def fitness(own):
        share = own[:users] / jnp.maximum(own.sum(), 1)
        return 1 - jnp.abs(share - wanted).sum(keepdims=True) / 2

    return fitness


FAMILY_DRAWS = {
    "powerlaw": lambda rng, shape, n: rng.power(shape, n),
    "halfnormal": lambda rng, shape, n: special.ndtri(0.5 + (special.ndtr(shape) - 0.5) * rng.random(n)),
    "truncexp": lambda rng, shape, n: stats.truncexpon(shape).rvs(n, random_state=rng),
    "lognormal": lambda rng, shape, n: rng.lognormal(0, shape, n),
}


def test_shares_of_bet_are_the_means_of_sorted_draws():
    rng, n = np.random.default_rng(0), 200
    ours = jax.jit(lambda number: bet.shares_by_number(number, jnp.int32(n), n + 9))
    for i, (family, draw) in enumerate(FAMILY_DRAWS.items()):
        for part in (0.15, 0.8):
            drawn = -np.sort(-np.stack([draw(rng, part * bet.SHAPE_RANGES[family][1], n) for _ in range(400)]), axis=1)
            expected = (drawn / drawn.sum(1, keepdims=True)).mean(0)
            got = np.asarray(ours(jnp.float32((i + part) / 4)))
            got = got / got.sum()
            assert (got[n:] == 0).all()
            np.testing.assert_allclose(got[:n], expected, atol=0.06 * expected[0], err_msg=f"{family} {part}")


def test_sets_of_bet_are_pooled_as_in_numpy():
    rng = np.random.default_rng(1)
    member, own = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 7, 50)
    got = bet.pooled(jnp.asarray(member), jnp.asarray(own), 9)
    for size in range(1, 10):
        rows = member[own == size]
        np.testing.assert_allclose(got[size - 1], rows.mean(0) if len(rows) else np.zeros(3), atol=1e-6)


def test_strategies_of_bet_go_round_in_fives():
    picked = [int(bet.pick_candidate(jnp.int32(i), 7, 0, 9)) for i in range(10)]
    assert picked == [7, 7, 7, 0, 9] * 2


def _searching(module, config, segment, by_user):
    """The search of a segment by a formula, for any budget: state -> state, record."""

    def search(state):
        context = segment_context(config, state, segment)
        found = SEARCHES[module](context)
        planner_state, record = probe_in_turn(context, found, _formula(context, by_user))
        return state._replace(planner=planner_state), record

    return search


def _assert_exact(state, record, segment):
    made = slice(0, int(record.count))
    assert record.count > 0 and (record.allocated[made] == state.totals[segment.index]).all()
    assert record.expected == state.totals[segment.index]


@pytest.mark.slow
def test_bet_stays_within_budgets_and_its_predictor_learns_a_known_fitness(stream, monkeypatch):
    monkeypatch.setattr(bet, "SAMPLED_ACTIONS", 10)
    config, plan, state, segment = _setting(stream, "bet", 6.0, probes=10)
    fitness = _log_frequency_fit(segment)
    search = jax.jit(_searching(bet, config, segment, fitness))
    for totals in (state.totals // 10, state.totals, state.totals, state.totals):
        state, record = search(state._replace(totals=totals))
        _assert_exact(state, record, segment)
        # The last probes repeat the best of those before, in order.
        best = np.sort(np.asarray(record.fitness[:8]))[::-1][:2]
        np.testing.assert_allclose(record.fitness[8:], best, rtol=1e-5)
        own, action = plan(state)
        assert own.sum() == totals[2]
        np.testing.assert_allclose(action, record.action[8], rtol=1e-6)
    net, frequency = bet.Predictor(40, stream.capacity.users), bet.scaled_frequency(config.sizes, segment)

    @jax.jit
    def judge(action):
        own = bet.bet_sizes(config.sizes, segment, state.totals[2], action)
        return net.apply(state.planner.params, frequency, own)[0], fitness(own)[0]

    value, true = np.array([judge(action) for action in jax.random.uniform(jax.random.key(3), (60, 3))]).T
    assert stats.spearmanr(value, true)[0] > 0.6
    # The actions that the predictor chose are better than most of those it chose from.
    assert np.mean(record.fitness[:3]) > np.quantile(true, 0.75)


@pytest.mark.parametrize("total", [6, 27, *(pytest.param(x, marks=pytest.mark.slow) for x in (13, 41))])
def test_a_price_gives_the_most_worth_that_fits(total):
    rng, choices = np.random.default_rng(total), (1, 2, 4, 8)
    worth = rng.normal(size=(6, 4)).cumsum(1)
    active_mask, order = jnp.ones(6, bool), jnp.asarray(rng.permutation(6))
    got = np.asarray(
        sizes.by_price(jnp.asarray(worth, jnp.float32), choices, jnp.int32(total), (1, 10), active_mask, order)
    )
    assert got.sum() == total and got.min() >= 1 and got.max() <= 10
    every = np.array(list(itertools.product(range(4), repeat=6)))
    spent, value = np.array(choices)[every].sum(1), worth[np.arange(6), every].sum(1)
    # One entity may have a size between two candidates; it counts as the lower one.
    place = np.searchsorted(choices, got, side="right") - 1
    assert (np.array(choices)[place] != got).sum() <= 1
    own = worth[np.arange(6), place].sum()
    fits = spent <= np.array(choices)[place].sum()
    if (np.array(choices)[place] == got).all():
        assert own == pytest.approx(value[fits].max(), abs=1e-4)
    # At most one step of one entity is lost against the best allocation.
    assert own >= value[spent <= total].max() - np.abs(np.diff(worth, axis=1)).max()


def test_prices_meet_every_total_exactly_where_all_tie():
    active_mask, order = jnp.arange(20) < 18, jnp.concatenate([jnp.arange(18)[::-1], jnp.array([18, 19])])
    give = jax.jit(lambda worth, total: sizes.by_price(worth, (1, 2, 4, 8), total, (1, 16), active_mask, order))
    for worth in (jnp.zeros((20, 4)), jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0, -1.0]), (20, 4))):
        for total in (0, 5, 18, 19, 50, 100, 144, 200, 288, 400):
            got = np.asarray(give(worth, jnp.int32(total)))
            assert got.sum() == min(total, 18 * 16) and (got[18:] == 0).all() and got.max() <= 16
            assert got.min(where=np.asarray(active_mask), initial=9) >= (total >= 18)
    with pytest.raises(ValueError, match="candidates"):
        sizes.by_price(jnp.zeros((20, 2)), (4, 2), jnp.int32(9), (1, 16), active_mask, order)


def test_prices_count_sums_beyond_the_largest_signed_number():
    nodes, large = 1500, 2**21
    worth = jnp.stack([jnp.zeros(nodes), 1.0 + jnp.arange(nodes) / nodes], axis=1)
    total = 3 * large + nodes - 3
    order = jnp.arange(nodes)[::-1]
    give = jax.jit(lambda worth: sizes.by_price(worth, (1, large), total, (1, large), jnp.ones(nodes, bool), order))
    got = np.asarray(give(worth))
    assert got[-3:].tolist() == [large] * 3 and set(got[:-3].tolist()) == {1}
    with pytest.raises(ValueError, match=r"add up to more than 2\^32 - 1: lower sizes.maximum"):
        sizes.by_price(jnp.zeros((3000, 2)), (1, large), total, (1, large), jnp.ones(3000, bool), jnp.arange(3000))


def test_prices_bear_that_rounding_makes_an_entity_want_less_at_a_lower_one():
    """Worths whose break-even prices lie within an ulp: float32 orders some of them the wrong way round."""
    rng, nodes = np.random.default_rng(1), 400
    price = np.float32(0.0034)
    worth = np.empty((nodes, 2), np.float32)
    worth[:, 0] = rng.random(nodes)
    worth[:, 1] = worth[:, 0] + price * np.float32(8)
    give = jax.jit(
        lambda total: sizes.by_price(worth, (8, 16), total, (8, 128), jnp.ones(nodes, bool), jnp.arange(nodes))
    )
    for total in range(8 * nodes + 1, 16 * nodes, 397):
        got = np.asarray(give(jnp.int32(total)))
        assert got.sum() == total and got.min() >= 8 and got.max() <= 16


def test_a_family_without_a_mean_is_refused():
    with pytest.raises(ValueError, match=r"user_shape=0\.5: Pareto's distribution has a mean for shapes above 1 only"):
        ALLOCATORS["fixed"](SizesConfig(family="pareto"))
    ALLOCATORS["fixed"](SizesConfig(family="pareto", user_shape=2.0, item_shape=1.5))


def test_entities_are_described_and_served_as_their_interactions_say(stream):
    segment = jax.tree.map(jnp.asarray, stream.segment(2))
    users, items = stream.capacity.users, stream.capacity.items
    rng = np.random.default_rng(0)
    x = rng.normal(size=(users + items, 3)).astype(np.float32)
    around = entities.mean_of_neighbours(segment.graph, jnp.asarray(x))
    by_user = rng.random(int(segment.valid.users.shape[0]) - 1).astype(np.float32)
    value, has_value = (np.asarray(a) for a in entities.by_entity(segment, jnp.asarray(by_user)))
    graph, positives, valid = (jax.tree.map(np.asarray, part) for part in segment[6:9])
    count = min(int(valid.count), len(by_user))
    served = dict(zip(valid.users[:count], by_user[:count], strict=True))
    lists = {item: [] for item in range(items)}
    for row in range(int(positives.count)):
        for item in positives.items[positives.indptr[row] : positives.indptr[row + 1]]:
            lists[item] += [served[positives.users[row]]] if positives.users[row] in served else []
    for node in range(users + items):
        near = graph.indices[graph.indptr[node] : graph.indptr[node + 1]]
        np.testing.assert_allclose(around[node], x[near].mean(0) if len(near) else np.zeros(3), atol=1e-5)
        found = ([served[node]] if node in served else []) if node < users else lists[node - users]
        assert has_value[node] == bool(found)
        assert value[node] == pytest.approx(np.mean(found) if found else 0.0, abs=1e-5)
    assert len(served) > 10 and sum(map(bool, lists.values())) > 10


def _pays_for(segment, chosen):
    """Metrics by user: those of `chosen` gain by the log of their size, the others by nothing."""
    queries = segment.valid.users

    def by_user(own):
        gain = jnp.log2(jnp.maximum(own[queries], 1).astype(jnp.float32)) / 5
        return jnp.where(chosen[queries], 0.2 + gain, 0.3)

    return by_user


def _halves(segment, users):
    """bool[2, users]: the more active half of the active users, and the other."""
    active = np.asarray(segment.frequency[:users])
    middle = np.median(active[active > 0])
    return np.stack([active > middle, (active <= middle) & (active > 0)])


def _sizes_where_it_pays(module, stream, method, rounds, probes):
    """Mean sizes of the half of the users for whom larger ones pay, and of the other half, for either half."""
    config, plan, state, segment = _setting(stream, method, 4.0, probes=probes)
    users, means = stream.capacity.users, []
    halves = _halves(segment, users)
    search = jax.jit(lambda state, chosen: _searching(module, config, segment, _pays_for(segment, chosen))(state))
    for chosen, others in zip(halves, halves[::-1], strict=True):
        now = state
        for totals in (state.totals // 8, *[state.totals] * rounds):
            now, record = search(now._replace(totals=totals), jnp.asarray(chosen))
            _assert_exact(now, record, segment)
            own = np.asarray(plan(now)[0])
            assert own.sum() == totals[2]
        means.append((own[:users][chosen].mean(), own[:users][others].mean()))
    return means, own, now


@pytest.mark.slow
def test_ducb_gives_size_to_those_for_whom_it_pays(stream):
    means, own, state = _sizes_where_it_pays(ducb, stream, "ducb", rounds=4, probes=8)
    assert all(a > 1.15 * b for a, b in means), means
    # One entity takes what is left.
    assert len(set(own[own > 0]) - {1, 2, 4, 8, 16}) <= 1
    assert state.planner.users.gram.shape == (18, 18)


def _mlp(params, x):
    layers = params["_Hidden_0"]
    for i in range(len(layers)):
        x = np.maximum(x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"], 0)
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def test_targets_of_ciess_are_those_of_td3():
    rng = np.random.default_rng(2)
    agent = ciess.new_agent(jax.random.key(1))
    agent = agent._replace(target_actor=jax.tree.map(lambda x: 3 * x, agent.actor))
    reward, ahead, noise = rng.normal(size=9), rng.normal(size=(9, 3)), 2 * rng.normal(size=(9, 1))
    got = ciess.td3_targets(agent, *(jnp.asarray(x, jnp.float32) for x in (reward, ahead, noise)), 39)
    actor, critic = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), p["params"])
        for p in (agent.target_actor, agent.target_critic)
    )
    action = special.expit(_mlp(actor, ahead)) + np.clip(2 * noise, -5, 5) / 39
    joint = np.concatenate([ahead, np.clip(action, 0, 1)], axis=1)
    values = np.minimum(_mlp(critic["critic_0"], joint)[:, 0], _mlp(critic["critic_1"], joint)[:, 0])
    np.testing.assert_allclose(got, reward + 0.99 * values, atol=1e-5)
    assert (np.abs(2 * noise) > 5).any()


def test_walks_of_ciess_go_to_near_sizes_more_often():
    start = jnp.full(40_000, 3, jnp.int32)
    places = np.asarray(ciess.walk(jax.random.key(0), start, ciess.SizeBounds(1, 40)))
    assert places.shape == (6, 40_000) and (places[0] == 3).all() and places.min() == 1
    assert np.abs(np.diff(places, axis=0)).max() == 5 and (np.diff(places, axis=0) != 0).all()
    frequency = np.bincount(places[1], minlength=9)[1:9] / 40_000
    weight = np.array([1 / abs(d - 3) if d != 3 else 0 for d in range(1, 9)])
    np.testing.assert_allclose(frequency, weight / weight.sum(), atol=0.012)


@pytest.mark.slow
def test_ciess_learns_which_entities_want_which_size():
    def best(frequency):
        return jnp.where(frequency > 0, 0.8, 0.2)

    def one(i, agent):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(4), i), 4)
        state, ahead = (jax.random.uniform(k, (128, 3), minval=-1.0) for k in keys[:2])
        action = jax.random.uniform(keys[2], (128, 1))
        reward = -4 * (action[:, 0] - best(state[:, 0])) ** 2
        batch = ciess.Batch(state, action, reward, ahead)
        return ciess.update_agent(agent, batch, jax.random.normal(keys[3], (128, 1)), 39)

    agent = jax.jit(lambda agent: jax.lax.fori_loop(0, 400, one, agent))(ciess.new_agent(jax.random.key(0)))
    frequency = jnp.array([-0.8, -0.4, 0.4, 0.8])
    states = jnp.stack([frequency, jnp.zeros(4), jnp.zeros(4)], axis=1)
    np.testing.assert_allclose(ciess.ACTOR.apply(agent.actor, states)[:, 0], best(frequency), atol=0.25)
    assert agent.updates == 400


@pytest.mark.slow
def test_ciess_fills_budgets_with_the_best_of_its_probes(stream, monkeypatch):
    monkeypatch.setattr(ciess, "_BATCH", 32)
    config, plan, state, segment = _setting(stream, "ciess", 4.0, probes=4)
    users = stream.capacity.users
    chosen = jnp.asarray(_halves(segment, users)[0])
    search = jax.jit(_searching(ciess, config, segment, _pays_for(segment, chosen)))
    for totals in (state.totals // 8, state.totals):
        state, record = search(state._replace(totals=totals))
        _assert_exact(state, record, segment)
        own, _ = plan(state)
        assert own.sum() == totals[2]
        # No entity has arrived since, so that the best sizes are those of the segment, also where many are 0.
        np.testing.assert_array_equal(own[:-2], jnp.maximum(state.planner.sizes, 0))
    # The last probe repeats the best of those before.
    assert record.fitness[3] == record.fitness[:3].max()
    assert _pays_for(segment, chosen)(own[:-2]).mean() == pytest.approx(float(record.fitness[3]), abs=1e-6)
    assert state.planner.users.updates == 2 * 4 * 8


def test_growth_of_esapn_is_admitted_from_the_likeliest_on_as_long_as_it_fits():
    rng = np.random.default_rng(5)
    admit = jax.jit(esapn.admitted)
    for room in (0, 1, 7, 30, 200):
        wish, likely, cost = rng.random(40) < 0.6, rng.integers(-5, 5, 40), rng.integers(1, 9, 40)
        expected, left = np.zeros(40, bool), room
        for i in sorted(np.flatnonzero(wish), key=lambda i: (-likely[i], i)):
            if cost[i] > left:
                break
            expected[i], left = True, left - cost[i]
        given = jnp.asarray(wish), jnp.asarray(likely, jnp.float32), jnp.asarray(cost, jnp.int32), jnp.int32(room)
        np.testing.assert_array_equal(admit(*given), expected)


def test_next_sizes_and_buckets_of_esapn():
    choices = (1, 2, 4, 8)
    own = jnp.array([1, 2, 3, 7, 8, 9], jnp.int32)
    np.testing.assert_array_equal(esapn.next_size(own, choices), [2, 4, 4, 8, 8, 9])
    np.testing.assert_array_equal(esapn.place_of(own, choices), [0, 1, 1, 2, 3, 3])
    got = esapn.buckets(jnp.array([0, 1, 3, 15, 10**9], jnp.int32))
    np.testing.assert_array_equal(got, [0, 4, 8, 16, 31])


@pytest.mark.slow
def test_gradient_of_esapn_is_that_of_reinforce():
    """Against the score function: the sum of (drawn - probability) x advantage x derivative of the logit."""
    rng, net = np.random.default_rng(6), esapn.Growth(4)
    bucket, place = jnp.asarray(rng.integers(0, 32, 30)), jnp.asarray(rng.integers(0, 4, 30))
    grew, advantage, weight = rng.random(30) < 0.5, rng.normal(size=30), (rng.random(30) < 0.7).astype(float)
    params = net.init(jax.random.key(0), bucket, place)
    decisions = esapn.Decisions(bucket, place, grew, advantage, weight)
    got = jax.grad(lambda p: esapn.reinforce_loss(net, p, decisions))(params)
    slopes = jax.jacrev(lambda p: net.apply(p, bucket, place))(params)
    chance = special.expit(np.asarray(net.apply(params, bucket, place), np.float64))
    score = -(grew - chance) * advantage * weight / weight.sum()
    for ours, slope in zip(jax.tree.leaves(got), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(ours, np.tensordot(score, np.asarray(slope, np.float64), 1), atol=1e-6)


@pytest.mark.slow
def test_esapn_learns_who_gains_by_growing():
    """Drawn growth of half the popularities pays, that of the other half costs."""
    net, adam = esapn.Growth(5), optax.adam(1e-3)

    def one(i, carry):
        params, opt_state = carry
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), 3)
        bucket, place = (jax.random.randint(k, (256,), 0, n) for k, n in zip(keys, (32, 4), strict=False))
        grew = jax.random.uniform(keys[2], (256,)) < jax.nn.sigmoid(net.apply(params, bucket, place))
        advantage = jnp.where(grew, jnp.where(bucket >= 16, 1.0, -1.0), 0.0)
        decisions = esapn.Decisions(bucket, place, grew, advantage, jnp.ones(256))
        gradient = jax.grad(lambda p: esapn.reinforce_loss(net, p, decisions))(params)
        changes, opt_state = adam.update(gradient, opt_state)
        return optax.apply_updates(params, changes), opt_state

    params = net.init(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    params, _ = jax.jit(lambda c: jax.lax.fori_loop(0, 200, one, c))((params, adam.init(params)))
    bucket = jnp.arange(32)
    right = (np.asarray(net.apply(params, bucket, jnp.full(32, 2))) > 0) == (bucket >= 16)
    assert right.mean() > 0.9


def test_esapn_learns_nothing_from_growth_that_was_refused(stream):
    config, _, state, segment = _setting(stream, "esapn", 4.0)
    planner_state = state.planner
    # Let all entities want to grow.
    users, items = (
        agent._replace(params=jax.tree.map(lambda x: jnp.array([-6.0, 6.0]) if x.shape == (2,) else x, agent.params))
        for agent in (planner_state.users, planner_state.items)
    )
    search = esapn.esapn_search(segment_context(config, state._replace(planner=planner_state), segment))
    valid = len(segment.valid.users)
    reference = ReferenceProbe(
        jnp.zeros(len(segment.frequency), jnp.int32), jnp.float32(0.2), jnp.full((valid, 2), 0.2)
    )
    carry = search.start(planner_state._replace(users=users, items=items), reference)
    trial = Trial(carry.own, jnp.zeros(3), jnp.float32(1.0), jnp.full((valid, 2), 0.4))
    update = jax.jit(search.update)
    after = update(carry, 0, jax.random.key(1), trial)
    chex.assert_trees_all_equal(after.users.params, carry.users.params)
    grown, _ = jax.jit(search.propose)(carry, 0, jax.random.key(1))
    after = update(carry, 0, jax.random.key(1), trial._replace(sizes=grown))
    assert (grown > carry.own).any()
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(after.users.params, carry.users.params)


@pytest.mark.parametrize("minimum", [0, *(pytest.param(x, marks=pytest.mark.slow) for x in (1, 2)), 4])
def test_esapn_starts_at_two_whatever_the_smallest_size(stream, minimum):
    config, _, _, segment = _setting(stream, "esapn", 8.0, minimum=minimum)
    exists = np.asarray(active_mask(segment))
    count, nothing = int(exists.sum()), jnp.full_like(segment.frequency, -1)
    start = max(minimum, 2)
    starting = jax.jit(lambda n: esapn.starting_sizes(config.sizes, segment, n, nothing))
    for total in (8 * count, start * count, start * count - 1, minimum * count, count // 2):
        own = np.asarray(starting(total))
        assert own[~exists].max(initial=0) == 0 and own.sum() == min(total, start * count)
        if total >= start * count:
            assert (own[exists] == start).all()
    assert esapn.growing_sizes(config.sizes)[0] == start


@pytest.mark.parametrize("minimum", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_esapn_only_grows_and_stops_at_the_budget(stream, minimum):
    config, plan, state, segment = _setting(stream, "esapn", 4.0, minimum=minimum, probes=6)
    users = stream.capacity.users
    chosen = jnp.asarray(_halves(segment, users)[0])
    search = jax.jit(_searching(esapn, config, segment, _pays_for(segment, chosen)))
    before, spent = np.zeros(len(segment.frequency), int), []
    # The first budget hardly fits the smallest sizes, the next two leave room, and the last one takes away.
    full = state.totals
    for factor in (0.3, 1.0, 1.0, 0.5):
        totals = (full * factor).astype(jnp.int32)
        state, record = search(state._replace(totals=totals))
        made = np.asarray(record.allocated[: int(record.count)])
        assert record.count == 6 and (made <= totals[2]).all() and record.least == 0
        own = np.maximum(state.planner.sizes, 0)
        assert own.sum() <= totals[2]
        if factor == 0.5:
            assert before.sum() > totals[2] and own.sum() > totals[2] - 16
        else:
            assert (own >= before).all()
        before = own
        spent.append(own.sum())
    assert spent[1] > 1.2 * spent[0]
    np.testing.assert_array_equal(plan(state)[0][:-2], before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bet", "ciess", "ducb", "esapn"])
def test_runs_stay_within_the_budget_and_continue_and_scan(stream, tmp_path, monkeypatch, quick_compilation, method):
    """By real probes: the records of the host loop, of the same cut off after segment 1, and of one program."""
    monkeypatch.setattr(bet, "SAMPLED_ACTIONS", 4)
    monkeypatch.setattr(ciess, "_BATCH", 32)
    search = SearchConfig(probes=2, probe_steps=4)
    fit = FitConfig(layers=1, batch=64, steps=8, eval_every=4, valid_users=32)
    config, key = small_config(method, search=search, fit=fit, budget=Budget.mean_size(3)), jax.random.key(0)

    def look(line):
        if line["segment"] == 1:
            shutil.copytree(tmp_path / "whole", tmp_path / "part")

    whole = run_segments(config, stream, key, folder=tmp_path / "whole", on_segment=look)
    continued = run_segments(config, stream, key, folder=tmp_path / "part")
    left_out = {*records.VOLATILE, *records.ACCOUNT}
    assert [{k: v for k, v in x.items() if k not in left_out} for x in continued] == [
        {k: v for k, v in x.items() if k not in left_out} for x in whole
    ]
    for t, line in enumerate(whole):
        spent, budget = line["allocated_parameters"], line["budget_parameters"]
        assert spent <= budget and (method == "esapn" or spent == budget)
        if t:
            made = line["probe_allocated_parameters"]
            assert len(made) == 2 and all(x <= line["probe_budget_parameters"] for x in made)
    # These programs compile slowly: scan one method that spends the whole budget and the one that may not.
    if method in ("ciess", "esapn"):
        record = scan(config, stream, key).record
        for t, line in enumerate(whole):
            assert record.allocated[t] == line["allocated_parameters"]
            assert record.search.count[t] == (2 if t else 0)
            assert record.search.allocated[t].tolist()[: 2 * (t > 0)] == line.get("probe_allocated_parameters", [])
