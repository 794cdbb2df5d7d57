"""How fast is a corpus prepared, and in how much memory?

    python benchmarks/prepare.py [--mb 100 1000] [--text FILE] [--json PATH]

A text of the asked size is made by repeating stories (the built-in ones, or a file's), a tokenizer of 10,000
tokens is trained on it, and the whole command `python -m data prepare` is timed from its start to its end, once
with the tokenizer given and once with its training: single runs, no medians. The peer does what nanoGPT's
prepare.py does, with the tools that most people take: `datasets` reads, the Rust `tokenizers` encode batches with
all cores by the same tokenizer.json, numpy writes. Both must write the same number of tokens. Memory is the sum of
all processes, shared pages counted once (PSS), looked at every 50 ms.
"""

import dataclasses
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.bench import Row, report
from data.prepare import read_meta
from data.splitting import Splitter, choose
from data.stories import corpus

ROOT = Path(__file__).resolve().parents[1]
PEER = "datasets + tokenizers"
SEPARATOR = b"\n<|endoftext|>\n"


@dataclasses.dataclass(frozen=True)
class Options:
    """Time python -m data prepare next to datasets + tokenizers, and measures its memory."""

    mb: tuple[int, ...] = (100,)
    """Sizes of the text in MB (10^6 bytes)."""
    text: Path | None = None
    """A text file to repeat instead of the built-in stories."""
    vocab_size: int = 10_000
    """Tokens of the vocabulary."""
    workers: int | None = None
    """Processes that encode; by default one for each core."""
    folder: Path | None = None
    """Put the text and the token files here meanwhile: twice the largest size must fit."""
    json: Path | None = None
    """Write the table here as JSON."""


def documents(text: Path | None) -> list[bytes]:
    """Return the documents that are repeated."""
    if text is None:
        return [story.encode() for story in corpus(10_000_000)]
    whole = text.read_bytes()
    splitter = Splitter(choose(whole[: 1 << 20], "<|endoftext|>"))
    return [segment.text for segment in splitter.documents([whole])]


def write_repeated(path: Path, texts: list[bytes], num_bytes: int) -> None:
    """Write the documents again and again, whole, until the file has `num_bytes`."""
    once = SEPARATOR.join(texts) + SEPARATOR
    with open(path, "wb") as file:
        while file.tell() < num_bytes:
            file.write(once)


def run(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return (seconds, peak MB of the process and its descendants)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    peak, done = [0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, done))
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with code {code}")
    return seconds, peak[0]


def _watch(pid: int, peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.05):
        peak[0] = max(peak[0], sum(_memory(process) for process in _family(pid)) / 1e6)


def _family(pid: int) -> Iterator[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        yield from [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return


def _memory(process: psutil.Process) -> int:
    """Return bytes: the proportional set size where the system knows it, else the resident set size."""
    try:
        found = process.memory_full_info()
        return getattr(found, "pss", found.rss)
    except psutil.Error:  # it has ended
        return 0


def peer(text: str, tokenizer: str, out: str) -> None:
    """Prepare the same with `tokenizers`: documents to one file of uint16."""
    import datasets
    import numpy as np
    import tokenizers

    encoder = tokenizers.Tokenizer.from_file(tokenizer)
    end = encoder.token_to_id("<|endoftext|>")
    rows = datasets.load_dataset(
        "text", data_files=[text], split="train", streaming=True, keep_linebreaks=True
    )
    with open(out, "wb") as file:
        for texts in _peer_batches(rows):
            for encoding in encoder.encode_batch_fast(texts):
                file.write(np.array([*encoding.ids, end], np.uint16).tobytes())


def _peer_batches(rows) -> Iterator[list[str]]:
    """Yield a thousand documents at a time."""
    batch, rest = [], ""
    for lines in rows.iter(batch_size=1000):
        *whole, rest = (rest + "".join(lines["text"])).split("<|endoftext|>")
        batch += [text.strip() for text in whole]
        if len(batch) >= 1000:
            yield batch
            batch = []
    yield batch


def measure(options: Options, folder: Path, texts: list[bytes], mb: int) -> Iterator[Row]:
    """Return the rows for one size."""
    text, out, peer_out = folder / "text.txt", folder / "out", folder / "peer.bin"
    write_repeated(text, texts, mb * 1_000_000)
    size, tokenizer = text.stat().st_size / 1e6, folder / "tokenizer.json"
    base = [
        sys.executable,
        "-m",
        "data",
        "prepare",
        "--source",
        f"text:{text}",
        "--overwrite",
        "--out",
        str(out),
    ]
    base += ["--workers", str(options.workers)] if options.workers else []
    trained, _ = run([*base, "--vocab-size", str(options.vocab_size)])
    shutil.copy(out / "tokenizer.json", tokenizer)
    seconds, peak = run([*base, "--tokenizer", str(tokenizer)])
    tokens = sum(read_meta(out).tokens.values())
    shutil.rmtree(out)
    theirs, their_peak = run(
        [sys.executable, __file__, "peer", str(text.resolve()), str(tokenizer), str(peer_out)]
    )
    if (found := peer_out.stat().st_size // 2) != tokens:
        raise SystemExit(f"the peer wrote {found} tokens and we {tokens}: they did not do the same work")
    yield Row(f"prepare {mb} MB", size / seconds, "MB/s", PEER, size / theirs)
    yield Row(f"prepare {mb} MB, training the tokenizer", size / trained, "MB/s")
    yield Row(f"prepare {mb} MB, peak memory", peak, "MB", PEER, their_peak, less_is_better=True)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure every size, print the table."""
    options = cli.parse(Options, argv, prog="benchmarks/prepare.py")
    texts = documents(options.text)
    rows: list[Row] = []
    for mb in options.mb:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows += measure(options, Path(folder), texts, mb)
    report("prepare", rows, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        peer(*sys.argv[2:])
    else:
        main()
