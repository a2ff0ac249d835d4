"""What a policy observes: a vector of fixed length, whatever the numbers of entities (SCALL, arXiv 2407.15411)."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import ceil_div, div
from scall_jax.ops.sums import padded_sum


@dataclasses.dataclass(frozen=True)
class ObserveConfig:
    """Parts of the observation. The variants of the published ablation are combinations of them."""

    groups: int = 64
    """Windows that the frequencies of each side are averaged in (256 as published)."""
    embedding: bool = True
    """Include the mean embedding of each side."""
    spread: bool = True
    """Include the spread of the sizes on each side."""
    gini: bool = False
    """Include the Gini coefficient of the frequencies on each side."""

    def __post_init__(self):
        if self.groups < 1:
            raise ValueError(f"observe groups={self.groups}: must be at least 1")


class Side(NamedTuple):
    """All users or all items, in any order: `num_active` of a capacity C exist."""

    frequency: jax.Array  # i32[C]
    sizes: jax.Array  # i32[C]
    active_mask: jax.Array  # bool[C]
    num_active: jax.Array  # i32[], how many of `active_mask` are true
    mean: jax.Array  # f32[D], mean embedding


def length(config: ObserveConfig, width: int) -> int:
    """Length of the observation for embeddings of `width` coordinates.

    >>> length(ObserveConfig(groups=8), width=6)
    32
    """
    return 2 * config.groups + 2 + 2 * width * config.embedding + 2 * config.spread + 2 * config.gini


def observe(config: ObserveConfig, users: Side, items: Side, ratio: jax.Array, maximum: int) -> jax.Array:
    """Pooled frequencies of users and items, last reward ratio, users' part of the entities, and the optional parts.

    Args:
      config: which parts; static.
      users: all users.
      items: all items.
      ratio: f32[], last probe's fitness relative to the reference.
      maximum: largest size; static.

    Returns:
      f32[length(config, D)], independent of the order of the entities and of padding.

    >>> side = Side(jnp.array([1, 5]), jnp.array([2, 4]), jnp.ones(2, bool), jnp.int32(2), jnp.zeros(1))
    >>> config = ObserveConfig(groups=2, embedding=False, spread=False)
    >>> jax.jit(observe, static_argnums=(0, 4))(config, side, side, jnp.float32(1.5), 8).tolist()
    [1.0, 0.0, 1.0, 0.0, 1.5, 0.5]
    """
    for side in (users, items):
        chex.assert_rank(list(side), [1, 1, 1, 0, 1])
        chex.assert_type(list(side), [int, int, bool, int, float])
        chex.assert_equal_shape(list(side[:3]))
    chex.assert_equal_shape([users.mean, items.mean])
    chex.assert_rank(ratio, 0)
    entities = jnp.maximum(users.num_active + items.num_active, 1)
    capacity = max(users.frequency.shape[0], items.frequency.shape[0])

    def padded(*both):
        return jnp.stack([jnp.pad(x, (0, capacity - x.shape[0])) for x in both])

    # Both sides are worked on together, so that the program has one sort and one pooling, not two.
    frequency, sizes, active_mask = map(padded, users[:3], items[:3])
    num_active = jnp.stack([users.num_active, items.num_active])
    pool = functools.partial(pooled, groups=config.groups)
    parts = [jax.vmap(pool)(frequency, active_mask, num_active).ravel()]
    parts.append(jnp.stack([ratio, users.num_active / entities]))
    if config.embedding:
        parts += [users.mean, items.mean]
    if config.spread:
        parts.append(jax.vmap(functools.partial(_spread, maximum=maximum))(sizes, active_mask))
    if config.gini:
        parts.append(jax.vmap(gini)(frequency, active_mask, num_active))
    return jnp.concatenate(parts).astype(jnp.float32)


def with_ratio(config: ObserveConfig, observation: jax.Array, ratio: jax.Array) -> jax.Array:
    """Observations with another ratio in its place.

    Args:
      config: of the observations; static.
      observation: f32[..., O].
      ratio: f32[...], last probe's fitness relative to the reference.

    Returns:
      f32[..., O].

    >>> with_ratio(ObserveConfig(groups=1), jnp.zeros(4), jnp.float32(0.5)).tolist()
    [0.0, 0.0, 0.5, 0.0]
    """
    chex.assert_type([observation, ratio], float)
    chex.assert_shape(ratio, observation.shape[:-1])
    return observation.at[..., _ratio_place(config)].set(ratio)


def _ratio_place(config: ObserveConfig) -> int:
    """The ratio follows the pooled frequencies of both sides."""
    return 2 * config.groups


def _assert_frequencies(frequency, active_mask, num_active):
    chex.assert_rank([frequency, num_active], [1, 0])
    chex.assert_type([frequency, active_mask, num_active], [int, bool, int])
    chex.assert_equal_shape([frequency, active_mask])


def _descending(frequency, active_mask):
    return -jnp.sort(jnp.where(active_mask, -frequency, jnp.iinfo(jnp.int32).max))


def pooled(frequency: jax.Array, active_mask: jax.Array, num_active: jax.Array, groups: int) -> jax.Array:
    """Frequencies in descending order, scaled to [0, 1], averaged in windows of ceil(num_active / groups) entities.

    Args:
      frequency: i32[C], in any order.
      active_mask: bool[C], entities that exist.
      num_active: i32[], how many exist.
      groups: number of windows; static.

    Returns:
      f32[groups]. Windows beyond the last entity are 0; the others are 1 where all frequencies are equal, as published.

    >>> pooled(jnp.array([1, 5, 3, 0]), jnp.array([True, True, True, False]), jnp.int32(3), groups=2).tolist()
    [0.75, 0.0]
    """
    _assert_frequencies(frequency, active_mask, num_active)
    ordered = _descending(frequency, active_mask)
    rank = jnp.arange(frequency.shape[0], dtype=jnp.int32)
    exists = rank < num_active
    low = ordered[jnp.maximum(num_active - 1, 0)]
    span = (ordered[0] - low).astype(jnp.float32)
    scaled = jnp.where(span > 0, (ordered - low).astype(jnp.float32) / jnp.maximum(span, 1.0), 1.0)
    scaled = jnp.where(exists, scaled, 0.0)
    window = jnp.where(exists, div(rank, jnp.maximum(ceil_div(num_active, groups), 1)), groups)
    sums = jax.ops.segment_sum(scaled, window, groups + 1, indices_are_sorted=True)
    counts = jax.ops.segment_sum(exists.astype(jnp.float32), window, groups + 1, indices_are_sorted=True)
    return (sums / jnp.maximum(counts, 1.0))[:groups]


def gini(frequency: jax.Array, active_mask: jax.Array, num_active: jax.Array) -> jax.Array:
    """Gini coefficient of the frequencies of the entities that exist, by sorting.

    Args:
      frequency: i32[C], in any order.
      active_mask: bool[C], entities that exist.
      num_active: i32[], how many exist.

    Returns:
      f32[] in [0, 1); 0 where all frequencies are 0.

    >>> float(gini(jnp.array([1, 3]), jnp.ones(2, bool), jnp.int32(2)))
    0.25
    """
    _assert_frequencies(frequency, active_mask, num_active)
    ordered = _descending(frequency, active_mask)
    rank = jnp.arange(frequency.shape[0], dtype=jnp.float32)
    values = jnp.where(rank < num_active, ordered, 0).astype(jnp.float32)
    # The k-th largest of n values, counted from 0, has the weight n - 1 - 2 k.
    weighted = padded_sum(values * (num_active - 1 - 2 * rank))
    total = padded_sum(values)
    return jnp.where(total > 0, weighted / jnp.maximum(num_active * total, 1.0), 0.0)


def _spread(sizes, active_mask, maximum: int):
    largest = jnp.where(active_mask, sizes, 0).max()
    smallest = jnp.where(active_mask, sizes, maximum).min()
    return (largest - smallest) / max(maximum - 1, 1)
