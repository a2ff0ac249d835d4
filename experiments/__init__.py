"""Experiments: each module's docstring gives its command, cost and expected result.

Importing this package has the process give back what memory is free again: a run reads a stream and compiles its
programs, which takes hundreds of megabytes for a moment, and allocators would keep them for the rest of it.
"""

import ctypes
import sys

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)
_LARGE = 2**24

if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
    # blocks of 16 MiB and more, such as a program's temporary memory, apart from the heap, which they would tear
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
