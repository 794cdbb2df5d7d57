"""python -m data web | prepare | info | stories: pages -> text -> token files, what these hold, the stories."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bpe import END_OF_TEXT
from common import cli, cluster
from common.files import read_text
from data.prepare import Prepare, prepare
from data.stories import check, stories
from data.tokenfile import SPLITS


@dataclasses.dataclass(frozen=True)
class Info:
    """Show what token files hold: counts, lengths of documents, tokens, a sample."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A folder that python -m data prepare made."""
    split: Literal["train", "val"] = "train"
    """Which of its files."""
    top: int = 15
    """Tokens to list, of the most and of the least used."""
    plot: Path | None = None
    """Draw lengths of documents and frequencies of tokens into this file (.png, .svg, .pdf)."""


@dataclasses.dataclass(frozen=True)
class Stories:
    """Print stories of the built-in corpus, separated by <|endoftext|>, or check those of a file."""

    seed: int = 0
    """Which stories: the same seed, the same stories."""
    count: int = 3
    """How many."""
    check: Path | None = None
    """Print what is wrong with each story of this file, which <|endoftext|> separates."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"--count must be at least 1, not {self.count}")


def run_prepare(options: Prepare) -> None:
    """Prepare token files and print their counts."""
    try:
        with cluster.engine(options, options.workers):
            meta = prepare(options)
    except KeyboardInterrupt:
        print(
            f"{options.out} is unfinished: the same command continues from the last full part",
            file=sys.stderr,
        )
        raise
    for split in SPLITS:
        print(
            f"{options.out}/{split}.bin: {meta.tokens[split]:,} tokens, {meta.documents[split]:,} documents, "
            f"{meta.bytes_per_token(split):.2f} bytes per token"
        )
    for what, counts in (("changed", meta.changed), ("removed", meta.removed)):
        for rule, count in sorted(counts.items()):
            print(f"{what}: {count:,} documents ({rule})")


def run_info(options: Info) -> None:
    """Print the tables and, with --plot, draw the plot."""
    from rich.console import Console

    from data.info import draw, read_info, render

    info = read_info(options.directory, options.split)
    Console().print(render(info, options.top))
    if options.plot:
        draw(info, options.plot)
        print(f"{options.plot}: lengths of documents and frequencies of tokens")


def run_stories(options: Stories) -> None:
    """Print stories, or what is wrong with those of a file."""
    if options.check is None:
        told = itertools.islice(stories(options.seed), options.count)
        print(f"\n{END_OF_TEXT}\n".join(told))
        return
    texts = [part.strip() for part in read_text(options.check).split(END_OF_TEXT)]
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


COMMANDS = {
    "web": cli.Module(
        "data.web.__main__",
        "raw pages -> clean, deduplicated text: run | extract | dedup | report | classifier",
    ),
    "prepare": (Prepare, run_prepare),
    "info": (Info, run_info),
    "stories": (Stories, run_stories),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run python -m data."""
    cli.dispatch(COMMANDS, argv, prog="python -m data")


if __name__ == "__main__":
    main()
