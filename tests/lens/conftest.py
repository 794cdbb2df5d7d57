"""A tokenizer for the small models of these tests, and runs to be shown."""

from pathlib import Path

import pytest

from bpe import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Return a tokenizer of 300 ids."""
    from bpe import train

    text = "Once there was a little girl. The girl saw a dog, and the dog saw the girl's ball! " * 3
    return train([text], 300, progress=False)


@pytest.fixture(scope="session")
def chat_run(tokenizer, tmp_path_factory) -> Path:
    """Return a run with rotary positions, grouped queries, SwiGLU, a chat template and two kept checkpoints."""
    from inference.chat import ChatTemplate, add_chat_tokens
    from tests.lens.asking import small

    run = tmp_path_factory.mktemp("runs") / "modern"
    chat = add_chat_tokens(tokenizer)
    gpt = small(
        vocab_size=chat.vocab_size,
        block_size=64,
        positions="rotary",
        n_kv_head=2,
        mlp="swiglu",
        norm="rmsnorm",
    )
    for name in ("best", "step-00000010", "step-00000020"):
        gpt.save_pretrained(run / name)
    ChatTemplate(chat).save(run, 64)
    (run / "config.toml").write_text("")
    (run / "log.jsonl").write_text('{"step": 0, "loss": 5.1}\n{"step": 20, "loss": 3.0, "val_loss": 3.2}\n')
    return run
