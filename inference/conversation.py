"""A conversation in the terminal: the user writes, the model answers, by the chat template of its run.

`Conversation` holds the messages and answers one line at a time; `inference.interactive.run` is the loop around it.
"""

from collections.abc import Iterator

from inference.chat import ChatTemplate, Message
from inference.text import Continuation, TextModel
from model.generate import Generation, Rules

HELP = """\
Write a request; the model answers.
  /new            forget the conversation
  /system TEXT    begin a new conversation with this system prompt
  /again          answer the last request again
  /quit           leave"""


class Conversation:
    """The messages so far; what no longer fits into the context is forgotten, the system prompt last."""

    def __init__(
        self, text_model: TextModel, template: ChatTemplate, rules: Rules, max_new_tokens: int, seed: int
    ) -> None:
        self.text_model, self.template, self.rules = text_model, template, rules
        self.tokens, self.seed = max_new_tokens, seed
        self.messages: list[Message] = []

    def respond(self, line: str) -> Iterator[str]:
        """Run a command, or answer a request; yield text as it is sampled. ValueError for what cannot be done."""
        name, _, rest = line.partition(" ")
        if not line.startswith("/"):
            yield from self._answer(line)
        elif name == "/new":
            self.messages.clear()
            yield "a new conversation"
        elif name == "/system" and rest.strip():
            self.messages[:] = [Message("system", rest.strip())]
            yield "a new conversation with this system prompt"
        elif name == "/again" and self.messages and self.messages[-1].role == "assistant":
            self.messages.pop()
            yield from self._answer(self.messages.pop().content)
        elif name == "/help":
            yield HELP
        else:
            raise ValueError(f"{line!r} cannot be done now: /help lists the commands")

    def _answer(self, request: str) -> Iterator[str]:
        """Answer a request. An interrupted answer keeps the text sampled so far; an empty one is not kept."""
        if not request.strip():
            raise ValueError("the request is empty: write one, or /help")
        self.messages.append(Message("user", request))
        text = ""
        try:
            for piece in self._sampled():
                text += piece
                yield piece
        finally:
            if text.strip():
                self.messages.append(Message("assistant", text))
            else:
                self.messages.pop()

    def _sampled(self) -> Iterator[str]:
        """Yield the next answer piece by piece."""
        prompt = self._prompt()
        room = self.text_model.model.config.block_size - len(prompt)
        generation = Generation(
            self.text_model.model,
            [prompt],
            min(room, self.tokens),
            rules=self.rules,
            stop=self.template.stops,
            seed=self.seed,
            step=self.text_model.step,
        )
        self.seed += 1
        answer = Continuation(self.text_model.tokenizer)
        for drawn in generation:
            yield "".join(answer.add(id) for id in drawn.values())
        yield answer.finish()

    def _prompt(self) -> list[int]:
        """Return the ids of the conversation, of which as many old turns are left out as leave room for an answer.

        The end of a prompt is what is to be answered, so it is the beginning that goes.
        """
        size = self.text_model.model.config.block_size
        system = [each for each in self.messages[:1] if each.role == "system"]
        turns = self.messages[len(system) :]
        while True:
            prompt = self.template.prompt([*system, *turns])
            if len(prompt) <= size - min(self.tokens, size // 2) or (len(turns) == 1 and len(prompt) < size):
                return prompt
            if len(turns) == 1:
                raise ValueError(
                    f"the request has {len(prompt)} tokens, the model's context {size}: give a shorter one"
                )
            turns = turns[2:]
