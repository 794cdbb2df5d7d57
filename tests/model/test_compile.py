"""torch.compile takes every variant as one graph, forward and backward, and changes no result."""

import pytest
import torch

import kernels
from model.cache import compile_step
from model.generate import Generation, generate_batch


@pytest.fixture(autouse=True)
def fresh():
    """Empty the cache of compiled graphs before and after each test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(tiny, batch, backend, **changes):
    gpt = tiny(**changes)
    expected = gpt(*batch)[1]
    expected.backward()
    plain = [p.grad.clone() for p in gpt.parameters()]
    gpt.zero_grad()
    loss = torch.compile(gpt, backend=backend, fullgraph=True)(*batch)[1]
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close([p.grad for p in gpt.parameters()], plain, rtol=1e-4, atol=1e-6)


def test_one_graph_without_breaks(tiny, batch, variant):
    check(tiny, batch, "aot_eager", **variant)


@pytest.mark.slow
def test_one_graph_without_breaks_for_torchs_own_ops(tiny, batch, variant):
    with kernels.use("torch"):
        check(tiny, batch, "aot_eager", **variant)


def test_one_graph_with_checkpointed_activations(tiny, batch):
    check(tiny, batch, "aot_eager", checkpoint_activations=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the code generator's own
def test_generated_code_computes_the_same(tiny, batch, variant, chosen):
    check(tiny, batch, "inductor", **variant)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the code generator's own
def test_a_compiled_step_says_the_same_even_past_the_context(tiny):
    gpt = tiny(positions="rotary", n_kv_head=2)
    prompts, step = [[1, 2, 3], [5]], compile_step(gpt)
    plain = generate_batch(gpt, prompts, 45, seed=4)
    for _ in range(2):  # the second uses what the first compiled
        generation = Generation(gpt, prompts, 45, seed=4, step=step)
        list(generation)
        assert generation.ids == [prompt + ids for prompt, ids in zip(prompts, plain, strict=True)]
