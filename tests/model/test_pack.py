"""Packed models say what the model says, as exactly as their precision allows."""

import pytest
import torch

from model.generate import generate_batch, stream
from model.pack import Int8Linear, pack, quantize_rows


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
    prompts = [[1], [2, 3, 4]]
    assert generate_batch(packed, prompts, 40, seed=3) == generate_batch(gpt, prompts, 40, seed=3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_original_stays_as_it_was(tiny, precision):
    gpt = tiny().train()
    before = {name: tensor.clone() for name, tensor in gpt.state_dict().items()}
    pack(gpt, precision)
    assert gpt.training and all(parameter.requires_grad for parameter in gpt.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in gpt.state_dict().items())


def test_int8_weights_are_within_half_a_step_and_exact_at_the_largest(tiny):
    weight = torch.randn(40, 30) * torch.logspace(-3, 3, 40)[:, None]
    weight[7] = 0
    quantized, scales = quantize_rows(weight)
    assert ((quantized * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all()
    assert quantized.abs().amax(1).tolist() == [0 if row == 7 else 127 for row in range(40)]


@pytest.mark.parametrize("inputs", [1, 16, 31, 33, 64])
def test_an_int8_layer_multiplies_its_quantized_weight(inputs):
    linear, x = torch.nn.Linear(inputs, 17), torch.randn(2, 5, inputs).bfloat16().float()
    layer = Int8Linear(linear)
    quantized, scales = quantize_rows(linear.weight.detach())
    weight = quantized.double() * scales.bfloat16().double()[:, None]
    expected = x.double() @ weight.T + linear.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=2**-7, atol=2**-7)


def test_an_unknown_precision_is_named(tiny):
    with pytest.raises(ValueError, match="precision is 'int4'"):
        pack(tiny(), "int4")
