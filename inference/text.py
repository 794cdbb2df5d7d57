"""A model and its tokenizer together: text in, text out as it is sampled, never half a character (basics/sample.py)."""

import codecs
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from bpe import Tokenizer
from inference.run import load_tokenizer, weights_directory
from model import GPT
from model.cache import compile_step
from model.generate import Generation, Rules
from model.pack import Precision, pack


class Continuation:
    """One continuation as it grows: its ids, and its text up to the first stop string.

    A possible beginning of a stop string, or of a character, is held back until it is decided.

    >>> text = Continuation(Tokenizer([(b"h", b"i")]), ["!!"])
    >>> [text.add(id) for id in b"oh! oh!!x"], text.stopped
    (['o', 'h', '', '! ', 'o', 'h', '', '', ''], True)
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False
        self._tokenizer, self._stops, self._held = tokenizer, stops, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, id: int) -> str:
        """Add the next id; return the text that has become certain."""
        if self.stopped:
            return ""
        self.ids.append(id)
        return self._show(self._decoder.decode(self._tokenizer.vocab.get(id, b"")))

    def finish(self) -> str:
        """Return what was held back; no more ids will come."""
        if self.stopped:
            return ""
        shown = self._show(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        self.text += rest
        return shown + rest

    def _show(self, text: str) -> str:
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        self.stopped = bool(places)
        size = min(places) if places else len(self._held) - self._beginning_of_a_stop()
        shown, self._held = self._held[:size], "" if places else self._held[size:]
        self.text += shown
        return shown

    def _beginning_of_a_stop(self) -> int:
        """Return how many of the last characters held may belong to a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in sizes if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)


def check_stops(stops: Sequence[str]) -> None:
    """Raise ValueError for an empty stop string, which would end every text at once."""
    if "" in stops:
        raise ValueError("a stop string is empty: give it at least one character, or leave it out")


def _without_weights(directory: Path) -> str:
    """Return the error message for a directory that holds no model."""
    if (directory / "config.toml").is_file():
        return (
            f"{directory} stopped before its first evaluation, so that there are no best weights yet: continue it with "
            f"python -m train --run {directory} --resume"
        )
    if directory.exists():
        return (
            f"{directory} holds no trained model (neither best/ nor config.json): give the directory of a run"
        )
    return f"{directory} does not exist, so it holds no trained model: train one with python -m train --run {directory}"


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A GPT that reads and writes text."""

    model: GPT
    tokenizer: Tokenizer
    step: Callable[..., Tensor] | None = None
    """A compiled decode step; see model.cache.compile_step."""
    special_tokens: bool = False
    """True to encode special tokens in texts as tokens, not as their letters."""

    @classmethod
    def load(
        cls,
        directory: Path,
        device: str = "auto",
        precision: Precision | None = None,
        compile: bool = False,
        special_tokens: bool = False,
    ) -> "TextModel":
        """Load the best weights of a run, or the model of a Hugging Face directory, with its tokenizer.

        With a `precision` the model is packed for generation: see model.pack. FileNotFoundError if there is no
        model or no tokenizer, ValueError for a tokenizer with more tokens than the model has.
        """
        from inference.devices import choose_device

        weights = weights_directory(directory)
        if not (weights / "config.json").is_file():
            raise FileNotFoundError(_without_weights(directory))
        model = GPT.from_pretrained(weights)
        tokenizer = load_tokenizer(directory)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer in {directory} has {tokenizer.vocab_size} tokens, the model only "
                f"{model.config.vocab_size}: it is another model's tokenizer"
            )
        model = model.to(choose_device(device)).eval()
        if precision is not None:
            model = pack(model, precision)
        return cls(model, tokenizer, compile_step(model) if compile else None, special_tokens)

    @property
    def end(self) -> int | None:
        """Return the id of the token that starts and ends every document of the training data, or None."""
        return self.tokenizer.special_tokens.get(self.tokenizer.end_of_text)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` as the beginning of a document."""
        start = [] if self.end is None else [self.end]
        ids = start + self.tokenizer.encode(text, allowed_special="all" if self.special_tokens else ())
        if not ids:
            raise ValueError("the prompt is empty, and the tokenizer has no end-of-text token to start from")
        return ids

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of a prompt; ValueError if they leave no room for an answer in the context."""
        ids = self.encode(prompt)
        if len(ids) >= self.model.config.block_size:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, the model's context {self.model.config.block_size}: "
                "give a shorter prompt"
            )
        return ids

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        rules: Rules,
        *,
        seeds: Sequence[int],
        stops: Sequence[str] = (),
        ignore_eot: bool = False,
    ) -> "Continuations":
        """Continue the prompts in one batch, each up to `<|endoftext|>` or one of the texts in `stops`."""
        check_stops(stops)
        end = () if ignore_eot or self.end is None else self.end
        generation = Generation(
            self.model, prompts, max_new_tokens, rules=rules, stop=end, seed=seeds, step=self.step
        )
        return Continuations(generation, [Continuation(self.tokenizer, stops) for _ in prompts])


@dataclasses.dataclass(frozen=True)
class Continuations:
    """A batch of continuations; iterating gives {row: new piece of text} until all are finished."""

    generation: Generation
    rows: Sequence[Continuation]

    def __iter__(self) -> Iterator[dict[int, str]]:
        for drawn in self.generation:
            yield {row: self.rows[row].add(id) for row, id in drawn.items()}
            for row in drawn:
                if self.rows[row].stopped:
                    self.generation.close(row)
        yield {row: each.finish() for row, each in enumerate(self.rows)}

    def finish(self) -> Sequence[Continuation]:
        """Generate everything; return the finished rows."""
        for _ in self:
            pass
        return self.rows

    def reason(self, row: int) -> str:
        """Return why a finished row ended: at a "stop" string, at `<|endoftext|>` ("end"), or for its "length"."""
        ended = self.rows[row]
        return "stop" if ended.stopped else "length" if len(ended.ids) == self.generation.steps else "end"
