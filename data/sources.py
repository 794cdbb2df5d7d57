"""Where documents come from."""

import glob
from collections.abc import Iterator
from pathlib import Path

from data.stories import stories


def documents(source: str, num_bytes: int, seed: int) -> Iterator[str]:
    """The documents of `stories` or `text:GLOB`."""
    if source == "stories":
        return _built_in(num_bytes, seed)
    if source.startswith("text:"):
        return _text(source.removeprefix("text:"))
    raise ValueError(f"unknown source {source!r}: use stories or text:PATH")


def _built_in(num_bytes: int, seed: int) -> Iterator[str]:
    for text in stories(seed):
        yield text
        num_bytes -= len(text.encode())
        if num_bytes <= 0:
            return


def _text(pattern: str) -> Iterator[str]:
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise FileNotFoundError(f"no file matches {pattern}: check the path of --source text:PATH")
    for path in paths:
        text = Path(path).read_text(encoding="utf-8")
        if not text.strip():
            raise ValueError(f"{path} is empty: give a text to learn from")
        pieces = text.split("<|endoftext|>") if "<|endoftext|>" in text else text.split("\n")
        yield from (piece.strip() for piece in pieces if piece.strip())
