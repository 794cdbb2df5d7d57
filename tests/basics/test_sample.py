"""basics/sample.py by its definitions, and model/generate.py against it."""

import pytest
import torch

import model
from basics import gpt, sample
from model import generate
from model.generate import Rules


@pytest.fixture
def plain():
    made = gpt.GPT(gpt.GPTConfig(61, 16, 2, 4, 32)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, 100])
def test_probabilities_are_those_of_the_fast_rules(temperature, top_k):
    logits = torch.randn(30)
    ours = sample.probabilities(logits, temperature, top_k)
    torch.testing.assert_close(ours, Rules(temperature=temperature, top_k=top_k).probabilities(logits))
    assert ours.sum().item() == pytest.approx(1)


def test_temperature_zero_is_the_likeliest():
    assert sample.probabilities(torch.tensor([1.0, 3.0, 2.0]), 0, None).tolist() == [0, 1, 0]


def test_greedy_text_is_that_of_the_fast_model(plain):
    """Up to the end of the context: beyond it the fast model forgets half at once, this one an id at a time."""
    fast = model.GPT(model.GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=4, n_embd=32))
    fast.load_state_dict({**plain.state_dict(), "lm_head.weight": plain.wte.weight})
    expected = list(generate.stream(fast, [1, 2, 3], 13, temperature=0))
    assert sample.generate(plain, [1, 2, 3], 13, temperature=0) == expected


def test_the_same_seed_writes_the_same_text_past_the_context(plain):
    first, again, other = (sample.generate(plain, [1], 40, seed=seed) for seed in (3, 3, 4))
    assert len(first) == 40 and first == again != other
    assert sample.generate(plain, [1], 0) == []
