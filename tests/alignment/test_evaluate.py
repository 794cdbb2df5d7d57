"""Runs answer the same prompts; a model that answers right passes, and the base is prompted as is."""

import json

import pytest
import torch

from alignment import evaluate
from alignment.__main__ import main
from alignment.instructions import read_prompts
from inference.chat import ChatTemplate
from model import GPT


@pytest.fixture
def aligned(base, chat_data, tmp_path):
    """Return a run with a chat template and random weights."""
    run = tmp_path / "run"
    template = ChatTemplate.load(chat_data)
    gpt = GPT.from_pretrained(base).with_vocabulary(template.tokenizer.vocab_size)
    gpt.save_pretrained(run / "best")
    template.save(run, 96)
    (run / "log.jsonl").write_text('{"step": 0, "reward": 0.5}\n{"step": 1, "reward": 0.7}\n')
    return run


def test_figures_of_two_runs(base, chat_data, aligned, capsys):
    flags = ["--data", str(chat_data), "--base", str(base), "--prompts", "3", "--samples", "2"]
    main(["evaluate", str(base), str(aligned), *flags])
    found = json.loads((aligned / "alignment.json").read_text())
    assert list(found) == [str(base), str(aligned)]
    figures = found[str(aligned)]["figures"]
    assert figures["test: pass@1"] == figures["arithmetic: pass@2"] == 0
    assert figures["KL from the base, nats per token"] != 0
    assert (aligned / "alignment.png").stat().st_size > 0
    assert "pass@1" in capsys.readouterr().out


def test_right_answers_pass(base, chat_data, monkeypatch):
    answerer = evaluate.Answerer(base, "cpu")
    prompts = read_prompts(chat_data / "prompts" / "arithmetic.jsonl")
    options = evaluate.Evaluate(runs=(base,), data=chat_data, base=base, samples=2)
    monkeypatch.setattr(evaluate, "verify", lambda text, check: {"answer": "" if check["a"] % 2 else "wrong"})
    share = sum(prompt.check["a"] % 2 for prompt in prompts) / len(prompts)
    assert evaluate.sampled(answerer, prompts, options) == pytest.approx(share)


def test_the_base_is_prompted_with_the_text(base, chat_data):
    answerer = evaluate.Answerer(base, "cpu")
    prompt = read_prompts(chat_data / "prompts" / "arithmetic.jsonl")[0]
    text = answerer.text_model.tokenizer.decode(answerer.prompt(prompt.messages))
    assert text == f"<|endoftext|>{prompt.messages[0].content}\n\n"


def test_a_model_is_at_no_distance_from_itself(base, chat_data, monkeypatch):
    answerer = evaluate.Answerer(base, "cpu")
    end = answerer.text_model.end
    monkeypatch.setattr(answerer, "prompt", lambda messages: [end])
    options = evaluate.Evaluate(runs=(base,), data=chat_data, base=base)
    prompts = read_prompts(chat_data / "prompts" / "arithmetic.jsonl")
    assert evaluate.distance(answerer, answerer.text_model, prompts, options) == pytest.approx(0, abs=1e-6)


def test_pass_at_k_counts_the_draws_without_replacement():
    draws = torch.combinations(torch.tensor([1, 1, 0, 0, 0]), 3)
    assert evaluate.pass_at_k(5, 2, 3) == pytest.approx(draws.any(1).float().mean().item())


@pytest.mark.parametrize("flags", ["--prompts 0", "--judge http://x", "--samples -1"])
def test_impossible_options_are_refused(base, refused, flags):
    assert flags.split()[0] in refused(main, "evaluate", str(base), *flags.split())
