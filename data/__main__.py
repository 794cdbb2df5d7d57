"""python -m data prepare | stories: corpora to token files, and the built-in corpus."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from common import cli
from data import sources
from data.prepare import prepare
from data.stories import check, stories


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Turns a corpus into token files."""

    source: str
    """stories (built in) or text:PATH."""
    vocab_size: int
    """Tokens of the vocabulary that is trained, special tokens included."""
    out: Path
    """The folder for train.bin, val.bin, meta.json and tokenizer.json."""
    stories_bytes: int = 10_000_000
    """How much of the built-in corpus to make."""
    seed: int = 0
    """Seed of the built-in corpus."""
    val_fraction: float = 0.005
    """Share of the documents that is kept for validation."""


@dataclasses.dataclass(frozen=True)
class Stories:
    """Prints stories of the built-in corpus, or checks the stories of a file."""

    seed: int = 0
    """Which stories: the same seed, the same stories."""
    count: int = 3
    """How many."""
    check: Path | None = None
    """A file of stories separated by <|endoftext|>: says what is wrong with each."""


def run_prepare(options: Prepare) -> None:
    """Prepares and says what was made."""
    documents = sources.documents(options.source, options.stories_bytes, options.seed)
    meta = prepare(documents, options.vocab_size, options.out, options.val_fraction, [options.source])
    print(
        f"{options.out}: {meta.tokens['train']:,} tokens to train on, {meta.tokens['val']:,} to validate on"
    )


def run_stories(options: Stories) -> None:
    """Prints stories, or what is wrong with those of a file."""
    if options.check is None:
        print("\n\n".join(itertools.islice(stories(options.seed), options.count)))
        return
    texts = [part.strip() for part in options.check.read_text(encoding="utf-8").split("<|endoftext|>")]
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError(f"{options.check} is empty: give stories separated by <|endoftext|>")
    passed = 0
    for number, text in enumerate(texts, start=1):
        faults = check(text)
        passed += not faults
        for fault in faults:
            print(f"story {number}: {fault}")
    print(f"{passed} of {len(texts)} stories are coherent")


COMMANDS = {"prepare": (Prepare, run_prepare), "stories": (Stories, run_stories)}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of python -m data."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        cli.fail(f"say what to do: python -m data {' | '.join(COMMANDS)} (each with --help)")
    options, run = COMMANDS[words[0]]
    run(cli.parse(options, words[1:], prog=f"python -m data {words[0]}"))


if __name__ == "__main__":
    main()
