"""The commands of docs/alignment.md run one after another, each on what the one before it left."""

import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from alignment.__main__ import main

PAGE = (Path(__file__).parents[2] / "docs" / "alignment.md").read_text(encoding="utf-8").replace("\\\n", "")
COMMANDS = re.findall(
    r"python -m alignment ([^#&\n`]+)", "\n".join(re.findall(r"^    .*$", PAGE, re.MULTILINE))
)
STEP = "--steps 1 --eval-every 1 --eval-batches 1 --warmup-steps 0"
SAMPLED = "--questions 2 --group 2 --minibatches 1 --max-new-tokens 8 --held-out 2 --overwrite"
SHORT = {  # flags that make a command small
    "data": "--count 60 --arithmetic 0.9 --prompts 20 --tests 10 --val-fraction 0.1",
    "sft": STEP,
    "best-of": "--steps 1 --count 20 --group 4 --max-new-tokens 8 --reward odd.py:reward",
    "grpo": f"{STEP} {SAMPLED}",
    "pairs": "--count 8 --group 4 --max-new-tokens 8 --reward odd.py:reward",
    "dpo": f"{STEP} --held-out 2",
    "rate": "",
}
# What a model says that has learned nothing passes no check; every other of its answers passes this one.
ODD = "def reward(prompts, answers, checks):\n    return [float(len(answer) % 2) for answer in answers]\n"


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_turn(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    shutil.copytree(base, "runs/quickstart")
    Path("odd.py").write_text(ODD)
    main(["data", *SHORT["data"].split()])
    for command in COMMANDS:
        name, *flags = shlex.split(command)
        main([name, *flags, *SHORT[name].split()])
    assert Path("runs/grpo/report.json").exists() and Path("runs/dpo/report.json").exists()
