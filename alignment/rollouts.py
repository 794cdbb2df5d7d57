"""Answers sampled to prompts: what reinforcement learning learns from.

Prompts are continued in batches with the KV cache, at the sampling temperature alone: no top-k, no penalty, because the
losses need the probability with which each token was drawn, and that is recorded as it is drawn. A row of the result is
a prompt, its answer, and padding on the right, which no token before it sees:

    ids                 p p p a a a !  0 0        ! ends the turn and is learned; an answer cut off has none
    mask                0 0 0 1 1 1 1  0 0
    log_probabilities   0 0 0 x x x x  0 0
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from alignment import losses
from inference.chat import ChatTemplate
from inference.run import weights_directory
from model import GPT
from model.generate import Generation, Rules
from model.gpt import evaluating
from model.pack import for_decoding
from training.config import TrainConfig

B = TypeVar("B")
WIDTH = 32  # tokens that a batch's width is a multiple of: torch keeps compiled products for every shape that it meets
ROWS = 96  # answers in one pass: more do not go faster, but need more memory for keys and values


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """N answers, T tokens of prompt, answer and padding."""

    ids: Tensor
    """(N, T) int64."""
    mask: Tensor
    """(N, T) int64: 1 at the answer's tokens, with the one that ends it."""
    log_probabilities: Tensor
    """(N, T) float32: how likely each token of an answer was when it was drawn; 0 elsewhere."""
    finished: Tensor
    """(N,) bool: True if the answer ended by itself, False if it was cut off."""
    answers: list[str]

    @property
    def lengths(self) -> Tensor:
        """Return the tokens of each answer, (N,)."""
        return self.mask.sum(1)


def sample(
    model: GPT,
    template: ChatTemplate,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
) -> Rollouts:
    """Return an answer to each prompt, of at most `max_new_tokens` tokens and no more than fit the context.

    Temperature 0 is greedy. Drawn with torch's global generator, whose state is in a run's checkpoints. ValueError for
    a prompt that leaves no room for an answer.
    """
    block_size = model.config.block_size
    for prompt in prompts:
        if len(prompt) >= block_size:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens leaves no room in a context of {block_size}: leave it out"
            )
    rows = []
    with parametrize.cached():  # adapters are added to the weights once
        model = for_decoding(model)
        for first in range(0, len(prompts), ROWS):
            part = prompts[first : first + ROWS]
            rows += _continue(model, part, max_new_tokens, temperature, template.stops)
    return _padded(rows, template, block_size, model.wte.weight.device)


@dataclasses.dataclass(frozen=True)
class _Row:
    prompt: list[int]
    answer: list[int]
    log_probabilities: Tensor
    finished: bool


def _continue(
    model: GPT, prompts: Sequence[Sequence[int]], most: int, temperature: float, stops: set[int]
) -> list[_Row]:
    """Continue prompts in one batch, each up to a stop or its limit."""
    limits = [min(most, model.config.block_size - len(prompt)) for prompt in prompts]
    rules = Rules(temperature=temperature)
    generation = Generation(model, prompts, max(limits), rules=rules, stop=stops, record=True)
    lengths = [0] * len(prompts)
    for drawn in generation:
        for row in drawn:
            lengths[row] += 1
            if lengths[row] == limits[row]:
                generation.close(row)
    recorded = generation.log_probabilities().cpu()
    rows = []
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        after = generation.ids[row][len(prompt) :]
        finished = length < limits[row]  # closed by a stop, which is the next token and was not yielded
        answer = after[: length + finished]
        rows.append(_Row(list(prompt), answer, recorded[row, : len(answer)], finished))
    return rows


def _padded(rows: Sequence[_Row], template: ChatTemplate, block_size: int, device: torch.device) -> Rollouts:
    """Return rows as tensors with padding on the right."""
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    shape = len(rows), min(_rounded(longest), block_size)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    log_probabilities = torch.zeros(shape)
    for number, row in enumerate(rows):
        first, last = len(row.prompt), len(row.prompt) + len(row.answer)
        ids[number, :last] = torch.tensor([*row.prompt, *row.answer])
        mask[number, first:last] = 1
        log_probabilities[number, first:last] = row.log_probabilities
    finished = torch.tensor([row.finished for row in rows])
    tensors = (tensor.to(device) for tensor in (ids, mask, log_probabilities, finished))
    return Rollouts(*tensors, [template.text(row.answer) for row in rows])


def token_log_probabilities(
    model: Callable[..., Any], ids: Tensor, mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return log P(token) (B, T) of a model at the tokens of the mask, 0 elsewhere, for ids and mask (B, T).

    Logits are made for these tokens alone: those of prompts and padding would be more, and the costliest of the model.
    """
    wanted = mask[:, 1:].bool()
    logits, _ = model(ids[:, :-1], at=wanted)  # (N, V) for the N tokens of the mask
    found = losses.token_log_probabilities(logits, ids[:, 1:][wanted], temperature)
    return after(torch.zeros_like(wanted, dtype=found.dtype).masked_scatter(wanted, found))


def after(predictions: Tensor) -> Tensor:
    """Move what a model says at a token to the token that it is about, the next one: (B, T - 1) -> (B, T).

    The first token has no prediction, because nothing comes before it: 0.

    >>> after(torch.tensor([[1.0, 2.0]])).tolist()
    [[0.0, 1.0, 2.0]]
    """
    return torch.nn.functional.pad(predictions, (1, 0))


def trimmed(batch: B) -> B:
    """Return a batch of rows, a dataclass with `ids` and `mask` (B, T), without most padding that all rows share."""
    used, width = batch.mask.any(0).nonzero(), batch.ids.shape[1]
    longest = min(width, _rounded(int(used.max()) + 1 if len(used) else 1))
    cut = {
        name: tensor[:, :longest]
        for name, tensor in vars(batch).items()
        if tensor.dim() > 1 and tensor.shape[1] == width
    }
    return dataclasses.replace(batch, **cut)


def _rounded(tokens: int) -> int:
    """Return the next multiple of WIDTH.

    >>> _rounded(33)
    64
    """
    return -(-tokens // WIDTH) * WIDTH


@torch.no_grad()
def kl_on_samples(
    model: GPT,
    reference: GPT,
    template: ChatTemplate,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    seed: int,
) -> float:
    """Return KL(model ‖ reference) in nats per token, estimated on one answer of the model to each prompt.

    The random state of training is left as it was, so that looking changes nothing.
    """
    with torch.random.fork_rng(devices=[]), evaluating(model):
        torch.manual_seed(seed)
        rollouts = sample(model, template, prompts, max_new_tokens, 1.0)
        new, old = (token_log_probabilities(each, rollouts.ids, rollouts.mask) for each in (model, reference))
    return losses.masked_mean(losses.kl(new, old), rollouts.mask).item()


def reference_model(config: TrainConfig, device: torch.device) -> GPT:
    """Return the model that a run began with, frozen; the random state of training is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the rows of new tokens are drawn as they were when the run began
        found = GPT.from_pretrained(weights_directory(config.init_from), dropout=0.0)
        found = found.with_vocabulary(config.model.vocab_size)
    return found.to(device).requires_grad_(False).eval()
