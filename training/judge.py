"""What has been learned: the figures of a run's best weights, and the stories they tell."""

import torch

from bpe import Tokenizer
from common import files
from data.stories import coherence
from evaluation import losses
from inference import devices
from model import GPT
from training import run
from training.checkpoint import Progress
from training.config import TrainConfig
from training.report import Report, peak_memory_mb

SHOWN_STORIES = 3
PASS_TOKENS = 32_768  # in an evaluation pass, where --micro-batch does not say


def judge(config: TrainConfig, progress: Progress, device: torch.device, precision: torch.dtype) -> Report:
    """Reads RUN/best and evaluates it on the whole validation file and as much of the training file.

    Peak memory is that of the training, up to here.
    """
    peak = peak_memory_mb(device)
    directory = config.run_directory
    train_file, val_file = (run.open_split(config, split) for split in ("train", "val"))
    best = GPT.from_pretrained(files.whole_directory(directory / "best")).to(device)
    rows = config.micro_batch
    if rows == "auto":
        rows = max(1, PASS_TOKENS // config.model.block_size)
    with devices.autocast(device, precision):
        train_loss, val_loss = (
            losses.full_loss(best, file, config.batches, rows, limit=len(val_file))
            for file in (train_file, val_file)
        )
    meta = val_file.meta
    built_in = all(source.split(":")[0] == "stories" for source in meta.source)
    count = max(config.coherence_stories, SHOWN_STORIES) if built_in else SHOWN_STORIES
    tokenizer = Tokenizer.load(directory / "tokenizer.json")
    told = losses.tell_stories(best, tokenizer, count, temperature=config.temperature, seed=config.seed)
    return Report(
        val_loss=val_loss,
        train_loss=train_loss,
        bits_per_byte=losses.bits_per_byte(val_loss, meta.tokens["val"], meta.bytes["val"]),
        coherence=coherence(told) if built_in else None,
        tokens=progress.tokens,
        seconds=progress.seconds,
        tokens_per_second=progress.tokens / progress.seconds,
        peak_memory_mb=peak,
        parameters=sum(p.numel() for p in best.parameters()),
        stories=told[:SHOWN_STORIES],
    )
