# %% [markdown]
# # Softmax without seeing the whole row
#
# Attention's scores are the largest thing in a GPT, and a fast kernel never stores them. This notebook finds the
# trick by hand, counts what it saves, and then runs our CUDA kernel on the CPU. The derivation is in
# [docs/kernels/attention.md](../docs/kernels/attention.md).

# %%
import math
import time

import torch

import kernels
from kernels.reference import causal_attention as written_out

torch.manual_seed(0)

# %% [markdown]
# ## One pass over a row
#
# Softmax needs the largest score (or exp overflows) and the sum of all powers. Both seem to need the whole row first.
# But they can be corrected as we go: when a larger score appears, everything that was added up so far shrinks by one
# factor.


# %%
def attend_in_tiles(scores: torch.Tensor, v: torch.Tensor, tile: int) -> torch.Tensor:
    """Return softmax(scores) @ v for scores (T,) and v (T, D), with never more than `tile` scores at hand."""
    largest, total, out = -math.inf, 0.0, torch.zeros(v.shape[1])
    for start in range(0, len(scores), tile):
        part, values = scores[start : start + tile], v[start : start + tile]  # (tile,), (tile, D)
        now = max(largest, part.max().item())
        shrink = math.exp(largest - now)  # what was added up with the old maximum is too large by this factor
        powers = (part - now).exp()  # (tile,)
        total = total * shrink + powers.sum().item()
        out = out * shrink + powers @ values  # (D,)
        if now > largest:
            print(f"  tokens {start:2} on: the maximum rises to {now:5.2f}, sums so far times {shrink:.3f}")
        largest = now
    return out / total


scores, v = 3 * torch.randn(40), torch.randn(40, 4)  # try scores that rise, or fall, from left to right
ours = attend_in_tiles(scores, v, tile=8)
print("difference from softmax:", (ours - scores.softmax(0) @ v).abs().max().item())
assert torch.allclose(ours, scores.softmax(0) @ v, atol=1e-6)

# %% [markdown]
# ## What that saves
#
# Count the bytes that go to and from memory. Written out, the T × T scores of a head are written, read by the
# softmax, written again and read again. In tiles there is nothing but q, k, v and the result. (Here for float32 and
# heads of 64; keys and values are counted once, as if they stayed in the cache.)

# %%
print("tokens   written out     in tiles   ratio")
for tokens in (64, 256, 1024, 4096):  # how long must a text be for it to matter?
    vectors = 4 * tokens * 64 * 4  # q, k, v and the result
    materialized = vectors + 4 * tokens * tokens * 4
    print(f"{tokens:6} {materialized:13,} {vectors:12,} {materialized / vectors:7.1f}")

# %% [markdown]
# ## The kernel itself, on a CPU
#
# `emulated` runs the CUDA kernel thread by thread, on ordinary cores: slow, but the same source that a GPU would run.
# `fused` is the kernel for the CPU. All are compared with the formula in float64.

# %%
q, k, v = torch.randn(3, 1, 48, 2, 32)  # each (B, T, H, D)
exact = written_out(q.double(), k.double(), v.double())
available = [name for name, built in {"torch": "cpu", "fused": "cpu", "emulated": "emulated"}.items()
             if kernels.backends()[built] == "available"]  # fmt: skip
for name in available:
    with kernels.use(name):
        begin = time.perf_counter()
        error = (kernels.causal_attention(q, k, v) - exact).abs().max().item()
        print(f"{name:9} error {error:.1e}, {1000 * (time.perf_counter() - begin):8.2f} ms")
    assert error < 1e-5

# %% [markdown]
# ## Two passes that cannot be one
#
# Not every trick is sound. The variance of a layer norm is the mean of (x − mean)², two passes over the row. E[x²] −
# E[x]² needs one, and subtracts two large numbers that are nearly equal:

# %%
row = torch.randn(1000)  # the true variance is about 1
for shift in (0, 10, 1_000, 10_000):
    x = row + shift
    once = (x.square().mean() - x.mean().square()).item()
    twice = (x - x.mean()).square().mean().item()
    print(f"mean {shift:6}: in two passes {twice:8.5f}, in one {once:10.5f}")
assert abs(twice - row.var(correction=0).item()) < 0.01 < abs(once - twice)

# %% [markdown]
# ## Things to try
#
# - Tiles of 1 and of 40 in `attend_in_tiles`. Scores with −∞ in them, as a mask puts there: which tile fails, and
#   why?
# - `with kernels.use("fused")` on 1,024 tokens and more, against `written_out`: where does the time go?
# - One pass with the variance taken of x − x[0]. Is that enough? When not?
# - `python -m kernels ladder` counts what each idea in the real kernels saves.
