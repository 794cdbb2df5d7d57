"""How good a model is: loss on both splits, bits per byte, and the stories it tells."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bpe import END_OF_TEXT, Tokenizer
from data.batches import IGNORED, Documents, Sampler, TokenFile
from inference.text import said
from model import GPT, generate
from model.gpt import evaluating

LONGEST = 1 << 20  # tokens: what one evaluation of a whole file reads at most


@torch.no_grad()
def estimate_loss(model: GPT, sampler: Sampler, batches: int) -> float:
    """Mean loss in nats per token over the sampler's next `batches` batches, which are next again afterwards."""
    position = sampler.position()
    loss = _mean_loss(model, itertools.islice(sampler, batches))
    sampler.seek(position)
    return loss


@torch.no_grad()
def full_loss(model: GPT, file: TokenFile, kind: str, batch_size: int, limit: int = LONGEST) -> float:
    """Mean loss in nats per token over about the first `limit` tokens of the file, each predicted once.

    "random": windows side by side, whatever they cut. "documents": each document from its own beginning.
    """
    block_size = model.config.block_size
    if kind == "random":
        ids = torch.from_numpy(file.tokens[:limit].astype("int64"))
        return _mean_loss(model, _every_window(ids, block_size, batch_size))
    rows = Documents(file, batch_size, block_size, mode="pad", epochs=1)
    share = min(1.0, limit / len(file))
    return _mean_loss(model, itertools.islice(rows, math.ceil(share * len(rows) / batch_size)))


def _every_window(ids: Tensor, block_size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows side by side, (B, T) each; what is left at the end is a shorter batch of one."""
    whole = (len(ids) - 1) // block_size * block_size
    x = ids[:whole].view(-1, block_size)  # (N,) -> (windows, T)
    y = ids[1 : whole + 1].view(-1, block_size)  # the same, one token later
    yield from zip(x.split(batch_size), y.split(batch_size), strict=True)
    if whole < len(ids) - 1:
        yield ids[whole:-1][None], ids[whole + 1 :][None]  # (rest,) -> (1, rest)


def _mean_loss(model: GPT, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """The mean over tokens, in evaluation mode; the model's mode is put back."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    with evaluating(model):
        for x, y in batches:
            _, loss = model(x.to(device), y.to(device))
            predicted = int((y != IGNORED).sum())
            total += loss.item() * predicted  # summed in Python's float64, which not every device has
            count += predicted
    return total / count


def bits_per_byte(loss: float, tokens: int, num_bytes: int) -> float:
    """Nats per token turned into bits per byte of text, which compares across tokenizers.

    >>> bits_per_byte(math.log(2) * 4, tokens=100, num_bytes=400)
    1.0
    """
    return loss * tokens / (math.log(2) * num_bytes)


def tell_stories(model: GPT, tokenizer: Tokenizer, count: int, *, temperature: float, seed: int) -> list[str]:
    """`count` stories from `<|endoftext|>` on, each cut at the next one or at the context length."""
    end = tokenizer.special_tokens[END_OF_TEXT]
    told = generate.generate_batch(
        model,
        [[end]] * count,
        max_new_tokens=model.config.block_size - 1,
        temperature=temperature,
        stop=end,
        seed=seed,
    )
    return [said(tokenizer, ids).strip() for ids in told]
