"""Compilation of a run's programs: the compiler's options, and how to keep no more than the compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from scall_jax.ops.backend import by_backend
from scall_jax.run.process_memory import trim_heap

_CPU_OPTIONS = {"xla_cpu_use_fusion_emitters": False}


def jit(function: Callable[..., Any], donate: tuple[int, ...] = ()) -> jax.stages.Wrapped:
    """`jax.jit` with the compiler's options for the default device.

    On the CPU, XLA's fusion emitters are switched off: programs compile in 60 to 80% of the time and half the memory;
    training steps and evaluation take between 15% less and 5% more time (experiments/results/speed.md).

    Args:
      function: a pure function on pytrees of arrays.
      donate: positions of the arguments whose buffers the program may reuse.

    Returns:
      The jitted function. It must not be called inside another compiled function, where compiler options are refused.
    """
    return jax.jit(function, donate_argnums=donate, compiler_options=_options())


def compiled(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> jax.stages.Compiled:
    """Compile a function ahead of time and free its traced and lowered forms.

    Args:
      function: a pure function on pytrees of arrays.
      *arguments: arrays or `jax.ShapeDtypeStruct`; their shapes and dtypes matter.
      donate: positions of the arguments whose buffers the program may reuse.

    Returns:
      The program for arguments of these shapes.
    """

    # Wrap in a fresh function: JAX caches traces per function object and frees them with it.
    @functools.wraps(function)
    def fresh(*args):
        return function(*args)

    lowered = jit(fresh, donate).lower(*arguments)
    trim_heap()
    program = lowered.compile()
    del lowered, fresh
    trim_heap()
    return program


@functools.cache
def _options() -> dict[str, bool]:
    if not by_backend(True, False):
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS).lower(0).compile()
    except jax.errors.JaxRuntimeError:  # This version of XLA does not have the option.
        return {}
    return _CPU_OPTIONS
