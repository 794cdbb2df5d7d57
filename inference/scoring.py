"""Scoring texts: the log-probability of each token, perplexity, bits per byte."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from common import files
from common.textfiles import text_files
from data.tables import json_rows
from inference.text import TextModel
from model import GPT

COLUMNS = ("perplexity", "bits_per_byte")  # of a scored row
LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")
ROWS = 256  # that are scored at a time
BATCH_LOGITS = 1 << 25  # numbers in the logits of one batch: 128 MiB in float32


@dataclasses.dataclass(frozen=True)
class Score:
    """log P of a text in nats, after `<|endoftext|>`, and its number of tokens."""

    text: str
    log_probability: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """Return the number of equally likely tokens that would be as surprising, e^(-log P / tokens)."""
        return math.exp(-self.log_probability / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Return -log2 P per byte of UTF-8."""
        return -self.log_probability / (math.log(2) * len(self.text.encode("utf-8", "replace")))


def score_texts(text_model: TextModel, texts: Sequence[str]) -> list[Score]:
    """Return the score of each text; none may be empty."""
    if any(not text for text in texts):
        raise ValueError("there is an empty text to score: give each at least one character")
    rows = [text_model.encode(text) for text in texts]
    if text_model.end is None:
        raise ValueError(
            "the tokenizer has no end-of-text token, so that a text's first token has no probability"
        )
    return [
        Score(text, log_p.sum().item(), len(log_p))
        for text, log_p in zip(texts, log_probabilities(text_model.model, rows), strict=True)
    ]


def log_probabilities(model: GPT, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return for each row of ids log P(id | ids before it) of all but the first: (len - 1,) float64, on the CPU."""
    size = model.config.block_size
    spans = [
        (row, start, first)
        for row, ids in enumerate(rows)
        for start, first in half_overlapping(len(ids), size)
    ]
    spans.sort(key=lambda span: len(rows[span[0]]) - span[1])  # similar lengths need little padding
    pieces: list[dict[int, Tensor]] = [{} for _ in rows]  # of each row, by the window's start
    for batch in _batches(spans, max(1, BATCH_LOGITS // (size * model.config.vocab_size))):
        contexts = [rows[row][start : start + size + 1] for row, start, _ in batch]
        for (row, start, first), log_p in zip(batch, _forward(model, contexts), strict=True):
            pieces[row][start] = log_p[first - start - 1 :]
    nothing = torch.empty(0, dtype=torch.float64)
    return [torch.cat([nothing, *(parts[start] for start in sorted(parts))]) for parts in pieces]


def half_overlapping(length: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, first id to predict) of windows that overlap by half, so that ids have half a context before them.

    >>> list(half_overlapping(10, block_size=4))
    [(0, 1), (2, 5), (4, 7), (6, 9)]
    """
    start, first = 0, 1
    step = max(1, block_size // 2)
    while first < length:
        yield start, first
        first = start + block_size + 1
        start += step


def _batches(items: Sequence[tuple], size: int) -> Iterator[Sequence[tuple]]:
    return (items[i : i + size] for i in range(0, len(items), size))


@torch.inference_mode()
def _forward(model: GPT, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return log P of all ids but the first, for rows of at most block_size + 1 ids: each (len - 1,) float64."""
    widest = max(map(len, rows))
    device = model.wte.weight.device
    ids = torch.tensor([[*row, *[0] * (widest - len(row))] for row in rows], device=device)  # (B, T + 1)
    logits = model(ids[:, :-1])[0].float()  # (B, T, V); padding is at the end, where no query sees it
    chosen = logits.gather(-1, ids[:, 1:, None])[..., 0]  # (B, T)
    log_p = (chosen - logits.logsumexp(-1)).double().cpu()
    return [log_p[i, : len(row) - 1] for i, row in enumerate(rows)]


def texts_of(arguments: Sequence[str]) -> list[str]:
    """Return each argument, or the texts of the file that it names."""
    texts = [row["text"] for row in rows_of(arguments)]
    if not texts:
        raise ValueError(
            f"there is nothing to score in {', '.join(arguments)}: give a text or a file of lines"
        )
    return texts


def rows_of(arguments: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield {"text": …} for each argument or each non-empty line of the file that it names; JSON lines as they are."""
    for argument in arguments:
        if not _is_file(argument):
            yield {"text": argument}
        elif argument.lower().endswith(LINES):
            yield from _json_lines(argument)
        else:
            lines = files.read_text(argument).splitlines()
            yield from ({"text": line} for line in lines if line.strip())


def _json_lines(path: str) -> Iterator[Mapping[str, Any]]:
    for file in text_files(path):
        for line, row in json_rows(file):
            if not isinstance(row.get("text"), str):
                raise ValueError(
                    f"{file.name}: line {line:,} holds no text in 'text', which is what is scored"
                )
            yield row


def write_scores(text_model: TextModel, arguments: Sequence[str], out: Path) -> int:
    """Write the rows of `rows_of` as JSON lines with COLUMNS added (null for an empty text); return their number."""
    count = 0
    with files.atomic(out) as file:
        rows = rows_of(arguments)
        while group := list(itertools.islice(rows, ROWS)):
            for row in scored(text_model, group):
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="replace"))
            count += len(group)
        if not count:
            raise ValueError(f"there is nothing to score in {', '.join(arguments)}: give files with texts")
    return count


def scored(text_model: TextModel, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each row with COLUMNS."""
    scores = iter(score_texts(text_model, [row["text"] for row in rows if row["text"]]))
    for row in rows:
        score = next(scores) if row["text"] else None
        yield {**row, **{name: score and round(getattr(score, name), 6) for name in COLUMNS}}


def _is_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):  # a text too long for a file name, or with a zero byte
        return False


def table(scores: Sequence[Score]) -> Table:
    """Return the scores as a table, one line each."""
    shown = Table("log P", "perplexity", "bits per byte", "tokens", "text")
    for score in scores:
        shown.add_row(
            f"{score.log_probability:.2f}",
            f"{score.perplexity:.2f}",
            f"{score.bits_per_byte:.3f}",
            str(score.tokens),
            Text(score.text),
        )
    return shown
