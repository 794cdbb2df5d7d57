"""TrainConfig: all that a training run can be told, and which values cannot work."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tyro

from kernels.dispatch import Kernels
from model import GPTConfig

ABOVE_ZERO = (
    "steps",
    "batch_tokens",
    "learning_rate",
    "muon_learning_rate",
    "eval_every",
    "eval_batches",
    "checkpoint_every",
    "keep",
    "max_skips",
)
NOT_BELOW_ZERO = (
    "final_learning_rate",
    "warmup_steps",
    "weight_decay",
    "grad_clip",
    "temperature",
    "checkpoint_minutes",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a GPT on token files made by `python -m data prepare`."""

    model: tyro.conf.OmitArgPrefixes[GPTConfig]

    preset: str = "quickstart"
    """Name of a file in presets/ (without .toml), or the path of one of your own: the values flags start from."""
    data: Path = Path("tokens/stories")
    """Directory that holds train.bin, val.bin, meta.json and tokenizer.json."""
    source: str | None = None
    """Prepare the data first (see python -m data prepare), such as text:my.txt, into --data or else tokens/RUN; with
    --init-from, by the tokenizer of those weights."""
    run: Path | None = None
    """Directory to write: weights, log, plot, report. Default: runs/PRESET."""
    overwrite: bool = False
    """Set a run that is already in the run directory aside (as RUN.previous) and start anew."""
    resume: bool = False
    """Go on with the run in the run directory from its last checkpoint."""
    init_from: Path | None = None
    """Start from these weights: a run (its best) or a directory with config.json and model.safetensors."""

    steps: int = 1000
    """Optimizer steps in all."""
    seed: int = 1234
    """Seed of the initial weights, the batches, dropout and the stories told at the end."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of matrix products (weights stay float32); auto takes bfloat16 where the hardware has it."""
    tf32: bool = True
    """Let GPUs multiply float32 matrices with 10-bit mantissas (TensorFloat-32), where they can."""
    kernels: Kernels = "auto"
    """Attention and norms by torch's ops, by our kernels, or by our CUDA on the CPU (slow); auto takes ours if they are
    built for the device, unless SLM_KERNELS says otherwise."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, faster on long runs."""
    deterministic: bool = False
    """Allow only operations that give the same bits each time, also on a GPU; slower."""

    batch_tokens: int = 4096
    """Tokens per optimizer step, of all processes together: as many whole micro-batches as fit."""
    micro_batch: int | Literal["auto"] = 16
    """Sequences per forward and backward pass at most; auto takes as many as fit the memory."""
    batches: Literal["random", "documents"] = "random"
    """Windows that start anywhere, or only where a document starts (best where documents fit the context)."""
    ddp: Literal["naive", "bucketed", "torch"] = "torch"
    """Who averages the gradients under torchrun: the two of training/distributed.py, or torch's own."""
    shard: Literal["none", "optimizer", "full"] = "none"
    """Divide among processes: nothing, the optimizer's state (ZeRO-1), or weights and all (FSDP2)."""

    optimizer: Literal["fused", "ours", "muon"] = "fused"
    """AdamW, torch's fused one or the plain one of training/optimizer.py (equal results); or Muon with AdamW."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW, reached after the warm-up."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon, where it is the optimizer; it follows the same schedule."""
    final_learning_rate: float = 1e-4
    """Learning rate at the last step, at the foot of the schedule (cosine and wsd)."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: half a cosine down; level, then a linear decay (warm-up, stable, decay); or level."""
    decay_share: float = 0.2
    """Share of the steps that wsd decays over."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices; biases and norms are left alone, with muon embeddings, too."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.95
    """AdamW's memory of the squared gradient."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 turns clipping off."""
    max_skips: int = 10
    """Stop when the loss or the gradient was not finite in so many steps in a row; each is skipped."""

    eval_every: int = 100
    """Steps between two estimates of the train and validation loss, each with a story told."""
    eval_batches: int = 20
    """Micro-batches per estimate and split; the last estimate reads the whole validation file."""
    checkpoint_every: int = 500
    """Steps between two saves of RUN/last; the best weights by validation loss go to RUN/best."""
    checkpoint_minutes: float = 15.0
    """Save RUN/last also when so many minutes have passed since the last save; 0 never does."""
    keep: int = 1
    """Checkpoints kept: RUN/last alone, or RUN/step-N of the newest K as well."""
    coherence_stories: int = 200
    """Stories sampled at the end of a run on the built-in corpus, to be judged by its checker."""
    temperature: float = 0.7
    """Temperature of the stories told at the end."""
    tensorboard: bool = False
    """Also log to RUN/tensorboard (pip install tensorboard)."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Also log to Weights & Biases (pip install wandb); offline writes to RUN/wandb only."""
    profile: bool = False
    """Write a trace of a few steps to RUN/profile and print the ten costliest operations."""

    def __post_init__(self) -> None:
        for name in ABOVE_ZERO:
            if not getattr(self, name) > 0:  # also refuses NaN
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in NOT_BELOW_ZERO:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be below 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be in [0, 1)")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share is {self.decay_share}: it must be in (0, 1]")
        self._check_batch()
        self._check_contradictions()

    def _check_batch(self) -> None:
        if self.micro_batch != "auto" and not self.micro_batch > 0:
            raise ValueError(f"micro_batch is {self.micro_batch}: it must be above 0, or auto")
        if self.batch_tokens < self.micro_batch_tokens:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is less than one micro_batch of {self._rows} x block_size "
                f"{self.model.block_size} = {self.micro_batch_tokens} tokens: raise batch_tokens or lower micro_batch"
            )

    def _check_contradictions(self) -> None:
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite contradict each other: give one of them")
        if self.shard == "full" and self.ddp != "torch":
            raise ValueError(f"shard full averages gradients itself: leave --ddp {self.ddp} out")

    @property
    def _rows(self) -> int:
        return 1 if self.micro_batch == "auto" else self.micro_batch

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens in one forward pass of a single process (of one sequence, where micro_batch is auto)."""
        return self._rows * self.model.block_size

    @property
    def accumulation(self) -> int:
        """Forward and backward passes per optimizer step of a single process."""
        return self.batch_tokens // self.micro_batch_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens per optimizer step, of all processes together."""
        return self.accumulation * self.micro_batch_tokens

    @property
    def run_directory(self) -> Path:
        """Where the run is written."""
        return self.run or Path("runs") / Path(self.preset).stem

    def to_toml(self) -> str:
        """This configuration as TOML that `read_config` reads back; None is left out.

        A JSON string, number or truth value is also a TOML one, so the standard library is nearly enough.
        """
        values = dataclasses.asdict(self)
        model = values.pop("model")
        return f"{_toml_lines(values)}\n[model]\n{_toml_lines(model)}"


def _toml_lines(values: Mapping[str, Any]) -> str:
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    words = {key: json.dumps(value, ensure_ascii=False) for key, value in plain.items() if value is not None}
    return "".join(f"{key} = {'inf' if word == 'Infinity' else word}\n" for key, word in words.items())
