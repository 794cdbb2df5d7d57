"""The GPT as a whole: shapes, causality, gradients, its first loss, and what it refuses."""

import math

import pytest
import torch

from model import GPT, GPTConfig


def tiny(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=61, block_size=32, n_layer=2, n_head=2, n_embd=32, **changes))


def test_logits_for_all_positions_and_a_first_loss_near_that_of_guessing():
    gpt = tiny()
    idx, targets = torch.randint(61, (2, 2, 32))
    logits, loss = gpt(idx)
    assert logits.shape == (2, 32, 61) and loss is None
    assert gpt(idx, targets)[1].item() == pytest.approx(math.log(61), abs=0.1)
