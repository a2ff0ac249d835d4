"""Compilation of a run's programs: the compiler's options, and how to keep no more than the compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from scall_jax.ops.backend import by_backend
from scall_jax.run.exchange_order import ordered
from scall_jax.run.process_memory import trim_heap
from scall_jax.streams import machine_bytes

_CPU_OPTIONS = {"xla_cpu_use_fusion_emitters": False}
_SHARE = 0.9
"""The part of the machine's memory that a program may need; the process itself takes the rest."""


def jit(function: Callable[..., Any], donate: tuple[int, ...] = (), out_shardings: Any = None) -> jax.stages.Wrapped:
    """`jax.jit` with the compiler's options for the default device.

    On the CPU, XLA's fusion emitters are switched off: programs compile in 60 to 80% of the time and half the memory;
    training steps and evaluation take between 15% less and 5% more time (experiments/results/speed.md).

    Args:
      function: a pure function on pytrees of arrays.
      donate: positions of the arguments whose buffers the program may reuse.
      out_shardings: where each array of the result lies; None: on one device.

    Returns:
      The jitted function. It must not be called inside another compiled function, where compiler options are refused.
    """
    options: dict[str, Any] = {} if out_shardings is None else {"out_shardings": out_shardings}
    return jax.jit(function, donate_argnums=donate, compiler_options=_options(), **options)


def compiled(
    function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = (), out_shardings: Any = None
) -> jax.stages.Compiled:
    """Compile a function ahead of time and free its traced and lowered forms.

    Args:
      function: a pure function on pytrees of arrays.
      *arguments: arrays or `jax.ShapeDtypeStruct`; their shapes and dtypes matter.
      donate: positions of the arguments whose buffers the program may reuse.
      out_shardings: as in `jit`.

    Returns:
      The program for arguments of these shapes.

    Raises:
      ValueError: it needs more memory than there is.
    """

    # Wrap in a fresh function: JAX caches traces per function object and frees them with it.
    @functools.wraps(function)
    def fresh(*args):
        return function(*args)

    traced = jit(fresh, donate, out_shardings).trace(*arguments)
    # Accelerators begin exchanges in a program's order; a CPU has to be given one.
    in_order = ordered(traced.jaxpr, jax.tree.structure(traced.out_info)) if by_backend(True, False) else None
    if in_order is not None:
        traced = jit(functools.wraps(fresh)(in_order), donate, out_shardings).trace(*arguments)
    lowered = traced.lower()
    del traced, in_order
    trim_heap()
    program = lowered.compile()
    del lowered, fresh
    trim_heap()
    _check_program(program)
    return program


def _check_program(program: jax.stages.Compiled) -> None:
    sizes = program.memory_analysis()
    # Not every backend tells.
    if sizes is not None:
        needed = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
        check_memory(needed - sizes.alias_size_in_bytes, "a program of this run")


def check_memory(needed: int, what: str) -> None:
    """Refuse arrays before they are made, if they take more memory than the device or the machine has.

    Args:
      needed: bytes.
      what: needs them, in words.

    Raises:
      ValueError: they do.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit") or (machine_bytes() or 0) * _SHARE
    if 0 < limit < needed:
        raise ValueError(
            f"{what} needs {needed / 1e9:,.1f} GB of memory, and there are {limit / 1e9:,.1f} GB: lower sizes.maximum, "
            "the largest size, or fit.batch, or take fewer users and items (cut.k_core, cut.max_segments)"
        )


@functools.cache
def _options() -> dict[str, bool]:
    if not by_backend(True, False):
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS).lower(0).compile()
    except jax.errors.JaxRuntimeError:  # This version of XLA does not have the option.
        return {}
    return _CPU_OPTIONS
