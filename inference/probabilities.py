"""Text coloured by the probability of each token, with the likeliest tokens in its place."""

import dataclasses
from collections.abc import Sequence

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from inference.scoring import half_overlapping
from inference.text import TextModel

# From surprising to certain: readable in black.
COLOURS = ("#ff8c8c", "#ffb37f", "#ffe083", "#d9ef8b", "#a6d96a")
BOUNDS = (0.01, 0.1, 0.3, 0.7)


@dataclasses.dataclass(frozen=True)
class TokenChoice:
    """A token, its probability, and the likeliest tokens in its place."""

    token: str
    probability: float
    runners_up: list[tuple[str, float]]

    @property
    def colour(self) -> str:
        """Return the colour of its probability.

        >>> TokenChoice("cat", 0.8, []).colour == COLOURS[-1], TokenChoice("cat", 0.1, []).colour == COLOURS[2]
        (True, True)
        """
        return COLOURS[sum(self.probability >= bound for bound in BOUNDS)]


def token_choices(
    text_model: TextModel, ids: Sequence[int], begin: int = 1, count: int = 3
) -> list[TokenChoice]:
    """Return for each of ids[begin:] its probability after the ids before it, and the `count` runners-up."""
    model, size = text_model.model, text_model.model.config.block_size
    found = []
    for start, first in half_overlapping(len(ids), size):
        idx = torch.tensor([ids[start : start + size]], device=model.wte.weight.device)
        with torch.inference_mode():
            probabilities = model(idx)[0][0].float().softmax(-1)  # (T, V), of what follows each id
        for at in range(max(first, begin), min(start + size + 1, len(ids))):
            found.append(_choice(text_model, ids[at], probabilities[at - start - 1], count))
    return found


def _choice(text_model: TextModel, id: int, probabilities: Tensor, count: int) -> TokenChoice:
    """Return one token and the `count` likeliest others, by probabilities (V,)."""
    best = probabilities.topk(min(count + 1, len(probabilities)))
    vocab = text_model.tokenizer.vocab  # the model may have more ids: rows of padding, never trained
    others = [
        (shown(vocab.get(other, b"?")), p)
        for other, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if other != id
    ]
    return TokenChoice(shown(vocab.get(id, b"?")), probabilities[id].item(), others[:count])


def shown(token: bytes) -> str:
    r"""Return a token for printing: parts of characters and control characters by their codes.

    >>> shown(b" caf\xc3"), shown(b"\n")
    (' caf\\xc3', '\\n')
    """
    text = token.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def render(choices: Sequence[TokenChoice]) -> RenderableType:
    """Return the coloured text, a legend, and a table of tokens with their runners-up."""
    text, legend = Text(), Text("probability  ")
    for token in choices:
        text.append(token.token.replace("\\n", "\n"), style=f"black on {token.colour}")
    for name, colour in zip(("below 1 %", "10 %", "30 %", "70 %", "above"), COLOURS, strict=True):
        legend.append(f" {name} ", style=f"black on {colour}")
    table = Table("token", "probability", "instead")
    for token in choices:
        others = "  ".join(f"{other!r} {p:.3f}" for other, p in token.runners_up)
        table.add_row(Text(repr(token.token)), f"{token.probability:.3f}", Text(others))
    return Group(text, legend, table)
