"""What a model costs, counted before it is trained: parameters, floating-point operations, bytes.

python -m model count tinystories --batch-size 64

Parameters and saved activations are counted on the modules themselves (as fake tensors, which have a shape
and no memory), so they are exact for every variant; operations come from formulas that docs/model.md derives.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import kernels
from kernels.chunked_loss import default_budget
from kernels.dispatch import Kernels
from model import ssm
from model.config import GPTConfig
from model.gpt import GPT, Block

Precision = Literal["float32", "bfloat16", "float16"]
CARDS_GB = (8, 16, 24, 80)
ROOM = 0.9  # a tenth is left for the context, workspaces and fragmentation
PARTS = {
    "wte": "token embedding",
    "wpe": "position embedding",
    "attn": "attention",
    "mlp": "MLP",
    "mixer": "state space",
    "ln": "norms",
    "ahead": "tokens ahead",
    "wve": "value embedding",
    "stream_scale": "residual scalars",
    "embedding_scale": "residual scalars",
}


@functools.cache
def parameters(config: GPTConfig) -> dict[str, int]:
    """Return the number of parameters by part; a head tied to the token embedding counts 0.

    >>> parameters(GPTConfig.preset("gpt2"))["total"]
    124439808
    """
    with torch.device("meta"):
        named = list(GPT(config).named_parameters())
    counts = dict.fromkeys([*PARTS.values(), "head"], 0)
    for name, parameter in named:
        counts[_part(name)] += parameter.numel()
    return {**counts, "total": sum(counts.values())}


@functools.cache
def matrix_weights(config: GPTConfig) -> int:
    """Return how many weights of matrices a token is multiplied by in training, those of the head included.

    Of the experts those that it uses; the tokens ahead use the head again.
    """
    with torch.device("meta"):
        named = list(GPT(config).named_modules())
    linear = {name: module.weight.numel() for name, module in named if isinstance(module, torch.nn.Linear)}
    routed = sum(count for name, count in linear.items() if ".experts." in name)
    used = routed // config.n_expert * config.n_expert_active if config.n_expert else 0
    again = (config.n_ahead or 0) * config.vocab_size * config.n_embd
    return sum(linear.values()) - routed + used + again


def _part(name: str) -> str:
    """Return the part that a parameter belongs to, by the first name in its path that is one of PARTS."""
    known = (part for step in name.split(".") for prefix, part in PARTS.items() if step.startswith(prefix))
    return next(known, "head")


def mean_context(config: GPTConfig, tokens: int) -> float:
    """Return how many keys a query sees on average over `tokens` positions, its own included.

    >>> mean_context(GPTConfig(), 9), mean_context(GPTConfig(window=3), 9)
    (5.0, 2.6666666666666665)
    """
    window = min(config.window or tokens, tokens)
    return (window * (window + 1) / 2 + (tokens - window) * window) / tokens


def per_key(config: GPTConfig) -> int:
    """Return the operations for each key that a query sees, in one layer: the score, and its part of the average."""
    turned = config.rotary_dim if config.kv_lora_rank else 0  # latent attention has these in q and k besides
    return 4 * config.n_embd + 2 * config.n_head * turned


def flops_per_token(config: GPTConfig, tokens: int | None = None) -> dict[str, float]:
    """Return operations per token, "forward" and "backward", in sequences of `tokens` (None: block_size).

    A multiply-add is 2. Counted are the matrix products: 2 per weight of every matrix (head included,
    embeddings are look-ups), and `per_key` for each that a query sees, in each layer;
    and those of a state space. The backward pass makes
    two products for each of the forward. Masked scores are not counted; recomputation is, if activations are
    checkpointed.
    """
    ahead = config.n_ahead or 0
    matrices, head = 2 * matrix_weights(config), 2 * (1 + ahead) * config.vocab_size * config.n_embd
    tokens = tokens or config.block_size
    scores = (config.pattern.count("a") + ahead) * mean_context(config, tokens) * per_key(config)
    scores += config.pattern.count("m") * ssm.flops(config, tokens)
    again = matrices - head + scores if config.checkpoint_activations else 0
    return {"forward": matrices + scores, "backward": 2 * (matrices + scores) + again}


def saved_bytes(run: Callable[[], Any], owned: set[int]) -> int:
    """Return the bytes that autograd keeps from `run()` for the backward pass, besides the storages `owned`."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in storages.values())


def activations(config: GPTConfig, batch_size: int, precision: Precision = "float32") -> dict[str, int]:
    """Return the bytes kept for the backward pass: "blocks", and "ends" for embeddings, last norm and loss.

    By the kernels that `kernels.use` chose, on the CPU. The residual stream counts as float32, although a GPU in
    bfloat16 keeps it in half of that.
    """
    chosen = kernels.runs_on("cpu")

    def kept(layers: str) -> int:  # from two sequences on the bytes grow by the same amount with each
        two, three = (_hidden_bytes(config, layers, batch, precision, chosen) for batch in (2, 3))
        return two + (batch_size - 2) * (three - two)

    pattern = config.pattern + "a" * (config.n_ahead or 0)
    kinds = "".join(sorted(set(pattern)))
    block = {kind: kept(kinds + kind) - kept(kinds) for kind in kinds}  # and with every layer
    stream = 4 * batch_size * config.block_size * config.n_embd
    if config.checkpoint_activations:
        blocks = len(pattern) * stream + max(block.values())
    else:
        blocks = sum(block[kind] for kind in pattern)
    ends = kept(kinds) - sum(block.values()) + stream + _loss_bytes(config, batch_size)
    return {"blocks": blocks, "ends": ends}


@functools.cache
def _hidden_bytes(
    config: GPTConfig, layers: str, batch_size: int, precision: Precision, chosen: Kernels
) -> int:
    """Return what autograd keeps from GPT.hidden with this pattern of layers, none of them checkpointed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = dataclasses.replace(config, n_layer=len(layers), layers=layers, checkpoint_activations=False)
    with kernels.use(chosen), FakeTensorMode(), _autocast(precision):
        gpt = GPT(config).train()
        # Flash attention keeps a seed and no mask; the op that the CPU falls back to would keep T × T.
        for block in gpt.h:
            if isinstance(block, Block):
                block.attn.attn_dropout = 0.0
        owned = {p.untyped_storage()._cdata for p in gpt.parameters()}
        idx = torch.zeros(batch_size, config.block_size, dtype=torch.long)
        return saved_bytes(lambda: gpt.hidden(idx), owned)


def _loss_bytes(config: GPTConfig, batch_size: int) -> int:
    """Return what the loss keeps on a GPU: a chunk of logits, its gradient, and the gradient of the head."""
    chunk = min(4 * batch_size * config.block_size * config.vocab_size, default_budget("cuda"))
    return 2 * chunk + 4 * config.vocab_size * config.n_embd


def _autocast(precision: Precision) -> torch.autocast:
    return torch.autocast("cpu", getattr(torch, precision), enabled=precision != "float32")


@dataclass(frozen=True)
class Memory:
    """Bytes of training with AdamW at one batch size; weights and optimizer stay in float32."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Return the sum of all four."""
        return self.weights + self.gradients + self.optimizer + self.activations


def memory(config: GPTConfig, batch_size: int, precision: Precision = "float32") -> Memory:
    """Return what training takes: 4 bytes a weight, as much for its gradient, twice that for AdamW, and activations.

    With a 16-bit `precision` the activations hold autocast's copies of the weights too.
    """
    count = parameters(config)["total"]
    saved = sum(activations(config, batch_size, precision).values())
    return Memory(4 * count, 4 * count, 8 * count, saved)


def largest_batch(config: GPTConfig, card_gb: float, precision: Precision = "float32") -> int:
    """Return the largest batch whose training fits `card_gb` GB (10^9 bytes), a tenth left free; 0 if none."""
    room = ROOM * card_gb * 1e9
    return bisect.bisect_right(
        range(1, 2**14), room, key=lambda batch: memory(config, batch, precision).total
    )


def report(config: GPTConfig, name: str, batch_size: int, precision: Precision) -> None:
    """Print parameters, operations, memory and what fits, as tables."""
    from rich.console import Console

    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    bytes_of = memory(config, batch_size, precision)
    flops = flops_per_token(config)
    console = Console()
    title = f"{name}, batch {batch_size} × {config.block_size} tokens, {precision}\n"
    console.print(title, style="bold", markup=False)
    console.print(_table("parameters", {k: f"{n:,}" for k, n in parameters(config).items() if n}))
    console.print(_table("operations per token", {k: f"{n / 1e6:,.2f} MFLOP" for k, n in flops.items()}))
    sizes = {**dataclasses.asdict(bytes_of), "total": bytes_of.total}
    console.print(_table("memory of training", {k: f"{n / 1e6:,.1f} MB" for k, n in sizes.items()}))
    console.print(
        _table("does it fit?", {f"{gb} GB": _verdict(config, gb, bytes_of, precision) for gb in CARDS_GB})
    )


def _verdict(config: GPTConfig, card_gb: int, bytes_of: Memory, precision: Precision) -> str:
    largest = largest_batch(config, card_gb, precision)
    fits = "yes" if bytes_of.total <= ROOM * card_gb * 1e9 else "no"
    return f"{fits}, up to batch {largest}" if largest else "no, at no batch size"


def _table(title: str, rows: dict[str, str]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows.items():
        table.add_row(*row)
    return table
