"""Expert iteration: what is kept earns the reward, and is learned."""

import json

import pytest

from alignment.__main__ import main
from inference.chat import ChatTemplate
from model import GPT

from .conftest import asked, write_rows

FLAGS = ["--count", "24", "--max-new-tokens", "8", "--steps", "3"]


@pytest.fixture
def places(babble, chat, tmp_path) -> list[str]:
    """Return flags: prompts to answer by the babbling model with the chat data's template, and what to write."""
    start = tmp_path / "start"
    template = ChatTemplate.load(chat)
    GPT.from_pretrained(babble / "best").with_vocabulary(template.tokenizer.vocab_size).save_pretrained(start)
    template.save(start, 48)
    prompts = write_rows(
        tmp_path / "prompts.jsonl", [{"messages": asked(f"Say {n}"), "check": {}} for n in range(24)]
    )
    named = {
        "--init-from": start,
        "--prompts": prompts,
        "--data": tmp_path / "kept",
        "--run": tmp_path / "run",
    }
    return [str(word) for flag in named.items() for word in flag]


def reward_file(tmp_path, body: str) -> list[str]:
    path = tmp_path / "short.py"
    path.write_text(f"def reward(prompts, answers, checks):\n    return [{body} for a in answers]\n")
    return ["--reward", f"{path}:reward"]


def test_every_answer_kept_earns_the_reward_and_is_learned(places, tmp_path):
    main(["best-of", *places, *FLAGS, *reward_file(tmp_path, "float(len(a) % 2)")])
    rows = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert 2 <= len(rows) <= 24 and len({row["messages"][0]["content"] for row in rows}) == len(rows)
    assert all(len(row["messages"][1]["content"]) % 2 == 1 for row in rows)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["tokens"] > 0


@pytest.mark.parametrize(
    ("reward", "message"),
    [("0.0", "fewer than two prompts"), ("float('nan')", "must be finite"), ("1 / 0", "division by zero")],
)
def test_nothing_is_written_without_answers_to_keep(places, tmp_path, capsys, reward, message):
    with pytest.raises(SystemExit) as stopped:
        main(["best-of", *places, *FLAGS, *reward_file(tmp_path, reward)])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in ("run", "kept", "kept.jsonl"))


def test_what_exists_is_refused_before_any_answer(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("alignment.best_of.sample", lambda *_: pytest.fail("it sampled"))
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit):
        main(["best-of", *places, *FLAGS])
    assert "--overwrite" in capsys.readouterr().err
