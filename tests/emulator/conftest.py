"""What the emulator's tests share: the emulator, compiled once per run."""

import pytest

from kernels.emulator import Toolchain


@pytest.fixture(scope="session")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    return Toolchain(tmp_path_factory.mktemp("emulator"))
