"""Exact allocation on the host, in float64 and int64, for totals and tables beyond 32 bits."""

from collections.abc import Sequence

import chex
import numpy as np

from scall_jax.sizes.checks import LEAST_SHARE


def allocate_host(
    shares: chex.Array | Sequence[float], total: int, minimum: int, maximum: int, num_active: chex.Numeric | None = None
) -> np.ndarray:
    """Sizes by the rule of `allocate`, worked out on the host.

    Args:
      shares: f32[n] or f64[n], non-negative and finite.
      total: parameters to give out, >= 0.
      minimum: lower bound of a size, in parameters.
      maximum: upper bound of a size, in parameters.
      num_active: entities that exist out of the capacity n, None for all; those beyond get 0.

    Returns:
      i64[n], sizes that add up to min(total, num_active x maximum).

    >>> allocate_host([3.0, 1.0], 2**40, 1, 2**40)
    array([824633720832, 274877906944])
    """
    shares = np.asarray(shares, np.float64)
    chex.assert_rank(shares, 1)
    count = len(shares) if num_active is None else int(num_active)
    sizes = np.zeros(len(shares), np.int64)
    if count == 0:
        return sizes
    shares = shares[:count]
    relative = shares / shares.max() if shares.max() > 0 else np.ones(count)
    relative = np.maximum(relative, LEAST_SHARE)
    total = min(total, count * maximum)
    if total < count * minimum:
        order = np.argsort(-shares, kind="stable")
        sizes[order[: total // minimum]] = minimum
        sizes[order[total // minimum]] = total % minimum
        return sizes
    sizes[:count] = _webster(shares, relative, total, minimum, maximum)
    return sizes


def _webster(shares: np.ndarray, relative: np.ndarray, total: int, minimum: int, maximum: int) -> np.ndarray:
    """Sizes at the multiplier that bisection of its bit pattern finds, and the entities that grow just beyond it."""

    def sizes_at(bits: int) -> np.ndarray:
        with np.errstate(over="ignore"):
            real = np.floor(np.int64(bits).view(np.float64) * relative + 0.5)
        return np.clip(real, minimum, maximum).astype(np.int64)

    low, high = 0, int(np.float64(np.finfo(np.float64).max).view(np.int64))
    top = high
    while low < high:
        middle = low + (high - low + 1) // 2
        if sizes_at(middle).sum() <= total:
            low = middle
        else:
            high = middle - 1
    sizes = sizes_at(low)
    grows = np.flatnonzero(sizes_at(min(low + 1, top)) > sizes)
    left = total - sizes.sum()
    sizes[grows[np.argsort(-shares[grows], kind="stable")[:left]]] += 1
    return sizes
