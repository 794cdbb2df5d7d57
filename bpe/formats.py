"""Tokenizer files: Hugging Face's tokenizer.json (our own format), GPT-2's two files, tiktoken's rank files.

A file that asks for something that this tokenizer would do differently is refused with the reason: what loads
encodes as its maker would (with `add_special_tokens=False`). Writers take a Vocabulary; readers return what `make`
makes of the arguments that they found.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bpe.merging import merge
from bpe.pretokenize import END_OF_TEXT, PATTERNS, Pattern
from bpe.vocabulary import Vocabulary, default_end
from common.files import write_json, write_text

T = TypeVar("T", bound=Vocabulary)


@contextlib.contextmanager
def _naming(files: object) -> Iterator[None]:
    """Put the name of the file in front of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{files}: {error}") from error


def _byte_characters() -> dict[int, str]:
    """Return GPT-2's printable character for each byte: itself if it is visible in Latin-1, else U+0100 and on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = {byte: chr(byte) for byte in visible}
    return characters | {byte: chr(0x100 + index) for index, byte in enumerate(hidden)}


BYTE_TO_CHARACTER = _byte_characters()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def to_text(token: bytes) -> str:
    """Return a token in GPT-2's spelling.

    >>> to_text(b" egg\\n")
    'ĠeggĊ'
    """
    return "".join(map(BYTE_TO_CHARACTER.__getitem__, token))


def to_bytes(text: str) -> bytes:
    """Return the token that `to_text` spelled; a character that is not a byte's is a ValueError."""
    try:
        return bytes(map(CHARACTER_TO_BYTE.__getitem__, text))
    except KeyError as error:
        raise ValueError(
            f"the token {text!r} holds {error.args[0]!r}, which is not the character of a byte"
        ) from None


# tokenizer.json


def save_json(tokenizer: Vocabulary, path: Path) -> None:
    """Write tokenizer.json; `model.sha256`, which Hugging Face's reader ignores, guards it from damage."""
    model = {
        **_PLAIN_MODEL,
        "ignore_merges": tokenizer.ignore_merges,
        "vocab": _spelled_vocab(tokenizer),
        "merges": [[to_text(left), to_text(right)] for left, right in tokenizer.merges],
    }
    if tokenizer.end_of_text not in (None, END_OF_TEXT):
        model["end_of_text"] = tokenizer.end_of_text
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokenizer),
        "normalizer": {"type": "NFC"} if tokenizer.nfc else None,
        "pre_tokenizer": _pre_tokenizer(tokenizer.pattern),
        "post_processor": None,
        "decoder": _BYTE_LEVEL | {"use_regex": True},
        "model": model,
    }
    model["sha256"] = _digest(content)
    write_json(path, content)


def json_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a tokenizer.json that is named by itself or by its folder."""
    path = Path(path)
    return path / "tokenizer.json" if path.is_dir() else path


def load_json(make: Callable[..., T], path: Path) -> T:
    """Read tokenizer.json; whatever is wrong with it is a ValueError that names the file and the place."""
    content = _read_object(path)
    with _naming(path):
        return make(**_from_json(content))


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


def _added_tokens(tokenizer: Vocabulary) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False}
    named = tokenizer.special_tokens | tokenizer.added_tokens
    return [
        {
            "id": id,
            "content": token,
            **plain,
            "normalized": token in tokenizer.normalized,
            "special": token in tokenizer.special_tokens,
        }
        for token, id in sorted(named.items(), key=lambda item: item[1])
    ]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _pre_tokenizer(pattern: Pattern) -> dict[str, Any]:
    if pattern.name == "gpt2":
        return _BYTE_LEVEL | {"use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": pattern.text}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL | {"use_regex": False}]}


def _from_json(content: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of Vocabulary."""
    model = _get(content, "model", dict)
    if "sha256" in model and model.pop("sha256") != _digest(content):
        raise ValueError(
            "the content does not match model.sha256: restore it, or take that entry out if you changed it"
        )
    known = {*_PLAIN_MODEL, "vocab", "merges", "end_of_text"}
    if unknown := (set(content) - _KEYS) | (set(model) - known):
        raise ValueError(f"the entry {min(unknown)!r} is unknown")
    for key in ("truncation", "padding"):
        if content.get(key) is not None and not _pads_batches_only(content[key]):
            raise ValueError(f"{key} is set, which is not supported: set it to null if you can do without it")
    if _get(content, "decoder", dict).get("type") != "ByteLevel":
        found = content["decoder"].get("type")
        raise ValueError(f"decoder is not ByteLevel but {found}: only byte-level BPE is supported")
    _check_model(model)
    special_tokens, added_tokens, normalized = _read_added_tokens(content.get("added_tokens") or [])
    vocab = _get(model, "vocab", dict)
    return {
        "nfc": _is_nfc(content.get("normalizer")),
        "pattern": _pattern(_get(content, "pre_tokenizer", dict)),
        "merges": [_spelled_merge(rank, merge) for rank, merge in enumerate(_get(model, "merges", list))],
        "special_tokens": special_tokens,
        "added_tokens": added_tokens,
        "normalized": normalized,
        "vocab": _ordinary(vocab, special_tokens | added_tokens),
        "ignore_merges": bool(model.get("ignore_merges")),
        "end_of_text": model.get("end_of_text"),
    }


def _pads_batches_only(setting: Any) -> bool:
    """True for the padding that transformers saves after its use on a batch: a text alone is encoded as without it."""
    return (
        isinstance(setting, dict)
        and setting.get("strategy") == "BatchLongest"
        and not setting.get("pad_to_multiple_of")
    )


def _get(content: Mapping[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise ValueError(
            f"{key} is {'missing' if value is None else repr(value)[:40]}: expected {kind.__name__}"
        )
    return value


def _check_model(model: Mapping[str, Any]) -> None:
    """Refuse everything but a plain BPE. (unk_token and fuse_unk do nothing if every byte is a token.)"""
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise ValueError(f"model.type is {kind!r}: only byte-level BPE is supported")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise ValueError(f"model.{key} is {model[key]!r}, which is not supported")


def _is_nfc(normalizer: Any) -> bool:
    """True if text is brought to the form NFC, False if it stays as it is; other normalizers are refused."""
    steps = [normalizer] if normalizer is not None else []
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = normalizer.get("normalizers")
    if not isinstance(steps, list) or any(step != {"type": "NFC"} for step in steps):
        raise ValueError(f"normalizer is set to {_shortened(normalizer)}: only NFC is supported (null: none)")
    return bool(steps)


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:160] + "…"


def _read_added_tokens(added_tokens: Any) -> tuple[dict[str, int], dict[str, int], set[str]]:
    """Return the special ones, the others, and the names of those that are looked for in normalized text."""
    if not isinstance(added_tokens, list) or not all(isinstance(token, dict) for token in added_tokens):
        raise ValueError("added_tokens is not a list of objects")
    special: dict[str, int] = {}
    others: dict[str, int] = {}
    normalized: set[str] = set()
    for token in added_tokens:
        content = _get(token, "content", str)
        for key in ("single_word", "lstrip", "rstrip"):
            if token.get(key):
                raise ValueError(f"the added token {content!r} has {key} set, which is not supported")
        if content in special or content in others:
            raise ValueError(f"the added token {content!r} is there twice")
        (special if token.get("special", True) else others)[content] = _get(token, "id", int)
        if token.get("normalized", False):
            normalized.add(content)
    return special, others, normalized


def _pattern(pre_tokenizer: Mapping[str, Any]) -> Pattern:
    """Return the split pattern of a ByteLevel pre-tokenizer, alone or after a Split."""
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if isinstance(steps, list) and all(isinstance(step, dict) for step in steps) and steps:
        *splits, last = steps
        byte_level = last.get("type") == "ByteLevel" and not last.get("add_prefix_space", True)
        by_regex = last.get("use_regex", True)
        if byte_level and not splits and by_regex:
            return Pattern.of("gpt2")
        if byte_level and len(splits) == 1 and not by_regex and splits[0].get("type") == "Split":
            return _split_pattern(splits[0])
    raise ValueError(
        "pre_tokenizer is neither ByteLevel (use_regex, no add_prefix_space) nor Split, then ByteLevel, "
        f"but {_shortened(pre_tokenizer)}"
    )


def _split_pattern(split: Mapping[str, Any]) -> Pattern:
    """Return the pattern of a Split that keeps what the pattern matches and, if there is any, the rest."""
    pattern = Pattern.spelled(_get(_get(split, "pattern", dict), "Regex", str))
    behavior, invert = split.get("behavior"), bool(split.get("invert"))
    # A named pattern matches everything, so there is nothing between its matches to be removed.
    if behavior == "Isolated" or (behavior == "Removed" and invert and pattern.name):
        return pattern
    raise ValueError(
        f"pre_tokenizer.Split has the behavior {behavior}, {'inverted' if invert else 'not inverted'}: only "
        f"Isolated is supported, or Removed and inverted with a named pattern, not {pattern.text!r}"
    )


# What tokenizer.json and GPT-2's files have in common


def _spelled_vocab(tokenizer: Vocabulary) -> dict[str, int]:
    """Return spelled token -> id in the order of the ids; special and added tokens are spelled as they are."""
    named = {id: token for token, id in (tokenizer.special_tokens | tokenizer.added_tokens).items()}
    spelled = {named.get(id) or to_text(token): id for id, token in tokenizer.vocab.items()}
    if len(spelled) < len(tokenizer.vocab):
        ordinary = {to_text(token) for id, token in tokenizer.vocab.items() if id not in named}
        token = next(token for token in named.values() if token in ordinary)
        raise ValueError(
            f"the special token {token!r} is spelled like an ordinary token: give it another name"
        )
    return spelled


def _ordinary(vocab: Mapping[str, Any], named: Mapping[str, int]) -> dict[int, bytes]:
    """Return id -> bytes of what is neither a special nor an added token."""
    ordinary: dict[int, bytes] = {}
    for text, id in vocab.items():
        if type(id) is not int:
            raise ValueError(f"the token {text!r} has the id {id!r}, which is no integer")
        if text in named:
            if named[text] != id:
                raise ValueError(f"the token {text!r} has the ids {id} and {named[text]}")
            continue
        if id in ordinary:
            raise ValueError(f"the id {id} is that of {text!r} and of {to_text(ordinary[id])!r}")
        ordinary[id] = to_bytes(text)
    return ordinary


def _spelled_merge(rank: int, merge: Any) -> tuple[bytes, bytes]:
    """Return a merge from ["a", "b"] or from the older "a b"."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
        raise ValueError(f"merge {rank} is {merge!r}: expected two tokens")
    return to_bytes(parts[0]), to_bytes(parts[1])


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; a key that is there twice is a ValueError."""
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
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return content


# GPT-2's vocab.json and merges.txt


def save_gpt2(tokenizer: Vocabulary, directory: Path) -> None:
    """Write vocab.json and merges.txt.

    These files have no place for a pattern, a list of special tokens or the one that closes a document. What a reader
    would get wrong is noted as JSON behind the version, in a line that other readers skip; they take GPT-2's pattern.
    """
    unclear = [token for token in tokenizer.special_tokens if not _looks_special(token)]
    note = {"pattern": tokenizer.pattern.name or tokenizer.pattern.text, "special_tokens": unclear}
    if tokenizer.end_of_text != default_end(tokenizer.special_tokens):
        note["end_of_text"] = tokenizer.end_of_text
    noted = f" {json.dumps(note)}" if note != {"pattern": "gpt2", "special_tokens": []} else ""
    lost = {
        "added tokens": tokenizer.added_tokens,
        "NFC": tokenizer.nfc,
        "ignore_merges": tokenizer.ignore_merges,
    }
    if missing := [what for what, there in lost.items() if there]:
        raise ValueError(f"GPT-2's files have no place for {' and '.join(missing)}: save a tokenizer.json")
    lines = [f"{to_text(left)} {to_text(right)}\n" for left, right in tokenizer.merges]
    write_json(directory / "vocab.json", _spelled_vocab(tokenizer))
    write_text(directory / "merges.txt", f"#version: 0.2{noted}\n" + "".join(lines))


def load_gpt2(
    make: Callable[..., T],
    vocab_json: Path,
    merges_txt: Path,
    pattern: str | Pattern | None,
    special_tokens: Sequence[str],
) -> T:
    """Read GPT-2's two files; a token that is neither a byte nor made by a merge must be a special one."""
    vocab = _read_object(vocab_json)
    with _naming(f"{vocab_json} and {merges_txt}"):
        lines = merges_txt.read_text(encoding="utf-8").splitlines()
        note: dict[str, Any] = {}
        if lines and lines[0].startswith("#version"):
            note = _read_note(lines.pop(0))
        merges = [_spelled_merge(rank, line) for rank, line in enumerate(lines)]
        made = {to_text(left + right) for left, right in merges} | set(CHARACTER_TO_BYTE)
        special = {text: id for text, id in vocab.items() if text not in made}
        named = {*special_tokens, *note.get("special_tokens", ())}
        if unclear := [token for token in special if token not in named and not _looks_special(token)]:
            raise ValueError(
                f"no merge makes {len(unclear):,} of the {len(vocab):,} tokens, {unclear[0]!r} for one: is merges.txt "
                "complete? (name them in special_tokens if they are special)"
            )
        if pattern is None:
            noted = note.get("pattern", "gpt2")
            pattern = Pattern.of(noted) if noted in PATTERNS else Pattern.spelled(noted)
        end = note.get("end_of_text")
        return make(merges, special, pattern, vocab=_ordinary(vocab, special), end_of_text=end)


def _looks_special(token: str) -> bool:
    """True if a token that no merge makes is surely not an ordinary one: `<…>`, `[…]`, or no spelling of bytes."""
    return bool(re.fullmatch(r"<.+>|\[.+\]", token)) or not set(token) <= CHARACTER_TO_BYTE.keys()


def _read_note(line: str) -> dict[str, Any]:
    _, brace, rest = line.partition("{")
    note = json.loads(brace + rest) if brace else {}
    return note if isinstance(note, dict) else {}


# tiktoken's rank files


def save_tiktoken(tokenizer: Vocabulary, path: Path) -> None:
    """Write one line per ordinary token, its bytes in base64 and its id, which is its rank, too."""
    ids = {token: id for id, token in sorted(tokenizer.ordinary().items())}
    made = [ids[left + right] for left, right in tokenizer.merges]
    if made != sorted(made):
        raise ValueError(
            "a rank file needs ids in the order of the merges, which this tokenizer does not have"
        )
    lines = [f"{base64.b64encode(token).decode()} {id}\n" for token, id in ids.items()]
    write_text(path, "".join(lines))


def load_tiktoken(make: Callable[..., T], path: Path, pattern: str | Pattern, special_tokens: Any) -> T:
    """Read a rank file and find the merges again: the two parts of a token are what the earlier tokens make of it."""
    with _naming(path):
        vocab = _read_ranks(path.read_bytes())
        return make(_merges_of(vocab), special_tokens, pattern, vocab=vocab)


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
            raise ValueError(f"line {number}: the rank {id} is there twice")
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
