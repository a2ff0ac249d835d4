"""Every random key of a run is derived here: each purpose has a name and a constant of its own.

A key either draws random numbers or has keys derived from it, never both, and no key is used for two purposes. In JAX
the keys of `split(key, n)` are those of `fold_in(key, 0)` to `fold_in(key, n - 1)`, and both are numbers that the key
itself draws, so that code that mixes the three uses the same random numbers twice without any sign of it.

Numbers for entities are drawn per side (`by_side`), by the entity's number within its side. What an entity draws then
does not depend on how many others there will be.
"""

import enum
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp


@enum.unique
class Purpose(enum.IntEnum):
    """What a key is for. The values are part of every result; new ones are added at the end."""

    SEGMENT = 0xC0DE0001
    """From the run's key, by segment: all that a segment draws."""
    POLICY_INIT = 0xC0DE0002
    """From the run's key: the first state of a policy."""

    PLAN = 0xC0DE0003
    """From a segment's key: sizes that are drawn."""
    TABLE = 0xC0DE0004
    """From a segment's or a probe's key: new coordinates of parameters."""
    FIT = 0xC0DE0005
    """From a segment's or a probe's key: training."""
    SEARCH = 0xC0DE0006
    """From a segment's key: its search."""
    TRAINING_STEP = 0xC0DE0007
    """From a training's key, by step: a batch of triples."""

    ACTION = 0xC0DE0008
    """From a search's key, by round and lane: an action, or sizes, to probe."""
    PROBE = 0xC0DE0009
    """From a search's key, by round and lane: a probe that has random numbers of its own."""
    COMMON_PROBE = 0xC0DE000A
    """From a search's key: all probes that share their random numbers, and the reference."""
    PROBE_SIZES = 0xC0DE000B
    """From a search's key, by round and lane: sizes that are drawn for a probe."""
    POLICY_UPDATE = 0xC0DE000C
    """From a search's key, by round: what the policy draws while it learns."""
    UPDATE_STEP = 0xC0DE000D
    """From the key of a policy's update, by number: one step of it."""
    REPLAY_DRAW = 0xC0DE000E
    """From the key of a step of an update: transitions from the replay buffer."""
    NEXT_ACTION_NOISE = 0xC0DE000F
    """From the key of a step of an update: noise of the actions in the next states."""
    ACTION_NOISE = 0xC0DE0010
    """From the key of a step of an update, or of an action: noise of the actions."""
    ACTOR = 0xC0DE0011
    """From a policy's first key: weights of the actor."""
    CRITIC = 0xC0DE0012
    """From a policy's first key: weights of the critic."""
    TARGET = 0xC0DE0013
    """From a policy's first key: weights of a target that is no copy."""
    CANDIDATES = 0xC0DE0014
    """From the key of an action: random actions of which one is chosen."""
    POSTERIOR = 0xC0DE0015
    """From the key of an action: a draw from the posterior of rewards."""

    CHOICE = 0xC0DE002C
    """From a segment's key: fits by which a recommender chooses its parameters."""

    WIDE_FIT = 0xC0DE002D
    """From a segment's key: the fit that gains of coordinates are read off."""
    GAINS_SHUFFLE = 0xC0DE0050
    """From the key of a wide fit: which entity of its side an entity is given the gains of."""

    COHERENCE = 0xC0DE002F
    """From a constant key, by block of columns: signs of users that their coherence is estimated with."""
    EXPOSURES = 0xC0DE002E
    """From the key of a pass (SAROS), by block: items that stand for those shown and not clicked."""
    TEACHER = 0xC0DE0030
    """From a training's key (BiGeaR): that of the teacher."""
    STUDENT = 0xC0DE0031
    """From a training's key (BiGeaR): that of the student."""
    TAUGHT_USERS = 0xC0DE0032
    """From the key of a step (BiGeaR): users who are taught."""

    USERS = 0xC0DE0016
    """From any key: numbers for the users, or the policy of the users' side."""
    ITEMS = 0xC0DE0017
    """From any key: numbers for the items, or the policy of the items' side."""
    SHARED = 0xC0DE0018
    """From any key: numbers for the two shared vectors."""
    SIDE = 0xC0DE002B
    """From the key of sizes, by side (0 the users, 1 the items), where one program serves both."""
    COLUMN = 0xC0DE0019
    """From a table's key, by column."""

    DIRICHLET = 0xC0DE001A
    """From the key of drawn sizes: shares."""
    MULTINOMIAL = 0xC0DE001B
    """From the key of drawn sizes, by round: counts."""
    GAMMA_BOOST = 0xC0DE001C
    """From the key of Gamma variates: what shapes below 1 are corrected by."""
    GAMMA_NORMAL = 0xC0DE001D
    """From the key of Gamma variates, by round: proposals."""
    GAMMA_ACCEPT = 0xC0DE001E
    """From the key of Gamma variates, by round: acceptance."""
    POISSON = 0xC0DE001F
    """From the key of a multinomial, by round: Poisson counts."""
    POISSON_INVERSION = 0xC0DE0020
    """From the key of Poisson counts: those of small means."""
    POISSON_PROPOSAL = 0xC0DE0021
    """From the key of Poisson counts, by round: proposals of large counts."""
    POISSON_ACCEPT = 0xC0DE0022
    """From the key of Poisson counts, by round: acceptance."""
    SINGLE_DRAW = 0xC0DE0023
    """From the key of a multinomial, by round: draws that are made one by one."""

    WALK = 0xC0DE0024
    """From the key of sizes to probe (CIESS), by side and step: random walks."""
    SHIFT = 0xC0DE0025
    """From the key of sizes to probe (CIESS): the shift of all sizes."""
    ROW = 0xC0DE0026
    """From the key of a drawn batch (CIESS): rows of the history."""
    ENTITY = 0xC0DE0027
    """From the key of a drawn batch (CIESS): entities."""
    GROWTH = 0xC0DE0028
    """From a search's key, by probe (ESAPN): which entities grow."""
    PART = 0xC0DE0029
    """From the key of a policy's update (ESAPN): parts that entities learn in."""
    PROJECTION = 0xC0DE002A
    """From a policy's first key: a random projection."""


def derive(key: jax.Array, purpose: Purpose, *numbers: chex.Numeric) -> jax.Array:
    """Derive the key of a purpose.

    Args:
      key: typed PRNG key, which must not draw numbers itself.
      purpose: what the key is for.
      *numbers: i32[] each, not negative: tell apart keys of the same purpose.

    Returns:
      Typed PRNG key.

    >>> key = jax.random.key(0)
    >>> bool(derive(key, Purpose.FIT) == derive(key, Purpose.TABLE))
    False
    """
    key = jax.random.fold_in(key, jnp.uint32(purpose))
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def derive_many(key: jax.Array, purpose: Purpose, *numbers: chex.Numeric, count: int) -> jax.Array:
    """Derive `derive(key, purpose, *numbers, i)` for i from 0 to count - 1.

    Args:
      key: typed PRNG key.
      purpose: what the keys are for.
      *numbers: i32[] each, not negative.
      count: number of keys; static.

    Returns:
      Typed PRNG keys [count].
    """
    parent = derive(key, purpose, *numbers)
    return jax.vmap(lambda i: jax.random.fold_in(parent, i))(jnp.arange(count, dtype=jnp.int32))


def by_side(
    draw: Callable[..., Any], key: jax.Array, users: int, items: int, shape: tuple[int, ...] = (), **options: Any
) -> Any:
    """Random numbers for all nodes that do not depend on the capacities of the sides.

    Args:
      draw: draw(key, shape, **options), as the functions of `jax.random`, whose leading numbers are the same for any
        length.
      key: typed PRNG key.
      users: U, capacity of the users' side; static.
      items: V, capacity of the items' side; static.
      shape: of what one node draws; static.
      **options: of `draw`.

    Returns:
      Array [U + V, *shape]: row i of users and row i of items are the same for any U and V.

    >>> small, large = (by_side(jax.random.bits, jax.random.key(0), users, 3) for users in (2, 5))
    >>> small[:2].tolist() == large[:2].tolist(), small[2:].tolist() == large[5:].tolist()
    (True, True)
    """
    for_users = draw(derive(key, Purpose.USERS), (users, *shape), **options)
    for_items = draw(derive(key, Purpose.ITEMS), (items, *shape), **options)
    return jnp.concatenate([for_users, for_items])
