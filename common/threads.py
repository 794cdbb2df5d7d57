"""How OpenMP's threads wait for each other, decided before the library loads."""

import os
import sys
from collections.abc import MutableMapping

# GNU's OpenMP spins at a barrier, some 300,000 rounds as a rule: as long as another program's turn on the core that the
# last thread needs. After 300 rounds, about a microsecond, a thread sleeps and leaves its core to whoever has work.
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "300"}
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Let OpenMP's threads sleep soon when they wait; return False where it is too late or the user has chosen.

    When other programs compute on the same cores, a thread that spins takes their time and ours. The library reads its
    settings once, when torch loads it.
    """
    if "torch" in sys.modules or any(name in environment for name in _CHOICES):
        return False
    environment.update(SPIN_BRIEFLY)
    return True
