"""In whatever order the emulator runs threads and blocks, each op is within its tolerances."""

import ctypes

import pytest

import kernels
from tests.kernels import cases, test_attention, test_layer_norm
from tests.kernels.cases import AttentionCase, NormCase

pytestmark = pytest.mark.skipif(
    kernels.backends()["emulated"] != "available", reason="the emulator is not built"
)

EMULATED = cases.Backend("emulated", "cpu")
NORMS = [NormCase((5, 7)), NormCase((2, 3, 48), "sliced"), NormCase((9, 384)), NormCase((70, 40), bias=False)]
ATTENTIONS = [
    AttentionCase(1, 1, 1, 16),
    AttentionCase(1, 17, 2, 16),
    AttentionCase(2, 65, 2, 40, kv_heads=1, layout="transposed"),
    AttentionCase(1, 65, 1, 64, window=20, dropout_p=0.3),
    AttentionCase(1, 129, 1, 32, dropout_p=0.1),
]


@pytest.fixture
def order():
    """Sets the seed from which the emulator draws the order of threads and blocks; 0 is their own order."""
    library = ctypes.CDLL(kernels.dispatch.modules()["kernels._emulated"][0].__file__)

    def choose(seed: int) -> None:
        library.emulator_configure(ctypes.c_ulonglong(seed), 0, 80, 0, ctypes.c_longlong(-1))

    yield choose
    choose(0)


def check_all(dtype, seeds, order) -> None:
    for seed in seeds:
        order(seed)
        for case in NORMS:
            x = cases.norm_inputs(case, dtype, "cpu")
            arguments = (
                test_layer_norm.torch_layer_norm,
                kernels.reference.layer_norm,
                [x],
                case,
                dtype,
                EMULATED,
            )
            test_layer_norm.check(kernels.layer_norm, *arguments)
            test_layer_norm.check_add_layer_norm(EMULATED, dtype, case)
        for case in ATTENTIONS:
            test_attention.check(case, dtype, EMULATED)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_op_is_right_in_another_order(dtype, order) -> None:
    check_all(dtype, (7,), order)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_op_is_right_in_twenty_orders(dtype, order) -> None:
    check_all(dtype, range(1, 21), order)
