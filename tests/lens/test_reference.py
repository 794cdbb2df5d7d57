"""A public model with all its intermediates: llm-viz's gpt-nano that sorts three letters, reproduced to 1e-5.

Its two files are not ours to copy. By hand: git clone https://github.com/bbycroft/llm-viz, then
SLM_LLM_VIZ=llm-viz/public python -m pytest -m slow tests/lens/test_reference.py
"""

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lens import export
from model import GPT, GPTConfig
from tests.lens.asking import ask

FOLDER = os.environ.get("SLM_LLM_VIZ")
FIRST = {
    "ln1": "attentionRead",
    "y": "heads",
    "yProj": "attentionOut",
    "attnResid": "middle",
    "ln2": "mlpRead",
}
FIRST |= {"gelu": "hidden", "mlp": "mlpOut", "mlpResid": "stream", "block0": "stream"}


def tensors(name: str) -> dict[str, Tensor]:
    """Return the tensors of one of its files."""

    def tensor(value: dict[str, Any]) -> Tensor:
        array = np.frombuffer(base64.b64decode(value["data"]), np.float32)
        return torch.from_numpy(array.copy()).view(value["shape"])

    content = json.loads((Path(FOLDER) / f"{name}.json").read_text())
    return {key: tensor(value) for key, value in content.items() if key != "config"}


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="SLM_LLM_VIZ does not name the folder of llm-viz's files")
def test_every_intermediate_of_llm_viz(tokenizer, tmp_path):
    weights, partials = tensors("gpt-nano-sort-model"), tensors("gpt-nano-sort-t0-partials")
    state = {
        name.removeprefix("transformer."): value
        for name, value in weights.items()
        if ".attn.bias" not in name
    }
    config = GPTConfig(vocab_size=3, block_size=11, n_layer=3, n_head=3, n_embd=48, tied_head=False)
    gpt = GPT(config)
    gpt.load_state_dict(state)
    head, _ = export.payload(gpt, tokenizer, tmp_path)
    blob = export.Blob()  # in float32: the reference did not round
    head |= {"tensors": [blob.add(name, value.numpy()) for name, value in state.items()]}
    for row in range(3):
        ids = partials["idx"][row].int().tolist()
        wanted = {("embedding", None): partials["x"][row], ("final", None): partials["ln_f"][row]}
        wanted |= {("logits", None): partials["lm_head"][row], ("weights", 0): partials["attSm"][row]}
        wanted |= {(name, 0): partials[theirs][row] for theirs, name in FIRST.items()}
        wanted |= {("stream", layer): partials[f"block{layer}"][row] for layer in (1, 2)}
        wanted |= {("q", 0): partials["q"][row].transpose(0, 1), ("k", 0): partials["k"][row].transpose(0, 1)}
        asks = [("part", {"name": name, "layer": layer}) for name, layer in wanted]
        found = ask(head, blob.bytes(), ("analyse", {"ids": ids}), *asks)[2:]
        for (name, layer), ours in zip(wanted, found, strict=True):
            theirs = wanted[name, layer].flatten()
            torch.testing.assert_close(
                torch.tensor(ours["values"]), theirs, atol=1e-5, rtol=1e-5, msg=f"{name} {layer}"
            )
