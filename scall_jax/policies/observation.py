"""What a policy sees: a vector of fixed length, whatever the numbers of users and items (SCALL, arXiv 2407.15411)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.indexing import ceil_div, div


@dataclasses.dataclass(frozen=True)
class ObserveConfig:
    """Parts of the observation. The variants of the published ablation are combinations of them."""

    groups: int = 64
    """Windows of frequency on each side (256 as published)."""
    embedding: bool = True
    """The mean embedding of each side."""
    spread: bool = True
    """The spread of the sizes on each side."""
    gini: bool = False
    """The Gini coefficient of the frequencies on each side."""

    def __post_init__(self):
        if self.groups < 1:
            raise ValueError(f"observe groups={self.groups}: must be at least 1")


class Side(NamedTuple):
    """All users or all items, in any order; n = `live` of a capacity C exist."""

    frequency: jax.Array  # i32[C]
    sizes: jax.Array  # i32[C]
    active_mask: jax.Array  # bool[C]
    num_active: jax.Array  # i32[], number of alive ones
    mean: jax.Array  # f32[D], mean embedding


def length(config: ObserveConfig, width: int) -> int:
    """Length of the observation for embeddings of `width` coordinates."""
    return 2 * config.groups + 2 + 2 * width * config.embedding + 2 * config.spread + 2 * config.gini


def observe(config: ObserveConfig, users: Side, items: Side, ratio: jax.Array, maximum: int) -> jax.Array:
    """Pooled frequencies of users and items, last reward ratio, users' part of the entities, and the optional parts.

    Args:
      config: which parts.
      users, items: the sides.
      ratio: f32[], last probe's fitness relative to the reference.
      maximum: largest size.

    Returns:
      f32[length(config, D)], independent of the order of the entities and of padding.
    """
    entities = jnp.maximum(users.num_active + items.num_active, 1)
    capacity = max(users.frequency.shape[0], items.frequency.shape[0])

    def padded(*both):
        return jnp.stack([jnp.pad(x, (0, capacity - x.shape[0])) for x in both])

    # both sides at once: one sort and one pooling in the program
    frequency, sizes, active_mask = map(padded, users[:3], items[:3])
    num_active = jnp.stack([users.num_active, items.num_active])
    parts = [jax.vmap(lambda *side: pooled(*side, config.groups))(frequency, active_mask, num_active).ravel()]
    parts.append(jnp.stack([ratio, users.num_active / entities]))
    if config.embedding:
        parts += [users.mean, items.mean]
    if config.spread:
        parts.append(jax.vmap(lambda *side: _spread(*side, maximum))(sizes, active_mask))
    if config.gini:
        parts.append(jax.vmap(gini)(frequency, active_mask, num_active))
    return jnp.concatenate(parts).astype(jnp.float32)


def with_ratio(config: ObserveConfig, observation: jax.Array, ratio: jax.Array) -> jax.Array:
    """Observations f32[..., O] with the last reward ratio f32[...] in its place."""
    return observation.at[..., _ratio_place(config)].set(ratio)


def _ratio_place(config):
    """The ratio follows the pooled frequencies of both sides."""
    return 2 * config.groups


def _descending(frequency, active_mask):
    return -jnp.sort(jnp.where(active_mask, -frequency, jnp.iinfo(jnp.int32).max))


def pooled(frequency: jax.Array, active_mask: jax.Array, num_active: jax.Array, groups: int) -> jax.Array:
    """Frequencies in descending order, scaled to [0, 1], averaged in windows of ceil(live / groups); f32[groups].

    Windows beyond the last entity are 0; so is everything where all frequencies are equal.
    """
    ordered = _descending(frequency, active_mask)
    rank = jnp.arange(frequency.shape[0], dtype=jnp.int32)
    exists = rank < num_active
    low = ordered[jnp.maximum(num_active - 1, 0)]
    span = (ordered[0] - low).astype(jnp.float32)
    scaled = jnp.where(exists & (span > 0), (ordered - low) / jnp.maximum(span, 1.0), 0.0)
    window = jnp.where(exists, div(rank, jnp.maximum(ceil_div(num_active, groups), 1)), groups)
    sums = jax.ops.segment_sum(scaled, window, groups + 1, indices_are_sorted=True)
    counts = jax.ops.segment_sum(exists.astype(jnp.float32), window, groups + 1, indices_are_sorted=True)
    return (sums / jnp.maximum(counts, 1.0))[:groups]


def gini(frequency: jax.Array, active_mask: jax.Array, num_active: jax.Array) -> jax.Array:
    """Gini coefficient of the frequencies of those alive, by sorting; f32[] in [0, 1), 0 where all are 0."""
    ordered = _descending(frequency, active_mask)
    rank = jnp.arange(frequency.shape[0], dtype=jnp.float32)
    values = jnp.where(rank < num_active, ordered, 0).astype(jnp.float32)
    # the k-th largest of n (from 0) weighs n - 1 - 2 k
    weighted = (values * (num_active - 1 - 2 * rank)).sum()
    total = values.sum()
    return jnp.where(total > 0, weighted / jnp.maximum(num_active * total, 1.0), 0.0)


def _spread(sizes, active_mask, maximum: int):
    largest = jnp.where(active_mask, sizes, 0).max()
    smallest = jnp.where(active_mask, sizes, maximum).min()
    return (largest - smallest) / max(maximum - 1, 1)
