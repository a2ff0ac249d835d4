"""Memory of the process: what is free goes back to the system. Where the C library is not glibc nothing is done.

Compiling and running programs takes hundreds of megabytes for a moment, in the heaps of several threads, and glibc
keeps what has been free; `experiments/results/speed.md` has what a run takes with and without these functions.
"""

import ctypes
import resource
import sys
from pathlib import Path

# parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def trim_heap() -> None:
    """Return what is free to the system; takes milliseconds."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def limit_heap() -> None:
    """Let no more than 2 MiB stay free at the end of a heap.

    By itself glibc raises that limit with the largest block that was ever free, and each thread has a heap. For the
    whole process and for good: for commands, not for what others import.
    """
    option = _glibc("mallopt")
    if option is not None:
        option(_TRIM_THRESHOLD, 2**21)
        # blocks from here on are apart from the heaps, which they would tear; each costs its page faults
        option(_MMAP_THRESHOLD, 2**23)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    # getrusage(2) has what the process that started this one had, where that was more
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    unit = 1 if sys.platform == "darwin" else 1024
    return own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _glibc(name):
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
