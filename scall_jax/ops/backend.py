"""The one place that asks which backend programs are compiled for."""

from typing import TypeVar

import jax

T = TypeVar("T")


def by_backend(cpu: T, accelerator: T) -> T:
    """The choice for the default backend, made while a program is traced.

    Args:
      cpu: used on a CPU, which has caches to stay within and runs sequential code well.
      accelerator: used on GPUs and TPUs, where many small kernels are bound by latency.

    Returns:
      One of the two, unchanged.
    """
    return cpu if jax.default_backend() == "cpu" else accelerator
