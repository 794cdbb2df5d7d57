"""How fast is the server compared with sample.py's own loop and llama.cpp, and what do paging, reuse and HTTP cost?

    python benchmarks/serving.py [--only one|many|reuse|start] [--size 15m|quickstart] [--json PATH]

The models: that of benchmarks/decode.py (6 layers, 288 wide, 32,000 ids, a context of 256: 15 M parameters) and that
of presets/quickstart.toml, random weights, greedy. llama.cpp gets the same weights as GGUF; SLM_LLAMA_CPP names the
folder of its library (benchmarks/llama_cpp.py), without it there is no such peer. All sides take turns. Over HTTP the
clients are threads of the benchmark, and the server a process of its own.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import llama_cpp
from bpe import Tokenizer
from common import cli
from common.bench import Row, medians, report, seconds
from inference.text import TextModel
from model import GPT, GPTConfig
from model.generate import Rules, generate_batch
from model.pack import pack
from serving.engine import Engine
from serving.http import Access, Server
from serving.paged_cache import PAGE, page_bytes
from serving.scheduler import Limits, Request, Scheduler
from training.config import PRESETS, read_config

SIZES = {
    "15m": GPTConfig(vocab_size=32_000, block_size=256, n_layer=6, n_head=6, n_embd=288),
    "quickstart": dataclasses.replace(read_config(PRESETS / "quickstart.toml").model, vocab_size=2048),
}
PRECISIONS = {"float32": "f32", "bfloat16": "f16", "int8": "q8_0"}  # and llama.cpp's of as many bits
GREEDY = Rules(temperature=0)
CLIENTS = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """Time the engine, the server, sample.py and llama.cpp."""

    only: Literal["one", "many", "reuse", "start"] | None = None
    """one: a single stream; many: 16 clients; reuse: a shared beginning; start: a cold start (all of them)."""
    size: Literal["15m", "quickstart"] | None = None
    """Which model (both)."""
    tokens: int = 150
    """New tokens of each timed text."""
    threads: int | None = None
    """Threads of both sides (all cores)."""
    repeat: int = 3
    """Times that each side is measured, in turn; the median counts."""
    json: Path | None = None
    """Write the table here as JSON."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = cli.parse(Options, argv, prog="benchmarks/serving.py")
    threads = options.threads or os.cpu_count() or 1
    options = dataclasses.replace(options, threads=threads)
    torch.set_num_threads(threads)
    parts = {"one": one_stream, "many": many_clients, "reuse": reuse, "start": cold_start}
    rows = []
    for size in [options.size] if options.size else SIZES:
        for name, part in parts.items():
            if options.only in (None, name):
                rows += part(options, size)
    report("serving", rows, options.json)


def random_model(size: str) -> TextModel:
    """Return a random model with a tokenizer that gives every id some letters."""
    torch.manual_seed(0)
    gpt = GPT(SIZES[size]).eval()
    letters = [bytes([letter]) for letter in b"abcdefghijklmnopqrstuvwxyz"]
    words, merges = letters, []
    while len(merges) < gpt.config.vocab_size:
        pairs = list(itertools.product(words, letters))
        merges += pairs
        words = [left + right for left, right in pairs]
    return TextModel(gpt, Tokenizer(merges[: gpt.config.vocab_size - 257], ["<|endoftext|>"]))


def packed(text_model: TextModel, precision: str) -> TextModel:
    """Return the model as the server computes it."""
    return dataclasses.replace(text_model, model=pack(text_model.model, precision))


@contextlib.contextmanager
def peer(text_model: TextModel, kind: str, rows: int, threads: int) -> Iterator[llama_cpp.LlamaCpp | None]:
    """Give the same model in llama.cpp, or None without its library."""
    if llama_cpp.folder() is None:
        yield None
        return
    from model.export import gguf

    with tempfile.TemporaryDirectory() as folder:
        text_model.tokenizer.save(Path(folder) / "tokenizer.json")
        path, gpt = Path(folder) / "model.gguf", text_model.model
        gguf.save(path, gpt.config, gpt.state_dict(), Path(folder) / "tokenizer.json", kind)
        theirs = llama_cpp.LlamaCpp(
            llama_cpp.folder(), path, context=gpt.config.block_size, rows=rows, threads=threads
        )
        try:
            yield theirs
        finally:
            theirs.close()


@contextlib.contextmanager
def served(text_model: TextModel, limits: Limits | None = None) -> Iterator[str]:
    """Serve a model from a thread; gives its address."""
    import uvicorn

    engine = Engine(text_model, limits)
    app = Server(engine, "model", None, Access(frozenset({"127.0.0.1"}))).app()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        engine.start()
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            engine.close()


def save(text_model: TextModel, folder: str) -> None:
    """Write the model as the server's command reads it."""
    text_model.model.save_pretrained(folder)
    text_model.tokenizer.save(Path(folder) / "tokenizer.json")


@contextlib.contextmanager
def started(folder: str, precision: str, threads: int) -> Iterator[str]:
    """Start the server's command in a process of its own; gives its address."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "serving", folder, "--port", "0", "--precision", precision]
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split(" at ")[1].split("/v1")[0]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def one_stream(options: Options, size: str) -> list[Row]:
    """Measure the tokens per second of one text: sample.py's loop, the engine, the server's events, llama.cpp."""
    base, rows, count = random_model(size), [], options.tokens
    prompt = [1]
    for precision, kind in PRECISIONS.items():
        text_model = packed(base, precision)
        scheduler = Scheduler(text_model.model, Limits(cache_mb=64))
        with (
            served(text_model, Limits(cache_mb=64)) as address,
            peer(base, kind, 1, options.threads) as theirs,
        ):
            calls = {
                "sample.py": partial(sample, text_model, prompt, count),
                "engine": partial(continue_once, scheduler, prompt, count),
                "SSE": partial(read_events, address, prompt, count),
            }
            if theirs:
                calls["llama.cpp"] = partial(theirs.greedy, [prompt], count)
            found = {name: count / value for name, value in medians(calls, options.repeat).items()}
        name = f"serve one stream, {size}, {precision}"
        rows.append(
            Row(f"{name}, engine", found["engine"], "tokens/s", "sample.py", found["sample.py"], goal=0.9)
        )
        goal = 0.6 if size == "15m" else None
        rows.append(Row(f"{name}, SSE", found["SSE"], "tokens/s", "sample.py", found["sample.py"], goal=goal))
        if theirs:
            against = f"llama.cpp {kind}"
            rows.append(
                Row(f"{name}, engine", found["engine"], "tokens/s", against, found["llama.cpp"], goal=1.0)
            )
    return rows


def sample(text_model: TextModel, prompt: list[int], count: int) -> None:
    """Write one text as sample.py does."""
    text_model.generate([prompt], count, GREEDY, seeds=[0]).finish()


def continue_once(
    scheduler: Scheduler, prompt: list[int], count: int, bias: dict[int, float] | None = None
) -> None:
    """Write one text by the scheduler."""
    scheduler.add(Request(prompt, count, GREEDY, bias=bias or {}))
    while not scheduler.is_idle:
        scheduler.step()


def read_events(address: str, prompt: list[int], count: int) -> None:
    """Read the events of one stream to their end."""
    body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True, "ignore_eos": True}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        lines = [line for line in answer if line.startswith(b"data: ")]
    assert lines[-1] == b"data: [DONE]\n" and b'"finish_reason":"length"' in lines[-2]


def many_clients(options: Options, size: str) -> list[Row]:
    """Measure 16 clients, each of which asks again at once, with prompts and answers of mixed lengths."""
    base, rows = random_model(size), []
    with tempfile.TemporaryDirectory() as folder:
        save(base, folder)
        for precision in PRECISIONS:
            rows += crowd(options, base, folder, size, precision)
    return rows


def crowd(options: Options, base: TextModel, folder: str, size: str, precision: str) -> list[Row]:
    """Measure them in one precision; the server loads the model from `folder`."""
    jobs, firsts, kind = mixed(base.model.config, 4 * CLIENTS), [], PRECISIONS[precision]
    middle = [1] * round(statistics.mean(len(prompt) for prompt, _ in jobs))
    drawn = sum(count for _, count in jobs)
    count = round(drawn / len(jobs))  # so that all sides read and write as much for each text
    gpt = packed(base, precision).model
    scheduler = Scheduler(gpt, Limits(cache_mb=256))
    with (
        started(folder, precision, options.threads) as address,
        peer(base, kind, CLIENTS, options.threads) as theirs,
    ):
        calls = {
            "raw": partial(generate_batch, gpt, [middle] * CLIENTS, count, temperature=0),
            "engine": partial(serve_crowd, scheduler, jobs, firsts),
            "HTTP": partial(ask_over_http, address, jobs, itertools.count()),
        }
        if theirs:
            calls["llama.cpp"] = partial(theirs.greedy, [middle] * CLIENTS, count)
        times = medians(calls, options.repeat)
    ours, raw, http = drawn / times["engine"], CLIENTS * count / times["raw"], drawn / times["HTTP"]
    name, batch = f"serve {CLIENTS} clients, {size}, {precision}", f"one batch of {CLIENTS}"
    rows = [
        Row(name, ours, "tokens/s", batch, raw, goal=0.85),
        Row(f"{name}, over HTTP", http, "tokens/s", batch, raw),
    ]
    if theirs:
        rate, against = CLIENTS * count / times["llama.cpp"], f"llama.cpp {kind}, batch of {CLIENTS}"
        rows.append(Row(name, ours, "tokens/s", against, rate, goal=1.0))
        rows.append(Row(f"{name}, over HTTP", http, "tokens/s", against, rate))
    late = 1e3 * statistics.quantiles(firsts, n=20)[-1]
    return [*rows, Row(f"{name}, first token, 95 %", late, "ms", "limit", 150, True, goal=1.0)]


def mixed(config: GPTConfig, count: int) -> list[tuple[list[int], int]]:
    """Return prompts of 4 to 80 ids and lengths of 40 to 150."""
    draw = random.Random(0)
    return [
        ([draw.randrange(config.vocab_size - 1) for _ in range(draw.randint(4, 80))], draw.randint(40, 150))
        for _ in range(count)
    ]


def serve_crowd(scheduler: Scheduler, jobs: Sequence[tuple[list[int], int]], firsts: list[float]) -> None:
    """Let 16 clients do all jobs, each asking again at once; add the seconds to each first token to `firsts`."""
    scheduler.tree.evict(scheduler.pool.count)  # no prompt is known from the time before
    left, begun = iter(jobs), {}

    def ask() -> None:
        for prompt, count in itertools.islice(left, 1):
            request = Request(prompt, count, GREEDY)
            begun[request] = time.perf_counter()
            scheduler.add(request)

    for _ in range(CLIENTS):
        ask()
    while not scheduler.is_idle:
        for drawn in scheduler.step():
            if drawn.text.request in begun:
                firsts.append(time.perf_counter() - begun.pop(drawn.text.request))
            if drawn.is_last:
                ask()


def ask_over_http(address: str, jobs: Sequence[tuple[list[int], int]], calls: Iterator[int]) -> None:
    """Let 16 clients do all jobs as streams, each asking again at once; no prompt begins as in an earlier call."""
    first = next(calls)
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        asked = [clients.submit(read_events, address, [first, *prompt[1:]], count) for prompt, count in jobs]
        for each in asked:
            each.result()


def reuse(options: Options, size: str) -> list[Row]:
    """Measure the time to the first token after a beginning of 80 % of a context of 1,024 that is known or not."""
    torch.manual_seed(0)
    gpt = pack(GPT(dataclasses.replace(SIZES[size], block_size=1024)).eval(), "int8")
    draw, times = random.Random(0), {"new": [], "known": []}
    scheduler = Scheduler(gpt, Limits(cache_mb=256))
    for _ in range(2 * options.repeat):
        start = [draw.randrange(2000) for _ in range(820)]
        for kind in times:
            rest = [draw.randrange(2000) for _ in range(40)]
            times[kind].append(seconds(partial(continue_once, scheduler, [*start, *rest], 1)))
    known, new = (1e3 * statistics.median(times[kind]) for kind in ("known", "new"))
    name = f"serve first token after a known beginning, {size}, int8"
    return [
        Row(name, known, "ms", "a new one", new, True, goal=5.0),
        *lookup(options, gpt, size),
        *memory(gpt, size),
    ]


def lookup(options: Options, gpt: GPT, size: str) -> list[Row]:
    """Measure prompt lookup on a text that repeats itself."""
    schedulers = {guesses: Scheduler(gpt, Limits(cache_mb=64, lookup=guesses)) for guesses in (0, 4)}
    # A bias keeps the random model in a circle of few tokens, which it repeats.
    bias = dict.fromkeys(range(4, 9), 50.0)
    calls = {
        guesses: partial(continue_once, each, [5, 6, 7, 8] * 20, 200, bias)
        for guesses, each in schedulers.items()
    }
    found = medians(calls, options.repeat)
    counters = schedulers[4].counters
    note = f"{counters.accepted_tokens} of {counters.guessed_tokens} guesses right"
    name = f"serve with prompt lookup, a text that repeats itself, {size}, int8"
    return [Row(name, 200 / found[4], "tokens/s", "without", 200 / found[0], note=note)]


def memory(gpt: GPT, size: str, clients: int = 64, megabytes: float = 24) -> list[Row]:
    """Measure the keys and values held by 64 clients whose texts need more than there is."""
    scheduler = Scheduler(gpt, Limits(cache_mb=megabytes))
    for number in range(clients):
        scheduler.add(Request([number] * 64, 200, GREEDY))
    most = 0
    while not scheduler.is_idle:
        scheduler.step()
        most = max(most, scheduler.pool.count - scheduler.pool.free_count)
    needed = clients * -(-264 // PAGE) * page_bytes(gpt) / 1e6
    note = f"{needed:.0f} MB if no client waited; {scheduler.counters.preemptions} preemptions"
    held = most * page_bytes(gpt) / 1e6
    return [Row(f"serve {clients} clients, memory, {size}", held, "MB", "limit", megabytes, True, 1.0, note)]


def cold_start(options: Options, size: str) -> list[Row]:
    """Measure the seconds from the command to the first token over HTTP."""
    text_model, times = random_model(size), []
    with tempfile.TemporaryDirectory() as folder:
        save(text_model, folder)
        for _ in range(options.repeat):
            start = time.perf_counter()
            with started(folder, "int8", options.threads) as address:
                read_events(address, [1], 1)
                times.append(time.perf_counter() - start)
    return [
        Row(
            f"serve cold start to first token, {size}", statistics.median(times), "s", "limit", 3.0, True, 1.0
        )
    ]


if __name__ == "__main__":
    main()
