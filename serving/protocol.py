"""OpenAI's requests and answers: JSON in, a checked `Call`; pieces of text in, JSON out.

Everything that a client may send is checked here by name, type and range; what is not supported is refused.
A mistake is a `Refusal`, which knows its HTTP status and its place in OpenAI's form of an error:

    {"error": {"message": …, "type": "invalid_request_error", "param": "temperature", "code": null}}

The fields are those of https://platform.openai.com/docs/api-reference/completions and …/chat; top_k, min_p,
repetition_penalty and ignore_eos are additions, under the names that vLLM gave them.
"""

import json
import math
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpe import Tokenizer
from bpe.pretokenize import repair_surrogates
from inference.chat import ChatTemplate, Message
from inference.text import TextModel
from model.generate import Rules
from serving.engine import Piece
from serving.scheduler import Chance, Request

MOST_STOPS, MOST_TOP, MOST_PROMPTS, MOST_BIASES = 16, 20, 64, 1024
LARGEST_SEED = 1 << 62

# Accepted without effect: they change nothing that this server does, and tools send them.
INERT = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
}
# Not supported: any value but these is refused.
FIXED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
SHARED = {
    *("model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n", "seed", "stop", "stream"),
    *("stream_options", "max_tokens", "logit_bias", "logprobs", "ignore_eos"),
}
COMPLETION = SHARED | {"prompt", "echo", "best_of"}
CHAT = SHARED | {"messages", "max_completion_tokens", "top_logprobs"}


class Refusal(Exception):
    """What is wrong with a request."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass
class Call:
    """A checked request: what is to be computed, and how the answer is to look."""

    requests: list[Request]
    """One for each prompt."""
    model: str
    chat: bool
    n: int
    stream: bool = False
    stream_usage: bool = False
    stops: list[str] = field(default_factory=list)
    echo: bool = False
    top: int | None = None
    """How many of the likeliest tokens are reported with each token; None: no log probabilities."""
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex


# ---- reading


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; Refusal for anything else. NaN and Infinity are no JSON."""
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise Refusal("the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Refusal("the body must be a JSON object")
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def read_call(
    content: Mapping[str, Any], text_model: TextModel, template: ChatTemplate | None, name: str, *, chat: bool
) -> Call:
    """Return the call that the content of a request asks for; Refusal for whatever cannot be done."""
    _check_names(content, CHAT if chat else COMPLETION)
    model = _take(content, "model", str, name)
    if model != name:
        message = f"the model {_short(model)} does not exist: this server has {name!r}"
        raise Refusal(message, "model", status=404, code="model_not_found")
    n = _take(content, "n", int, 1, 1, 128)
    best_of = _take(content, "best_of", int, n, n, 128)
    stream, options = _take(content, "stream", bool, False), _take(content, "stream_options", dict, {})
    if options and not stream:
        raise Refusal("stream_options needs stream to be true", "stream_options")
    if best_of > n and stream:
        raise Refusal("best_of cannot be streamed: the best texts are known at the end only", "best_of")
    rules, bias = _rules(content), _biases(content, text_model)
    echo, top = _take(content, "echo", bool, False), _top(content, chat)
    prompts = [_chat_prompt(content, template)] if chat else _prompts(content, text_model)
    ends = set(template.stops) if chat else {text_model.end} - {None}
    stop = set() if _take(content, "ignore_eos", bool, False) else ends
    seed, count = _take(content, "seed", int, None, -(1 << 63), (1 << 63) - 1), max(n, best_of)
    first = random.randrange(1 << 32) if seed is None else seed % (LARGEST_SEED - MOST_PROMPTS * 128)
    requests = []
    for number, prompt in enumerate(prompts):
        room = text_model.model.config.block_size - len(prompt)
        new = _max_tokens(content, chat, room, echo)
        begin = first + number * count
        if room < (1 if new else 0):
            raise Refusal(
                f"the prompt has {len(prompt)} tokens, the model's context only {text_model.model.config.block_size}: "
                "shorten the prompt",
                "messages" if chat else "prompt",
                code="context_length_exceeded",
            )
        reported = 0 if top is None and best_of > n else top
        requests.append(
            Request(prompt, new, rules, range(begin, begin + count), stop, bias, reported, echo and top is not None)
        )  # fmt: skip
    usage = _take(options, "include_usage", bool, False)
    return Call(requests, name, chat, n, stream, usage, _stops(content), echo, top)


def _check_names(content: Mapping[str, Any], known: set[str]) -> None:
    for name, value in content.items():
        if name in FIXED:
            if value not in FIXED[name]:
                raise Refusal(f"{name} is not supported: leave it out", name)
        elif name not in known and name not in INERT:
            raise Refusal(f"unrecognized request argument: {_short(name)}", _short(name))


def _take(
    content: Mapping[str, Any],
    name: str,
    kind: type,
    default: Any,
    least: float = -math.inf,
    most: float = math.inf,
) -> Any:
    """Return a value of the kind within its bounds; the default for null and for what is not there."""
    value = content.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = is_number if kind is float else type(value) is kind
    if not fits:
        raise Refusal(f"{name} is {_short(value)}: it must be {_KINDS[kind]}", name)
    if is_number and not least <= value <= most:
        raise Refusal(f"{name} is {_short(value)}: it must be between {least:g} and {most:g}", name)
    return value


_KINDS = {str: "a string", int: "an integer", float: "a number", bool: "a boolean", dict: "an object"}


def _short(value: Any) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rules(content: Mapping[str, Any]) -> Rules:
    values = {
        "temperature": float(_take(content, "temperature", float, 1.0, 0, 2)),
        "top_k": _take(content, "top_k", int, None, 1),
        "top_p": _take(content, "top_p", float, None, 0, 1),
        "min_p": _take(content, "min_p", float, None, 0, 1),
        "repetition_penalty": float(_take(content, "repetition_penalty", float, 1.0, 0.01, 100)),
    }
    try:
        return Rules(**values)
    except ValueError as error:
        raise Refusal(str(error), str(error).split()[0]) from None


def _biases(content: Mapping[str, Any], text_model: TextModel) -> dict[int, float]:
    given, count = _take(content, "logit_bias", dict, {}), text_model.model.config.vocab_size
    if len(given) > MOST_BIASES:
        raise Refusal(f"logit_bias has {len(given)} entries: at most {MOST_BIASES} are taken", "logit_bias")
    biases = {}
    for id in given:
        if not (id.isascii() and id.isdigit() and len(id) < 10 and int(id) < count):
            raise Refusal(f"logit_bias names {_short(id)}: give token ids below {count}", "logit_bias")
        biases[int(id)] = float(_take(given, id, float, 0.0, -100, 100))
    return biases


def _stops(content: Mapping[str, Any]) -> list[str]:
    stops = content.get("stop")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or any(not isinstance(stop, str) or not stop for stop in stops):
        raise Refusal("stop must be a string, or several of them, none of them empty", "stop")
    if len(stops) > MOST_STOPS:
        raise Refusal(f"stop has {len(stops)} strings: at most {MOST_STOPS} are taken", "stop")
    return stops


def _top(content: Mapping[str, Any], chat: bool) -> int | None:
    """Return how many of the likeliest tokens to report, or None."""
    if not chat:
        return _take(content, "logprobs", int, None, 0, MOST_TOP)
    top = _take(content, "top_logprobs", int, None, 0, MOST_TOP)
    if _take(content, "logprobs", bool, False):
        return top or 0
    if top is not None:
        raise Refusal("top_logprobs needs logprobs to be true", "top_logprobs")
    return None


def _max_tokens(content: Mapping[str, Any], chat: bool, room: int, echo: bool) -> int:
    """Return how many tokens to draw at most, within the room that the context has."""
    least = 0 if echo else 1
    default = max(room, 1) if chat else 16
    wanted = _take(content, "max_tokens", int, default, least)
    if chat:
        wanted = _take(content, "max_completion_tokens", int, wanted, least)
    return wanted if room < 1 else min(wanted, room)


def _prompts(content: Mapping[str, Any], text_model: TextModel) -> list[list[int]]:
    """Return the ids of each prompt: a string, ids, or several of either."""
    prompt = "" if content.get("prompt") is None else content["prompt"]
    is_ids = isinstance(prompt, list) and prompt and all(type(each) is int for each in prompt)
    given = [prompt] if isinstance(prompt, str) or is_ids else prompt
    if not isinstance(given, list) or not 1 <= len(given) <= MOST_PROMPTS:
        raise Refusal(f"prompt must be a string, token ids, or 1 to {MOST_PROMPTS} of either", "prompt")
    return [_prompt(each, text_model) for each in given]


def _prompt(given: Any, text_model: TextModel) -> list[int]:
    if isinstance(given, str):
        try:
            return text_model.encode(repair_surrogates(given))
        except ValueError as error:
            raise Refusal(str(error), "prompt") from None
    count = text_model.model.config.vocab_size
    if (
        not isinstance(given, list)
        or not given
        or any(type(id) is not int or not 0 <= id < count for id in given)
    ):
        raise Refusal(f"a prompt of ids must hold integers from 0 to {count - 1}, at least one", "prompt")
    return given


def _chat_prompt(content: Mapping[str, Any], template: ChatTemplate | None) -> list[int]:
    if template is None:
        raise Refusal(
            "this model has no chat template: use /v1/completions, or serve a run of python -m alignment sft"
        )
    messages = content.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal("messages must be a list of at least one message", "messages")
    try:
        return template.prompt([_message(each) for each in messages])
    except ValueError as error:
        raise Refusal(str(error), "messages") from None


def _message(given: Any) -> Message:
    """Return one message; content may also be given as parts of text."""
    if not isinstance(given, dict):
        raise Refusal(f"a message is {_short(given)}: it must be an object with role and content", "messages")
    for name in given.keys() - {"role", "content", "name"}:
        if given[name] not in (None, [], ""):
            raise Refusal(f"{_short(name)} in a message is not supported: leave it out", "messages")
    content = given.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise Refusal("this model reads text only: all parts of content must be of type text", "messages")
        content = [part.get("text") for part in content]
        content = "".join(content) if all(isinstance(part, str) for part in content) else None
    role = given.get("role")
    if not isinstance(content, str) or not isinstance(role, str):
        raise Refusal("a message needs a role and a content, both of them strings", "messages")
    return Message(role, repair_surrogates(content))


# ---- answering


class Writer:
    """Makes the answer to a call: whole, or a chunk at a time."""

    def __init__(self, call: Call, tokenizer: Tokenizer):
        self.call, self.tokenizer = call, tokenizer
        self._object = "chat.completion" if call.chat else "text_completion"
        self._offsets: dict[int, int] = {}  # characters of each choice so far, for text_offset
        self._begun: set[int] = set()
        self.prompt_tokens = sum(len(request.prompt) for request in call.requests)
        self.drawn_tokens = 0

    def count(self, pieces: Sequence[Piece]) -> None:
        """Count the tokens of pieces, for the usage."""
        self.drawn_tokens += sum(len(piece.tokens) for piece in pieces)

    def usage(self) -> dict[str, int]:
        """Return how many tokens were read and drawn."""
        total = self.prompt_tokens + self.drawn_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.drawn_tokens,
            "total_tokens": total,
        }

    def whole(self, texts: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """Return the answer; for each prompt, the pieces of each of its texts, one piece per text."""
        choices = []
        for number, pieces in enumerate(texts):
            best = sorted(pieces, key=_quality, reverse=True) if len(pieces) > self.call.n else pieces
            for place, piece in enumerate(best[: self.call.n]):
                index = number * self.call.n + place
                choices.append(self._choice(self._with_echo(piece, number), index, number, whole=True))
        return {**self._head(), "choices": choices, "usage": self.usage()}

    def chunks(self, number: int, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """Return the chunks of a stream for pieces of the prompt with this number."""
        made = []
        for piece in pieces:
            index = number * self.call.n + piece.index
            if index not in self._begun:
                self._begun.add(index)
                if self.call.chat:
                    role = {"role": "assistant", "content": ""}
                    made.append({"index": index, "delta": role, "logprobs": None, "finish_reason": None})
                else:
                    piece = self._with_echo(piece, number)
            if piece.text or piece.reason or (piece.tokens and self.call.top is not None):
                made.append(self._choice(piece, index, number, whole=False))
        kind = self._object + ".chunk" if self.call.chat else self._object
        usage = {"usage": None} if self.call.stream_usage else {}
        return [{**self._head(kind), "choices": [choice], **usage} for choice in made]

    def usage_chunk(self) -> dict[str, Any]:
        """Return the last chunk of a stream that was asked to tell the usage."""
        kind = self._object + ".chunk" if self.call.chat else self._object
        return {**self._head(kind), "choices": [], "usage": self.usage()}

    def _head(self, kind: str | None = None) -> dict[str, Any]:
        call = self.call
        return {"id": call.id, "object": kind or self._object, "created": call.created, "model": call.model}

    def _with_echo(self, piece: Piece, number: int) -> Piece:
        """Return the first piece of a text with the prompt before it, if that was asked for."""
        if not self.call.echo:
            return piece
        request = self.call.requests[number]
        chances = [None, *request.prompt_chances] if request.score_prompt else [None] * len(request.prompt)
        shown = list(zip(request.prompt, chances, strict=True))
        prompt = self._text([id for id, _ in self._visible(shown)])
        return Piece(piece.index, prompt + piece.text, [*self._visible(shown), *piece.tokens], piece.reason)

    def _visible(self, tokens: list[tuple[int, Chance | None]]) -> list[tuple[int, Chance | None]]:
        """Return the tokens of a prompt without the end-of-text token that encoding put before it."""
        end = self.tokenizer.special_tokens.get(self.tokenizer.end_of_text)
        return tokens[1:] if tokens and tokens[0][0] == end else tokens

    def _choice(self, piece: Piece, index: int, number: int, *, whole: bool) -> dict[str, Any]:
        call, reason = self.call, None if piece.reason is None else str(piece.reason)
        chances = self._chances(piece, index) if call.top is not None else None
        rest = {"logprobs": chances, "finish_reason": reason}
        if not call.chat:
            return {"text": piece.text, "index": index, **rest}
        if whole:
            message = {"role": "assistant", "content": piece.text, "refusal": None}
            return {"index": index, "message": message, **rest}
        return {"index": index, "delta": {"content": piece.text} if piece.text else {}, **rest}

    def _chances(self, piece: Piece, index: int) -> dict[str, Any]:
        if self.call.chat:
            return {"content": [self._token(id, chance) for id, chance in piece.tokens], "refusal": None}
        place = self._offsets.get(index, 0)
        names, offsets = [self._text([id]) for id, _ in piece.tokens], []
        for name in names:
            offsets.append(place)
            place += len(name)
        self._offsets[index] = place
        found = [chance for _, chance in piece.tokens]
        best = [
            chance and {self._text([id]): value for id, value in chance.likeliest[: self.call.top]}
            for chance in found
        ]
        return {
            "tokens": names,
            "token_logprobs": [chance and chance.log_probability for chance in found],
            "top_logprobs": best if self.call.top else None,
            "text_offset": offsets,
        }

    def _token(self, id: int, chance: Chance) -> dict[str, Any]:
        """Return a token in the form of a chat's log probabilities."""
        likeliest = [{**self._spelled(other), "logprob": value} for other, value in chance.likeliest]
        return {**self._spelled(id), "logprob": chance.log_probability, "top_logprobs": likeliest}

    def _spelled(self, id: int) -> dict[str, Any]:
        spelled = self.tokenizer.vocab.get(id, b"")
        return {"token": spelled.decode("utf-8", "replace"), "bytes": list(spelled)}

    def _text(self, ids: Sequence[int]) -> str:
        return b"".join(self.tokenizer.vocab.get(id, b"") for id in ids).decode("utf-8", "replace")


def _quality(piece: Piece) -> float:
    """Return the mean log probability of a text's tokens."""
    chances = [chance.log_probability for _, chance in piece.tokens if chance]
    return sum(chances) / len(chances) if chances else 0.0


def joined(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """Return one piece for each of `count` texts, made of all of theirs."""
    whole = [Piece(index, "", []) for index in range(count)]
    for piece in pieces:
        text = whole[piece.index]
        text.text += piece.text
        text.tokens += piece.tokens
        text.reason = piece.reason or text.reason
    return whole


def encode(content: Any) -> str:
    """Return JSON without blanks."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
