import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax.policies import POLICIES, PolicyConfig, Transition

OPTIMUM = jnp.array([0.3, 0.7, 0.25])
SEEN = jnp.linspace(-0.5, 0.5, 6)


def _reward(action):
    return 10 * jnp.exp(-4 * ((action - OPTIMUM) ** 2).sum(-1))


@functools.cache
def _distances(name, config, interactions=200, seeds=5, flip=False):
    """Distance of the greedy action from the optimum of a bandit, by seed."""
    policy = POLICIES[name](config, SEEN.shape[0], 3)

    def play(key):
        def one(i, state):
            act_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            action = policy.act(state, act_key, SEEN)
            sign = -1.0 if flip else 1.0
            new = Transition(SEEN[None], action[None], sign * _reward(action)[None], SEEN[None])
            return policy.update(state, update_key, new)

        state = jax.lax.fori_loop(0, interactions, one, policy.begin(policy.init(key)))
        return jnp.linalg.norm(policy.greedy(state, SEEN) - OPTIMUM)

    return np.sort(jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(1), seeds)))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sac", PolicyConfig(widths=(64, 64))),
        ("sac", PolicyConfig(widths=(64, 64), learn_entropy=True, copy_target=False, gamma=0.5)),
        ("ddpg", PolicyConfig(widths=(64, 64))),
        ("ddpg", PolicyConfig(widths=(64, 64), noise="ou", noise_std=0.15, newer=False)),
        ("surface", PolicyConfig()),
    ],
    ids=["sac", "sac-learned-entropy", "ddpg", "ddpg-ou", "surface"],
)
def test_learns_the_optimum_of_a_bandit(name, config):
    distances = _distances(name, config)
    assert (distances < 0.1).sum() >= 4, distances


@pytest.mark.parametrize("name", ["sac", "ddpg"])
def test_a_policy_that_climbs_the_wrong_way_fails_the_bandit(name):
    assert (_distances(name, PolicyConfig(widths=(64, 64)), flip=True) < 0.1).sum() < 4
