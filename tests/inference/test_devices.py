"""Device and precision: what was asked for, or a reason why not."""

import pytest
import torch

from inference import devices
from kernels import dispatch
from model import GPTConfig


def test_the_cpu_is_always_there():
    assert devices.choose_device("cpu") == torch.device("cpu")
    assert devices.choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["cuda:77", "abacus", "meta", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match="choose"):
        devices.choose_device(name)


def test_precision_is_as_asked_or_what_the_hardware_has(monkeypatch):
    cpu = torch.device("cpu")
    assert devices.choose_precision("float32", cpu) == torch.float32
    assert devices.choose_precision("bfloat16", cpu) == torch.bfloat16
    intel = {"cpu_name": "Intel Xeon", "avx512_bf16": True}
    for has, expected in (
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, torch.bfloat16),
        (intel | {"amx_bf16": True}, torch.bfloat16),
        (intel, torch.float32),
        ({"amx_bf16": False}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has, raising=False)
        assert devices.choose_precision("auto", cpu) == expected


NOTHING, CPU = {}, {("fused", "cpu"): torch.ops.slm}


@pytest.mark.parametrize(
    ("wanted", "environment", "built", "width", "used"),
    [
        ("auto", "auto", CPU, 64, "fused"),
        ("auto", "auto", NOTHING, 64, "torch"),
        ("auto", "torch", CPU, 64, "torch"),
        ("auto", "auto", CPU, 129, "torch"),
        ("torch", "fused", CPU, 64, "torch"),
        ("torch", "auto", NOTHING, 64, "torch"),
        ("fused", "torch", CPU, 64, "fused"),
    ],
)
def test_kernels_are_as_asked_or_ours_where_they_are_built(
    monkeypatch, wanted, environment, built, width, used
):
    monkeypatch.setattr(dispatch, "_LIBRARIES", built)
    monkeypatch.setattr(dispatch, "_ENVIRONMENT", environment)
    config = GPTConfig(n_head=1, n_embd=width)
    assert devices.choose_kernels(wanted, config, torch.device("cpu")) == used


@pytest.mark.parametrize(
    ("wanted", "device", "width", "message"),
    [
        ("fused", "cpu", 64, "not there on cpu: not built: run make setup"),
        ("fused", "mps", 64, "not there on mps: there are none for this kind of device"),
        ("fused", "cpu", 129, "heads of at most 128 numbers, not 129: choose auto or torch"),
        ("emulated", "cuda", 64, "take CPU tensors, not cuda: choose --device cpu"),
        ("sdpa", "cpu", 64, "no kernels are called 'sdpa': choose one of auto, torch, fused, emulated"),
    ],
)
def test_kernels_that_cannot_be_had_are_refused(monkeypatch, wanted, device, width, message):
    monkeypatch.setattr(dispatch, "_LIBRARIES", CPU if width > 128 else NOTHING)
    monkeypatch.setitem(dispatch._STATES, "cpu", "not built: run make setup")
    monkeypatch.setattr(dispatch, "_emulated", object())
    with pytest.raises(ValueError, match=message):
        devices.choose_kernels(wanted, GPTConfig(n_head=1, n_embd=width), torch.device(device))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_the_precision_chosen(precision):
    with devices.autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == precision
