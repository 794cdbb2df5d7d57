"""A token that is not finite changes nothing for the queries and keys that do not meet it, also within one tile."""

import numpy as np
import pytest
import torch

from kernels import reference
from kernels.workbench import programs
from kernels.workbench.emulator import Toolchain
from tests.kernels import cases

# How far (B, T, H, D) reaches, the token, and whether dq is a sum of atomic additions.
CALLS = [
    ("short", 70, 37, False),
    ("long", 70, 37, False),
    ("long", 150, 70, False),
    ("long", 150, 70, True),
]
UNIT = torch.finfo(torch.bfloat16).eps


def storage(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def found(arrays: dict[str, np.ndarray], name: str) -> torch.Tensor:
    return torch.from_numpy(arrays[name]).view(torch.bfloat16).double()


def draw(length: int) -> list[torch.Tensor]:
    return [cases.randn(1, length, 1, 64, seed=seed, dtype=torch.bfloat16) for seed in range(4)]


def assert_right(ours: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(ours, exact, rtol=UNIT, atol=1.5 * UNIT * float(exact.abs().max()))


@pytest.mark.parametrize(("rung", "length", "token", "any_order"), CALLS[:3])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_the_forward_before_a_token(toolchain: Toolchain, rung, length, token, any_order, value) -> None:
    program = f"attention_{rung}_forward"
    q, k, v, _ = draw(length)
    exact = reference.causal_attention(*(x[:, :token].double() for x in (q, k, v)))
    for spoilt in ([k], [v], [k, v], [q]):
        kept = [x[:, token].clone() for x in spoilt]
        for x in spoilt:
            x[:, token] = value
        made = programs.attention_forward(
            programs.build(toolchain, program, "bfloat16"), *map(storage, (q, k, v)), options={}
        )
        for x, row in zip(spoilt, kept, strict=True):
            x[:, token] = row
        assert_right(found(made, "out")[:, :token], exact)
        assert not found(made, "out")[:, token].isfinite().any()


@pytest.mark.parametrize(("rung", "length", "token", "any_order"), CALLS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_the_backward_around_a_token(toolchain: Toolchain, rung, length, token, any_order, value) -> None:
    program = f"attention_{rung}_backward"
    q, k, v, grad_out = draw(length)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    out = reference.causal_attention(*leaves)
    scores = torch.einsum("bihd,bjhd->bhij", *leaves[:2]).masked_fill(
        ~reference.seen(length, None), -torch.inf
    )
    lse = (scores / 8).logsumexp(-1).detach().float()  # 1 / sqrt(64)

    def run(queries: torch.Tensor, keys: torch.Tensor, grad: torch.Tensor) -> dict[str, np.ndarray]:
        rows = (grad, queries, keys, v, out.detach().bfloat16())
        library = programs.build(toolchain, program, "bfloat16")
        options = {"any_order": any_order}
        return programs.attention_backward(library, *map(storage, (*rows, lse)), options=options)

    def spoil(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, token] = value
        return x

    silent = grad_out.double()
    silent[:, token] = 0  # keys behind the token never meet it
    _, dk, dv = torch.autograd.grad(out, leaves, silent, retain_graph=True)
    for made in (run(q, k, spoil(grad_out)), run(spoil(q), k, grad_out)):
        assert_right(found(made, "dk")[:, token + 1 :], dk[:, token + 1 :])
        assert_right(found(made, "dv")[:, token + 1 :], dv[:, token + 1 :])
        assert not found(made, "dk")[:, token].isfinite().any()
    (dq,) = torch.autograd.grad(out, leaves[:1], grad_out.double())
    made = run(q, spoil(k), grad_out)
    assert_right(found(made, "dq")[:, :token], dq[:, :token])
    assert not found(made, "dq")[:, token].isfinite().any()
