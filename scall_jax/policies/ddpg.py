"""Deep deterministic policy gradient (Lillicrap et al., arXiv 1509.02971), with losses and noise of rlax.

This is the only module that imports rlax, which takes seconds: import it where the policy is built. Indices of time are
those of rlax: an action a_tm1 in state s_tm1 earns the reward r_t and leads to the state s_t.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rlax

from scall_jax.ops.keys import Purpose, derive
from scall_jax.policies import replay_buffer
from scall_jax.policies.networks import Actor, Critic, Flat, decayed_adam, flat
from scall_jax.policies.policy import Policy, PolicyConfig, Transition, checked

_DAMPING = 0.15  # The Ornstein-Uhlenbeck process has this damping in the paper.


class DdpgState(NamedTuple):
    """Networks, targets, optimisers, replay buffer and exploration."""

    actor: jax.Array  # f32[W], weights
    critic: jax.Array  # f32[W']
    target_actor: jax.Array  # f32[W]
    target_critic: jax.Array  # f32[W']
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    replay: replay_buffer.Replay
    noise_tm1: jax.Array  # f32[A], state of the Ornstein-Uhlenbeck process: the noise of the last probe
    noise_std: jax.Array  # f32[], standard deviation of the exploration noise


class _Ddpg(NamedTuple):
    """The static part."""

    config: PolicyConfig
    actions: int
    actor: Flat
    critic: Flat
    actor_adam: optax.GradientTransformation
    critic_adam: optax.GradientTransformation


def ddpg(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy.

    Args:
      config: its parameters.
      observation_length: O, numbers of an observation.
      actions: A, numbers of an action in (0, 1).

    Returns:
      Policy.

    >>> policy = ddpg(PolicyConfig(widths=(4,)), observation_length=2)
    >>> jax.eval_shape(policy.init, jax.random.key(0)).actor.shape  # (2 + 1) x 4 and (4 + 1) x 3
    (27,)
    """
    # Use numpy, because a policy may be built while one program is traced and serve in another.
    observation, action = np.zeros(observation_length, np.float32), np.zeros(actions, np.float32)
    agent = _Ddpg(
        config,
        actions,
        actor=flat(Actor(actions, config.widths), observation),
        critic=flat(Critic(config.widths), observation, action),
        actor_adam=decayed_adam(config.actor_rate, config.weight_decay, config.clip),
        critic_adam=decayed_adam(config.critic_rate, config.weight_decay),
    )

    def init(key):
        return _init(agent, key, observation_length)

    def greedy(state, observation):
        return agent.actor.apply(state.actor, observation)

    def act(state, key, observation):
        action = greedy(state, observation)
        if config.noise == "ou":
            noisy = rlax.add_ornstein_uhlenbeck_noise(key, action, state.noise_tm1, _DAMPING, state.noise_std)
        else:
            noisy = rlax.add_gaussian_noise(key, action, state.noise_std)
        return jnp.clip(noisy, 1e-3, 1 - 1e-3)

    def update(state, key, new: Transition):
        count = new.reward.shape[0]
        state = state._replace(
            replay=replay_buffer.add(state.replay, new),
            noise_tm1=new.action[-1] - greedy(state, new.observation[-1]),
            noise_std=jnp.maximum(state.noise_std * config.noise_decay**count, config.least_noise),
        )

        def once(i, carry):
            state, key = carry
            return _update_once(agent, state, derive(key, Purpose.UPDATE_STEP, i)), key

        return jax.lax.fori_loop(0, config.updates * count, once, (state, key))[0]

    return checked(Policy(init, lambda state: state, act, greedy, update), observation_length, actions)


def _init(agent: _Ddpg, key: jax.Array, observation_length: int) -> DdpgState:
    config = agent.config
    actor, critic = agent.actor.init(derive(key, Purpose.ACTOR)), agent.critic.init(derive(key, Purpose.CRITIC))
    return DdpgState(
        actor=actor,
        critic=critic,
        target_actor=actor,
        target_critic=critic,
        actor_opt_state=agent.actor_adam.init(actor),
        critic_opt_state=agent.critic_adam.init(critic),
        replay=replay_buffer.empty(config.replay, observation_length, agent.actions),
        noise_tm1=jnp.zeros(agent.actions),
        noise_std=jnp.float32(config.noise_std),
    )


def _update_once(agent: _Ddpg, state: DdpgState, key: jax.Array) -> DdpgState:
    """One update of all networks by one batch."""
    config = agent.config
    batch = replay_buffer.draw(state.replay, derive(key, Purpose.REPLAY_DRAW), config.batch, config.newer)
    state = _update_critic(agent, state, batch)
    state = _update_actor(agent, state, batch)
    return state._replace(
        target_actor=optax.incremental_update(state.actor, state.target_actor, config.tau),
        target_critic=optax.incremental_update(state.critic, state.target_critic, config.tau),
    )


def _update_critic(agent: _Ddpg, state: DdpgState, batch: Transition) -> DdpgState:
    """Descend by half the squared temporal-difference errors (equations 4 and 5 of the paper)."""
    s_tm1, a_tm1, r_t, s_t = batch
    q_t = agent.critic.apply(state.target_critic, s_t, agent.actor.apply(state.target_actor, s_t))

    def loss(critic):
        q_tm1 = agent.critic.apply(critic, s_tm1, a_tm1)
        discount_t = jnp.full(q_tm1.shape, agent.config.gamma)
        errors = jnp.asarray(jax.vmap(rlax.td_learning)(q_tm1, r_t, discount_t, q_t))
        return 0.5 * (errors**2).mean()

    gradient = jax.grad(loss)(state.critic)
    updates, opt_state = agent.critic_adam.update(gradient, state.critic_opt_state, state.critic)
    return state._replace(critic=optax.apply_updates(state.critic, updates), critic_opt_state=opt_state)


def _update_actor(agent: _Ddpg, state: DdpgState, batch: Transition) -> DdpgState:
    """Ascend the value of the actor's actions (equation 6 of the paper)."""
    s_tm1 = batch.observation

    def loss(actor):
        a_tm1 = agent.actor.apply(actor, s_tm1)
        dqda_tm1 = jax.grad(lambda a: agent.critic.apply(state.critic, s_tm1, a).sum())(a_tm1)
        # The loss of rlax is one of each number of an action; the policy gradient is their sum.
        return jnp.asarray(jax.vmap(rlax.dpg_loss)(a_tm1, dqda_tm1)).sum(-1).mean()

    gradient = jax.grad(loss)(state.actor)
    updates, opt_state = agent.actor_adam.update(gradient, state.actor_opt_state, state.actor)
    return state._replace(actor=optax.apply_updates(state.actor, updates), actor_opt_state=opt_state)
