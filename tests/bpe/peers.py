"""Peers of the same vocabulary: our tokenizer, tiktoken's and Hugging Face's, for every named pattern."""

import dataclasses
import importlib.util
import inspect
import re
import textwrap
from pathlib import Path

import tiktoken
import tiktoken_ext.openai_public
import tokenizers

from bpe import Tokenizer

# Text that is difficult at the borders of the patterns.
NASTY = [
    *(
        " ",
        "  ",
        " ",
        "\t",
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\x1c",
        "\x85",
        "\u2028",
        "\x0b",
        "\x00",
    ),
    *(
        "a",
        "A",
        "bc",
        "T",
        "S",
        "é",
        "ß",
        "Ñ",
        "ſ",
        "K",
        "ǅ",
        "ʰ",
        "中",
        "日本",
        "ا",
        "न",
        "\u0301",
        "\u200d",
        "ﷺ",
    ),
    *(
        "1",
        "23",
        "4567",
        "３",
        "Ⅷ",
        "½",
        ".",
        ",",
        "!?",
        "/",
        "//",
        "-",
        "_",
        "’",
        "“",
        "<",
        "|",
        "€",
        "\ufffd",
    ),
    *(
        "'s",
        "'S",
        "'ll",
        "'LL",
        "'re",
        "'t",
        "'",
        " a",
        " A",
        " 1",
        " .",
        " 中",
        "😀",
        "👩‍👩‍👧",
        "🇫🇷",
        "\ue000",
    ),
]


@dataclasses.dataclass(frozen=True, repr=False)
class Peers:
    """Three tokenizers that must agree."""

    ours: Tokenizer
    tiktoken: tiktoken.Encoding
    hugging_face: tokenizers.Tokenizer


def official_patterns() -> dict[str, str]:
    """Return the patterns as tiktoken and transformers spell them, read out of their sources."""
    public = tiktoken_ext.openai_public
    cl100k = re.search(r'"pat_str": r"""(.*)""",', inspect.getsource(public.cl100k_base)).group(1)
    o200k = re.search(r"    pat_str = .*?\n    \)\n", inspect.getsource(public.o200k_base), re.DOTALL).group()
    names: dict[str, str] = {}
    exec(textwrap.dedent(o200k), names)
    found = {"gpt2": public.r50k_pat_str, "cl100k": cl100k, "o200k": names["pat_str"]}
    return found | {"llama3": transformers_pattern("pattern="), "qwen2": transformers_pattern("Regex(\n +")}


def transformers_pattern(before: str) -> str:
    """Read the pattern of Llama 3 or Qwen out of the source of transformers, whose import takes seconds."""
    package = importlib.util.find_spec("transformers").submodule_search_locations[0]
    source = (Path(package) / "convert_slow_tokenizer.py").read_text()
    before = before.replace("(", r"\(")
    return re.search(before + r'r"""(\(\?i:.*)"""', source).group(1)


def make_peers(tokenizer: Tokenizer, path) -> Peers:
    """Make tiktoken's from the same ranks, Hugging Face's from the file that we save."""
    tokenizer.save(path)
    special = tokenizer.special_tokens
    ranks = {token: id for id, token in tokenizer.vocab.items() if id not in special.values()}
    encoding = tiktoken.Encoding(
        tokenizer.pattern.name,
        pat_str=official_patterns()[tokenizer.pattern.name],
        mergeable_ranks=ranks,
        special_tokens=special,
    )
    return Peers(tokenizer, encoding, tokenizers.Tokenizer.from_file(str(path)))
