"""A replay buffer as a pytree: the last `capacity` transitions in a ring."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import rem, take
from scall_jax.policies.policy import Transition


class Replay(NamedTuple):
    """Ring of C transitions."""

    transitions: Transition  # leading axis C
    inserted: jax.Array  # i32[], transitions ever added

    @property
    def count(self) -> jax.Array:
        """Transitions in the buffer; i32[]."""
        return jnp.minimum(self.inserted, self.transitions.reward.shape[0])


def empty(capacity: int, observation_length: int, actions: int) -> Replay:
    """Buffer without transitions.

    Args:
      capacity: C.
      observation_length: O, numbers of an observation.
      actions: A, numbers of an action.

    Returns:
      Replay.

    >>> int(empty(capacity=8, observation_length=3, actions=2).count)
    0
    """
    observation = jnp.zeros((capacity, observation_length))
    transitions = Transition(observation, jnp.zeros((capacity, actions)), jnp.zeros(capacity), observation)
    return Replay(transitions, jnp.int32(0))


def add(replay: Replay, new: Transition) -> Replay:
    """Append K transitions, which take the places of the oldest ones where the ring is full.

    Args:
      replay: of C transitions.
      new: K transitions, K at most C.

    Returns:
      Replay.

    >>> new = Transition(jnp.ones((3, 1)), jnp.ones((3, 1)), jnp.array([1.0, 2.0, 3.0]), jnp.ones((3, 1)))
    >>> replay = add(add(empty(4, 1, 1), new), new)
    >>> replay.transitions.reward.tolist(), int(replay.count)
    ([2.0, 3.0, 3.0, 1.0], 4)
    """
    chex.assert_rank(list(new), [2, 2, 1, 2])
    chex.assert_equal_shape_prefix(list(new), 1)
    for ring, row in ((replay.transitions.observation, new.observation), (replay.transitions.action, new.action)):
        chex.assert_equal_shape_suffix([ring, row], 1)
    capacity, count = replay.transitions.reward.shape[0], new.reward.shape[0]
    at = rem(replay.inserted + jnp.arange(count, dtype=jnp.int32), capacity)
    transitions = jax.tree.map(
        lambda ring, row: ring.at[at].set(row, wrap_negative_indices=False), replay.transitions, new
    )
    return Replay(transitions, replay.inserted + count)


def draw(replay: Replay, key: jax.Array, count: int, newer: bool) -> Transition:
    """Draw transitions with replacement.

    Args:
      replay: not empty.
      key: typed PRNG key.
      count: K; static.
      newer: with probabilities in proportion to the order of arrival, so that newer ones are likelier; otherwise
        uniformly. Static.

    Returns:
      K transitions.
    """
    chex.assert_rank(replay.inserted, 0)
    filled = replay.count.astype(jnp.float32)
    u = jax.random.uniform(key, (count,))
    # If newer, this is the inverse of P(place < i) = i (i + 1) / (n (n + 1)).
    place = jnp.ceil((jnp.sqrt(1 + 4 * u * filled * (filled + 1)) - 1) / 2) - 1 if newer else jnp.floor(u * filled)
    return _at(replay, jnp.clip(place, 0, filled - 1).astype(jnp.int32))


def draw_distinct(replay: Replay, key: jax.Array, count: int, newer: bool) -> Transition:
    """Draw transitions one after the other without replacement.

    They are those with the largest log weights plus Gumbel noise, whose order is that of such draws.

    Args:
      replay: of C transitions, not empty.
      key: typed PRNG key.
      count: K, at most C; static.
      newer: with weights in proportion to the order of arrival, so that newer ones are likelier; otherwise equal ones.
        Static.

    Returns:
      K transitions, in the order drawn. Where the buffer has fewer, those beyond its number mean nothing.

    >>> new = Transition(jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.array([1.0, 2.0]), jnp.ones((2, 1)))
    >>> sorted(draw_distinct(add(empty(2, 1, 1), new), jax.random.key(0), 2, newer=True).reward.tolist())
    [1.0, 2.0]
    """
    chex.assert_rank(replay.inserted, 0)
    place = jnp.arange(replay.transitions.reward.shape[0], dtype=jnp.int32)
    weight = jnp.log1p(place.astype(jnp.float32)) if newer else jnp.zeros(place.shape)
    weight = jnp.where(place < replay.count, weight + jax.random.gumbel(key, place.shape), -jnp.inf)
    return _at(replay, jax.lax.top_k(weight, count)[1])


def _at(replay: Replay, place: jax.Array) -> Transition:
    """The transitions at places i32[K] in the order of arrival, counted from the oldest one in the buffer."""
    at = rem(replay.inserted - replay.count + place, replay.transitions.reward.shape[0])
    return jax.tree.map(lambda rows: take(rows, at), replay.transitions)
