"""Generation against a loop without a cache, and every sampling rule against a plain one."""

import pytest
import torch

from model.generate import KVCache, Rules, context_start, draw, generate_batch, keep_top_k, keep_top_p, stream


def without_cache(gpt, ids, count):
    """The likeliest next id, `count` times, each from the whole context."""
    said = list(ids)
    for _ in range(count):
        context = said[context_start(len(said), gpt.config.block_size) :]
        said.append(gpt(torch.tensor([context]))[0][0, -1].argmax().item())
    return said[len(ids) :]


def test_the_cache_changes_no_greedy_token_even_past_the_context(tiny, variant, attention):
    gpt = tiny(**{**variant, "attention": attention, "tied_head": False}).eval()
    with torch.no_grad():
        for block in gpt.h:  # small weights and a tied head would only repeat the prompt's last id
            block.attn.c_attn.weight.mul_(20)
            block.attn.c_proj.weight.mul_(20)
        expected = without_cache(gpt, [1, 2, 3], 60)
    assert list(stream(gpt, [1, 2, 3], 60, temperature=0)) == expected
    assert len(set(expected)) > 3


def test_cached_logits_equal_those_of_a_whole_forward_pass(tiny, batch, variant):
    gpt, idx = tiny(**variant).eval(), batch[0]
    cache = KVCache(gpt, rows=3, length=32)
    with torch.no_grad():
        whole = gpt(idx)[0]
        first = cache.read(idx[:, :20].tolist(), [0, 0, 0], range(3))
        torch.testing.assert_close(first, whole[:, 19], rtol=1e-4, atol=1e-4)
        for at in range(20, 32):
            step = cache.read(idx[:, at : at + 1].tolist(), [at] * 3, range(3))
            torch.testing.assert_close(step, whole[:, at], rtol=1e-4, atol=1e-4)


def test_prompts_of_different_lengths_are_each_continued_as_if_alone(tiny, variant):
    gpt = tiny(**variant)
    prompts = [[5], [7, 8, 9, 10], list(range(30)), [2, 3]]
    together = generate_batch(gpt, prompts, 40, temperature=0.9, seed=11)
    alone = [list(stream(gpt, p, 40, temperature=0.9, seed=11 + i)) for i, p in enumerate(prompts)]
    assert together == alone


def test_rows_end_at_a_stop_id_and_the_others_go_on(tiny):
    gpt = tiny()
    prompts = [[i] for i in range(40)]
    free = generate_batch(gpt, prompts, 50, seed=3)
    stopped = generate_batch(gpt, prompts, 50, stop=(4, 17), seed=3)
    for long, short in zip(free, stopped, strict=True):
        end = next((i for i, token in enumerate(long) if token in (4, 17)), 50)
        assert short == long[:end]
    assert {len(row) for row in stopped} != {50}
    assert stopped[0] == list(stream(gpt, [0], 50, stop={4, 17}, seed=3))


def test_a_seed_decides_and_no_seed_leaves_it_to_torch(tiny):
    gpt = tiny()
    assert list(stream(gpt, [1], 20, seed=5)) == list(stream(gpt, [1], 20, seed=5))
    assert list(stream(gpt, [1], 20, seed=5)) != list(stream(gpt, [1], 20, seed=6))
    torch.manual_seed(0)
    first = list(stream(gpt, [1], 20))
    assert first != list(stream(gpt, [1], 20))
    torch.manual_seed(0)
    assert first == list(stream(gpt, [1], 20))


def test_generation_leaves_the_model_in_the_mode_it_was_in(tiny):
    gpt = tiny(dropout=0.5).train()
    tokens = stream(gpt, [1], 5, temperature=0)
    next(tokens)
    tokens.close()
    assert gpt.training
    assert list(stream(gpt, [1], 5, temperature=0)) == list(stream(gpt.eval(), [1], 5, temperature=0))
    assert not gpt.training


@pytest.mark.parametrize(
    "rules", [Rules(0.0), Rules(0.0, top_k=5), Rules(1.0, top_k=1), Rules(2.0, top_p=1e-9)]
)
def test_greedy_by_every_road(rules):
    logits = torch.randn(50, 30)
    assert torch.equal(rules.choose(logits, torch.rand(50)), logits.argmax(-1))


def test_top_k_keeps_torchs_k_largest():
    logits = torch.randn(10, 30)
    for k in (1, 7, 30, 99):
        kept = keep_top_k(logits, k).isfinite()
        expected = torch.zeros_like(kept).scatter_(1, logits.topk(min(k, 30)).indices, True)
        assert torch.equal(kept, expected)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    for row in torch.randn(20, 30) * 3:
        probabilities, reached, expected = row.softmax(-1).double(), 0.0, set()
        for token in row.argsort(descending=True).tolist():
            if reached >= p:
                break
            expected.add(token)
            reached += probabilities[token].item()
        assert set(keep_top_p(row, p).isfinite().nonzero().flatten().tolist()) == expected


def test_drawn_shares_are_the_probabilities():
    logits, n = torch.tensor([1.0, -1.0, 0.5, 2.0, -20.0]), 200_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    ids = Rules(temperature=0.7).choose(logits.expand(n, 5), uniform)
    expected = (logits.double() / 0.7).softmax(-1)
    share = torch.bincount(ids, minlength=5) / n
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()


def test_an_impossible_id_is_never_drawn_at_the_ends_of_the_interval():
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(2, 5)
    assert draw(probabilities, torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 3]


def test_the_context_slides_by_halves():
    for block_size in (1, 2, 5, 8):
        for tokens in range(1, 40):
            visible = tokens - context_start(tokens, block_size)
            assert block_size // 2 <= visible <= block_size or visible == tokens


@pytest.mark.parametrize(
    "ids, options, message",
    [
        ([], {}, "the prompt has 0 tokens, the model reads 1 to 32"),
        ([1] * 33, {}, "the prompt has 33 tokens"),
        ([1, 61], {}, "the prompt holds ids outside the vocabulary of 61: 61"),
        ([1], {"temperature": -0.1}, "temperature is -0.1"),
        ([1], {"temperature": float("nan")}, "temperature is nan"),
        ([1], {"top_k": 0}, "top_k is 0"),
        ([1], {"top_p": 0.0}, "top_p is 0.0"),
        ([1], {"top_p": 1.1}, "top_p is 1.1"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens is -1"),
    ],
)
def test_bad_requests_are_named_before_anything_is_said(tiny, ids, options, message):
    with pytest.raises(ValueError, match=message):
        stream(tiny(), ids, **{"max_new_tokens": 3, **options})
    with pytest.raises(ValueError, match=message):
        generate_batch(tiny(), [[1], ids], **{"max_new_tokens": 3, **options})


def test_nothing_asked_for_is_nothing_said(tiny):
    assert generate_batch(tiny(), [], 5) == []
    assert generate_batch(tiny(), [[1], [2]], 0) == [[], []]
