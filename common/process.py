"""Set, before a process computes, how OpenMP's threads wait, and whether freed memory is kept."""

import ctypes
import os
import platform
import sys
from collections.abc import MutableMapping

# GNU's OpenMP spins at a barrier, some 300,000 rounds as a rule: as long as another program's turn on the core that the
# last thread needs. After 2,000 rounds, a tenth of a millisecond at most, it sleeps and leaves its core to others.
# Fewer cost more: threads then sleep between any two ops, and waking one takes as long as a small op. The measurements
# are in docs/training.md.
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "2000"}
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# Parameters of mallopt(3) in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Let OpenMP's threads sleep soon when they wait; return False if it is too late or the user has chosen.

    When other programs compute on the same cores, a thread that spins takes their time and ours. The library reads its
    settings once, when torch loads it.
    """
    if "torch" in sys.modules or any(name in environment for name in _CHOICES):
        return False
    environment.update(SPIN_BRIEFLY)
    return True


def keep_freed_memory() -> bool:
    """Keep freed memory in this process for its next large tensors; return True if the C library allows it.

    glibc returns a large block to the system as soon as it is freed; the next block of that size is mapped again,
    with a page fault and a cleared page for every 4 KB. A training step frees and requests the same blocks each time.
    Only glibc is configured; on other systems nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
