"""The interface of policies that search actions in (0, 1)^A: pure functions over a state."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax

_POSITIVE = (
    *("actor_rate", "critic_rate", "clip", "replay", "batch", "first_batch", "updates"),
    *("grid", "length_scale", "noise_variance", "projected", "ridge"),
)

PolicyState = Any
"""A pytree of arrays of fixed shapes."""


class Transition(NamedTuple):
    """K probes, each a transition (s_tm1, a_tm1, r_t, s_t)."""

    observation: jax.Array  # f32[K, O], s_tm1, before the probe
    action: jax.Array  # f32[K, A] in (0, 1), a_tm1
    reward: jax.Array  # f32[K], r_t
    next_observation: jax.Array  # f32[K, O], s_t, after the probe


class Policy(NamedTuple):
    """A search over actions."""

    init: Callable[[jax.Array], PolicyState]
    """key -> state before the first probe."""
    start_segment: Callable[[PolicyState], PolicyState]
    """state -> state; called before a new segment is searched."""
    act: Callable[[PolicyState, jax.Array, jax.Array], jax.Array]
    """(state, key, observation f32[O]) -> f32[A], the action to probe next."""
    greedy: Callable[[PolicyState, jax.Array], jax.Array]
    """(state, observation f32[O]) -> f32[A], the best action as far as is known."""
    update: Callable[[PolicyState, jax.Array, Transition], PolicyState]
    """(state, key, K probes) -> state that has learned from them."""


def checked(policy: Policy, observation_length: int, actions: int) -> Policy:
    """The policy with functions that assert the shapes and dtypes of what they take, while they are traced.

    Args:
      policy: any.
      observation_length: O.
      actions: A.

    Returns:
      Policy.
    """

    def assert_observation(observation):
        chex.assert_shape(observation, (observation_length,))
        chex.assert_type(observation, float)

    def act(state, key, observation):
        assert_observation(observation)
        return policy.act(state, key, observation)

    def greedy(state, observation):
        assert_observation(observation)
        return policy.greedy(state, observation)

    def update(state, key, new: Transition):
        chex.assert_type(list(new), float)
        chex.assert_equal_shape_prefix(list(new), 1)
        chex.assert_shape([new.observation, new.next_observation], (None, observation_length))
        chex.assert_shape([new.action, new.reward], [(None, actions), (None,)])
        return policy.update(state, key, new)

    return policy._replace(act=act, greedy=greedy, update=update)


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Parameters of the policies; each policy uses those that name it.

    >>> PolicyConfig().batch, PolicyConfig.published().batch
    (32, 8)
    """

    widths: tuple[int, ...] = (256, 256)
    """sac, ddpg: widths of the hidden layers."""
    actor_rate: float = 1e-3
    """sac, ddpg: learning rate of the actor."""
    critic_rate: float = 1e-3
    """sac, ddpg: learning rate of the critic."""
    weight_decay: float = 1e-4
    """sac, ddpg: weight of the L2 penalty, which is added to the gradient."""
    clip: float = 1.0
    """sac, ddpg: largest norm of the actor's gradient."""
    gamma: float = 0.0
    """sac, ddpg: discount. An action hardly changes what the next one earns, so that 0 loses nothing."""
    tau: float = 0.05
    """sac, ddpg: rate at which the targets follow the networks."""
    entropy: float = 0.2
    """sac: weight of the entropy; the initial one if it is learned."""
    learn_entropy: bool = False
    """sac: learn this weight, so that the entropy of actions in (-1, 1) tends to minus their number."""
    copy_target: bool = True
    """sac: the target critic starts as a copy of the critic; otherwise, as published, from weights of its own."""
    xavier: bool = False
    """sac: weights start uniform by the rule of Glorot and Bengio (2010), as published; otherwise normal by LeCun's."""
    replay: int = 1024
    """sac, ddpg: capacity of the replay buffer, in transitions."""
    batch: int = 32
    """sac, ddpg: transitions per update."""
    first_batch: int = 32
    """sac: transitions per update as long as the replay buffer has no more than `full_batch_after`."""
    full_batch_after: int = 12
    """sac: see `first_batch`."""
    updates: int = 8
    """sac, ddpg: updates per probe."""
    newer: bool = True
    """sac, ddpg: draw newer transitions more often, in proportion to their place in the order of arrival; otherwise
    uniformly."""
    distinct: bool = False
    """sac: the transitions of an update are distinct, as published; otherwise they are drawn with replacement."""
    noise: str = "gaussian"
    """ddpg: noise for exploration, gaussian or ou (Ornstein-Uhlenbeck)."""
    noise_std: float = 0.3
    """ddpg: standard deviation of the noise at the start."""
    noise_decay: float = 0.985
    """ddpg: factor on this standard deviation per probe."""
    least_noise: float = 0.05
    """ddpg: the standard deviation does not fall below this."""
    grid: int = 4
    """grid: points on each axis of the lattice."""
    discount: float = 0.7
    """grid, gp: factor on the weight of earlier probes per segment."""
    length_scale: float = 0.5
    """gp: distance over which rewards are alike."""
    noise_variance: float = 1.0
    """gp: variance of the noise of a reward, relative to the variance between actions."""
    curvature: float = 2.0
    """gp: the prior mean is minus this, times the squared distance from the middle, in spreads of rewards."""
    projected: int = 32
    """dlints: dimensions that contexts are projected to."""
    forget: float = 0.99
    """dlints: factor on the weight of earlier probes per probe."""
    ridge: float = 1.0
    """dlints: ridge of the regression."""
    exploration: float = 4.0
    """dlints: standard deviation of the noise of Thompson sampling, at rewards of 0 to 10 (published: 0.1 to 0.4 at
    rewards of 0 to 1)."""

    def __post_init__(self):
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"policy {name}={getattr(self, name)}: must be greater than 0")
        for name in ("gamma", "tau", "noise_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"policy {name}={getattr(self, name)}: must lie between 0 and 1")
        for name in ("discount", "forget"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"policy {name}={getattr(self, name)}: must lie above 0 and not above 1")
        for name in ("exploration", "curvature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"policy {name}={getattr(self, name)}: must not be negative")
        if self.distinct and self.batch > self.replay:
            raise ValueError(f"policy batch={self.batch}: at most replay={self.replay} transitions are distinct")
        if self.noise not in ("gaussian", "ou"):
            raise ValueError(f"policy noise={self.noise!r}: choose gaussian or ou")

    @classmethod
    def published(cls) -> "PolicyConfig":
        """Soft actor-critic with the settings of the official code of SCALL.

        The replay buffer there has room for 10,000 transitions; 2,048 are more than 40 segments of 50 probes make.
        """
        return cls(
            widths=(512, 512),
            actor_rate=2e-4,
            critic_rate=3e-4,
            gamma=0.99,
            tau=0.005,
            copy_target=False,
            xavier=True,
            distinct=True,
            replay=2048,
            batch=8,
            first_batch=1,
            updates=3,
        )
