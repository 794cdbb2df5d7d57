"""Train basics/gpt.py on a text file, about a minute on a CPU: python basics/train.py my.txt

All of it is here: batches, cross-entropy, AdamW, a schedule for the learning rate, the loop. Tokens are bytes, so that
no vocabulary is needed. The weights go to my.safetensors, for basics/sample.py. The fast rooms that grew from this
file are data/ (batches), kernels/chunked_loss.py (cross-entropy) and training/ (everything else).
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs from anywhere

from basics.gpt import GPT, GPTConfig
from basics.sample import generate


def get_batch(
    ids: Tensor, batch_size: int, block_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return windows x (B, T) of ids (N,) that start anywhere, and y (B, T): at every place, the id that comes next."""
    starts = torch.randint(len(ids) - block_size, (batch_size,), generator=generator)  # (B,)
    windows = torch.stack([ids[i : i + block_size + 1] for i in starts])  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -ln softmax(logits)[target]. logits (N, V), targets (N,) -> one number, in nats."""
    logits = logits - logits.amax(-1, keepdim=True)  # (N, V): changes nothing but keeps exp from overflowing
    right = logits.gather(-1, targets[:, None])[:, 0]  # (N, V), (N, 1) -> (N,)
    return (logits.exp().sum(-1).log() - right).mean()


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, algorithm 2)."""

    def __init__(
        self, parameters: Iterable[Tensor], betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):  # fmt: skip
        self.parameters, self.betas, self.eps, self.weight_decay = list(parameters), betas, eps, weight_decay
        self.means = [torch.zeros_like(p) for p in self.parameters]  # of the gradient
        self.squares = [torch.zeros_like(p) for p in self.parameters]  # of the gradient's square
        self.steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every weight against its gradient, by about `rate` whatever the gradient's size; forget the gradient."""
        self.steps += 1
        beta1, beta2 = self.betas
        for p, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            mean.mul_(beta1).add_(p.grad, alpha=1 - beta1)  # a running average that forgets
            square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            # Both began at zero and are too small at first; dividing by 1 - beta^steps undoes exactly that.
            unbiased, root = mean / (1 - beta1**self.steps), (square / (1 - beta2**self.steps)).sqrt()
            if p.dim() >= 2:  # matrices decay towards zero; biases and norms are left alone
                p.mul_(1 - rate * self.weight_decay)
            p.sub_(rate * unbiased / (root + self.eps))
            p.grad = None


def learning_rate(step: int, steps: int, peak: float = 3e-3, warmup: int = 50) -> float:
    """Return the rate of a step: a straight line up to the peak, then half a cosine down to a tenth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def clip_gradient(parameters: Iterable[Tensor], limit: float = 1.0) -> None:
    """Scale the whole gradient down to length `limit` if it is longer: one strange batch must not throw the weights."""
    gradients = [p.grad for p in parameters]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    for gradient in gradients:
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))


def train(model: GPT, ids: Tensor, steps: int = 800, batch_size: int = 16, seed: int = 0) -> GPT:
    """Train the model on ids (N,) in place, printing the loss; returns it."""
    generator, optimizer = torch.Generator().manual_seed(seed), AdamW(model.parameters())
    model.train()
    for step in range(steps):
        x, y = get_batch(ids, batch_size, model.config.block_size, generator)  # (B, T), (B, T)
        logits = model(x)  # (B, T) -> (B, T, V)
        loss = cross_entropy(logits.flatten(0, 1), y.flatten())  # (B T, V), (B T,) -> one number
        loss.backward()
        clip_gradient(optimizer.parameters)
        optimizer.step(learning_rate(step, steps))
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: {loss.item():.3f} nats per byte")
    return model


def main() -> None:
    """Train on the file, save the weights and show what was learned."""
    if len(sys.argv) < 2:
        sys.exit("usage: python basics/train.py my.txt")
    path = Path(sys.argv[1])
    ids = torch.tensor(list(path.read_bytes()))  # (N,)
    if len(ids) <= GPTConfig.block_size:
        sys.exit(f"{path} has {len(ids)} bytes: give a text of more than {GPTConfig.block_size}")
    torch.manual_seed(0)
    model = train(GPT(GPTConfig()), ids)
    save_file(model.state_dict(), path.with_suffix(".safetensors"))
    prompt = ids[:20].tolist()
    print(bytes(prompt + generate(model, prompt, 300)).decode(errors="replace"))


if __name__ == "__main__":
    main()
