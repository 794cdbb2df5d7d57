"""The scheduler against model.generate, which computes each text alone: nothing but the request decides its text."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import decode
from model import GPT, GPTConfig
from model.generate import Rules, generate_batch
from model.pack import pack
from serving.paged_cache import page_bytes
from serving.scheduler import Limits, Request, Scheduler

needs_kernels = pytest.mark.skipif(not decode.available(), reason="the C++ kernels are not built")
each_choice = pytest.mark.parametrize(
    "choice", ["torch", pytest.param("fused", marks=needs_kernels)], ids=["torch", "fused"]
)
CONTEXT = 80
VARIANTS = {
    "gpt2": {},
    "rotary": {"positions": "rotary", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "n_kv_head": 2},
    "window": {"window": 20},
    "latent": {"positions": "rotary", "kv_lora_rank": 8, "bias": False},
}


def model(**changes) -> GPT:
    """A small model whose attention is sharp, so that a wrong key changes the text."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=300, block_size=CONTEXT, n_layer=2, n_head=4, n_embd=32, **changes)).eval()
    with torch.no_grad():
        for block in gpt.h:
            block.attn.c_proj.weight.mul_(20)
            block.mlp.c_proj.weight.mul_(10)
    return gpt


def prompts(count: int, longest: int = 60, shortest: int = 1) -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(300) for _ in range(draw.randint(shortest, longest))] for _ in range(count)]


def scheduler(gpt: GPT, pages: int = 100, **limits) -> Scheduler:
    return Scheduler(gpt, Limits(cache_mb=(pages + 0.5) * page_bytes(gpt) / 1e6, **limits))


def run(engine: Scheduler, requests: list[Request], between=lambda step: None) -> list[list[int]]:
    """The new ids of every text, after all pages have come back."""
    for request in requests:
        engine.add(request)
    steps = 0
    while not engine.is_idle:
        engine.step()
        between(steps)
        steps += 1
        assert steps < 5000
    assert_no_page_is_lost(engine)
    return [text.tokens[len(request.prompt) :] for request in requests for text in request.texts]


def assert_no_page_is_lost(engine: Scheduler) -> None:
    assert engine.pool.free_count + engine.tree.evictable() == engine.pool.count
    engine.tree.evict(engine.pool.count)
    assert engine.pool.free_count == engine.pool.count


def alone(gpt: GPT, prompt: list[int], count: int, seed: int = 0, **rules) -> list[int]:
    room = min(count, CONTEXT - len(prompt))
    return generate_batch(gpt, [prompt], room, seed=seed, **rules)[0]


@each_choice
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_greedy_texts_of_a_batch_are_those_of_each_prompt_alone(choice, changes):
    with kernels.use(choice):
        gpt = pack(model(**changes))
        given = prompts(7)
        found = run(scheduler(gpt, chunk=33), [Request(p, 30, Rules(temperature=0)) for p in given])
        assert found == [alone(gpt, p, 30, temperature=0) for p in given]


@needs_kernels
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("chunk", [1, 5, 16, 500])
def test_chunks_change_no_text(precision, chunk):
    gpt = pack(model(), precision)
    given = prompts(4)
    found = run(scheduler(gpt, chunk=chunk), [Request(p, 12, Rules(temperature=0)) for p in given])
    assert found == [alone(gpt, p, 12, temperature=0) for p in given]


@needs_kernels
def test_texts_survive_that_their_pages_are_taken_away():
    gpt = pack(model())
    given = prompts(10, longest=50, shortest=20)
    engine = scheduler(gpt, pages=8)
    found = run(engine, [Request(p, 30, Rules(temperature=0)) for p in given])
    assert engine.counters.preemptions
    assert found == [alone(gpt, p, 30, temperature=0) for p in given]


RULES = [
    {"temperature": 0.9},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.3},
    {"temperature": 0.0, "repetition_penalty": 2.0},
]


@needs_kernels
@pytest.mark.parametrize("pages, lookup", [(100, 0), (9, 0), (100, 3)])
def test_every_rule_and_seed_draws_what_it_draws_alone(pages, lookup):
    gpt = pack(model())
    given = prompts(10, longest=40)
    wanted = [(p, RULES[i % 5], 100 + i) for i, p in enumerate(given)]
    requests = [Request(p, 25, Rules(**rules), seeds=[seed]) for p, rules, seed in wanted]
    found = run(scheduler(gpt, pages, chunk=20, lookup=lookup), requests)
    assert found == [alone(gpt, p, 25, seed, **rules) for p, rules, seed in wanted]


@needs_kernels
@pytest.mark.parametrize("pages", [100, 6])
def test_texts_of_one_prompt_share_its_pages_and_then_part(pages):
    gpt = pack(model())
    (prompt,) = prompts(1, 40, 40)
    engine = scheduler(gpt, pages)
    held = []
    found = run(
        engine,
        [Request(prompt, 20, Rules(temperature=1.0), seeds=range(5))],
        lambda step: held.append(pages - engine.pool.free_count),
    )
    assert found == [alone(gpt, prompt, 20, seed, temperature=1.0) for seed in range(5)]
    assert held[0] == 3 and (pages == 6 or held[1] == 3 + 4)  # two whole pages, and the third five times


@needs_kernels
def test_a_known_beginning_is_not_computed_again():
    gpt = pack(model())
    engine = scheduler(gpt)
    (start,) = prompts(1, 50, 50)
    first, second = [*start, 1, 2], [*start, 3, 4]
    for prompt in (first, second, first):
        assert run_kept(engine, Request(prompt, 9, Rules(temperature=0))) == alone(
            gpt, prompt, 9, temperature=0
        )
    assert engine.counters.reused_tokens == 2 * 48
    assert_no_page_is_lost(engine)


def run_kept(engine: Scheduler, request: Request) -> list[int]:
    """The same as `run` for one request, whose pages the tree keeps."""
    engine.add(request)
    while not engine.is_idle:
        engine.step()
    return request.texts[0].tokens[len(request.prompt) :]


@needs_kernels
def test_an_answer_is_a_known_beginning_of_the_next_turn():
    gpt = pack(model())
    engine = scheduler(gpt)
    said = run_kept(engine, Request([5] * 20, 30, Rules(temperature=0)))
    again = [5] * 20 + said[:29] + [9]
    assert run_kept(engine, Request(again, 9, Rules(temperature=0))) == alone(gpt, again, 9, temperature=0)
    assert engine.counters.reused_tokens == 48


@needs_kernels
def test_guesses_change_no_text_and_save_steps():
    gpt = pack(model())
    given = [([3, 4, 5, 6] * 12)[:40], prompts(1)[0]]
    counts = {}
    for lookup in (0, 4):
        engine = scheduler(gpt, lookup=lookup)
        repeating = Request([1, 2], 70, Rules(temperature=0), bias={77: 100.0})
        found = run(engine, [*(Request(p, 40, Rules(temperature=0)) for p in given), repeating])
        assert found == [*(alone(gpt, p, 40, temperature=0) for p in given), [77] * 70]
        counts[lookup] = engine.counters
    assert counts[4].steps < counts[0].steps
    assert 0 < counts[4].accepted_tokens <= counts[4].guessed_tokens


@needs_kernels
def test_a_long_prompt_stalls_nobody_and_nobody_starves():
    gpt = pack(model())
    engine = scheduler(gpt, chunk=8)
    short, long = Request([1, 2], 70, Rules(temperature=0)), Request([3] * 64, 2, Rules(temperature=0))
    engine.add(short)
    engine.step()
    engine.add(long)
    for step in range(1, 9):
        engine.step()
        assert short.texts[0].drawn == step + 1
    assert long.texts[0].drawn == 1
    late = [Request([9], 40, Rules(temperature=0)) for _ in range(20)]
    for request in late:
        engine.add(request)
    while not engine.is_idle:
        engine.step()
    assert all(request.texts[0].reason == "length" for request in late)


@needs_kernels
def test_chances_are_the_models():
    """Those of prompt and text, whole and in chunks, against one pass over everything."""
    gpt = model()
    (prompt,) = prompts(1, 30, 30)
    for chunk in (1, 7, 100):
        request = Request(prompt, 5, Rules(temperature=0), top=3, score_prompt=True)
        engine = scheduler(pack(gpt), chunk=chunk)
        engine.add(request)
        found = []
        while not engine.is_idle:
            found += [drawn.chance for drawn in engine.step()]
        tokens = request.texts[0].tokens
        expected = gpt(torch.tensor([tokens]))[0][0].log_softmax(-1)  # (T, V)
        for place, chance in enumerate([*request.prompt_chances, *found]):
            assert chance.log_probability == pytest.approx(
                expected[place, tokens[place + 1]].item(), abs=1e-4
            )
            best = expected[place].topk(3)
            assert [id for id, _ in chance.likeliest] == best.indices.tolist()
        assert len(request.prompt_chances) == len(prompt) - 1 and len(found) == 5


@needs_kernels
def test_biases_stops_and_lengths():
    gpt = pack(model())
    plain = alone(gpt, [1, 2, 3], 20, temperature=0)
    stop = plain[6]
    where = plain.index(stop)
    requests = [
        Request([1, 2, 3], 20, Rules(temperature=0), stop={stop}),
        Request([1, 2, 3], 4, Rules(temperature=0), bias={77: 100.0}),
        Request([1, 2, 3], 0, Rules(temperature=0)),
        Request([1] * CONTEXT, 9, Rules(temperature=0)),
    ]
    found = run(scheduler(gpt), requests)
    assert found[:3] == [plain[:where], [77] * 4, []] and len(found[3]) == 1
    assert [request.texts[0].reason for request in requests] == ["stop", "length", "length", "length"]


def test_logits_that_are_not_numbers_end_one_text_alone():
    gpt = model()
    with torch.no_grad():
        gpt.wte.weight[250] = float("nan")
        gpt.lm_head.weight = torch.nn.Parameter(torch.randn(300, 32))
    requests = [Request([1, 2], 5, Rules(temperature=0)), Request([250], 5, Rules(temperature=0))]
    found = run(scheduler(gpt), requests)
    assert len(found[0]) == 5 and found[1] == []
    assert [request.texts[0].reason for request in requests] == ["length", "error"]


@needs_kernels
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_comes_and_goes_nothing_is_lost_and_no_text_changes(data):
    """Requests that begin alike, in a cache that is too small, some of which are given up at some step."""
    gpt, draw = pack(CHAOS), data.draw
    pages, chunk, lookup = draw(st.integers(5, 14)), draw(st.integers(1, 40)), draw(st.integers(0, 3))
    engine = scheduler(gpt, pages, chunk=chunk, lookup=lookup, running=6)
    lengths = st.integers(1, 60)
    jobs = [
        (draw(st.integers(0, 25)), [2] * draw(lengths) + draw(st.lists(st.integers(0, 299), max_size=5)))
        for _ in range(draw(st.integers(1, 7)))
    ]
    requests = [
        Request(p, draw(st.integers(1, 20)), Rules(temperature=0), seeds=[0] * draw(st.integers(1, 3)))
        for _, p in jobs
    ]
    cancelled = {i: draw(st.integers(0, 30)) for i in range(len(jobs)) if draw(st.booleans())}
    step = 0
    while step < 40 or not engine.is_idle:
        for number, (when, _) in enumerate(jobs):
            if when == step:
                engine.add(requests[number])
        for number, when in cancelled.items():
            if when == step:
                for text in requests[number].texts:
                    engine.finish(text, "cancelled")
        engine.step()
        step += 1
        assert step < 3000
    for request in requests:
        expected = alone(gpt, request.prompt, max(request.max_new_tokens, 1), temperature=0)
        for text in request.texts:
            new = text.tokens[len(request.prompt) :]
            assert new[: len(expected)] == expected[: len(new)]
            assert (
                text.reason == "cancelled"
                or len(new) == request.max_new_tokens
                or len(text.tokens) >= CONTEXT
            )
    assert_no_page_is_lost(engine)


CHAOS = model()


def test_a_cache_that_holds_no_context_is_refused():
    with pytest.raises(ValueError, match=r"holds no context of 80 tokens: give at least --cache-mb 0\.1"):
        Scheduler(model(), Limits(cache_mb=0.01))


def test_a_state_space_is_refused():
    gpt = GPT(
        GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=1, n_embd=64, layers="m", positions="none")
    )
    with pytest.raises(ValueError, match="a state-space layer keeps one state"):
        Scheduler(gpt)
