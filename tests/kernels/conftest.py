"""Every kernel test starts on memory full of NaN, so that an output that is not written is found."""

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses deterministic mode


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty, also when the kernels call it, returns NaN: what torch does in deterministic mode."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
