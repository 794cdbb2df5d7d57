"""Instruction data: python -m alignment data --base RUN --out DIR

Conversations of the built-in stories and of arithmetic, or of files, as token files with a mask of what is learned:

    DIR/train.bin, train.mask, val.bin, val.mask, meta.json    the conversations (data/tokenfile.py)
    DIR/tokenizer.json, tokenizer_config.json                  the base's tokenizer with role tokens, and its template
    DIR/prompts/train.jsonl                                    prompts with checks, for reinforcement learning
    DIR/prompts/test.jsonl, wordings.jsonl, arithmetic.jsonl   held-out combinations, wordings and pairs of numbers

Nothing of the test files is in the others. The same options give the same bytes.
"""

import collections
import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignment import arithmetic
from alignment.encoding import Conversation, Encoded, encode_all
from alignment.instructions import Prompt, Source, prompt_row, read_conversations, write_rows
from common import files
from common.workers import ordered_map, sensible_workers
from data.stories import instructions
from data.tokenfile import Meta, sha256
from inference.chat import ChatTemplate, Message, add_chat_tokens
from inference.run import load_tokenizer, weights_directory
from model import pretrained

WORTH_A_WORKER = 1_000  # conversations; for fewer, starting a process takes longer than it saves
TEST_SEED, PROMPT_SEED = 1 << 20, 1 << 21  # added to the seed: other stories than those that are learned
STORIES = "stories and arithmetic"
REHEARSED_SUMS = 0.4  # times as many among the prompts for rewards: fine-tuning gets nearly all sums right

Example = tuple[list[Message], dict[str, Any], str]
"""An answered conversation, its check, and its last answer up to where all wishes are met."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Make instruction data: token files with a mask, and prompts with checks."""

    base: Path = Path("runs/quickstart")
    """The run to align: its tokenizer gets the role tokens, its context says how long a conversation may be."""
    out: Path = Path("tokens/chat")
    """The folder to write."""
    source: tuple[str, ...] = ()
    """Files of conversations (.json or .jsonl, Alpaca or chat), or hf:NAME[:CONFIG][:SPLIT], instead of the built-in
    stories and arithmetic."""
    count: int = 54_000
    """Built-in conversations to make."""
    arithmetic: float = 0.25
    """Fraction of the built-in conversations that are arithmetic."""
    unfinished: float = 0.9
    """Fraction of the built-in stories that break off where all wishes are met: the rest of a story is no news to the
    base, so more wishes fit a step."""
    prompts: int = 4_000
    """Prompts for reinforcement learning to write."""
    tests: int = 500
    """Prompts in each file for testing."""
    val_fraction: float = 0.02
    """Fraction of the conversations kept for validation."""
    seed: int = 1
    """Seed of the built-in conversations; the base's corpus has 0."""
    workers: int | None = None
    """Processes that write requests and encode conversations. Default: one for each core."""
    overwrite: bool = False
    """Replace what is in the folder."""

    def __post_init__(self) -> None:
        for name in ("count", "prompts", "tests"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("arithmetic", "unfinished"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is {getattr(self, name)}: it is a fraction, from 0 to 1")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"--val-fraction is {self.val_fraction}: it must be above 0 and below 1")
        if not 0 <= self.seed < TEST_SEED:
            raise ValueError(f"--seed is {self.seed}: it must be 0 or more, and below {TEST_SEED}")


def prepare(options: Data) -> None:
    """Make the data of `options` and print what it holds; nothing is written before everything is known to work."""
    if options.out.exists() and not options.overwrite:
        raise ValueError(
            f"{options.out} exists already: choose another --out, or replace it with --overwrite"
        )
    template = ChatTemplate(add_chat_tokens(load_tokenizer(options.base)))
    block_size = pretrained.read_config(weights_directory(options.base)).block_size
    built_in = not options.source
    conversations = _built_in(options) if built_in else _read(options.source)
    splits = _encoded(conversations, template, options)
    prompts = prompt_files(options) if built_in else {}
    with files.atomic_directory(options.out) as folder:
        template.save(folder, block_size)
        for split, rows in splits.items():
            _write_split(folder, split, rows)
        meta = _meta(options, template, splits, sha256(folder / "tokenizer.json"))
        files.write_json(folder / "meta.json", dataclasses.asdict(meta))
        for name, content in prompts.items():
            write_rows(folder / "prompts" / f"{name}.jsonl", map(prompt_row, content))
    _print(options.out, splits, prompts, block_size)


def _read(sources: Iterable[Source]) -> Iterator[Conversation]:
    return map(Conversation, itertools.chain.from_iterable(map(read_conversations, sources)))


# The built-in conversations


def examples(
    seed: int,
    count: int,
    workers: int | None = None,
    asking: instructions.Asking = instructions.EVERYDAY,
    *,
    new_words: bool = False,
    new_combinations: bool = False,
) -> Iterator[Example]:
    """Yield conversations about stories, each with the check of its last answer."""
    workers = sensible_workers(workers, count, WORTH_A_WORKER)
    settings = (seed, asking, new_words, new_combinations)
    found = ordered_map(instructions.requests_from, settings, itertools.count(0, instructions.JOB), workers)
    for request in itertools.islice(itertools.chain.from_iterable(found), count):
        answer = Message("assistant", request.answer)
        yield [*(Message(*each) for each in request.messages), answer], request.check, request.met


def sums(seed: int, count: int, *, held_out: bool) -> Iterator[Example]:
    """Yield conversations about problems of arithmetic in random order, from the first again when all have come."""
    rng = random.Random(seed)
    problems = list(arithmetic.problems(held_out=held_out))
    rng.shuffle(problems)
    for a, op, b in itertools.islice(itertools.cycle(problems), count):
        question = arithmetic.question(a, op, b, int(rng.random() * len(arithmetic.WORDINGS)))
        solution = arithmetic.solution(a, op, b)
        yield (
            [Message("user", question), Message("assistant", solution)],
            arithmetic.check(a, op, b),
            solution,
        )


def _mixed(
    seed: int, count: int, share: float, workers: int | None, asking: instructions.Asking
) -> list[Example]:
    """Return conversations of both kinds in random order."""
    of_sums = round(share * count)
    mixed = [*examples(seed, count - of_sums, workers, asking), *sums(seed, of_sums, held_out=False)]
    random.Random(seed).shuffle(mixed)
    return mixed


def _built_in(options: Data) -> Iterator[Conversation]:
    """Yield the conversations to learn, of which some break off where all wishes are met."""
    rng = random.Random(options.seed)
    mixed = _mixed(options.seed, options.count, options.arithmetic, options.workers, instructions.PRACTICE)
    for messages, _, met in mixed:
        breaks_off = rng.random() < options.unfinished and met != messages[-1].content
        yield Conversation(
            [*messages[:-1], Message("assistant", met)] if breaks_off else messages, not breaks_off
        )


def prompt_files(options: Data) -> dict[str, list[Prompt]]:
    """Return the prompts by the name of their file."""
    test = options.seed + TEST_SEED
    count = options.tests
    found = {
        "train": _mixed(
            options.seed + PROMPT_SEED,
            options.prompts,
            REHEARSED_SUMS * options.arithmetic,
            options.workers,
            instructions.REHEARSAL,
        ),
        "test": examples(test, count, 1, new_combinations=True),
        "wordings": examples(test, count, 1, new_words=True),
        "arithmetic": sums(test, count, held_out=True),
    }
    return {
        name: [Prompt(tuple(messages[:-1]), check) for messages, check, _ in content]
        for name, content in found.items()
    }


# The files


def _encoded(
    conversations: Iterable[Conversation], template: ChatTemplate, options: Data
) -> dict[str, list[Encoded]]:
    """Return the conversations of both splits as ids; every 1 / val_fraction-th one is for validation."""
    splits: dict[str, list[Encoded]] = {"train": [], "val": []}
    every = max(2, round(1 / options.val_fraction))
    for number, row in enumerate(encode_all(template, list(conversations), options.workers)):
        splits["train" if (number + 1) % every else "val"].append(row)
    for split, rows in splits.items():
        if not rows:
            raise ValueError(f"no conversation for {split}: give more of them, or another --val-fraction")
    return splits


def _write_split(folder: Path, split: str, rows: Sequence[Encoded]) -> None:
    for name, values in (("bin", [row.ids for row in rows]), ("mask", [row.mask for row in rows])):
        flat = np.concatenate(values)
        with files.atomic(folder / f"{split}.{name}") as file:
            file.write(flat.astype(flat.dtype.newbyteorder("<")).tobytes())


def _meta(options: Data, template: ChatTemplate, splits: dict[str, list[Encoded]], digest: str) -> Meta:
    tokenizer = template.tokenizer
    names = [
        field.name
        for field in dataclasses.fields(options)
        if field.name not in ("out", "workers", "overwrite")
    ]
    return Meta(
        dtype=tokenizer.dtype.name,
        vocab_size=tokenizer.vocab_size,
        tokens={split: sum(len(row.ids) for row in rows) for split, rows in splits.items()},
        documents={split: len(rows) for split, rows in splits.items()},
        bytes={split: sum(row.num_bytes for row in rows) for split, rows in splits.items()},
        special_tokens=tokenizer.special_tokens,
        document_end=tokenizer.end_of_text,
        tokenizer_sha256=digest,
        source=[*(options.source or [STORIES])],
        recipe={name: _plain(getattr(options, name)) for name in names},
    )


def _plain(value: Any) -> Any:
    """Return an option as JSON has it."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _print(
    out: Path, splits: dict[str, list[Encoded]], prompts: dict[str, list[Prompt]], block_size: int
) -> None:
    for split, rows in splits.items():
        tokens, learned = sum(len(row.ids) for row in rows), sum(int(row.mask.sum()) for row in rows)
        print(
            f"{out}/{split}.bin: {len(rows):,} conversations, {tokens:,} tokens, {learned:,} of them learned"
        )
    long = sum(len(row.ids) > block_size for rows in splits.values() for row in rows)
    if long:
        print(f"{long:,} conversations are longer than the context of {block_size} tokens: see --long of sft")
    for name, content in prompts.items():
        tasks = collections.Counter(prompt.check["task"] for prompt in content)
        print(
            f"{out}/prompts/{name}.jsonl: {', '.join(f'{count:,} {task}' for task, count in tasks.items())}"
        )
