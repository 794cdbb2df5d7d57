"""A second head on a GPT: one number for every token, PPO's critic or a reward model's score."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inference.run import weights_directory
from model import GPT

HEAD = "head.safetensors"


class Headed(GPT):
    """A GPT whose `forward` returns logits and values. It takes over the parts of the GPT that it is made of."""

    def __init__(self, gpt: GPT) -> None:
        nn.Module.__init__(self)  # and not GPT's, which would make and draw all weights again
        self.config = gpt.config
        self._modules.update(gpt._modules)
        self._parameters.update(gpt._parameters)
        self.value_head = nn.Linear(gpt.config.n_embd, 1)
        nn.init.zeros_(self.value_head.weight)  # at first every token is worth 0
        nn.init.zeros_(self.value_head.bias)
        self.train(gpt.training)

    def forward(self, idx: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits (B, T, V) and values (B, T) for ids (B, T); `at` is that of GPT.forward."""
        self._check(idx, None)
        hidden = self.hidden(idx)
        return self.logits(hidden if at is None else hidden[at]), self.values_of(hidden)

    def values(self, idx: Tensor) -> Tensor:
        """Return the values (B, T) alone."""
        return self.values_of(self.hidden(idx))

    def values_of(self, hidden: Tensor) -> Tensor:
        """Map what the heads read, (B, T, C), to values (B, T)."""
        return self.value_head(hidden)[..., 0].float()

    def save_head(self, directory: Path) -> None:
        """Write the second head's weights, which a GPT's file has no place for."""
        save_file(
            {name: t.detach().cpu() for name, t in self.value_head.state_dict().items()}, directory / HEAD
        )


def load(run: Path) -> Headed:
    """Return the model of a run with its second head, ready to evaluate; FileNotFoundError if it has none."""
    directory = weights_directory(run)
    if not (directory / HEAD).is_file():
        raise FileNotFoundError(
            f"{run} is no reward model (no {HEAD}): train one by python -m alignment reward-model"
        )
    model = Headed(GPT.from_pretrained(directory))
    model.value_head.load_state_dict(load_file(directory / HEAD))
    return model.eval()


def last_values(values: Tensor, mask: Tensor) -> Tensor:
    """Return each row's value (B,) at the last token of its answer, whatever padding says: values, mask (B, T).

    >>> last_values(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1, 1, 0]])).tolist()
    [2.0]
    """
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1, keepdim=True)  # (B, 1)
    return values.gather(1, last)[:, 0]


@torch.no_grad()
def at_last(rewards: Tensor, mask: Tensor) -> Tensor:
    """Return (B, T) with each row's reward (B,) at the last token of its answer, and 0 elsewhere.

    >>> at_last(torch.tensor([5.0]), torch.tensor([[0, 1, 1, 0]])).tolist()
    [[0.0, 0.0, 5.0, 0.0]]
    """
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1, keepdim=True)  # (B, 1)
    return torch.zeros(mask.shape, device=mask.device).scatter_(1, last, rewards[:, None].float())
