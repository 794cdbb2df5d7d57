"""The ops of a decode step against the reference in float64, on every shape that the kernels treat differently."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import decode, reference
from tests.kernels.cases import assert_as_exact_as, randn

needs_kernels = pytest.mark.skipif(not decode.available(), reason="the C++ kernels are not built")
each_choice = pytest.mark.parametrize(
    "choice", ["torch", pytest.param("fused", marks=needs_kernels)], ids=["torch", "fused"]
)


def weights(precision, outputs, inputs):
    """A packed weight, its scales, and the same as a float64 matrix (out, in)."""
    weight = randn(outputs, inputs, seed=1)
    if precision == torch.int8:
        weight, scales = (weight * 40).round().clamp(-127, 127), randn(outputs, seed=2)
        return decode.pack_weight(weight.to(torch.int8)), scales.float(), weight * scales.float()[:, None]
    weight = weight.to(precision)
    return decode.pack_weight(weight), None, weight.double()


@each_choice
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize(
    "rows, inputs, outputs",
    [(1, 1, 1), (1, 37, 64), (2, 64, 63), (3, 5, 130), (6, 48, 65), (16, 33, 200), (41, 96, 7)],
)
def test_a_linear_layer_is_as_exact_as_torchs(choice, precision, rows, inputs, outputs):
    weight, scales, exact = weights(precision, outputs, inputs)
    x, bias = randn(rows, inputs).float(), randn(outputs, seed=3).float()
    with kernels.use(choice):
        found = decode.packed_linear(x, weight, outputs, scales, bias)
    torchs = F.linear(x, exact.float(), bias)
    size = (x.double().abs() @ exact.abs().T).max().item()
    assert_as_exact_as(found, torchs, F.linear(x.double(), exact, bias.double()), 2.0, size)


def test_weights_side_by_side_are_the_same():
    given = [weights(precision, 70, 33)[0] for precision in (torch.float32, torch.int8, torch.bfloat16)]
    for found, weight in zip(decode.side_by_side(given), given, strict=True):
        assert torch.equal(found, weight) and found.dtype == weight.dtype
        assert found.is_contiguous() and found.data_ptr() % 64 == 0


NORMS = {
    "layernorm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
    "layernorm without bias": lambda x, w, b: F.layer_norm(x, w.shape, w),
    "rmsnorm": lambda x, w, b: F.rms_norm(x, w.shape, w, 1e-5),
}
ACTIVATIONS = {"none": lambda y: y, "gelu": lambda y: F.gelu(y, approximate="tanh"), "silu": F.silu}


@each_choice
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("width", [1, 19, 96])
def test_norm_activation_and_residual_are_torchs(choice, norm, activation, width):
    x, weight, residual = randn(2, 3, width, seed=1), randn(70, width), randn(2, 3, 70, seed=2)
    scale, shift = randn(width, seed=3), randn(width, seed=4)
    expected = ACTIVATIONS[activation](F.linear(NORMS[norm](x, scale, shift), weight)) + residual
    with kernels.use(choice):
        found = decode.packed_linear(
            x.float(), decode.pack_weight(weight.float()), 70, norm=norm.split()[0], norm_weight=scale.float(),
            norm_bias=shift.float() if norm == "layernorm" else None, activation=activation,
            residual=residual.float(),
        )  # fmt: skip
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-4)


@each_choice
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_activations_of_huge_numbers_are_finite(choice, activation):
    x = torch.tensor([[-1e30], [-90.0], [0.0], [90.0], [1e10]])
    with kernels.use(choice):
        found = decode.packed_linear(x, decode.pack_weight(torch.ones(1, 1)), 1, activation=activation)
    torch.testing.assert_close(found, x.clamp_min(0), rtol=1e-6, atol=1e-30)


@needs_kernels
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_a_row_has_the_same_result_alone_and_among_others_bit_for_bit(precision):
    weight, scales, _ = weights(precision, 300, 200)
    x = randn(23, 200).float()
    alone = [decode.packed_linear(row[None], weight, 300, scales) for row in x]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(decode.packed_linear(x, weight, 300, scales), torch.cat(alone))
    finally:
        torch.set_num_threads(threads)


ATTENTION = {
    "one token": {},
    "a prompt": {"length": 9, "starts": (0,)},
    "rows at places of their own": {"starts": (3, 0, 11)},
    "rows of a larger cache": {"starts": (3, 7, 2), "rows": (4, 0, 2)},
    "grouped heads": {"groups": 2, "starts": (3, 5, 8)},
    "a window": {"length": 6, "window": 4, "starts": (5, 9, 0)},
    "angles": {"angles": True, "starts": (3, 4, 0), "length": 3},
    "a head of 20 numbers": {"width": 20, "angles": True},
    "a head of 128": {"width": 128},
    "a full cache": {"starts": (19,)},
    "no rows": {"batch": 0},
}


def attention_case(
    batch=3,
    length=1,
    heads=4,
    groups=4,
    width=16,
    starts=(7,),
    rows=None,
    window=None,
    angles=False,
    dtype=torch.float32,
):
    """The arguments of cached_attention; a cache of 6 rows and 20 places that is full of old numbers."""
    starts = starts if batch else starts[:1]
    return {
        "qkv": randn(batch, length, heads + 2 * groups, width).to(dtype),
        "keys": randn(6, groups, 20, width, seed=1).to(dtype),
        "values": randn(6, groups, 20, width, seed=2).to(dtype),
        "positions": torch.tensor(starts)[:, None] + torch.arange(length),
        "rows": None if rows is None else torch.tensor(rows),
        "angles": randn(len(starts), length, width // 2, seed=3).to(dtype) * 9 if angles else None,
        "window": window,
    }


@each_choice
@pytest.mark.parametrize("case", ATTENTION.values(), ids=ATTENTION)
def test_attention_to_a_cache_is_attention_to_what_it_holds(choice, case):
    found = attention_case(**case)
    exact = {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in found.items()
    }
    with kernels.use(choice):
        out = decode.cached_attention(**found)
    expected = reference.cached_attention(**exact)
    assert out.shape == expected.shape
    for ours, theirs in ((out, expected), (found["keys"], exact["keys"]), (found["values"], exact["values"])):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


PAGED = {
    "one token": {"starts": (19, 0, 11)},
    "tokens across pages": {"length": 9, "starts": (3, 0, 11), "groups": 2},
    "a window across pages": {"length": 6, "window": 7, "starts": (5, 9, 0)},
    "angles": {"angles": True, "starts": (3, 14, 0), "length": 3, "width": 20},
}


@each_choice
@pytest.mark.parametrize("case", PAGED.values(), ids=PAGED)
def test_pages_are_the_row_that_they_list_bit_for_bit(choice, case):
    """20 places of 3 rows as 5 pages of 4 each, scattered over 17, of which two belong to none."""
    whole = attention_case(**case)
    paged = {**whole, "pages": torch.randperm(17)[:15].view(3, 5)}
    for name in ("keys", "values"):
        parts = whole[name][:3].unflatten(2, (5, 4)).transpose(1, 2)  # (3, G, 20, D) -> (3, 5, G, 4, D)
        paged[name] = randn(17, *parts.shape[2:]).float().index_put((paged["pages"],), parts)
        whole[name] = whole[name].clone()
    with kernels.use(choice):
        expected, found = decode.cached_attention(**whole), decode.cached_attention(**paged)
    assert torch.equal(found, expected)
    for name in ("keys", "values"):
        parts = paged[name][paged["pages"]].transpose(1, 2).flatten(2, 3)  # -> (3, G, 20, D)
        assert torch.equal(parts, whole[name][:3])


def test_the_reference_is_torchs_causal_attention():
    """A whole sequence written into an empty cache, heads grouped."""
    q, k, v = randn(2, 9, 4, 8), randn(2, 9, 2, 8, seed=1), randn(2, 9, 2, 8, seed=2)
    keys, values = (torch.zeros(2, 2, 12, 8, dtype=torch.float64) for _ in range(2))
    found = reference.cached_attention(torch.cat([q, k, v], 2), keys, values, torch.arange(9)[None])
    expected = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(found, expected.transpose(1, 2))
    assert torch.equal(keys[:, :, :9], k.transpose(1, 2)) and not keys[:, :, 9:].any()


@each_choice
@pytest.mark.parametrize("size", [1, 5, 16, 255, 256, 257, 1000])
def test_the_likeliest_is_the_first_of_the_largest(choice, size):
    logits = randn(40, size).float().round(decimals=1)  # so that many are equal
    logits[1] = -torch.inf
    logits[2, size // 2] = torch.inf
    expected = [row.tolist().index(row.max()) for row in logits]
    logits[3, -1], expected[3] = torch.nan, size
    with kernels.use(choice):
        assert decode.likeliest(logits).tolist() == expected


def step_arguments(changes=None):
    """A gated model of one block, 4 heads of 8 numbers, 2 of keys and values, 70 ids; texts with 3 and 1 new tokens.

    `changes` are arguments by name, and weights by their place.
    """

    def linear(outputs, inputs):
        return [decode.pack_weight(randn(outputs, inputs).float()), None, None]

    norm = [torch.ones(32), None]
    weights = [randn(70, 32).float(), None, *torch.ones(2, 16, 4), *norm, *linear(70, 32)]
    weights += [
        *norm,
        *linear(64, 32),
        *linear(32, 32),
        *norm,
        *linear(80, 32),
        *linear(80, 32),
        *linear(32, 80),
    ]
    changes = changes or {}
    weights = [changes.get(place, weight) for place, weight in enumerate(weights)]
    named = {name: value for name, value in changes.items() if isinstance(name, str)}
    return {
        "ids": [torch.tensor([[1, 2, 3]]), torch.tensor([[4]])],
        "positions": [torch.tensor([[0, 1, 2]]), torch.tensor([[5]])],
        "pages": [torch.tensor([[0]]), torch.tensor([[1, 2]])],
        "wanted": torch.tensor([2, 3]),
        "keys": [torch.zeros(3, 2, 4, 8)],
        "values": [torch.zeros(3, 2, 4, 8)],
        "weights": weights,
        "norm": "rmsnorm",
        "eps": 1e-5,
        "activation": "silu",
        "window": None,
        **named,
    }


STEP_MISTAKES = {
    "no segment": ({"ids": [], "positions": [], "pages": []}, "there are 0 segments of ids"),
    "positions for one segment": (
        {"positions": [torch.tensor([[0, 1, 2]])]},
        "2 segments of ids, 1 of positions",
    ),
    "ids of rank 1": ({"ids": [torch.tensor([1, 2, 3]), torch.tensor([[4]])]}, "ids has shape"),
    "an id beyond": ({"ids": [torch.tensor([[1, 2, 70]]), torch.tensor([[4]])]}, "ids holds 70"),
    "a position beyond": (
        {"positions": [torch.tensor([[0, 1, 2]]), torch.tensor([[16]])]},
        "positions holds 16",
    ),
    "a token beyond": ({"wanted": torch.tensor([4])}, "wanted holds 4"),
    "wanted of int32": ({"wanted": torch.tensor([1]).int()}, "wanted is Int"),
    "no values": ({"values": []}, "1 blocks of keys, 0 of values"),
    "too few weights": ({"weights": [torch.ones(3, 4)]}, "1 weights: it must be 9 and for each block 19"),
    "no embedding": ({0: None}, "weight 0 is missing"),
    "no second projection": ({14: None}, "weight 14 is missing"),
    "cos alone": ({3: None}, "cos and sin: pass both or neither"),
    "angles of another width": (
        {2: torch.ones(16, 3), 3: torch.ones(16, 3)},
        "the table of angles has shape",
    ),
    "positions of another width": ({1: torch.ones(16, 31)}, "the embedding of positions has shape"),
    "a page beyond": ({"pages": [torch.tensor([[3]]), torch.tensor([[1, 2]])]}, "pages holds 3"),
    "a matrix too narrow": ({11: torch.ones(1, 31, 64)}, "weight has shape"),
}


@needs_kernels
@pytest.mark.parametrize("changes, message", STEP_MISTAKES.values(), ids=STEP_MISTAKES)
def test_a_mistake_of_a_step_is_named(changes, message):
    assert decode.step(**step_arguments()).shape == (2, 70)
    with pytest.raises(ValueError, match=message):
        decode.step(**step_arguments(changes))


def linear_arguments(**changes):
    packed = decode.pack_weight(torch.ones(5, 4))
    return {"x": torch.ones(2, 4), "weight": packed, "outputs": 5, **changes}


LINEAR_MISTAKES = {
    "x strided": (
        {"x": torch.ones(2, 8)[:, ::2]},
        r"x is Float on cpu with strides \[8, 2\]: it must be contiguous",
    ),
    "x of another dtype": ({"x": torch.ones(2, 4).double()}, "x is Double"),
    "a scalar": ({"x": torch.tensor(1.0)}, "x has shape"),
    "x too narrow": ({"x": torch.ones(2, 3)}, "weight has shape"),
    "more outputs than weights": ({"outputs": 65}, "weight has shape"),
    "no outputs": ({"outputs": 0}, "outputs is 0: it must be at least 1"),
    "fewer than no outputs": ({"outputs": -5, "weight": torch.ones(0, 4, 64)}, "outputs is -5"),
    "a weight of float16": ({"weight": torch.ones(1, 4, 64).half()}, "weight has dtype Half"),
    "scales too short": ({"scales": torch.ones(4)}, "scales has shape"),
    "bias too long": ({"bias": torch.ones(6)}, "bias has shape"),
    "residual of another shape": ({"residual": torch.ones(5)}, "residual has shape"),
    "an unknown norm": ({"norm": "batch"}, "norm is 'batch'"),
    "a norm without a weight": ({"norm": "rmsnorm"}, "norm is 'rmsnorm' without a weight"),
    "a weight without a norm": ({"norm_weight": torch.ones(4)}, "norm is 'none' with a weight"),
    "a norm too wide": (
        {"norm": "rmsnorm", "norm_weight": torch.ones(5)},
        "the weight of the norm has shape",
    ),
    "an eps of 0": ({"norm": "rmsnorm", "norm_weight": torch.ones(4), "eps": 0.0}, "eps is 0"),
    "an unknown activation": ({"activation": "relu"}, "activation is 'relu'"),
}
ATTENTION_MISTAKES = {
    "qkv of rank 3": ({"qkv": torch.ones(3, 12, 16)}, "qkv has shape"),
    "qkv of another dtype": ({"qkv": torch.ones(3, 1, 12, 16).double()}, "qkv is Double"),
    "a head of another width": ({"qkv": torch.ones(3, 1, 12, 8)}, "keys has shape"),
    "no heads for queries": ({"qkv": torch.ones(3, 1, 8, 16)}, "keys has 4 heads but qkv 0"),
    "heads that do not divide": ({"qkv": torch.ones(3, 1, 13, 16)}, "keys has 4 heads but qkv 5"),
    "values of another shape": ({"values": torch.ones(6, 4, 19, 16)}, "values has shape"),
    "a position behind the cache": ({"positions": torch.tensor([[20]])}, "positions holds 20"),
    "a position before it": ({"positions": torch.tensor([[-1]])}, "positions holds -1"),
    "positions of another shape": ({"positions": torch.zeros(2, 1, dtype=torch.long)}, "positions has shape"),
    "rows of int32": ({"rows": torch.zeros(3, dtype=torch.int32)}, "rows is Int"),
    "a row that is not there": ({"rows": torch.tensor([0, 1, 6])}, "rows holds 6"),
    "a row twice": ({"rows": torch.tensor([2, 0, 2])}, "rows holds 2 twice"),
    "more rows than the cache": ({"qkv": torch.ones(7, 1, 12, 16)}, "qkv has 7 rows"),
    "angles of another shape": ({"angles": torch.ones(3, 1, 16)}, "angles has shape"),
    "a window of 0": ({"window": 0}, "window is 0"),
    "rows and pages": ({"rows": torch.arange(3), "pages": torch.zeros(3, 1).long()}, "both rows and pages"),
    "pages for fewer rows": ({"pages": torch.zeros(2, 1, dtype=torch.long)}, "pages has shape"),
    "pages of rank 1": ({"pages": torch.zeros(3, dtype=torch.long)}, "pages has shape"),
    "a page that is not there": ({"pages": torch.tensor([[0], [1], [6]])}, "pages holds 6"),
    "a position behind the pages": (
        {"pages": torch.zeros(3, 2, dtype=torch.long), "positions": torch.tensor([[40]])},
        "positions holds 40",
    ),
}


@needs_kernels
@pytest.mark.parametrize("changes, message", LINEAR_MISTAKES.values(), ids=LINEAR_MISTAKES)
def test_a_mistake_of_a_linear_layer_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        decode.packed_linear(**linear_arguments(**changes))


@needs_kernels
@pytest.mark.parametrize("changes, message", ATTENTION_MISTAKES.values(), ids=ATTENTION_MISTAKES)
def test_a_mistake_of_attention_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        decode.cached_attention(**{**attention_case(), **changes})


@needs_kernels
def test_a_backward_is_refused():
    x = torch.ones(2, 4, requires_grad=True)
    qkv = torch.ones(3, 1, 12, 16, requires_grad=True)
    linear, attention = linear_arguments(x=x), {**attention_case(), "qkv": qkv}
    for out in (decode.packed_linear(**linear), decode.cached_attention(**attention)):
        with pytest.raises(RuntimeError, match=r"derivative for slm::.* is not implemented"):
            out.sum().backward()


@needs_kernels
def test_opcheck():
    linear = {
        **dict.fromkeys(("scales", "bias", "norm_weight", "norm_bias", "residual")),
        **linear_arguments(),
    }
    rest = {"norm": "none", "eps": 1e-5, "activation": "gelu"}
    torch.library.opcheck(torch.ops.slm.packed_linear.default, (), {**linear, **rest})
    torch.library.opcheck(
        torch.ops.slm.cached_attention.default, (), attention_case(angles=True, rows=(1, 0, 4))
    )
    step = step_arguments()
    weights = step.pop("weights")
    torch.library.opcheck(torch.ops.slm.decode_step.default, (), {**step, "weights": weights})
    torch.library.opcheck(torch.ops.slm.likeliest.default, (torch.randn(3, 40),), {})
