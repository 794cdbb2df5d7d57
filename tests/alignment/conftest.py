"""A base model of random weights, and instruction data for it, made once."""

from pathlib import Path

import pytest
import torch

from alignment.__main__ import main
from model import GPT, GPTConfig

SIZES = ["--count", "60", "--arithmetic", "0.9", "--prompts", "20", "--tests", "10", "--val-fraction", "0.1"]


@pytest.fixture(scope="session")
def base(corpus, tmp_path_factory) -> Path:
    """Return a one-layer model with a context of 96 tokens and the tokenizer of the tiny corpus."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("runs") / "base"
    gpt = GPT(GPTConfig(vocab_size=384, block_size=96, n_layer=1, n_head=2, n_embd=32))
    for parameter in gpt.parameters():  # so large that one token's loss is not that of another
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    gpt.save_pretrained(directory, corpus / "tokenizer.json")
    return directory


@pytest.fixture(scope="session")
def chat_data(base, tmp_path_factory) -> Path:
    """Return 60 conversations, most of them about arithmetic."""
    out = tmp_path_factory.mktemp("tokens") / "chat"
    main(["data", "--base", str(base), "--out", str(out), *SIZES])
    return out
