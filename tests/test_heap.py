import ctypes
import sys

import pytest

from scall_jax import heap


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_what_is_free_goes_back():
    c, size, count = ctypes.CDLL(None), 1024, 2**16
    c.malloc.restype = ctypes.c_void_p
    before = _resident()
    blocks = [c.malloc(ctypes.c_size_t(size)) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    last = c.malloc(ctypes.c_size_t(size))  # or the end of the heap goes back by itself
    for block in blocks:
        c.free(ctypes.c_void_p(block))
    held = _resident() - before
    heap.give_back()
    freed = before + held - _resident()
    c.free(ctypes.c_void_p(last))
    assert held > 0.9 * size * count
    assert freed > 0.7 * size * count


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("no C library was to be called"))
    heap.give_back()
    heap.keep_little()
