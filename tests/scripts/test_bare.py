"""The stand-in for tyro reads command lines as tyro does."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import sample
from benchmarks import step
from data.prepare import Prepare
from kernels.ladder import measure as ladder
from kernels.workbench import bench, resources, smoke
from model import GPTConfig
from training.config import Everyday, Hardware, Monitoring, Optimization, TrainConfig, flags_class

ROOT = Path(__file__).parents[2]
BARE = ROOT / "scripts" / "bare"
Flags = flags_class({**TrainConfig.everyday, **TrainConfig.advanced, "model": GPTConfig}, "Train.")
TINY = Flags(Everyday(), Optimization(), Hardware(), Monitoring(), GPTConfig.preset("quickstart"))


@pytest.fixture(scope="module")
def bare():
    """Return the stand-in, imported under another name than tyro's."""
    spec = importlib.util.spec_from_file_location("bare", BARE / "tyro.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LINES = [
    (bench.Options, "--device cpu --repeat 3 --only layer --compile --json out.json"),
    (bench.Options, ""),
    (smoke.Options, "--device emulated"),
    (step.Options, "--models tiny --nanogpt some/where --json x.json"),
    (resources.Options, ""),
    (resources.Options, "sm_80 sm_90"),
    (ladder.Options, "attention_forward --repeat 3"),
    (ladder.Options, "--repeat 3"),
    (ladder.Options, "attention"),
    (Prepare, "--source stories --stories-bytes 1000 --vocab-size 300 --out some/where"),
    (Prepare, "--source text:a.txt text:b.txt --out some/where"),
    (sample.SampleConfig, "--run a/b --num-samples 2 --seed 7 --top-k 5 --temperature 0.8 --stop x"),
    (sample.SampleConfig, "--prompt_file a.txt --no-ignore-eot --top-k None"),
    (Flags, "--n-layer 2"),
    (Flags, "--steps 5 --run r --overwrite --precision bfloat16 --kernels fused --n-layer 3 --no-bias"),
    (Flags, "--micro-batch auto --data d --learning-rate 1e-2 --no-tf32 --window 7"),
    (Flags, "--micro-batch 4 --eval-every 2"),
    (Flags, "--micro-batch some"),
    (Flags, "--precision float8"),
    (Flags, "--steps many"),
    (Flags, "--stepz 5"),
    (Flags, "5"),
]


@pytest.mark.parametrize(
    "options, line", LINES, ids=lambda value: value if isinstance(value, str) else value.__name__
)
def test_it_reads_what_tyro_reads_and_refuses_what_tyro_refuses(bare, options, line, capsys):
    known = {"default": TINY} if options is Flags else {}

    def read(module):
        try:
            return module.cli(options, args=line.split(), prog="test", **known)
        except SystemExit as stop:
            return stop.code
        except (ValueError, OSError):
            return 2  # of the dataclass itself: tyro's way to say so is an exit, common/cli.py's too

    assert read(bare) == read(tyro)


def with_it(*arguments: str) -> subprocess.CompletedProcess:
    """Run Python with the stand-in in tyro's place."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (BARE, ROOT)))}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )


def test_every_command_can_be_imported_and_a_mistake_is_still_one_line():
    commands = (
        "train, sample, data.__main__, bpe.__main__, model.__main__, training.__main__, kernels.__main__"
    )
    code = f"import {commands}, tyro; print(tyro.__file__); kernels.__main__.main(['bench', '--repeat', 'x'])"
    done = with_it("-c", code)
    assert done.stdout.strip() == str(BARE / "tyro.py")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: argument --repeat: 'x' is not ")
