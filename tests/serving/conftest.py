"""A small random model with a chat template, and a server of it in a thread."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bpe import Tokenizer
from inference.chat import ChatTemplate, add_chat_tokens
from inference.text import TextModel
from model import GPT, GPTConfig
from serving.engine import Engine
from serving.http import Access, Server
from serving.scheduler import Limits

uvicorn = pytest.importorskip(
    "uvicorn", reason="the server's packages are not installed: pip install .[serving]"
)

CONTEXT = 160


@pytest.fixture(scope="session")
def chat_run(tmp_path_factory) -> Path:
    """Return a model of random weights that writes bytes, most of them halves of characters."""
    directory = tmp_path_factory.mktemp("serving") / "random"
    tokenizer = add_chat_tokens(Tokenizer([], ["<|endoftext|>"]))
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=CONTEXT, n_layer=2, n_head=2, n_embd=32))
    with torch.no_grad():
        for block in gpt.h:
            block.attn.c_proj.weight.mul_(20)
            block.mlp.c_proj.weight.mul_(10)
    gpt.save_pretrained(directory)
    ChatTemplate(tokenizer).save(directory, CONTEXT)
    return directory


@contextlib.contextmanager
def serving(
    run: Path,
    template: bool = True,
    limits: Limits | None = None,
    queue: int = 256,
    page=None,
    name: str = "tiny",
    **access,
):
    """Serve a run from a thread; gives the address and the engine."""
    engine = Engine(TextModel.load(run, "cpu", "float32"), limits, queue)
    hosts = frozenset(access.pop("hosts", {"127.0.0.1", "localhost"}))
    found = ChatTemplate.load(run) if template else None
    app = Server(engine, name, found, Access(hosts, **access), page).app()
    listening = socket.create_server(("127.0.0.1", 0))
    # Without a limit a request that never ends would keep the tests from ending, as it would the server.
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    engine.start()
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", engine
    finally:
        server.should_exit = True
        thread.join()
        engine.close()
        listening.close()


@pytest.fixture(scope="session")
def server(chat_run) -> Iterator[tuple[str, Engine]]:
    """Serve the random model for all tests; a test may not leave a page behind."""
    with serving(chat_run) as running:
        yield running


def assert_all_pages_come_back(engine: Engine, seconds: float = 100) -> None:
    """Wait until nothing runs; then every page is free or known to the tree."""
    end = time.monotonic() + seconds
    while not (engine.scheduler.is_idle and not engine._inbox) and time.monotonic() < end:
        time.sleep(0.01)
    scheduler = engine.scheduler
    assert scheduler.is_idle
    assert scheduler.pool.free_count + scheduler.tree.evictable() == scheduler.pool.count
    assert not engine._tickets
