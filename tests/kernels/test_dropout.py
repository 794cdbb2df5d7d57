"""Philox against published vectors, and the mask of attention dropout on every backend."""

import pytest
import torch

import kernels
from kernels import philox, reference
from tests.kernels import cases
from tests.kernels.cases import each_backend

KNOWN_ANSWERS = [  # counter, key, result: the vectors that come with Random123, philox4x32 10
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    words = philox.philox(tuple(torch.tensor(word) for word in counter), key[0] | key[1] << 32)
    assert [word.item() for word in words] == expected


def mask_of(backend, shape, dropout_p, seed):
    """The factors that an implementation used, (B, H, T, T), from equal scores and parts of V = 1."""
    batch, heads, length = shape
    q = torch.zeros(batch, length, heads, 128, device=backend.device)
    rows = []
    with kernels.use(backend.choice):
        for first in range(0, length, 128):  # 128 columns of the matrix of weights at a time
            v = torch.eye(128, device=backend.device).repeat(batch, heads, 1, 1).transpose(1, 2)
            padded = torch.zeros_like(q)
            padded[:, first : first + 128] = v[:, : min(128, length - first)]
            out = kernels.causal_attention(q, q, padded, dropout_p=dropout_p, seed=seed)
            rows.append(out[..., : length - first].transpose(1, 2))  # (B, T, H, D) -> (B, H, T, D)
    weights = torch.cat(rows, dim=-1)
    return (
        weights * torch.arange(1, length + 1, device=backend.device)[:, None]
    )  # a weight is factor / (row + 1)


@each_backend
@pytest.mark.parametrize("length", [1, 40, 97])
@pytest.mark.parametrize("seed", [0, -5, 2**40 + 17])
def test_every_backend_drops_what_philox_says(backend, length, seed):
    factors = mask_of(backend, (2, 2, length), 0.25, seed).cpu()
    expected = reference.dropout_factors(torch.empty(2, length, 2, 1), 0.25, seed).tril()
    torch.testing.assert_close(factors.double(), expected, rtol=1e-5, atol=1e-6)


@each_backend
def test_the_backward_drops_the_same_weights(backend):
    """dV is the transposed, dropped matrix of weights times dO: with dO = 1, its column sums."""
    q = torch.zeros(1, 100, 2, 16, device=backend.device)
    v = cases.randn(1, 100, 2, 16, dtype=torch.float32, device=backend.device).requires_grad_()
    with kernels.use(backend.choice):
        (grad,) = torch.autograd.grad(kernels.causal_attention(q, q, v, dropout_p=0.3, seed=7).sum(), v)
    rows = torch.arange(1, 101)[:, None]
    expected = (reference.dropout_factors(q, 0.3, 7).tril() / rows).sum(-2).transpose(1, 2)  # (B, T, H)
    torch.testing.assert_close(grad[..., 0].cpu().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropout_p", [0.001, 0.1, 0.9])
def test_the_drop_rate_is_within_five_sigma(dropout_p):
    factors = reference.dropout_factors(torch.empty(2, 128, 2, 1), dropout_p, 11)
    keep = philox.keep_threshold(dropout_p) / 65536
    sigma = (keep * (1 - keep) / factors.numel()) ** 0.5
    assert abs((factors > 0).double().mean().item() - keep) < 5 * sigma
    assert abs(keep - (1 - dropout_p)) <= 0.5 / 65536
    assert factors.max().item() == 1 / keep


def test_neighbours_are_independent():
    """Heads, batches, rows, columns and seeds next to each other agree as often as chance has it."""
    kept = reference.dropout_factors(torch.empty(2, 128, 2, 1), 0.5, 1) > 0
    other = reference.dropout_factors(torch.empty(2, 128, 2, 1), 0.5, 2) > 0
    pairs = [(kept[0], kept[1]), (kept[:, 0], kept[:, 1]), (kept, other)]
    pairs += [(kept[..., :-step], kept[..., step:]) for step in (1, 8, 16, 32)]
    pairs += [(kept[..., :-step, :], kept[..., step:, :]) for step in (1, 8, 16)]
    for a, b in pairs:
        assert abs((a == b).double().mean().item() - 0.5) < 5 * 0.5 / a.numel() ** 0.5


@each_backend
def test_without_a_seed_torchs_generator_draws_one(backend):
    q, k, v = cases.attention_inputs(cases.AttentionCase(1, 40, 1, 16), torch.float32, backend.device)
    with kernels.use(backend.choice):
        torch.manual_seed(1)
        first, second = (kernels.causal_attention(q, k, v, dropout_p=0.5) for _ in range(2))
        torch.manual_seed(1)
        again = kernels.causal_attention(q, k, v, dropout_p=0.5)
    assert torch.equal(first, again) and not torch.equal(first, second)
