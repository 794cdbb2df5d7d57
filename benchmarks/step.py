"""A training step on a GPU: tokens per second, model FLOPs utilization and peak memory, compared with nanoGPT's model.

    python benchmarks/step.py [--nanogpt DIR] [--models tinystories gpt2-124m] [--json PATH]

The peer: the GPT of Karpathy's nanoGPT (--nanogpt names its folder, such as a clone of github.com/karpathy/nanoGPT),
as its train.py runs it: torch.compile, flash attention, fused AdamW. Without the folder, our own model on torch's
operators, with flash attention, cross-entropy over all logits and torch.compile. Ours: the fused kernels, with
torch.compile and without. All sides take the same number of tokens a step in the same micro-batches, under bfloat16
autocast with float32 weights, and take turns. A step is forward, backward, clipping and AdamW; its batches are on the
GPU already.

Operations are those of model/accounting.py: masked scores are not counted. The peak of the GPU is its datasheet's where
common/gpus.py knows it, else what a large matrix product reaches.
"""

import dataclasses
import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli, gpus
from common.bench import Row, report, seconds
from inference import devices
from kernels import use
from kernels.dispatch import Kernels
from kernels.workbench.bench_cases import first_line
from model import GPT, GPTConfig, accounting
from training import optimizer
from training.config import TrainConfig

WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to train, the tokens of a step and the sequences of a micro-batch."""

    config: GPTConfig
    step_tokens: int
    micro_batch: int
    goals: bool = True

    @property
    def passes(self) -> int:
        """Return the number of forward and backward passes per step."""
        return self.step_tokens // (self.micro_batch * self.config.block_size)

    def optimizer(self, gpt: GPT, device: torch.device) -> torch.optim.Optimizer:
        """Return the optimizer of training/ over the parameters of `gpt`."""
        config = TrainConfig(model=self.config, batch_tokens=self.step_tokens, micro_batch=self.micro_batch)
        (adamw,) = optimizer.make_optimizers(gpt, config, precision_on(device))
        return adamw


# 50304, as nanoGPT trains: GPT-2's 50257 rounded up to a multiple of 64, which tensor cores like better.
MODELS = {
    "tinystories": Model(GPTConfig.preset("tinystories", vocab_size=50304), 65_536, 128),
    "gpt2-124m": Model(GPTConfig.preset("gpt2", vocab_size=50304, dropout=0.0), 524_288, 32),
    "tiny": Model(
        GPTConfig.preset("quickstart", n_layer=1, vocab_size=256, block_size=192), 768, 2, goals=False
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Time a training step of ours and of nanoGPT's model."""

    nanogpt: Path | None = None
    """A copy of nanoGPT, for its model.py; without it the peer is our model on torch's operators."""
    models: tuple[str, ...] = ()
    """Train these: tinystories and gpt2-124m (by default on a GPU), tiny (by default on a CPU)."""
    steps: int = 5
    """Steps of each side that are timed, in turn; the median counts."""
    device: str = "auto"
    """cpu, cuda; auto takes a GPU if there is one."""
    compile: bool = True
    """Compile the peer, and ours as one more side; takes a minute."""
    json: Path | None = None
    """Write the rows here, too."""

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in MODELS:
                raise ValueError(f"models: there is no {name!r}, choose among {', '.join(MODELS)}")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: it must be at least 1")
        if self.nanogpt and not (self.nanogpt / "model.py").is_file():
            raise FileNotFoundError(
                f"{self.nanogpt} holds no model.py: clone github.com/karpathy/nanoGPT there"
            )


def precision_on(device: torch.device) -> torch.dtype:
    """Return bfloat16, except on a CPU that is slow at it."""
    return devices.choose_precision("auto", device)


class Side:
    """One model and its optimizer; calling it trains one step."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        adamw: torch.optim.Optimizer,
        kernels: Kernels,
    ):
        self.parameters, self.loss, self.adamw = list(model.parameters()), loss, adamw
        self.kernels = kernels

    def step(self, x: Tensor, y: Tensor, clip: Callable[[list[Tensor], float], Any]) -> None:
        """Train one step on x, y: (passes, B, T), on the device of the model."""
        for some_x, some_y in zip(x, y, strict=True):
            with use(self.kernels), devices.autocast(x.device, precision_on(x.device)):
                loss = self.loss(some_x, some_y) / len(x)
            loss.backward()
        clip(self.parameters, 1.0)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)


def ours(model: Model, device: torch.device, compiled: bool) -> Side:
    """Return our GPT on the fused kernels, with our loss and the optimizer of training/."""
    gpt = GPT(model.config).to(device).train()
    called = torch.compile(gpt) if compiled else gpt
    return Side(gpt, lambda x, y: called(x, y)[1], model.optimizer(gpt, device), "fused")


def plain(model: Model, device: torch.device, compiled: bool) -> Side:
    """Return our GPT on torch's operators with the loss that one would write first."""
    gpt = GPT(model.config).to(device).train()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        logits = gpt.lm_head(gpt.hidden(x))  # (B, T) -> (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())  # (B T, V), (B T,)

    return Side(gpt, torch.compile(loss) if compiled else loss, model.optimizer(gpt, device), "torch")


def nanogpt(model: Model, device: torch.device, compiled: bool, folder: Path) -> Side:
    """Return nanoGPT's GPT and AdamW, from the model.py in `folder`."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    theirs = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = theirs  # its dataclass looks itself up there
    spec.loader.exec_module(theirs)
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    gpt = (
        theirs.GPT(theirs.GPTConfig(**{name: getattr(model.config, name) for name in names}))
        .to(device)
        .train()
    )
    adamw = gpt.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device.type)
    called = torch.compile(gpt) if compiled else gpt
    return Side(gpt, lambda x, y: called(x, y)[1], adamw, "torch")


def sides(model: Model, device: torch.device, options: Options) -> dict[str, Callable[[], Side]]:
    """Return what makes each side, by name: ours, and the peer last."""
    found = {"ours": lambda: ours(model, device, compiled=False)}
    if options.compile:
        found["ours, compiled"] = lambda: ours(model, device, compiled=True)
    if options.nanogpt:
        found["nanoGPT"] = lambda: nanogpt(model, device, options.compile, options.nanogpt)
    else:
        found["plain torch GPT"] = lambda: plain(model, device, options.compile)
    return found


def measure(name: str, options: Options, device: torch.device) -> tuple[list[Row], list[str]]:
    """Return the rows of one model: tokens per second, fraction of the peak, and on a GPU the peak memory.

    And what was wrong with the sides that could not run: a fault costs the rows of its own side.
    """
    model = MODELS[name]
    torch.manual_seed(0)
    shape = (model.passes, model.micro_batch, model.config.block_size)
    x, y = torch.randint(model.config.vocab_size, (2, *shape), device=device)
    steps, memory, wrong = {}, {}, []
    for side, make in sides(model, device, options).items():
        before = _start_of_memory(device)
        try:
            step = _synchronized(make(), x, y, device)
            for _ in range(WARM_UP):
                step()
        except RuntimeError as error:
            wrong.append(f"{name}, {side}: {first_line(error)}")
            continue
        steps[side], memory[side] = step, _peak_memory(device) - before
    times = {side: [] for side in steps}
    for _ in range(options.steps):
        for side, step in steps.items():
            times[side].append(seconds(step))
    medians = {side: statistics.median(values) for side, values in times.items()}
    return rows(name, medians, memory, peak_flops(device)), wrong


def _synchronized(side: Side, x: Tensor, y: Tensor, device: torch.device) -> Callable[[], None]:
    def step() -> None:
        side.step(x, y, optimizer.clip_gradient)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _start_of_memory(device: torch.device) -> int:
    """Return the bytes in use and reset the peak counter."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def peak_flops(device: torch.device) -> tuple[str, float]:
    """Return where the peak of this device comes from, and the peak in FLOP/s."""
    sheet = gpus.datasheet(torch.cuda.get_device_name()) if device.type == "cuda" else None
    if sheet:
        return "datasheet", sheet.bfloat16 * 1e12
    return "a matrix product", devices.matmul_flops(device, precision_on(device))


def rows(name: str, medians: dict[str, float], memory: dict[str, int], peak: tuple[str, float]) -> list[Row]:
    """Turn the figures of one model into rows; the peer is the side that is not ours, if it ran."""
    model, peer = MODELS[name], next((side for side in medians if not side.startswith("ours")), "")
    speeds = {side: model.step_tokens / median for side, median in medians.items()}
    operations = model.step_tokens * sum(accounting.flops_per_token(model.config).values())
    best = "ours, compiled" if "ours, compiled" in medians else "ours"
    found = []
    for side in (side for side in medians if side != peer):
        title = f"step {name}{side.removeprefix('ours')}"
        faster, fuller, smaller = (1.2, 0.45 if name == "gpt2-124m" else None, 1.25)
        goals = (faster, fuller, smaller) if model.goals and side == best else (None, None, None)
        goal = goals[0] if peer else None
        found.append(Row(title, speeds[side], "tokens/s", peer, speeds.get(peer), goal=goal))
        used = operations / medians[side] / 1e12
        found.append(Row(f"{title}, utilization", used, "TFLOP/s", peak[0], peak[1] / 1e12, goal=goals[1]))
        if memory.get(peer):
            megabytes, theirs = (memory[each] / 1e6 for each in (side, peer))
            found.append(
                Row(
                    f"{title}, peak memory", megabytes, "MB", peer, theirs, less_is_better=True, goal=goals[2]
                )
            )
    if not peer:
        return found
    used = operations / medians[peer] / 1e12
    return [*found, Row(f"step {name}, {peer}'s utilization", used, "TFLOP/s", peak[0], peak[1] / 1e12)]


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = cli.parse(Options, argv, prog="benchmarks/step.py")
    device = devices.choose_device(options.device)
    devices.set_up(device, tf32=True, deterministic=False)
    found, wrong = [], []
    for name in options.models or (("tinystories", "gpt2-124m") if device.type == "cuda" else ("tiny",)):
        rows_of_it, wrong_of_it = measure(name, options, device)
        found, wrong = found + rows_of_it, wrong + wrong_of_it
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    report("step", found, options.json)
    if wrong:
        raise ValueError(f"not all sides could run: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
