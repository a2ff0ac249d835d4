import ctypes
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from scall_jax.run import compilation, process_memory

# This runs in a new process, because in this one memory that others have freed would be used first. It loads the file
# alone, without the package and JAX.
SCRIPT = """
import ctypes, runpy, sys

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

c, size, count = ctypes.CDLL(None), 1024, 2**16
c.malloc.restype = ctypes.c_void_p
before = resident()
blocks = [c.malloc(ctypes.c_size_t(size)) for _ in range(count)]
for block in blocks:
    ctypes.memset(block, 1, size)
c.malloc(ctypes.c_size_t(size))  # without it, glibc returns the end of the heap by default
for block in blocks:
    c.free(ctypes.c_void_p(block))
allocated = resident() - before
runpy.run_path(sys.argv[1])["trim_heap"]()
print(allocated / (size * count), (before + allocated - resident()) / (size * count))
"""


def _output(script: str) -> str:
    command = [sys.executable, "-c", script, process_memory.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_free_memory_is_returned_to_the_system():
    allocated, freed = map(float, _output(SCRIPT).split())
    assert allocated > 0.8 and freed > 0.7


PEAK = """
import runpy, sys
peak = runpy.run_path(sys.argv[1])["peak_rss_bytes"]
before = peak()
block = bytearray(2**26)
del block
print(before, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not report the peak of one process")
def test_the_peak_is_that_of_the_process_itself():
    before, more = map(int, _output(PEAK).split())
    # This process has JAX in memory, and the new one does not inherit its peak.
    assert before < process_memory.peak_rss_bytes() / 2
    assert 0.9 * 2**26 < more < 1.5 * 2**26


def test_other_systems_are_left_alone(monkeypatch):
    called = []
    monkeypatch.setattr(ctypes, "CDLL", called.append)
    monkeypatch.setattr(sys, "platform", "darwin")
    process_memory.trim_heap()
    process_memory.limit_heap()
    assert not called
    # A C library without these functions.
    monkeypatch.setattr(sys, "platform", "linux")
    process_memory.trim_heap()
    process_memory.limit_heap()
    assert called == [None, None]


def test_programs_that_need_more_memory_than_there_is_are_refused_before_they_run():
    """A product of two arrays that no machine holds; compiling it makes none of them."""
    rows = jax.ShapeDtypeStruct((10**6, 1), jnp.float32)
    with pytest.raises(ValueError, match=r"needs 4,00\d\.\d GB of memory, .*lower sizes\.maximum"):
        compilation.compiled(lambda x: jnp.sort(x @ x.T, axis=0), rows)
    small = jax.ShapeDtypeStruct((10, 1), jnp.float32)
    assert compilation.compiled(lambda x: x @ x.T, small)(jnp.ones((10, 1))).sum() == 100
