"""Deep deterministic policy gradient (Lillicrap et al., arXiv 1509.02971), with the losses of rlax."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rlax

from scall_jax.policies import replay_buffer as buffer
from scall_jax.policies.networks import Actor, Critic, flat
from scall_jax.policies.policy import Policy, PolicyConfig, Transition
from scall_jax.policies.sac import optimiser

_REVERSION = 0.15  # of the Ornstein-Uhlenbeck process, as in the DDPG paper


class DdpgState(NamedTuple):
    """Networks, targets, optimisers, replay and exploration."""

    actor: jax.Array  # f32[W], weights
    critic: jax.Array  # f32[W']
    target_actor: jax.Array  # f32[W]
    target_critic: jax.Array  # f32[W']
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    replay: buffer.Replay
    drift: jax.Array  # f32[A], state of the Ornstein-Uhlenbeck process
    std: jax.Array  # f32[], of the exploration noise


def ddpg(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy for observations f32[observation] and actions in (0, 1)^actions."""
    observation, action = np.zeros(observation_length, np.float32), np.zeros(actions, np.float32)
    actor_net, critic_net = (
        flat(Actor(actions, config.widths), observation),
        flat(Critic(config.widths), observation, action),
    )
    actor_adam = optimiser(config.actor_rate, config.weight_decay, config.clip)
    critic_adam = optimiser(config.critic_rate, config.weight_decay)

    def init(key):
        actor_key, critic_key = jax.random.split(key)
        actor, critic = actor_net.init(actor_key), critic_net.init(critic_key)
        return DdpgState(
            actor,
            critic,
            actor,
            critic,
            actor_adam.init(actor),
            critic_adam.init(critic),
            buffer.empty(config.replay, observation_length, actions),
            jnp.zeros(actions),
            jnp.float32(config.noise_std),
        )

    def greedy(state, observation):
        return actor_net.apply(state.actor, observation)

    def act(state, key, observation):
        noise = state.std * jax.random.normal(key, (actions,))
        if config.noise == "ou":
            noise = (1 - _REVERSION) * state.drift + noise
        return jnp.clip(greedy(state, observation) + noise, 1e-3, 1 - 1e-3)

    def learn(i, carry):
        state, key = carry
        batch = buffer.draw(state.replay, jax.random.fold_in(key, i), config.batch, config.newer)
        ahead = critic_net.apply(
            state.target_critic,
            batch.next_observation,
            actor_net.apply(state.target_actor, batch.next_observation),
        )

        def critic_loss(critic):
            values = critic_net.apply(critic, batch.observation, batch.action)
            discount = jnp.full(values.shape, config.gamma)
            return 0.5 * (jax.vmap(rlax.td_learning)(values, batch.reward, discount, ahead) ** 2).mean()

        gradient = jax.grad(critic_loss)(state.critic)
        updates, critic_opt_state = critic_adam.update(gradient, state.critic_opt_state, state.critic)
        critic = optax.apply_updates(state.critic, updates)

        def actor_loss(actor):
            action = actor_net.apply(actor, batch.observation)
            slope = jax.grad(lambda a: critic_net.apply(critic, batch.observation, a).sum())(action)
            return jax.vmap(rlax.dpg_loss)(action, slope).mean()

        gradient = jax.grad(actor_loss)(state.actor)
        updates, actor_opt_state = actor_adam.update(gradient, state.actor_opt_state, state.actor)
        actor = optax.apply_updates(state.actor, updates)
        state = state._replace(
            actor=actor,
            critic=critic,
            target_actor=optax.incremental_update(actor, state.target_actor, config.tau),
            target_critic=optax.incremental_update(critic, state.target_critic, config.tau),
            actor_opt_state=actor_opt_state,
            critic_opt_state=critic_opt_state,
        )
        return state, key

    def update(state, key, new: Transition):
        count = new.reward.shape[0]
        state = state._replace(
            replay=buffer.add(state.replay, new),
            drift=new.action[-1] - greedy(state, new.observation[-1]),
            std=jnp.maximum(state.std * config.noise_decay**count, config.least_noise),
        )
        return jax.lax.fori_loop(0, config.updates * count, learn, (state, key))[0]

    return Policy(init, lambda state: state, act, greedy, update)
