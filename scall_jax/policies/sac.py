"""Soft actor-critic (Haarnoja et al., arXiv 1801.01290 and 1812.05905), the policy of SCALL.

The losses are those of Algorithm 1 of arXiv 1812.05905, with two critics whose smaller value counts. Indices of time
are those of rlax: an action a_tm1 in state s_tm1 earns the reward r_t and leads to the state s_t.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scall_jax.ops.keys import Purpose, derive
from scall_jax.policies import replay_buffer
from scall_jax.policies.networks import Flat, GaussianActor, TwinCritic, decayed_adam, flat, squash
from scall_jax.policies.policy import Policy, PolicyConfig, Transition, checked


class SacState(NamedTuple):
    """Networks, optimisers and replay buffer."""

    actor: jax.Array  # f32[W], weights
    critic: jax.Array  # f32[W']
    target: jax.Array  # f32[W'], of the critic
    log_entropy: jax.Array  # f32[], log of the entropy's weight
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    entropy_opt_state: optax.OptState
    replay: replay_buffer.Replay


class _Sac(NamedTuple):
    """The static part."""

    config: PolicyConfig
    actions: int
    actor: Flat
    critic: Flat
    actor_adam: optax.GradientTransformation
    critic_adam: optax.GradientTransformation
    entropy_adam: optax.GradientTransformation

    def sample(self, actor: jax.Array, noise: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Actions f32[..., A] for standard normal noise f32[..., A], and their log densities f32[...]."""
        mean, log_std = self.actor.apply(actor, s)
        return squash(mean, log_std, noise)


class _Batch(NamedTuple):
    """Transitions of an update with what is drawn for them."""

    transitions: Transition  # leading axis B
    weight: jax.Array  # f32[B], of each transition in the losses
    noise_tm1: jax.Array  # f32[B, A], standard normal, of the actions in s_tm1
    noise_t: jax.Array  # f32[B, A], of the actions in s_t


def sac(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    """Build the policy.

    Args:
      config: its parameters.
      observation_length: O, numbers of an observation.
      actions: A, numbers of an action in (0, 1).

    Returns:
      Policy.

    >>> policy = sac(PolicyConfig(widths=(4,)), observation_length=2)
    >>> jax.eval_shape(policy.init, jax.random.key(0)).actor.shape  # (2 + 1) x 4 and (4 + 1) x 6
    (42,)
    """
    # Use numpy, because a policy may be built while one program is traced and serve in another.
    observation, action = np.zeros(observation_length, np.float32), np.zeros(actions, np.float32)
    agent = _Sac(
        config,
        actions,
        actor=flat(GaussianActor(actions, config.widths, config.xavier), observation),
        critic=flat(TwinCritic(config.widths, config.xavier), observation, action),
        actor_adam=decayed_adam(config.actor_rate, config.weight_decay, config.clip),
        critic_adam=decayed_adam(config.critic_rate, config.weight_decay),
        entropy_adam=optax.adam(config.actor_rate),
    )

    def init(key):
        return _init(agent, key, observation_length)

    def act(state, key, observation):
        return agent.sample(state.actor, jax.random.normal(key, (actions,)), observation)[0]

    def greedy(state, observation):
        mean, _ = agent.actor.apply(state.actor, observation)
        return (jnp.tanh(mean) + 1) / 2

    def update(state, key, new: Transition):
        state = state._replace(replay=replay_buffer.add(state.replay, new))

        def once(i, carry):
            state, key = carry
            return _update_once(agent, state, derive(key, Purpose.UPDATE_STEP, i)), key

        return jax.lax.fori_loop(0, config.updates * new.reward.shape[0], once, (state, key))[0]

    return checked(Policy(init, lambda state: state, act, greedy, update), observation_length, actions)


def _init(agent: _Sac, key: jax.Array, observation_length: int) -> SacState:
    config = agent.config
    actor, critic = agent.actor.init(derive(key, Purpose.ACTOR)), agent.critic.init(derive(key, Purpose.CRITIC))
    target = critic if config.copy_target else agent.critic.init(derive(key, Purpose.TARGET))
    log_entropy = jnp.log(jnp.float32(config.entropy))
    return SacState(
        actor=actor,
        critic=critic,
        target=target,
        log_entropy=log_entropy,
        actor_opt_state=agent.actor_adam.init(actor),
        critic_opt_state=agent.critic_adam.init(critic),
        entropy_opt_state=agent.entropy_adam.init(log_entropy),
        replay=replay_buffer.empty(config.replay, observation_length, agent.actions),
    )


def _update_once(agent: _Sac, state: SacState, key: jax.Array) -> SacState:
    """One update of all parts by one batch."""
    batch = _draw(agent, state, key)
    entropy = jnp.exp(state.log_entropy)
    state = _update_critic(agent, state, batch, entropy)
    state, log_density = _update_actor(agent, state, batch, entropy)
    if agent.config.learn_entropy:
        state = _update_entropy(agent, state, batch, log_density)
    return state._replace(target=optax.incremental_update(state.critic, state.target, agent.config.tau))


def _draw(agent: _Sac, state: SacState, key: jax.Array) -> _Batch:
    config = agent.config
    shape = (config.batch, agent.actions)
    noise_t = jax.random.normal(derive(key, Purpose.NEXT_ACTION_NOISE), shape)
    noise_tm1 = jax.random.normal(derive(key, Purpose.ACTION_NOISE), shape)
    draw_key = derive(key, Purpose.REPLAY_DRAW)
    few = state.replay.count <= config.full_batch_after
    used = jnp.where(few, min(config.first_batch, config.batch), config.batch)
    if config.distinct:
        transitions = replay_buffer.draw_distinct(state.replay, draw_key, config.batch, config.newer)
        used = jnp.minimum(used, state.replay.count)
    else:
        transitions = replay_buffer.draw(state.replay, draw_key, config.batch, config.newer)
    counts = (jnp.arange(config.batch) < used).astype(jnp.float32)
    weight = counts / used.astype(jnp.float32)
    return _Batch(transitions, weight, noise_tm1, noise_t)


def _update_critic(agent: _Sac, state: SacState, batch: _Batch, entropy: jax.Array) -> SacState:
    """Descend by (q_tm1 - (r_t + gamma (min q_t - entropy log pi(a_t | s_t))))^2."""
    s_tm1, a_tm1, r_t, s_t = batch.transitions
    a_t, log_density_t = agent.sample(state.actor, batch.noise_t, s_t)
    v_t = agent.critic.apply(state.target, s_t, a_t).min(-1) - entropy * log_density_t
    target_tm1 = jax.lax.stop_gradient(r_t + agent.config.gamma * v_t)

    def loss(critic):
        q_tm1 = agent.critic.apply(critic, s_tm1, a_tm1)
        return (batch.weight[:, None] * (q_tm1 - target_tm1[:, None]) ** 2).sum()

    gradient = jax.grad(loss)(state.critic)
    updates, opt_state = agent.critic_adam.update(gradient, state.critic_opt_state, state.critic)
    return state._replace(critic=optax.apply_updates(state.critic, updates), critic_opt_state=opt_state)


def _update_actor(agent: _Sac, state: SacState, batch: _Batch, entropy: jax.Array) -> tuple[SacState, jax.Array]:
    """Descend by entropy log pi(a_tm1 | s_tm1) - min q_tm1; also gives the log densities f32[B] of these actions."""
    s_tm1 = batch.transitions.observation

    def loss(actor):
        a_tm1, log_density_tm1 = agent.sample(actor, batch.noise_tm1, s_tm1)
        q_tm1 = agent.critic.apply(state.critic, s_tm1, a_tm1).min(-1)
        return (batch.weight * (entropy * log_density_tm1 - q_tm1)).sum(), log_density_tm1

    gradient, log_density_tm1 = jax.grad(loss, has_aux=True)(state.actor)
    updates, opt_state = agent.actor_adam.update(gradient, state.actor_opt_state, state.actor)
    actor = optax.apply_updates(state.actor, updates)
    return state._replace(actor=actor, actor_opt_state=opt_state), log_density_tm1


def _update_entropy(agent: _Sac, state: SacState, batch: _Batch, log_density: jax.Array) -> SacState:
    """Move the entropy's weight so that the entropy of actions in (-1, 1) tends to -A."""
    target_entropy = -float(agent.actions)
    gradient = -(batch.weight * (log_density + target_entropy)).sum()
    updates, opt_state = agent.entropy_adam.update(gradient, state.entropy_opt_state)
    return state._replace(log_entropy=optax.apply_updates(state.log_entropy, updates), entropy_opt_state=opt_state)
