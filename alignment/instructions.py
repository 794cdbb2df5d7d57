"""Conversations in and out: formats that others use, and the token files of `python -m alignment data`.

    Alpaca       {"instruction": …, "input": …, "output": …}                 one JSON array, or an object a line
    chat         {"messages": [{"role": …, "content": …}, …]}                as OpenAI and TRL have it
    preference   {"prompt": …, "chosen": …, "rejected": …}                   texts, or lists of messages
    prompts      {"messages": […], "check": {…}}                             what reinforcement learning samples from

A source is the path of such a file (.json or .jsonl), `hf:NAME[:CONFIG][:SPLIT]` for a dataset of the hub, or rows that
are in memory already, such as a `datasets.Dataset`.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import files
from data import hub
from inference.chat import Message, check_turns

Row = Mapping[str, Any]
Source = str | Path | Iterable[Row]


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, of which the first is the better one; ValueError if they are equal or empty."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        check_turns(self.prompt, answered=False)
        if not self.chosen.strip() or not self.rejected.strip():
            raise ValueError("an answer of a preference is empty: leave the preference out")
        if self.chosen == self.rejected:
            raise ValueError("the answers of a preference are equal: leave it out, it prefers nothing")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Messages to answer, and the check that an answer has to pass (alignment.tasks)."""

    messages: tuple[Message, ...]
    check: Mapping[str, Any]


def read_conversations(source: Source) -> Iterator[list[Message]]:
    """Yield the conversations of Alpaca or chat rows; ValueError that names the row for any other."""
    return (_named(source, number, _conversation, row) for number, row in enumerate(rows(source), 1))


def read_preferences(source: Source) -> Iterator[Preference]:
    """Yield the preferences of rows with chosen and rejected answers; ValueError that names the row."""
    return (_named(source, number, _preference, row) for number, row in enumerate(rows(source), 1))


def read_prompts(source: Source) -> list[Prompt]:
    """Return the prompts of a file; ValueError that names the row, or says that there is none."""
    found = [_named(source, number, _prompt, row) for number, row in enumerate(rows(source), 1)]
    if not found:
        raise ValueError(f"{_name(source)} holds no prompt: give a file that python -m alignment data made")
    return found


def rows(source: Source) -> Iterator[Row]:
    """Yield the objects of a source; ValueError for a file that holds anything else."""
    if not isinstance(source, str | Path):
        yield from source
    elif str(source).startswith("hf:"):
        yield from hub.load_name(hub.parse(str(source)[3:]), local_files_only=False)
    elif Path(source).suffix == ".json":
        content = files.read_json(source)
        if not isinstance(content, list):
            raise ValueError(f"{source} is not a JSON array: give a list of objects, or JSON lines as .jsonl")
        yield from content
    else:
        for number, line in enumerate(files.read_text(source).splitlines(), 1):
            if line.strip():
                yield _json(source, number, line)


def _json(source: str | Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}, line {number} is not valid JSON ({error})") from error


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the data"


def _named(source: Source, number: int, read: Any, row: Row) -> Any:
    """Return read(row); a ValueError names the source and the row."""
    try:
        if not isinstance(row, Mapping):
            raise ValueError(f"{row!r} is not a JSON object")
        return read(row)
    except ValueError as error:
        raise ValueError(f"{_name(source)}, row {number}: {error}") from error


def _messages(value: Any) -> list[Message]:
    """Return the messages of a list of objects, or of the text of one user."""
    if isinstance(value, str):
        return [Message("user", value)]
    if not isinstance(value, Sequence):
        raise ValueError(f"{value!r} is neither a text nor a list of messages")
    return [Message.of(each) for each in value]


def _conversation(row: Row) -> list[Message]:
    if "messages" in row:
        messages = _messages(row["messages"])
    elif {"instruction", "output"} <= row.keys():
        asked = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
        messages = [Message("user", asked), Message("assistant", row["output"])]
    else:
        raise ValueError(f"it has {', '.join(row)}, but neither messages nor instruction and output")
    check_turns(messages, answered=True)
    return messages


def _preference(row: Row) -> Preference:
    """Return a preference whose prompt is given, or is what both conversations begin with."""
    if not {"chosen", "rejected"} <= row.keys():
        raise ValueError(f"it has {', '.join(row)}, but not both chosen and rejected")
    chosen, rejected = _messages(row["chosen"]), _messages(row["rejected"])
    prompt = _messages(row["prompt"]) if "prompt" in row else chosen[:-1]
    if "prompt" not in row and chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected begin differently: give the prompt that they share")
    if not chosen or not rejected:
        raise ValueError("an answer of a preference is empty: leave the preference out")
    return Preference(tuple(prompt), chosen[-1].content, rejected[-1].content)


def _prompt(row: Row) -> Prompt:
    if not {"messages", "check"} <= row.keys():
        raise ValueError(f"it has {', '.join(row)}, but not both messages and check")
    messages = _messages(row["messages"])
    check_turns(messages, answered=False)
    return Prompt(tuple(messages), row["check"])


def chat_row(messages: Sequence[Message]) -> dict[str, Any]:
    """Return a conversation as a row of a chat file."""
    return {"messages": [dataclasses.asdict(each) for each in messages]}


def alpaca_row(messages: Sequence[Message]) -> dict[str, Any]:
    """Return a conversation as a row of an Alpaca file; ValueError if it is more than a request and an answer.

    >>> alpaca_row([Message("user", "Hi"), Message("assistant", "Hello!")])
    {'instruction': 'Hi', 'input': '', 'output': 'Hello!'}
    """
    if [each.role for each in messages] != ["user", "assistant"]:
        raise ValueError(
            "the Alpaca format holds one request and one answer, without a system prompt: write this conversation as "
            "chat"
        )
    return {"instruction": messages[0].content, "input": "", "output": messages[1].content}


def preference_row(preference: Preference) -> dict[str, Any]:
    """Return a preference as a row of a preference file, in the form that TRL calls conversational."""
    answers = {
        name: [{"role": "assistant", "content": getattr(preference, name)}] for name in ("chosen", "rejected")
    }
    return {"prompt": [dataclasses.asdict(each) for each in preference.prompt], **answers}


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a row of a file of prompts."""
    return {**chat_row(prompt.messages), "check": dict(prompt.check)}


def write_rows(path: Path, content: Iterable[Row]) -> None:
    """Write rows as a JSON array (.json) or one a line (.jsonl), atomically."""
    if path.suffix == ".json":
        files.write_json(path, list(content))
    else:
        files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
