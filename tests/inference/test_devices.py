"""Device and precision: what was asked for, or a reason why not."""

import pytest
import torch

import kernels
from inference import devices
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
    for has, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": False}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has, raising=False)
        assert devices.choose_precision("auto", cpu) == expected


@pytest.mark.parametrize(
    ("wanted", "configured", "built", "used"),
    [
        ("auto", "sdpa", True, "fused"),
        ("auto", "sdpa", False, "sdpa"),
        ("auto", "torch", True, "torch"),
        ("auto", "fused", False, "sdpa"),
        ("torch", "fused", True, "sdpa"),
        ("fused", "torch", True, "fused"),
    ],
)
def test_kernels_are_ours_where_they_are_built_or_as_asked(monkeypatch, wanted, configured, built, used):
    state = {"cpu": "available" if built else "not built: run make setup"}
    monkeypatch.setattr(kernels, "backends", lambda: state)
    config = GPTConfig(attention=configured)
    assert devices.choose_kernels(wanted, config, torch.device("cpu")).attention == used


def test_fused_kernels_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(kernels, "backends", lambda: {"cpu": "not built: run make setup"})
    with pytest.raises(ValueError, match="not there on cpu: not built: run make setup"):
        devices.choose_kernels("fused", GPTConfig(), torch.device("cpu"))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_the_precision_chosen(precision):
    with devices.autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == precision
