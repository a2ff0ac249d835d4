"""The interface of policies that search actions in (0, 1)^A: pure functions over a state."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PolicyState = Any


class Transition(NamedTuple):
    """K probes: what was seen, done and earned."""

    observation: jax.Array  # f32[K, O]
    action: jax.Array  # f32[K, A] in (0, 1)
    reward: jax.Array  # f32[K]
    next_observation: jax.Array  # f32[K, O]


class Policy(NamedTuple):
    """A search over actions. States are pytrees of arrays of fixed shapes."""

    init: Callable[[jax.Array], PolicyState]  # typed key -> state
    start_segment: Callable[[PolicyState], PolicyState]  # a new segment is searched
    act: Callable[[PolicyState, jax.Array, jax.Array], jax.Array]  # state, key, f32[O] -> f32[A] to try
    greedy: Callable[[PolicyState, jax.Array], jax.Array]  # state, f32[O] -> f32[A], the best known
    update: Callable[[PolicyState, jax.Array, Transition], PolicyState]  # state, key, K probes -> state


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Parameters of the policies; each uses those that concern it."""

    widths: tuple[int, ...] = (256, 256)
    """sac, ddpg: hidden layers."""
    actor_rate: float = 1e-3
    """sac, ddpg: learning rate of the actor."""
    critic_rate: float = 1e-3
    """sac, ddpg: learning rate of the critic."""
    weight_decay: float = 1e-4
    """sac, ddpg: L2 in the gradient."""
    clip: float = 1.0
    """sac, ddpg: largest norm of the actor's gradient."""
    gamma: float = 0.0
    """sac, ddpg: discount; an action hardly changes what the next one earns, so that 0 loses nothing."""
    tau: float = 0.05
    """sac, ddpg: rate at which targets follow."""
    entropy: float = 0.2
    """sac: weight of the entropy, the initial one if it is learned."""
    learn_entropy: bool = False
    """sac: learn that weight, towards an entropy of -A of the action before it is moved to (0, 1)."""
    copy_target: bool = True
    """sac: the target critic starts as a copy; otherwise, as published, from an initialisation of its own."""
    replay: int = 1024
    """sac, ddpg: transitions kept."""
    batch: int = 32
    """sac, ddpg: transitions per update."""
    first_batch: int = 32
    """sac: transitions per update until `full_batch_after` are kept."""
    full_batch_after: int = 12
    """sac: see `first_batch`."""
    updates: int = 8
    """sac, ddpg: updates per probe."""
    newer: bool = True
    """sac, ddpg: draw transitions in proportion to their place in the order of arrival, else uniformly."""
    noise: str = "gaussian"
    """ddpg: exploration, gaussian or ou (Ornstein-Uhlenbeck)."""
    noise_std: float = 0.3
    """ddpg: standard deviation at the start."""
    noise_decay: float = 0.985
    """ddpg: factor on it per probe."""
    least_noise: float = 0.05
    """ddpg: it does not fall below this."""
    grid: int = 4
    """grid: points on an axis."""
    discount: float = 0.7
    """grid, gp: weight, per segment, of what earlier segments showed."""
    length_scale: float = 0.5
    """gp: distance over which rewards are alike."""
    noise_variance: float = 1.0
    """gp: of a probe's reward, by the variance between actions."""
    curvature: float = 2.0
    """gp: the prior mean falls off from the middle by this, times the squared distance, in spreads of rewards."""
    projected: int = 32
    """dlints: dimensions that contexts are projected to."""
    forget: float = 0.99
    """dlints: weight, per probe, of what earlier probes showed."""
    ridge: float = 1.0
    """dlints: of the regression."""
    exploration: float = 4.0
    """dlints: standard deviation of the noise of Thompson sampling, at rewards of 0 to 10 (published: 0.1 to 0.4 at
    rewards of 0 to 1)."""

    def __post_init__(self):
        for name in (
            "actor_rate",
            "critic_rate",
            "clip",
            "replay",
            "batch",
            "first_batch",
            "updates",
            "grid",
            "length_scale",
            "noise_variance",
            "projected",
            "ridge",
        ):
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
        if self.noise not in ("gaussian", "ou"):
            raise ValueError(f"policy noise={self.noise!r}: choose gaussian or ou")

    @classmethod
    def published(cls) -> "PolicyConfig":
        """Soft actor-critic with the settings of the official code of SCALL.

        Its replay holds 10,000 transitions of two observations each; 2,048 are more than 40 segments of 50 probes make.
        """
        return cls(
            widths=(512, 512),
            actor_rate=2e-4,
            critic_rate=3e-4,
            gamma=0.99,
            tau=0.005,
            copy_target=False,
            replay=2048,
            batch=8,
            first_batch=1,
            updates=3,
        )
