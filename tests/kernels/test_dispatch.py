"""Which implementation runs, how that is chosen, and what is said when another one was asked for."""

import subprocess
import sys
from types import SimpleNamespace

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
    heavy = "{'torch._dynamo', 'kernels.toolchain'} & set(sys.modules)"
    code = f"import sys, kernels.dispatch as d; print(d.runs_on('cpu'), len({heavy}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"SLM_KERNELS": "torch"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["torch", "0"]


@pytest.mark.parametrize(
    "built_for, runs", [("sm_80", "torch"), ("sm_80 sm_86 compute_86", "fused"), ("sm_80 sm_90", "fused")]
)
def test_cuda_kernels_without_code_for_the_gpu_are_not_available(monkeypatch, built_for, runs):
    monkeypatch.setattr(dispatch, "_fused", SimpleNamespace(CUDA_ARCHITECTURES=built_for))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(dispatch, "_STATES", {"cuda": "available"})
    monkeypatch.setattr(dispatch, "_LIBRARIES", {("fused", "cuda"): torch.ops.slm})
    monkeypatch.setattr(dispatch, "_is_gpu_checked", False)
    assert dispatch.runs_on("cuda") == runs
    state = kernels.backends()["cuda"]
    assert state == "available" if runs == "fused" else "TORCH_CUDA_ARCH_LIST=9.0" in state


def test_why_cuda_was_not_built_is_known_from_the_extension(monkeypatch):
    built = SimpleNamespace(CUDA_ARCHITECTURES="", CUDA_OBSTACLE="no CUDA toolkit: install one")
    monkeypatch.setattr(dispatch, "_fused", built)
    assert dispatch._cuda_state() == "not built: no CUDA toolkit: install one, and run make setup again"


@pytest.mark.skipif(kernels.backends()["cpu"] != "available", reason="the CPU kernels are not built")
def test_the_extension_has_either_gpus_or_the_reason_why_not():
    from kernels import _C

    assert bool(_C.CUDA_ARCHITECTURES) != bool(_C.CUDA_OBSTACLE)


def test_importing_makes_no_cuda_context():
    """A process with a context cannot fork; only a use of the GPU may make one."""
    patches = "torch.cuda.get_device_capability = None; torch.cuda.is_available = lambda: True"
    code = f"import torch; {patches}; import kernels"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
