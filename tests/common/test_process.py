"""OpenMP's settings, made before the library reads them and never over the user's own; memory that is kept."""

import os
import subprocess
import sys

import pytest

from common import process


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
@pytest.mark.parametrize("imports", ["train, torch", "evaluation.__main__"])
def test_commands_load_openmp_with_a_short_spin(imports):
    """The library itself says what it runs with, as it loads."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", f"import {imports}"],
        env=kept | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{process.SPIN_BRIEFLY['GOMP_SPINCOUNT']}'" in done.stderr


def test_the_users_own_choice_stays():
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        environment = {name: "active"}
        assert not process.spin_briefly(environment)
        assert environment == {name: "active"}


def test_once_torch_is_loaded_nothing_is_changed():
    assert "torch" in sys.modules  # of the tests' conftest
    environment: dict[str, str] = {}
    assert not process.spin_briefly(environment)
    assert environment == {}


# Page faults of ten times 32 MB, once the heap has found its size: 8,192 pages of 4 KB each time if mapped anew.
FAULTS = """
import resource, torch
from common.process import keep_freed_memory
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
    if not process.keep_freed_memory():
        pytest.skip("the C library is not glibc")
    without, kept = page_faults(""), page_faults("keep_freed_memory()")
    assert kept < without / 10
