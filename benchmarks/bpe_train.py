"""How fast is training, compared with Hugging Face tokenizers on the same threads? How much memory does it need?

    python benchmarks/bpe_train.py --text tinystories.txt --copies 200 --json results.json

Memory is measured in a separate process: its peak and those of its workers, added.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import bench, cli

BUILT_IN_BYTES = 1_000_000
SMALL_BYTES, SMALL_VOCAB = 130_000, 500


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare training with Hugging Face tokenizers."""

    text: Path | None = None
    """A text file; by default the built-in corpus."""
    copies: int = 200
    """How often the text is repeated in the large corpus."""
    vocab_size: int = 10_000
    """Ids to ask for from the large corpus."""
    threads: int = 2
    """Our worker processes, and Hugging Face's threads."""
    repeat: int = 3
    """Runs of each; the median counts."""
    json: Path | None = None
    """Write the results to this file, or into this folder."""


def read_text(path: Path | None) -> str:
    """Return the file's text, or a megabyte of the built-in corpus."""
    if path is not None:
        return path.read_text(encoding="utf-8", errors="replace")
    from data.stories import corpus

    return "".join(corpus(BUILT_IN_BYTES))


def train_ours(path: Path, vocab_size: int, threads: int | None) -> Any:
    """Train from a file; with None as threads the trainer chooses."""
    from bpe import train

    return train(path, vocab_size, special_tokens=(), num_workers=threads, progress=False)


def train_theirs(path: Path, vocab_size: int) -> Any:
    """Do the same with Hugging Face tokenizers."""
    import tokenizers
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train([str(path)], trainer)
    return tokenizer


def peak_megabytes(pid: int | str = "self") -> float:
    """Return the peak resident memory in MiB of a process (Linux; ru_maxrss includes its parent's)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024


def training_peak(path: Path, options: Options) -> float:
    """Return the peaks in MiB of a fresh process that trains and of its workers, added."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from benchmarks.bpe_train import train_ours\n"
        f"train_ours({str(path)!r}, {options.vocab_size}, {options.threads})"
    )
    peaks: dict[str, float] = {}
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError, AttributeError):  # a process that has just ended
                workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                for pid in (str(process.pid), *workers):
                    peaks[pid] = peak_megabytes(pid)
            time.sleep(0.01)
    return sum(peaks.values())


def timed_rows(path: Path, text: str, vocab_size: int, threads: int | None, repeat: int) -> list[bench.Row]:
    """Measure the seconds of both trainers on the file, and how many tokens and ids came of it."""
    made: dict[str, Any] = {}

    def ours() -> None:
        made["ours"] = train_ours(path, vocab_size, threads)

    def theirs() -> None:
        made["theirs"] = train_theirs(path, vocab_size)

    times = bench.medians({"ours": ours, "theirs": theirs}, repeat, warmup=0)
    name, peer = f"train {vocab_size:,} ids, {path.stat().st_size / 1e6:.3g} MB", "tokenizers"
    tokens = len(made["ours"].encode(text)), len(made["theirs"].encode(text).ids)
    ids = made["ours"].vocab_size, made["theirs"].get_vocab_size()
    return [
        bench.Row(name, times["ours"], "s", peer, times["theirs"], less_is_better=True),
        bench.Row(f"{name}: tokens of the text", tokens[0], "tokens", peer, tokens[1], less_is_better=True),
        bench.Row(f"{name}: ids", ids[0], "ids", peer, ids[1]),
    ]


def rows(options: Options, folder: Path) -> list[bench.Row]:
    """Measure everything."""
    text = read_text(options.text)
    warm_up, small, large = (folder / name for name in ("warm_up", "small", "large"))
    warm_up.write_text("a small text, so that imports are not counted")
    train_ours(warm_up, 257, None)
    train_theirs(warm_up, 257)
    small.write_bytes(text.encode()[:SMALL_BYTES])
    with open(large, "wb") as file:
        for _ in range(options.copies):
            file.write(text.encode())
    return [
        *timed_rows(small, text, SMALL_VOCAB, None, options.repeat),
        *timed_rows(large, text, options.vocab_size, options.threads, options.repeat),
        bench.Row("train: peak memory", training_peak(large, options), "MiB", less_is_better=True),
    ]


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = cli.parse(Options, argv, prog="benchmarks/bpe_train.py")
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # before tokenizers is imported
    with tempfile.TemporaryDirectory() as folder:
        bench.report("bpe_train", rows(options, Path(folder)), options.json)


if __name__ == "__main__":
    main()
