"""How fast does a trained model speak, compared with llama2.c, and does the cache change a word?

    python benchmarks/decode.py [--llama2c RUN] [--tokens 200] [--json PATH]

The model: 6 layers, 288 wide, 6 heads, 32,000 ids, a context of 256 (15 M parameters), random weights. The peer is
Karpathy's llama2.c on a model of the same size, built by `gcc -Ofast -fopenmp -march=native -o run run.c -lm`; give its
folder, which must also hold its tokenizer.bin. Its random weights are written here. Ours and the peer take turns.
"""

import dataclasses
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.bench import Row, report, seconds
from model import GPT, GPTConfig
from model.cache import KVCache, context_start
from model.generate import generate_batch, stream
from model.pack import pack

SHAPE = {"vocab_size": 32_000, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 288}
# llama2.c's header: width, inner, layers, heads, KV heads, ids, context
LLAMA = (288, 768, 6, 6, 6, 32_000, 256)
VARIANTS = {
    "gpt2": {},
    "modern": {"norm": "rmsnorm", "positions": "rotary", "mlp": "swiglu", "bias": False},
    "first transformer": {"norm_place": "post", "positions": "sinusoidal", "tied_head": False},
    "grouped queries": {"n_kv_head": 2, "positions": "rotary"},
    "window": {"window": 20},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Time prefill and decoding in float32, bfloat16 and int8, and llama2.c; compare with no cache."""

    llama2c: Path | None = None
    """Folder with llama2.c's `run` and `tokenizer.bin`; without it there is no peer."""
    tokens: int = 200
    """New tokens of each timed text, at most 255."""
    threads: int | None = None
    """Threads of both sides (all cores)."""
    repeat: int = 3
    """Times that each side is measured, in turn; the median counts."""
    json: Path | None = None
    """Write the table here as JSON."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = cli.parse(Options, argv, prog="benchmarks/decode.py")
    if not 1 <= options.tokens <= 255:
        raise ValueError(f"tokens is {options.tokens}: the model and its peer say 1 to 255")
    threads = options.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    report("decode", [*exactness(), *speeds(options, threads)], options.json)


def exactness() -> list[Row]:
    """Measure, per variant, the largest difference of cached logits and how many of 500 greedy ids agree."""
    rows = []
    for name, changes in VARIANTS.items():
        difference, same = compare(changes)
        rows += [
            Row(f"decode cache: largest difference of logits, {name}", difference, "", less_is_better=True),
            Row(f"decode cache: same greedy tokens of 500, {name}", same, "tokens", "without cache", 500),
        ]
    return rows


@torch.inference_mode()
def compare(changes: dict, count: int = 500) -> tuple[float, int]:
    """Compare one variant, small enough to be read whole for each of `count` tokens, far past its context.

    The whole passes are the model's as trained; the cached steps those of its packed copy.
    """
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=500, block_size=64, n_layer=2, n_head=4, n_embd=64, **changes)).eval()
    for block in gpt.h:  # small weights would only repeat one id
        block.attn.c_attn.weight.mul_(10)
        block.attn.c_proj.weight.mul_(10)
    whole = gpt(torch.arange(64)[None])[0][0]  # (T, V)
    packed = pack(gpt)
    cache = KVCache(packed, 1, 64)
    steps = torch.cat([cache.read([[at]], [at], [0]) for at in range(64)])  # (T, V)
    said = [1, 2, 3]
    for _ in range(count):
        context = said[context_start(len(said), 64) :]
        said.append(gpt(torch.tensor([context]))[0][0, -1].argmax().item())
    cached = stream(packed, [1, 2, 3], count, temperature=0)
    return (steps - whole).abs().max().item(), sum(a == b for a, b in zip(cached, said[3:], strict=True))


def speeds(options: Options, threads: int) -> list[Row]:
    """Measure tokens per second at batch 1 and 16 and the milliseconds to the first token, in each precision."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SHAPE)).eval()
    models = {name: pack(gpt, name) for name in ("float32", "bfloat16", "int8")}
    calls = {}
    for name, model in {"unpacked": gpt, **models}.items():
        calls |= {
            f"{name} 1": lambda model=model: list(stream(model, [1], options.tokens, temperature=0)),
            f"{name} 16": lambda model=model: generate_batch(
                model, [[1]] * 16, options.tokens, temperature=0
            ),
            f"{name} prefill": lambda model=model: list(stream(model, [1] * 128, 1, temperature=0)),
        }
    with tempfile.TemporaryDirectory() as folder:
        peer = Llama(options.llama2c, Path(folder), options.tokens, threads) if options.llama2c else None
        times: dict[str, list[float]] = {name: [] for name in calls}
        theirs = []
        for warm_up in calls.values():
            warm_up()
        for _ in range(options.repeat):
            theirs += [peer.tokens_per_second()] if peer else []
            for name, call in calls.items():
                times[name].append(seconds(call))
    found = {name: statistics.median(values) for name, values in times.items()}
    return speed_rows(found, options.tokens, statistics.median(theirs) if theirs else None)


def speed_rows(found: dict[str, float], tokens: int, llama: float | None) -> list[Row]:
    """Turn the seconds of each call into rows."""
    rows, first = [], found["unpacked prefill"] * 1e3
    for name in ("unpacked", "float32", "bfloat16", "int8"):
        peer = ("", None) if name == "unpacked" else ("unpacked", first)
        one, sixteen = tokens / found[f"{name} 1"], 16 * tokens / found[f"{name} 16"]
        rows += [
            Row(f"decode batch 1, {name}", one, "tokens/s", "llama2.c" if llama else "", llama),
            Row(f"decode batch 16, {name}", sixteen, "tokens/s", "our batch 1", one),
            Row(f"decode first of 128, {name}", found[f"{name} prefill"] * 1e3, "ms", *peer, True),
        ]
    return rows


class Llama:
    """llama2.c on random weights of its own format."""

    def __init__(self, folder: Path, scratch: Path, tokens: int, threads: int):
        for name in ("run", "tokenizer.bin"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no {name}: build llama2.c there first")
        weights = scratch / "weights.bin"
        write_llama_weights(weights)
        self.command = [str((folder / "run").resolve()), str(weights), "-z", str(folder / "tokenizer.bin")]
        self.command += ["-t", "0", "-n", str(tokens + 1)]
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def tokens_per_second(self) -> float:
        """Return the speed that llama2.c prints; reading the file is not counted."""
        done = subprocess.run(self.command, env=self.environment, capture_output=True, check=True)
        return float(re.search(rb"achieved tok/s: ([\d.]+)", done.stderr)[1])


def write_llama_weights(path: Path) -> None:
    """Write random weights in llama2.c's format: seven int32, then float32 weights; the head is the embedding."""
    width, inner, layers, heads, _, ids, context = LLAMA
    per_layer = 2 * width + 4 * width**2 + 3 * width * inner  # two norms, attention, MLP
    count = ids * width + layers * per_layer + width + context * (width // heads)  # and rotary angles, unused
    weights = np.random.default_rng(0).standard_normal(count, dtype=np.float32) * 0.02
    path.write_bytes(struct.pack("<7i", *LLAMA) + weights.tobytes())


if __name__ == "__main__":
    main()
