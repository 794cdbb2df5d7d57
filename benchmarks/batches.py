"""Measure how many tokens a second the samplers serve on one core, and whether their memory stays.

    python benchmarks/batches.py [--mb 1000] [--batches 100000] [--json PATH]

On a file of random documents, batches of 64 × 256. The peer of random windows is nanoGPT's get_batch: a slice of
the memory map for each row, stacked; those of the others are the PyTorch way to the same batches: a Dataset whose
items are windows, a DataLoader that shuffles or not (no workers: one core). Growth is that of anonymous memory
(RssAnon), which leaves out the pages of the file that the system caches.
"""

import dataclasses
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.bench import Row, report
from data.batches import Documents, EpochWindows, RandomWindows, StridedWindows, TokenFile, prefetch

VOCAB_SIZE, MEAN_LENGTH = 10_000, 220


@dataclasses.dataclass(frozen=True)
class Options:
    """Time the samplers next to nanoGPT's get_batch and PyTorch's DataLoader."""

    mb: int = 200
    """Size of the token file in MB (10^6 bytes)."""
    batch_size: int = 64
    """Rows of a batch."""
    block_size: int = 256
    """Tokens of a row."""
    seconds: float = 1.0
    """How long each side of a row is timed, five times in turn."""
    batches: int = 5_000
    """Batches over which the growth of memory is measured."""
    folder: Path | None = None
    """Put the token file here meanwhile."""
    json: Path | None = None
    """Write the table here as JSON."""


def write_tokens(folder: Path, num_bytes: int) -> None:
    """Write a prepared folder of random ids; documents end at random (id 0)."""
    random = np.random.default_rng(0)
    count = num_bytes // 2
    with open(folder / "train.bin", "wb") as file:
        for start in range(0, count, 1 << 24):
            ids = random.integers(1, VOCAB_SIZE, min(1 << 24, count - start), dtype=np.uint16)
            ids[random.random(len(ids)) < 1 / MEAN_LENGTH] = 0
            file.write(ids.tobytes())
    (folder / "tokenizer.json").write_text("{}")
    meta = {
        "format_version": 1,
        "dtype": "uint16",
        "vocab_size": VOCAB_SIZE,
        **{name: {"train": count} for name in ("tokens", "documents", "bytes")},
        "special_tokens": {"<|endoftext|>": 0},
        "tokenizer_sha256": hashlib.sha256(b"{}").hexdigest(),
        "source": ["random"],
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def nanogpt_batches(
    path: Path, batch_size: int, block_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches as nanoGPT does: the memory map is opened for every batch and rows are sliced one by one."""
    while True:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - block_size, (batch_size,))
        yield tuple(
            torch.stack([torch.from_numpy(data[i + d : i + d + block_size].astype(np.int64)) for i in starts])
            for d in (0, 1)
        )


class Windows(torch.utils.data.Dataset):
    """The PyTorch way: item i is the window that starts at i times stride."""

    def __init__(self, tokens: np.ndarray, block_size: int, stride: int) -> None:
        self.tokens, self.block_size, self.stride = tokens, block_size, stride

    def __len__(self) -> int:
        return (len(self.tokens) - self.block_size - 1) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = index * self.stride
        row = torch.from_numpy(self.tokens[start : start + self.block_size + 1].astype(np.int64))
        return row[:-1], row[1:]


def loader(tokens: np.ndarray, options: Options, stride: int, shuffle: bool) -> Iterator:
    """Return an endless DataLoader over the windows."""
    windows = Windows(tokens, options.block_size, stride)
    while True:
        yield from torch.utils.data.DataLoader(windows, options.batch_size, shuffle=shuffle, drop_last=True)


def tokens_per_second(batches: Iterator, seconds: float) -> float:
    """Return how many targets that count (not -100) are served in a second."""
    _, y = next(batches)
    used = float((y != -100).sum())
    served, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        next(batches)
        served += 1
    return served * used / (now - start)


def compare(name: str, sides: dict[str, Iterator], seconds: float) -> Row:
    """Return the medians of five turns of ours and of the peer's."""
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(5):
        for side, batches in sides.items():
            speeds[side].append(tokens_per_second(batches, seconds))
    ours, *theirs = (statistics.median(values) / 1e6 for values in speeds.values())
    peer = list(sides)[1] if theirs else ""
    return Row(name, ours, "M tokens/s", peer, theirs[0] if theirs else None)


def anonymous_kb() -> int:
    """Return RssAnon of this process in KiB: memory that belongs to no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    raise SystemExit("this system does not say RssAnon: the growth of memory is measured on Linux")


def growth(make: Callable[[], Iterator], batches: int) -> float:
    """Return the MB by which anonymous memory grows over `batches` batches, after a first hundred."""
    sampler = make()
    for _ in range(100):
        next(sampler)
    before = anonymous_kb()
    for _ in range(batches):
        next(sampler)
    return (anonymous_kb() - before) / 1000


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure every sampler, print the table."""
    options = cli.parse(Options, argv, prog="benchmarks/batches.py")
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_tokens(Path(folder), options.mb * 1_000_000)
        report("batches", list(rows(TokenFile.open(folder, "train"), options)), options.json)


def rows(file: TokenFile, options: Options) -> Iterator[Row]:
    """Return the rows of the table."""
    size = (options.batch_size, options.block_size)
    shape = f"{size[0]} × {size[1]} from {options.mb} MB"
    nanogpt, stride = nanogpt_batches(file.path, *size), options.block_size // 2
    sides = {
        "random": {"ours": RandomWindows(file, *size), "nanoGPT's get_batch": nanogpt},
        "random, prefetched": {"ours": prefetch(RandomWindows(file, *size)), "nanoGPT's get_batch": nanogpt},
        "epoch": {
            "ours": EpochWindows(file, *size),
            "DataLoader, shuffled": loader(file.tokens, options, size[1], True),
        },
        "strided": {
            "ours": StridedWindows(file, *size, stride=stride),
            "DataLoader": loader(file.tokens, options, stride, False),
        },
        "documents, packed": {"ours": Documents(file, *size, mode="pack")},
        "documents, padded": {"ours": Documents(file, *size, mode="pad")},
    }
    for name, both in sides.items():
        yield compare(f"batches {name}, {shape}", both, options.seconds / 5)
    grown = growth(lambda: RandomWindows(file, *size), options.batches)
    yield Row(
        f"batches random, memory grown over {options.batches:,} batches", grown, "MB", less_is_better=True
    )


if __name__ == "__main__":
    main()
