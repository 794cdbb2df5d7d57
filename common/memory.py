"""Tell the C library to keep freed memory."""

import ctypes
import platform

# Parameters of mallopt(3) in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def keep_freed_memory() -> bool:
    """Keep freed memory in this process for its next large tensors; return True if the C library allows it.

    glibc returns a large block to the system as soon as it is freed; the next block of that size is mapped again,
    with a page fault and a cleared page for every 4 KB. A training step frees and requests the same blocks each time.
    Only glibc is configured; on other systems nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
