"""How the programs of a run are compiled."""

import functools
from collections.abc import Callable

import jax

from scall_jax.ops.backend import by_backend
from scall_jax.run.process_memory import trim_heap

_SMALLER = {"xla_cpu_use_fusion_emitters": False}


def jit(function: Callable, donate: tuple[int, ...] = ()) -> Callable:
    """`jax.jit` with the compiler's options for the default device; `donate` are the numbers of donated arguments.

    On the CPU fusions go without emitters of their own: programs compile in 60 to 80% of the time and half the
    memory; steps and evaluation take 15% less to 5% more (experiments/results/speed.md). Not to be called from inside
    another compiled function.
    """
    return jax.jit(function, donate_argnums=donate, compiler_options=_options())


def compiled(function: Callable, *arguments, donate: tuple[int, ...] = ()) -> jax.stages.Compiled:
    """A function's program for arguments of these shapes; its traced and lowered forms are not kept."""

    @functools.wraps(function)
    def once(*args):  # JAX keeps the forms as long as there is the function that they are of
        return function(*args)

    lowered = jit(once, donate).lower(*arguments)
    trim_heap()
    program = lowered.compile()
    del lowered, once
    trim_heap()
    return program


@functools.cache
def _options():
    if not by_backend(True, False):
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=_SMALLER).lower(0).compile()
    except jax.errors.JaxRuntimeError:  # an XLA that has this choice no more
        return {}
    return _SMALLER
