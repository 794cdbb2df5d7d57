"""How good a model is: loss on both splits, bits per byte, and the stories it tells."""

import itertools
import math
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bpe import Tokenizer
from data.batches import IGNORED, Documents, Sampler, TokenFile
from data.sampler import map_tensors
from inference.run import decode
from model import GPT, generate
from model.gpt import evaluating

LONGEST = 1 << 20  # tokens: what one evaluation of a whole file reads at most
# The built-in corpora whose texts can be judged, and the function that does: only that of the corpus in use is loaded.
CHECKERS = {"stories": "data.stories:coherence"}


@torch.no_grad()
def estimate_loss(
    model: GPT, sampler: Sampler, batches: int, loss: Callable[..., Tensor], weight: Callable[[Any], float]
) -> float:
    """Return the mean loss over the sampler's next batches, and put the sampler back.

    `loss` of the model and a batch, and the batch's `weight` in the mean, are those of an objective (training).
    """
    position = sampler.position()
    mean = _mean_loss(model, itertools.islice(sampler, batches), loss, weight)
    sampler.seek(position)
    return mean


@torch.no_grad()
def full_loss(model: GPT, file: TokenFile, kind: str, batch_size: int, limit: int = LONGEST) -> float:
    """Return the mean loss in nats per token over about the first `limit` tokens of the file, each predicted once.

    kind "random" or "epochs": adjacent windows, also across documents. Else each document from its own beginning.
    """
    block_size = model.config.block_size
    if kind in ("random", "epochs"):
        ids = torch.from_numpy(file.tokens[:limit].astype("int64"))
        return _mean_loss(model, _every_window(ids, block_size, batch_size), _token_loss, _predicted)
    rows = Documents(file, batch_size, block_size, mode="pad", epochs=1)
    share = min(1.0, limit / len(file))
    first = itertools.islice(rows, math.ceil(share * len(rows) / batch_size))
    return _mean_loss(model, first, _token_loss, _predicted)


def _every_window(ids: Tensor, block_size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield adjacent windows, (B, T) each; the rest at the end is one shorter window."""
    whole = (len(ids) - 1) // block_size * block_size
    x = ids[:whole].view(-1, block_size)  # (N,) -> (windows, T)
    y = ids[1 : whole + 1].view(-1, block_size)  # the same, one token later
    yield from zip(x.split(batch_size), y.split(batch_size), strict=True)
    if whole < len(ids) - 1:
        yield ids[whole:-1][None], ids[whole + 1 :][None]  # (rest,) -> (1, rest)


def _token_loss(model: GPT, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(*batch, with_logits=False)[1]


def _predicted(batch: tuple[Tensor, Tensor]) -> float:
    return (batch[1] != IGNORED).sum().item()


def _mean_loss(
    model: GPT, batches: Iterator[Any], loss: Callable[..., Tensor], weight: Callable[[Any], float]
) -> float:
    """Return the weighted mean over batches, computed in evaluation mode; restore the model's mode."""
    device, total, count = next(model.parameters()).device, 0.0, 0.0
    with evaluating(model):
        for batch in batches:
            counted = weight(batch)
            here = map_tensors(batch, lambda tensor: tensor.to(device))
            total += loss(model, here).item() * counted  # in Python's float64, which not every device has
            count += counted
    return total / count


def bits_per_byte(loss: float, tokens: int, num_bytes: int) -> float:
    """Return nats per token as bits per byte of text, which compares across tokenizers.

    >>> bits_per_byte(math.log(2) * 4, tokens=100, num_bytes=400)
    1.0
    """
    return loss * tokens / (math.log(2) * num_bytes)


def sample_stories(
    model: GPT, tokenizer: Tokenizer, count: int, *, temperature: float, seed: int
) -> list[str]:
    """Sample `count` texts from the end-of-text token on, each up to the next one or the context length."""
    end = tokenizer.special_tokens[tokenizer.end_of_text]
    rows = generate.generate_batch(
        model,
        [[end]] * count,
        max_new_tokens=model.config.block_size - 1,
        temperature=temperature,
        stop=end,
        seed=seed,
    )
    return [decode(tokenizer, ids).strip() for ids in rows]


def coherence_checker(sources: Sequence[str]) -> Callable[[list[str]], float] | None:
    """Return a function that gives the fraction of coherent texts; None unless all sources are one built-in corpus."""
    kinds = {source.split(":")[0] for source in sources}
    known = CHECKERS.get(kinds.pop()) if len(kinds) == 1 else None
    return pkgutil.resolve_name(known) if known else None
