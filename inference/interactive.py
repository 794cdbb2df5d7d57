"""An interactive session: the user writes, the model continues, and each turn can be undone.

`Dialogue` holds the text and answers one line at a time; `run` is the loop around it in a terminal.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Protocol

from inference.text import TextModel
from model.cache import context_start
from model.generate import Rules

HELP = """\
Write how the story begins or continues; after an empty line the model continues by itself.
  /undo            undo the last turn
  /again           sample the last turn again
  /new             start another story
  /show            print the whole story
  /set NAME VALUE  temperature, top_k, top_p, min_p, repetition_penalty (none: off), seed or tokens
  /quit            leave"""


class Dialogue:
    """The story so far as a list of turns, and the rules by which the next one is sampled."""

    def __init__(
        self, text_model: TextModel, rules: Rules, max_new_tokens: int, seed: int, stops: tuple[str, ...] = ()
    ):
        self.text_model, self.rules, self.stops = text_model, rules, stops
        self.tokens, self.seed = max_new_tokens, seed
        self.turns: list[tuple[str, str]] = []  # what the user wrote, what the model added
        self.commands = {
            "/undo": self._undo,
            "/again": self._again,
            "/new": self._new,
            "/show": self._show,
            "/set": self._set,
            "/help": self._help,
        }

    @property
    def story(self) -> str:
        """Return the whole text."""
        return "".join(text + added for text, added in self.turns)

    def respond(self, line: str) -> Iterator[str]:
        """Run a command, or add `line` to the story and continue it; yield text as it is sampled.

        ValueError for what cannot be done; the story is then unchanged.
        """
        name, *arguments = line.split() or [""]
        if not line.startswith("/"):
            yield from self._continue(line)
        elif name in self.commands:
            if arguments and name != "/set":
                raise ValueError(f"{name} takes no argument: /help lists the commands")
            yield from self.commands[name](*arguments)
        else:
            raise ValueError(f"unknown command {name}: /help lists them")

    def _continue(self, text: str) -> Iterator[str]:
        """Add a turn. An interrupted one keeps the text sampled so far."""
        ids = self.text_model.encode(self.story + text)
        context = ids[context_start(len(ids) + 1, self.text_model.model.config.block_size) :]
        continuations = self.text_model.generate(
            [context], self.tokens, self.rules, seeds=[self.seed], stops=self.stops
        )
        self.seed += 1
        self.turns.append((text, ""))
        for pieces in continuations:
            self.turns[-1] = text, continuations.rows[0].text
            yield pieces.get(0, "")

    def _undo(self) -> Iterator[str]:
        if not self.turns:
            raise ValueError("there is nothing to undo: the story has not begun")
        self.turns.pop()
        yield self.story

    def _again(self) -> Iterator[str]:
        if not self.turns:
            raise ValueError("there is nothing to sample again: the story has not begun")
        text, _ = self.turns.pop()
        yield from self._continue(text)

    def _new(self) -> Iterator[str]:
        self.turns.clear()
        yield "a new story"

    def _show(self) -> Iterator[str]:
        yield self.story

    def _help(self) -> Iterator[str]:
        yield HELP

    def _set(self, *words: str) -> Iterator[str]:
        fields = {field.name for field in dataclasses.fields(Rules)}
        if len(words) != 2 or words[0] not in fields | {"seed", "tokens"}:
            raise ValueError(f"give /set NAME VALUE, with one of {', '.join(sorted(fields))}, seed, tokens")
        name, value = words[0], _number(words[0], words[1])
        if name in fields:
            self.rules = dataclasses.replace(self.rules, **{name: value})
        elif not int(name == "tokens") <= value < 1 << 62:
            raise ValueError(
                f"{name} is {value}: it must be at least {int(name == 'tokens')}, and below 2^62"
            )
        else:
            setattr(self, name, value)
        yield f"{name} is {value}"


def _number(name: str, text: str) -> int | float | None:
    """Return the value that a user wrote, None for "none"."""
    if text.lower() == "none" and name in ("top_k", "top_p", "min_p"):
        return None
    whole = name in ("top_k", "seed", "tokens")
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}: give a {'whole ' if whole else ''}number") from None


class Responder(Protocol):
    """What `run` talks to: a Dialogue, or a Conversation."""

    def respond(self, line: str) -> Iterator[str]:
        """Yield the answer to a line as it is sampled; ValueError for what cannot be done."""


def run(dialogue: Responder) -> None:
    """Read lines until the end of the input or /quit. Ctrl-C ends a turn or drops a line, not the program."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (importing it gives input() line editing and a history)
    print("/help lists what you can do.")
    while True:
        try:
            line = input("\n> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit leaves, with Ctrl-D too; what was told so far is kept.", end="")
            continue
        if line.strip() == "/quit":
            return
        answer(dialogue, line)


def answer(dialogue: Responder, line: str) -> None:
    """Print the answer to one line as it is sampled; a mistake is one line and the dialogue continues."""
    try:
        for piece in dialogue.respond(line):
            print(piece, end="", flush=True)
    except ValueError as error:
        print(f"error: {error}", end="")
    except KeyboardInterrupt:
        print(" …", end="")
    print()
