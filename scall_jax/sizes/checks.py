"""Limits of the arithmetic of sizes, and the checks of arguments that `allocate` and `sample` share."""

from typing import Any

import jax.core
import numpy as np

DEVICE_LIMIT = 2**31 - 1
"""The largest total, in parameters, that programs count in int32."""

LEAST_SHARE = 2.0**-60
"""Least share that counts, relative to the largest one, so that a finite multiplier reaches any total."""

SUM_LIMIT = 2**32 - 1
"""The largest sum of sizes, or of what they cost, that programs count in uint32."""


def is_traced(value: Any) -> bool:
    """Whether a value is known only when a program runs."""
    return isinstance(value, jax.core.Tracer)


def require_sum(entities: int, most: int, way_out: str) -> None:
    """Check that sums over entities can be counted in uint32.

    Args:
      entities: how many there may be.
      most: the most that one adds.
      way_out: what to do where they cannot.

    Raises:
      ValueError: they cannot.
    """
    if entities * most > SUM_LIMIT:
        raise ValueError(f"{entities} entities with up to {most} each add up to more than 2^32 - 1: {way_out}")


def check_arguments(shares: Any, total: Any, minimum: int, maximum: int, num_active: Any) -> None:
    """Check what can be checked before a program runs.

    Args:
      shares: f32[n], one share per entity; values are checked unless traced.
      total: i32[], parameters to give out; checked unless traced.
      minimum: static lower bound of a size, in parameters.
      maximum: static upper bound of a size, in parameters.
      num_active: i32[], entities that exist; checked unless traced, None for all.

    Raises:
      ValueError: an argument that `allocate` and `sample` cannot take.
    """
    if np.ndim(shares) != 1 or np.shape(shares)[0] < 1:
        raise ValueError(f"shares of shape {np.shape(shares)}: must be a vector with at least one entity")
    if not 0 <= minimum <= maximum or maximum < 1:
        raise ValueError(f"minimum={minimum}, maximum={maximum}: need 0 <= minimum <= maximum and maximum >= 1")
    if not is_traced(shares):
        values = np.asarray(shares)
        bad = ~np.isfinite(values) | (values < 0)
        if bad.any():
            at = int(np.argmax(bad))
            raise ValueError(
                f"shares[{at}]={values[at]} ({int(bad.sum())} such): shares must be finite and not negative"
            )
    if not is_traced(total) and int(total) < 0:
        raise ValueError(f"total={int(total)}: a budget cannot be negative")
    capacity = np.shape(shares)[0]
    if num_active is not None and not is_traced(num_active) and not 0 <= int(num_active) <= capacity:
        raise ValueError(f"num_active={int(num_active)}: must lie between 0 and the capacity {capacity}")
