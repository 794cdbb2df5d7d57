"""Device and precision: what was asked for, or a reason why not."""

import pytest
import torch

from training import devices


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


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_autocast_multiplies_in_the_precision_chosen(precision):
    with devices.autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == precision
