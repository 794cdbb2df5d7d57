"""How fast is training, beside Hugging Face tokenizers on the same threads, and how much memory does it need?

    python benchmarks/bpe_train.py --text tinystories.txt --copies 200 --json results.json

Memory is measured in a process of its own: its peak, and for every worker the peak of the largest one.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import bench, cli

BUILT_IN_BYTES = 1_000_000
SMALL_BYTES, SMALL_VOCAB = 130_000, 500


@dataclasses.dataclass(frozen=True)
class Options:
    """Training beside Hugging Face tokenizers."""

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
    """Where to write the results."""


def read_text(path: Path | None) -> str:
    """The file's text, or a megabyte of the built-in corpus."""
    if path is not None:
        return path.read_text(encoding="utf-8", errors="replace")
    from data.stories import corpus

    return "".join(corpus(BUILT_IN_BYTES))


def train_ours(path: Path, vocab_size: int, threads: int | None) -> object:
    """Trains from a file; None threads lets it choose."""
    from bpe import train

    return train(path, vocab_size, special_tokens=(), num_workers=threads, progress=False)


def train_theirs(path: Path, vocab_size: int) -> object:
    """The same with Hugging Face tokenizers."""
    import tokenizers
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train([str(path)], trainer)
    return tokenizer


MEASURE = """
import json, resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from benchmarks import bpe_train
bpe_train.{call}
own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps([own / 1024, worker / 1024]))
"""


def peak_megabytes(call: str, workers: int) -> float:
    """Peak memory in MiB of a fresh process that evaluates `call`, and of its workers."""
    program = MEASURE.format(root=str(Path(__file__).parents[1]), call=call)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    own, worker = json.loads(done.stdout)
    return own + workers * worker


def rows(options: Options, folder: Path) -> list[bench.Row]:
    """All that is measured."""
    text = read_text(options.text)
    small, large = folder / "small.txt", folder / "large.txt"
    small.write_bytes(text.encode()[:SMALL_BYTES])
    with open(large, "wb") as file:
        for _ in range(options.copies):
            file.write(text.encode())
    warm_up = folder / "warm_up.txt"
    warm_up.write_text("a small text, so that imports are not counted")
    train_ours(warm_up, 257, None)
    train_theirs(warm_up, 257)
    peer, found = "tokenizers", []
    for path, vocab_size, threads in (
        (small, SMALL_VOCAB, None),
        (large, options.vocab_size, options.threads),
    ):
        made: dict[str, object] = {}

        def remember(name: str, call: Callable[[], object], made: dict[str, object] = made) -> None:
            made[name] = call()

        ours = functools.partial(remember, "ours", functools.partial(train_ours, path, vocab_size, threads))
        theirs = functools.partial(remember, "theirs", functools.partial(train_theirs, path, vocab_size))
        times = bench.medians({"ours": ours, "theirs": theirs}, options.repeat, warmup=0)
        name = f"train {vocab_size:,} ids, {path.stat().st_size / 1e6:.3g} MB"
        found.append(bench.Row(name, times["ours"], "s", peer, times["theirs"], less_is_better=True))
        tokens = len(made["ours"].encode(text)), len(made["theirs"].encode(text).ids)
        found.append(bench.Row(f"{name}: tokens of the text", tokens[0], "tokens", peer, tokens[1], True))
        found.append(
            bench.Row(f"{name}: ids", made["ours"].vocab_size, "ids", peer, made["theirs"].get_vocab_size())
        )
    memory = [
        peak_megabytes(
            f"train_ours(Path({str(large)!r}), {options.vocab_size}, {options.threads})", options.threads
        ),
        peak_megabytes(f"train_theirs(Path({str(large)!r}), {options.vocab_size})", 0),
    ]
    found.append(bench.Row("train: peak memory", memory[0], "MiB", peer, memory[1], less_is_better=True))
    return found


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    options = cli.parse(Options, argv, prog="benchmarks/bpe_train.py")
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # before tokenizers is imported
    with tempfile.TemporaryDirectory() as folder:
        bench.report("bpe_train", rows(options, Path(folder)), options.json)


if __name__ == "__main__":
    main()
