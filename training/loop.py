"""The training loop: batches in, weights, log, plot and report out.

Everything is checked before anything is written. A run stopped by Ctrl-C or SIGTERM saves itself and can be resumed.
Under torchrun each process runs this same loop on its own rows of every batch; one of them writes and speaks.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

import kernels
from bpe import Tokenizer
from common import files
from data.batches import Sampler, TokenFile, prefetch, windows
from evaluation import losses
from inference import devices
from inference.run import weights_directory
from model import GPT, accounting
from training import (
    batching,
    checkpoint,
    distributed,
    failures,
    judge,
    optimizer,
    profiling,
    report,
    run,
    schedule,
    watch,
)
from training.config import TrainConfig, save_config
from training.processes import Processes, joined, this_process
from training.scaling import LossScale

LOG_EVERY = 10
Feed = Iterator[tuple[Tensor, Tensor]]


class Trainer:
    """One run: model, optimizer, data and progress, and the steps between them."""

    def __init__(self, config: TrainConfig, processes: Processes = checkpoint.ALONE) -> None:
        self.config, self.run, self.processes = config, config.run_directory, processes
        self.device = processes.device(devices.choose_device(config.device))
        self.precision = devices.choose_precision(config.precision, self.device)
        self.train_file, self.val_file = (run.open_split(config, split) for split in ("train", "val"))
        self.cut = batching.deal(config, processes.world_size)
        self._trackers = watch.wanted_trackers(config, main=processes.main)
        devices.set_up(self.device, tf32=config.tf32, deterministic=config.deterministic)
        torch.manual_seed(config.seed)
        self.model = self._make_model()
        if config.micro_batch == "auto":
            self.cut = batching.fitted(self.cut, self.model, self.device, self.precision, processes)
        self.batches = run.step_batches(self.train_file, config, self.cut, processes)
        self.eval_windows = [self._eval_windows(file) for file in (self.train_file, self.val_file)]
        self.replica = self._make_replica()
        self.parameters = list(self.model.parameters())  # after the replica: sharding replaces them
        self.shares = self._share_optimizer()
        mine = self.shares.mine if self.shares else None
        self.optimizers = optimizer.make_optimizers(self.model, config, self.precision, mine)
        self.scale = LossScale(active=self.precision == torch.float16)
        self.progress = checkpoint.Progress(data=run.fingerprint(config.data))
        self.skips_in_a_row, self.saved_at = 0, time.monotonic()

    def _make_model(self) -> GPT:
        """With random weights, or those to start from."""
        shape = self.config.model
        if self.config.init_from is None or self.config.resume:
            return GPT(shape).to(self.device)
        run.check_init_from(self.config)
        directory = weights_directory(self.config.init_from)
        return GPT.from_pretrained(directory, **dataclasses.asdict(shape)).to(self.device)

    def _make_replica(self) -> distributed.Alone:
        """The model as this process calls it: alone, or one of several that average their gradients."""
        config, sharded = self.config, self.config.shard == "full" and self.processes.several
        if self.processes.several:
            # The weights are made, and equal; from now on dropout is unlike.
            torch.manual_seed(config.seed + self.processes.rank)
        if sharded:
            for block in self.model.h if config.compile else ():
                block.compile()
            return distributed.FullySharded(self.model, self.model.h)
        module = torch.compile(self.model) if config.compile else self.model
        return (distributed.REPLICAS[config.ddp] if self.processes.several else distributed.Alone)(module)

    def _share_optimizer(self) -> distributed.ShardedParameters | None:
        if self.config.shard != "optimizer" or not self.processes.several:
            return None
        muons = optimizer.by_muon(self.model, self.config)

        def averages(parameter: Tensor) -> int:  # Muon keeps one, AdamW two
            return parameter.numel() * (1 if id(parameter) in muons else 2)

        return distributed.ShardedParameters(
            self.parameters, self.processes.world_size, self.processes.rank, averages
        )

    def prepare_run(self) -> report.Log | report.NoLog:
        """Makes the run directory, or picks up what is in it."""
        if self.config.resume:
            self._resume()
        else:
            run.check_free(self.config)
        self.processes.barrier()  # everyone has read before the main process writes
        if not self.processes.main:
            return report.NoLog()
        if self.config.resume:
            save_config(self.config)
        else:
            run.claim(self.config)
        trackers = [tracker(self.config, self.progress.step) for tracker in self._trackers]
        return report.Log(self.run / "log.jsonl", keep_before=self.progress.step, trackers=trackers)

    def _resume(self) -> None:
        """Goes to the last checkpoint; a run that was killed before its first begins at the beginning."""
        run.check_resumable(self.config, self.progress)
        if not files.whole_directory(self.run / "last").is_dir():
            return
        self.progress = checkpoint.load_state(
            self.run / "last", self.model, self.optimizers, self.processes.rank
        )
        run.check_resumable(self.config, self.progress)
        if self.progress.batches:
            self.batches.load_state_dict(self.progress.batches)
        if self.progress.loss_scale and self.scale.active:
            self.scale = LossScale(**self.progress.loss_scale)

    def describe(self) -> str:
        """What runs where and how, in one line."""
        where = devices.describe(
            self.device, self.precision, kernels.runs_on(self.device.type), tf32=self.config.tf32
        )
        several = f" × {self.processes.world_size} processes" if self.processes.several else ""
        parameters = accounting.parameters(self.model.config)["total"]
        return (
            f"{parameters:,} parameters {where}{several}, {self.config.steps} steps of "
            f"{self.config.step_tokens:,} tokens ({self.cut.micro_batch} sequences × {self.cut.accumulation} "
            f"passes) from {self.config.data} to {self.run}"
        )

    def train(self, log: report.Log | report.NoLog, bar: watch.Bar) -> None:
        """Steps until the run is done; evaluates and saves on the way."""
        self.model.train()
        feed = prefetch(self.batches, self.device)
        profiler = profiling.profiled(
            self.run / "profile", self.device, wanted=self.config.profile and self.processes.main
        )
        with failures.stop_signals() as stopping, contextlib.closing(feed), profiler as profile:
            while self.progress.step < self.config.steps:
                self._timed_step(feed, log, bar)
                profile()
                self.progress.batches = feed.state_dict()
                self._after_step(log, bar, stop=bool(stopping))

    def _timed_step(self, feed: Feed, log: report.Log | report.NoLog, bar: watch.Bar) -> None:
        """One optimizer step, logged every so often."""
        start, step = time.perf_counter(), self.progress.step
        rate, loss, norm = self._step(feed)
        self.progress.seconds += time.perf_counter() - start
        self.progress.step += 1
        self.progress.tokens += self.config.step_tokens
        if step % LOG_EVERY == 0 or step + 1 == self.config.steps:
            figures = {
                "tokens": self.progress.tokens,
                "seconds": self.progress.seconds,
                "loss": loss.item(),
                "learning_rate": rate,
                "gradient_norm": norm.item(),
                "tokens_per_second": self.progress.tokens / self.progress.seconds,
            }
            log.add(step=step, **figures)
            bar.show(self.progress.step, **figures, **self._usage())
        else:
            bar.show(self.progress.step)

    def _step(self, feed: Feed) -> tuple[float, Tensor, Tensor]:
        """Moves the weights by the gradient of one batch; returns rate, loss and gradient norm.

        A step whose loss or gradient is not finite is skipped: one bad batch must not cost the run.
        """
        x, y = self._next(feed)
        loss = self.processes.mean(self._backward(x, y))
        if self.scale.value != 1.0:
            optimizer.scale_gradient(self.parameters, 1 / self.scale.value)
        norm = optimizer.clip_gradient(self.parameters, self.config.grad_clip)
        rate = self._rate()
        finite = bool(torch.isfinite(loss + norm))  # equal in all processes, as loss and norm are
        if finite:
            self._move(rate)
        self.model.zero_grad(set_to_none=True)
        self._count_skips(finite, x)
        return rate, loss, norm

    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Accumulates the gradient of the mean over x, y (rows, T), a few rows at a time; returns that mean."""
        total, passes = torch.zeros((), device=self.device), self.cut.accumulation
        pieces = zip(x.split(self.cut.micro_batch), y.split(self.cut.micro_batch), strict=True)
        for number, (some_x, some_y) in enumerate(pieces, 1):
            with self.replica.passes(last=number == passes):
                with devices.autocast(self.device, self.precision):
                    _, loss = self.replica.forward(some_x, some_y)
                loss = loss / passes
                (loss * self.scale.value).backward()
            total += loss.detach()
        self.replica.finish()
        return total

    def _rate(self) -> float:
        config = self.config
        return schedule.learning_rate(
            self.progress.step,
            peak=config.learning_rate,
            final=config.final_learning_rate,
            warmup_steps=config.warmup_steps,
            steps=config.steps,
            shape=config.schedule,
            decay_share=config.decay_share,
        )

    def _move(self, rate: float) -> None:
        optimizer.set_learning_rate(self.optimizers, rate)
        for each in self.optimizers:
            each.step()
        if self.shares:
            self.shares.exchange()

    def _count_skips(self, finite: bool, x: Tensor) -> None:
        """Ends the run after too many skipped steps in a row; float16's scale may first come down."""
        forgiven = self.scale.update(finite)
        self.progress.skipped += not finite
        self.skips_in_a_row = 0 if finite or forgiven else self.skips_in_a_row + 1
        if self.skips_in_a_row == self.config.max_skips:
            text = self._tokenizer.decode(x[0].tolist())
            raise failures.Diverged(self.run, self.progress.step, self.skips_in_a_row, text)

    def _next(self, feed: Feed) -> tuple[Tensor, Tensor]:
        """The next batch."""
        with self._saved_without_data():
            return next(feed)

    @contextlib.contextmanager
    def _saved_without_data(self) -> Iterator[None]:
        """Where the data has vanished, the run saves itself before it ends."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not self.processes.several:  # others may not be here to save with us
                self._save()
            raise OSError(
                f"no batch for step {self.progress.step} ({error}); {failures.last_good(self.run)}: mend the data, "
                "then --resume"
            ) from error

    @functools.cached_property
    def _peak(self) -> float:
        """What this device could compute at most, in operations per second."""
        peak = devices.matmul_flops(self.device, self.precision)
        # Its matrices are larger than a small model, and no part of the training.
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def _usage(self) -> dict[str, float]:
        """How much of the machine is in use."""
        operations = sum(accounting.flops_per_token(self.model.config).values())
        speed = self.progress.tokens / self.progress.seconds / self.processes.world_size
        return {"mfu": operations * speed / self._peak, "memory_mb": report.peak_memory_mb(self.device)}

    def _after_step(self, log: report.Log | report.NoLog, bar: watch.Bar, *, stop: bool) -> None:
        config, step, last = self.config, self.progress.step, self.progress.step == self.config.steps
        minutes = (time.monotonic() - self.saved_at) / 60
        stop, due = self.processes.any(stop, 0 < config.checkpoint_minutes <= minutes)
        if step % config.eval_every == 0 or last:
            self._evaluate(log, bar)
        if step % config.checkpoint_every == 0 or last or stop or due:
            saved = self._save()
            if (stop or last) and not saved:
                raise failures.Damaged(self.run, step)
        if stop and not last:
            raise failures.Interrupted(self.run / "last", step)

    def _sound(self) -> bool:
        """Whether the weights still predict anything: after a step too far they may give no number as a loss."""
        with contextlib.suppress(OSError, ValueError):  # where the data has vanished, it cannot be known
            return math.isfinite(self._estimate(self.eval_windows[1], batches=1))
        return True

    def _evaluate(self, log: report.Log | report.NoLog, bar: watch.Bar) -> None:
        """Logs the loss on both splits and a story, redraws the plot and keeps the weights if they are the best."""
        with self._saved_without_data():
            train_loss, val_loss = (
                self._estimate(each, self.config.eval_batches) for each in self.eval_windows
            )
        whole = checkpoint.whole_model(self.model)
        better = val_loss < self.progress.best_val_loss
        if better:
            self.progress.best_val_loss = val_loss
        if not self.processes.main:
            return
        story = self._tell(whole) if math.isfinite(val_loss) else "(none: the loss is not a number)"
        log.add(
            step=self.progress.step - 1,
            tokens=self.progress.tokens,
            seconds=self.progress.seconds,
            train_loss=train_loss,
            val_loss=val_loss,
            story=story,
        )
        bar.show(self.progress.step, val_loss=val_loss)
        bar.tell(self.progress.step, story)
        report.plot_loss(log.records, self.run / "loss.png")
        if better:
            checkpoint.save_weights(self.run / "best", whole)

    def _eval_windows(self, file: TokenFile) -> Sampler:
        """What the loss of a split is estimated on: the same in all processes, so nothing has to be agreed."""
        config = self.config
        size = self.cut.micro_batch if config.micro_batch == "auto" else config.micro_batch
        return windows(file, config.batches, size, config.model.block_size)

    def _estimate(self, windows: Sampler, batches: int) -> float:
        with devices.autocast(self.device, self.precision):
            return losses.estimate_loss(self.model, windows, batches)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.config.data / "tokenizer.json")

    def _tell(self, model: GPT) -> str:
        config = self.config
        (story,) = losses.tell_stories(
            model, self._tokenizer, 1, temperature=config.temperature, seed=config.seed
        )
        return story

    def _save(self) -> bool:
        """Replaces RUN/last, unless the weights are damaged: a good checkpoint stays then. Whether it was done."""
        if not self._sound():
            return False
        self.progress.loss_scale = dataclasses.asdict(self.scale) if self.scale.active else {}
        checkpoint.save_state(self.run / "last", self.model, self.optimizers, self.progress, self.processes)
        if self.processes.main:
            checkpoint.keep_copy(self.run, self.progress.step, self.config.keep)
        self.saved_at = time.monotonic()
        return True


def train(config: TrainConfig) -> report.Report | None:
    """Trains, reports and returns the report (in the main process); raises failures.Interrupted after a clean stop."""
    processes = this_process()
    device = processes.device(devices.choose_device(config.device))
    micro_batch = batching.deal(config, processes.world_size).micro_batch
    chosen = devices.choose_kernels(config.kernels, config.model, device)
    with kernels.use(chosen), joined(processes, device), failures.explained(config.run_directory, micro_batch):
        trainer = Trainer(config, processes)
        log = trainer.prepare_run()
        bar = watch.Bar(config.steps, trainer.progress.step, shown=processes.main)
        bar.console.print(trainer.describe(), highlight=False)
        with contextlib.closing(log), bar:
            trainer.train(log, bar)
    if not processes.main:
        return None
    with kernels.use(chosen), failures.explained(config.run_directory, micro_batch):
        result = judge.judge(config, trainer.progress, trainer.device, trainer.precision)
        result.write(trainer.run / "report.json")
    return result
