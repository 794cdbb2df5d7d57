"""The rules of the build, the doctor's report and the benchmark's output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import __main__ as command
from kernels import toolchain
from kernels.workbench import doctor, resources
from kernels.workbench.emulator import Compiler

ROOT = Path(__file__).parents[2]


def fake_toolkit(folder):
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        path = folder / name
        path.parent.mkdir(parents=True)
        path.touch(mode=0o755)
    return folder


def test_cuda_home_wins_if_it_is_a_toolkit(tmp_path, monkeypatch):
    toolkit = fake_toolkit(tmp_path / "toolkit")
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert toolchain.cuda_home() == str(toolkit)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert toolchain.cuda_home() != str(tmp_path)


def test_nvcc_on_the_path_leads_to_its_toolkit(tmp_path, monkeypatch):
    toolkit = fake_toolkit(tmp_path / "toolkit")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert toolchain.cuda_home() == str(toolkit)


def test_architectures_come_from_the_environment_then_the_gpu_then_the_list(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert toolchain.architectures() == "8.0;8.6;8.9;9.0+PTX"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert toolchain.architectures() == "9.0"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    assert toolchain.architectures() == "8.6"


@pytest.mark.parametrize("gigabytes, expected", [(100.0, 8), (8.0, 3), (1.0, 1), (None, 8)])
def test_jobs_are_bounded_by_memory(monkeypatch, gigabytes, expected):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(toolchain.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(toolchain, "free_gigabytes", lambda: gigabytes)
    assert toolchain.jobs() == expected


def test_max_jobs_overrides(monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "3")
    assert toolchain.jobs() == 3


@pytest.mark.parametrize("value", ["auto", "", " "])
def test_max_jobs_may_be_automatic(monkeypatch, value):
    monkeypatch.setenv("MAX_JOBS", value)
    monkeypatch.setattr(toolchain.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(toolchain, "free_gigabytes", lambda: 8.0)
    assert toolchain.jobs() == 3


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_max_jobs_that_is_no_number_is_refused(monkeypatch, value):
    monkeypatch.setenv("MAX_JOBS", value)
    with pytest.raises(ValueError, match="MAX_JOBS is"):
        toolchain.jobs()


@pytest.mark.parametrize(
    "line, files, left",
    [
        (
            "0::/a/b",
            {"a/memory.max": "3000000000", "a/memory.current": "1000000000", "a/b/memory.max": "max"},
            [2.0],
        ),
        ("0::/a/b", {"memory.max": "1000000000", "memory.current": "4000000000"}, [0.0]),
        (
            "4:cpu,memory:/a",
            {"memory/a/memory.limit_in_bytes": "5000000000", "memory/a/memory.usage_in_bytes": "500000000"},
            [4.5],
        ),
        ("0::/a", {}, []),
    ],
)
def test_the_memory_that_cgroups_leave(tmp_path, line, files, left):
    (tmp_path / "own").write_text(f"1:cpu:/other\n{line}\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert toolchain._cgroup_memory(tmp_path, tmp_path / "own") == left


def test_the_least_memory_counts(monkeypatch):
    monkeypatch.setattr(toolchain, "_available_memory", lambda: 100.0)
    monkeypatch.setattr(toolchain, "_cgroup_memory", lambda: [6.0, 20.0])
    assert toolchain.free_gigabytes() == 6.0


@pytest.mark.parametrize(
    "variable, value, reason",
    [("SLM_CUDA", "0", "SLM_CUDA=0"), ("CXX", "no-such-compiler", "no C++ compiler")],
)
def test_what_stands_against_cuda_is_named(tmp_path, monkeypatch, variable, value, reason):
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "bindings.cu").touch()
    monkeypatch.setattr(toolchain, "CSRC", tmp_path)
    monkeypatch.delenv("SLM_CUDA", raising=False)
    monkeypatch.setenv(variable, value)
    assert reason in toolchain.cuda_obstacle()


def test_the_source_hash_follows_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "CSRC", tmp_path)
    hashes = set()
    for name, text in (("a.h", "1"), ("a.h", "2"), ("b.h", "2")):
        (tmp_path / name).write_text(text)
        hashes.add(toolchain.source_hash())
    assert len(hashes) == 3 and all(len(found) == 16 for found in hashes)


@pytest.mark.skipif(toolchain.compiler() is None, reason="no compiler")
def test_flags_are_those_that_the_compiler_takes(monkeypatch):
    cxx = toolchain.compiler()
    assert not toolchain._accepts(cxx, "-march=no-such-processor")
    assert all(toolchain._accepts(cxx, *flags) for flags in toolchain.levels(cxx).values())
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "no-such-machine")
    assert toolchain.levels(cxx) == {}


@pytest.mark.parametrize("arguments", [["g++", "-g"], ["env", "g++"]])
def test_a_compiler_may_be_a_command_with_arguments(monkeypatch, tmp_path, arguments):
    monkeypatch.setenv("CXX", " ".join(arguments))
    assert toolchain.compiler() == arguments
    assert toolchain._accepts(arguments) and not toolchain._accepts(arguments, "-march=no-such-processor")
    assert Compiler(tmp_path).command == arguments


def fake_nvcc(home, release):
    """A toolkit whose nvcc says the release that it is of."""
    (fake_toolkit(home) / "bin" / "nvcc").write_text(
        f"#!/bin/sh\necho 'tools, release {release}, V{release}.1'\n"
    )
    return home


@pytest.mark.parametrize(
    "release, reason", [("12.8", "is CUDA 12.8, but torch was built for CUDA 13.0"), ("13.2", None)]
)
def test_a_toolkit_of_another_major_version_is_an_obstacle(tmp_path, monkeypatch, release, reason):
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path, release)))
    monkeypatch.delenv("SLM_CUDA", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    obstacle = toolchain.cuda_obstacle()
    assert (reason in obstacle) if reason else (obstacle is None)


def test_an_nvcc_that_does_not_run_is_an_obstacle(tmp_path, monkeypatch):
    (fake_toolkit(tmp_path) / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("SLM_CUDA", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "does not run" in toolchain.cuda_obstacle()


def test_debians_toolkit_is_found_through_its_link(tmp_path, monkeypatch):
    usr = fake_toolkit(tmp_path / "usr")
    (usr / "bin" / "nvcc").unlink()
    target = usr / "lib" / "nvidia-cuda-toolkit" / "bin" / "nvcc"  # without headers
    target.parent.mkdir(parents=True)
    target.touch(mode=0o755)
    (usr / "bin" / "nvcc").symlink_to(target)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(usr / "bin"))
    assert toolchain.cuda_home() == str(usr)


def test_codes_are_read_from_torchs_own_flags(monkeypatch):
    from torch.utils.cpp_extension import _get_cuda_arch_flags

    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Ampere;9.0a;10.0+PTX")
    codes = toolchain.compiled_codes(_get_cuda_arch_flags())
    assert set(codes) == {"sm_80", "sm_86", "compute_86", "sm_90a", "sm_100", "compute_100"}


def test_a_wheel_ships_presets_sources_and_ladder(tmp_path):
    """Without a compiler nothing is compiled, so this is quick; what setuptools copies is what a wheel holds."""
    steps = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "wheel")]
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *steps],
        cwd=ROOT,
        env={"CXX": "no-such-compiler", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    wanted = [*ROOT.glob("presets/**/*.toml"), *ROOT.glob("kernels/ladder/**/*.cu*")]
    wanted += [path for path in toolchain.CSRC.rglob("*") if path.is_file()]
    wanted += [ROOT / "train.py", ROOT / "sample.py", ROOT / "kernels/workbench/mutation/survivors.toml"]
    missing = [path for path in wanted if not (tmp_path / "wheel" / path.relative_to(ROOT)).is_file()]
    assert len(wanted) > 100 and missing == []


@pytest.mark.parametrize(
    "variable, value, message",
    [("MAX_JOBS", "many", "MAX_JOBS is"), ("SLM_CUDA", "1", "CUDA kernels cannot be built")],
)
@pytest.mark.skipif(toolchain.cuda_obstacle() is None, reason="CUDA can be built here")
def test_a_setting_that_cannot_be_kept_is_one_line(variable, value, message):
    environment = os.environ | {variable: value}
    command = [sys.executable, "setup.py", "--quiet", "--name"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.skipif(toolchain.compiler() is None, reason="no compiler")
@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="no folder that not even root may write to")
def test_a_tree_that_cannot_be_written_is_one_line():
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", "/sys/kernel/build"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot write /sys/kernel/build" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_without_a_compiler_setup_says_so_once_and_builds_nothing():
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--name"],
        cwd=ROOT,
        env={"CXX": "no-such-compiler", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("no C++ compiler") == 1


@pytest.mark.skipif(kernels.backends()["cpu"] != "available", reason="the CPU kernels are not built")
def test_the_kernels_run_on_torchs_threads_where_the_compiler_can():
    from kernels import _C

    assert (_C.THREADS == "torch's threads") == bool(toolchain.openmp_flags(toolchain.compiler()))


def test_a_binary_of_another_checkout_is_named(tmp_path):
    package = Path(toolchain.__file__).parent
    assert doctor.foreign(str(package / "_C.so")) == ""
    assert str(package) in doctor.foreign(str(tmp_path / "kernels" / "_C.so"))


@pytest.mark.skipif(kernels.backends()["cpu"] != "available", reason="the CPU kernels are not built")
def test_doctor_says_which_binary_is_loaded(capsys):
    command.main(["doctor"])
    shown = "".join(
        line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if "│" in line
    )
    from kernels import _C

    assert _C.__file__ in shown


def test_doctor_reports_every_op_and_every_fix(capsys):
    command.main(["doctor"])
    report = capsys.readouterr().out
    for name in ("torch", "compiler", "ninja", "nvcc", "GPU", "kernels._C", "causal_attention_qkvpacked"):
        assert name in report


def test_bench_writes_the_common_layout_and_a_plot(tmp_path, capsys):
    command.main(
        [
            "bench",
            "--device",
            "cpu",
            "--tiny",
            "--repeat",
            "1",
            "--json",
            f"{tmp_path}/b.json",
            "--plot",
            f"{tmp_path}/b.png",
        ]
    )
    written = json.loads((tmp_path / "b.json").read_text())
    assert set(written) == {"benchmark", "machine", "date", "rows"}
    names = {row["name"].split()[0] for row in written["rows"]}
    norms = {"layer_norm", "add_layer_norm", "rms_norm"}
    assert names == norms | {"causal_attention", "gelu", "swiglu", "linear_cross_entropy"}
    assert {"F.layer_norm", "reference", "SDPA math"} <= {row["peer"] for row in written["rows"]}
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in written["rows"])
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "say what to do"),
        (["fly"], "no command 'fly'"),
        (["bench", "--device", "tpu"], "device is 'tpu'"),
        (["bench", "--dtype", "int8"], "dtype is 'int8'"),
        (["bench", "--repeat", "0"], "repeat is 0"),
        (["bench", "--only", "convolution", "--device", "cpu"], "'convolution'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("name", ["90", "sm_12"])
def test_resources_of_what_is_no_architecture_are_refused(refused, monkeypatch, name):
    monkeypatch.setattr(toolchain, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(toolchain, "output", lambda *command: ["sm_80", "sm_90"])
    assert f"no architecture '{name}': choose among sm_80, sm_90" in refused(resources.main, name)


def test_resources_without_a_toolkit_say_what_to_install(refused, monkeypatch):
    monkeypatch.setattr(toolchain, "cuda_home", lambda: None)
    assert "set CUDA_HOME" in refused(resources.main, "sm_80")
