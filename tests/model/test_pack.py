"""Packed models compute what the model computes, as exactly as their precision allows."""

import pytest
import torch

import kernels
from kernels import decode
from model.cache import KVCache, context_start
from model.generate import generate_batch, stream
from model.pack import pack, quantize_rows
from model.step import is_plain


@pytest.fixture
def idx():
    return torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("precision, error", [("float32", 1e-5), ("bfloat16", 2**-6), ("int8", 2**-6)])
def test_logits_differ_by_rounding_only(tiny, variant, idx, precision, error):
    gpt = tiny(**variant).eval()
    with torch.no_grad():
        expected, packed = gpt(idx)[0], pack(gpt, precision)(idx)[0]
    assert (packed - expected).norm() / expected.norm() < error
    assert packed.dtype == torch.float32


def test_packed_float32_says_the_same_words(tiny, variant):
    gpt = tiny(**variant)
    packed = pack(gpt)
    assert list(stream(packed, [1, 2], 50, temperature=0)) == list(stream(gpt, [1, 2], 50, temperature=0))
    for prompts in ([[1], [2, 3, 4]], [[4, 5], [2, 3]]):
        assert generate_batch(packed, prompts, 40, seed=3) == generate_batch(gpt, prompts, 40, seed=3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_original_stays_as_it_was(tiny, precision):
    gpt = tiny().train()
    before = {name: tensor.clone() for name, tensor in gpt.state_dict().items()}
    pack(gpt, precision)
    assert gpt.training and all(parameter.requires_grad for parameter in gpt.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in gpt.state_dict().items())


def test_what_a_packed_model_cannot_do_is_refused(tiny, idx, tmp_path):
    packed = pack(tiny())
    with pytest.raises(ValueError, match="a packed model cannot compute a loss: use the model that"):
        packed(idx, idx)
    with pytest.raises(ValueError, match="a packed model cannot be saved"):
        packed.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="a packed model cannot be packed again"):
        pack(packed, "int8")
    assert not list(tmp_path.iterdir())


def test_int8_weights_are_within_half_a_step_and_exact_at_the_largest():
    weight = torch.randn(40, 30) * torch.logspace(-3, 3, 40)[:, None]
    weight[7] = 0
    quantized, scales = quantize_rows(weight)
    assert ((quantized * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all()
    assert quantized.abs().amax(1).tolist() == [0 if row == 7 else 127 for row in range(40)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_without_the_kernels_torch_computes_the_same(tiny, variant, idx, precision):
    gpt = tiny(**variant)
    with torch.no_grad():
        found = pack(gpt, precision)(idx)[0]
        with kernels.use("torch"):
            expected = pack(gpt, precision)(idx)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not decode.available(), reason="the C++ kernels are not built")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_one_call_computes_what_its_blocks_do(tiny, variant, precision):
    packed = pack(tiny(**variant), precision)
    if not is_plain(packed.config):
        assert packed.fused_step is None
        return
    contexts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]

    def logits():
        cache = KVCache(packed, 4, 32)
        with torch.inference_mode():
            found = [cache.read(contexts, [0, 0, 0], [2, 0, 1])]
            return [*found, cache.read([[1], [2], [3]], [2, 3, 4], [0, 1, 2])]

    at_once = logits()
    packed.fused_step = None
    # The cosines of rotary positions are torch's here and the C library's there.
    tolerance = 1e-5 if packed.config.positions == "rotary" else 0
    torch.testing.assert_close(at_once, logits(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_packed_models_say_the_same_with_and_without_the_cache(tiny, variant, precision):
    packed, written = pack(tiny(**variant), precision), [1, 2]
    with torch.no_grad():
        for _ in range(40):
            context = written[context_start(len(written), 32) :]
            written.append(packed(torch.tensor([context]))[0][0, -1].argmax().item())
    assert list(stream(packed, [1, 2], 40, temperature=0)) == written[2:]


def test_an_unknown_precision_is_named(tiny):
    with pytest.raises(ValueError, match="precision is 'int4'"):
        pack(tiny(), "int4")
