"""Chat templates: conversations to ids and back, with a mask of what the assistant is to learn.

A conversation is a list of messages; a Jinja template, kept in RUN/tokenizer_config.json as transformers keeps it,
writes it as text with a special token for each role and one for the end of a turn:

    <|endoftext|><|user|>Tell me a story about Lily.<|end|><|assistant|>Once there was …<|end|>

The names of special tokens inside a message are plain text. What is between {% generation %} and {% endgeneration %}
in the template is learned: the answer and the token that ends it, and nothing else.

    template = ChatTemplate.load(Path("runs/chat"))
    ids, mask = template.encode([Message("user", "Hi"), Message("assistant", "Hello!")])
    prompt = template.prompt([Message("user", "Hi")])
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from bpe import Tokenizer
from bpe.pretokenize import split_special
from common import files
from inference.run import TOKENIZER_CONFIG, decode, load_tokenizer, tokenizer_directory

ROLES = ("system", "user", "assistant")
END_OF_TURN = "<|end|>"
CHAT_TOKENS = (*(f"<|{role}|>" for role in ROLES), END_OF_TURN)
TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}
{%- else %}
{{- message['content'] + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}"""
# Unassigned code points that no text may hold (Unicode: "noncharacters"): they mark places in a rendered template.
BREAK, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation; ValueError for an unknown role."""

    role: str
    """system, user or assistant."""
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"a message has the role {self.role!r}: choose one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(f"the content of a message is {self.content!r}: it must be text")

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Message":
        """Return the message in a JSON object with role and content; ValueError for anything else."""
        if not isinstance(value, Mapping) or not {"role", "content"} <= value.keys():
            raise ValueError(f"{value!r} is no message: give an object with role and content")
        return cls(value["role"], value["content"])


def check_turns(messages: Sequence[Message], *, answered: bool) -> None:
    """Raise ValueError unless user and assistant take turns, after at most one system message.

    An `answered` conversation ends with the assistant, any other with the user. No answer may be empty.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise ValueError("the conversation has no turn: begin with a message of the user")
    for number, (message, role) in enumerate(zip(turns, itertools.cycle(("user", "assistant"))), 1):
        if message.role != role:
            raise ValueError(
                f"turn {number} is the {message.role}'s: after at most one system message, user and assistant take "
                "turns, and the user begins"
            )
        if role == "assistant" and not message.content.strip():
            raise ValueError(
                f"the answer in turn {number} is empty: write one, or leave the conversation out"
            )
    if (turns[-1].role == "assistant") != answered:
        raise ValueError(f"the last turn is the {turns[-1].role}'s: it must be the other's")


class _Generation(jinja2.ext.Extension):
    """The tag of transformers' templates around what the assistant says: {% generation %} … {% endgeneration %}."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    @staticmethod
    def _marked(caller: Any) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _compile(source: str) -> jinja2.Template:
    """Compile a template in Jinja's immutable sandbox, with the settings and functions of transformers'."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


class ChatTemplate:
    """A tokenizer with role tokens, and the template that writes conversations with them."""

    def __init__(self, tokenizer: Tokenizer, source: str = TEMPLATE, end_of_turn: str = END_OF_TURN) -> None:
        if end_of_turn not in tokenizer.special_tokens:
            raise ValueError(
                f"the tokenizer has no special token {end_of_turn!r} to end a turn: add the role tokens first, with "
                "inference.chat.add_chat_tokens"
            )
        self.tokenizer, self.source, self.end_name = tokenizer, source, end_of_turn
        self.end_of_turn: int = tokenizer.special_tokens[end_of_turn]
        self.end_of_text: int | None = tokenizer.special_tokens.get(tokenizer.end_of_text)
        with _explained():
            self._template = _compile(source)

    @classmethod
    def load(cls, directory: Path) -> "ChatTemplate":
        """Read the template and tokenizer of a run or of prepared data; ValueError if it has no template."""
        content = _settings(directory)
        if not isinstance(content.get("chat_template"), str):
            raise ValueError(
                f"{directory} has no chat template in {TOKENIZER_CONFIG}: give a run of python -m alignment sft, or "
                "train one"
            )
        end = content.get("eos_token", END_OF_TURN)
        end = end["content"] if isinstance(end, dict) else end
        return cls(load_tokenizer(directory), content["chat_template"], end)

    @classmethod
    def find(cls, directory: Path) -> "ChatTemplate | None":
        """Return the template of a run, or None if it has none."""
        return cls.load(directory) if "chat_template" in _settings(directory) else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a template be sent to a worker process, where it is compiled anew: compiled code cannot be sent."""
        return type(self), (self.tokenizer, self.source, self.end_name)

    @property
    def stops(self) -> set[int]:
        """Return the ids at which an answer ends: the end of a turn, and of a text."""
        return {self.end_of_turn} | ({self.end_of_text} - {None})

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Return the ids of an answered conversation, and for each 1 if it is learned, else 0.

        ValueError for roles out of order, an empty answer, a template that cannot be rendered or marks no answer.
        """
        check_turns(messages, answered=True)
        ids, mask = self._encode(self.render(messages))
        if not any(mask):
            raise ValueError(
                "nothing in the conversation is learned: the chat template has no {% generation %} block"
            )
        return ids, mask

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids after which the model answers the last message, which is the user's."""
        check_turns(messages, answered=False)
        return self._encode(self.render(messages, answering=True))[0]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids, up to where the turn ends."""
        return decode(self.tokenizer, itertools.takewhile(lambda id: id not in self.stops, ids))

    def render(self, messages: Sequence[Message], *, answering: bool = False) -> str:
        """Return the text that the template makes, with noncharacters that mark what is learned and what is plain."""
        with _explained():
            return self._template.render(
                messages=[{"role": each.role, "content": self._plain(each.content)} for each in messages],
                add_generation_prompt=answering,
                bos_token=self.tokenizer.end_of_text or "",
                eos_token=self.end_name,
            )

    def _plain(self, content: str) -> str:
        """Break the names of special tokens in a message, so that they are found in the template alone."""
        for mark in (BREAK, OPEN, CLOSE):
            content = content.replace(mark, "\ufffd")
        for name in self.tokenizer.special_tokens:
            content = content.replace(name, name[0] + BREAK + name[1:])
        return content

    def _encode(self, rendered: str) -> tuple[list[int], list[int]]:
        """Return the ids of a rendered text, and 1 for each that is between OPEN and CLOSE."""
        special = self.tokenizer.special_tokens
        ids, mask, learned = [], [], False
        for place, part in enumerate(split_special(rendered, special)):
            if place % 2:
                ids.append(special[part])
                mask.append(int(learned))
                continue
            spans = list(_spans(part.replace(BREAK, ""), learned))
            learned = spans[-1][1]
            found = self.tokenizer.encode("".join(text for text, _ in spans))
            ids += found
            mask += self._token_mask(found, spans)
        return ids, mask

    def _token_mask(self, ids: Sequence[int], spans: Sequence[tuple[str, bool]]) -> list[int]:
        """Return 1 for each id that holds a byte of a learned span; the ids spell the spans' texts."""
        flags = {flag for text, flag in spans if text}
        if len(flags) < 2:  # as between any two tokens of the usual templates
            return [int(True in flags)] * len(ids)
        learned = [flag for text, flag in spans for _ in text.encode("utf-8", "replace")]
        ends = itertools.accumulate(len(self.tokenizer.vocab[id]) for id in ids)
        bounds = itertools.pairwise([0, *ends])
        return [int(any(learned[start:end])) for start, end in bounds]

    def save(self, directory: Path, block_size: int) -> None:
        """Write tokenizer.json and tokenizer_config.json, so that transformers' AutoTokenizer gives our ids."""
        self.tokenizer.save(directory / "tokenizer.json")
        files.write_json(directory / TOKENIZER_CONFIG, self.config(block_size))

    def config(self, block_size: int) -> dict[str, Any]:
        """Return the content of tokenizer_config.json. Padding is not the token that ends a turn, which is learned."""
        text = self.tokenizer.end_of_text
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": block_size,
            "padding_side": "left",
            "eos_token": self.end_name,
            **({"bos_token": text, "pad_token": text} if text else {}),
            "chat_template": self.source,
        }


def _settings(directory: Path) -> dict[str, Any]:
    """Return the content of a run's tokenizer_config.json, or nothing."""
    path = (tokenizer_directory(directory) or directory) / TOKENIZER_CONFIG
    return files.read_json(path) if path.is_file() else {}


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn an error of Jinja into a ValueError with cause and remedy."""
    try:
        yield
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(
            f"the chat template cannot be rendered ({error}): correct chat_template in {TOKENIZER_CONFIG}"
        ) from error


def _spans(text: str, learned: bool) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a text between marks, and True for each that is learned; the first is so if `learned`.

    >>> list(_spans(f"a{OPEN}b{CLOSE}", False))
    [('a', False), ('b', True), ('', False)]
    """
    while True:
        mark = CLOSE if learned else OPEN
        piece, found, text = text.partition(mark)
        yield piece, learned
        if not found:
            return
        learned = not learned


def add_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with those role tokens that it lacks, their ids behind all others."""
    missing = [name for name in CHAT_TOKENS if name not in tokenizer.special_tokens]
    return tokenizer.with_special_tokens(missing) if missing else tokenizer
