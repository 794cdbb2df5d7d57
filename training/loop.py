"""The training loop: batches in, weights, log, plot and report out.

Everything is checked before anything is written. A run stopped by Ctrl-C or SIGTERM saves itself and can be resumed.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress as ProgressBar

from bpe import Tokenizer
from common import files
from data.batches import RandomWindows, TokenFile, prefetch
from data.stories import coherence
from model import GPT
from training import checkpoint, devices, evaluate, optimizer, report, schedule
from training.config import TrainConfig, save_config

LOG_EVERY = 10
SHOWN_STORIES = 3


class Interrupted(Exception):
    """The run was asked to stop; what it had is saved in `directory`."""

    def __init__(self, directory: Path, step: int) -> None:
        super().__init__(
            f"stopped after step {step}, saved in {directory}: go on with --run {directory.parent} --resume"
        )


class Trainer:
    """One run: model, optimizer, data and progress, and the steps between them."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.run = config, config.run_directory
        self.device = devices.choose_device(config.device)
        self.precision = devices.choose_precision(config.precision, self.device)
        self.train_file = _open_split(config, "train")
        self.val_file = _open_split(config, "val")
        self.batches = RandomWindows(
            self.train_file,
            batch_size=config.micro_batch,
            block_size=config.model.block_size,
            seed=config.seed,
        )
        if self.device.type == "cpu":
            # A converged tiny model has gradients of 1e-40, and a CPU is 20 to 50 times slower on such numbers.
            torch.set_flush_denormal(True)
        torch.manual_seed(config.seed)
        self.model = GPT(config.model).to(self.device)
        self.compiled = torch.compile(self.model) if config.compile else self.model
        self.parameters = list(self.model.parameters())
        self.optimizer = optimizer.make_optimizer(
            self.model,
            config.optimizer,
            learning_rate=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.progress = checkpoint.Progress()

    def prepare_run(self) -> report.Log:
        """Makes the run directory, or picks up what is in it."""
        if self.config.resume:
            self._resume()
        else:
            _claim(self.run, overwrite=self.config.overwrite)
            shutil.copyfile(self.config.data / "tokenizer.json", self.run / "tokenizer.json")
        save_config(self.config)
        return report.Log(self.run / "log.jsonl", keep_before=self.progress.step)

    def _resume(self) -> None:
        ours, theirs = self.run / "tokenizer.json", self.config.data / "tokenizer.json"
        if not ours.is_file() or ours.read_bytes() != theirs.read_bytes():
            raise ValueError(
                f"{self.run} was trained with another tokenizer than {theirs}: resume with its own --data"
            )
        self.progress = checkpoint.load_state(self.run / "last", self.model, self.optimizer)
        self.batches.load_state_dict(self.progress.batches)

    def train(self, log: report.Log, bar: ProgressBar) -> None:
        """Steps until the run is done; evaluates and saves on the way."""
        config, task = self.config, bar.add_task("", total=self.config.steps, loss="-", speed="-")
        bar.update(task, completed=self.progress.step)
        self.model.train()
        feed = prefetch(self.batches, self.device)
        with _stop_signals() as stopping, contextlib.closing(feed):
            while self.progress.step < config.steps:
                loss = self._timed_step(feed, log)
                self.progress.batches = feed.state_dict()
                if loss is not None:
                    speed = f"{self.progress.tokens / self.progress.seconds:,.0f}"
                    bar.update(task, loss=f"{loss:.3f}", speed=speed)
                bar.update(task, completed=self.progress.step)
                self._after_step(log, stop=bool(stopping))

    def _timed_step(self, feed: Iterator[tuple[torch.Tensor, torch.Tensor]], log: report.Log) -> float | None:
        """One optimizer step; returns its loss where it is logged, for only reading it waits for a GPU."""
        start, step = time.perf_counter(), self.progress.step
        rate, loss, norm = self._step(feed)
        logged = step % LOG_EVERY == 0 or step + 1 == self.config.steps
        value = loss.item() if logged else None
        self.progress.seconds += time.perf_counter() - start
        self.progress.step += 1
        self.progress.tokens += self.config.batch_tokens
        if value is not None:
            log.add(
                step=step,
                tokens=self.progress.tokens,
                loss=value,
                learning_rate=rate,
                gradient_norm=norm.item(),
                tokens_per_second=self.progress.tokens / self.progress.seconds,
            )
        return value

    def _step(
        self, feed: Iterator[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Accumulates gradients over micro-batches and moves the weights; returns rate, loss and gradient norm."""
        config = self.config
        rate = schedule.learning_rate(
            self.progress.step,
            peak=config.learning_rate,
            final=config.final_learning_rate,
            warmup_steps=config.warmup_steps,
            steps=config.steps,
        )
        total = torch.zeros((), device=self.device)
        for _ in range(config.accumulation):
            x, y = next(feed)
            with devices.autocast(self.device, self.precision):
                _, loss = self.compiled(x, y)
            loss = loss / config.accumulation
            loss.backward()
            total += loss.detach()
        norm = optimizer.clip_gradient(self.parameters, config.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate, total, norm

    def _after_step(self, log: report.Log, *, stop: bool) -> None:
        step, last = self.progress.step, self.progress.step == self.config.steps
        if step % self.config.eval_every == 0 or last:
            self._evaluate(log)
        if step % self.config.checkpoint_every == 0 or last or stop:
            self._save()
        if stop and not last:
            raise Interrupted(self.run / "last", step)

    def _evaluate(self, log: report.Log) -> None:
        """Logs the loss on both splits, redraws the plot and keeps the weights if they are the best so far."""
        train_loss, val_loss = (
            self._estimate(file, self.config.eval_batches) for file in (self.train_file, self.val_file)
        )
        log.add(step=self.progress.step - 1, train_loss=train_loss, val_loss=val_loss)
        report.plot_loss(log.records, self.run / "loss.png")
        if val_loss < self.progress.best_val_loss:
            self.progress.best_val_loss = val_loss
            checkpoint.save_weights(self.run / "best", self.model)

    def _estimate(self, file: TokenFile, batches: int) -> float:
        with devices.autocast(self.device, self.precision):
            return evaluate.estimate_loss(
                self.model, file, batches=batches, batch_size=self.config.micro_batch
            )

    def _save(self) -> None:
        checkpoint.save_state(self.run / "last", self.model, self.optimizer, self.progress)

    def report(self) -> report.Report:
        """The figures of the best weights, and the stories they tell."""
        config, progress, meta = self.config, self.progress, self.val_file.meta
        self.model.load_state_dict(GPT.from_pretrained(files.whole_directory(self.run / "best")).state_dict())
        with devices.autocast(self.device, self.precision):
            val_loss = evaluate.full_loss(self.model, self.val_file, batch_size=config.micro_batch)
        train_loss = self._estimate(self.train_file, 4 * config.eval_batches)
        built_in = all(source.split(":")[0] == "stories" for source in meta.source)
        count = max(config.coherence_stories, SHOWN_STORIES) if built_in else SHOWN_STORIES
        tokenizer = Tokenizer.load(self.run / "tokenizer.json")
        told = evaluate.tell_stories(
            self.model, tokenizer, count, temperature=config.temperature, seed=config.seed
        )
        return report.Report(
            val_loss=val_loss,
            train_loss=train_loss,
            bits_per_byte=evaluate.bits_per_byte(val_loss, meta.tokens["val"], meta.bytes["val"]),
            coherence=coherence(told) if built_in else None,
            tokens=progress.tokens,
            seconds=progress.seconds,
            tokens_per_second=progress.tokens / progress.seconds,
            peak_memory_mb=report.peak_memory_mb(self.device),
            parameters=sum(p.numel() for p in self.parameters),
            stories=told[:SHOWN_STORIES],
        )


def train(config: TrainConfig) -> report.Report:
    """Trains, reports and returns the report; raises `Interrupted` after a clean stop."""
    trainer = Trainer(config)
    log = trainer.prepare_run()
    parameters = sum(p.numel() for p in trainer.parameters)
    precision = str(trainer.precision).removeprefix("torch.")
    Console(stderr=True).print(
        f"{parameters:,} parameters on {trainer.device} in {precision}, {config.steps} steps of "
        f"{config.batch_tokens:,} tokens from {config.data} to {trainer.run}",
        highlight=False,
    )
    with contextlib.closing(log), report.progress_bar() as bar:
        trainer.train(log, bar)
    result = trainer.report()
    result.write(trainer.run / "report.json")
    return result


def _open_split(config: TrainConfig, split: str) -> TokenFile:
    """A token file that the configured model can read."""
    file = TokenFile.open(config.data, split)
    if config.model.vocab_size < file.vocab_size:
        raise ValueError(
            f"vocab_size {config.model.vocab_size} is smaller than the vocabulary of {config.data} "
            f"({file.vocab_size}): leave --vocab-size out, or prepare the data with a smaller vocabulary"
        )
    return file


def _claim(run: Path, *, overwrite: bool) -> None:
    """Makes an empty run directory; one that holds something is set aside if `overwrite`, else refused."""
    if run.is_dir() and any(run.iterdir()):
        if not overwrite:
            raise ValueError(
                f"{run} already holds a run: choose another --run, or go on with --resume, or --overwrite it"
            )
        previous = run.with_name(f"{run.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(run, previous)
    run.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives; a second one interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
