"""Gradients against finite differences of the same formulas written again in plain NumPy, in float64.

These are the formulas that no other file checks so; experiments/results/trust.md lists all of them and where each is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from scall_jax import tables
from scall_jax.policies import PolicyConfig, Transition, ddpg
from scall_jax.policies.networks import Actor, Critic, GaussianActor, TwinCritic, decayed_adam, flat
from scall_jax.policies.sac import _Batch, _init, _Sac, _update_actor, _update_critic, _update_entropy
from scall_jax.recommenders import bpr
from scall_jax.tables.compressed import hashed

OBSERVED, ACTIONS, BATCH, GAMMA = 5, 3, 7, 0.9
CONFIG = PolicyConfig(widths=(6, 4), gamma=GAMMA, tau=0.25)


def _slope(function, at, direction, step=1e-6):
    """Central difference of a function of float64 numbers along a direction."""
    at, direction = np.asarray(at, np.float64), np.asarray(direction, np.float64)
    return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


def _agrees(gradient, function, at, rng, rtol=1e-3):
    """A gradient has the slopes of a function in random directions, and along itself, where it is steepest."""
    gradient = np.asarray(gradient, np.float64)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-4
    for direction in (*rng.normal(size=(3, *gradient.shape)), gradient / np.linalg.norm(gradient)):
        size = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert (gradient * direction).sum() == pytest.approx(_slope(function, at, direction), abs=rtol * size)


def _layers(network, weights, *inputs):
    """The dense layers of a network by name, (kernel, bias), from its weights in one vector."""
    tree = network.init(jax.random.key(0), *(np.zeros(n, np.float32) for n in inputs))
    leaves, structure = jax.tree.flatten(tree)
    parts = np.split(np.asarray(weights, np.float64), np.cumsum([x.size for x in leaves])[:-1])
    named = flatten_dict(structure.unflatten([p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]), sep="/")
    return {name[7:-7]: (named[name], named[name[:-6] + "bias"]) for name in named if name.endswith("kernel")}


def _hidden(layers, prefix, x):
    for i in range(2):
        kernel, bias = layers[f"{prefix}_Hidden_0/Dense_{i}"]
        x = np.maximum(x @ kernel + bias, 0)
    return x


def _dense(layers, name, x):
    kernel, bias = layers[name]
    return x @ kernel + bias


def _critic(layers, prefix, s, a):
    return _dense(layers, f"{prefix}Dense_0", _hidden(layers, prefix, np.concatenate([s, a], 1)))[:, 0]


def _drawn(weights, s, noise):
    """Actions of the squashed normal in (0, 1), and the log densities of tanh of it."""
    layers = _layers(GaussianActor(ACTIONS, (6, 4)), weights, OBSERVED)
    x = _hidden(layers, "", s)
    mean, log_std = (_dense(layers, f"Dense_{i}", x) for i in (0, 1))
    raw = mean + np.exp(np.clip(log_std, -20, 2)) * noise
    normal = -0.5 * noise**2 - np.clip(log_std, -20, 2) - 0.5 * np.log(2 * np.pi)
    return (np.tanh(raw) + 1) / 2, (normal - np.log1p(-(np.tanh(raw) ** 2))).sum(1)


def _transitions(rng):
    sides = rng.normal(size=(BATCH, OBSERVED)), rng.random((BATCH, ACTIONS)), rng.normal(size=BATCH)
    return Transition(*(jnp.asarray(x, jnp.float32) for x in (*sides, rng.normal(size=(BATCH, OBSERVED)))))


def _agent(kind, actor, critic):
    """A learner whose optimisers subtract the gradient itself."""
    zeros = np.zeros(OBSERVED, np.float32), np.zeros(ACTIONS, np.float32)
    parts = {"actor": flat(actor, zeros[0]), "critic": flat(critic, *zeros)}
    rates = {name: optax.sgd(1.0) for name in kind._fields if name.endswith("_adam")}
    return kind(config=CONFIG, actions=ACTIONS, **parts, **rates)


@pytest.fixture(scope="module")
def soft():
    """A soft actor-critic, a batch of it with weights, and the state that one update of each part leads to."""
    rng = np.random.default_rng(0)
    agent = _agent(_Sac, GaussianActor(ACTIONS, (6, 4)), TwinCritic((6, 4)))
    state = _init(agent, jax.random.key(1), OBSERVED)
    state = state._replace(log_entropy=jnp.log(jnp.float32(0.3)), target=agent.critic.init(jax.random.key(2)))
    noise = (jnp.asarray(rng.normal(size=(BATCH, ACTIONS)), jnp.float32) for _ in range(2))
    weight = jnp.asarray(rng.random(BATCH), jnp.float32)
    return agent, state, _Batch(_transitions(rng), weight, *noise)


def _twin(weights, s, a):
    layers = _layers(TwinCritic((6, 4)), weights, OBSERVED, ACTIONS)
    return np.stack([_critic(layers, f"critic_{i}/", s, a) for i in (0, 1)], 1)


def test_critic_of_sac_descends_the_squared_distance_from_its_soft_target(soft):
    agent, state, batch = soft
    s, a, r, after = (np.asarray(x, np.float64) for x in batch.transitions)
    next_action, log_density = _drawn(state.actor, after, np.asarray(batch.noise_t))
    value = _twin(state.target, after, next_action).min(1) - 0.3 * log_density
    wanted, weight = r + GAMMA * value, np.asarray(batch.weight, np.float64)

    def loss(critic):
        return (weight[:, None] * (_twin(critic, s, a) - wanted[:, None]) ** 2).sum()

    moved = jax.jit(lambda state, batch: _update_critic(agent, state, batch, jnp.exp(state.log_entropy)))(state, batch)
    _agrees(state.critic - moved.critic, loss, state.critic, np.random.default_rng(1))


def test_actor_of_sac_descends_its_entropy_less_its_value(soft):
    agent, state, batch = soft
    s, weight = np.asarray(batch.transitions.observation, np.float64), np.asarray(batch.weight, np.float64)

    def loss(actor):
        action, log_density = _drawn(actor, s, np.asarray(batch.noise_tm1))
        return (weight * (0.3 * log_density - _twin(state.critic, s, action).min(1))).sum()

    moved, log_density = jax.jit(lambda state, batch: _update_actor(agent, state, batch, jnp.float32(0.3)))(
        state, batch
    )
    _agrees(state.actor - moved.actor, loss, state.actor, np.random.default_rng(2))
    np.testing.assert_allclose(log_density, _drawn(state.actor, s, np.asarray(batch.noise_tm1))[1], atol=1e-4)
    # The weight of the entropy falls where the entropy, minus the mean log density, is above -3 of three actions.
    moved = _update_entropy(agent, state, batch, jnp.full(BATCH, 1.0))
    assert state.log_entropy - moved.log_entropy == pytest.approx(float(2 * weight.sum()), rel=1e-5)


def test_ddpg_descends_the_temporal_difference_and_ascends_the_value():
    rng = np.random.default_rng(3)
    agent = _agent(ddpg._Ddpg, Actor(ACTIONS, (6, 4)), Critic((6, 4)))
    state, batch = ddpg._init(agent, jax.random.key(4), OBSERVED), _transitions(rng)
    # An actor as it starts hardly depends on what it observes.
    state = state._replace(actor=3 * agent.actor.init(jax.random.key(5)) + 0.1, target_critic=state.critic[::-1])
    s, a, r, after = (np.asarray(x, np.float64) for x in batch)

    def act(weights, s):
        layers = _layers(Actor(ACTIONS, (6, 4)), weights, OBSERVED)
        return 1 / (1 + np.exp(-_dense(layers, "Dense_0", _hidden(layers, "", s))))

    def value(weights, s, a):
        return _critic(_layers(Critic((6, 4)), weights, OBSERVED, ACTIONS), "", s, a)

    wanted = r + GAMMA * value(state.target_critic, after, act(state.target_actor, after))
    moved = jax.jit(lambda state, batch: ddpg._update_critic(agent, state, batch))(state, batch)
    _agrees(state.critic - moved.critic, lambda w: 0.5 * ((value(w, s, a) - wanted) ** 2).mean(), state.critic, rng)
    moved = jax.jit(lambda state, batch: ddpg._update_actor(agent, state, batch))(state, batch)
    _agrees(state.actor - moved.actor, lambda w: -value(state.critic, s, act(w, s)).mean(), state.actor, rng)


def test_weight_decay_and_clipping_of_the_policies():
    """The first step of Adam is its rate times the sign of a gradient; the penalty is added after clipping."""
    weights, gradient = jnp.array([2.0, -1.0, 0.0]), jnp.array([-3.0, 4.0, 1e-3])
    for clip, of_loss in ((None, gradient), (1.0, gradient / jnp.linalg.norm(gradient))):
        adam = decayed_adam(0.01, 1e-1, clip)
        updates, _ = adam.update(gradient, adam.init(weights), weights)
        total = np.asarray(of_loss, np.float64) + 0.1 * np.asarray(weights)
        np.testing.assert_allclose(updates, -0.01 * total / (np.abs(total) + 1e-8), rtol=1e-3)


def test_bpr_by_finite_differences():
    rng = np.random.default_rng(6)
    final, bias = rng.normal(size=(12, 3)), rng.normal(size=5)
    positive, negative = rng.integers(0, 5, 4), rng.integers(0, 5, 4)
    triples = bpr.Triples(
        *(jnp.asarray(x, jnp.int32) for x in (positive, positive, negative)), jnp.array([1.0, 0, 1, 1])
    )
    energy = 7.0

    def plain(final):
        u, i, j = np.split(final, 3)
        margin = (u * (i - j)).sum(1) + bias[positive] - bias[negative]
        return np.log1p(np.exp(-margin))[[0, 2, 3]].mean() + 0.5 * 0.1 * energy / 4

    def loss(final):
        return bpr.loss(bpr.margins(final), jnp.float32(energy), jnp.asarray(bias, jnp.float32), triples, 0.1)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(final, jnp.float32))
    assert float(value) == pytest.approx(plain(final), rel=1e-5)
    _agrees(gradient, plain, final, rng)


@pytest.mark.parametrize("name", ["binary_hash", "quotient_remainder", "shared_memory"])
def test_gradients_of_vectors_that_share_parameters(name):
    """The vectors are linear in each number, so that a difference of float32 numbers is as exact as they are."""
    users, items, rng = 30, 20, np.random.default_rng(7)
    storage = tables.STORAGES[name].build(600, users, items, 8)
    plan = storage.plan()
    plan = (
        plan._replace(count=jnp.int32(600))
        if name == "shared_memory"
        else hashed.columns_within(storage, jnp.int32(600))
    )
    layout = storage.layout(plan)
    params = storage.fresh(jax.random.key(0), layout, 1.0)
    weight = jnp.asarray(rng.normal(size=(users + items, storage.width)), jnp.float32)

    @jax.jit
    def value(params):
        return (storage.vectors(params, layout) * weight).sum()

    gradient = jax.jit(jax.grad(value))(params).ravel()
    for at in rng.choice(params.size, 25, replace=False):
        up, down = (value(params.ravel().at[at].add(step).reshape(params.shape)) for step in (1.0, -1.0))
        assert float(gradient[at]) == pytest.approx(float(up - down) / 2, abs=2e-4)
    assert np.count_nonzero(gradient) > 100
