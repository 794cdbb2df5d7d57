"""A story told in turns: the reader writes, the model goes on, and each step can be taken back.

`Dialogue` holds the text and answers one line at a time; `run` is the loop around it in a terminal.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

from inference.text import TextModel
from model.cache import context_start
from model.rules import Rules

HELP = """\
Write how the story begins or goes on; an empty line lets the model go on by itself.
  /undo            take back the last turn
  /again           tell the last turn in another way
  /new             begin another story
  /show            print the whole story
  /set NAME VALUE  temperature, top_k, top_p, min_p, repetition_penalty (none: off), seed or tokens
  /quit            leave"""


class Dialogue:
    """The story so far as a list of turns, and the rules by which the next one is told."""

    def __init__(
        self, text_model: TextModel, rules: Rules, max_new_tokens: int, seed: int, stops: tuple[str, ...] = ()
    ):
        self.text_model, self.rules, self.stops = text_model, rules, stops
        self.tokens, self.seed = max_new_tokens, seed
        self.turns: list[tuple[str, str]] = []  # what the reader wrote, what the model added
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
        """The whole text."""
        return "".join(written + told for written, told in self.turns)

    def respond(self, line: str) -> Iterator[str]:
        """Carries out a command, or takes `line` into the story and goes on; yields text as it comes.

        Raises a ValueError for what cannot be done; the story is then as it was.
        """
        name, *arguments = line.split() or [""]
        if not line.startswith("/"):
            yield from self._go_on(line)
        elif name in self.commands:
            if arguments and name != "/set":
                raise ValueError(f"{name} takes nothing more than its name: /help lists the commands")
            yield from self.commands[name](*arguments)
        else:
            raise ValueError(f"unknown command {name}: /help lists them")

    def _go_on(self, written: str) -> Iterator[str]:
        """Adds a turn. An interrupted one keeps what was said."""
        ids = self.text_model.encode(self.story + written)
        context = ids[context_start(len(ids) + 1, self.text_model.model.config.block_size) :]
        tellings = self.text_model.tell(
            [context], self.tokens, self.rules, seeds=[self.seed], stops=self.stops
        )
        self.seed += 1
        self.turns.append((written, ""))
        for said in tellings:
            self.turns[-1] = written, tellings.rows[0].text
            yield said.get(0, "")

    def _undo(self) -> Iterator[str]:
        if not self.turns:
            raise ValueError("there is nothing to undo: the story has not begun")
        self.turns.pop()
        yield self.story

    def _again(self) -> Iterator[str]:
        if not self.turns:
            raise ValueError("there is nothing to tell again: the story has not begun")
        written, _ = self.turns.pop()
        yield from self._go_on(written)

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
            raise ValueError(f"say /set NAME VALUE, with one of {', '.join(sorted(fields))}, seed, tokens")
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
    """The value that a user wrote, None for "none"."""
    if text.lower() == "none" and name in ("top_k", "top_p", "min_p"):
        return None
    whole = name in ("top_k", "seed", "tokens")
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}: give a {'whole ' if whole else ''}number") from None


def run(dialogue: Dialogue) -> None:
    """Reads lines until the end of the input or /quit. Ctrl-C ends a turn, not the program."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (importing it gives input() line editing and a history)
    print("/help lists what you can do.")
    while True:
        try:
            line = input("\n> ")
        except EOFError:
            print()
            return
        if line.strip() == "/quit":
            return
        answer(dialogue, line)


def answer(dialogue: Dialogue, line: str) -> None:
    """Prints the answer to one line as it comes; a mistake is one line and the dialogue goes on."""
    try:
        for piece in dialogue.respond(line):
            print(piece, end="", flush=True)
    except ValueError as error:
        print(f"error: {error}", end="")
    except KeyboardInterrupt:
        print(" …", end="")
    print()
