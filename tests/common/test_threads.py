"""OpenMP's settings are made before the library reads them, by every command, and never over the user's own."""

import os
import subprocess
import sys

import pytest

from common import threads


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
    assert f"GOMP_SPINCOUNT = '{threads.SPIN_BRIEFLY['GOMP_SPINCOUNT']}'" in done.stderr


def test_the_users_own_choice_stays():
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        environment = {name: "active"}
        assert not threads.spin_briefly(environment)
        assert environment == {name: "active"}


def test_once_torch_is_loaded_nothing_is_changed():
    assert "torch" in sys.modules  # of the tests' conftest
    environment: dict[str, str] = {}
    assert not threads.spin_briefly(environment)
    assert environment == {}
