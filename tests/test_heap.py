import ctypes
import subprocess
import sys

import pytest

from scall_jax.run import process_memory

# in a process of its own: what others have freed in this one would be used first
SCRIPT = """
import ctypes
from scall_jax import heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

c, size, count = ctypes.CDLL(None), 1024, 2**16
c.malloc.restype = ctypes.c_void_p
before = resident()
blocks = [c.malloc(ctypes.c_size_t(size)) for _ in range(count)]
for block in blocks:
    ctypes.memset(block, 1, size)
c.malloc(ctypes.c_size_t(size))  # or the end of the heap goes back by itself
for block in blocks:
    c.free(ctypes.c_void_p(block))
held = resident() - before
process_memory.give_back()
print(held / (size * count), (before + held - resident()) / (size * count))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_what_is_free_goes_back():
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    held, freed = map(float, said.split())
    assert held > 0.8 and freed > 0.7


# of a process that starts from nothing: the file alone, without the package and JAX
PEAK = """
import runpy, sys
peak = runpy.run_path(sys.argv[1])["peak_rss_bytes"]
before = peak()
block = bytearray(2**26)
del block
print(before, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system tells less")
def test_the_peak_is_that_of_the_process_itself():
    command = [sys.executable, "-c", PEAK, process_memory.__file__]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, more = map(int, said.split())
    assert (
        before < process_memory.peak_rss_bytes() / 2
    )  # this process holds JAX, which the one that it starts does not inherit
    assert 0.9 * 2**26 < more < 1.5 * 2**26


def test_other_systems_are_left_alone(monkeypatch):
    called = []
    monkeypatch.setattr(ctypes, "CDLL", called.append)
    monkeypatch.setattr(sys, "platform", "darwin")
    process_memory.trim_heap()
    process_memory.limit_heap()
    assert not called
    monkeypatch.setattr(sys, "platform", "linux")  # a C library without these functions
    process_memory.trim_heap()
    process_memory.limit_heap()
    assert called == [None, None]
