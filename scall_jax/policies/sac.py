"""Soft actor-critic (Haarnoja et al., arXiv 1801.01290 and 1812.05905), the policy of SCALL."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scall_jax.policies import replay_buffer as buffer
from scall_jax.policies.networks import GaussianActor, TwinCritic, flat, squash
from scall_jax.policies.policy import Policy, PolicyConfig, Transition


class SacState(NamedTuple):
    """Networks, optimisers and replay."""

    actor: jax.Array  # f32[W], weights
    critic: jax.Array  # f32[W']
    target: jax.Array  # f32[W'], of the critic
    log_entropy: jax.Array  # f32[], log of the entropy's weight
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    entropy_moments: optax.OptState
    replay: buffer.Replay


def optimiser(rate: float, weight_decay: float, clip: float | None = None) -> optax.GradientTransformation:
    """Adam on the gradient of the loss plus weight_decay/2 x the squared norm, clipped by norm beforehand."""
    steps = [optax.add_decayed_weights(weight_decay), optax.adam(rate)]
    return optax.chain(*([optax.clip_by_global_norm(clip)] if clip is not None else []), *steps)


def sac(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy for observations f32[observation] and actions in (0, 1)^actions."""
    observation, action = np.zeros(observation_length, np.float32), np.zeros(actions, np.float32)
    actor_net = flat(GaussianActor(actions, config.widths), observation)
    critic_net = flat(TwinCritic(config.widths), observation, action)
    actor_adam = optimiser(config.actor_rate, config.weight_decay, config.clip)
    critic_adam = optimiser(config.critic_rate, config.weight_decay)
    entropy_adam = optax.adam(config.actor_rate)
    target_entropy = -float(actions)

    def init(key):
        actor_key, critic_key, target_key = jax.random.split(key, 3)
        actor, critic = actor_net.init(actor_key), critic_net.init(critic_key)
        target = critic if config.copy_target else critic_net.init(target_key)
        log_entropy = jnp.log(jnp.float32(config.entropy))
        return SacState(
            actor,
            critic,
            target,
            log_entropy,
            actor_adam.init(actor),
            critic_adam.init(critic),
            entropy_adam.init(log_entropy),
            buffer.empty(config.replay, observation_length, actions),
        )

    def sampled(actor, noise, observation):
        return squash(*actor_net.apply(actor, observation), noise)

    def act(state, key, observation):
        return sampled(state.actor, jax.random.normal(key, (actions,)), observation)[0]

    def greedy(state, observation):
        mean, _ = actor_net.apply(state.actor, observation)
        return (jnp.tanh(mean) + 1) / 2

    def learn(i, carry):
        state, key = carry
        draw_key, *noise_keys = jax.random.split(jax.random.fold_in(key, i), 3)
        normal = jax.vmap(lambda k: jax.random.normal(k, (config.batch, actions)))
        next_noise, now_noise = normal(jnp.stack(noise_keys))
        batch = buffer.draw(state.replay, draw_key, config.batch, config.newer)
        few = state.replay.count <= config.full_batch_after
        used = jnp.where(few, min(config.first_batch, config.batch), config.batch)
        weight = (jnp.arange(config.batch) < used) / used
        entropy = jnp.exp(state.log_entropy)

        action, log_density = sampled(state.actor, next_noise, batch.next_observation)
        ahead = critic_net.apply(state.target, batch.next_observation, action).min(-1) - entropy * log_density
        wanted = jax.lax.stop_gradient(batch.reward + config.gamma * ahead)

        def critic_loss(critic):
            values = critic_net.apply(critic, batch.observation, batch.action)
            return (weight[:, None] * (values - wanted[:, None]) ** 2).sum()

        gradient = jax.grad(critic_loss)(state.critic)
        updates, critic_opt_state = critic_adam.update(gradient, state.critic_opt_state, state.critic)
        critic = optax.apply_updates(state.critic, updates)

        def actor_loss(actor):
            action, log_density = sampled(actor, now_noise, batch.observation)
            value = critic_net.apply(critic, batch.observation, action).min(-1)
            return (weight * (entropy * log_density - value)).sum(), log_density

        gradient, log_density = jax.grad(actor_loss, has_aux=True)(state.actor)
        updates, actor_opt_state = actor_adam.update(gradient, state.actor_opt_state, state.actor)
        actor = optax.apply_updates(state.actor, updates)

        log_entropy, entropy_moments = state.log_entropy, state.entropy_moments
        if config.learn_entropy:
            gradient = -(weight * (log_density + target_entropy)).sum()
            updates, entropy_moments = entropy_adam.update(gradient, entropy_moments)
            log_entropy = log_entropy + updates
        state = state._replace(
            actor=actor,
            critic=critic,
            target=optax.incremental_update(critic, state.target, config.tau),
            log_entropy=log_entropy,
            actor_opt_state=actor_opt_state,
            critic_opt_state=critic_opt_state,
            entropy_moments=entropy_moments,
        )
        return state, key

    def update(state, key, new: Transition):
        state = state._replace(replay=buffer.add(state.replay, new))
        return jax.lax.fori_loop(0, config.updates * new.reward.shape[0], learn, (state, key))[0]

    return Policy(init, lambda state: state, act, greedy, update)
