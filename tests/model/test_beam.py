"""Beam search against exhaustive search and against transformers."""

import itertools

import pytest
import torch

from model.beam import beam_search
from model.generate import stream


def every_continuation(gpt, ids, steps, stop):
    """(ids, log P, ended) of all continuations of at most `steps` ids, by one forward pass for each."""
    found = {}
    for written in itertools.product(range(gpt.config.vocab_size), repeat=steps):
        cut = written[: written.index(stop) + 1] if stop in written else written
        with torch.no_grad():
            log_p = gpt(torch.tensor([[*ids, *cut]]))[0][0].double().log_softmax(-1)
        found[cut] = sum(log_p[len(ids) - 1 + i, token].item() for i, token in enumerate(cut))
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_with_beams_enough_it_finds_the_likeliest_of_all(tiny, length_penalty):
    gpt = tiny(vocab_size=5).eval()
    with torch.no_grad():
        gpt.wte.weight.mul_(30)
    everything = every_continuation(gpt, [1, 2], 3, stop=4)
    expected = sorted(everything, key=lambda c: everything[c] / len(c) ** length_penalty, reverse=True)
    found = beam_search(gpt, [1, 2], 3, beams=200, length_penalty=length_penalty, stop=4)
    assert len(found) == len(everything)
    assert [tuple(beam.ids) + (4,) * beam.ended for beam in found] == expected
    for beam, ids in zip(found, expected, strict=True):
        assert beam.log_probability == pytest.approx(everything[ids], abs=1e-4)


def test_one_beam_is_greedy(tiny, variant):
    gpt = tiny(**variant)
    with torch.no_grad():
        gpt.wte.weight.mul_(10)
    greedy = list(stream(gpt, [1, 2, 3], 20, temperature=0))
    assert [beam.ids for beam in beam_search(gpt, [1, 2, 3], 20, beams=1)] == [greedy]
    stopped = list(stream(gpt, [1, 2, 3], 20, temperature=0, stop=greedy[5]))
    assert [beam.ids for beam in beam_search(gpt, [1, 2, 3], 20, beams=1, stop=greedy[5])] == [stopped]


def test_beams_are_those_of_transformers(tiny, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = tiny().eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ours.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    prompt = torch.tensor([[1, 2, 3]])
    written = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, num_beams=5, do_sample=False,
        num_return_sequences=5, pad_token_id=0,
    )  # fmt: skip
    assert [beam.ids for beam in beam_search(ours, [1, 2, 3], 12, beams=5)] == written[:, 3:].tolist()


@pytest.mark.parametrize(
    "ids, options, message",
    [
        ([1], {"beams": 0}, "beams is 0"),
        ([1] * 30, {}, "do not fit into the context of 32"),
        ([], {}, "0 tokens"),
    ],
)
def test_bad_requests_are_named(tiny, ids, options, message):
    with pytest.raises(ValueError, match=message):
        beam_search(tiny(), ids, 3, **options)
