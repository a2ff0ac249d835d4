import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from scall_jax.policies import POLICIES, ObserveConfig, PolicyConfig, Side, Transition, length, observe, replay_buffer
from scall_jax.policies import discounted_regression as discounted
from scall_jax.policies.gp import _posterior
from scall_jax.policies.networks import Actor, GaussianActor, TwinCritic, flat, squash
from scall_jax.policies.observation import gini, pooled

OPTIMUM = jnp.array([0.3, 0.7, 0.25])
OBSERVATION = jnp.linspace(-0.5, 0.5, 6)


def _reward(action):
    return 10 * jnp.exp(-4 * ((action - jnp.broadcast_to(OPTIMUM, action.shape)) ** 2).sum(-1))


@functools.cache
def _distances(name, config, interactions=200, seeds=5, flip=False):
    """Distance of the greedy action from the optimum of a bandit, by seed."""
    policy = POLICIES[name](config, OBSERVATION.shape[0], 3)

    def play(key):
        def one(i, state):
            act_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            action = policy.act(state, act_key, OBSERVATION)
            sign = -1.0 if flip else 1.0
            new = Transition(OBSERVATION[None], action[None], sign * _reward(action)[None], OBSERVATION[None])
            return policy.update(state, update_key, new)

        state = jax.lax.fori_loop(0, interactions, one, policy.start_segment(policy.init(key)))
        return jnp.linalg.norm(policy.greedy(state, OBSERVATION) - OPTIMUM)

    return np.sort(jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(1), seeds)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sac", PolicyConfig(widths=(64, 64))),
        ("sac", PolicyConfig(widths=(64, 64), learn_entropy=True, copy_target=False, gamma=0.5)),
        ("ddpg", PolicyConfig(widths=(64, 64))),
        ("ddpg", PolicyConfig(widths=(64, 64), noise="ou", noise_std=0.15, newer=False)),
        ("gp", PolicyConfig()),
        ("dlints", PolicyConfig()),
    ],
    ids=["sac", "sac-learned-entropy", "ddpg", "ddpg-ou", "gp", "dlints"],
)
def test_learns_the_optimum_of_a_bandit(name, config):
    distances = _distances(name, config)
    assert (distances < 0.1).sum() >= 4, distances


@pytest.mark.parametrize("name", [*(pytest.param(x, marks=pytest.mark.slow) for x in ("sac", "ddpg")), "dlints"])
def test_a_policy_that_climbs_the_wrong_way_fails_the_bandit(name):
    assert (_distances(name, PolicyConfig(widths=(64, 64)), flip=True) < 0.1).sum() < 4


def test_greedy_of_gp_is_the_optimum_of_the_posterior():
    """Against a float64 regression on what is left of rewards once the prior mean is taken off."""
    rng, config = np.random.default_rng(4), PolicyConfig()
    policy = POLICIES["gp"](config, OBSERVATION.shape[0], 3)
    state, probes = policy.init(jax.random.key(0)), []
    for t in range(3):
        state = policy.start_segment(state)
        for _ in range(5):
            action, reward = rng.random((1, 3)), rng.normal(size=1)
            probes.append((t, action[0], reward[0]))
            new = [jnp.asarray(x, jnp.float32) for x in (OBSERVATION[None], action, reward, OBSERVATION[None])]
            state = policy.update(state, jax.random.key(0), Transition(*new))
    segment, at, reward = map(np.array, zip(*probes, strict=True))

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * config.length_scale**2))

    def relative(x):
        return x - np.array([x[segment == t].mean() for t in segment])

    def prior(a):
        return -config.curvature * ((a - 0.5) ** 2).sum(-1)

    spread = relative(reward).std()
    noise = config.noise_variance / config.discount ** (2 - segment)
    weights = np.linalg.solve(kernel(at, at) + np.diag(noise), relative(reward) / spread - relative(prior(at)))
    axis = (np.arange(11) + 0.5) / 11
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    mean = prior(lattice) + kernel(lattice, at) @ weights
    chosen = np.asarray(policy.greedy(state, OBSERVATION))
    (place,) = np.flatnonzero(np.abs(lattice - chosen).max(1) < 1e-5)
    assert mean[place] == pytest.approx(mean.max(), abs=1e-4) and mean.max() - np.median(mean) > 0.2


def test_discounted_regression_is_its_weighted_sums():
    rng = np.random.default_rng(3)
    gamma, ridge, features = 0.9, 0.7, 5
    state, rounds = discounted.empty(features, ridge), []
    for count in (1, 4, 2, 6, 1):
        x, reward, observed = rng.normal(size=(count, features)), rng.normal(size=count), rng.random(count) < 0.8
        observed[0] = True
        rounds.append((x[observed], reward[observed]))
        arrays = (jnp.asarray(x, jnp.float32), jnp.asarray(reward, jnp.float32), jnp.asarray(observed))
        state = discounted.add_round(state, *arrays, gamma, ridge)
    ages = np.arange(len(rounds))[::-1]
    gram = ridge * np.eye(features) + sum(gamma**a * x.T @ x for a, (x, _) in zip(ages, rounds, strict=True))
    squared = ridge * np.eye(features) + sum(gamma ** (2 * a) * x.T @ x for a, (x, _) in zip(ages, rounds, strict=True))
    moment = sum(gamma**a * r @ x for a, (x, r) in zip(ages, rounds, strict=True))
    inverse = np.linalg.inv(gram)
    np.testing.assert_allclose(discounted.estimate(state), inverse @ moment, rtol=1e-4)
    at = rng.normal(size=(3, features))
    variance = np.einsum("nk,kl,nl->n", at, inverse @ squared @ inverse, at)
    np.testing.assert_allclose(
        discounted.confidence_width(state, jnp.asarray(at, jnp.float32)), variance**0.5, rtol=1e-4
    )
    drawn = jax.vmap(lambda z: discounted.thompson(state, z))(jax.random.normal(jax.random.key(0), (40_000, features)))
    np.testing.assert_allclose(drawn.mean(0), inverse @ moment, atol=0.01)
    np.testing.assert_allclose(np.cov(drawn.T), inverse @ squared @ inverse, atol=0.01)
    # With one observation a round the radius is that of the paper.
    state = discounted.empty(features, ridge)
    for _ in range(7):
        state = discounted.add_round(state, jnp.ones((1, features)), jnp.ones(1), jnp.ones(1, bool), gamma, ridge)
    inner = 2 * np.log(1 / 0.1) + features * np.log(1 + (1 - gamma**14) / (ridge * features * (1 - gamma**2)))
    assert discounted.radius(state, ridge, 2.0, 0.3, 0.1) == pytest.approx(ridge**0.5 * 2 + 0.3 * inner**0.5, rel=1e-5)


def test_contexts_of_arms_are_products_projected_by_one_matrix():
    config = PolicyConfig(projected=7)
    policy = POLICIES["dlints"](config, OBSERVATION.shape[0], 3)
    state = policy.init(jax.random.key(5))
    rng = np.random.default_rng(0)
    action, reward = rng.random((4, 3)), rng.normal(size=4)
    observation = rng.normal(size=(4, OBSERVATION.shape[0]))
    new = [jnp.asarray(x, jnp.float32) for x in (observation, action, reward, observation)]
    state = policy.update(state, jax.random.key(0), Transition(*new))
    projection = jax.random.wrap_key_data(state.seed, impl="threefry2x32")
    matrix = np.asarray(jax.random.normal(projection, (70, 7)), np.float64) / np.sqrt(70)
    gram, squared, moment = np.eye(7), np.eye(7), np.zeros(7)
    for s, a, r in zip(observation, 2 * action - 1, reward, strict=True):
        context = np.concatenate([[1], s])
        context /= np.sqrt((context**2).mean())
        powers = np.concatenate([[1], a, [a[i] * a[j] for i in range(3) for j in range(i, 3)]])
        z = np.outer(context, powers).reshape(-1) @ matrix
        gram = 0.99 * gram + np.outer(z, z) + 0.01 * np.eye(7)
        squared = 0.99**2 * squared + np.outer(z, z) + (1 - 0.99**2) * np.eye(7)
        moment = 0.99 * moment + r * z
    np.testing.assert_allclose(state.ridge.gram, gram, atol=1e-4)
    np.testing.assert_allclose(state.ridge.squared, squared, atol=1e-4)
    np.testing.assert_allclose(state.ridge.moment, moment, atol=1e-4)


@pytest.mark.parametrize("name", ["random", "grid"])
def test_controls_keep_the_best_probe(name):
    policy = POLICIES[name](PolicyConfig(grid=3), 6, 3)
    state = policy.start_segment(policy.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(4), 12)
    actions = jnp.stack([policy.act(state, key, OBSERVATION) for key in keys])
    rewards = _reward(actions)
    for action, reward in zip(actions, rewards, strict=True):
        new = Transition(OBSERVATION[None], action[None], reward[None], OBSERVATION[None])
        state = policy.update(state, keys[0], new)
    assert _reward(policy.greedy(state, OBSERVATION)) == pytest.approx(float(rewards.max()), rel=1e-5)
    assert len(np.unique(np.asarray(actions), axis=0)) > 6


def test_the_grid_tries_no_point_twice_before_all_are_tried():
    policy = POLICIES["grid"](PolicyConfig(grid=2), 6, 3)
    state, tried = policy.init(jax.random.key(0)), []
    for number in range(16):
        if number == 5:
            state = policy.start_segment(state)
        action = policy.act(state, jax.random.key(number), OBSERVATION)
        state = policy.update(
            state, jax.random.key(0), Transition(OBSERVATION[None], action[None], jnp.ones(1), OBSERVATION[None])
        )
        tried.append(tuple(np.asarray(action).tolist()))
    assert len(set(tried[:8])) == len(set(tried[8:])) == 8
    assert tried[:8] != tried[8:]


def test_random_search_starts_afresh_at_a_new_segment():
    policy = POLICIES["random"](PolicyConfig(), 6, 3)
    one = Transition(OBSERVATION[None], jnp.full((1, 3), 0.2), jnp.array([5.0]), OBSERVATION[None])
    worse = one._replace(action=jnp.full((1, 3), 0.8), reward=jnp.array([1.0]))
    state = policy.update(policy.init(jax.random.key(0)), jax.random.key(0), one)
    state = policy.update(policy.start_segment(state), jax.random.key(0), worse)
    np.testing.assert_allclose(policy.greedy(state, OBSERVATION), 0.8, rtol=1e-6)


def test_replay_keeps_the_newest_and_draws_newer_ones_more_often():
    replay = replay_buffer.empty(4, 1, 1)
    for i in range(3):
        value = jnp.array([[2.0 * i], [2.0 * i + 1]])
        replay = replay_buffer.add(replay, Transition(value, value, value[:, 0], value))
    assert sorted(np.asarray(replay.transitions.reward)) == [2, 3, 4, 5]
    for newer, weight in ((True, np.arange(1, 5)), (False, np.ones(4))):
        drawn = replay_buffer.draw(replay, jax.random.key(0), 40_000, newer)
        counts = np.bincount(np.asarray(drawn.reward).astype(int), minlength=6)[2:]
        np.testing.assert_allclose(counts / 40_000, weight / weight.sum(), atol=0.012)
        np.testing.assert_array_equal(drawn.reward, drawn.observation[:, 0])


@pytest.mark.parametrize("newer", [True, False])
def test_distinct_draws_are_those_of_one_after_the_other_without_replacement(newer):
    """Against the probability of every ordered pair, with a ring that has begun anew."""
    replay = replay_buffer.empty(4, 1, 1)
    for i in range(6):
        value = jnp.array([[float(i)]])
        replay = replay_buffer.add(replay, Transition(value, value, value[:, 0], value))
    keys = jax.random.split(jax.random.key(0), 40_000)
    drawn = jax.vmap(lambda key: replay_buffer.draw_distinct(replay, key, 2, newer).reward)(keys)
    pairs = np.asarray(drawn).astype(int) - 2
    weight = np.arange(1, 5) if newer else np.ones(4)
    expected = np.outer(weight, weight) / weight.sum() / (weight.sum() - weight)[:, None]
    np.fill_diagonal(expected, 0)
    found = np.zeros((4, 4))
    np.add.at(found, tuple(pairs.T), 1 / 40_000)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_with_fewer_transitions_than_a_batch_each_counts_once():
    """An update of the critic by distinct draws is that by the same transitions in a batch of their number."""
    new = Transition(
        jax.random.normal(jax.random.key(1), (3, 2)), jnp.full((3, 3), 0.4), jnp.arange(3.0), jnp.zeros((3, 2))
    )
    shared = {"widths": (8,), "gamma": 0.0, "replay": 16, "updates": 1, "entropy": 1e-9, "distinct": True}
    states = []
    for batch in (8, 3):
        policy = POLICIES["sac"](PolicyConfig(batch=batch, first_batch=batch, **shared), 2, 3)
        states.append(policy.update(policy.init(jax.random.key(0)), jax.random.key(2), new))
    assert np.isfinite(states[0].critic).all()
    np.testing.assert_allclose(states[0].critic, states[1].critic, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="at most replay=4 transitions are distinct"):
        PolicyConfig(batch=8, replay=4, distinct=True)


def test_actors_start_on_either_side_of_the_middle():
    """DDPG draws the last layer's weights from -.003 to .003: first actions are near the middle, of either sign."""
    actor = Actor(3, (64, 64))
    observation = jnp.abs(jax.random.normal(jax.random.key(0), (8,)))
    first = jax.vmap(lambda key: actor.apply(actor.init(key, observation), observation))(
        jax.random.split(jax.random.key(1), 20)
    )
    assert np.abs(np.asarray(first) - 0.5).max() < 0.05
    assert 0.2 < (np.asarray(first) < 0.5).mean() < 0.8


def test_published_networks_start_uniform_by_the_rule_of_glorot():
    for network, inputs in ((GaussianActor(3, (64, 48), True), [6]), (TwinCritic((64, 48), True), [6, 3])):
        params = network.init(jax.random.key(0), *(np.zeros(n, np.float32) for n in inputs))
        kernels = [x for x in jax.tree.leaves(params) if x.ndim == 2]
        assert len(kernels) == (4 if len(inputs) == 1 else 6)
        for kernel in kernels:
            bound = np.sqrt(6 / sum(kernel.shape))
            assert 0.9 * bound < np.abs(kernel).max() <= bound
            if kernel.size > 1000:
                assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert PolicyConfig.published().xavier and PolicyConfig.published().distinct


def test_density_of_the_squashed_normal():
    mean, log_std = jnp.array([0.3]), jnp.array([-0.4])
    noise = jnp.linspace(-3, 3, 4001)
    action, log_density = jax.vmap(lambda e: squash(mean, log_std, e[None]))(noise)
    in_minus_one_to_one = np.asarray(2 * action[:, 0] - 1, np.float64)
    mass = np.trapezoid(np.exp(np.asarray(log_density, np.float64)), in_minus_one_to_one)
    assert mass == pytest.approx(0.9973, abs=1e-3)


def _published_pool(values, groups):
    values = np.sort(np.asarray(values, np.float64))[::-1]
    scaled = (values - values.min()) / (values.max() - values.min())
    window = -(-len(values) // groups)
    parts = [scaled[i : i + window].mean() for i in range(0, len(values), window)]
    return np.pad(parts, (0, groups - len(parts)))


@pytest.mark.parametrize(
    ("n", "groups"), [pytest.param(1000, 64, marks=pytest.mark.slow), (50, 64), (64, 64), (129, 8)]
)
def test_pooling_is_a_plain_mean_of_windows_whatever_the_padding_and_the_order(n, groups):
    rng = np.random.default_rng(n)
    values = rng.zipf(1.5, n).clip(max=10_000).astype(np.int32)
    plain = pooled(jnp.asarray(values), jnp.ones(n, bool), jnp.int32(n), groups)
    np.testing.assert_allclose(plain, _published_pool(values, groups), atol=1e-6)
    padded = np.concatenate([values, rng.integers(0, 99, 37)]).astype(np.int32)
    active_mask = np.arange(n + 37) < n
    shuffled = rng.permutation(n + 37)
    other = pooled(jnp.asarray(padded[shuffled]), jnp.asarray(active_mask[shuffled]), jnp.int32(n), groups)
    np.testing.assert_allclose(other, plain, atol=1e-6)


def test_equal_frequencies_are_pooled_to_ones():
    found = pooled(jnp.full(6, 3), jnp.arange(6) < 4, jnp.int32(4), 3)
    np.testing.assert_array_equal(found, [1, 1, 0])
    np.testing.assert_array_equal(pooled(jnp.zeros(6, jnp.int32), jnp.zeros(6, bool), jnp.int32(0), 2), [0, 0])


def test_gini_is_the_mean_difference_of_all_pairs():
    values = np.random.default_rng(0).zipf(1.6, 300).clip(max=5000)
    brute = np.abs(values[:, None] - values[None]).sum() / (2 * len(values) ** 2 * values.mean())
    padded = jnp.asarray(np.pad(values, (0, 20)), jnp.int32)
    assert gini(padded, jnp.arange(320) < 300, jnp.int32(300)) == pytest.approx(brute, abs=1e-5)
    assert gini(jnp.zeros(5, jnp.int32), jnp.ones(5, bool), jnp.int32(5)) == 0


@pytest.mark.parametrize(
    "config", [ObserveConfig(8), ObserveConfig(8, False, False, gini=True), ObserveConfig(8, gini=True)]
)
def test_observation_has_its_length_and_parts(config):
    def side(n, mean):
        return Side(jnp.arange(n), 1 + jnp.arange(n) % 5, jnp.arange(n) < n - 1, jnp.int32(n - 1), jnp.full(6, mean))

    observation = observe(config, side(20, 0.5), side(12, -0.5), jnp.float32(1.1), 16)
    assert observation.shape == (length(config, 6),)
    assert observation[16] == pytest.approx(1.1) and observation[17] == pytest.approx(19 / 30)
    if config.embedding:
        np.testing.assert_allclose(observation[18:30], [0.5] * 6 + [-0.5] * 6)
    if config.spread:
        np.testing.assert_allclose(observation[30:32] if config.embedding else observation[18:20], 4 / 15)


def test_published_sac_has_the_published_number_of_weights():
    # The published networks for a state of 1028 numbers have 792,582 weights (actor) and 1,583,106 (twin critic).
    policy = POLICIES["sac"](PolicyConfig.published(), 1028, 3)
    state = jax.eval_shape(policy.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(state.actor)) == 792_582
    assert sum(x.size for x in jax.tree.leaves(state.critic)) == 1_583_106


@pytest.mark.parametrize("network, inputs", [(GaussianActor(3, (8, 5)), 1), (TwinCritic((8, 5)), 2)])
def test_a_flat_network_is_the_same_network(network, inputs):
    inputs = [jnp.linspace(-1.0, 1.0, 6), jnp.array([0.2, 0.9, 0.4])][:inputs]
    made, key = flat(network, *inputs), jax.random.key(3)
    tree = network.init(key, *inputs)
    weights, restore = ravel_pytree(tree)
    np.testing.assert_array_equal(made.init(key), weights)
    chex.assert_trees_all_equal(made.apply(weights, *inputs), network.apply(tree, *inputs))

    def total(apply):
        return lambda weights: sum(x.sum() for x in jax.tree.leaves(apply(weights, *inputs)))

    gradient = jax.grad(total(made.apply))(weights)
    chex.assert_trees_all_close(restore(gradient), jax.grad(total(network.apply))(tree), rtol=1e-6)


def test_targets_start_as_copies_only_where_asked():
    for copy in (True, False):
        config = PolicyConfig(widths=(8,), copy_target=copy)
        state = POLICIES["sac"](config, 4, 3).init(jax.random.key(0))
        critic, target = (ravel_pytree(x)[0] for x in (state.critic, state.target))
        assert bool((critic == target).all()) == copy


@pytest.mark.parametrize("change", [{"gamma": 1.5}, {"noise": "pink"}, {"batch": 0}, {"forget": 0.0}])
def test_bad_policy_parameters(change):
    with pytest.raises(ValueError, match=str(next(iter(change)))):
        PolicyConfig(**change)


@pytest.mark.parametrize("name", list(POLICIES))
def test_arrays_of_other_shapes_or_dtypes_are_refused_while_tracing(name):
    policy, key = POLICIES[name](PolicyConfig(widths=(8,)), 6, 3), jax.random.key(0)
    state = jax.eval_shape(policy.init, key)
    good = Transition(OBSERVATION[None], jnp.ones((1, 3)), jnp.ones(1), OBSERVATION[None])
    jax.eval_shape(policy.update, state, key, good)
    for bad in (
        good._replace(action=jnp.ones((1, 4))),
        good._replace(reward=jnp.ones(2)),
        good._replace(reward=jnp.array([1])),
    ):
        with pytest.raises(AssertionError):
            jax.eval_shape(policy.update, state, key, bad)
    with pytest.raises(AssertionError):
        jax.eval_shape(policy.act, state, key, jnp.ones(5))


def test_gp_learns_nothing_from_rewards_that_are_all_equal():
    """Their mean is off by its rounding, which must not count as a surprise."""
    config = PolicyConfig()
    policy, rng = POLICIES["gp"](config, OBSERVATION.shape[0], 3), np.random.default_rng(0)
    actions, elsewhere = rng.random((12, 1, 3)), jnp.asarray(rng.random((50, 3)), jnp.float32)

    def found(reward: float) -> np.ndarray:
        state = policy.start_segment(policy.init(jax.random.key(0)))
        for action in actions:
            new = [jnp.asarray(x, jnp.float32) for x in (OBSERVATION[None], action, [reward], OBSERVATION[None])]
            state = policy.update(state, jax.random.key(0), Transition(*new))
        return np.asarray(_posterior(config, state, elsewhere)[0])

    np.testing.assert_allclose(found(5.1234), found(0.0), atol=0.03)
