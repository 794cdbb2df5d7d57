"""The training loop: batches in, weights, log, plot and report out (basics/train.py, made safe to stop and to divide).

`Trainer` is the state of a run and takes one optimizer step at a time; `train` is the loop around it. What is learned
is the objective: pretraining here, others in rooms above. Everything is checked before anything is written. A run
stopped by Ctrl-C or SIGTERM saves itself and can be resumed. Under torchrun each process runs this same loop on its own
rows of every batch; rank 0 writes and prints.
"""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kernels
from data.batches import prefetch
from inference import devices
from model import accounting, experts
from training import batching, checkpoint, distributed, failures, optimizer, run, watch
from training.config import TrainConfig, save_config
from training.distributed import SINGLE, Processes
from training.objective import Objective, Report
from training.pretraining import Pretraining


@dataclasses.dataclass(frozen=True)
class Step:
    """The result of a step: the mean loss, the gradient's norm before clipping, the learning rate."""

    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


class Trainer:
    """One run: model, optimizer, data and progress, and the step that moves them on."""

    def __init__(
        self, config: TrainConfig, objective: Objective | None = None, processes: Processes = SINGLE
    ) -> None:
        self.config, self.run, self.processes = config, config.run_directory, processes
        self.device = processes.device(devices.choose_device(config.device))
        self.precision = devices.choose_precision(config.precision, self.device)
        self.objective = objective or Pretraining(config)
        self.batching = batching.divide(config, processes.world_size)
        self._trackers = watch.wanted_trackers(config, main=processes.main)
        devices.set_up(self.device, tf32=config.tf32, deterministic=config.deterministic)
        torch.manual_seed(config.seed)
        self.model = self.objective.adapt(run.make_model(config, self.device)).to(self.device)
        if config.micro_batch == "auto":
            self.batching = batching.fit_memory(
                self.batching, self.model, self.device, self.precision, processes
            )
        self.batches = self.objective.open(self.batching, processes)
        self.replica = distributed.make_replica(self.model, config, processes, self.precision)
        self.parameters = list(self.model.parameters())  # after the replica: sharding replaces them
        self.shares = optimizer.share_state(self.model, config, processes)
        mine = self.shares.mine if self.shares else None
        self.optimizers = optimizer.make_optimizers(self.model, config, self.precision, mine)
        self.scale = optimizer.LossScale(active=self.precision == torch.float16)
        self.progress = checkpoint.Progress(data=run.fingerprint(config.data))
        self.usage = watch.Utilization(self.model.config, self.device, self.precision)
        self.skips_in_a_row, self.saved_at = 0, time.monotonic()

    def step(self, batch: Any) -> Step:
        """Update the weights by the gradient of one batch of this process's rows, or of each update made of it."""
        with devices.autocast(self.device, self.precision):
            updates = self.objective.updates(self.model, batch)
        for each in updates:
            result = self._update(each)
        self.progress.step += 1
        self.progress.tokens += self.objective.tokens(updates)
        return result

    def _update(self, batch: Any) -> Step:
        """Move the weights once; skip it if loss or gradient is not finite: one bad batch must not cost the run.

        Skip also a batch of which nothing is learned: momentum and weight decay would move the weights all the same.
        """
        total, weight = self._accumulate(batch)
        loss = self.processes.mean(total)
        if not weight:
            optimizer.clear_gradients(self.parameters)
            if self.processes.main:
                text = self.objective.text(batch)[: failures.SHOWN_CHARACTERS]
                print(
                    f"step {self.progress.step} is skipped, nothing in it is learned: {text!r}",
                    file=sys.stderr,
                )
            return Step(loss, torch.zeros_like(loss), self.learning_rate())
        if self.scale.value != 1.0:
            optimizer.scale_gradient(self.parameters, 1 / self.scale.value)
        norm = optimizer.clip_gradient(self.parameters, self.config.grad_clip)
        rate = self.learning_rate()
        finite = bool(torch.isfinite(loss + norm))  # equal in all processes, as loss and norm are
        if finite:
            optimizer.set_learning_rate(self.optimizers, rate)
            for each in self.optimizers:
                each.step()
            if self.shares:
                self.shares.exchange()
        optimizer.clear_gradients(self.parameters)
        self._count_skip(finite, batch)
        return Step(loss, norm, rate)

    def learning_rate(self) -> float:
        """Return the scheduled learning rate of the next step."""
        config = self.config
        return optimizer.learning_rate(
            self.progress.step,
            peak=config.learning_rate,
            final=config.final_learning_rate,
            warmup_steps=config.warmup_steps,
            steps=config.steps,
            shape=config.schedule,
            decay_share=config.decay_share,
        )

    def _accumulate(self, batch: Any) -> tuple[Tensor, float]:
        """Add up the gradients of a batch's micro-batches, by weight; return the batch's mean loss and its weight."""
        micro_batches = batching.split(batch, self.batching.micro_batch)
        weights = [self.objective.weight(part) for part in micro_batches]
        whole = self.processes.mean_number(sum(weights))
        losses = []
        for number, (part, weight) in enumerate(zip(micro_batches, weights, strict=True), 1):
            with self.replica.accumulate(last=number == len(micro_batches)):
                with devices.autocast(self.device, self.precision):
                    loss = self.objective.loss(self.replica.forward, part)
                loss = loss / (whole / weight if weight else math.inf)
                (loss * self.scale.value).backward()
            losses.append(loss.detach())
        self.replica.finish()
        return torch.stack(losses).sum(), whole

    def _count_skip(self, finite: bool, batch: Any) -> None:
        """Stop after too many skipped steps in a row, not counting those that lower float16's scale."""
        scale_too_large = self.scale.update(finite)
        self.progress.skipped += not finite
        self.skips_in_a_row = 0 if finite or scale_too_large else self.skips_in_a_row + 1
        if self.skips_in_a_row == self.config.max_skips:
            text = self.objective.text(batch)
            raise failures.Diverged(self.run, self.progress.step, self.skips_in_a_row, text)

    def next_batch(self, feed: Iterator[Any]) -> Any:
        """Return the next batch of `feed`, after which a resumed run continues."""
        with self._saved_without_data():
            batch = next(feed)
        self.progress.batches = feed.state_dict()
        return batch

    @contextlib.contextmanager
    def _saved_without_data(self) -> Iterator[None]:
        """Save the run if the data has vanished, and raise an OSError that says so."""
        try:
            yield
        except (OSError, ValueError) as error:
            if not self.processes.several:  # others may not be here to save with us
                self.save()
            raise OSError(
                f"no batch for step {self.progress.step} ({error}); {failures.last_good(self.run)}: restore the data, "
                "then --resume"
            ) from error

    def prepare_run(self) -> watch.Log | watch.NoLog:
        """Make the run directory, or continue what is in it; return its log, which locks the run until it is closed."""
        lock = run.Lock()
        (taken,) = self.processes.any(self.processes.main and not lock.take(self.run))
        if taken:
            raise ValueError(run.BUSY.format(run=self.run))
        try:
            if self.config.resume:
                self.resume()
            else:
                run.check_free(self.config)
            self.processes.barrier()  # every process has read before rank 0 writes
            if not self.processes.main:
                return watch.NoLog()
            if self.config.resume:
                save_config(self.config)
            else:
                run.claim(self.config, lock)
            trackers = [tracker(self.config, self.progress.step) for tracker in self._trackers]
            path = self.run / "log.jsonl"
            return watch.Log(path, keep_before=self.progress.step, trackers=trackers, closing=lock.release)
        except BaseException:
            lock.release()
            raise

    def resume(self) -> None:
        """Load the last checkpoint; a run that was killed before its first starts from the beginning."""
        run.check_resumable(self.config, self.progress)
        if run.has_checkpoint(self.run):
            self._load()
        # After a return to an older checkpoint RUN/best may be better than any that this one knows of.
        best = checkpoint.best_loss(self.run / "best")
        self.progress.best_val_loss = min(self.progress.best_val_loss, best)

    def _load(self) -> None:
        self.progress = checkpoint.load_state(
            self.run / "last", self.model, self.optimizers, self.processes.rank
        )
        run.check_resumable(self.config, self.progress)
        if self.progress.batches:
            self.batches.load_state_dict(self.progress.batches)
        if self.progress.loss_scale and self.scale.active:
            self.scale = optimizer.LossScale(**self.progress.loss_scale)

    def evaluate(self, log: watch.Log | watch.NoLog, bar: watch.Bar) -> None:
        """Log the objective's figures and a sample, redraw the plot and keep the weights if they are the best."""
        progress = self.progress
        with self._saved_without_data():
            figures = self._estimate(self.config.eval_batches)
        whole = checkpoint.whole_model(self.model)
        better = figures["val_loss"] < progress.best_val_loss
        if better:
            progress.best_val_loss = figures["val_loss"]
        if not self.processes.main:
            return
        finite = math.isfinite(figures["val_loss"])
        texts = self.objective.sample(whole) if finite else {"story": "(none: the loss is not a number)"}
        log.add(
            step=max(0, progress.step - 1),
            tokens=progress.tokens,
            seconds=progress.seconds,
            **figures,
            **texts,
        )
        bar.show(progress.step, val_loss=figures["val_loss"])
        bar.print_evaluation(progress.step, figures, texts.values())
        watch.plot_loss(log.records, self.run / "loss.png")
        if better:
            checkpoint.save_best(self.run / "best", whole, figures["val_loss"], self._save_extra)

    def _estimate(self, batches: int, *, val_only: bool = False) -> dict[str, float]:
        with devices.autocast(self.device, self.precision):
            return self.objective.estimate(self.model, batches, val_only=val_only)

    def save_due(self, stopping: bool) -> tuple[bool, bool]:
        """Return if any process is asked to stop, and if it is time to save; the same in all processes."""
        config, step = self.config, self.progress.step
        minutes = (time.monotonic() - self.saved_at) / 60
        stop, late = self.processes.any(stopping, 0 < config.checkpoint_minutes <= minutes)
        return stop, stop or late or step % config.checkpoint_every == 0 or step == config.steps

    def save(self) -> bool:
        """Replace RUN/last, unless the weights are damaged: then return False and keep the good checkpoint."""
        with contextlib.suppress(OSError, ValueError):  # if the data has vanished, it cannot be known
            if not math.isfinite(self._estimate(1, val_only=True)["val_loss"]):
                return False
        self.progress.loss_scale = dataclasses.asdict(self.scale) if self.scale.active else {}
        if self.config.keep > 1:
            before = [step for step in self.progress.copies if step != self.progress.step]
            self.progress.copies = [*before, self.progress.step]
        checkpoint.save_state(
            self.run / "last", self.model, self.optimizers, self.progress, self.processes, self._save_extra
        )
        if self.processes.main:
            checkpoint.keep_copies(self.run, self.progress, self.config.keep)
        self.saved_at = time.monotonic()
        return True

    def _save_extra(self, directory: Path) -> None:
        self.objective.save(self.model, directory)

    def finish(self, bar: watch.Bar) -> Report | None:
        """Return the report on the run and write it; only in rank 0, where the others have left."""
        if not self.processes.main:
            return None
        with (
            kernels.use(self.config.kernels),
            failures.explained(self.run, self.batching.micro_batch),
            bar.working(f"judging {self.run / 'best'} on the whole validation data"),
        ):
            result = self.objective.report(self.progress, self.device, self.precision)
            result.write(self.run / "report.json")
        return result

    def profiler(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Return the context of --profile, which gives what to call after each step."""
        wanted = self.config.profile and self.processes.main
        return watch.profiled(self.run / "profile", self.device, wanted=wanted)

    def describe(self) -> str:
        """Return what runs where and how, and what is odd about it."""
        where = devices.describe(
            self.device, self.precision, kernels.runs_on(self.device.type), tf32=self.config.tf32
        )
        several = f" × {self.processes.world_size} processes" if self.processes.several else ""
        parameters = accounting.parameters(self.model.config)["total"]
        config = self.config
        short = (
            f"\nthe warm-up of {config.warmup_steps} steps is longer than the run: --warmup-steps {config.steps // 10} "
            "would reach the full learning rate"
        )
        return (
            f"{parameters:,} parameters {where}{several}, {config.steps} steps of "
            f"{config.step_tokens:,} tokens ({self.batching.micro_batch} sequences × "
            f"{self.batching.accumulation} passes) from {config.data} to {self.run}"
            f"{short if config.warmup_steps > config.steps else ''}"
        )


def train(
    config: TrainConfig, make_objective: Callable[[TrainConfig], Objective] = Pretraining
) -> Report | None:
    """Train as configured; return the report in rank 0. failures.Interrupted is raised after a clean stop."""
    with (
        kernels.use(config.kernels),
        opened(config, make_objective) as (trainer, log, bar),
        failures.stop_signals() as stopping,
        prefetch(trainer.batches, trainer.device) as feed,
        trainer.profiler() as profile,
    ):
        progress = trainer.progress
        if progress.step == 0 and config.init_from is not None:
            trainer.evaluate(log, bar)  # so that RUN/best is never worse than the weights to start from
        while progress.step < config.steps:
            start = time.perf_counter()
            step = trainer.step(trainer.next_batch(feed))
            progress.seconds += time.perf_counter() - start
            log_step(trainer, step, log, bar)
            profile()
            last = progress.step == config.steps
            if progress.step % config.eval_every == 0 or last:
                trainer.evaluate(log, bar)
            if last and progress.skipped >= progress.step:
                raise failures.NothingLearned(trainer.run, progress.step)
            stop, due = trainer.save_due(bool(stopping))
            if due and not trainer.save() and (stop or last):
                raise failures.Damaged(trainer.run, progress.step)
            if stop and not last:
                raise failures.Interrupted(trainer.run / "last", progress.step)
    return trainer.finish(bar)


@contextlib.contextmanager
def opened(
    config: TrainConfig, make_objective: Callable[[TrainConfig], Objective]
) -> Iterator[tuple[Trainer, watch.Log | watch.NoLog, watch.Bar]]:
    """Set a run up, or resume it, and close its log and progress bar in the end."""
    processes = distributed.this_process()
    device = processes.device(devices.choose_device(config.device))
    micro_batch = batching.divide(config, processes.world_size).micro_batch
    with distributed.joined(processes, device), failures.explained(config.run_directory, micro_batch):
        trainer = Trainer(config, make_objective(config), processes)
        log, bar = trainer.prepare_run(), watch.Bar(config.steps, trainer.progress.step, shown=processes.main)
        bar.console.print(trainer.describe(), highlight=False)
        with contextlib.closing(log), bar:
            trainer.model.train()
            yield trainer, log, bar


def log_step(trainer: Trainer, step: Step, log: watch.Log | watch.NoLog, bar: watch.Bar) -> None:
    """Show a step, and log every tenth (or as often as the objective wants) and the last."""
    progress = trainer.progress
    if (progress.step - 1) % trainer.objective.log_every and progress.step < trainer.config.steps:
        bar.show(progress.step)
        return
    speed = progress.tokens / progress.seconds
    figures = {
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "loss": step.loss.item(),
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm.item(),
        "skipped": progress.skipped,
        "tokens_per_second": speed,
        **experts.figures(trainer.model),
        **trainer.objective.figures(),
    }
    log.add(step=progress.step - 1, **figures)
    bar.show(progress.step, **figures, **trainer.usage.figures(speed / trainer.processes.world_size))
