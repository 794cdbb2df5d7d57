# %% [markdown]
# # A GPT, taken apart
#
# What is each part of a GPT for? Take it away and see what the model can no longer do. The parts themselves are
# explained in [docs/model.md](../docs/model.md).

# %%
import math
from dataclasses import replace

import torch

from model import GPT, GPTConfig

torch.manual_seed(0)
WHOLE = GPTConfig(vocab_size=16, block_size=23, n_layer=1, n_head=4, n_embd=64)

# %% [markdown]
# ## Before it has learned anything
#
# A new model knows nothing, so it should guess: each of the 16 ids with probability 1/16, a loss of ln 16. A model
# whose first loss is higher believes something without a reason.

# %%
gpt = GPT(WHOLE)
idx = torch.randint(16, (8, 24))
_, loss = gpt(idx[:, :-1], idx[:, 1:])
print(f"first loss {loss.item():.3f}, ln 16 = {math.log(16):.3f}")

# %% [markdown]
# ## It cannot look ahead
#
# Change one token and see which predictions change (█). Those before it must not: they could not have read it.


# %%
def changed(gpt: GPT, at: int) -> str:
    """Return a █ for every place whose logits change with the token at `at`, and a · for the others."""
    other = idx[:1, :-1].clone()
    other[0, at] = (other[0, at] + 1) % 16
    with torch.no_grad():
        before, after = gpt(idx[:1, :-1])[0], gpt(other)[0]  # (1, T, V)
    return "".join("█" if different else "·" for different in (before != after).any(-1)[0])


for at in (0, 5, 11, 22):
    print(f"token {at:2}: {changed(gpt, at)}")
assert changed(gpt, 5).startswith("·····█")

# %% [markdown]
# ## A task with one right answer
#
# Twelve random ids, and then the same twelve again. The first half cannot be predicted. The second half can, by a
# model that looks back exactly eleven tokens: the token there is the one that comes next. We train for some seconds
# and count how often the second half is right.


# %%
def repeated(count: int) -> torch.Tensor:
    """Return (count, 24) ids of which the second half repeats the first."""
    return torch.randint(16, (count, 12)).repeat(1, 2)


def learn(config: GPTConfig, steps: int = 60) -> tuple[GPT, float]:
    """Return a model after so many steps of AdamW, and the fraction of the second halves that it then gets right."""
    torch.manual_seed(1)
    gpt = GPT(config)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=5e-3)
    for _ in range(steps):
        rows = repeated(32)
        _, loss = gpt(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = repeated(200)
    with torch.no_grad():
        guesses = gpt(rows[:, :-1])[0].argmax(-1)  # (200, 23, 16) -> (200, 23)
    return gpt, (guesses[:, 12:] == rows[:, 13:]).float().mean().item()


VARIANTS = {  # add some
    "the whole model": WHOLE,
    "without positions": replace(WHOLE, positions="none"),
    "rotary positions": replace(WHOLE, positions="rotary"),
    "a window of 6 tokens": replace(WHOLE, window=6),
    "a window of 12 tokens": replace(WHOLE, window=12),
}
right = {}
for name, config in VARIANTS.items():
    trained, right[name] = learn(config)
    print(f"{name:24} {right[name]:4.0%} right")

# %% [markdown]
# Without positions attention sees which tokens there were, but not where, so it can only guess among them. A window
# of 6 does not reach far enough; one of 12 does, by just enough.

# %%
assert min(right["the whole model"], right["a window of 12 tokens"]) > 0.9
assert max(right["without positions"], right["a window of 6 tokens"]) < 0.5

# %% [markdown]
# ## Where it looks
#
# The attention of a trained head, darker where the weight is larger: one row per token. The second half should be a
# diagonal, eleven to the left.

# %%
gpt, _ = learn(WHOLE)
block = gpt.h[0]
rows = repeated(1)[:, :-1]
with torch.no_grad():
    x = gpt.wte(rows) + gpt.wpe(torch.arange(rows.shape[1]))  # (1, T, C)
    q, k, _ = block.attn.c_attn(block.ln_1(x)).unflatten(-1, (3, 4, 16)).unbind(2)  # three of (1, T, H, D)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 4  # (1, H, T, T): over √D
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)[0]  # (H, T, T)
    ahead = torch.arange(11, 23)
    head = weights[:, ahead, ahead - 11].mean(-1).argmax()  # the head that looks back eleven tokens most
for row in weights[head]:
    print("".join(" ░▒▓█"[min(4, int(5 * weight))] for weight in row))

# %% [markdown]
# ## Things to try
#
# - `n_head=1`, `n_embd=16`, `mlp="swiglu"`, `norm="rmsnorm"`: which of them does this task need?
# - Two layers and a window of 7: information travels six tokens a layer. Do twelve come together?
# - Repeat a pattern of random length instead of twelve. Then no fixed distance is right, and the model must look for
#   the place where it saw the present token before: that takes two layers, and much longer.
