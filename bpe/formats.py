"""Tokenizer files: Hugging Face's tokenizer.json (our own format), GPT-2's two files, tiktoken's rank files.

A file that asks for something this tokenizer would do differently is refused with the reason: what loads,
encodes as its maker would (with `add_special_tokens=False`).
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpe.merging import merge
from bpe.pretokenize import GPT2, Pattern
from common.files import write_json, write_text

if TYPE_CHECKING:
    from bpe.tokenizer import Tokenizer


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where it is visible in Latin-1, else U+0100 and on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = {byte: chr(byte) for byte in visible}
    return characters | {byte: chr(0x100 + index) for index, byte in enumerate(hidden)}


BYTE_TO_CHARACTER = _byte_characters()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def to_text(token: bytes) -> str:
    """A token in GPT-2's spelling.

    >>> to_text(b" egg\\n")
    'ĠeggĊ'
    """
    return "".join(map(BYTE_TO_CHARACTER.__getitem__, token))


def to_bytes(text: str) -> bytes:
    """The token that `to_text` spelled; a ValueError where a character stands for no byte."""
    try:
        return bytes(map(CHARACTER_TO_BYTE.__getitem__, text))
    except KeyError as error:
        raise ValueError(f"the token {text!r} holds {error.args[0]!r}, which stands for no byte") from None


# tokenizer.json


def save_json(tokenizer: "Tokenizer", path: Path) -> None:
    """Writes tokenizer.json; `model.sha256`, which Hugging Face's reader ignores, guards it from damage."""
    model = {
        **_PLAIN_MODEL,
        "vocab": _spelled_vocab(tokenizer),
        "merges": [[to_text(left), to_text(right)] for left, right in tokenizer.merges],
    }
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": token, **plain} for token, id in _by_id(tokenizer.special_tokens)
        ],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(tokenizer.pattern),
        "post_processor": None,
        "decoder": _BYTE_LEVEL | {"use_regex": True},
        "model": model,
    }
    model["sha256"] = _digest(content)
    write_json(path, content)


def load_json(path: Path) -> "Tokenizer":
    """Reads tokenizer.json; whatever is wrong with it is a ValueError that names the file and the place."""
    content = _read_object(path)
    try:
        return _from_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_PLAIN_MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_KEYS = {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"}
_KEYS |= {"decoder", "model"}


def _by_id(special_tokens: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(special_tokens.items(), key=lambda item: item[1])


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _pre_tokenizer(pattern: Pattern) -> dict[str, Any]:
    if pattern.name == "gpt2":
        return _BYTE_LEVEL | {"use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": pattern.text}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL | {"use_regex": False}]}


def _from_json(content: dict[str, Any]) -> "Tokenizer":
    from bpe.tokenizer import Tokenizer

    model = _get(content, "model", dict)
    if "sha256" in model and model.pop("sha256") != _digest(content):
        raise ValueError(
            "the content does not match model.sha256: restore it, or take that entry out if you changed it"
        )
    if unknown := (set(content) - _KEYS) | (set(model) - set(_PLAIN_MODEL) - {"vocab", "merges"}):
        raise ValueError(f"the entry {min(unknown)!r} is unknown")
    for key in ("truncation", "padding", "normalizer"):
        if content.get(key) is not None:
            raise ValueError(f"{key} is set, which is not supported: set it to null if you can do without it")
    if _get(content, "decoder", dict).get("type") != "ByteLevel":
        raise ValueError("decoder is not ByteLevel: only byte-level BPE is supported")
    _check_model(model)
    special_tokens = _special_tokens(content.get("added_tokens") or [])
    vocab = _get(model, "vocab", dict)
    pattern = _pattern(_get(content, "pre_tokenizer", dict))
    merges = [_spelled_merge(rank, merge) for rank, merge in enumerate(_get(model, "merges", list))]
    return Tokenizer(merges, special_tokens, pattern, vocab=_ordinary(vocab, special_tokens))


def _get(content: Mapping[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise ValueError(
            f"{key} is {'missing' if value is None else repr(value)[:40]}: expected {kind.__name__}"
        )
    return value


def _check_model(model: Mapping[str, Any]) -> None:
    """Refuses what is no plain BPE. (unk_token and fuse_unk do nothing where every byte is a token.)"""
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise ValueError(f"model.type is {kind!r}: only byte-level BPE is supported")
    for key in (
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
        "ignore_merges",
    ):
        if model.get(key):
            raise ValueError(f"model.{key} is {model[key]!r}, which is not supported")


def _special_tokens(added_tokens: Any) -> dict[str, int]:
    if not isinstance(added_tokens, list) or not all(isinstance(token, dict) for token in added_tokens):
        raise ValueError("added_tokens is not a list of objects")
    special_tokens: dict[str, int] = {}
    for token in added_tokens:
        content = _get(token, "content", str)
        for key in ("single_word", "lstrip", "rstrip"):
            if token.get(key):
                raise ValueError(f"the added token {content!r} has {key} set, which is not supported")
        if content in special_tokens:
            raise ValueError(f"the added token {content!r} stands there twice")
        special_tokens[content] = _get(token, "id", int)
    return special_tokens


def _pattern(pre_tokenizer: Mapping[str, Any]) -> str:
    """The split pattern of a ByteLevel pre-tokenizer, alone or behind a Split."""
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if isinstance(steps, list) and all(isinstance(step, dict) for step in steps) and steps:
        *splits, last = steps
        byte_level = last.get("type") == "ByteLevel" and not last.get("add_prefix_space", True)
        by_regex = last.get("use_regex", True)
        if byte_level and not splits and by_regex:
            return "gpt2"
        if byte_level and len(splits) == 1 and not by_regex and splits[0].get("type") == "Split":
            return _split_regex(splits[0])
    raise ValueError(
        "pre_tokenizer is neither ByteLevel (use_regex, no add_prefix_space) nor Split, then ByteLevel"
    )


def _split_regex(split: Mapping[str, Any]) -> str:
    if split.get("behavior") != "Isolated" or split.get("invert"):
        raise ValueError("pre_tokenizer.Split must have the behavior Isolated and not be inverted")
    text = _get(_get(split, "pattern", dict), "Regex", str)
    return "gpt2" if text in _GPT2_SPELLINGS else text


_GPT2_SPELLINGS = (GPT2, r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


# What tokenizer.json and GPT-2's files have in common


def _spelled_vocab(tokenizer: "Tokenizer") -> dict[str, int]:
    """Spelled token -> id in the order of the ids; special tokens stand for themselves."""
    special = {id: token for token, id in tokenizer.special_tokens.items()}
    spelled = {special.get(id) or to_text(token): id for id, token in tokenizer.vocab.items()}
    if len(spelled) < len(tokenizer.vocab):
        ordinary = {to_text(token) for id, token in tokenizer.vocab.items() if id not in special}
        token = next(token for token in tokenizer.special_tokens if token in ordinary)
        raise ValueError(
            f"the special token {token!r} is spelled like an ordinary token: give it another name"
        )
    return spelled


def _ordinary(vocab: Mapping[str, Any], special_tokens: Mapping[str, int]) -> dict[int, bytes]:
    """id -> bytes of what is no special token."""
    ordinary: dict[int, bytes] = {}
    for text, id in vocab.items():
        if type(id) is not int:
            raise ValueError(f"the token {text!r} has the id {id!r}, which is no integer")
        if text in special_tokens:
            if special_tokens[text] != id:
                raise ValueError(f"the token {text!r} has the ids {id} and {special_tokens[text]}")
            continue
        if id in ordinary:
            raise ValueError(f"the id {id} stands for {text!r} and for {to_text(ordinary[id])!r}")
        ordinary[id] = to_bytes(text)
    return ordinary


def _spelled_merge(rank: int, merge: Any) -> tuple[bytes, bytes]:
    """A merge from ["a", "b"] or from the older "a b"."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
        raise ValueError(f"merge {rank} is {merge!r}: expected two tokens")
    return to_bytes(parts[0]), to_bytes(parts[1])


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object in which no key stands twice."""
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no tokenizer file: it is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no tokenizer file: it holds no JSON object")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return content


# GPT-2's vocab.json and merges.txt


def save_gpt2(tokenizer: "Tokenizer", directory: Path) -> None:
    """Writes vocab.json and merges.txt. They do not hold the split pattern."""
    lines = [f"{to_text(left)} {to_text(right)}\n" for left, right in tokenizer.merges]
    write_json(directory / "vocab.json", _spelled_vocab(tokenizer))
    write_text(directory / "merges.txt", "#version: 0.2\n" + "".join(lines))


def load_gpt2(vocab_json: Path, merges_txt: Path, pattern: str | Pattern = "gpt2") -> "Tokenizer":
    """Reads GPT-2's two files; a token that is neither a byte nor made by a merge is a special one."""
    from bpe.tokenizer import Tokenizer

    vocab = _read_object(vocab_json)
    try:
        lines = merges_txt.read_text(encoding="utf-8").splitlines()
        if lines and lines[0].startswith("#version"):
            del lines[0]
        merges = [_spelled_merge(rank, line) for rank, line in enumerate(lines)]
        made = {to_text(left + right) for left, right in merges} | set(CHARACTER_TO_BYTE)
        special_tokens = {text: id for text, id in vocab.items() if text not in made}
        return Tokenizer(merges, special_tokens, pattern, vocab=_ordinary(vocab, special_tokens))
    except ValueError as error:
        raise ValueError(f"{vocab_json} and {merges_txt}: {error}") from error


# tiktoken's rank files


def save_tiktoken(tokenizer: "Tokenizer", path: Path) -> None:
    """Writes one line per ordinary token, its bytes in base64 and its id, which is its rank too."""
    special = set(tokenizer.special_tokens.values())
    ids = {token: id for id, token in tokenizer.vocab.items() if id not in special}
    made = [ids[left + right] for left, right in tokenizer.merges]
    if made != sorted(made):
        raise ValueError(
            "a rank file needs ids in the order of the merges, which this tokenizer does not have"
        )
    lines = [f"{base64.b64encode(token).decode()} {id}\n" for token, id in ids.items()]
    write_text(path, "".join(lines))


def load_tiktoken(
    path: Path, pattern: str | Pattern, special_tokens: Mapping[str, int] | Sequence[str]
) -> "Tokenizer":
    """Reads a rank file and finds the merges again: what the earlier tokens leave of a token is two parts."""
    from bpe.tokenizer import Tokenizer

    try:
        vocab = _read_ranks(path.read_bytes())
        return Tokenizer(_merges_of(vocab), special_tokens, pattern, vocab=vocab)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_ranks(content: bytes) -> dict[int, bytes]:
    vocab: dict[int, bytes] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            id = int(rank)
            decoded = base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is {line[:60]!r}: expected base64, a space and a rank") from None
        if id in vocab:
            raise ValueError(f"line {number}: the rank {id} stands there twice")
        vocab[id] = decoded
    return vocab


def _merges_of(vocab: Mapping[int, bytes]) -> list[tuple[bytes, bytes]]:
    ids = {token: id for id, token in vocab.items()}
    ranks: dict[tuple[int, int], int] = {}
    made: list[int] = []
    merges: list[tuple[bytes, bytes]] = []
    for id, token in sorted(vocab.items()):
        if len(token) < 2:
            continue
        try:
            parts = merge([ids[bytes([byte])] for byte in token], ranks, made)
        except KeyError as error:
            raise ValueError(f"the byte {error.args[0]!r} has no rank") from None
        if len(parts) != 2:
            raise ValueError(f"the token {token!r} (rank {id}) is not made of two tokens of lower rank")
        ranks[parts[0], parts[1]] = len(merges)
        made.append(id)
        merges.append((vocab[parts[0]], vocab[parts[1]]))
    return merges
