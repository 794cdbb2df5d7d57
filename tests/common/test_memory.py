import subprocess
import sys

import pytest

from common.memory import keep_freed_memory

# Page faults of ten times 32 MB, once the heap has found its size: 8,192 pages of 4 KB each time if mapped anew.
FAULTS = """
import resource, torch
from common.memory import keep_freed_memory
{call}
def faults():
    torch.ones(8 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
so_far = [faults() for _ in range(40)]
print(so_far[-1] - so_far[-11])
"""


def page_faults(call: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_not_mapped_anew():
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    without, kept = page_faults(""), page_faults("keep_freed_memory()")
    assert kept < without / 10
