"""A replay buffer as a pytree: the last `capacity` transitions in a ring."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import rem, take
from scall_jax.policies.policy import Transition


class Replay(NamedTuple):
    """Ring of C transitions."""

    kept: Transition  # leading axis C
    inserted: jax.Array  # i32[], transitions ever added

    @property
    def count(self) -> jax.Array:
        """Transitions kept; i32[]."""
        return jnp.minimum(self.inserted, self.kept.reward.shape[0])


def empty(capacity: int, observation: int, actions: int) -> Replay:
    """Buffer without transitions, for observations f32[observation] and actions f32[actions]."""
    observation = jnp.zeros((capacity, observation))
    return Replay(
        Transition(observation, jnp.zeros((capacity, actions)), jnp.zeros(capacity), observation), jnp.int32(0)
    )


def add(replay: Replay, new: Transition) -> Replay:
    """Append K transitions, the oldest going first when the ring is full."""
    capacity, count = replay.kept.reward.shape[0], new.reward.shape[0]
    at = rem(replay.inserted + jnp.arange(count, dtype=jnp.int32), capacity)
    kept = jax.tree.map(lambda old, row: old.at[at].set(row, wrap_negative_indices=False), replay.kept, new)
    return Replay(kept, replay.inserted + count)


def draw(replay: Replay, key: jax.Array, count: int, newer: bool) -> Transition:
    """`count` transitions with replacement, uniformly or, if `newer`, in proportion to their order of arrival.

    The buffer must not be empty.
    """
    held = replay.count.astype(jnp.float32)
    u = jax.random.uniform(key, (count,))
    # newer: P(place < i) = i (i + 1) / (n (n + 1)), inverted
    place = jnp.ceil((jnp.sqrt(1 + 4 * u * held * (held + 1)) - 1) / 2) - 1 if newer else jnp.floor(u * held)
    place = jnp.clip(place, 0, held - 1).astype(jnp.int32)
    at = rem(replay.inserted - replay.count + place, replay.kept.reward.shape[0])
    return jax.tree.map(lambda rows: take(rows, at), replay.kept)
