"""Answers are sampled with their own probabilities, end where they end, and are learned where they are."""

import dataclasses

import pytest
import torch

from alignment import rollouts
from alignment.rollouts import Rollouts, sample, token_log_probabilities, trimmed
from inference.chat import ChatTemplate, Message
from model import GPT, GPTConfig


@pytest.fixture(scope="module")
def template(chat) -> ChatTemplate:
    return ChatTemplate.load(chat)


@pytest.fixture
def gpt(template) -> GPT:
    return GPT(
        GPTConfig(vocab_size=template.tokenizer.vocab_size, block_size=48, n_layer=1, n_head=2, n_embd=32)
    ).eval()


@pytest.fixture
def prompts(template) -> list[list[int]]:
    return [template.prompt([Message("user", text)]) for text in ("Hi", "Tell me more", "Go on")] * 4


def favour(gpt: GPT, token: int, amount: float) -> None:
    """Make a token likelier everywhere, by a bias that the model lacks."""
    plain = gpt.logits
    one = torch.zeros(gpt.config.vocab_size)
    one[token] = amount
    gpt.logits = lambda hidden: plain(hidden) + one


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_recorded_log_probabilities_are_those_of_a_whole_pass_at_this_temperature(
    gpt, template, prompts, temperature
):
    found = sample(gpt, template, prompts, 20, temperature)
    with torch.no_grad():
        again = token_log_probabilities(gpt, found.ids, found.mask, temperature)
        other = token_log_probabilities(gpt, found.ids, found.mask, temperature + 0.3)
    assert torch.allclose(found.log_probabilities, again, atol=2e-5)
    assert not torch.allclose(found.log_probabilities, other, atol=1e-2)


def test_an_answer_is_learned_up_to_and_with_the_token_that_ends_it(gpt, template, prompts):
    favour(gpt, template.end_of_turn, 3.0)
    found = sample(gpt, template, prompts, 40, 1.0)
    assert found.finished.any()
    for row, prompt in enumerate(prompts):
        ids, learned = found.ids[row].tolist(), found.mask[row].nonzero()[:, 0].tolist()
        assert ids[: len(prompt)] == prompt
        assert learned == list(range(len(prompt), len(prompt) + len(learned)))  # from the very first token on
        answer = [ids[place] for place in learned]
        assert not set(answer[:-1]) & template.stops
        assert bool(found.finished[row]) == (answer[-1] in template.stops)
        assert found.answers[row] == template.text(answer)
        assert not any(ids[learned[-1] + 1 :])


def test_an_answer_that_is_cut_off_says_so(gpt, template, prompts):
    favour(gpt, template.end_of_turn, -100.0)
    favour(gpt, template.end_of_text, -100.0)
    found = sample(gpt, template, prompts, 5, 1.0)
    assert not found.finished.any() and found.lengths.tolist() == [5] * len(prompts)


def test_a_row_ends_at_the_context_and_no_token_is_forgotten(gpt, template):
    favour(gpt, template.end_of_turn, -100.0)
    favour(gpt, template.end_of_text, -100.0)
    short, long = template.prompt([Message("user", "Hi")]), list(range(1, 41))
    found = sample(gpt, template, [short, long], 100, 1.0)
    assert (found.lengths + torch.tensor([len(short), len(long)])).tolist() == [48, 48]


def test_a_prompt_that_fills_the_context_is_refused_and_not_cut(gpt, template):
    with pytest.raises(ValueError, match="a prompt of 48 tokens leaves no room"):
        sample(gpt, template, [list(range(48))], 5, 1.0)


def test_one_row_does_not_change_another_in_the_next_pass(gpt, template, prompts, monkeypatch):
    """Rows are divided into passes for memory's sake; greedily, each answer is what it is alone."""
    monkeypatch.setattr(rollouts, "ROWS", 5)
    together = sample(gpt, template, prompts, 10, 0.0)
    alone = [sample(gpt, template, [prompt], 10, 0.0).answers[0] for prompt in prompts]
    assert together.answers == alone


def test_dropout_is_off_while_sampling(gpt, template, prompts):
    noisy = GPT(dataclasses.replace(gpt.config, dropout=0.5)).train()
    noisy.load_state_dict(gpt.state_dict())
    found = sample(noisy, template, prompts, 10, 1.0)
    with torch.no_grad():
        again = token_log_probabilities(gpt, found.ids, found.mask, 1.0)
    assert torch.allclose(found.log_probabilities, again, atol=2e-5) and noisy.training


def test_an_off_by_one_in_the_mask_is_caught(gpt, template, prompts):
    found = sample(gpt, template, prompts, 20, 1.0)
    moved = found.mask.roll(-1, 1)  # the last token of the prompt, but not the one that ends the answer
    with torch.no_grad():
        again = token_log_probabilities(gpt, found.ids, moved, 1.0)
    assert not torch.allclose(found.log_probabilities, again, atol=1e-2)


def test_padding_that_all_rows_share_is_cut_to_few_different_widths():
    mask = torch.zeros(2, 96, dtype=torch.long)
    mask[0, 3], mask[1, 3:40] = 1, 1
    rows = Rollouts(
        torch.ones(2, 96, dtype=torch.long), mask, torch.zeros(2, 96), torch.ones(2), torch.zeros(2)
    )
    part = trimmed(rows)
    assert part.ids.shape == part.mask.shape == (2, 64) and part.finished.shape == (2,)
    assert torch.equal(part.mask, mask[:, :64])
