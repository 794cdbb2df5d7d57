"""Generation against a loop without a cache, alone and in batches."""

import itertools

import pytest
import torch

from model import generate
from model.beam import beam_search
from model.cache import KVCache, context_start
from model.generate import Generation, Rules, generate_batch, stream


def without_cache(gpt, ids, count):
    """Return the likeliest next id, `count` times, each from the whole context."""
    written = list(ids)
    for _ in range(count):
        context = written[context_start(len(written), gpt.config.block_size) :]
        written.append(gpt(torch.tensor([context]))[0][0, -1].argmax().item())
    return written[len(ids) :]


def test_the_cache_changes_no_greedy_token_even_past_the_context(tiny, variant, each_kernel):
    gpt = tiny(**{**variant, "tied_head": False}).eval()
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


def test_equal_prompts_are_read_once_and_continued_each_by_its_own_seed(tiny, variant, monkeypatch):
    gpt, read = tiny(**variant), []
    true = KVCache.read
    monkeypatch.setattr(KVCache, "read", lambda *args: read.append(len(args[1])) or true(*args))
    prompts = [[7, 8, 9], [5], [7, 8, 9], [7, 8, 9], [5]]
    together = generate_batch(gpt, prompts, 40, temperature=0.9, seed=11)
    assert read[:2] == [2, 5]
    assert together == [list(stream(gpt, p, 40, temperature=0.9, seed=11 + i)) for i, p in enumerate(prompts)]


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


def test_each_row_may_have_a_seed_of_its_own(tiny):
    gpt = tiny()
    rows = generate_batch(gpt, [[1], [1], [2]], 20, seed=[8, 5, 8])
    assert rows == [list(stream(gpt, [id], 20, seed=seed)) for id, seed in ((1, 8), (1, 5), (2, 8))]
    with pytest.raises(ValueError, match="there are 2 seeds for 3 prompts"):
        generate_batch(gpt, [[1], [1], [2]], 20, seed=[8, 5])


def test_the_repetition_penalty_knows_prompt_and_text_even_past_the_context(tiny):
    transformers = pytest.importorskip("transformers")
    gpt, written = tiny(block_size=8).eval(), [3, 4]
    penalize = transformers.RepetitionPenaltyLogitsProcessor(1.2)
    for _ in range(30):
        with torch.no_grad():
            logits = gpt(torch.tensor([written[context_start(len(written), 8) :]]))[0][:, -1]
        written.append(penalize(torch.tensor([written]), logits).argmax().item())
    assert list(stream(gpt, [3, 4], 30, temperature=0, repetition_penalty=1.2)) == written[2:]
    assert written[2:] != list(stream(gpt, [3, 4], 30, temperature=0))


@pytest.mark.parametrize("rules", [Rules(0.8), Rules(1.3, top_k=3, repetition_penalty=1.4), Rules(0.0)])
def test_recorded_is_how_likely_each_id_was_by_the_rules_that_drew_it(tiny, rules):
    gpt = tiny().eval()
    generation = Generation(gpt, [[3, 4], [5]], 6, rules=rules, seed=2, record=True)
    list(generation)
    found = generation.log_probabilities()
    for row, start in enumerate((2, 1)):
        ids = generation.ids[row]
        for step in range(6):
            before = ids[: start + step]
            with torch.no_grad():
                logits = gpt(torch.tensor([before]))[0][0, -1].double()
            for id in set(before) if rules.repetition_penalty != 1 else ():
                logits[id] = logits[id] * rules.repetition_penalty ** (-1 if logits[id] > 0 else 1)
            if rules.top_k:
                logits[logits < logits.sort().values[-rules.top_k]] = -torch.inf
            likely = (
                (logits / rules.temperature).log_softmax(-1)[ids[start + step]] if rules.temperature else 0
            )
            assert found[row, step].item() == pytest.approx(float(likely), abs=1e-5)


def test_a_reader_may_close_a_row_and_the_others_go_on(tiny):
    gpt = tiny()
    alone = [list(stream(gpt, [i], 12, seed=3 + i)) for i in range(3)]
    generation, new = Generation(gpt, [[0], [1], [2]], 12, seed=3), [[], [], []]
    for written in generation:
        for row, token in written.items():
            new[row].append(token)
        if len(new[1]) == 4:
            generation.close(1)
    assert new == [alone[0], alone[1][:4], alone[2]]


def test_generation_leaves_the_model_in_the_mode_it_was_in(tiny):
    gpt = tiny(dropout=0.5).train()
    tokens = stream(gpt, [1], 5, temperature=0)
    next(tokens)
    tokens.close()
    assert gpt.training
    assert list(stream(gpt, [1], 5, temperature=0)) == list(stream(gpt.eval(), [1], 5, temperature=0))
    assert not gpt.training


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
        ([1], {"temperature": float("inf")}, "temperature is inf"),
        ([1], {"temperature": 1e-40}, "temperature is 1e-40: choose 0"),
        ([1], {"top_k": 0}, "top_k is 0"),
        ([1], {"top_p": 0.0}, "top_p is 0.0"),
        ([1], {"top_p": 1.1}, "top_p is 1.1"),
        ([1], {"min_p": 0.0}, "min_p is 0.0"),
        ([1], {"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ([1], {"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
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


def test_a_long_text_may_be_asked_for_and_ended_early(tiny, monkeypatch):
    """Steps that are not taken cost nothing; how many random numbers are drawn at once changes no token."""
    gpt = tiny()
    written = list(stream(gpt, [1], 40, seed=3))
    monkeypatch.setattr(generate, "AHEAD", 7)
    assert list(itertools.islice(stream(gpt, [1], 10**15, seed=3), 40)) == written


def test_generation_under_autocast(tiny, each_kernel):
    gpt = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        found = list(stream(gpt, [1, 2], 40, temperature=0))
    assert len(found) == 40


@pytest.mark.parametrize("rules", [{}, {"temperature": 0}, {"top_k": 1}])
def test_a_model_of_nans_is_named(tiny, rules):
    gpt = tiny()
    with torch.no_grad():
        gpt.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not numbers"):
        generate_batch(gpt, [[1], [2]], 3, **rules)
    with pytest.raises(ValueError, match="logits are not numbers"):
        beam_search(gpt, [1], 3)
