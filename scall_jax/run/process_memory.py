"""Memory of the process: returning free heap memory to the system, and the peak of resident memory.

Compiling and running programs temporarily takes hundreds of megabytes in the heaps of several threads, and glibc keeps
freed memory; `experiments/results/speed.md` shows what a run takes with and without these functions. Where the C
library is not glibc, `trim_heap` and `limit_heap` do nothing.
"""

import ctypes
import resource
import sys
from pathlib import Path
from typing import Any

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def trim_heap() -> None:
    """Return free heap memory to the system; this takes milliseconds."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def limit_heap() -> None:
    """Keep at most 2 MiB free at the end of each heap, for the whole process and until it ends.

    By default glibc raises that limit to the size of the largest block that was ever freed, and each thread has a heap.
    Call this from commands only: a library should not change the allocator of a program that imports it.
    """
    option = _glibc("mallopt")
    if option is not None:
        option(_TRIM_THRESHOLD, 2**21)
        # Blocks of 8 MiB or more are mapped separately, because they would fragment the heaps; each mapping costs
        # page faults, so smaller blocks stay on the heaps.
        option(_MMAP_THRESHOLD, 2**23)


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far, in bytes."""
    # `ru_maxrss` is inherited from the parent process; VmHWM is not.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    unit = 1 if sys.platform == "darwin" else 1024
    return own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
