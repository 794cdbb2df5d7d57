"""How fast is encoding with GPT-2's vocabulary, compared with tiktoken and Hugging Face tokenizers? How much memory?

    python benchmarks/bpe_encode.py --text tinystories.txt --stream-megabytes 1024 --json results.json

Everything runs on one thread except the rows that say workers. Cold means a tokenizer that has seen no text.
"""

import copy
import dataclasses
import functools
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bpe_train import peak_megabytes, read_text
from bpe import Tokenizer
from common import bench, cli

# GPT-2's pattern as tiktoken spells it, with the possessive quantifiers that its engine wants.
TIKTOKEN_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare encoding with tiktoken and Hugging Face tokenizers."""

    text: Path | None = None
    """A text file; by default the built-in corpus."""
    copies: int = 10
    """How often the text is repeated for the warm rows."""
    batch_copies: int = 200
    """How often the text is repeated for the rows with workers, one copy a text."""
    workers: int = 2
    """Processes of encode_batch."""
    stream_megabytes: int = 64
    """Length of the stream whose memory is measured."""
    repeat: int = 5
    """Runs of each; the median counts."""
    json: Path | None = None
    """Write the results to this file, or into this folder."""


def make_peers(tokenizer: Tokenizer) -> tuple[Any, Any]:
    """Return tiktoken's and Hugging Face's tokenizers with the same vocabulary."""
    import tiktoken
    import tokenizers

    special = tokenizer.special_tokens
    ranks = {token: id for id, token in tokenizer.vocab.items() if id not in special.values()}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        return encoding, tokenizers.Tokenizer.from_file(str(path))


def megabytes_per_second(calls: dict[str, tuple[Callable[[str], Any], str]], repeat: int) -> dict[str, float]:
    """Return the speed of each call on its text, the calls taking turns."""
    bound = {name: (lambda call=call, text=text: call(text)) for name, (call, text) in calls.items()}
    times = bench.medians(bound, repeat)
    return {name: len(text.encode()) / 1e6 / times[name] for name, (_, text) in calls.items()}


def speed_rows(options: Options, tokenizer: Tokenizer, text: str) -> list[bench.Row]:
    """Measure one thread, warm and cold."""
    tiktoken, hugging_face = make_peers(tokenizer)
    ids = tokenizer.encode(text)
    if not ids == tiktoken.encode_ordinary(text) == hugging_face.encode(text).ids:
        raise ValueError("the tokenizers do not agree on this text")
    long = text * options.copies
    calls = {
        "encode_to_numpy": (tokenizer.encode_to_numpy, long),
        "encode": (tokenizer.encode, long),
        "tiktoken.encode_to_numpy": (tiktoken.encode_to_numpy, long),
        "tiktoken.encode_ordinary": (tiktoken.encode_ordinary, long),
        "tokenizers.encode": (hugging_face.encode, text),
    }
    warm = megabytes_per_second(calls, options.repeat)
    peers = {name: call for name, (call, _) in calls.items() if "." in name}
    cold = cold_speeds(tokenizer, peers, text, options.repeat)
    return [
        bench.Row(f"encode, {state}: {name}", speed[name], "MB/s", peer, speed[peer])
        for state, speed in (("warm", warm), ("cold", cold))
        for name in ("encode_to_numpy", "encode")
        for peer in peers
    ]


def cold_speeds(
    tokenizer: Tokenizer, peers: dict[str, Callable[[str], Any]], text: str, repeat: int
) -> dict[str, float]:
    """Return the MB/s of tokenizers that have seen no text, in turn with the peers; each is used once and dropped."""
    times: dict[str, list[float]] = {name: [] for name in ("encode_to_numpy", "encode", *peers)}
    for _ in range(repeat):
        for name, found in times.items():
            call = peers[name] if name in peers else getattr(copy.copy(tokenizer), name)
            found.append(bench.seconds(functools.partial(call, text)))
    size = len(text.encode()) / 1e6
    return {name: size / statistics.median(found) for name, found in times.items()}


def worker_rows(options: Options, tokenizer: Tokenizer, text: str) -> list[bench.Row]:
    """Compare several processes with one, the workers warm; the transfer of text and ids is included."""
    # Similar texts, but not the same object, which would never leave the processor's cache.
    texts = [text[start:] + text[:start] for start in range(options.batch_copies)]

    def drain(num_workers: int) -> int:
        return sum(len(ids) for ids in tokenizer.encode_batch_to_numpy(texts, num_workers))

    def lists(num_workers: int) -> int:
        return len(tokenizer.encode_batch(texts, num_workers))

    megabytes = len(texts) * len(text.encode()) / 1e6
    found = []
    for name, call in (("encode_batch_to_numpy", drain), ("encode_batch", lists)):
        calls = {workers: functools.partial(call, workers) for workers in (options.workers, 1)}
        times = bench.medians(calls, options.repeat)
        row = f"{name}, {options.workers} workers, {megabytes:,.0f} MB"
        speeds = [megabytes / times[workers] for workers in (options.workers, 1)]
        found.append(bench.Row(row, speeds[0], "MB/s", "one process", speeds[1]))
    return found


def long_piece_rows(tokenizer: Tokenizer) -> list[bench.Row]:
    """Measure pieces without an end, for which a quadratic method would take hours."""
    noise = random.Random(0).randbytes(2_000_000).decode("utf-8", "replace")
    units = {"the letter a": "a", "spaces": " ", "one emoji": "😀", "random bytes": noise}
    found = []
    for name, unit in units.items():
        for size in SIZES:
            text = (unit * (size // len(unit.encode()) + 1)).encode()[:size].decode("utf-8", "ignore")
            fresh = copy.copy(tokenizer)
            seconds = bench.seconds(functools.partial(fresh.encode, text))
            found.append(bench.Row(f"encode {size:,} bytes of {name}", seconds, "s", less_is_better=True))
    return found


SIZES = (1_000, 10_000, 100_000, 1_000_000)


def stream_row(options: Options, tokenizer: Tokenizer, text: str) -> bench.Row:
    """Measure how much peak memory grows while a long stream is encoded; run first, as a peak never falls."""
    size = len(text.encode())
    chunks = [text[start : start + 65_536] for start in range(0, len(text), 65_536)]
    before = peak_megabytes()
    copies = max(1, options.stream_megabytes * 1_000_000 // size)
    stream = (chunk for _ in range(copies) for chunk in chunks)
    tokens = sum(1 for _ in tokenizer.encode_iterable(stream))
    name = f"encode_iterable, {copies * size / 1e6:,.0f} MB ({tokens:,} ids): growth of peak memory"
    return bench.Row(name, peak_megabytes() - before, "MiB", less_is_better=True)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = cli.parse(Options, argv, prog="benchmarks/bpe_encode.py")
    os.environ["RAYON_NUM_THREADS"] = "1"  # before tokenizers is imported
    text = read_text(options.text)
    tokenizer = Tokenizer.gpt2()
    rows = [stream_row(options, tokenizer, text)]
    rows += speed_rows(options, tokenizer, text)
    rows += worker_rows(options, tokenizer, text)
    rows += long_piece_rows(tokenizer)
    bench.report("bpe_encode", rows, options.json)


if __name__ == "__main__":
    main()
