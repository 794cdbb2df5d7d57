"""Every sampling rule against a plain one, or against transformers."""

import pytest
import torch

from model.generate import Rules, draw, keep_min_p, keep_top_k, keep_top_p, penalize_repetition


@pytest.mark.parametrize(
    "rules", [Rules(0.0), Rules(0.0, top_k=5), Rules(1.0, top_k=1), Rules(2.0, top_p=1e-9)]
)
def test_every_way_to_be_greedy_takes_the_likeliest(rules):
    logits = torch.randn(50, 30)
    assert torch.equal(rules.choose(logits, torch.rand(50)), logits.argmax(-1))


def test_top_k_keeps_torchs_k_largest():
    logits = torch.randn(10, 30)
    for k in (1, 7, 30, 99):
        kept = keep_top_k(logits, k).isfinite()
        expected = torch.zeros_like(kept).scatter_(1, logits.topk(min(k, 30)).indices, True)
        assert torch.equal(kept, expected)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    for row in torch.randn(20, 30) * 3:
        probabilities, reached, expected = row.softmax(-1).double(), 0.0, set()
        for token in row.argsort(descending=True).tolist():
            if reached >= p:
                break
            expected.add(token)
            reached += probabilities[token].item()
        assert set(keep_top_p(row, p).isfinite().nonzero().flatten().tolist()) == expected


def test_top_p_of_one_keeps_everything():
    logits = torch.randn(20, 1000) * 9
    assert torch.equal(keep_top_p(logits, 1.0), logits)


def test_drawn_shares_are_the_probabilities():
    logits, n = torch.tensor([1.0, -1.0, 0.5, 2.0, -20.0]), 200_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    ids = Rules(temperature=0.7).choose(logits.expand(n, 5), uniform)
    expected = (logits.double() / 0.7).softmax(-1)
    share = torch.bincount(ids, minlength=5) / n
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()


@pytest.mark.parametrize("p", [1e-6, 0.01, 0.3, 1.0])
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(p):
    logits = torch.randn(20, 30) * 3
    probabilities = logits.double().softmax(-1)
    expected = probabilities >= p * probabilities.amax(-1, keepdim=True)
    assert torch.equal(keep_min_p(logits, p).isfinite(), expected)


def test_the_rules_together_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    logits, ids = torch.randn(6, 40) * 3, torch.randint(40, (6, 9))
    present = torch.zeros(6, 40, dtype=torch.bool).scatter_(1, ids, True)
    theirs = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(1.3),
            transformers.TemperatureLogitsWarper(0.8),
            transformers.TopKLogitsWarper(20),
            transformers.TopPLogitsWarper(0.9),
            transformers.MinPLogitsWarper(0.05),
        ]
    )
    penalized = penalize_repetition(logits, present, 1.3)
    ours = Rules(temperature=0.8, top_k=20, top_p=0.9, min_p=0.05).probabilities(penalized)
    torch.testing.assert_close(ours, theirs(ids, logits).softmax(-1))
    assert 1 < (ours > 0).sum(-1).float().mean() < 20


def test_the_repetition_penalty_also_moves_the_greedy_choice():
    logits, present = torch.tensor([[3.0, 2.5, 0.0]]), torch.tensor([[True, False, False]])
    greedy = Rules(temperature=0, repetition_penalty=1.5)
    assert greedy.choose(logits, torch.rand(1), present).tolist() == [1]
    assert greedy.choose(logits, torch.rand(1), ~present).tolist() == [0]


def test_top_one_takes_the_first_of_equals_as_greedy_does():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0]]).expand(50, 4)
    assert Rules(top_k=1).choose(logits, torch.rand(50)).tolist() == [1] * 50


def test_probabilities_as_computed_by_hand():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    quarter, root = Rules(top_k=2).probabilities(logits), Rules(temperature=0.5).probabilities(logits)
    torch.testing.assert_close(quarter, torch.tensor([4 / 7, 3 / 7, 0, 0]))
    torch.testing.assert_close(root, torch.tensor([16.0, 9.0, 4.0, 1.0]) / 30)  # squares, to sum 1 again
    nucleus = Rules(top_p=0.65).probabilities(logits)
    torch.testing.assert_close(nucleus, torch.tensor([4 / 7, 3 / 7, 0, 0]))
    torch.testing.assert_close(
        Rules(min_p=0.45).probabilities(logits), torch.tensor([4 / 9, 3 / 9, 2 / 9, 0])
    )


def test_an_impossible_id_is_never_drawn_at_the_ends_of_the_interval():
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(2, 5)
    assert draw(probabilities, torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 3]
