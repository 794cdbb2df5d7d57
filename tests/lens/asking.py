"""Ask the page's own modules, run by node without a browser, about small models."""

import base64
import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from lens import export
from model import GPT, GPTConfig

NODE = shutil.which("node")
HARNESS = Path(__file__).with_name("harness.mjs")
SMALL = {"vocab_size": 300, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}


def ask(
    head: dict[str, Any], data: bytes, *asks: tuple[str, dict[str, Any]], assisted: bool = False
) -> list[Any]:
    """Return what the page's worker answers: first what `ready` says, then the answer to each (name, options).

    With a second worker to assist it, last how often that was asked to read.
    """
    if NODE is None:
        pytest.skip("there is no node to run the page's modules")
    text = json.dumps(
        {
            "head": {**head, "bytes": len(data)},
            "data": base64.b64encode(data).decode(),
            "asks": asks,
            "assisted": assisted,
        }
    )
    done = subprocess.run([NODE, HARNESS], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def small(seed: int = 0, **changes: Any) -> GPT:
    """Return a small model whose biases, scales and norms are drawn too, so that no part of it is the identity."""
    torch.manual_seed(seed)
    gpt = GPT(GPTConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(6 if parameter.dim() == 2 else 1).add_(0.1 * torch.randn_like(parameter))
    return gpt


def as_rounded(gpt: GPT, precision: export.Precision) -> GPT:
    """Return the model with the weights that the page has."""
    other = GPT(dataclasses.replace(gpt.config)).eval()
    other.load_state_dict(export.rounded(gpt.state_dict(), precision))
    return other
