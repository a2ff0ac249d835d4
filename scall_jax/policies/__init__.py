"""Policies that search the action which shapes the sizes, behind one interface."""

from collections.abc import Callable

from scall_jax.policies.dlints import dlints
from scall_jax.policies.gp import gp
from scall_jax.policies.observation import ObserveConfig, Side, length, observe, with_ratio
from scall_jax.policies.policy import Policy, PolicyConfig, Transition
from scall_jax.policies.random_and_grid import grid, random
from scall_jax.policies.sac import sac


def _ddpg(config: PolicyConfig, observation_length: int, actions: int = 3) -> Policy:
    # rlax takes seconds to import, and no other policy needs it.
    from scall_jax.policies.ddpg import ddpg

    return ddpg(config, observation_length, actions)


POLICIES: dict[str, Callable[..., Policy]] = {
    "sac": sac,
    "ddpg": _ddpg,
    "gp": gp,
    "dlints": dlints,
    "random": random,
    "grid": grid,
}
"""Functions that build a policy: (config, length of the observation, number of actions) -> Policy."""

__all__ = [
    "POLICIES",
    "ObserveConfig",
    "Policy",
    "PolicyConfig",
    "Side",
    "Transition",
    "length",
    "observe",
    "with_ratio",
]
