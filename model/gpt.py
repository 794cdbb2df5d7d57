"""The GPT: token and position embeddings, a stack of blocks, a final norm, and a head.

Grown from basics/gpt.py. Parameter names are GPT-2's: wte, wpe, h.0.ln_1, h.0.attn.c_attn, …, ln_f, lm_head.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import kernels
from kernels.chunked_loss import IGNORED, default_budget
from kernels.reference import softcap
from model import llama, pretrained
from model.ahead import AHEAD, Ahead, one_later
from model.attention import Cache, CausalSelfAttention
from model.config import GPTConfig
from model.experts import Experts, balance
from model.latent import LatentAttention
from model.layers import (
    LearnedPositions,
    SinusoidalPositions,
    make_mlp,
    make_norm,
    position_angles,
    sines,
)
from model.ssm import StateCache, StateSpace
from model.step import Step

INIT_STD = 0.02


class Block(nn.Module):
    """Attention, then an MLP, each added to the residual stream; normalized before each (GPT-2) or after."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = LatentAttention(config) if config.kv_lora_rank else CausalSelfAttention(config)
        self.ln_2 = make_norm(config)
        self.mlp = Experts(config) if config.n_expert else make_mlp(config, config.inner)
        self.drop = nn.Dropout(config.dropout)
        self.post = config.norm_place == "post"

    def forward(
        self,
        x: Tensor,
        angles: Tensor | None = None,
        cache: Cache | None = None,
        values: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        options = {} if ends is None else {"ends": ends}
        if self.post:
            x, _ = self.ln_1.add(self.attn(x, angles, cache, values, **options), x)
            x, _ = self.ln_2.add(self.drop(self.mlp(x)), x)
            return x
        normed, x = self.ln_2.add(self.attn(self.ln_1(x), angles, cache, values, **options), x)
        return x + self.drop(self.mlp(normed))


class StateBlock(nn.Module):
    """A state space, added to the residual stream; normalized before or after. It needs no positions and has no MLP."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.mixer = StateSpace(config)
        self.post = config.norm_place == "post"

    def forward(
        self, x: Tensor, angles: Tensor | None, cache: StateCache | None = None, values: Tensor | None = None
    ) -> Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        return self.ln_1(x + self.mixer(x, cache)) if self.post else x + self.mixer(self.ln_1(x), cache)


BLOCKS = {"a": Block, "m": StateBlock}


def _positions(config: GPTConfig) -> nn.Module | None:
    if config.positions == "learned":
        return LearnedPositions(config.block_size, config.n_embd)
    return SinusoidalPositions(config.n_embd) if config.positions == "sinusoidal" else None


class GPT(nn.Module):
    """A decoder-only transformer. `GPT(config)(idx)` is `(logits, None)`; with targets `(logits, loss)`."""

    fused_step: Step | None = None
    """A pass over cached tokens in one call, where model.pack has one for the model."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = _positions(config)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(BLOCKS[kind](config) for kind in config.pattern)
        self.ln_f = (
            make_norm(config) if config.norm_place == "pre" else nn.Identity()
        )  # post-norm ends in one
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied_head:
            self.lm_head.weight = self.wte.weight
        if config.value_embedding:
            self.wve = nn.Embedding(config.vocab_size, config.kv_heads * config.head_dim)
        if config.residual_scalars:
            self.stream_scale = nn.Parameter(torch.ones(config.n_layer))
            self.embedding_scale = nn.Parameter(torch.zeros(config.n_layer))
        self.ahead = nn.ModuleList(Ahead(config, Block(config)) for _ in range(config.n_ahead or 0))
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Draw weights as GPT-2: deviation 0.02, times 1/sqrt(2 n_layer) where they add to the stream; biases are 0.

        With zero_init what adds to the stream starts at 0. With mimetic_init attention starts as
        CausalSelfAttention.imitate says, and learned positions as sines (Vaswani et al. 2017). With µP the variance of
        the blocks' matrices falls with the width, as the number of terms that they sum up grows.
        """
        inside = INIT_STD / math.sqrt(self.config.width_ratio)
        residual = 0.0 if self.config.zero_init else inside / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.dim() == 2:
                std = inside if name.startswith("h.") else INIT_STD
                parameter.normal_(0.0, residual if name.endswith("c_proj.weight") else std)
        if self.config.mimetic_init:
            for block in self.h:
                if isinstance(block, Block):
                    block.attn.imitate(residual / inside)
            if self.config.positions == "learned":
                self.wpe.weight.copy_(
                    INIT_STD * sines(torch.arange(self.config.block_size), self.config.n_embd)
                )

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        *,
        with_logits: bool = True,
        documents: Tensor | None = None,
        at: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return logits (B, T, V) for ids idx (B, T), and with targets (B, T) the mean loss in nats per token.

        Targets of -100 are ignored. In training the loss also has the gradient, but not the value, of what keeps the
        load of experts even and of the tokens ahead. With targets the logits carry no gradient, and are None if they
        would not fit into one chunk (kernels.chunked_loss.default_budget), or if `with_logits` is False: then they are
        never all made.

        documents (B, T) of int64 number the documents that are packed in each row: no token sees another document, and
        positions count from the beginning of each. ValueError for a model with a layer that cannot do that.

        Without targets, `at` (B, T) of bool chooses the tokens whose logits are wanted: (N, V), row by row.
        """
        self._check(idx, targets)
        if targets is not None:
            check_unpacked(self, "compute a loss")
        hidden = self.hidden(idx, documents=documents)
        if targets is None:
            return self.logits(hidden if at is None else hidden[at]), None
        logits, loss = self._loss(hidden, targets, with_logits)
        if self.training:
            for aside in self._asides(hidden, targets):
                loss = loss + (aside - aside.detach())  # the gradient alone
        return logits, loss

    def _asides(self, hidden: Tensor, targets: Tensor) -> list[Tensor]:
        """Return what training minimizes besides: the balance of experts and the loss of the tokens ahead."""
        asides = []
        for ahead in self.ahead:
            angles = self._angles(torch.arange(targets.shape[1], device=targets.device))
            known = targets.clamp(min=0)  # those that are ignored are so at this depth too
            values = self.wve(known) if self.config.value_embedding else None
            hidden, targets = ahead(hidden, self.wte(known), angles, values), one_later(targets)
            asides.append(AHEAD / len(self.ahead) * self._loss(hidden, targets, with_logits=False)[1])
        return asides + balance(self) if self.config.n_expert else asides

    def _angles(self, positions: Tensor) -> Tensor | None:
        """Return the angles of rotary positions (…), (…, D/2), or None."""
        rotary = self.config.positions == "rotary"
        return position_angles(positions, self.config.rotary_dim, self.config.rope_theta) if rotary else None

    def _loss(self, hidden: Tensor, targets: Tensor, with_logits: bool) -> tuple[Tensor | None, Tensor]:
        """Return logits (B, T, V), if there is room for them, and the mean loss of hidden (B, T, C)."""
        rows, weight = hidden.flatten(0, 1), self.lm_head.weight  # (B, T, C) -> (B T, C)
        if self.config.width_ratio != 1:
            rows = rows / self.config.width_ratio
        loss = kernels.linear_cross_entropy(rows, weight, targets.flatten(), cap=self.config.logit_softcap)
        if not with_logits or 4 * len(rows) * len(weight) > default_budget(rows.device.type):
            return None, loss
        with torch.no_grad():
            return self.logits(hidden), loss

    def logits(self, hidden: Tensor) -> Tensor:
        """Map what `hidden` returns, (…, C), to logits (…, V)."""
        logits, cap = self.lm_head(hidden), self.config.logit_softcap
        if self.config.width_ratio != 1:
            logits = logits / self.config.width_ratio
        return logits if cap is None else softcap(logits, cap)

    def hidden(
        self,
        idx: Tensor,
        positions: Tensor | None = None,
        caches: Sequence[Cache | StateCache] | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return what the head reads, idx (B, T) -> (B, T, C). Positions (T,) or (B, T) count from 0 by default.

        `caches`, one for each block, hold the keys and values or the state of earlier tokens (model.cache).
        `documents` are those of `forward`.
        """
        config, ends = self.config, None
        if documents is not None:
            check_separable(config)
            positions, ends = places(documents)
        if positions is None:
            positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.wte(idx)  # (B, T) -> (B, T, C)
        if config.positions == "sinusoidal":
            x = x * math.sqrt(config.n_embd)  # brings 0.02 up to the sines, as in the paper (section 3.4)
        if self.wpe is not None:
            x = x + self.wpe(positions).to(x.dtype)
        angles = self._angles(positions)
        x = embedding = self.drop(x.to(stream_dtype(x)))
        values = self.wve(idx) if config.value_embedding else None  # (B, T) -> (B, T, KV D)
        separate = () if ends is None else (ends,)  # a StateBlock has no such argument
        for layer, block in enumerate(self.h):
            if config.residual_scalars:
                x = (self.stream_scale[layer] * x + self.embedding_scale[layer] * embedding).to(x.dtype)
            cache = caches[layer] if caches is not None else None
            if config.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, angles, None, values, *separate, use_reentrant=False)
            else:
                x = block(x, angles, cache, values, *separate)
        return self.ln_f(x)

    def _check(self, idx: Tensor, targets: Tensor | None) -> None:
        if idx.dim() != 2 or (targets is not None and targets.shape != idx.shape):
            others = "" if targets is None else f", targets {tuple(targets.shape)}"
            raise ValueError(
                f"idx and targets must both be (batch, tokens): idx is {tuple(idx.shape)}{others}"
            )
        if idx.shape[1] > self.config.block_size:
            raise ValueError(
                f"a sequence of {idx.shape[1]} tokens is longer than block_size {self.config.block_size}: "
                "shorten it, or make the model with a larger block_size"
            )
        # Looking at the values would stop a GPU's queue and break a compiled graph: there, indexing checks.
        if idx.device.type == "cpu" and not torch.compiler.is_compiling():
            check_ids(idx, self.config.vocab_size, "idx")
            if targets is not None:
                check_ids(targets[targets != IGNORED], self.config.vocab_size, "targets")

    @classmethod
    def check_pretrained(cls, directory: str | Path, **changes: Any) -> GPTConfig:
        """Return the config of the model in `directory`, with `changes`; raise what `from_pretrained` would.

        No weight is read and no memory taken for them.
        """
        config = pretrained.read_config(directory, **changes)
        with torch.device("meta"), _Undrawn():
            shapes = cls(config).state_dict()
        pretrained.check_weights(directory, config, shapes, crop="block_size" in changes)
        return config

    @classmethod
    def from_pretrained(cls, directory: str | Path, **changes: Any) -> "GPT":
        """Return the model in `directory` (config.json, model.safetensors), in float32, on the CPU, ready to evaluate.

        It is in GPT-2's layout, ours or Llama's; a .bin file of llama2.c may take its place. A name such as "gpt2" that
        is no directory is one of the Hugging Face hub: pretrained.located. `changes` replace fields of its config, such
        as dropout=0.0; a smaller block_size crops learned positions, as nanoGPT does. The errors are those of
        model.pretrained.read_config and read_weights.
        """
        directory = pretrained.located(directory)
        if directory.suffix == ".bin" and directory.is_file():
            config, state = llama.read_llama2c(directory)
            gpt = cls(dataclasses.replace(config, **changes))
            gpt.load_state_dict(state)
            return gpt.eval()
        # Before there is memory for what the config asks for.
        config = cls.check_pretrained(directory, **changes)
        gpt = cls(config)
        crop = "block_size" in changes
        gpt.load_state_dict(pretrained.read_weights(directory, config, gpt.state_dict(), crop=crop))
        return gpt.eval()

    @torch.no_grad()
    def with_vocabulary(self, vocab_size: int) -> "GPT":
        """Return a model with `vocab_size` ids, this one if it has as many; the rows of the old ones stay, bit for bit.

        New rows are drawn around the mean of the old ones, so that at first no new id is likelier than an old one.
        """
        if vocab_size < self.config.vocab_size:
            raise ValueError(f"vocab_size {vocab_size} is below that of the model, {self.config.vocab_size}")
        if vocab_size == self.config.vocab_size:
            return self
        grown = GPT(dataclasses.replace(self.config, vocab_size=vocab_size))
        state = self.state_dict()
        for name, target in grown.state_dict().items():
            old = state[name]
            if old.shape == target.shape:
                target.copy_(old)
            else:  # embeddings and head, (V, …)
                target[: len(old)] = old
                target[len(old) :].normal_(0.0, INIT_STD).add_(old.mean(0))
        return grown.to(self.wte.weight).train(self.training)

    def save_pretrained(self, directory: str | Path, tokenizer: str | Path | None = None) -> None:
        """Write config.json, model.safetensors and a tokenizer, if given; see model.pretrained.save."""
        check_unpacked(self, "be saved")
        pretrained.save(directory, self.config, self.state_dict(), tokenizer)


class _Undrawn(TorchFunctionMode):
    """Inside a with block parameters keep the values that they have: no random number is drawn for them.

    On the meta device, which has no values, torch would import its compiler only to draw none, which takes a second.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        draws = func is Tensor.normal_ or getattr(func, "__module__", None) == "torch.nn.init"
        if draws:
            return kwargs["tensor"] if not args else args[0]
        return func(*args, **(kwargs or {}))


def stream_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the residual stream x: bfloat16 on an NVIDIA GPU under autocast to that, else x's own.

    Embeddings are float32 under autocast, and so would be everything that is added to them: twice the bytes for norms,
    sums and what the backward pass keeps. A CPU gains nothing from fewer bytes here, and float16 lacks the range.
    """
    if x.device.type != "cuda" or x.dtype != torch.float32 or not torch.is_autocast_enabled("cuda"):
        return x.dtype
    return torch.bfloat16 if torch.get_autocast_dtype("cuda") == torch.bfloat16 else x.dtype


@contextmanager
def evaluating(gpt: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode inside a with block, then back into the mode that it was in.

    >>> model = nn.Dropout()
    >>> with evaluating(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    was_training = gpt.training
    gpt.eval()
    try:
        yield
    finally:
        gpt.train(was_training)


def places(documents: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's position in its document, (B, T), and where documents end in the B T tokens, on the CPU.

    >>> [each.tolist() for each in places(torch.tensor([[0, 0, 1], [0, 1, 1]]))]
    [[[0, 1, 0], [0, 0, 1]], [0, 2, 3, 4, 6]]
    """
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    count = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    positions = count - torch.where(begins, count, 0).cummax(1).values  # (B, T)
    starts = begins.flatten().nonzero()[:, 0].cpu()  # (B, T) -> (documents,)
    return positions, torch.cat([starts, torch.tensor([documents.numel()])])


def check_separable(config: GPTConfig) -> None:
    """Raise a ValueError for a model in which packed documents cannot be kept apart."""
    if "m" in config.pattern or config.kv_lora_rank or config.n_ahead:
        raise ValueError(
            "packed documents can be kept apart in layers of plain attention only: the model has layers "
            f"{config.pattern!r}, kv_lora_rank {config.kv_lora_rank}, n_ahead {config.n_ahead}"
        )


def check_unpacked(gpt: GPT, purpose: str) -> None:
    """Raise a ValueError for a model of model.pack, whose weights are in an order that only generation reads."""
    if not isinstance(gpt.lm_head, nn.Linear):
        raise ValueError(f"a packed model cannot {purpose}: use the model that it was packed from")


def check_ids(ids: Tensor, vocab_size: int, name: str) -> None:
    """Raise a ValueError that lists the ids outside 0 … vocab_size - 1."""
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        listed = ", ".join(str(i) for i in outside.unique()[:8].tolist())
        raise ValueError(f"{name} holds ids outside the vocabulary of {vocab_size}: {listed}")
