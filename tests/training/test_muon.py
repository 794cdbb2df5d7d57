"""Muon against torch's, and its orthogonalization against the singular value decomposition."""

import pytest
import torch
from torch import nn

from training.optimizer import Muon, orthogonalize


def matrices() -> nn.ParameterList:
    torch.manual_seed(0)
    shapes = [(8, 8), (8, 8), (24, 8), (8, 32), (32, 8)]
    return nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)


def moved(make, steps: int = 10) -> list[torch.Tensor]:
    """Return the matrices after some steps of an optimizer on the same random gradients."""
    parameters = matrices()
    optimizer = make(parameters)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_as_near_to_exact_arithmetic_as_torchs(weight_decay):
    options = {"lr": 0.02, "weight_decay": weight_decay}
    exact = moved(lambda p: Muon(p, **options, precision=torch.float64))
    ours = moved(lambda p: Muon(p, **options, precision=torch.bfloat16))
    theirs = moved(lambda p: torch.optim.Muon(p, **options))  # in bfloat16, too
    for reference, mine, other in zip(exact, ours, theirs, strict=True):
        torchs_error = (other - reference).norm() / reference.norm()
        assert torchs_error < 1e-3  # the very same method
        assert (mine - reference).norm() / reference.norm() < 2 * torchs_error


@pytest.mark.parametrize(("dimension", "factor"), [(0, 1.0), (1, (12 / 4) ** 0.5)])
def test_by_heads_it_is_torchs_muon_of_every_heads_part(dimension, factor):
    matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(3))
    gradient = torch.randn(12, 12, generator=torch.Generator().manual_seed(4))
    whole = nn.Parameter(matrix.clone())
    parts = nn.ParameterList(nn.Parameter(part.clone()) for part in matrix.split(4, dimension))
    whole.grad = gradient.clone()
    for part, its in zip(parts, gradient.split(4, dimension), strict=True):
        part.grad = its.clone()
    Muon([{"params": [whole], "heads": (dimension, 4)}], lr=0.02, weight_decay=0.0).step()
    torch.optim.Muon(
        parts, lr=0.02 / factor, weight_decay=0.0
    ).step()  # which moves a tall part by sqrt(r / c) more
    torch.testing.assert_close(whole, torch.cat(list(parts), dimension), rtol=0, atol=1e-4)
    assert not torch.equal(whole, matrix)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64)])
def test_all_singular_values_come_near_one_and_the_directions_stay(shape):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    result = orthogonalize(matrix, precision=torch.float32)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    in_basis = u.mT @ result @ vt.mT
    values = in_basis.diagonal(dim1=-2, dim2=-1)
    well_conditioned = s > 0.02 * s.amax(-1, keepdim=True)
    assert values[well_conditioned].min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(in_basis, torch.diag_embed(values), rtol=0, atol=1e-3)


def test_a_gradient_of_zeros_moves_nothing():
    parameters = matrices()
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    Muon(parameters, weight_decay=0.0).step()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices only"):
        Muon([nn.Parameter(torch.zeros(3))])
