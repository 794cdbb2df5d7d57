"""A run becomes a payload: one JSON head and one string of bytes, which lens/page reads.

The head says what the model is and where in the bytes each tensor begins. Matrices are float16, or int8 with one
float32 scale a row; vectors are float32. All numbers are little-endian, and every tensor begins at a multiple of 4.
docs/lens.md describes each field.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bpe import Tokenizer
from inference.chat import CLOSE, OPEN, ChatTemplate, Message
from inference.run import weights_directory
from inference.text import TextModel
from model import GPT, GPTConfig
from model.gpt import check_unpacked
from training.watch import read_log

FORMAT, VERSION = "slm-lens", 1
LARGEST = 30_000_000  # parameters: 40 MB of page in int8
LONGEST_TOKENIZER = 300_000  # merges
ROOT = Path(__file__).resolve().parents[1]
Precision = Literal["float16", "int8"]
Head = dict[str, Any]

# What the page computes, and the line that computes it: of the textbook where it has one.
GPT2_CODE = {
    "embedding": ("basics/gpt.py", "x = self.wte(idx) + self.wpe(positions)"),
    "norm": ("basics/gpt.py", "return centered * (variance + self.eps).rsqrt()"),
    "qkv": ("basics/gpt.py", "qkv = self.c_attn(x)"),
    "scores": ("basics/gpt.py", "scores = q @ k.mT / math.sqrt"),
    "weights": ("basics/gpt.py", "weights = scores.softmax(-1)"),
    "mixed": ("basics/gpt.py", "y = attend(q, k, v"),
    "attention": ("basics/gpt.py", "x = x + self.attn(self.ln_1(x))"),
    "hidden": ("basics/gpt.py", "hidden = gelu(self.c_fc(x))"),
    "mlp": ("basics/gpt.py", "return x + self.mlp(self.ln_2(x))"),
    "head": ("basics/gpt.py", "return self.ln_f(x) @ self.wte.weight.T"),
}
VARIANT_CODE = {
    "rotary": {"qkv": ("kernels/reference.py", "turned = torch.stack([even * cos - odd * sin")},
    "sinusoidal": {"embedding": ("model/gpt.py", "x = x * math.sqrt(config.n_embd)")},
    "none": {"embedding": ("model/gpt.py", "x = self.wte(idx)")},
    "rmsnorm": {"norm": ("kernels/reference.py", "return (wide * _reciprocal_rms(wide, eps)")},
    "post": {
        "attention": ("model/gpt.py", "x, _ = self.ln_1.add(self.attn("),
        "mlp": ("model/gpt.py", "x, _ = self.ln_2.add(self.drop(self.mlp(x)), x)"),
    },
    "swiglu": {"hidden": ("model/layers.py", "return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))")},
    "silu": {"hidden": ("model/layers.py", "return self.c_proj(self.act(self.c_fc(x)))")},
    "relu2": {"hidden": ("model/layers.py", "return F.relu(x).square()")},
    "window": {"scores": ("kernels/reference.py", "return scores.masked_fill(~seen(")},
    "untied": {"head": ("model/gpt.py", "logits, cap = self.lm_head(hidden)")},
}


class Blob:
    """Bytes that tensors are appended to; `add` returns what the head says of one."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def append(self, array: np.ndarray) -> int:
        """Append an array and zeros up to a multiple of 4 bytes; return where it begins."""
        data, at = array.tobytes(), self.size
        self.parts.append(data + bytes(-len(data) % 4))
        self.size += len(self.parts[-1])
        return at

    def add(self, name: str, array: np.ndarray) -> Head:
        """Append an array as it is."""
        return {"name": name, "shape": list(array.shape), "dtype": str(array.dtype), "at": self.append(array)}

    def add_weight(self, name: str, weight: Tensor, precision: Precision) -> Head:
        """Append a weight: a vector in float32, a matrix in `precision`."""
        array = weight.detach().float().numpy()
        if array.ndim < 2:
            return self.add(name, array)
        if precision == "float16":
            return self.add(name, array.astype(np.float16))
        codes, scales = quantized(array)
        return {**self.add(name, codes), "scales": self.append(scales)}

    def bytes(self) -> bytes:
        """Return all that was appended."""
        return b"".join(self.parts)


def quantized(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 codes (rows, columns) and float32 scales (rows,): the largest of a row becomes 127 or -127.

    >>> [part.tolist() for part in quantized(np.array([[1.0, -127.0], [0.0, 0.0]], np.float32))]
    [[[1, -127], [0, 0]], [1.0, 1.0]]
    """
    scales = np.abs(matrix).max(1) / np.float32(127)  # (rows, columns) -> (rows,)
    scales[scales == 0] = 1
    return np.rint(matrix / scales[:, None]).astype(np.int8), scales


def rounded(state: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Return the weights that the page computes with: each matrix rounded to `precision`, as float32."""
    found = {}
    for name, weight in state.items():
        array = weight.detach().float().numpy()
        if array.ndim == 2 and precision == "int8":
            codes, scales = quantized(array)
            array = codes * scales[:, None]
        elif array.ndim == 2:
            array = array.astype(np.float16).astype(np.float32)
        found[name] = torch.from_numpy(array.copy())
    return found


def check_shown(config: GPTConfig) -> None:
    """Raise a ValueError that names what the page cannot compute."""
    kinds = {
        "layers with a state space (layers has an m)": "m" in config.pattern,
        "latent attention (kv_lora_rank)": config.kv_lora_rank is not None,
        "a mixture of experts (n_expert)": config.n_expert is not None,
    }
    if found := [kind for kind, there in kinds.items() if there]:
        raise ValueError(
            f"the lens cannot show {' and '.join(found)}: it computes plain, grouped and windowed attention with "
            "dense MLPs; train a model without, or use python -m evaluation"
        )


def export(
    run: Path, precision: Precision = "float16", film: int = 12, index: Path | None = None
) -> tuple[Head, bytes]:
    """Return the payload of a run's best weights: the JSON head and the bytes.

    `film` is how many of the checkpoints that the run kept are added at most, in int8; `index` a folder of token
    files, in which the texts that move each unit of the MLPs most are looked for. ValueError or FileNotFoundError if
    there is no model, no tokenizer, too large a one, or one that the page cannot compute.
    """
    weights = weights_directory(run)
    if (weights / "config.json").is_file():  # before memory is taken for a model that is refused
        check_size(GPT.check_pretrained(weights))
    source = TextModel.load(run, "cpu")
    return payload(source.model, source.tokenizer, run, precision, film, index)


def check_size(config: GPTConfig) -> None:
    """Raise a ValueError for a model that is too large to embed or that the page cannot compute."""
    from model.accounting import parameters

    check_shown(config)
    if (count := parameters(config)["total"]) > LARGEST:
        raise ValueError(
            f"the model has {count:,} parameters, and a page embeds at most {LARGEST:,}: show a smaller one, such as "
            "that of train.py --preset quickstart"
        )


def payload(
    gpt: GPT,
    tokenizer: Tokenizer,
    run: Path,
    precision: Precision = "float16",
    film: int = 0,
    index: Path | None = None,
) -> tuple[Head, bytes]:
    """Return the payload of a model and its tokenizer; `run` gives its name, log, chat template and checkpoints."""
    check_unpacked(gpt, "be shown")
    check_size(gpt.config)
    blob, state = Blob(), weights_of(gpt)
    check_finite(state, precision)
    records = read_log(run / "log.jsonl")
    head = {
        "format": FORMAT,
        "version": VERSION,
        "name": os.fsencode(run.resolve().name).decode("utf-8", "replace"),
        "precision": precision,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "config": dataclasses.asdict(gpt.config),
        "tokenizer": tokenizer_head(tokenizer),
        "tensors": [blob.add_weight(name, tensor, precision) for name, tensor in state.items()],
        "log": losses(records),
        "film": [frame(blob, checkpoint, gpt.config) for checkpoint in checkpoints(run, film)],
        "chat": chat_head(run, tokenizer),
        "index": None if index is None else index_head(blob, gpt, tokenizer, index),
        "prompts": prompts(records),
        "code": code_lines(gpt.config),
    }
    return head, blob.bytes()


def weights_of(gpt: GPT) -> dict[str, Tensor]:
    """Return the weights that the page needs, each once; what only training uses (tokens ahead) is left out."""
    tied = {"lm_head.weight"} if gpt.config.tied_head else set()
    return {
        name: weight
        for name, weight in gpt.state_dict().items()
        if name not in tied and not name.startswith("ahead.")
    }


def check_finite(state: Mapping[str, Tensor], precision: Precision) -> None:
    """Raise a ValueError for weights that are no numbers, or beyond the range of float16."""
    for name, weight in state.items():
        if not weight.isfinite().all():
            raise ValueError(
                f"{name} holds values that are no numbers: training diverged; use an earlier checkpoint"
            )
        if (
            precision == "float16"
            and weight.dim() == 2
            and weight.abs().max() > torch.finfo(torch.float16).max
        ):
            raise ValueError(f"{name} holds values that float16 cannot: use --precision int8")


def tokenizer_head(tokenizer: Tokenizer) -> Head:
    """Return tokens (bytes as latin-1 text), merges (left, right and made id of each, flat), and the split pattern."""
    if tokenizer.pattern.name is None:
        raise ValueError(
            "the tokenizer has a split pattern of its own, which means other things to a browser: the lens knows "
            "gpt2, cl100k, o200k, llama3 and qwen2"
        )
    if tokenizer.nfc or tokenizer.normalized or tokenizer.added_tokens:
        raise ValueError("the tokenizer normalizes text or has added tokens, which the lens does not know")
    if len(tokenizer.merges) > LONGEST_TOKENIZER:
        raise ValueError(
            f"the tokenizer has {len(tokenizer.merges):,} merges, the lens takes {LONGEST_TOKENIZER:,}"
        )
    ids = {token: id for id, token in tokenizer.ordinary().items()}
    merges = [ids[part] for left, right in tokenizer.merges for part in (left, right, left + right)]
    return {
        "pattern": tokenizer.pattern.name,
        "tokens": [tokenizer.vocab.get(id, b"").decode("latin-1") for id in range(tokenizer.vocab_size)],
        "merges": merges,
        "special": tokenizer.special_tokens,
        "end": tokenizer.special_tokens.get(tokenizer.end_of_text),
        "whole": tokenizer.ignore_merges,
    }


def checkpoints(run: Path, most: int) -> list[Path]:
    """Return the checkpoints that a run kept (--keep), oldest first; of more than `most` some at even distances."""
    kept = (path for path in run.glob("step-*") if path.name.removeprefix("step-").isdigit())
    found = sorted(path for path in kept if (path / "config.json").is_file())
    if len(found) <= most:
        return found
    return [found[round(place)] for place in np.linspace(0, len(found) - 1, most)] if most else []


def frame(blob: Blob, checkpoint: Path, config: GPTConfig) -> Head:
    """Append the weights of a checkpoint, matrices in int8 and vectors in float16; return its step and tensors."""
    gpt = GPT.from_pretrained(checkpoint)
    if gpt.config != config:
        raise ValueError(f"{checkpoint} has another config than the best weights: use --film 0")
    state = weights_of(gpt)
    check_finite(state, "int8")
    step = int(checkpoint.name.removeprefix("step-"))
    tensors = [
        blob.add_weight(name, each, "int8") if each.dim() == 2 else blob.add(name, each.half().numpy())
        for name, each in state.items()
    ]
    return {"step": step, "tensors": tensors}


def chat_head(run: Path, tokenizer: Tokenizer) -> Head | None:
    """Return what a run's chat template writes around the turns; {"refused": reason} if it is not that simple."""
    template = ChatTemplate.find(run)
    if template is None:
        return None
    turns = [" u0 ", " a0 ", " u1 ", " a1 ", " u2 "]
    texts = [rendered(template, turns[: 2 * count + 1]) for count in range(3)]
    start, _, answer = texts[0].partition(turns[0])
    rest = texts[1].removeprefix(start + turns[0]).removesuffix(turns[2] + answer)
    before, found, after = rest.partition(turns[1])
    again = start + "".join(
        turn + (answer if place == 4 else (before, after)[place % 2]) for place, turn in enumerate(turns)
    )
    if not found or again != texts[2]:
        return {"refused": "the chat template does more than to write marks around the turns"}
    return {
        "start": start,
        "user_to_assistant": before,
        "assistant_to_user": after,
        "answer": answer,
        "stops": sorted(template.stops),
    }


def rendered(template: ChatTemplate, turns: Sequence[str]) -> str:
    """Return what the template writes for turns of user and assistant, before the next answer."""
    messages = [Message(("user", "assistant")[place % 2], turn) for place, turn in enumerate(turns)]
    return template.render(messages, answering=True).replace(OPEN, "").replace(CLOSE, "")


def losses(records: Sequence[Mapping[str, Any]]) -> list[list[float | None]]:
    """Return step, loss and validation loss of each line of a log; None for what is missing or no number.

    >>> losses([{"step": 3, "loss": math.nan, "val_loss": 2.5}, {"note": 1}])
    [[3, None, 2.5]]
    """

    def known(value: Any) -> float | None:
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    rows = [[r.get("step"), r.get("loss", r.get("train_loss")), r.get("val_loss")] for r in records]
    return [list(map(known, row)) for row in rows if known(row[0]) is not None]


def prompts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return beginnings of the last stories that the run told in training; without any, one of our own."""
    stories = [record["story"] for record in records if isinstance(record.get("story"), str)]
    found = [_beginning(story) for story in reversed(stories[-4:]) if story.strip()]
    return list(dict.fromkeys(found)) or ["Once upon a time"]


def _beginning(story: str) -> str:
    """Return whole sentences of a story, as many as fit into 30 words, or 30 words."""
    text = " ".join(story.split()[:30])
    return text[: end + 1] if (end := max(text.rfind(sign) for sign in ".!?")) > 0 else text


def code_lines(config: GPTConfig) -> dict[str, Head]:
    """Return for each thing that is computed the file, line and text that computes it, where the source is at hand."""
    places = dict(GPT2_CODE)
    kinds = [
        config.positions,
        config.norm,
        config.norm_place,
        config.mlp,
        *(["window"] if config.window else []),
    ]
    for kind in [*kinds, *([] if config.tied_head else ["untied"])]:
        places |= VARIANT_CODE.get(kind, {})
    found = {what: _line(*place) for what, place in places.items()}
    return {what: line for what, line in found.items() if line}


def _line(file: str, snippet: str) -> Head | None:
    """Return where a snippet is in a file of ours; None without the file or the snippet."""
    path = ROOT / file
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    number = next((number for number, line in enumerate(lines, 1) if snippet in line), None)
    return None if number is None else {"file": file, "line": number, "text": lines[number - 1].strip()}


def index_head(
    blob: Blob, gpt: GPT, tokenizer: Tokenizer, tokens: Path, windows: int = 192, best: int = 6
) -> Head:
    """Append which tokens of the training text move each unit of the MLPs most: at most one a window, the best first.

    The head names three tensors: ids (windows, tokens), and for each layer and unit the places in it and the values,
    both (n_layer, inner, best).
    """
    from data.tokenfile import TokenFile

    if not (tokens / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{tokens} holds no token files: give the folder that data prepare wrote")
    if _other_ids(tokens, tokenizer):
        raise ValueError(
            f"{tokens} was made by another tokenizer than the run's: give the folder it was trained on"
        )
    text = TokenFile.open(tokens, "train")
    size = min(gpt.config.block_size, 128, len(text))
    starts = np.linspace(0, len(text) - size, min(windows, max(1, len(text) // size))).astype(int)
    ids = torch.stack([torch.from_numpy(text.tokens[at : at + size].astype(np.int64)) for at in starts])
    values, places = strongest(gpt, ids, min(best, len(ids)))
    return {
        "ids": blob.add("ids", ids.numpy().astype(np.uint32)),
        "places": blob.add("places", places.numpy().astype(np.uint32)),
        "values": blob.add("values", values.numpy().astype(np.float32)),
    }


def _other_ids(tokens: Path, tokenizer: Tokenizer) -> bool:
    """True if the tokenizer of prepared data gives other ids than that of the run."""
    theirs = Tokenizer.load(tokens / "tokenizer.json")
    return theirs.merges != tokenizer.merges or theirs.pattern.name != tokenizer.pattern.name


@torch.inference_mode()
def strongest(gpt: GPT, ids: Tensor, best: int) -> tuple[Tensor, Tensor]:
    """Return for each layer and unit its largest values in ids (windows, T), at most one a window, and their places.

    Both are (n_layer, inner, best); a place counts through all windows: window · T + token.
    """
    peaks: list[list[Tensor]] = [[] for _ in gpt.h]

    def keep(layer: int):
        return lambda _, inputs: peaks[layer].append(torch.stack([*map(Tensor.float, inputs[0].max(1))]))

    hooks = [block.mlp.c_proj.register_forward_pre_hook(keep(layer)) for layer, block in enumerate(gpt.h)]
    try:
        for part in ids.split(16):
            gpt.hidden(part)
    finally:
        for hook in hooks:
            hook.remove()
    found = torch.stack([torch.cat(layer, 1) for layer in peaks])  # (L, 2, windows, inner)
    values, window = found[:, 0].topk(best, dim=1)  # (L, windows, inner) -> (L, best, inner)
    place = found[:, 1].gather(1, window).long() + window * ids.shape[1]
    return values.transpose(1, 2).contiguous(), place.transpose(1, 2).contiguous()


def to_json(head: Head) -> str:
    """Return the head as JSON that is safe inside a <script>: no <, and ASCII alone."""
    return json.dumps(head, separators=(",", ":")).replace("<", "\\u003c")
