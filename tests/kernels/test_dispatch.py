"""Which implementation runs, how that is chosen, and what is said when another one was asked for."""

import subprocess
import sys

import pytest
import torch

import kernels
from kernels import dispatch

X, WEIGHT = torch.randn(3, 8), torch.ones(8)


def test_use_lasts_for_the_block_and_ends_on_errors():
    before = dispatch.runs_on("cpu")
    with pytest.raises(KeyError), kernels.use("torch"):
        assert dispatch.runs_on("cpu") == "torch"
        raise KeyError
    assert dispatch.runs_on("cpu") == before


def test_set_default_lasts():
    kernels.set_default("torch")
    try:
        assert dispatch.library("cpu") is None
    finally:
        kernels.set_default("auto")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'fast'.*auto, torch, fused, emulated"), kernels.use("fast"):
        pass


def test_backends_say_available_or_why_not():
    states = kernels.backends()
    assert list(states) == ["cpu", "cuda", "emulated"]
    assert all(state == "available" or len(state) > 10 for state in states.values())


def test_without_kernels_torch_runs_and_says_so_once(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "_LIBRARIES", {})
    monkeypatch.setattr(dispatch, "_said", set())
    monkeypatch.setitem(dispatch._STATES, "cpu", "no compiler")
    results = [kernels.layer_norm(X, WEIGHT) for _ in range(2)]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "torch runs in place" in said and "no compiler" in said
    torch.testing.assert_close(results[0], torch.nn.functional.layer_norm(X, (8,), WEIGHT))


def test_choosing_torch_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "_said", set())
    with kernels.use("torch"):
        kernels.layer_norm(X, WEIGHT)
    assert capsys.readouterr().err == ""


def test_what_is_chosen_by_name_is_never_replaced(monkeypatch):
    monkeypatch.setattr(dispatch, "_LIBRARIES", {})
    monkeypatch.setitem(dispatch._STATES, "cpu", "no compiler")
    with (
        kernels.use("fused"),
        pytest.raises(ValueError, match="fused kernels are not there on cpu: no compiler"),
    ):
        kernels.layer_norm(X, WEIGHT)


def test_a_wrong_word_in_the_environment_is_named(monkeypatch):
    monkeypatch.setattr(dispatch, "_ENVIRONMENT", "fast")
    with pytest.raises(ValueError, match="SLM_KERNELS is 'fast': choose one of auto, torch, fused, emulated"):
        kernels.layer_norm(X, WEIGHT)
    with kernels.use("torch"):  # an explicit word goes first
        kernels.layer_norm(X, WEIGHT)


def test_emulated_kernels_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(dispatch, "_emulated", None)
    with pytest.raises(ValueError, match="not available"), kernels.use("emulated"):
        pass


def test_emulated_kernels_refuse_other_devices(monkeypatch):
    monkeypatch.setattr(dispatch, "_choice", "emulated")
    with pytest.raises(ValueError, match=r"not cuda.*\.cpu\(\)"):
        dispatch.library("cuda")


@pytest.mark.skipif(kernels.backends()["cpu"] != "available", reason="the CPU kernels are not built")
def test_a_backward_uses_the_kernels_of_its_forward():
    leaf = X.clone().requires_grad_()
    with kernels.use("torch"):
        torchs = kernels.layer_norm(leaf, WEIGHT)
    assert "layer_norm" in kernels.layer_norm(leaf, WEIGHT).grad_fn.name()
    assert torchs.grad_fn.name() == "NativeLayerNormBackward0"


def test_the_environment_chooses_and_importing_stays_light():
    code = "import sys, kernels.dispatch as d; print(d.runs_on('cpu'), 'torch._dynamo' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"SLM_KERNELS": "torch"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["torch", "False"]
