"""Bad input: a ValueError that names the argument, the same on every backend and while tracing."""

import pytest
import torch

import kernels
from tests.kernels.cases import each_backend

C, SHAPE = 8, (1, 6, 2, 8)


def norm(x=None, residual=None, weight=None, bias=None, eps=1e-5):
    return kernels.add_layer_norm(
        torch.ones(3, C) if x is None else x,
        torch.ones(3, C) if residual is None else residual,
        torch.ones(C) if weight is None else weight,
        torch.ones(C) if bias is None else bias,
        eps,
    )


def attention(q=None, k=None, v=None, **options):
    return kernels.causal_attention(*(torch.ones(SHAPE) if x is None else x for x in (q, k, v)), **options)


def strided(*shape):
    return torch.ones(*shape, 2)[..., 0]


NORM_MISTAKES = {
    "a scalar": ({"x": torch.tensor(1.0)}, "x has shape"),
    "no channels": ({"x": torch.ones(3, 0)}, "x has shape"),
    "integers": ({"x": torch.ones(3, C).long()}, "x has dtype"),
    "x strided": ({"x": strided(3, C)}, "x has stride 2"),
    "residual strided": ({"residual": strided(3, C)}, "residual has stride 2"),
    "residual of another shape": ({"residual": torch.ones(2, C)}, "residual has shape"),
    "residual of another dtype": ({"residual": torch.ones(3, C).double()}, "residual has dtype"),
    "weight too short": ({"weight": torch.ones(C - 1)}, "weight has shape"),
    "weight of rank 2": ({"weight": torch.ones(1, C)}, "weight has shape"),
    "weight strided": ({"weight": strided(C)}, "weight has shape"),
    "weight repeated": ({"weight": torch.ones(1).expand(C)}, "weight has shape"),
    "weight of another dtype": ({"weight": torch.ones(C).half()}, "weight has dtype"),
    "bias too long": ({"bias": torch.ones(C + 1)}, "bias has shape"),
    "bias strided": ({"bias": strided(C)}, "bias has shape"),
    "residual on another device": ({"residual": torch.ones(3, C, device="meta")}, "residual is on meta"),
    "bias on another device": ({"bias": torch.ones(C, device="meta")}, "bias is on meta"),
    "eps zero": ({"eps": 0.0}, "eps is 0"),
    "eps negative": ({"eps": -1e-5}, "eps is -1e-05"),
    "eps not a number": ({"eps": float("nan")}, "eps is nan"),
    "eps a tensor": ({"eps": torch.tensor(1e-5)}, "eps is Tensor"),
    "x a list": ({"x": [1.0]}, "x is list"),
}
ATTENTION_MISTAKES = {
    "q of rank 3": ({"q": torch.ones(6, 2, 8)}, "q has shape"),
    "k of rank 5": ({"k": torch.ones(1, 1, 6, 2, 8)}, "k has shape"),
    "integers": ({"q": torch.ones(SHAPE).long()}, "q has dtype"),
    "k of another dtype": ({"k": torch.ones(SHAPE).bfloat16()}, "k has dtype"),
    "k on another device": ({"k": torch.ones(SHAPE, device="meta")}, "k is on meta"),
    "v on another device": ({"v": torch.ones(SHAPE, device="meta")}, "v is on meta"),
    "k of another length": ({"k": torch.ones(1, 5, 2, 8)}, "k has shape"),
    "v of another width": ({"v": torch.ones(1, 6, 2, 7)}, "v has shape"),
    "heads that do not divide": ({"q": torch.ones(1, 6, 3, 8)}, "k has 2 heads"),
    "no heads in k": ({"k": torch.ones(1, 6, 0, 8)}, "k has 0 heads"),
    "D of 0": ({"q": torch.ones(1, 6, 2, 0)}, "head dimension 0"),
    "D of 129": (dict.fromkeys("qkv", torch.ones(1, 6, 2, 129)), "head dimension 129"),
    "q strided": ({"q": strided(*SHAPE)}, "q has stride 2"),
    "k strided": ({"k": strided(*SHAPE)}, "k has stride 2"),
    "v strided": ({"v": strided(*SHAPE)}, "v has stride 2"),
    "dropout of 1": ({"dropout_p": 1.0}, "dropout_p is 1"),
    "dropout below 0": ({"dropout_p": -0.1}, "dropout_p is -0.1"),
    "dropout not a number": ({"dropout_p": float("nan")}, "dropout_p is nan"),
    "a seed of 65 bits": ({"dropout_p": 0.1, "seed": 2**64}, "seed is 18446744073709551616"),
    "window of 0": ({"window": 0}, "window is 0"),
    "two seeds": ({"dropout_p": 0.1, "seed": torch.tensor([1, 2])}, "seed must be one int64"),
    "a seed of floats": ({"dropout_p": 0.1, "seed": torch.tensor(1.0)}, "seed must be one int64"),
    "a seed elsewhere": (
        {"dropout_p": 0.1, "seed": torch.tensor(1, device="meta")},
        "seed must be one int64",
    ),
    "infinite scale": ({"scale": float("inf")}, "scale is inf"),
    "scale a tensor": ({"scale": torch.tensor(0.1)}, "scale is a tensor"),
    "scale a word": ({"scale": "0.1"}, "scale is str"),
    "window a fraction": ({"window": 2.5}, "window is float"),
    "dropout a tensor": ({"dropout_p": torch.tensor(0.1)}, "dropout_p is Tensor"),
    "a seed that is a fraction": ({"dropout_p": 0.1, "seed": 1.5}, "seed is float"),
    "q a number": ({"q": 1.0}, "q is float"),
    "q of rank 0": ({"q": torch.tensor(1.0)}, "q has shape"),
}
X, R = torch.ones(3, C), torch.ones(C)
HEADS, ANGLES = torch.ones(SHAPE), torch.ones(6, 4)
HIDDEN, HEAD, LABELS = torch.ones(3, C), torch.ones(5, C), torch.zeros(3, dtype=torch.int64)
RIGHT = {
    kernels.rms_norm: {"x": X, "weight": R},
    kernels.add_rms_norm: {"x": X, "residual": X, "weight": R},
    kernels.gelu: {"x": X, "bias": R},
    kernels.swiglu: {"gate": X, "x": X},
    kernels.rotary: {"x": HEADS, "angles": ANGLES},
    kernels.linear_cross_entropy: {"hidden": HIDDEN, "weight": HEAD, "targets": LABELS},
}
OTHER_MISTAKES = [
    (kernels.rms_norm, {"x": torch.tensor(1.0)}, "x has shape"),
    (kernels.rms_norm, {"x": strided(3, C)}, "x has stride 2"),
    (kernels.rms_norm, {"weight": R[:7]}, "weight has shape"),
    (kernels.rms_norm, {"eps": 0.0}, "eps is 0"),
    (kernels.add_rms_norm, {"residual": X[:2]}, "residual has shape"),
    (kernels.gelu, {"x": X.long()}, "x has dtype"),
    (kernels.gelu, {"x": strided(3, C)}, "x has stride 2"),
    (kernels.gelu, {"bias": R[:7]}, "bias has shape"),
    (kernels.gelu, {"bias": R.half()}, "bias has dtype"),
    (kernels.gelu, {"approximate": "sigmoid"}, "approximate is 'sigmoid'"),
    (kernels.swiglu, {"gate": X[:2]}, "gate has shape"),
    (kernels.swiglu, {"gate": X.half()}, "gate has dtype"),
    (kernels.swiglu, {"gate_bias": R[:7]}, "gate_bias has shape"),
    (kernels.rotary, {"x": X}, "x has shape"),
    (kernels.rotary, {"x": HEADS[..., :7]}, "x has shape"),
    (kernels.rotary, {"angles": ANGLES[:5]}, "angles has shape"),
    (kernels.rotary, {"angles": ANGLES.clone().requires_grad_()}, "angles requires"),
    (kernels.linear_cross_entropy, {"hidden": R}, "hidden has shape"),
    (kernels.linear_cross_entropy, {"weight": HEAD[:, :7]}, "weight has shape"),
    (kernels.linear_cross_entropy, {"targets": LABELS[:2]}, "targets has shape"),
    (kernels.linear_cross_entropy, {"targets": LABELS.float()}, "targets has dtype"),
    (kernels.linear_cross_entropy, {"weight": HEAD.half()}, "weight has dtype"),
]
MISTAKES = {
    **{
        f"{op.__name__}, {i}": (op, RIGHT[op] | wrong, text)
        for i, (op, wrong, text) in enumerate(OTHER_MISTAKES)
    },
    **{f"norm: {name}": (norm, *rest) for name, rest in NORM_MISTAKES.items()},
    **{f"attention: {name}": (attention, *rest) for name, rest in ATTENTION_MISTAKES.items()},
}
each_mistake = pytest.mark.parametrize("call, arguments, message", MISTAKES.values(), ids=list(MISTAKES))


def on(device, value):
    """The value on a device, where it is a tensor; its strides are kept, which `to` alone would make dense."""
    if not isinstance(value, torch.Tensor) or value.device.type == "meta":
        return value
    if value.is_contiguous():
        return value.to(device)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.as_strided((reach,), (1,)).to(device).as_strided(value.shape, value.stride())


@each_backend
@each_mistake
def test_a_mistake_is_named(backend, call, arguments, message):
    arguments = {name: on(backend.device, value) for name, value in arguments.items()}
    with (
        kernels.use(backend.choice),
        pytest.raises(ValueError, match=message) as caught,
        torch.device(backend.device),
    ):
        call(**arguments)
    assert "\n" not in str(caught.value)


@each_backend
@pytest.mark.parametrize("op", [kernels.layer_norm, lambda x, weight: kernels.add_layer_norm(x, x, weight)])
def test_a_missing_weight_is_named(backend, op):
    with kernels.use(backend.choice), pytest.raises(ValueError, match="weight is NoneType"):
        op(torch.ones(3, C, device=backend.device), None)


PACKED_MISTAKES = {
    "rank 0": (torch.tensor(1.0), "qkv has shape"),
    "two parts": (torch.ones(1, 6, 2, 2, 8), "qkv has shape"),
    "rank 4": (torch.ones(1, 6, 3, 16), "qkv has shape"),
    "D of 129": (torch.ones(1, 6, 3, 2, 129), "qkv has head dimension 129"),
    "integers": (torch.ones(1, 6, 3, 2, 8).int(), "qkv has dtype"),
    "strided": (strided(1, 6, 3, 2, 8), "qkv has stride 2"),
}


@each_backend
@pytest.mark.parametrize("qkv, message", PACKED_MISTAKES.values(), ids=list(PACKED_MISTAKES))
def test_a_wrong_packing_is_named(backend, qkv, message):
    with kernels.use(backend.choice), pytest.raises(ValueError, match=message):
        kernels.causal_attention_qkvpacked(on(backend.device, qkv))
