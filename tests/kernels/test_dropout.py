"""Philox against published vectors, and the mask of attention dropout on every backend."""

import pytest
import torch

import kernels
from kernels import reference
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
    words = reference.philox(tuple(torch.tensor(word) for word in counter), key[0] | key[1] << 32)
    assert [word.item() for word in words] == expected


def factors_used(backend, dtype, length, width, dropout_p, seed):
    """The factors that forward and backward used, each (B, H, T, T), for B = H = 2.

    Scores are equal, so a weight is factor / (row + 1). Where rows of v are unit vectors, the result shows `width`
    columns of the matrix of weights; where rows of grad_out are, the gradient of v shows as many rows of it.
    """
    q = torch.zeros(2, length, 2, width, dtype=dtype, device=backend.device)
    columns, rows = [], []
    for first in range(0, length, width):
        units = torch.zeros_like(q)
        some = units[:, first : first + width]
        some[:] = torch.eye(width, dtype=dtype, device=backend.device)[None, : some.shape[1], None]
        units.requires_grad_()
        with kernels.use(backend.choice):
            out = kernels.causal_attention(q, q, units, dropout_p=dropout_p, seed=seed)
        (grad,) = torch.autograd.grad(out, units, units.detach())
        columns.append(
            out.detach().permute(0, 2, 1, 3)[..., : length - first]
        )  # (B, T, H, D) -> (B, H, T, D)
        rows.append(grad.permute(0, 2, 3, 1)[:, :, : length - first])  # (B, T, H, D) -> (B, H, D, T)
    sums = torch.arange(1, length + 1, device=backend.device)[:, None]
    return torch.cat(columns, dim=3) * sums, torch.cat(rows, dim=2) * sums


# The tiles of the kernels differ with dtype, length and width, on a GPU more than elsewhere; 36 columns are not whole
# packs, so that no tensor core can take them.
TILES = [
    *((torch.float32, length, 128) for length in (1, 40, 97)),
    *((torch.float32, 140, width) for width in (32, 64, 96)),
    *((torch.bfloat16, length, width) for length in (97, 140) for width in (32, 36, 64, 96, 128)),
]


@each_backend
@pytest.mark.parametrize("dtype, length, width", TILES)
@pytest.mark.parametrize("seed", [-5, 2**40 + 17])
def test_forward_and_backward_drop_what_philox_says(backend, dtype, length, width, seed):
    used = factors_used(backend, dtype, length, width, 0.25, seed)
    expected = reference.dropout_factors(torch.empty(2, length, 2, 1), 0.25, seed).tril()
    for factors in used:
        assert torch.equal(factors.cpu() != 0, expected != 0)
        torch.testing.assert_close(
            factors.cpu().double(), expected, rtol=2 * torch.finfo(dtype).eps + 1e-5, atol=0
        )


@pytest.mark.parametrize("dropout_p", [0.001, 0.1, 0.9])
def test_the_drop_rate_is_within_five_sigma(dropout_p):
    factors = reference.dropout_factors(torch.empty(2, 128, 2, 1), dropout_p, 11)
    keep = reference.keep_threshold(dropout_p) / 65536
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
