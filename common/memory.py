"""How the C library deals with memory that a program has freed."""

import ctypes
import platform

# Parameters of mallopt(3) in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for its next large tensors; whether that could be done.

    glibc returns a large block to the system as soon as it is freed, and the next one of its size is mapped anew:
    4 KB at a time, each cleared first and each a page fault. A training step frees and asks for the same blocks
    again and again. Only glibc is told; on other systems nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
