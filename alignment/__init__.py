"""Alignment: from a model that continues text to one that does what it is told.

Reading order: instructions (data in and out), tasks (what can be checked), sft (the first stage), then what improves on
it; evaluate measures every stage in the same way.

Every stage speaks of conversations as `list[inference.chat.Message]`, and writes and reads them as ids by
`inference.chat.ChatTemplate`: `encode(messages) -> (ids, mask)`, `prompt(messages) -> ids`, `text(ids) -> str`, and
`stops`, the ids at which an answer ends, of which `end_of_turn` is the one that is learned.

A file of prompts (`prompts/train.jsonl` and others in the folder of python -m alignment data) has a line for each:

    {"messages": [{"role": "user", "content": "Tell me a story about Lily."}], "check": {"task": "stories", …}}

`check` is what a verifier needs: `tasks.verify(answer, check)` returns {constraint: fault}, where an empty fault means
that the constraint is met. A reward is a plain function of a batch:

    reward(prompts: list[list[Message]], answers: list[str], checks: list[dict]) -> list[float]
"""
