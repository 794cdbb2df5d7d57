# %% [markdown]
# # One knob at a time
#
# A training has few knobs, and each can ruin it. This notebook turns them one after the other on a model so small
# that a run takes a second or two. What they are is in [docs/training.md](../docs/training.md).

# %%
import torch

from bpe import train
from data.stories import story
from model import GPT, GPTConfig
from training.optimizer import Muon

torch.set_num_threads(1)
stories = "\n".join(story(1, number) for number in range(220))
tokenizer = train([stories], 400, progress=False)
ids = torch.tensor(tokenizer.encode(stories))
learned, held_out = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
CONFIG = GPTConfig(vocab_size=400, block_size=48, n_layer=2, n_head=2, n_embd=64)
print(f"{len(learned):,} tokens to learn from, {len(held_out):,} held out")

# %% [markdown]
# ## The loop
#
# All of training is here: draw windows, compute the loss, let autograd find the gradient, move against it.


# %%
def windows(ids: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 16 windows x (16, 48) of ids (N,) and y, the same one token later."""
    starts = torch.randint(len(ids) - 48, (16,), generator=generator)
    rows = torch.stack([ids[i : i + 49] for i in starts])  # (16, 49)
    return rows[:, :-1], rows[:, 1:]


def loss_of(gpt: GPT, ids: torch.Tensor) -> float:
    """Return the loss on the same 10 × 16 windows of `ids` for every model."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        return sum(gpt(*windows(ids, generator))[1].item() for _ in range(10)) / 10


def adamw(gpt: GPT, rate: float) -> list[torch.optim.Optimizer]:
    """Return AdamW for all parameters."""
    return [torch.optim.AdamW(gpt.parameters(), lr=rate, betas=(0.9, 0.95))]


def run(rate: float, steps: int = 120, optimizers=adamw, ids: torch.Tensor = learned) -> GPT:
    """Return a model after so many steps on windows of `ids`."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    gpt = GPT(CONFIG)
    used = optimizers(gpt, rate)
    for _ in range(steps):
        gpt(*windows(ids, generator))[1].backward()
        for each in used:
            each.step()
            each.zero_grad()
    return gpt


# %% [markdown]
# ## The learning rate
#
# The most important knob. Too small, and the run ends before it has got anywhere. Too large, and each step undoes the
# last. The best is often just below where it breaks.

# %%
losses = {rate: loss_of(run(rate), held_out) for rate in (5e-4, 2e-3, 1e-2)}
for rate, loss in losses.items():
    print(f"rate {rate:6g}  loss {loss:.2f}  {'█' * round(10 * loss)}")
best = min(losses, key=losses.get)
assert best == 2e-3

# %% [markdown]
# ## Another optimizer
#
# Muon makes all directions of a matrix's step equally long, so the rare ones are learned too. The matrices inside the
# blocks get it; embeddings and norms stay with AdamW.


# %%
def muon(gpt: GPT, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks, and AdamW for the rest."""
    inside = [p for p in gpt.h.parameters() if p.dim() == 2]
    chosen = {id(p) for p in inside}
    rest = [p for p in gpt.parameters() if id(p) not in chosen]
    return [Muon(inside, lr=0.02), torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95))]


with_muon = loss_of(run(1e-2, optimizers=muon), held_out)
print(f"AdamW {losses[best]:.2f}, Muon {with_muon:.2f}")
assert with_muon < losses[best] - 0.2

# %% [markdown]
# The rate 0.01, which was too large for all parameters, is a good one for the embeddings alone. Different parts of a
# model want different steps, and Muon takes the most delicate ones away from AdamW.

# %% [markdown]
# ## Learning by heart
#
# With little text and many steps the loss on that text falls on and on, and the loss on other text turns round and
# rises. That is why there is a validation loss, and why `best/` of a run is not its last step.

# %%
little = learned[:600]
for steps in (20, 80, 160):
    gpt = run(best, steps=steps, ids=little)
    on_them, on_others = loss_of(gpt, little), loss_of(gpt, held_out)
    print(f"{steps:3} steps on 600 tokens: loss {on_them:.2f} on them, {on_others:.2f} on others")
assert on_them < 1 < 4 < on_others

# %% [markdown]
# ## Things to try
#
# - A warm-up: let the rate rise over the first twenty steps. Which rates does it save?
# - Let the rate fall to zero over the last third. In so short a run it loses; in one of 600 steps?
# - Half the windows (8 in place of 16) and twice the steps: the same tokens. Which is better, and at which rate?
# - `n_layer=4` or `n_embd=128`: does the best rate move?
# - `betas=(0.9, 0.999)`: in a run of 120 steps, what does the second number mean?
